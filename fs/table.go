package fs

import (
	"hash/fnv"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// table holds the nodes that the kernel knows, and those that are open or dirty. A node stays as long as the kernel
// has looked it up more often than forgotten it, somebody holds it, or it has children in the table. Ids are counted
// up and never used again. All methods may be called in parallel.
type table struct {
	root *node

	mu    sync.Mutex // guards what is below, and the fields of node that say so
	last  uint64     // id
	byID  map[uint64]*node
	byIno map[uint64]*node
	most  int // nodes at once since the maps were made, as far as shrink has seen
}

func newTable(root *node) *table {
	root.id, root.ino = fuse.FUSE_ROOT_ID, fuse.FUSE_ROOT_ID
	root.linked, root.children = true, map[string]*node{}
	t := &table{root: root, last: fuse.FUSE_ROOT_ID}
	t.byID = map[uint64]*node{root.id: root}
	t.byIno = map[uint64]*node{root.ino: root}
	return t
}

// get returns the node that the kernel calls id. The kernel names only nodes that it has not forgotten.
func (t *table) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// path returns where a node is, relative to the root of the mount, and whether it still is anywhere.
func (t *table) path(n *node) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pathLocked(n)
}

// named calls act with the path of a node, if it has one, and lets nobody change that meanwhile: what act tells Names of the
// path is told before the name goes to anybody else. It must not call the table.
func (t *table) named(n *node, act func(path string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if path, linked := t.pathLocked(n); linked {
		act(path)
	}
}

func (t *table) pathLocked(n *node) (string, bool) {
	var parts []string
	linked := true
	for ; n != t.root; n = n.parent {
		linked = linked && n.linked
		parts = append(parts, n.name)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, "/"), linked
}

// place returns the directory and the name of a node, also of one that has lost it.
func (t *table) place(n *node) (dir *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.parent, n.name
}

// isLinked reports whether a node is what its name stands for.
func (t *table) isLinked(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.linked
}

// child returns the node under a name, nil if the table has none.
func (t *table) child(parent *node, name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return parent.children[name]
}

// bind returns the node for an entry: the one that is in the table if it stands for the same version, else a new one.
// When the table has another version under the name it takes its place if replace, else nil is returned. The node is
// returned with one lookup counted, if count, or held.
func (t *table) bind(parent *node, name string, e blobcache.Entry, count, replace bool) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := parent.children[name]
	if n == nil || !n.same(e) {
		if n != nil {
			if !replace {
				return nil
			}
			t.unlinkLocked(n)
		}
		n = newNode(e)
		t.last++
		n.id = t.last
		n.parent, n.name, n.linked = parent, name, true
		if parent.children == nil {
			parent.children = map[string]*node{}
		}
		parent.children[name] = n
		t.byID[n.id] = n
		path, _ := t.pathLocked(n)
		t.number(n, path)
	} else {
		n.refresh(e)
	}
	if count {
		n.lookups++
	} else {
		n.holds++
	}
	return n
}

// number gives a node the inode number that programs see: a hash of its path, so that it is the same after the kernel
// has forgotten the node and after a remount, but never that of another node in the table. t.mu is held.
func (t *table) number(n *node, path string) {
	h := fnv.New64a()
	h.Write([]byte(path))
	for {
		n.ino = h.Sum64()
		if n.ino > fuse.FUSE_ROOT_ID && t.byIno[n.ino] == nil {
			t.byIno[n.ino] = n
			return
		}
		h.Write([]byte{0})
	}
}

// inode returns the inode number of a name in a listing: that of its node, or what it will have if it gets one and
// the number is free then.
func (t *table) inode(dir *node, name, path string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := dir.children[name]; n != nil {
		return n.ino
	}
	h := fnv.New64a()
	h.Write([]byte(path))
	return h.Sum64()
}

// forget takes back lookups. It returns the node when the kernel does not know it any more.
func (t *table) forget(id, count uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || n == t.root {
		return nil
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups > 0 {
		return nil
	}
	t.reap(n)
	return n
}

// hold keeps a node in the table until drop.
func (t *table) hold(n *node) {
	t.mu.Lock()
	n.holds++
	t.mu.Unlock()
}

func (t *table) drop(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.holds--
	t.reap(n)
}

// reap removes a node that nothing keeps, and then its parents for which it was the last reason. t.mu is held.
func (t *table) reap(n *node) {
	for n != t.root && n.lookups == 0 && n.holds == 0 && len(n.children) == 0 {
		if t.byID[n.id] != n {
			return
		}
		delete(t.byID, n.id)
		if t.byIno[n.ino] == n {
			delete(t.byIno, n.ino)
		}
		t.shrink()
		t.unlinkLocked(n)
		n = n.parent
	}
}

// shrinkAt is how many nodes there have to have been before the table makes its maps anew when most are gone: maps keep the
// memory of what was deleted, about 100 bytes for each node.
const shrinkAt = 1 << 16

// shrink gives back memory when few nodes are left. t.mu is held.
func (t *table) shrink() {
	t.most = max(t.most, len(t.byID)+1)
	if t.most < shrinkAt || len(t.byID) > t.most/16 {
		return
	}
	byID, byIno := make(map[uint64]*node, len(t.byID)), make(map[uint64]*node, len(t.byIno))
	for k, n := range t.byID {
		byID[k] = n
	}
	for k, n := range t.byIno {
		byIno[k] = n
	}
	t.byID, t.byIno, t.most = byID, byIno, len(byID)
	for _, n := range byID {
		if n.children != nil {
			children := make(map[string]*node, len(n.children))
			for k, c := range n.children {
				children[k] = c
			}
			n.children = children
		}
	}
}

// unlink takes a node off its name: the file is deleted or replaced, and lives on only in its handles.
func (t *table) unlink(n *node) {
	t.mu.Lock()
	t.unlinkLocked(n)
	t.reap(n)
	t.mu.Unlock()
}

func (t *table) unlinkLocked(n *node) {
	if n.linked && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
	n.linked = false
}

// move puts a node under another name. What had that name is unlinked.
func (t *table) move(n, parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := parent.children[name]; old != nil && old != n {
		t.unlinkLocked(old)
		t.reap(old)
	}
	from := n.parent
	t.unlinkLocked(n)
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	n.parent, n.name, n.linked = parent, name, true
	parent.children[name] = n
	t.reap(from)
}

// below returns all nodes in the table below a directory, with their paths relative to the root.
func (t *table) below(n *node) map[*node]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[*node]string{}
	var walk func(*node)
	walk = func(n *node) {
		for _, c := range n.children {
			out[c], _ = t.pathLocked(c)
			walk(c)
		}
	}
	walk(n)
	return out
}

// at returns the node under a path below a directory, nil if the table has none.
func (t *table) at(dir *node, path string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range strings.SplitSeq(path, "/") {
		if dir = dir.children[name]; dir == nil {
			return nil
		}
	}
	return dir
}

// anyNew reports whether there is a file in a directory that the service does not have yet.
func (t *table) anyNew(dir *node) bool {
	for c := range t.below(dir) {
		if f := c.opened(); f != nil && f.State().New {
			return true
		}
	}
	return false
}

// size returns the number of nodes in the table, the root included.
func (t *table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
