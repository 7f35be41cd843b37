package fs

import (
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// taken are the pages that a kernel was given, and those that it had to drop.
type taken struct {
	content map[uint64][]string   // by node
	during  func()                // called while it takes them; may be nil
	dropped map[uint64][][2]int64 // by node: offset and length
	answer  fuse.Status           // to that
}

func (p *taken) InodeNotify(node uint64, off, n int64) fuse.Status {
	if p.during != nil {
		p.during()
	}
	p.dropped[node] = append(p.dropped[node], [2]int64{off, n})
	return p.answer
}

func (p *taken) InodeNotifyStoreCache(node uint64, off int64, data []byte) fuse.Status {
	if off != 0 {
		return fuse.EINVAL
	}
	if p.during != nil {
		p.during()
	}
	p.content[node] = append(p.content[node], string(data))
	return fuse.OK
}

// newGiven returns a kernel that takes pages, and the node of a file that is in the cache.
func newGiven(t *testing.T, content string) (*kernel, *taken, uint64) {
	t.Helper()
	k := newKernel(t, time.Hour)
	k.put("file", content)
	id := k.lookup(fuse.FUSE_ROOT_ID, "file")
	if err := k.fs.cache.Prefetch(t.Context(), k.fs.cont, k.nodes[id].properties()); err != nil {
		t.Fatal(err)
	}
	p := &taken{content: map[uint64][]string{}, dropped: map[uint64][][2]int64{}}
	k.fs.pages = p
	return k, p, id
}

func (k *kernel) mustOpen(id uint64, flags uint32) uint64 {
	k.t.Helper()
	fh, s := k.open(id, flags)
	if s != fuse.OK {
		k.t.Fatal(s)
	}
	return fh
}

// A cached file is given with its first open, and not again; one that is not cached is read.
func TestGive(t *testing.T) {
	k, p, id := newGiven(t, "content")
	for range 2 {
		k.close(id, k.mustOpen(id, syscall.O_RDONLY))
	}
	if got := p.content[id]; len(got) != 1 || got[0] != "content" {
		t.Errorf("given: %q", got)
	}
	k.put("other", "not cached")
	other := k.lookup(fuse.FUSE_ROOT_ID, "other")
	k.close(other, k.mustOpen(other, syscall.O_RDONLY))
	if got := p.content[other]; len(got) != 0 {
		t.Errorf("given, but not in the cache: %q", got)
	}
}

// What somebody has open for writing is not given. When it is saved, and nobody can write to it any more, it is given
// again: the kernel may have no pages of what was written.
func TestGiveNothingBesideWriters(t *testing.T) {
	for _, access := range []uint32{syscall.O_WRONLY, syscall.O_RDWR} {
		k, p, id := newGiven(t, "content")
		fh := k.mustOpen(id, access)
		k.close(id, k.mustOpen(id, syscall.O_RDONLY))
		if k.write(id, fh, 0, []byte("C")) != fuse.OK {
			t.Fatal("write failed")
		}
		k.close(id, k.mustOpen(id, syscall.O_RDONLY))
		if len(p.content) != 0 {
			t.Errorf("given beside a writer: %v", p.content)
		}
		k.close(id, fh)
		for range 2 {
			k.close(id, k.mustOpen(id, syscall.O_RDONLY))
		}
		if got := p.content[id]; len(got) != 1 || got[0] != "Content" {
			t.Errorf("given after the writer's close: %q", got)
		}
	}
	k, p, _ := newGiven(t, "")
	made, fh, s := k.create(fuse.FUSE_ROOT_ID, "made", 0)
	if s != fuse.OK || k.write(made, fh, 0, []byte("x")) != fuse.OK {
		t.Fatal("create or write failed")
	}
	k.close(made, k.mustOpen(made, syscall.O_RDONLY))
	if len(p.content) != 0 {
		t.Errorf("a new file is given while it is written: %v", p.content)
	}
	k.close(made, fh)
	k.close(made, k.mustOpen(made, syscall.O_RDONLY))
	if got := p.content[made]; len(got) != 1 || got[0] != "x" {
		t.Errorf("a new file is given: %q", got)
	}
}

// Who is about to change a file waits until the kernel has what it is being given: it would come on top of the change.
func TestGiveBeforeWrites(t *testing.T) {
	for _, flags := range []uint32{syscall.O_RDWR, syscall.O_WRONLY | syscall.O_TRUNC, syscall.O_RDONLY | syscall.O_TRUNC} {
		k, p, id := newGiven(t, "content")
		opened := make(chan struct{})
		var fh uint64
		var s fuse.Status
		p.during = func() {
			go func() {
				fh, s = k.open(id, flags)
				close(opened)
			}()
			select {
			case <-opened:
				t.Errorf("flags %#x: the change could begin", flags)
			case <-time.After(100 * time.Millisecond): // it cannot come, however long the wait
			}
		}
		k.close(id, k.mustOpen(id, syscall.O_RDONLY))
		if <-opened; s != fuse.OK {
			t.Fatal(s)
		}
		want := int64(len("content"))
		if flags&syscall.O_TRUNC != 0 {
			want = 0
		}
		if got := k.nodes[id].opened().State().Size; got != want {
			t.Errorf("flags %#x: %d bytes, want %d", flags, got, want)
		}
		if s := k.close(id, fh); s != fuse.OK {
			t.Fatal(s)
		}
	}
}

// Opens of files that were given begin no walk through their directory; others do, and then those that were fetched ahead
// count.
func TestGiveWithoutWalk(t *testing.T) {
	k, _, id := newGiven(t, "content")
	walks := k.fs.prefetch.dirs
	k.fs.prefetch.slots = make(chan struct{}, 1)
	k.close(id, k.mustOpen(id, syscall.O_RDONLY))
	if len(walks) != 0 {
		t.Error("a cached file has begun a walk")
	}
	k.put("other", "not cached")
	other := k.lookup(fuse.FUSE_ROOT_ID, "other")
	k.close(other, k.mustOpen(other, syscall.O_RDONLY))
	k.put("third", "cached by now")
	third := k.lookup(fuse.FUSE_ROOT_ID, "third")
	if err := k.fs.cache.Prefetch(t.Context(), k.fs.cont, k.nodes[third].properties()); err != nil {
		t.Fatal(err)
	}
	k.close(third, k.mustOpen(third, syscall.O_RDONLY))
	if w := walks[k.fs.nodes.root]; w == nil || w.opens != 2 {
		t.Errorf("the walk is %v", w)
	}
}
