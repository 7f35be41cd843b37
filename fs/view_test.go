package fs

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// A name that the service would refuse or alter is refused by the call that makes it, also when nothing needs to be
// asked, and nothing is left of it.
func TestNamesRefused(t *testing.T) {
	k := newKernel(t, time.Hour)
	if _, err := k.fs.names.List(t.Context(), "", true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]syscall.Errno{
		"dot.": syscall.EINVAL, `a\b`: syscall.EINVAL, "a\tb": syscall.EINVAL, "\x00": syscall.EINVAL, "\ue000": syscall.EINVAL,
		"\xff": syscall.EILSEQ, strings.Repeat("x", 256): syscall.ENAMETOOLONG,
	} {
		var out fuse.EntryOut
		h := header(fuse.FUSE_ROOT_ID)
		if s := k.fs.Lookup(nil, &h, name, &out); s != fuse.Status(want) {
			t.Errorf("lookup %q: %v, want %v", name, s, want)
		}
		if _, _, s := k.create(fuse.FUSE_ROOT_ID, name, 0); s != fuse.Status(want) {
			t.Errorf("create %q: %v, want %v", name, s, want)
		}
		if _, s := k.mkdir(fuse.FUSE_ROOT_ID, name); s != fuse.Status(want) {
			t.Errorf("mkdir %q: %v, want %v", name, s, want)
		}
	}
	if n := k.fs.nodes.size(); n != 1 {
		t.Errorf("%d nodes are left", n-1)
	}
	if n := k.store.Len(); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
}

// A path is too long where the name of its blob is, the prefix of the mount included: the call that names it says so.
func TestLongNames(t *testing.T) {
	for _, prefix := range []string{"", "a/prefix/"} {
		k := newKernelWith(t, func(o *Options) { o.Container = blob.Sub(o.Container, prefix) })
		dir, room := uint64(fuse.FUSE_ROOT_ID), blob.MaxNameLength-len(prefix)
		for ; room > 200; room -= 101 {
			id, s := k.mkdir(dir, strings.Repeat("d", 100))
			if s != fuse.OK {
				t.Fatal(s)
			}
			dir = id
		}
		for name, want := range map[string]syscall.Errno{
			strings.Repeat("n", room): 0, strings.Repeat("é", room/2) + strings.Repeat("\U0001f60a", 3) + strings.Repeat("n", room-room/2-6): 0,
			strings.Repeat("n", room+1): syscall.ENAMETOOLONG, "\U0001f60a" + strings.Repeat("n", room-1): syscall.ENAMETOOLONG,
		} {
			if len(name) > maxNameBytes {
				t.Fatalf("%d bytes", len(name))
			}
			id, fh, s := k.create(dir, name, 0)
			if s == fuse.OK {
				s = k.close(id, fh)
			}
			if s != fuse.Status(want) {
				t.Errorf("prefix %q: a name of %d: %v, want %v", prefix, len(prefix)+1024-room+blob.NameLength(name), s, want)
			}
		}
	}
	k := newKernel(t, time.Hour)
	dir := uint64(fuse.FUSE_ROOT_ID)
	for range blob.MaxSegments {
		id, s := k.mkdir(dir, "d")
		if s != fuse.OK {
			t.Fatal(s)
		}
		dir = id
	}
	if _, s := k.mkdir(dir, "d"); s != fuse.Status(syscall.ENAMETOOLONG) {
		t.Errorf("more than %d segments: %v", blob.MaxSegments, s)
	}
}

