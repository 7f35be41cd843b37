package treemodel

import (
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"syscall"
)

// Model is a tree of directories, files and symbolic links, in memory, as root sees it.
type Model struct {
	root    *node
	handles [Handles]*node // nil: not open
	umask   uint32
}

type nodeKind byte

const (
	dir nodeKind = iota
	file
	link
)

// node is a directory, file or symbolic link.
type node struct {
	kind     nodeKind
	parent   *node // nil: it has no name any more, or is the root
	name     string
	mode     uint32
	content  []byte
	target   string
	children map[string]*node
	// marked says that a directory has a blob of its own: it stays when another host deletes the last blob in it. unsure
	// says that it may have one: which of its names the service had when one was removed is not known here.
	marked, unsure bool
	// time is when Utimes says that a file was changed; 0: it was changed since.
	time int64
}

// NewModel returns an empty tree. umask is that of the process that makes files.
func NewModel(umask uint32) *Model {
	return &Model{root: newDir(0o755, true), umask: umask}
}

func newDir(mode uint32, marked bool) *node {
	return &node{kind: dir, mode: mode, marked: marked, children: map[string]*node{}}
}

// Modes of what another host makes, by the defaults of a mount.
const (
	foreignFile = 0o644
	foreignDir  = 0o755
)

// Result is what an operation answers: an error number, or what was read.
type Result struct {
	Errno syscall.Errno
	Text  string // of a Read or Readdir
	Attr  Attr   // of a Stat
}

func (r Result) String() string {
	switch {
	case r.Errno != 0:
		return r.Errno.Error()
	case r.Attr != Attr{}:
		return r.Attr.String()
	case r.Text == "":
		return "success"
	}
	return fmt.Sprintf("%q", r.Text)
}

func (r Result) allows(got Result) bool {
	return r.Errno == got.Errno && r.Text == got.Text && r.Attr.allows(got.Attr)
}

func failed(e syscall.Errno) Result { return Result{Errno: e} }

// parentOf returns the directory of a path, and the name in it.
func (m *Model) parentOf(path string) (*node, string, syscall.Errno) {
	at := m.root
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			return at, name, 0
		}
		switch at = at.children[name]; {
		case at == nil, at.kind == link: // links lead nowhere
			return nil, "", syscall.ENOENT
		case at.kind == file:
			return nil, "", syscall.ENOTDIR
		}
		path = rest
	}
}

// find returns what a path stands for.
func (m *Model) find(path string) (*node, syscall.Errno) {
	if path == "" {
		return m.root, 0
	}
	d, name, errno := m.parentOf(path)
	if errno != 0 {
		return nil, errno
	}
	if n := d.children[name]; n != nil {
		return n, 0
	}
	return nil, syscall.ENOENT
}

// follow is find for a call that follows links, which lead nowhere.
func (m *Model) follow(path string) (*node, syscall.Errno) {
	n, errno := m.find(path)
	if errno == 0 && n.kind == link {
		return nil, syscall.ENOENT
	}
	return n, errno
}

// openFile is find for an open for writing with O_NOFOLLOW.
func (m *Model) openFile(path string) (*node, syscall.Errno) {
	n, errno := m.find(path)
	switch {
	case errno != 0:
		return nil, errno
	case n.kind == dir:
		return nil, syscall.EISDIR
	case n.kind == link:
		return nil, syscall.ELOOP
	}
	return n, 0
}

// createFile is openFile that makes a file if there is none.
func (m *Model) createFile(path string, mode uint32, exclusive bool) (*node, syscall.Errno) {
	n, errno := m.openFile(path)
	switch {
	case errno == syscall.ENOENT:
		n = &node{kind: file, mode: mode &^ m.umask}
		return n, m.add(path, n)
	case exclusive && (errno == 0 || errno == syscall.EISDIR || errno == syscall.ELOOP):
		return nil, syscall.EEXIST
	}
	return n, errno
}

// add gives a new node its name.
func (m *Model) add(path string, n *node) syscall.Errno {
	d, name, errno := m.parentOf(path)
	switch {
	case errno != 0:
		return errno
	case d.children[name] != nil:
		return syscall.EEXIST
	}
	n.parent, n.name = d, name
	d.children[name] = n
	return 0
}

// drop takes a node off its name. A directory stays that is empty then.
func (n *node) drop() {
	if n.parent == nil {
		return
	}
	delete(n.parent.children, n.name)
	if len(n.parent.children) == 0 {
		n.parent.marked = true
	}
	n.parent.unsure = true
	n.parent = nil
}

