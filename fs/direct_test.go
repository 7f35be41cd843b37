package fs

import (
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// flagsOf opens a file and returns its handle, and whether it is direct to the kernel.
func (k *kernel) flagsOf(id uint64, access uint32) (fh uint64, direct bool) {
	k.t.Helper()
	var out fuse.OpenOut
	if s := k.fs.Open(nil, &fuse.OpenIn{InHeader: header(id), Flags: access}, &out); s != fuse.OK {
		k.t.Fatal(s)
	}
	if out.OpenFlags&fuse.FOPEN_KEEP_CACHE == 0 {
		k.t.Error("the kernel drops pages that are right")
	}
	return out.Fh, out.OpenFlags&fuse.FOPEN_DIRECT_IO != 0
}

// A handle is direct that can only write, unless somebody can change pages in a mapping.
func TestDirectHandles(t *testing.T) {
	const r, w, rw = syscall.O_RDONLY, syscall.O_WRONLY, syscall.O_RDWR
	for _, tt := range []struct {
		open []uint32 // the last one is looked at
		want bool
	}{
		{[]uint32{r}, false},
		{[]uint32{w}, true},
		{[]uint32{rw}, false},
		{[]uint32{w, r}, false},
		{[]uint32{r, w}, true},
		{[]uint32{w, w}, true},
		{[]uint32{rw, w}, false},
		{[]uint32{w, rw}, false},
		{[]uint32{rw, r, w}, false},
	} {
		k := newKernel(t, time.Hour)
		k.put("file", "content")
		id := k.lookup(fuse.FUSE_ROOT_ID, "file")
		var handles []uint64
		var got bool
		for _, access := range tt.open {
			var fh uint64
			fh, got = k.flagsOf(id, access)
			handles = append(handles, fh)
		}
		if got != tt.want {
			t.Errorf("opened with %v: direct is %v", tt.open, got)
		}
		for _, fh := range handles {
			k.close(id, fh)
		}
		fh, again := k.flagsOf(id, w)
		if !again {
			t.Errorf("opened with %v, closed, and opened for writing: not direct", tt.open)
		}
		k.close(id, fh)
	}
}

// What was written past the pages that the kernel may have is dropped from them, after it was written and before the
// program goes on; where there are none, nothing is said.
func TestDirectWrites(t *testing.T) {
	for _, others := range [][]uint32{nil, {syscall.O_WRONLY}, {syscall.O_RDONLY}, {syscall.O_RDWR}} {
		k, p, id := newGiven(t, "some content")
		for _, access := range others {
			k.close(id, k.mustOpen(id, access)) // pages outlive the handle
		}
		fh := k.mustOpen(id, syscall.O_WRONLY)
		p.during = func() {
			var buf [12]byte
			d, err := k.nodes[id].opened().Read(t.Context(), buf[:], 0)
			if err != nil || string(d.Bytes[0]) != "some CONTENT" {
				t.Errorf("dropped before it was written: %q, %v", d.Bytes, err)
			}
			d.Done()
		}
		if s := k.write(id, fh, 5, []byte("CONTENT")); s != fuse.OK {
			t.Fatal(s)
		}
		paged := len(others) > 0 && others[0] != syscall.O_WRONLY
		if got := p.dropped[id]; paged && (len(got) != 1 || got[0] != [2]int64{5, 7}) || !paged && len(got) > 0 {
			t.Errorf("after %v: dropped %v", others, got)
		}
		k.close(id, fh)
	}
}

// A write that others would not see has failed.
func TestDirectWriteNotSeen(t *testing.T) {
	k, p, id := newGiven(t, "content")
	k.close(id, k.mustOpen(id, syscall.O_RDONLY))
	fh := k.mustOpen(id, syscall.O_WRONLY)
	for _, tt := range []struct{ answer, want fuse.Status }{
		{fuse.OK, fuse.OK},
		{fuse.ENOENT, fuse.OK}, // the kernel has forgotten it, with its pages
		{fuse.EINVAL, fuse.EIO},
	} {
		p.answer = tt.answer
		if s := k.write(id, fh, 0, []byte("C")); s != tt.want {
			t.Errorf("kernel says %v: write is %v, want %v", tt.answer, s, tt.want)
		}
	}
	k.close(id, fh)
}