// When another writer was faster, the kernel is told that its node is stale; it then looks the name up, and finds the
// winner's version.
func TestOvertaken(t *testing.T) {
	k := newKernel(t, time.Hour)
	k.put("file", "base")
	id := k.lookup(fuse.FUSE_ROOT_ID, "file")
	fh, s := k.open(id, syscall.O_RDWR)
	if s != fuse.OK || k.write(id, fh, 0, []byte("loser")) != fuse.OK {
		t.Fatal("open or write failed")
	}
	k.put("file", "the winner")
	if s := k.fs.Flush(nil, &fuse.FlushIn{InHeader: header(id), Fh: fh}); s != fuse.Status(syscall.ESTALE) {
		t.Errorf("flush: %v", s)
	}
	if _, s := k.open(id, syscall.O_RDONLY); s != fuse.Status(syscall.ESTALE) {
		t.Errorf("open of the overtaken node: %v", s)
	}
	k.fs.Release(nil, &fuse.ReleaseIn{InHeader: header(id), Fh: fh})
	var out fuse.AttrOut
	if s := k.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(id)}, &out); s != fuse.Status(syscall.ESTALE) {
		t.Errorf("getattr of the overtaken node: %v", s)
	}
	winner := k.lookup(fuse.FUSE_ROOT_ID, "file")
	if winner == id || k.nodes[winner].properties().Size != int64(len("the winner")) {
		t.Errorf("the name is node %d of %d bytes", winner, k.nodes[winner].properties().Size)
	}
	k.forget(id, 1)
	if k.fs.nodes.get(id) != nil {
		t.Error("the overtaken node outlives its last forget")
	}
}

// A change of attributes that finds another version is ESTALE once; the name then stands for the new version, which
// takes the change.
func TestSetAttributesOfAChangedBlob(t *testing.T) {
	k := newKernel(t, time.Hour)
	k.put("file", "first")
	id := k.lookup(fuse.FUSE_ROOT_ID, "file")
	k.put("file", "second")
	chmod := func(id uint64) fuse.Status {
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(id), Valid: fuse.FATTR_MODE, Mode: 0o600}}
		var out fuse.AttrOut
		return k.fs.SetAttr(nil, &in, &out)
	}
	if s := chmod(id); s != fuse.Status(syscall.ESTALE) {
		t.Errorf("chmod of the old version: %v", s)
	}
	now := k.lookup(fuse.FUSE_ROOT_ID, "file")
	if now == id {
		t.Fatal("the name still stands for the old version")
	}
	if s := chmod(now); s != fuse.OK {
		t.Errorf("chmod of the new version: %v", s)
	}
	p, err := k.store.Properties("file", blob.Condition{})
	if err != nil || p.Metadata["mode"] != "0600" || k.get("file") != "second" {
		t.Errorf("the service has %+v, %v", p, err)
	}
}

// A directory that another tool implied by its blobs stays when the last of them is removed, and finding out which is
// the last costs no listing of all.
func TestKeepDir(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Hour} {
		k := newKernel(t, timeout)
		const files = 50
		for i := range files {
			k.put("dir/"+strings.Repeat("x", i+1), "")
		}
		dir := k.lookup(fuse.FUSE_ROOT_ID, "dir")
		for i := range files {
			if i == files-1 && k.store.Len() != 1 {
				t.Errorf("%d blobs before the last is removed", k.store.Len())
			}
			h := header(dir)
			k.trace.Reset()
			if s := k.fs.Unlink(nil, &h, strings.Repeat("x", i+1)); s != fuse.OK {
				t.Fatal(s)
			}
			if n := len(k.trace.Lines()); n > 5 { // two of the lookup, one listing, the marker, the deletion
				t.Errorf("%d requests: %q", n, k.trace.Lines())
			}
		}
		p, err := k.store.Properties("dir", blob.Condition{})
		if err != nil || p.Metadata["hdi_isfolder"] != "true" || k.store.Len() != 1 {
			t.Errorf("timeout %v: the marker is %+v, %v", timeout, p, err)
		}
	}
}

// meeting lets the deletions of several blobs wait until all of them are asked for.
type meeting struct {
	blob.Container
	all *sync.WaitGroup
}

func (m meeting) Delete(ctx context.Context, name string, c blob.Condition) error {
	m.all.Done()
	m.all.Wait()
	return m.Container.Delete(ctx, name, c)
}

