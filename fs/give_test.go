package fs

import (
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// taken are the pages that a kernel was given.
type taken struct {
	content map[uint64][]string // by node
	during  func()              // called while it takes them; may be nil
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
	p := &taken{content: map[uint64][]string{}}
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

// What somebody opened for writing, or made, is not given any more: the kernel's pages are newer.
func TestGiveNothingToWriters(t *testing.T) {
	k, p, id := newGiven(t, "content")
	k.close(id, k.mustOpen(id, syscall.O_RDWR))
	k.close(id, k.mustOpen(id, syscall.O_RDONLY))
	made, fh, s := k.create(fuse.FUSE_ROOT_ID, "made", 0)
	if s != fuse.OK || k.write(made, fh, 0, []byte("x")) != fuse.OK || k.close(made, fh) != fuse.OK {
		t.Fatal("create, write or close failed")
	}
	k.close(made, k.mustOpen(made, syscall.O_RDONLY))
	if len(p.content) != 0 {
		t.Errorf("given: %v", p.content)
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
