package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// Random operations on files leave exactly what the same operations leave in memory: seen by the handle that wrote,
// by another one, by the service, and after a remount. Small blocks make a file of 3 MiB one of 48 blocks; with the
// usual ones it is a single Put Blob.
func testModel(t *testing.T, s *mounttest.Service) {
	for _, blockSize := range []string{"64KiB", "8MiB"} {
		t.Run(blockSize, func(t *testing.T) {
			w := newWorld(t, s, "--block-size="+blockSize)
			operations := 250
			if mounttest.Long() {
				operations = 5000
			}
			var wg sync.WaitGroup
			models := make([]*model, 4)
			for i := range models {
				models[i] = &model{t: t, name: fmt.Sprint("file", i), random: rand.New(rand.NewPCG(uint64(i), 3))}
				wg.Go(func() { models[i].run(w, operations) })
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			for _, m := range models {
				w.holds(m.name, m.content)
			}
			w.Remount("--block-size=" + blockSize)
			for _, m := range models {
				w.read(m.name, m.content)
			}
		})
	}
}

// maxModel bounds the size of a model's file in bytes.
const maxModel = 3 << 20

// model is one file, and what it must hold.
type model struct {
	t       *testing.T
	name    string
	random  *rand.Rand
	content []byte
	file    *os.File // reads and writes
	done    []string // the last operations, for the message of a failure
}

// run makes random operations until one goes wrong. The file is closed and in the service afterwards.
func (m *model) run(w *world, operations int) {
	if err := m.open(w); err != nil {
		m.t.Errorf("%s: %v", m.name, err)
		return
	}
	for i := range operations {
		if err := m.step(w); err != nil {
			m.t.Errorf("%s, operation %d: %v; before it: %q", m.name, i, err, m.done)
			return
		}
	}
	if err := errors.Join(m.compare(m.file), m.file.Close()); err != nil {
		m.t.Errorf("%s, at the end: %v; before it: %q", m.name, err, m.done)
	}
}

func (m *model) open(w *world) (err error) {
	m.file, err = os.OpenFile(w.path(m.name), os.O_RDWR|os.O_CREATE, 0o644)
	return err
}

// span returns a random range that begins within the file and may end beyond it.
func (m *model) span() (off int64, size int) {
	size = 1 + m.random.IntN(200<<10)
	if m.random.IntN(3) == 0 {
		size = 1 + m.random.IntN(5000) // within pages
	}
	off = m.random.Int64N(int64(len(m.content)) + 1)
	if m.random.IntN(10) == 0 {
		off += m.random.Int64N(300 << 10) // leaves a hole
	}
	off = min(off, maxModel-1)
	return off, min(size, maxModel-int(off))
}

func (m *model) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.random.Uint32())
	}
	return b
}

// grow makes the content at least n bytes long.
func (m *model) grow(n int) {
	if n > len(m.content) {
		m.content = append(m.content, make([]byte, n-len(m.content))...)
	}
}

