package fs

import (
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
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

// A page that a mapping has changed, and that still has the old bytes, may be written back while it is being dropped: the
// write counts all the same.
func TestDirectWriteBesideMapping(t *testing.T) {
	k, p, id := newGiven(t, "old content")
	k.close(id, k.mustOpen(id, syscall.O_RDONLY))
	fh := k.mustOpen(id, syscall.O_WRONLY)
	mapped := k.mustOpen(id, syscall.O_RDWR)
	for _, times := range []int{0, 1, 3, mostRewrites} {
		left := times
		p.during = func() {
			if left == 0 {
				return
			}
			left--
			in := fuse.WriteIn{InHeader: header(id), Fh: mapped, WriteFlags: fuse.WRITE_CACHE}
			if _, s := k.fs.Write(nil, &in, []byte("old CONTENT")); s != fuse.OK {
				t.Error(s)
			}
		}
		p.dropped[id] = nil
		s := k.write(id, fh, 0, []byte("new"))
		if times == mostRewrites {
			if s != fuse.EBUSY {
				t.Errorf("a write that is always undone: %v", s)
			}
			break
		}
		if got := k.content(id, 11); s != fuse.OK || got[:3] != "new" || times > 0 && got != "new CONTENT" {
			t.Errorf("written back %d times: %v, %q", times, s, got)
		}
		if len(p.dropped[id]) != times+1 {
			t.Errorf("written back %d times: dropped %v", times, p.dropped[id])
		}
	}
	p.during = nil
	k.close(id, fh)
	k.close(id, mapped)
}

// content returns what a reader gets.
func (k *kernel) content(id uint64, size int) string {
	k.t.Helper()
	d, err := k.nodes[id].opened().Read(k.t.Context(), make([]byte, size), 0)
	if err != nil {
		k.t.Fatal(err)
	}
	defer d.Done()
	return string(d.Bytes[0])
}

// Who appends does so at the end, also when the kernel takes another place for it: a file that was truncated meanwhile would
// begin with zeros.
func TestDirectAppend(t *testing.T) {
	k, p, id := newGiven(t, "")
	const flags = syscall.O_WRONLY | syscall.O_APPEND
	fh := k.mustOpen(id, flags)
	for i, off := range []uint64{0, 100, 2, 9} {
		p.dropped[id] = nil
		in := fuse.WriteIn{InHeader: header(id), Fh: fh, Offset: off, Flags: flags}
		if _, s := k.fs.Write(nil, &in, []byte("abc")); s != fuse.OK {
			t.Fatal(s)
		}
		at := int64(3 * i)
		if wrong := int64(off) != at; wrong != (len(p.dropped[id]) == 1) {
			t.Errorf("the kernel says %d, the end is %d: dropped %v", off, at, p.dropped[id])
		}
	}
	if got := k.content(id, 100); got != "abcabcabcabc" {
		t.Errorf("%q", got)
	}
	k.close(id, fh)
}

// What is written with O_SYNC, or on a mount with sync, is in the service when the write returns: the kernel sends no FSYNC.
func TestDirectSync(t *testing.T) {
	for _, flags := range []uint32{0, syscall.O_DSYNC, syscall.O_SYNC} {
		k := newKernel(t, time.Hour)
		id, fh, s := k.create(fuse.FUSE_ROOT_ID, "file", flags)
		if s != fuse.OK {
			t.Fatal(s)
		}
		in := fuse.WriteIn{InHeader: header(id), Fh: fh, Flags: syscall.O_WRONLY | flags}
		if _, s := k.fs.Write(nil, &in, []byte("abc")); s != fuse.OK {
			t.Fatal(s)
		}
		want := "abc"
		if flags == 0 {
			want = ""
		}
		if got := k.get("file"); got != want {
			t.Errorf("flags %#x: the service has %q", flags, got)
		}
		k.close(id, fh)
	}
}

// open(O_RDONLY|O_TRUNC) is a change like any other: the close commits it.
func TestTruncatedByReader(t *testing.T) {
	k, _, id := newGiven(t, "content")
	var out fuse.OpenOut
	if s := k.fs.Open(nil, &fuse.OpenIn{InHeader: header(id), Flags: syscall.O_RDONLY | syscall.O_TRUNC}, &out); s != fuse.OK {
		t.Fatal(s)
	}
	if out.OpenFlags&fuse.FOPEN_NOFLUSH != 0 {
		t.Error("the kernel does not tell of the close")
	}
	if s := k.fs.Flush(nil, &fuse.FlushIn{InHeader: header(id), Fh: out.Fh}); s != fuse.OK {
		t.Fatal(s)
	}
	p, err := k.store.Properties("file", blob.Condition{})
	if err != nil || p.Size != 0 {
		t.Errorf("after the close the service has %d bytes, %v", p.Size, err)
	}
	k.fs.Release(nil, &fuse.ReleaseIn{InHeader: header(id), Fh: out.Fh})
}

// A new file that cannot be opened, since its lease is not to be had, is no node that the kernel knows.
func TestCreateWithoutLease(t *testing.T) {
	k := newKernelWith(t, func(o *Options) {
		cache, err := blobcache.Open(blobcache.Config{
			Dir: t.TempDir(), Size: 1 << 30, Memory: blobcache.MinMemory, BlockSize: 1 << 20, Leases: true, Log: o.Log,
		})
		if err != nil {
			t.Fatal(err)
		}
		o.Cache = cache
		faults := blobtest.NewFaults(o.Container)
		faults.Add(blobtest.Fault{Op: "AcquireLease", Err: &blob.Error{Code: blob.Unavailable, Op: "AcquireLease"}})
		o.Container = faults
	})
	if _, _, s := k.create(fuse.FUSE_ROOT_ID, "file", 0); s == fuse.OK {
		t.Fatal("created without a lease")
	}
	if n := k.fs.nodes.size(); n != 1 {
		t.Errorf("%d nodes are left", n)
	}
}
