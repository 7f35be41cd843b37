package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// Readers of a cached file, which the kernel may serve from the cache file by itself, see each write of this mount at
// once, and none of another host.
func testCachedWrites(t *testing.T, s *mounttest.Service) {
	for _, order := range []string{"reader first", "writer first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(t, s, "--blob-cache-timeout=0")
			want := noise(3 << 20)
			w.write("file", want)
			w.read("file", want) // it is in the cache whole, and checked
			var reader, writer *os.File
			if order == "reader first" {
				reader = w.open("file", os.O_RDONLY)
				head := make([]byte, 100)
				_, err := reader.ReadAt(head, 0)
				must(t, err)
				writer = w.open("file", os.O_WRONLY) // it cannot be mapped, see testCachedMapped
			} else {
				writer = w.open("file", os.O_RDWR)
				reader = w.open("file", os.O_RDONLY)
			}
			mapping, err := mounttest.Map(reader, 0, 1<<20, false)
			must(t, err)
			check := func(what string) {
				t.Helper()
				for _, f := range []*os.File{reader, w.open("file", os.O_RDONLY)} {
					got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
					must(t, err)
					equal(t, what, got, want)
					info, err := f.Stat()
					must(t, err)
					if info.Size() != int64(len(want)) {
						t.Errorf("%s: fstat says %d bytes, want %d", what, info.Size(), len(want))
					}
				}
				mapped := make([]byte, min(1<<20, len(want)))
				must(t, mapping.Read(mapped, 0))
				equal(t, what+", mapped", mapped, want[:len(mapped)])
			}
			check("before")
			for i, off := range []int{0, 4000, 1<<20 - 3, 3<<20 - 1, 3 << 20} {
				b := noise(500 + i)
				_, err := writer.WriteAt(b, int64(off))
				must(t, err)
				want = append(want, make([]byte, max(0, off+len(b)-len(want)))...)
				copy(want[off:], b)
				check(fmt.Sprint("after a write at ", off))
			}
			must(t, writer.Sync())
			w.holds("file", want)
			check("after fsync")
			must(t, writer.Truncate(2<<20))
			want = want[:2<<20]
			check("after a truncation")
			must(t, writer.Truncate(4<<20))
			want = append(bytes.Clone(want), make([]byte, 2<<20)...)
			check("after it grew")
			must(t, unix.Fallocate(int(writer.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, 5000, 100000))
			clear(want[5000:105000])
			check("after a hole")
			must(t, mapping.Close())
			must(t, writer.Close())
			w.holds("file", want)
			got, err := io.ReadAll(io.NewSectionReader(reader, 0, 1<<30))
			must(t, err)
			equal(t, "the reader, after the writer's close", got, want)

			theirs := noise(1 << 20)
			w.Put("file", theirs)
			w.read("file", theirs)
			got, err = io.ReadAll(io.NewSectionReader(reader, 0, 1<<30))
			must(t, err)
			equal(t, "the reader, after another host's write", got, want)
			must(t, os.Remove(w.path("file")))
			got, err = io.ReadAll(io.NewSectionReader(reader, 0, 1<<30))
			must(t, err)
			equal(t, "the reader, after the unlink", got, want)
			must(t, reader.Close())
			if left := w.Blobs(); len(left) != 0 {
				t.Errorf("the service has %q", left)
			}
		})
	}
}

// What was written to a cached file and not acknowledged is never taken for the version that was cached, however the
// daemon ends.
func testCachedWritesKilled(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	want := noise(3 << 20)
	w.write("file", want)
	reader := w.open("file", os.O_RDONLY)
	_, err := io.ReadAll(reader)
	must(t, err)
	writer := w.open("file", os.O_WRONLY)
	_, err = writer.WriteAt(noise(2<<20), 0)
	must(t, err)
	w.Signal(syscall.SIGKILL)
	w.AwaitEnd()
	must(t, reader.Close())
	wantErrno(t, "close", writer.Close(), syscall.ENOTCONN)
	w.Unmount()
	w.holds("file", want)
	w.Mount() // with the same cache
	w.read("file", want)
}

