package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// What a handle for writing only has written is what everybody reads from then on, in a mapping too, though it goes past
// the kernel's pages: also when they read the very place at the very moment. A page that came back old would stay.
func testWrittenBesideReaders(t *testing.T, s *mounttest.Service) {
	for _, flags := range [][]string{{"--passthrough=off"}, nil} {
		w := newWorld(t, s, flags...)
		for _, size := range []int{100, 8192, 600_000} {
			name := fmt.Sprint("file", size)
			w.write(name, make([]byte, size))
			f := w.open(name, os.O_WRONLY)
			var written atomic.Uint64 // the last count that the file has for certain
			var readers sync.WaitGroup
			over := make(chan struct{})
			read := func(what string, read func(b []byte) error) {
				readers.Go(func() {
					var b [8]byte
					for {
						select {
						case <-over:
							return
						default:
						}
						least := written.Load()
						if err := read(b[:]); err != nil {
							t.Error(what, err)
							return
						}
						if got := binary.LittleEndian.Uint64(b[:]); got < least {
							t.Errorf("%s of %s: %d, but %d was written before", what, name, got, least)
							return
						}
					}
				})
			}
			const at = 40 // in the first page
			r := w.open(name, os.O_RDONLY)
			m, err := mounttest.Map(r, 0, size, false)
			must(t, err)
			read("read", func(b []byte) error { _, err := r.ReadAt(b, at); return err })
			read("mapping", func(b []byte) error { return m.Read(b, at) })
			read("new handle", func(b []byte) error {
				fd, err := unix.Open(w.path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				_, err = unix.Pread(fd, b, at)
				_ = unix.Close(fd)
				return err
			})
			var b [8]byte
			for i := range uint64(2000) {
				binary.LittleEndian.PutUint64(b[:], i+1)
				_, err := f.WriteAt(b[:], at)
				must(t, err)
				written.Store(i + 1)
			}
			close(over)
			readers.Wait()
			must(t, f.Close())
			must(t, m.Close())
			must(t, r.Close())
			want := make([]byte, size)
			copy(want[at:], b[:])
			w.read(name, want)
			w.holds(name, want)
		}
	}
}

// What is written stays, also while somebody changes other bytes of the same page in a mapping that was made later.
func testWrittenBesideMapping(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	const size = 4096
	w.write("file", make([]byte, size))
	f := w.open("file", os.O_WRONLY)
	rw := w.open("file", os.O_RDWR)
	m, err := mounttest.Map(rw, 0, size, true)
	must(t, err)
	over := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if err := m.Write([]byte{byte(i)}, 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var b, got [8]byte
	for i := range uint64(2000) {
		binary.LittleEndian.PutUint64(b[:], i+1)
		_, err := f.WriteAt(b[:], 2048)
		must(t, err)
		must(t, m.Read(got[:], 2048))
		if got != b {
			t.Errorf("%d was written, and then there is %d", i+1, binary.LittleEndian.Uint64(got[:]))
			break
		}
	}
	close(over)
	others.Wait()
	must(t, f.Close())
	must(t, m.Close())
	must(t, rw.Close())
	if got := w.Get("file"); !bytes.Equal(got[2048:2056], b[:]) {
		t.Errorf("the service has %x, want %x", got[2048:2056], b)
	}
}

// A file that the kernel reads from the cache shows what becomes of it, to those who have it open and to others: also when it
// is emptied, saved and written anew, or when another file is copied over it.
func testCachedEmptied(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	source := noise(700_000)
	w.write("source", source)
	for _, how := range []string{"written", "copied"} {
		w.write(how, noise(1<<20))
		w.read(how, w.Get(how)) // it is in the cache whole, and checked
		r := w.open(how, os.O_RDONLY)
		head := make([]byte, 100)
		_, err := r.ReadAt(head, 0)
		must(t, err)
		must(t, w.open(how, os.O_WRONLY|os.O_TRUNC).Close())
		want := []byte("hello\n")
		switch how {
		case "written":
			f := w.open(how, os.O_WRONLY|os.O_APPEND)
			_, err := f.Write(want)
			must(t, err)
			must(t, f.Close())
		case "copied":
			want = source
			from, to := w.open("source", os.O_RDONLY), w.open(how, os.O_WRONLY)
			for done := 0; done < len(want); {
				n, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, len(want)-done, 0)
				if err == unix.EOPNOTSUPP || err == unix.EXDEV { // then programs read and write
					_, err = to.WriteAt(want[done:], int64(done))
					n = len(want) - done
				}
				must(t, err)
				done += n
			}
			must(t, from.Close())
			must(t, to.Close())
		}
		w.read(how, want)
		got, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<30))
		must(t, err)
		equal(t, how+", by who had it open", got, want)
		w.holds(how, want)
		must(t, r.Close())
		w.read(how, want)
	}
}

// A log that is emptied while a program appends to it has what came after that, and no zeros before it.
func testEmptiedLog(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.write("log", nil)
	const record = "record record record record record\n"
	f := w.open("log", os.O_WRONLY|os.O_APPEND)
	over := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for range 200 {
			fd, err := unix.Open(w.path("log"), unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			if err != nil {
				t.Error(err)
				break
			}
		}
		close(over)
	})
	for ended := false; !ended; {
		_, err := f.WriteString(record)
		must(t, err)
		got, err := os.ReadFile(w.path("log"))
		must(t, err)
		// A read that was cut by the truncation may end within a record, as on a local disk.
		if !strings.HasPrefix(strings.Repeat(record, len(got)/len(record)+1), string(got)) {
			t.Errorf("%d bytes that are no records: %.80q", len(got), got)
			break
		}
		select {
		case <-over:
			ended = true
		default:
		}
	}
	others.Wait()
	must(t, f.Close())
	if got := w.Get("log"); strings.ReplaceAll(string(got), record, "") != "" {
		t.Errorf("the service has %.80q", got)
	}
}

// What is written through a handle with O_SYNC or O_DSYNC is in the service when the write returns, and what open(O_TRUNC)
// removes when that handle is closed.
func testSynchronous(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	want := noise(600_000)
	w.write("file", want)
	for _, flags := range []int{os.O_WRONLY | unix.O_SYNC, os.O_RDWR | unix.O_SYNC, os.O_WRONLY | unix.O_DSYNC, os.O_WRONLY | os.O_APPEND | unix.O_DSYNC} {
		f := w.open("file", flags)
		b := noise(1000)
		at := int64(5000)
		if flags&os.O_APPEND != 0 {
			at = int64(len(want))
		}
		_, err := unix.Pwrite(int(f.Fd()), b, at)
		must(t, err)
		want = append(want[:at:at], append(b, want[min(len(want), int(at)+len(b)):]...)...)
		w.holds("file", want)
		must(t, f.Close())
	}
	fd, err := unix.Open(w.path("file"), unix.O_RDONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Close(fd))
	w.holds("file", nil)
}
