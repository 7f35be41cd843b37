package fs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// kernel calls a file system as the kernel does, and keeps the books that the kernel keeps: how often each node was
// looked up. The service behind is in memory.
type kernel struct {
	t       *testing.T
	fs      *fileSystem
	store   *blobtest.Store
	trace   *blobtest.Trace
	lookups map[uint64]uint64 // by node id
	nodes   map[uint64]*node  // what the ids stand for that the kernel knows
	ever    map[uint64]*node  // what the ids stood for that the kernel was told
}

func newKernel(t *testing.T, timeout time.Duration) *kernel {
	t.Helper()
	return newKernelWith(t, func(o *Options) { o.Timeout = timeout })
}

// newKernelWith is newKernel with other options, or another container around the one in memory.
func newKernelWith(t *testing.T, change func(*Options)) *kernel {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	cache, err := blobcache.Open(blobcache.Config{
		Dir: t.TempDir(), Size: 1 << 30, Memory: blobcache.MinMemory, BlockSize: 1 << 20, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cache.Close(context.Background()); err != nil {
			t.Log(err) // files of which another writer was faster
		}
	})
	store := blobtest.NewStore(blobtest.StoreOptions{})
	trace := blobtest.NewTrace(blobtest.NewContainer(store, "https://account.example/container"))
	o := Options{Container: trace, Cache: cache, FileMode: 0o644, DirMode: 0o755, Log: log}
	change(&o)
	f := newFileSystem(t.Context(), o)
	return &kernel{t, f, store, trace, map[uint64]uint64{}, map[uint64]*node{}, map[uint64]*node{}}
}

// learn counts a lookup, and checks that the id stands for the node that it always stood for.
func (k *kernel) learn(out *fuse.EntryOut) uint64 {
	k.t.Helper()
	id := out.NodeId
	n := k.fs.nodes.get(id)
	if n == nil || n.id != id || n.ino != out.Attr.Ino {
		k.t.Fatalf("node %d is not in the table, or not as it was told", id)
	}
	if old := k.ever[id]; old != nil && old != n {
		k.t.Fatalf("node %d is used again for another file", id)
	}
	k.nodes[id], k.ever[id] = n, n
	k.lookups[id]++
	return id
}

func header(id uint64) fuse.InHeader { return fuse.InHeader{NodeId: id} }

// lookup returns the id of a name, 0 if there is none.
func (k *kernel) lookup(dir uint64, name string) uint64 {
	k.t.Helper()
	var out fuse.EntryOut
	h := header(dir)
	switch s := k.fs.Lookup(nil, &h, name, &out); {
	case s == fuse.OK && out.NodeId != 0:
		return k.learn(&out)
	case s != fuse.OK && s != fuse.ENOENT && s != fuse.Status(syscall.ESTALE):
		k.t.Fatalf("lookup of %q: %v", name, s)
	}
	return 0
}

// create makes and opens a file.
func (k *kernel) create(dir uint64, name string, flags uint32) (id, fh uint64, s fuse.Status) {
	k.t.Helper()
	in := fuse.CreateIn{InHeader: header(dir), Flags: flags | syscall.O_WRONLY | syscall.O_CREAT, Mode: 0o644}
	var out fuse.CreateOut
	if s = k.fs.Create(nil, &in, name, &out); s != fuse.OK {
		return 0, 0, s
	}
	return k.learn(&out.EntryOut), out.Fh, s
}

func (k *kernel) mkdir(dir uint64, name string) (uint64, fuse.Status) {
	k.t.Helper()
	in := fuse.MkdirIn{InHeader: header(dir), Mode: 0o755}
	var out fuse.EntryOut
	if s := k.fs.Mkdir(nil, &in, name, &out); s != fuse.OK {
		return 0, s
	}
	return k.learn(&out), fuse.OK
}

func (k *kernel) open(id uint64, flags uint32) (uint64, fuse.Status) {
	var out fuse.OpenOut
	s := k.fs.Open(nil, &fuse.OpenIn{InHeader: header(id), Flags: flags}, &out)
	return out.Fh, s
}

func (k *kernel) write(id, fh uint64, off int64, b []byte) fuse.Status {
	_, s := k.fs.Write(nil, &fuse.WriteIn{InHeader: header(id), Fh: fh, Offset: uint64(off), Size: uint32(len(b))}, b)
	return s
}

// close flushes and releases a handle, and returns what flush says.
func (k *kernel) close(id, fh uint64) fuse.Status {
	s := k.fs.Flush(nil, &fuse.FlushIn{InHeader: header(id), Fh: fh})
	k.fs.Release(nil, &fuse.ReleaseIn{InHeader: header(id), Fh: fh})
	return s
}

// forget takes back lookups.
func (k *kernel) forget(id, count uint64) {
	k.fs.Forget(id, count)
	if k.lookups[id] -= count; k.lookups[id] == 0 {
		delete(k.lookups, id)
		delete(k.nodes, id)
	}
}

// put writes a blob past the file system.
func (k *kernel) put(name, content string) {
	k.t.Helper()
	if _, err := k.store.Put(name, []byte(content), blob.WriteOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

// get returns what the service has under a name, "" if nothing.
func (k *kernel) get(name string) string {
	k.t.Helper()
	_, r, err := k.store.Get(name, 0, -1, blob.Condition{})
	if blob.Is(err, blob.NotFound) {
		return ""
	}
	if err != nil {
		k.t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, r.Reader()); err != nil {
		k.t.Fatal(err)
	}
	return b.String()
}

// check compares the table with the kernel's books: it has every node that the kernel knows, and no two with one inode
// number.
func (k *kernel) check() {
	k.t.Helper()
	for id, n := range k.nodes {
		if k.fs.nodes.get(id) != n {
			k.t.Fatalf("node %d, which the kernel knows, is not in the table", id)
		}
		if n.lookups != k.lookups[id] {
			k.t.Fatalf("node %d has %d lookups, the kernel made %d", id, n.lookups, k.lookups[id])
		}
	}
	inos := map[uint64]uint64{}
	k.fs.nodes.mu.Lock()
	defer k.fs.nodes.mu.Unlock()
	for id, n := range k.fs.nodes.byID {
		if other, ok := inos[n.ino]; ok {
			k.t.Fatalf("nodes %d and %d have one inode number", id, other)
		}
		inos[n.ino] = id
	}
	if len(k.fs.nodes.byIno) != len(inos) {
		k.t.Fatalf("%d inode numbers are kept for %d nodes", len(k.fs.nodes.byIno), len(inos))
	}
}
