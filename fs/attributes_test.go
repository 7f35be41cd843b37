package fs

import (
	"fmt"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// TestWanted: attributes are shown to a program that looks files up, from its second directory on, and not to one that only
// reads names.
func TestWanted(t *testing.T) {
	var w wanted
	// read reads so many directories, and returns how many were shown with attributes. stat says that the program wants
	// the attributes of files.
	read := func(directories int, stat bool) (with int) {
		for range directories {
			dir := newNode(blobcache.Entry{Dir: true})
			if w.begin(dir) {
				with++
				continue
			}
			for range 5 {
				if stat {
					w.looked(dir)
				}
				w.looked(newNode(blobcache.Entry{Dir: true})) // in another directory
			}
		}
		return with
	}
	if got := read(probeEvery, true); got != probeEvery {
		t.Errorf("the first %d directories were shown with attributes, want %d", got, probeEvery)
	}
	if got := read(1000, false); got != 0 {
		t.Errorf("find was shown attributes in %d more directories", got)
	}
	if got := read(17*100, true); got != 16*100 {
		t.Errorf("ls -l was shown attributes in %d of 1700 directories, want 1600", got)
	}
	if got := read(1000, false); got > probeEvery {
		t.Errorf("find after it was shown attributes in %d directories", got)
	}
	dir := newNode(blobcache.Entry{Dir: true})
	w.begin(dir)
	w.looked(dir) // one file is no habit
	if got := read(10, false); got != 0 {
		t.Errorf("after one file %d directories were shown with attributes", got)
	}
	w.begin(dir)
	w.forget(dir)
	w.looked(dir)
	w.looked(dir)
	if !w.off || w.probe != nil {
		t.Error("a directory that is gone counts")
	}
}

// parts lists a directory in messages of 8 KiB, and returns which of its files, named by numbers, have a node after each.
func (k *kernel) parts(dir uint64, files int, after func(shown int)) (nodes []int) {
	k.t.Helper()
	var open fuse.OpenOut
	if s := k.fs.OpenDir(nil, &fuse.OpenIn{InHeader: header(dir)}, &open); s != fuse.OK {
		k.t.Fatal(s)
	}
	defer k.fs.ReleaseDir(&fuse.ReleaseIn{InHeader: header(dir), Fh: open.Fh})
	for off, end := uint64(0), uint64(files)+2; off&indexMask < end; {
		list := fuse.NewDirEntryList(make([]byte, 8<<10), off)
		in := fuse.ReadIn{InHeader: header(dir), Fh: open.Fh, Offset: off, Size: 8 << 10}
		if s := k.fs.ReadDirPlus(nil, &in, list); s != fuse.OK || list.Offset == off {
			k.t.Fatal(s, off)
		}
		off = list.Offset
		count := 0
		for i := range files {
			if k.fs.nodes.at(k.nodes[dir], numbered(i)) != nil {
				count++
			}
		}
		nodes = append(nodes, count)
		after(int(off&indexMask) - 2)
	}
	return nodes
}

func numbered(i int) string { return fmt.Sprintf("%06d", i) }

// TestAttributesByUse: beyond its first part, a directory is shown with attributes as long as its files are looked up.
func TestAttributesByUse(t *testing.T) {
	const files = 500
	for _, use := range []bool{false, true} {
		k := newKernel(t, time.Hour)
		for i := range files {
			k.put("d/"+numbered(i), "x")
		}
		d := k.lookup(fuse.FUSE_ROOT_ID, "d")
		lookups := 0
		nodes := k.parts(d, files, func(shown int) {
			for i := range shown { // as the kernel does for who calls lstat
				if use && k.fs.nodes.at(k.nodes[d], numbered(i)) == nil {
					k.lookup(d, numbered(i))
					lookups++
				}
			}
		})
		first, last := nodes[0], nodes[len(nodes)-1]
		switch {
		case len(nodes) < 8 || first < 40 || first > 50:
			t.Errorf("%d parts, nodes after each: %v", len(nodes), nodes)
		case !use && last != first:
			t.Errorf("who reads names only has %v nodes", nodes)
		case use && (lookups < len(nodes)-1 || lookups > 4*len(nodes)):
			t.Errorf("who uses attributes has looked up %d files in %d parts", lookups, len(nodes))
		}
	}
}

// cacheFiles makes files in a directory, and brings the first of them into the cache.
func (k *kernel) cacheFiles(files, cached int) (dir uint64) {
	k.t.Helper()
	for i := range files {
		k.put("d/"+numbered(i), "x")
	}
	d := k.lookup(fuse.FUSE_ROOT_ID, "d")
	for i := range cached {
		id := k.lookup(d, numbered(i))
		if err := k.fs.cache.Prefetch(k.t.Context(), k.fs.cont, k.nodes[id].properties()); err != nil {
			k.t.Fatal(err)
		}
		k.forget(id, 1)
	}
	return d
}

// TestAttributesOfCachedFilesEnd: when the mount has many nodes, a part whose files are in the cache makes no more.
func TestAttributesOfCachedFilesEnd(t *testing.T) {
	const files = 300
	k := newKernel(t, time.Hour)
	d := k.cacheFiles(files, files)
	table := k.fs.nodes
	table.mu.Lock()
	for i := range maxCachedNodes - 120 - len(table.byID) { // of other directories, so that the first parts have room
		table.byID[1<<40+uint64(i)] = table.root
	}
	table.mu.Unlock()
	nodes := k.parts(d, files, func(int) {})
	if last := nodes[len(nodes)-1]; nodes[0] >= 120 || last < 120 || last > 180 {
		t.Errorf("nodes after each part: %v", nodes)
	}
}

// TestAttributesOfCachedFiles: a directory whose files are in the cache is shown with attributes, whatever is looked up,
// and not beyond files that are not.
func TestAttributesOfCachedFiles(t *testing.T) {
	const files, cached = 500, 300
	k := newKernel(t, time.Hour)
	d := k.cacheFiles(files, cached)
	nodes := k.parts(d, files, func(int) {})
	last := nodes[len(nodes)-1]
	if parts := len(nodes); last < cached || last > cached+files/parts+1 || nodes[parts-2] != last {
		t.Errorf("nodes after each part: %v", nodes)
	}
	for i := range 40 {
		if k.fs.nodes.at(k.nodes[d], numbered(i)) == nil {
			t.Errorf("file %d has no node", i)
		}
	}
}
