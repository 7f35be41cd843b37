package blobcache

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// newShown returns a File whose backing file the kernel reads, and that file as the kernel has it.
func newShown(t *testing.T, s *service, size int64) (c *Cache, f *File, kernel *os.File) {
	t.Helper()
	cfg := config(t.TempDir())
	p, _ := s.put(t, "a", size, 1)
	cached(t, s, cfg, p, size)
	c = openCache(t, cfg)
	f = openBlob(t, c, s, p)
	file := f.Backing()
	if file == nil {
		t.Fatal("there is no backing file")
	}
	kernel, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Close() })
	return c, f, kernel
}

func contentOf(t *testing.T, file *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// saved closes a writer.
func saved(t *testing.T, f *File) {
	t.Helper()
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Release(true)
}

// A file that was emptied and saved, and is then written to, is written where the kernel reads it.
func TestShownEmptied(t *testing.T) {
	s := newService()
	_, f, kernel := newShown(t, s, 2*mib)
	f.Acquire(true)
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	saved(t, f)
	for _, want := range []string{"hello", "hello, again"} {
		f.Acquire(true)
		if err := f.Write(t.Context(), []byte(want), 0); err != nil {
			t.Fatal(err)
		}
		if got := contentOf(t, kernel); string(got) != want {
			t.Errorf("the kernel reads %q, want %q", got, want)
		}
		saved(t, f)
		if got := s.content(t, "a"); string(got) != want {
			t.Errorf("the service has %q, want %q", got, want)
		}
	}
}

// The service does not copy into a file that the kernel reads by itself: the bytes must be there.
func TestShownCopied(t *testing.T) {
	const size = 2 * mib
	s := newService()
	c, f, kernel := newShown(t, s, size)
	q, want := s.put(t, "b", size, 2)
	src := openBlob(t, c, s, q)
	f.Acquire(true)
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := f.CopyFrom(t.Context(), src, 0, 0, size); n != 0 || err != nil {
		t.Fatalf("the service copies %d bytes, %v", n, err)
	}
	if err := f.Write(t.Context(), want, 0); err != nil { // as the kernel does then
		t.Fatal(err)
	}
	if !bytes.Equal(contentOf(t, kernel), want) {
		t.Error("the kernel does not read what was copied")
	}
	saved(t, f)
	f.Hide()
	f.Acquire(true)
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := f.CopyFrom(t.Context(), src, 0, 0, size); n != size || err != nil {
		t.Errorf("when the kernel reads it no more, the service copies %d bytes, %v", n, err)
	}
	saved(t, f)
}

// When somebody else has cached the new version before the file that the kernel reads became it, no write goes to the other
// file unseen.
func TestShownCachedElsewhere(t *testing.T) {
	const size = 600 * kib
	s := newService()
	c, f, kernel := newShown(t, s, size)
	f.Acquire(true)
	if err := f.Write(t.Context(), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	bring(t, c, s, s.properties(t, "a"))
	saved(t, f)
	if _, err := read(t.Context(), f, 0, size); err != nil { // it is known to be good then, and could be taken over
		t.Fatal(err)
	}
	f.Acquire(true)
	err := f.Write(t.Context(), []byte("2"), 0)
	if got := contentOf(t, kernel)[0]; err == nil && got != '2' {
		t.Errorf("the write has succeeded, and the kernel reads %q", got)
	} else if err != nil && !blob.Is(err, blob.Busy) {
		t.Error(err)
	}
	f.Release(true)
	f.Hide()
	f.Acquire(true)
	if err := f.Write(t.Context(), []byte("3"), 0); err != nil {
		t.Errorf("when the kernel reads it no more: %v", err)
	}
	saved(t, f)
	if got := s.content(t, "a")[0]; got != '3' {
		t.Errorf("the service has %q", got)
	}
}

// Bytes that were lent to a reply stay what they are until the reply is sent: a write that takes the cache file over waits.
func TestLentStays(t *testing.T) {
	const size = 2 * mib
	s := newService()
	cfg := config(t.TempDir())
	p, want := s.put(t, "a", size, 1)
	cached(t, s, cfg, p, size)
	f := openBlob(t, openCache(t, cfg), s, p)
	if _, err := read(t.Context(), f, 0, size); err != nil { // it is checked then
		t.Fatal(err)
	}
	d, err := f.Read(t.Context(), make([]byte, mib), 0)
	if err != nil {
		t.Fatal(err)
	}
	if d.view == nil {
		t.Skip("the page cache does not have all of it")
	}
	f.Acquire(true)
	written := make(chan error, 1)
	go func() { written <- f.Write(t.Context(), make([]byte, mib), 0) }()
	select {
	case err := <-written:
		t.Errorf("the write does not wait: %v", err)
		written <- err
	case <-time.After(50 * time.Millisecond): // it cannot come, however long the wait
	}
	if !bytes.Equal(d.Bytes[0], want[:mib]) {
		t.Error("what was lent has changed")
	}
	d.Done()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if f.stage.valid.total() != size {
		t.Error("the cache file was not taken over")
	}
	saved(t, f)
}
