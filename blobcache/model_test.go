package blobcache

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"blobmount/blobcache/blob"
)

// modelled is a File beside what it ought to be: bytes and metadata.
type modelled struct {
	t    *testing.T
	rnd  *rand.Rand
	s    *service
	c    *Cache
	cfg  Config
	file *File
	want []byte
	meta map[string]string
	name string
	did  []string // for the message of a failure
}

// TestFileModel makes random changes to a File and compares it with bytes in memory, and the blob after each commit.
func TestFileModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &modelled{
				t: t, rnd: rand.New(rand.NewPCG(seed, 7)), s: newService(), cfg: config(t.TempDir()), name: "dir/a",
				meta: map[string]string{},
			}
			m.c = openCache(t, m.cfg)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("after %q", m.did)
				}
			})
			if seed%3 == 0 {
				m.file = m.c.CreateFile(m.s, blob.Properties{Name: m.name}, noHooks)
			} else {
				var p blob.Properties
				p, m.want = m.s.put(t, m.name, m.rnd.Int64N(400*kib), seed)
				m.file = m.c.OpenFile(m.s, p, noHooks)
			}
			m.file.Acquire(true)
			for range 60 {
				m.step()
				if st := m.file.State(); st.Size != int64(len(m.want)) {
					t.Fatalf("size %d, want %d", st.Size, len(m.want))
				}
			}
			m.commit()
			m.reopen(false)
			m.expect(0, int64(len(m.want)))
			m.file.Release(true)
		})
	}
}

func (m *modelled) note(format string, a ...any) { m.did = append(m.did, fmt.Sprintf(format, a...)) }

func (m *modelled) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// some returns a range within the file and a little more.
func (m *modelled) some() (off, n int64) {
	off = m.rnd.Int64N(int64(len(m.want)) + 70*kib)
	n = 1 + m.rnd.Int64N(1<<m.rnd.IntN(18))
	if m.rnd.IntN(3) == 0 {
		off &^= 64*kib - 1 // at a block's start
	}
	return off, n
}

func (m *modelled) resize(size int64) {
	if size <= int64(len(m.want)) {
		m.want = m.want[:size:size]
		return
	}
	m.want = append(m.want, make([]byte, size-int64(len(m.want)))...)
}

func (m *modelled) step() {
	m.t.Helper()
	off, n := m.some()
	switch m.rnd.IntN(14) {
	case 0, 1, 2, 3:
		m.note("write %d+%d", off, n)
		p := content(m.rnd.Uint64(), n)
		m.must(m.file.Write(m.t.Context(), p, off))
		if end := off + n; end > int64(len(m.want)) {
			m.resize(end)
		}
		copy(m.want[off:], p)
	case 4:
		m.note("append %d", n)
		p := content(m.rnd.Uint64(), n)
		m.must(m.file.Write(m.t.Context(), p, int64(len(m.want))))
		m.want = append(m.want, p...)
	case 5:
		size := m.rnd.Int64N(500 * kib)
		if m.rnd.IntN(4) == 0 {
			size = 0
		}
		m.note("truncate %d", size)
		m.must(m.file.Truncate(m.t.Context(), size))
		m.resize(size)
	case 6:
		m.note("zero %d+%d", off, n)
		m.must(m.file.Zero(m.t.Context(), off, n))
		if off < int64(len(m.want)) {
			clear(m.want[off:min(off+n, int64(len(m.want)))])
		}
	case 7, 8:
		m.expect(off, n)
	case 9:
		m.commit()
	case 10:
		m.meta = map[string]string{"mode": fmt.Sprint(m.rnd.IntN(1000))}
		m.note("metadata %v", m.meta)
		m.must(setMetadata(m.t.Context(), m.file, m.meta))
		if !m.file.State().Dirty {
			m.check()
		}
	case 11:
		m.rename(fmt.Sprintf("dir/%d", m.rnd.IntN(1000)))
	case 12:
		m.commit()
		m.reopen(m.rnd.IntN(2) == 0)
	case 13:
		m.note("evict")
		m.c.evict(1 << 40)
	}
}

