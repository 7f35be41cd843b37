package azure

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minio/crc64nvme"

	"blobmount/blobcache/blob"
)

// fileWith returns a file that can only be written to, and what is in it.
func fileWith(t *testing.T, n int) (*os.File, []byte) {
	t.Helper()
	content := make([]byte, n)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "file"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return f, content
}

// A body in a file whose checksum is known is not read at all, the descriptor that it was given cannot even be read, and
// each try sends all of it again.
func TestFileBody(t *testing.T) {
	file, content := fileWith(t, 3<<20)
	const off, n = 1000, 2<<20 + 77
	want := content[off : off+n]
	s := serve(t, func(i int, w http.ResponseWriter, r *http.Request) {
		if i == 1 { // in the middle of the body
			_, _ = io.CopyN(io.Discard, r.Body, n/2)
			hangUp(w)
			return
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("try %d: %d bytes arrived, not the %d of the body: %v", i, len(got), len(want), err)
		}
		created(w)
	})
	body := blob.NewFileBody(file, off, n)
	body.SetCRC64(crc64nvme.Checksum(want))
	if err := s.container(t, nil).StageBlock(t.Context(), "a", "id", body, n); err != nil {
		t.Fatal(err)
	}
	if s.requests() != 2 {
		t.Errorf("%d requests, want 2", s.requests())
	}
}

// A file that is cut while it is sent does not keep the request from its end: the rest counts as zeros, and the checksum
// tells.
func TestFileBodyCut(t *testing.T) {
	file, content := fileWith(t, 2<<20)
	n := int64(len(content))
	s := serve(t, func(i int, w http.ResponseWriter, r *http.Request) {
		if i == 1 {
			if err := file.Truncate(n / 2); err != nil {
				t.Error(err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
			hangUp(w)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		refuse(w, r, http.StatusBadRequest, "Crc64Mismatch", "")
	})
	readable, err := os.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer readable.Close()
	body := blob.NewFileBody(readable, 0, n)
	body.SetCRC64(crc64nvme.Checksum(content))
	if err := s.container(t, nil).StageBlock(t.Context(), "a", "id", body, n); !blob.Is(err, blob.Damaged) {
		t.Errorf("got %v", err)
	}
}

// unreadable has a descriptor, and cannot be read otherwise.
type unreadable struct{ *sentFile }

var errRead = errors.New("it was read")

func (unreadable) Read([]byte) (int, error) { return 0, errRead }

// The connection takes a file by its descriptor, in as many pieces as it needs, and everything else by reading it.
func TestConnReadFrom(t *testing.T) {
	file, content := fileWith(t, 5*bufferSize+99)
	const off, n = 50, 3*bufferSize + 33
	open := func() *sentFile {
		f, err := openBody(blob.NewFileBody(file, off, n))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f.(*sentFile)
	}
	for name, r := range map[string]io.Reader{
		"descriptor": &io.LimitedReader{R: unreadable{open()}, N: n},
		"limited":    &io.LimitedReader{R: bytes.NewReader(content[off:]), N: n},
		"other":      bytes.NewReader(content[off : off+n]),
	} {
		t.Run(name, func(t *testing.T) {
			client, server := connected(t)
			got := make(chan []byte)
			go func() {
				b, _ := io.ReadAll(server)
				got <- b
			}()
			sent, err := (&stallConn{Conn: client, limit: time.Minute}).ReadFrom(r)
			if err != nil || sent != n {
				t.Errorf("%d bytes sent, want %d: %v", sent, n, err)
			}
			client.Close()
			if b := <-got; !bytes.Equal(b, content[off:off+n]) {
				t.Errorf("%d bytes arrived, not what was sent", len(b))
			}
		})
	}
	body := open()
	if _, err := body.file.Seek(off+n-5, io.SeekStart); err != nil { // as after the kernel has read
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(body); err != nil || !bytes.Equal(rest, content[off+n-5:off+n]) {
		t.Errorf("%d bytes are left, want 5: %v", len(rest), err)
	}
}

// connected returns the two ends of a TCP connection.
func connected(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// A connection that takes nothing any more counts as broken, also in the middle of a file.
func TestConnReadFromStalls(t *testing.T) {
	client, _ := connected(t)
	file, content := fileWith(t, 64<<20) // more than both ends buffer
	body, err := openBody(blob.NewFileBody(file, 0, int64(len(content))))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	_, err = (&stallConn{Conn: client, limit: 50 * time.Millisecond}).ReadFrom(&io.LimitedReader{R: body, N: int64(len(content))})
	if !errors.Is(err, errStalled) {
		t.Errorf("got %v", err)
	}
}

// A file that cannot be read is no failure of the connection: no other try is made.
func TestSentFileFails(t *testing.T) {
	file, err := os.Open("/proc/self/mem") // whose first page is nobody's
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	client, _ := connected(t)
	_, err = (&stallConn{Conn: client, limit: time.Minute}).ReadFrom(&io.LimitedReader{R: &sentFile{file, 1 << 20}, N: 1 << 20})
	var final interface{ NonRetriable() }
	if !errors.As(err, &final) || !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v, want an error that is not to be repeated", err)
	}
}
