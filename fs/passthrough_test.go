package fs

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// backings are the files that a kernel was given to read by itself.
type backings struct{ open int }

func (b *backings) RegisterBackingFd(*fuse.BackingMap) (int32, syscall.Errno) {
	b.open++
	return 1, 0
}

func (b *backings) UnregisterBackingFd(int32) syscall.Errno {
	b.open--
	return 0
}

// When the last handle is released by which the kernel reads a file by itself, the file is no longer bound by that, though
// others still have it.
func TestPassthroughEnds(t *testing.T) {
	k := newKernel(t, time.Hour)
	var b backings
	k.fs.passthrough.registrar, k.fs.passthrough.log = &b, k.fs.log
	k.fs.passthrough.on.Store(true)
	const size = passthroughMin
	var ids [2]uint64
	for i, name := range []string{"file", "source"} {
		k.put(name, strings.Repeat("x", size))
		ids[i] = k.lookup(fuse.FUSE_ROOT_ID, name)
		if err := k.fs.cache.Prefetch(t.Context(), k.fs.cont, k.nodes[ids[i]].properties()); err != nil {
			t.Fatal(err)
		}
	}
	reader, source := k.mustOpen(ids[0], syscall.O_RDONLY), k.mustOpen(ids[1], syscall.O_RDONLY)
	if b.open != 2 {
		t.Fatalf("the kernel has %d backing files", b.open)
	}
	n := k.nodes[ids[0]]
	f := k.fs.acquire(n, true) // as an O_RDWR open that waits for the kernel, and comes before the end of the release
	k.close(ids[0], reader)
	if b.open != 1 {
		t.Errorf("the kernel has %d backing files", b.open)
	}
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	// The service does not copy into what the kernel reads.
	if did, err := f.CopyFrom(t.Context(), k.fs.handles.get(source).file, 0, 0, size); did != size || err != nil {
		t.Errorf("copied %d bytes, %v", did, err)
	}
	if err := f.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	k.fs.release(n, f, true)
	k.close(ids[1], source)
}