// step makes one operation on the file and on the content.
func (m *model) step(w *world) error {
	off, size := m.span()
	kind := m.random.IntN(100)
	note := func(what string, args ...any) {
		m.done = append(m.done, fmt.Sprintf(what, args...))
		m.done = m.done[max(0, len(m.done)-12):]
	}
	switch {
	case kind < 35:
		note("write %d+%d", off, size)
		b := m.bytes(size)
		if _, err := m.file.WriteAt(b, off); err != nil {
			return err
		}
		m.grow(int(off) + size)
		copy(m.content[off:], b)
	case kind < 60:
		note("read %d+%d", off, size)
		got := make([]byte, size)
		n, err := m.file.ReadAt(got, off)
		want := m.content[min(int(off), len(m.content)):min(int(off)+size, len(m.content))]
		if err != nil && !(errors.Is(err, io.EOF) && len(want) < size) {
			return err
		}
		return same(got[:n], want)
	case kind < 67:
		to := m.random.IntN(maxModel)
		note("truncate %d", to)
		if err := m.file.Truncate(int64(to)); err != nil {
			return err
		}
		m.grow(to)
		m.content = m.content[:to:to]
	case kind < 70:
		to := m.random.IntN(maxModel)
		note("truncate %d by name", to)
		if err := os.Truncate(w.path(m.name), int64(to)); err != nil {
			return err
		}
		m.grow(to)
		m.content = m.content[:to:to]
	case kind < 78:
		return m.allocate(note, off, int64(size))
	case kind < 83:
		note("append %d", size)
		if len(m.content)+size > maxModel {
			return nil
		}
		f, err := os.OpenFile(w.path(m.name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		b := m.bytes(size)
		_, err = f.Write(b)
		m.content = append(m.content, b...)
		return errors.Join(err, f.Close())
	case kind < 90:
		note("map %d+%d", off, size)
		return m.mapped(off, size)
	case kind < 93:
		note("fsync")
		return m.file.Sync()
	case kind < 96:
		note("compare by another handle")
		f, err := os.Open(w.path(m.name))
		if err != nil {
			return err
		}
		return errors.Join(m.compare(f), f.Close())
	default:
		note("close and open")
		if err := m.file.Close(); err != nil {
			return err
		}
		return m.open(w)
	}
	return nil
}

// allocate calls fallocate in one of its modes.
func (m *model) allocate(note func(string, ...any), off, size int64) error {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	mode := []uint32{0, keep, keep | unix.FALLOC_FL_PUNCH_HOLE, keep | unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE}[m.random.IntN(5)]
	note("fallocate mode %#x %d+%d", mode, off, size)
	if err := unix.Fallocate(int(m.file.Fd()), mode, off, size); err != nil {
		return err
	}
	if mode&keep == 0 {
		m.grow(int(off + size))
	}
	if mode&^keep != 0 {
		from := min(int(off), len(m.content))
		clear(m.content[from:min(int(off+size), len(m.content))])
	}
	return nil
}

// mapped writes through a shared mapping of the file, and reads through it.
func (m *model) mapped(off int64, size int) error {
	from := off &^ 4095
	end := min(off+int64(size), int64(len(m.content)))
	if off >= end {
		return nil
	}
	mapping, err := mounttest.Map(m.file, from, int(end-from), true)
	if err != nil {
		return err
	}
	return errors.Join(m.through(mapping, int(off-from), m.content[from:end]), mapping.Close())
}

// through compares a mapping with what it must hold, and changes it from byte at on.
func (m *model) through(mapping *mounttest.Mapping, at int, content []byte) error {
	got := make([]byte, len(content))
	if err := mapping.Read(got, 0); err != nil {
		return err
	}
	if err := same(got, content); err != nil {
		return err
	}
	copy(content[at:], m.bytes(len(content)-at))
	if err := mapping.Write(content[at:], at); err != nil {
		return err
	}
	if m.random.IntN(2) == 0 {
		return mapping.Sync()
	}
	return nil
}

// compare reads the whole file.
func (m *model) compare(f *os.File) error {
	got, err := io.ReadAll(io.NewSectionReader(f, 0, maxModel*2))
	if err != nil {
		return err
	}
	return same(got, m.content)
}

// same returns an error that says where got is not want.
func same(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("%d bytes, want %d; they differ from byte %d on", len(got), len(want), at)
}

// Several threads write to parts of one file at the same time, each through a handle of its own, and commit it again
// and again.
func testParallelWriters(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--block-size=64KiB")
	const writers, part = 4, 1 << 20
	want := make([]byte, writers*part)
	w.write("file", want)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 5))
			mine := want[i*part : (i+1)*part]
			for range 6 {
				f, err := os.OpenFile(w.path("file"), os.O_RDWR, 0)
				if err != nil {
					t.Error(err)
					return
				}
				for range 20 {
					off := random.IntN(part)
					b := mine[off:min(part, off+1+random.IntN(100<<10))]
					for j := range b {
						b[j] = byte(random.Uint32())
					}
					if _, err := f.WriteAt(b, int64(i*part+off)); err != nil {
						t.Error(err)
					}
				}
				got := make([]byte, part)
				if _, err := f.ReadAt(got, int64(i*part)); err != nil {
					t.Error(err)
				} else if err := same(got, mine); err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.holds("file", want)
	w.Remount()
	w.read("file", want)
}