// Two that leave an implied directory at the same time do not count on each other to keep it.
func TestKeepDirInParallel(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Hour} {
		var all sync.WaitGroup
		all.Add(2)
		k := newKernelWith(t, func(o *Options) {
			o.Container, o.Timeout = meeting{o.Container, &all}, timeout
		})
		k.put("dir/a", "")
		k.put("dir/b", "")
		dir := k.lookup(fuse.FUSE_ROOT_ID, "dir")
		var ended sync.WaitGroup
		ended.Go(func() {
			h := header(dir)
			if s := k.fs.Unlink(nil, &h, "a"); s != fuse.OK {
				t.Error(s)
			}
		})
		ended.Go(func() {
			in := fuse.RenameIn{InHeader: header(dir), Newdir: fuse.FUSE_ROOT_ID}
			if s := k.fs.Rename(nil, &in, "b", "b"); s != fuse.OK {
				t.Error(s)
			}
		})
		ended.Wait()
		p, err := k.store.Properties("dir", blob.Condition{})
		if err != nil || p.Metadata["hdi_isfolder"] != "true" || k.store.Len() != 2 {
			t.Errorf("timeout %v: the marker is %+v, %v", timeout, p, err)
		}
		if names := k.fs.nodes.get(dir).leavingNames(); len(names) != 0 {
			t.Errorf("still leaving: %q", names)
		}
	}
}

// leasing tells of each lease that is asked for.
type leasing struct {
	blob.Container
	acquires func(name string)
}

func (l leasing) AcquireLease(ctx context.Context, name string, d time.Duration) error {
	l.acquires(name)
	return l.Container.AcquireLease(ctx, name, d)
}

