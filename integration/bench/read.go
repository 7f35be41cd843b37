package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checker compares samples of what is read with what it must be. Comparing all would cost about as much as reading
// from the page cache. It is not safe for parallel use.
type checker struct {
	name    string
	content blobtest.Generator
	every   int64 // bytes between samples; 0 for none
	since   int64
	n       int64 // samples taken
	want    [4 << 10]byte
}

func (t task) checker(f file) *checker {
	return &checker{name: f.Name, content: blobserver.SyntheticContent(f.Name), every: t.CheckEvery}
}

// check samples p, which was read at off.
func (c *checker) check(p []byte, off int64) error {
	c.since += int64(len(p))
	if c.every == 0 || c.since < c.every || len(p) == 0 {
		return nil
	}
	c.since = 0
	c.n++
	// Another page of the block each time.
	const page = int64(len(c.want))
	at := c.n * page % int64(len(p))
	end := min(at+page, int64(len(p)))
	want := c.want[:end-at]
	c.content(want, off+at)
	if !bytes.Equal(want, p[at:end]) {
		return fmt.Errorf("%s: wrong bytes at %d", c.name, off+at)
	}
	return nil
}

// source reads ranges of one open file.
type source interface {
	readAt(p []byte, off int64) error // all of p
	close() error
}

// plain reads by pread(2).
type plain int

func (fd plain) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(int(fd), p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("pread at %d: %w", off, err)
		case n == 0:
			return fmt.Errorf("pread at %d: %w", off, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (fd plain) close() error { return unix.Close(int(fd)) }

// mapping reads by copying out of a mapping, as programs do that use a file as memory.
type mapping []byte

func (m mapping) readAt(p []byte, off int64) error {
	copy(p, m[off:])
	return nil
}

func (m mapping) close() error { return unix.Munmap(m) }

func (t task) open(f file) (source, error) {
	fd, err := unix.Open(f.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Path, Err: err}
	}
	if !t.MMap {
		return plain(fd), nil
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, int(f.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: f.Path, Err: err}
	}
	return mapping(m), nil
}

// read reads the files one after the other, in blocks or by spans.
func (t task) read() (result, error) {
	var r result
	for _, f := range t.Files {
		if err := t.readFile(f, &r); err != nil {
			if !t.Survey {
				return r, err
			}
			r.Failed++
		}
	}
	return r, nil
}

func (t task) readFile(f file, r *result) error {
	src, err := t.open(f)
	if err != nil {
		return err
	}
	defer src.close()
	check := t.checker(f)
	spans := t.Spans
	size := t.Block
	if spans == nil {
		spans = cut(f.Size, t.Block)
	} else {
		for _, s := range spans {
			size = max(size, s.Len)
		}
	}
	buf := make([]byte, size)
	for _, s := range spans {
		p := buf[:s.Len]
		if err := src.readAt(p, s.Off); err != nil {
			return err
		}
		if err := check.check(p, s.Off); err != nil {
			return err
		}
		r.Bytes += s.Len
		r.Reads++
	}
	return nil
}

// cut returns the blocks of a file.
func cut(size, block int64) []span {
	spans := make([]span, 0, (size+block-1)/block)
	for off := int64(0); off < size; off += block {
		spans = append(spans, span{off, min(block, size-off)})
	}
	return spans
}

// random reads whole blocks at random places, in each thread.
func (t task) random() (result, error) {
	f := t.Files[0]
	src, err := t.open(f)
	if err != nil {
		return result{}, err
	}
	defer src.close()
	errs := make([]error, t.Threads)
	var reads atomic.Int64
	var wg sync.WaitGroup
	for i := range t.Threads {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(t.Seed, uint64(i)))
			check := t.checker(f)
			buf := make([]byte, t.Block)
			for range t.Count {
				off := rnd.Int64N(f.Size/t.Block) * t.Block
				if errs[i] = src.readAt(buf, off); errs[i] != nil {
					return
				}
				if errs[i] = check.check(buf, off); errs[i] != nil {
					return
				}
			}
			reads.Add(int64(t.Count))
		})
	}
	wg.Wait()
	return result{Bytes: reads.Load() * t.Block, Reads: reads.Load()}, errors.Join(errs...)
}

// files reads small files whole, as a data loader does.
func (t task) files() (result, error) {
	var r result
	var buf []byte
	for _, f := range t.Files {
		if int64(len(buf)) < f.Size {
			buf = make([]byte, f.Size)
		}
		src, err := t.open(f)
		if err != nil {
			return r, err
		}
		err = src.readAt(buf[:f.Size], 0)
		if err == nil && crc32.Checksum(buf[:f.Size], castagnoli) != f.Sum {
			err = errors.New("wrong checksum")
		}
		if err := errors.Join(err, src.close()); err != nil {
			return r, fmt.Errorf("%s: %w", f.Path, err)
		}
		r.Bytes += f.Size
		r.Reads++
	}
	return r, nil
}
