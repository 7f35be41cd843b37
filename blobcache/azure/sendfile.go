package azure

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"blobmount/blobcache/blob"
)

// A body that lies in a file goes out by sendfile where the connection is not encrypted: net/http hands such a body to the
// connection (io.ReaderFrom), which takes what has a descriptor (see net/sendfile.go). Over TLS it is read as any other.

type fileBodyKey struct{}

// withFileBody lets the transport know of a body in a file: what it is given has been wrapped by the SDK.
func withFileBody(ctx context.Context, body io.Reader) context.Context {
	if f, ok := body.(*blob.FileBody); ok {
		return context.WithValue(ctx, fileBodyKey{}, f)
	}
	return ctx
}

// fromFile makes a request send its body from a descriptor of its own, if it can. What net/http does with that after
// RoundTrip has returned touches nobody's memory, so there needs no gate before it.
func fromFile(req *http.Request) bool {
	f, ok := req.Context().Value(fileBodyKey{}).(*blob.FileBody)
	if !ok || f.Size() != req.ContentLength {
		return false
	}
	body, err := openBody(f)
	if err != nil {
		return false
	}
	req.Body = body
	req.GetBody = func() (io.ReadCloser, error) { return openBody(f) }
	return true
}

func openBody(f *blob.FileBody) (io.ReadCloser, error) {
	file, err := f.Open()
	if err != nil {
		return nil, err
	}
	start, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &sentFile{file, start + f.Size()}, nil
}

// sentFile is a file up to end. It has the file's descriptor, by which the kernel reads on from its position, so that
// only that position tells how much is left.
type sentFile struct {
	file *os.File
	end  int64
}

var _ syscall.Conn = (*sentFile)(nil)

func (s *sentFile) SyscallConn() (syscall.RawConn, error) { return s.file.SyscallConn() }

func (s *sentFile) Read(p []byte) (int, error) {
	pos, err := s.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	if pos >= s.end {
		return 0, io.EOF
	}
	n, err := s.file.Read(p[:min(int64(len(p)), s.end-pos)])
	if err != nil && err != io.EOF { // a file that was cut is sent with zeros by the next try
		err = &bodyError{err}
	}
	return n, err
}

func (s *sentFile) Close() error { return s.file.Close() }

// ReadFrom implements io.ReaderFrom, in pieces: each moves the deadlines as a Write does.
func (c *stallConn) ReadFrom(r io.Reader) (int64, error) {
	to, direct := c.Conn.(*net.TCPConn)
	from, limited := r.(*io.LimitedReader)
	if !direct || !limited {
		return io.Copy(onlyWriter{c}, r)
	}
	var sent int64
	for from.N > 0 {
		if err := c.extend(); err != nil {
			return sent, err
		}
		piece := io.LimitedReader{R: from.R, N: min(bufferSize, from.N)}
		n, err := to.ReadFrom(&piece)
		sent += n
		from.N -= n
		if errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EUCLEAN) || errors.Is(err, syscall.ESTALE) {
			return sent, &bodyError{err} // no socket has these: the file cannot be read
		}
		if err != nil {
			return sent, stalled(err)
		}
		if n == 0 { // the end: whoever asked counts
			break
		}
	}
	return sent, nil
}

// onlyWriter hides the ReadFrom of a connection.
type onlyWriter struct{ io.Writer }