// Small files that an earlier mount has cached are read as they are, and as they become: by read, by mapping, in part, and
// while somebody replaces their content.
func testCachedSmall(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	content := map[string][]byte{}
	for i, size := range []int{1, 4095, 4096, 4097, 25_000, 256 << 10, 256<<10 + 1} {
		for _, use := range []string{"read", "mapped", "written", "truncated", "replaced"} {
			content[fmt.Sprint(use, i)] = noise(size)
		}
	}
	for i := range 50 {
		content[fmt.Sprint("raced", i)] = noise(20_000)
	}
	for name, b := range content {
		w.write(name, b)
	}
	w.Remount()
	for name, was := range content {
		use := strings.TrimRight(name, "0123456789")
		if use == "raced" {
			continue
		}
		// The kernel has nothing of the file: the first open is that of the reader.
		r := w.open(name, os.O_RDONLY)
		switch use {
		case "mapped":
			m, err := mounttest.Map(r, 0, len(was), false)
			must(t, err)
			got := make([]byte, len(was))
			must(t, m.Read(got, 0))
			equal(t, name, got, was)
			must(t, m.Close())
		case "written":
			f := w.open(name, os.O_WRONLY)
			change := noise(100)
			_, err := f.WriteAt(change, int64(len(was)/2))
			must(t, err)
			content[name] = append(bytes.Clone(was[:len(was)/2]), change...)
			content[name] = append(content[name], was[min(len(was), len(was)/2+100):]...)
			got, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<20))
			must(t, err)
			equal(t, name, got, content[name])
			must(t, f.Close())
		case "truncated":
			must(t, os.Truncate(w.path(name), int64(len(was)/2)))
			must(t, os.Truncate(w.path(name), int64(len(was))))
			content[name] = append(bytes.Clone(was[:len(was)/2]), make([]byte, len(was)-len(was)/2)...)
		case "replaced":
			content[name] = noise(len(was)/2 + 1)
			must(t, os.WriteFile(w.path(name), content[name], 0))
			got, err := io.ReadAll(r)
			must(t, err)
			equal(t, name, got, content[name])
		}
		must(t, r.Close())
		w.read(name, content[name])
		w.holds(name, content[name])
	}
	for i := range 50 {
		name := fmt.Sprint("raced", i)
		want := noise(10_000 + i)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := os.ReadFile(w.path(name)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := os.WriteFile(w.path(name), want, 0); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		w.read(name, want)
		w.holds(name, want)
	}
}

// A read-only mount refuses every change, and reads small files without messages for open and close.
func testReadOnly(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	content := map[string][]byte{"large": noise(5 << 20), "empty": nil, "dir/x": []byte("x")}
	for i := range 40 {
		content[fmt.Sprint("small", i)] = noise(1000 * i)
	}
	for name, b := range content {
		c.Put(name, b)
	}
	p := s.NewPoint(t, c)
	p.Mount("--read-only")
	w := &world{p, c, t}
	for range 2 {
		for name, b := range content {
			w.read(name, b)
		}
	}
	file, dir := w.path("small1"), w.path("dir")
	_, err := os.OpenFile(file, os.O_WRONLY, 0)
	wantErrno(t, "open to write", err, syscall.EROFS)
	_, err = os.Create(w.path("new"))
	wantErrno(t, "create", err, syscall.EROFS)
	wantErrno(t, "mkdir", os.Mkdir(w.path("new"), 0o755), syscall.EROFS)
	wantErrno(t, "unlink", unix.Unlink(file), syscall.EROFS)
	wantErrno(t, "rmdir", unix.Rmdir(dir), syscall.EROFS)
	wantErrno(t, "rename", unix.Rename(file, w.path("new")), syscall.EROFS)
	wantErrno(t, "symlink", os.Symlink("x", w.path("new")), syscall.EROFS)
	wantErrno(t, "chmod", os.Chmod(file, 0o600), syscall.EROFS)
	wantErrno(t, "truncate", os.Truncate(file, 0), syscall.EROFS)
	wantErrno(t, "utimens", os.Chtimes(file, time.Time{}, time.Now()), syscall.EROFS)
	want := make([]string, 0, len(content))
	for name := range content {
		want = append(want, name)
	}
	slices.Sort(want)
	if got := w.Blobs(); !slices.Equal(got, want) {
		t.Errorf("the service has %q", got)
	}
}

// What a program stores in a shared mapping of a cached file is a write like any other. The kernel would store it past the
// mount while others have the file from it: who could map for writing then waits for them, and is refused if they stay.
func testCachedMapped(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	want := noise(3 << 20)
	w.write("file", want)
	w.read("file", want) // it is in the cache whole, and checked
	reader := w.open("file", os.O_RDONLY)
	for _, flags := range []int{os.O_RDWR, os.O_RDWR | os.O_TRUNC} {
		if f, err := os.OpenFile(w.path("file"), flags, 0); !errors.Is(err, syscall.EBUSY) {
			t.Fatalf("open beside a reader that stays: %v, %v", f, err)
		}
	}
	opened := make(chan *os.File)
	go func() {
		f, err := os.OpenFile(w.path("file"), os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	got, err := io.ReadAll(reader)
	must(t, err)
	equal(t, "the reader", got, want)
	must(t, reader.Close())
	writer := <-opened
	if writer == nil {
		return
	}
	reader = w.open("file", os.O_RDONLY)
	m, err := mounttest.Map(writer, 0, len(want), true)
	must(t, err)
	b := noise(5000)
	must(t, m.Write(b, 1<<20))
	copy(want[1<<20:], b)
	must(t, m.Sync())
	must(t, writer.Sync())
	w.holds("file", want)
	got, err = io.ReadAll(reader)
	must(t, err)
	equal(t, "the reader beside the mapping", got, want)
	must(t, writer.Close())
	late := noise(100)
	must(t, m.Write(late, 100)) // a mapping lives on after the close
	copy(want[100:], late)
	must(t, m.Close())
	must(t, reader.Close())
	w.Remount()
	w.read("file", want)
	w.holds("file", want)
}