// path returns where a node is, and whether it still is anywhere.
func (m *Model) path(n *node) (string, bool) {
	var parts []string
	for ; n != m.root; n = n.parent {
		if n.parent == nil {
			return "", false
		}
		parts = append(parts, n.name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/"), true
}

// within reports whether n is d or lies below it.
func within(n, d *node) bool {
	for ; n != nil; n = n.parent {
		if n == d {
			return true
		}
	}
	return false
}

func (n *node) put(off int64, b []byte) {
	if len(b) == 0 {
		return // writing nothing changes nothing, not even the size
	}
	n.resize(max(off+int64(len(b)), int64(len(n.content))))
	copy(n.content[off:], b)
	n.time = 0
}

func (n *node) resize(size int64) {
	if int64(len(n.content)) < size {
		n.content = append(n.content, make([]byte, size-int64(len(n.content)))...)
	}
	n.content = n.content[:size:size]
	n.time = 0
}

// Apply makes an operation. It reports false when the operation is left out.
func (m *Model) Apply(o Op) (Result, bool) {
	switch o.Do {
	case WriteHandle, TruncateHandle, ReadHandle, SyncHandle, CloseHandle:
		if m.handles[o.Handle] == nil {
			return Result{}, false
		}
	case ForeignPut, ForeignDelete:
		done := m.foreign(o)
		if done && o.Exclusive {
			m.handles = [Handles]*node{}
		}
		return Result{}, done
	}
	return m.local(o), true
}

func (m *Model) local(o Op) Result {
	var n *node
	var errno syscall.Errno
	switch o.Do {
	case Create:
		if n, errno = m.createFile(o.Path, o.Mode, o.Exclusive); errno == 0 {
			n.resize(0)
			n.put(0, o.bytes())
		}
	case Write:
		if n, errno = m.openFile(o.Path); errno == 0 {
			n.put(o.Off, o.bytes())
		}
	case Append:
		if n, errno = m.openFile(o.Path); errno == 0 {
			n.put(int64(len(n.content)), o.bytes())
		}
	case Truncate:
		if n, errno = m.follow(o.Path); errno == 0 && n.kind == dir {
			errno = syscall.EISDIR
		} else if errno == 0 {
			n.resize(o.Size)
		}
	case Read:
		if n, errno = m.openFile(o.Path); errno == 0 {
			return Result{Text: digest(n.content)}
		}
	case Rename:
		errno = m.rename(o.Path, o.To, o.Exclusive)
	case Mkdir:
		errno = m.add(o.Path, newDir(o.Mode&^m.umask, true))
	case Rmdir:
		errno = m.rmdir(o.Path)
	case Unlink:
		if n, errno = m.find(o.Path); errno == 0 && n.kind == dir {
			errno = syscall.EISDIR
		} else if errno == 0 {
			n.drop()
		}
	case Symlink:
		errno = m.add(o.Path, &node{kind: link, mode: 0o777, target: o.To})
	case Chmod:
		if n, errno = m.follow(o.Path); errno == 0 {
			n.mode = o.Mode
			n.marked = true
		}
	case Utimes:
		if n, errno = m.follow(o.Path); errno == 0 {
			n.time = o.Time
			n.marked = true
		}
	case Stat:
		if n, errno = m.find(o.Path); errno == 0 {
			return Result{Attr: n.attr()}
		}
	case Readdir:
		if n, errno = m.follow(o.Path); errno == 0 && n.kind != dir {
			errno = syscall.ENOTDIR
		} else if errno == 0 {
			return Result{Text: strings.Join(n.names(), "\n")}
		}
	default:
		return m.handle(o)
	}
	return failed(errno)
}

func (m *Model) handle(o Op) Result {
	n := m.handles[o.Handle]
	switch o.Do {
	case Open:
		m.handles[o.Handle] = nil
		n, errno := m.openFile(o.Path)
		if o.Mode != 0 {
			n, errno = m.createFile(o.Path, o.Mode, false)
		}
		if errno != 0 {
			return failed(errno)
		}
		m.handles[o.Handle] = n
	case WriteHandle:
		n.put(o.Off, o.bytes())
	case TruncateHandle:
		n.resize(o.Size)
	case ReadHandle:
		return Result{Text: digest(n.content)}
	case CloseHandle:
		m.handles[o.Handle] = nil
	case Remount:
		m.handles = [Handles]*node{}
	}
	return Result{}
}

func (m *Model) rmdir(path string) syscall.Errno {
	n, errno := m.find(path)
	switch {
	case errno != 0:
		return errno
	case n.kind != dir:
		return syscall.ENOTDIR
	case len(n.children) > 0:
		return syscall.ENOTEMPTY
	}
	n.drop()
	return 0
}

// rename is renameat2(2), with the errors in the order of Linux.
func (m *Model) rename(from, to string, noReplace bool) syscall.Errno {
	fromDir, fromName, errno := m.parentOf(from)
	if errno != 0 {
		return errno
	}
	toDir, toName, errno := m.parentOf(to)
	if errno != 0 {
		return errno
	}
	n, target := fromDir.children[fromName], toDir.children[toName]
	switch {
	case n == nil:
		return syscall.ENOENT
	case target != nil && noReplace:
		return syscall.EEXIST
	case within(toDir, n):
		return syscall.EINVAL
	case target != nil && within(fromDir, target):
		return syscall.ENOTEMPTY
	case n == target:
		return 0
	case target == nil:
	case n.kind == dir && target.kind != dir:
		return syscall.ENOTDIR
	case n.kind != dir && target.kind == dir:
		return syscall.EISDIR
	case len(target.children) > 0:
		return syscall.ENOTEMPTY
	}
	if target != nil {
		target.parent = nil
		n.unsure = true // the target's own blob may stay
	}
	n.drop()
	n.parent, n.name = toDir, toName
	toDir.children[toName] = n
	return 0
}

// foreign does what another host does. It reports false when that would not leave a tree, or when this host has something
// open there, so that the service may not have what is seen here.
func (m *Model) foreign(o Op) bool {
	names := strings.Split(o.Path, "/")
	if top := m.root.children[names[0]]; top != nil && !o.Exclusive && slices.ContainsFunc(m.handles[:], func(n *node) bool { return within(n, top) }) {
		return false
	}
	if o.Do == ForeignDelete {
		return m.foreignDelete(o.Path)
	}
	for i := range names {
		n, errno := m.find(strings.Join(names[:i+1], "/"))
		if last := i == len(names)-1; errno == 0 && (n.kind == dir) == last {
			return false // there would be a blob beside blobs below it
		}
	}
	at := m.root
	for i, name := range names {
		c := at.children[name]
		if i == len(names)-1 {
			c = &node{kind: file, mode: foreignFile, content: o.bytes()}
		} else if c == nil {
			c = newDir(foreignDir, false)
		}
		c.parent, c.name = at, name
		at.children[name] = c
		at = c
	}
	return true
}

func (m *Model) foreignDelete(path string) bool {
	n, errno := m.find(path)
	if errno != 0 || n.kind == dir {
		return false
	}
	gone := []*node{n} // n and the directories that nothing implies any more
	for d := n.parent; d != m.root && len(d.children) == 1 && !d.marked; d = d.parent {
		if d.unsure {
			return false
		}
		gone = append(gone, d)
	}
	for _, n := range gone {
		delete(n.parent.children, n.name)
		n.parent = nil
	}
	return true
}

// Attr is what lstat shows, and readlink.
type Attr struct {
	Kind   string // "directory", "file" or "link"
	Mode   uint32 // permission bits; 0 for a link
	Size   int64  // of a file
	Time   int64  // of a file, seconds since 1970; in a model 0 when it is not known
	Target string // of a link
}

func (a Attr) String() string {
	switch a.Kind {
	case "directory":
		return fmt.Sprintf("directory %#o", a.Mode)
	case "link":
		return fmt.Sprintf("link to %q", a.Target)
	}
	text := fmt.Sprintf("file %#o of %d bytes", a.Mode, a.Size)
	if a.Time != 0 {
		text += fmt.Sprintf(", changed at %d", a.Time)
	}
	return text
}

// allows reports whether a file system may show b where a model has a.
func (a Attr) allows(b Attr) bool {
	if a.Time == 0 {
		b.Time = 0
	}
	return a == b
}

func (n *node) attr() Attr {
	switch n.kind {
	case dir:
		return Attr{Kind: "directory", Mode: n.mode}
	case link:
		return Attr{Kind: "link", Target: n.target}
	}
	return Attr{Kind: "file", Mode: n.mode, Size: int64(len(n.content)), Time: n.time}
}

// names returns the names in a directory in order.
func (n *node) names() []string { return slices.Sorted(maps.Keys(n.children)) }

// digest says what content is.
func digest(b []byte) string {
	return fmt.Sprintf("%d bytes, checksum %08x", len(b), crc32.ChecksumIEEE(b))
}
