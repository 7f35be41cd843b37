package blob

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Summed is a body that may know its CRC-64/NVME, the checksum of x-ms-content-crc64: then it need not be read for that,
// and an upload whose bytes do not match fails with Damaged.
type Summed interface {
	CRC64() (sum uint64, known bool)
}

// FileBody is a body that lies in a file: a Container can let the kernel send it from there, which saves two of three
// copies. What lies beyond the end of the file is zeros. It is not for parallel use, but for Open.
type FileBody struct {
	io.SectionReader
	file      *os.File
	off, size int64
	crc64     uint64
	known     bool
}

// NewFileBody returns size bytes of a file from off on as a body. The file must stay open as long as the body is used.
func NewFileBody(file *os.File, off, size int64) *FileBody {
	return &FileBody{SectionReader: *io.NewSectionReader(padded{file}, off, size), file: file, off: off, size: size}
}

// SetCRC64 says what CRC64 returns.
func (b *FileBody) SetCRC64(sum uint64) { b.crc64, b.known = sum, true }

// CRC64 implements Summed.
func (b *FileBody) CRC64() (sum uint64, known bool) { return b.crc64, b.known }

// Open opens the file once more, at the start of the body. It fails when the file ends before the body, or /proc is not to
// be had: then the body has to be read.
func (b *FileBody) Open() (*os.File, error) {
	conn, err := b.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var f *os.File
	var opened error
	// By its descriptor: the name may be another by now, or gone. Control keeps the descriptor from being closed and
	// used anew.
	if err := conn.Control(func(fd uintptr) { f, opened = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) }); err != nil {
		return nil, err
	}
	if opened != nil {
		return nil, opened
	}
	if err := b.place(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (b *FileBody) place(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < b.off+b.size {
		return &fs.PathError{Op: "open", Path: f.Name(), Err: io.ErrUnexpectedEOF}
	}
	_, err = f.Seek(b.off, io.SeekStart)
	return err
}

// padded reads zeros beyond the end.
type padded struct{ r io.ReaderAt }

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return len(b), nil
	}
	return n, err
}