// Nothing of a file that is being renamed is committed before its node and Names know the new name: the commit would tell
// Names of the old one, and the rename would then tell of the version before. A lease of the new name is the last that the
// rename takes before it lets commits in.
func TestRenameTellsBeforeCommits(t *testing.T) {
	var k *kernel
	var known []string
	k = newKernelWith(t, func(o *Options) {
		cache, err := blobcache.Open(blobcache.Config{
			Dir: t.TempDir(), Size: 1 << 30, Memory: blobcache.MinMemory, BlockSize: 1 << 20, Log: o.Log, Leases: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := cache.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		o.Cache, o.Timeout = cache, time.Hour
		o.Container = leasing{o.Container, func(name string) {
			if name != "b" {
				return
			}
			n := k.fs.nodes.child(k.fs.nodes.root, "b")
			e, _, ok := k.fs.names.Known("b")
			if n == nil || !ok || n.properties().ETag != e.Properties.ETag {
				t.Errorf("commits are let in when the node is %+v and Names know %+v, %v", n, e, ok)
			}
			known = append(known, name)
		}}
	})
	k.put("a", "1")
	id := k.lookup(fuse.FUSE_ROOT_ID, "a")
	fh, s := k.open(id, syscall.O_WRONLY)
	if s != fuse.OK {
		t.Fatal(s)
	}
	if s := k.rename(fuse.FUSE_ROOT_ID, "a", "b"); s != fuse.OK {
		t.Fatal(s)
	}
	if len(known) != 1 {
		t.Errorf("leases taken: %q", known)
	}
	if s := k.write(id, fh, 1, []byte("2")); s != fuse.OK {
		t.Fatal(s)
	}
	if s := k.close(id, fh); s != fuse.OK {
		t.Fatal(s)
	}
	p, err := k.store.Properties("b", blob.Condition{})
	if e, _, ok := k.fs.names.Known("b"); err != nil || !ok || e.Properties.ETag != p.ETag || k.get("b") != "12" {
		t.Errorf("Names know %+v, %v; the service has %+v, %v", e, ok, p, err)
	}
}

// gated keeps reads of one byte of a blob from the service until the gate is opened.
type gated struct {
	blob.Container
	name         string
	offset       int64
	begun, opens chan struct{}
}

func (g gated) ReadAt(ctx context.Context, name string, offset, count int64, c blob.Condition) (*blob.Body, error) {
	if name == g.name && offset <= g.offset && g.offset < offset+count {
		select {
		case g.begun <- struct{}{}:
		default: // it is asked again
		}
		<-g.opens
	}
	return g.Container.ReadAt(ctx, name, offset, count, c)
}

// renaming is a container with the renames of another one.
type renaming struct {
	blob.Container
	r blob.Renamer
}

func (r renaming) Rename(ctx context.Context, dst, src string, o blob.RenameOptions) error {
	return r.r.Rename(ctx, dst, src, o)
}

func (r renaming) DeleteDirectory(ctx context.Context, name string) error {
	return r.r.DeleteDirectory(ctx, name)
}

// A read that finds nothing under the old name goes on when the new one is known: it does not wait for a lease of that, which
// a service that does not answer keeps back for --retry-for.
func TestReadsDoNotWaitForLease(t *testing.T) {
	for _, kind := range []string{"flat", "hierarchical"} {
		t.Run(kind+"/file", func(t *testing.T) { testReadsDoNotWait(t, kind, "a", "a", "b", "b") })
	}
	t.Run("hierarchical/directory", func(t *testing.T) { testReadsDoNotWait(t, "hierarchical", "a", "a/f", "b", "b/f") })
}

// testReadsDoNotWait renames one of from to to; the file in question has the name old before that, and then now.
func testReadsDoNotWait(t *testing.T, kind, from, old, to, now string) {
	const size, at = 8 << 20, 5 << 20
	gate, done := gated{name: old, offset: at, begun: make(chan struct{}, 1), opens: make(chan struct{})}, make(chan fuse.Status, 1)
	leased := 0
	store := blobtest.NewStore(blobtest.StoreOptions{Hierarchical: kind == "hierarchical"})
	k := newKernelWith(t, func(o *Options) {
		cache, err := blobcache.Open(blobcache.Config{
			Dir: t.TempDir(), Size: 1 << 30, Memory: blobcache.MinMemory, BlockSize: 1 << 20, Log: o.Log, Leases: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cache.Close(context.Background()) })
		service := blobtest.NewHierarchical(store, "https://account.example/container")
		gate.Container = service.Mem
		o.Cache, o.Timeout = cache, time.Hour
		leases := leasing{gate, func(name string) {
			if name != now {
				return
			}
			leased++
			close(gate.opens)
			select {
			case s := <-done:
				done <- s
			case <-time.After(10 * time.Second):
				t.Error("a read waits for the lease")
			}
		}}
		if o.Container = leases; kind == "hierarchical" {
			o.Container = renaming{leases, service}
		}
	})
	k.store = store
	k.put(old, strings.Repeat("x", size))
	id := k.lookup(fuse.FUSE_ROOT_ID, from)
	if old != from {
		id = k.lookup(id, old[len(from)+1:])
	}
	fh := k.mustOpen(id, syscall.O_RDWR)
	go func() {
		in := fuse.ReadIn{InHeader: header(id), Fh: fh, Offset: at, Size: 4096}
		res, s := k.fs.Read(nil, &in, make([]byte, 4096))
		if s == fuse.OK {
			if got := bytes.Join(res.(*lent).Data.Bytes, nil); string(got) != strings.Repeat("x", 4096) {
				t.Errorf("%d wrong bytes", len(got))
			}
			res.Done()
		}
		done <- s
	}()
	<-gate.begun
	if s := k.rename(fuse.FUSE_ROOT_ID, from, to); s != fuse.OK {
		t.Fatal(s)
	}
	if s := <-done; s != fuse.OK || leased != 1 {
		t.Errorf("the read ends with %v, leases: %d", s, leased)
	}
	if s := k.close(id, fh); s != fuse.OK {
		t.Error(s)
	}
}

// A write tells Names of a file while that is removed or renamed: its old name does not come back.
func TestNoGhosts(t *testing.T) {
	k := newKernel(t, 0)
	root := k.fs.nodes.root
	for what, act := range map[string]func(name string, n *node) error{
		"unlink": func(name string, _ *node) error { return k.fs.unlink(t.Context(), root, name) },
		"rename": func(name string, n *node) error {
			to := end{dir: root, name: name + "2", path: name + "2"}
			k.fs.moved(n, end{dir: root, name: name, path: name}, to, blobcache.Entry{Properties: n.properties()})
			return nil
		},
	} {
		ghosts := 0
		for i := range 3000 {
			name := fmt.Sprint(what, i)
			k.put(name, "1")
			n := k.fs.nodes.get(k.lookup(fuse.FUSE_ROOT_ID, name))
			started, done := make(chan struct{}), make(chan struct{})
			go func() {
				close(started)
				k.fs.dirty(n)
				close(done)
			}()
			<-started
			if err := act(name, n); err != nil {
				t.Fatal(what, err)
			}
			<-done
			if _, _, ok := k.fs.names.Known(name); ok {
				ghosts++
			}
		}
		if ghosts > 0 {
			t.Errorf("%s: %d ghosts", what, ghosts)
		}
	}
}
