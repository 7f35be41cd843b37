package fs

import (
	"sync"

	"blobmount/blobcache"
)

// Attributes make a node of each name in a listing, which costs ten times the time of the name alone and 1 KiB: ls -l, du and
// data loaders save a message for each file by them, find and shells only throw them away. The kernel would take them with
// every part of a listing, and is given them as follows:
//
//   - The first part of a directory, mostly the only one, has them or not by wanted.
//   - A later part has them if files of the directory were looked up since the part before. The last names of each part are
//     shown without, so that who uses attributes looks these up.
//   - A later part also has them if its first file is in the cache: somebody has read the files of this directory, and will
//     mostly do so again, as a data loader after a remount. It lists all names first and opens the files then, so that
//     nothing is looked up in between.

// wanted decides whether a directory is shown with attributes from its beginning. Some directories are shown without them,
// as a probe: who wants attributes then looks up the files one by one.
type wanted struct {
	mu    sync.Mutex // guards what is below
	off   bool
	probe *node // the directory that was shown without attributes last
	found int   // files in it that were looked up since
	shown int   // directories with attributes since the last probe
}

const (
	// probeEvery is how many directories are shown with attributes for one without them.
	probeEvery = 16
	// wantedAfter is how many files of a probe have to be looked up.
	wantedAfter = 2
)

// begin returns whether a directory is to be shown with attributes from its beginning.
func (w *wanted) begin(dir *node) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.off && w.shown < probeEvery {
		w.shown++
		return true
	}
	w.off, w.probe, w.found, w.shown = true, dir, 0, 0
	return false
}

// looked notes that the kernel looked up a file that it was not given with its directory.
func (w *wanted) looked(dir *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if dir != w.probe {
		return
	}
	if w.found++; w.found >= wantedAfter {
		w.off = false
	}
}

// forget drops a directory that is no node any more.
func (w *wanted) forget(dir *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.probe == dir {
		w.probe = nil
	}
}

// interest is what an open directory remembers of the parts that were shown.
type interest struct {
	looked uint32 // node.looked, as of the last part
	shown  int    // names that have attributes because files are in the cache
}

const (
	// maxCachedShown is how many names of a directory have attributes because files are in the cache: 64 MB of nodes.
	maxCachedShown = 1 << 16
	// maxCachedNodes is how many nodes there may be in the whole mount before that ends: 256 MB. The kernel keeps nodes as long
	// as it has memory, so find over 20 such directories would leave 1.3 GB of them.
	maxCachedNodes = 1 << 18
	// keptBack is how many bytes at the end of a part have no attributes: at least one name, which takes 408 at most.
	keptBack = 512
)

// part is a part of a listing that is being shown. The handle's mutex is held meanwhile.
type part struct {
	fs         *fileSystem
	h          *handle
	attributes bool
	ask        bool // the first file decides
	cached     bool // it is in the cache
	room       int  // bytes left
}

// beginPart begins to show the names from an offset on, in a message of so many bytes.
func (fs *fileSystem) beginPart(h *handle, offset uint64, room int) part {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := part{fs: fs, h: h, room: room}
	looked := h.node.looked.Load()
	if offset == 0 {
		h.interest.shown = 0
		p.attributes = fs.wanted.begin(h.node)
	} else {
		p.attributes = looked != h.interest.looked
		p.ask = h.interest.shown < maxCachedShown && fs.nodes.size() < maxCachedNodes
	}
	h.interest.looked = looked
	return p
}

// any reports whether a name may have to be shown with attributes.
func (p *part) any() bool { return p.attributes || p.ask || p.cached }

// add takes a name into the part.
func (p *part) add(name string) {
	const entry, dirent = 128, 24 // fuse_entry_out and fuse_dirent, which is padded to 8 bytes
	p.room -= entry + dirent + (len(name)+7)/8*8
}

// shows reports whether the name that was added, which stands for e, is shown with attributes.
func (p *part) shows(e *blobcache.Entry) bool {
	if p.ask && kindOf(*e) == kindFile {
		p.ask = false
		p.cached = e.Properties.Size <= blobcache.SmallSize && p.fs.cache.Has(p.fs.cont, e.Properties)
	}
	if p.cached {
		p.h.interest.shown++
		return true
	}
	return p.attributes && p.room >= keptBack
}
