package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"blobmount/integration/blobserver"
)

// write creates the files one after the other, writes each in order in blocks, and closes it. The close is part of it:
// that is when a file is in the service.
func (t task) write() (result, error) {
	var r result
	buf := make([]byte, t.Block)
	for _, f := range t.Files {
		if err := t.writeFile(f, buf, &r); err != nil {
			return r, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return r, nil
}

func (t task) writeFile(f file, buf []byte, r *result) error {
	fd, err := unix.Open(f.Path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	content := blobserver.SyntheticContent(f.Name)
	for _, s := range cut(f.Size, t.Block) {
		p := buf[:s.Len]
		content(p, s.Off)
		if err := writeAll(fd, p); err != nil {
			_ = unix.Close(fd) // the first error counts
			return err
		}
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	r.Bytes += f.Size
	r.Reads++
	return nil
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p = p[n:]
	}
	return nil
}
