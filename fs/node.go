package fs

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// kind is what a node is to the kernel.
type kind uint8

const (
	kindFile kind = iota
	kindDir
	kindSymlink
	kindSpecial // FIFO or socket: a name and a mode, no content
)

// node is one file, directory, symbolic link, FIFO or socket that the kernel knows.
type node struct {
	id, ino uint64 // set once, by table
	kind    kind

	// Guarded by table.mu.
	parent   *node
	name     string
	linked   bool // it is what its name stands for
	lookups  uint64
	holds    int
	children map[string]*node // directories only; the ones in the table

	mu       sync.Mutex      // guards what follows, to closed
	file     *blobcache.File // nil unless open or dirty
	users    int             // acquire less release
	handles  int             // what the kernel has open
	mappable bool            // some of them were opened for reading and writing
	paged    bool            // the kernel may have pages of the file; see direct.go
	backing  int32           // the backing file of all handles, 0 if they go through us; see passthrough.go
	closed   chan struct{}   // closed when backing gets 0; nil when nobody waits for that
	// pending says that Names was told that the service does not have our state of the blob yet.
	pending atomic.Bool
	// overtaken says that another writer won the name while this was open. The kernel may still know the name as this
	// node: it is told that the node is stale, and then looks the name up.
	overtaken atomic.Bool

	looked atomic.Uint32 // counts the files of the directory that were looked up
	stored atomic.Uint64 // counts the writes of pages that the kernel had; see direct.go

	giving  sync.Mutex // guards what follows; held while bytes are given to the kernel; see give.go
	given   bool       // the kernel was given the content, or has other pages
	writing int        // who may change the content

	attrMu sync.Mutex      // guards what is below
	entry  blobcache.Entry // what the service has
	// accessed is the access time that a program has set, the zero time if none has.
	accessed time.Time
	// changed is when the directory was changed here, the zero time if not.
	changed  time.Time
	leaving  map[string]int // names that are being removed from the directory, and how often
	dirCache *dirCache      // nil: it was not opened as a directory whose names the kernel may keep
}

func newNode(e blobcache.Entry) *node { return &node{kind: kindOf(e), entry: e} }

// kindOf says what an entry is.
func kindOf(e blobcache.Entry) kind {
	if e.Dir {
		return kindDir
	}
	return metadataKind(e.Properties.Metadata)
}

// same reports whether an entry stands for this node. table.mu is held.
func (n *node) same(e blobcache.Entry) bool {
	if n.kind != kindOf(e) {
		return false
	}
	if n.kind == kindDir || e.Pending || n.pending.Load() {
		return true
	}
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	return n.entry.Properties.ETag == e.Properties.ETag
}

// refresh takes over what a lookup brought. table.mu is held.
func (n *node) refresh(e blobcache.Entry) {
	if e.Pending || n.pending.Load() {
		return // our state is newer than the service's
	}
	n.setEntry(e)
}

func (n *node) setEntry(e blobcache.Entry) {
	n.attrMu.Lock()
	n.entry = e
	n.attrMu.Unlock()
}

func (n *node) getEntry() blobcache.Entry {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	return n.entry
}

// renamed notes the new name and version of the blob, if it was the version was.
func (n *node) renamed(was blob.ETag, name string, w blob.Written) {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	if p := &n.entry.Properties; p.ETag == was {
		p.Name, p.ETag, p.Modified = name, w.ETag, w.Modified
	}
}

// properties returns the properties of the blob as the service has them.
func (n *node) properties() blob.Properties { return n.getEntry().Properties }

// setAccessed notes the access time that a program has set. The service is not told: that would be a new version of the
// blob, and be noticed by all who have it cached, for a time that reading does not change anyway.
func (n *node) setAccessed(t time.Time) {
	n.attrMu.Lock()
	n.accessed = t
	n.attrMu.Unlock()
}

// accessedAt returns the access time that a program has set, the zero time if none has.
func (n *node) accessedAt() time.Time {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	return n.accessed
}

