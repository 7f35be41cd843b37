package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// dirCache is what is known of the kernel's cache of a directory. The kernel has one for each directory. Every handle with
// FOPEN_CACHE_DIR adds the entries that it is given, if they begin at the position where the cache ends, and reads what the
// cache has; it cannot tell of which listing that is. So
//
//   - a handle may use the cache only if it is the only one that does, or if what it will read is the state that all
//     others that do have read, and
//   - the positions of each state are others, so that no entry continues the beginning of another state: a handle may
//     begin anew, see rewinddir(3), while the cache has a part of what it has read before.
//
// A directory that was opened while others use the cache, and has changed since they began, costs messages; no more.
//
// node.attrMu guards it.
type dirCache struct {
	handles int // that are open with FOPEN_CACHE_DIR
	// state is that of the directory which all of them have read, the zero Stamp if none has begun; mixed says that they
	// have read different ones, or one of them has, so that nobody can tell which the cache has.
	state blobcache.Stamp
	mixed bool
	begun blobcache.Stamp // the state that was begun last
	tag   uint64          // of its positions
}

// A position in a directory has its index, of which ".", ".." are the first, in the lower bits, and the tag of the state
// above them. Two states have the same tag when 4 million are between them. The sign stays free.
const (
	tagShift  = 40
	tags      = 1 << 22
	indexMask = 1<<tagShift - 1
)

// openDirCache counts a handle that is being opened, and returns how the kernel is to use its cache. now is the state that it
// would read, the zero Stamp if that is not known. If the cache may have it already, tag is that of its positions.
func (n *node) openDirCache(now blobcache.Stamp) (flags uint32, tag uint64) {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	if n.dirCache == nil {
		n.dirCache = &dirCache{}
	}
	c := n.dirCache
	switch {
	case now != blobcache.Stamp{} && now == c.state:
		c.handles++
		return fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE, c.tag
	case c.handles == 0:
		c.handles++
		c.state, c.mixed = blobcache.Stamp{}, false // the kernel drops what it has
		return fuse.FOPEN_CACHE_DIR, 0
	default:
		return fuse.FOPEN_KEEP_CACHE, 0 // for the others
	}
}

// closeDirCache takes back a handle with FOPEN_CACHE_DIR.
func (n *node) closeDirCache() {
	n.attrMu.Lock()
	n.dirCache.handles--
	n.attrMu.Unlock()
}

// beginDir notes which state a handle with FOPEN_CACHE_DIR begins to read, and returns the tag of its positions.
func (n *node) beginDir(now blobcache.Stamp) (tag uint64) {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	c := n.dirCache
	if c.begun != now {
		c.begun, c.tag = now, (c.tag+1)%tags
	}
	switch {
	case c.mixed:
	case c.state == blobcache.Stamp{}:
		c.state = now
	case c.state != now:
		c.state, c.mixed = blobcache.Stamp{}, true
	}
	return c.tag
}

// mayKeep reports whether the kernel's cache may have a state of the directory.
func (n *node) mayKeep(s blobcache.Stamp) bool {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	return s != blobcache.Stamp{} && n.dirCache != nil && n.dirCache.state == s
}