// expect reads a range.
func (m *modelled) expect(off, n int64) {
	m.t.Helper()
	m.note("read %d+%d", off, n)
	size := int64(len(m.want))
	got, err := read(m.t.Context(), m.file, off, n)
	m.must(err)
	same(m.t, got, m.want[min(off, size):min(off+n, size)])
}

func (m *modelled) commit() {
	m.t.Helper()
	m.note("commit")
	m.must(m.file.Commit(m.t.Context()))
	if m.file.State().Dirty {
		m.t.Fatal("dirty after a commit")
	}
	m.check()
}

// check compares the blob, which must be up to date.
func (m *modelled) check() {
	m.t.Helper()
	same(m.t, m.s.content(m.t, m.name), m.want)
	p, mine := m.s.properties(m.t, m.name), m.file.State().Properties
	if !maps.Equal(p.Metadata, m.meta) {
		m.t.Fatalf("metadata %v, want %v", p.Metadata, m.meta)
	}
	if p.ETag != mine.ETag || p.Size != mine.Size || !p.Modified.Equal(mine.Modified) || p.Kind != mine.Kind {
		m.t.Fatalf("the file has the properties %+v, the blob %+v", mine, p)
	}
}

// rename does what the file system does: a new file is renamed here, another is copied in the service.
func (m *modelled) rename(to string) {
	m.t.Helper()
	if to == m.name {
		return
	}
	m.note("rename to %s", to)
	if m.file.Rename(to, func() {}) {
		m.name = to
		return
	}
	p, err := m.file.BeginMove(m.t.Context(), to)
	m.must(err)
	over := m.c.Moving(m.s, m.name, p.ETag)
	w, err := m.s.Copy(m.t.Context(), to, m.name, blob.CopyOptions{Source: blob.Condition{IfMatch: p.ETag}})
	m.must(err)
	m.must(m.s.Delete(m.t.Context(), m.name, blob.Condition{IfMatch: p.ETag}))
	m.c.Moved(m.s, m.name, p.ETag, to, w.ETag)
	over()
	m.file.EndMove(to, &w)
	m.name = to
	m.check()
}

// reopen closes the file, and perhaps the cache, and opens the blob again. What was written is read from the disk.
func (m *modelled) reopen(remount bool) {
	m.t.Helper()
	m.note("reopen, remount %v", remount)
	p := m.file.State().Properties
	if !m.file.Release(true) {
		m.t.Fatal("a committed file is not idle after its last release")
	}
	if remount {
		shut(m.t, m.c)
		m.c = openCache(m.t, m.cfg)
	}
	m.file = m.c.OpenFile(m.s, p, noHooks)
	m.file.Acquire(true)
}

// TestWrittenFileIsCached: read-after-write is local, in this process and in the next one.
func TestWrittenFileIsCached(t *testing.T) {
	for _, size := range []int64{1, 64 * kib, 64*kib + 1, 1 * mib, 1*mib + 1} {
		for _, parts := range []int64{1, 5} {
			s := newService()
			cfg := config(t.TempDir())
			c := openCache(t, cfg)
			f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
			f.Acquire(true)
			want := content(9, size)
			order := []int64{3, 0, 4, 1, 2}
			if parts == 1 {
				order = []int64{0}
			}
			for _, i := range order {
				from, to := size*i/parts, size*(i+1)/parts
				if err := f.Write(t.Context(), want[from:to], from); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.Release(true)
			s.Reset()
			p := s.properties(t, "a")
			again := c.OpenFile(s, p, noHooks)
			again.Acquire(false)
			expectAll(t, again, want)
			again.Release(false)
			shut(t, c)
			expectAll(t, openBlob(t, openCache(t, cfg), s, p), want)
			if n := s.Count(""); n > 0 {
				t.Errorf("%d bytes in %d parts: reading what was written asked %q", size, parts, s.Lines())
			}
		}
	}
}
