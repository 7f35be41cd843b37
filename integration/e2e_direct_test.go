package integration

import (
	"encoding/binary"
	"fmt"
	"os"
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
