package fs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// No node outlives its last forget, and none is used again while the kernel knows it, whatever happens to the names:
// here, in the service, and while files are open.
func TestLookupCounts(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		timeout := []time.Duration{0, time.Hour, -1}[seed%3]
		k := newKernel(t, timeout)
		type handle struct{ id, fh uint64 }
		var handles []handle
		names := []string{"a", "b", "c", "d", "e"}
		dirs := func() []uint64 {
			out := []uint64{fuse.FUSE_ROOT_ID}
			for id, n := range k.nodes {
				if n.kind == kindDir {
					out = append(out, id)
				}
			}
			slices.Sort(out) // for the seed to mean something
			return out
		}
		pick := func(ids []uint64) uint64 { return ids[random.IntN(len(ids))] }
		for range 400 {
			all := dirs()
			dir, name := pick(all), names[random.IntN(len(names))]
			known := slices.Sorted(maps.Keys(k.lookups))
			switch random.IntN(12) {
			case 0, 1, 2:
				k.lookup(dir, name)
			case 3:
				if id, fh, s := k.create(dir, name, uint32(random.IntN(2)*syscall.O_EXCL)); s == fuse.OK {
					handles = append(handles, handle{id, fh})
				}
			case 4:
				k.mkdir(dir, name)
			case 5:
				h := header(dir)
				k.fs.Unlink(nil, &h, name)
			case 6:
				h := header(dir)
				k.fs.Rmdir(nil, &h, name)
			case 7:
				in := fuse.RenameIn{InHeader: header(dir), Newdir: pick(all)}
				k.fs.Rename(nil, &in, name, names[random.IntN(len(names))])
			case 8:
				k.put(name, fmt.Sprint("version ", random.Uint64())) // by another host
			case 9:
				if len(known) > 0 {
					id := pick(known)
					if k.nodes[id].kind == kindFile {
						if fh, s := k.open(id, syscall.O_RDWR); s == fuse.OK {
							k.write(id, fh, 0, []byte("x"))
							handles = append(handles, handle{id, fh})
						}
					}
				}
			case 10:
				if len(handles) > 0 {
					i := random.IntN(len(handles))
					k.close(handles[i].id, handles[i].fh)
					handles = slices.Delete(handles, i, i+1)
				}
			default:
				// Also of an open file: another thread may serve the forget before the release.
				if len(known) > 0 {
					id := pick(known)
					k.forget(id, 1+random.Uint64N(k.lookups[id]))
				}
			}
			k.check()
			for _, h := range handles {
				if k.fs.nodes.get(h.id) != k.ever[h.id] {
					t.Fatalf("seed %d: node %d, which is open, is not in the table", seed, h.id)
				}
			}
		}
		for _, h := range handles {
			k.close(h.id, h.fh)
		}
		for _, id := range slices.Sorted(maps.Keys(k.lookups)) { // parents first, as at an unmount
			k.forget(id, k.lookups[id])
		}
		// A file that lost against another host is given up with its last close, so all are gone.
		if n := k.fs.nodes.size(); n != 1 {
			t.Errorf("seed %d: %d nodes are left besides the root", seed, n-1)
		}
		k.check()
	}
}

// A directory that is forgotten before what is in it is the same one when it is looked up again.
func TestParentStays(t *testing.T) {
	k := newKernel(t, time.Hour)
	k.put("dir/file", "x")
	dir := k.lookup(fuse.FUSE_ROOT_ID, "dir")
	file := k.lookup(dir, "file")
	parent := k.nodes[dir]
	k.forget(dir, 1)
	if again := k.lookup(fuse.FUSE_ROOT_ID, "dir"); again != dir || k.nodes[file].parent != parent {
		t.Errorf("the directory is node %d now, was %d", again, dir)
	}
	k.forget(dir, 1)
	k.forget(file, 1)
	if n := k.fs.nodes.size(); n != 1 {
		t.Errorf("%d nodes are left besides the root", n-1)
	}
}

// A name that is forgotten and looked up again has its inode number again, and so has it in listings.
func TestInodeNumbers(t *testing.T) {
	k := newKernel(t, time.Hour)
	k.put("dir/file", "x")
	dir := k.lookup(fuse.FUSE_ROOT_ID, "dir")
	file := k.lookup(dir, "file")
	ino := k.nodes[file].ino
	if listed := k.fs.nodes.inode(k.nodes[dir], "file", "dir/file"); listed != ino {
		t.Errorf("listed with inode number %d, looked up with %d", listed, ino)
	}
	k.forget(file, 1)
	if listed := k.fs.nodes.inode(k.nodes[dir], "file", "dir/file"); listed != ino {
		t.Errorf("listed with inode number %d, looked up with %d", listed, ino)
	}
	if again := k.nodes[k.lookup(dir, "file")].ino; again != ino {
		t.Errorf("inode number %d, after the kernel forgot it %d", ino, again)
	}
	// Two that have one hash get two numbers.
	table := k.fs.nodes
	table.mu.Lock()
	defer table.mu.Unlock()
	twin := &node{}
	table.number(twin, "dir/file")
	if twin.ino == ino || twin.ino <= fuse.FUSE_ROOT_ID {
		t.Errorf("the second node of one hash has inode number %d, the first %d", twin.ino, ino)
	}
	delete(table.byIno, twin.ino)
}

// bind gives a name to another version only when it is told to: between the question and the answer our own commit may
// have come.
func TestBindReplace(t *testing.T) {
	table := newTable(newNode(blobcache.Entry{Dir: true}))
	entry := func(etag string) blobcache.Entry {
		return blobcache.Entry{Properties: blob.Properties{ETag: blob.ETag(etag)}}
	}
	first := table.bind(table.root, "name", entry("1"), true, false)
	if n := table.bind(table.root, "name", entry("1"), true, false); n != first {
		t.Error("the same version is another node")
	}
	if n := table.bind(table.root, "name", entry("2"), true, false); n != nil {
		t.Error("another version replaces the node unasked")
	}
	if first.lookups != 2 || !table.isLinked(first) {
		t.Errorf("%d lookups, linked %v", first.lookups, first.linked)
	}
	first.pending.Store(true) // our state is newer than any answer
	if n := table.bind(table.root, "name", entry("2"), true, true); n != first {
		t.Error("a dirty file loses its name to a version of the service")
	}
	first.pending.Store(false)
	second := table.bind(table.root, "name", entry("2"), true, true)
	if second == first || second.id == first.id || second.ino == first.ino || table.isLinked(first) {
		t.Error("the new version has the old node")
	}
	table.forget(first.id, 3)
	table.forget(second.id, 1)
	if table.size() != 1 {
		t.Errorf("%d nodes", table.size())
	}
}