// touch notes a change of a directory's names.
func (n *node) touch(t time.Time) {
	n.attrMu.Lock()
	n.changed = t
	n.attrMu.Unlock()
}

// changedAt returns when the directory was changed here, the zero time if it was not.
func (n *node) changedAt() time.Time {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	return n.changed
}

// leave notes that a name is about to be removed from a directory, until the function that is returned is called. Whether
// something else stays is asked before it is gone: of two that leave at once neither may count on the other.
func (n *node) leave(name string) (done func()) {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	if n.leaving == nil {
		n.leaving = map[string]int{}
	}
	n.leaving[name]++
	return func() {
		n.attrMu.Lock()
		defer n.attrMu.Unlock()
		if n.leaving[name]--; n.leaving[name] == 0 {
			delete(n.leaving, name)
		}
	}
}

// leavingNames returns the names that are being removed from a directory.
func (n *node) leavingNames() []string {
	n.attrMu.Lock()
	defer n.attrMu.Unlock()
	return slices.Collect(maps.Keys(n.leaving))
}

// acquire opens the node's file.
func (v *view) acquire(n *node, write bool) *blobcache.File {
	if write {
		n.beginWriting()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		v.nodes.hold(n) // until the file is idle
		n.file = v.cache.OpenFile(v.cont, n.properties(), v.hooks(n))
	}
	n.users++
	n.file.Acquire(write)
	return n.file
}

// release ends acquire. A file that is idle then is given up; a dirty one stays, and so does its node.
func (v *view) release(n *node, f *blobcache.File, write bool) {
	n.mu.Lock()
	n.users--
	n.mu.Unlock()
	if f.Release(write) {
		v.retire(n, f)
	}
	if write {
		n.endWriting()
	}
}

// retire drops the idle file of a node that nobody has open.
func (v *view) retire(n *node, f *blobcache.File) {
	n.mu.Lock()
	idle := n.users == 0 && n.file == f
	if idle {
		n.file = nil
	}
	n.mu.Unlock()
	if idle {
		v.nodes.drop(n)
	}
}

// opened returns the node's file if it is open or dirty, else nil.
func (n *node) opened() *blobcache.File {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.file
}

// hooks returns what a node's file tells when it is committed.
func (v *view) hooks(n *node) blobcache.Hooks {
	return blobcache.Hooks{
		Stamp:     v.defaults.stamp,
		Committed: func(p blob.Properties, dirty bool) { v.committed(n, p, dirty) },
		Lost:      func() { v.lost(n) },
		Idle:      func(f *blobcache.File) { v.retire(n, f) },
	}
}

// lost takes a node off its name, which stands for another writer's version from now on.
func (v *view) lost(n *node) {
	p, linked := v.nodes.path(n)
	if !linked {
		return
	}
	n.overtaken.Store(true)
	v.nodes.unlink(n)
	v.names.Forget(p)
}

// committed brings the node and Names up to date when the service has taken a change.
func (v *view) committed(n *node, p blob.Properties, dirty bool) {
	e := blobcache.Entry{Properties: p, Pending: dirty}
	// Names first: who finds that the node's ETag is not the one it looked up asks Names again. In between the node is
	// pending, so that it counts as the version that Names has.
	n.pending.Store(true)
	v.nodes.named(n, func(path string) { v.names.Set(path, e) })
	e.Pending = false
	n.setEntry(e)
	if !dirty {
		n.pending.Store(false)
	}
	// A write may have come between the commit and here.
	if f := n.opened(); f != nil && !dirty && f.State().Dirty {
		v.dirty(n)
	}
}

// dirty tells Names that this mount's state of a file is ahead of the service's.
func (v *view) dirty(n *node) {
	if n.pending.Swap(true) {
		return
	}
	v.nodes.named(n, func(path string) {
		v.names.Set(path, blobcache.Entry{Properties: n.properties(), Pending: true})
	})
}
