package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blobmount/blobcache"
)

// bareFS is the barest file system that FUSE allows: it shows a directory of plain files that are in memory, by the
// messages that blobmount exchanges with the kernel when everything is in its cache, and does nothing besides. What it
// cannot reach is the cost of the kernel, of go-fuse and of the machine.
type bareFS struct {
	fuse.RawFileSystem // ENOSYS for what is not below: nothing can be changed
	server             *fuse.Server
	nodes              []*bareNode // the place of the node with the number n is n-1; the root has the number 1
}

var _ fuse.RawFileSystem = (*bareFS)(nil)

// bareNode is a file or a directory.
type bareNode struct {
	attr    fuse.Attr // whose Ino is the node's number
	content []byte    // of a file
	entries []bareEntry
	byName  map[string]*bareNode

	lookups atomic.Int64 // that the kernel has not forgotten
	given   atomic.Bool  // the kernel was given the content
}

type bareEntry struct {
	name string
	node *bareNode
}

// bareValid is for how long the kernel may use what it is told: longer than any workload takes.
const bareValid = time.Hour

// newBareFS reads a directory into memory.
func newBareFS(dir string) (*bareFS, error) {
	b := &bareFS{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	_, err := b.add(dir)
	return b, err
}

// add makes the node of a path, and those of all that is below it.
func (b *bareFS) add(path string) (*bareNode, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	n := &bareNode{}
	b.nodes = append(b.nodes, n)
	n.attr = fuse.Attr{
		Ino: uint64(len(b.nodes)), Size: uint64(info.Size()), Blocks: uint64(info.Size()+511) / 512, Blksize: 128 << 10, // as blobmount
		Mode: syscall.S_IFREG | uint32(info.Mode().Perm()), Nlink: 1,
		Owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())},
	}
	modified := info.ModTime()
	n.attr.SetTimes(&modified, &modified, &modified)
	switch {
	case info.Mode().IsRegular():
		n.content, err = inMemory(path, info.Size())
		return n, err
	case !info.IsDir():
		return nil, &fs.PathError{Op: "serve", Path: path, Err: errors.New("neither a file nor a directory")}
	}
	n.attr.Mode, n.attr.Nlink = syscall.S_IFDIR|uint32(info.Mode().Perm()), 2
	names, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	n.entries = []bareEntry{{".", nil}, {"..", nil}}
	n.byName = make(map[string]*bareNode, len(names))
	for _, e := range names {
		c, err := b.add(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		n.entries = append(n.entries, bareEntry{e.Name(), c})
		n.byName[e.Name()] = c
	}
	return n, nil
}

// inMemory returns the content of a plain file. That of a large one is its pages in the page cache, which its reference
// reads too, so that it takes no memory of its own.
func inMemory(path string, size int64) ([]byte, error) {
	if size <= blobcache.WholeMax {
		return os.ReadFile(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	return content, nil
}

func (b *bareFS) String() string { return "bare" }

// Init is called before the first message.
func (b *bareFS) Init(s *fuse.Server) { b.server = s }

func (b *bareFS) node(id uint64) *bareNode { return b.nodes[id-1] }

// entry answers that a name stands for the node, which the kernel then knows once more.
func (n *bareNode) entry(out *fuse.EntryOut) {
	n.lookups.Add(1)
	out.NodeId, out.Generation, out.Attr = n.attr.Ino, 1, n.attr
	out.SetEntryTimeout(bareValid)
	out.SetAttrTimeout(bareValid)
}

func (b *bareFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n := b.node(h.NodeId).byName[name]
	if n == nil {
		return fuse.ENOENT
	}
	n.entry(out)
	return fuse.OK
}

// Forget lets the content be given again: the kernel drops the pages of what it forgets.
func (b *bareFS) Forget(id, count uint64) {
	if n := b.node(id); n.lookups.Add(-int64(count)) == 0 {
		n.given.Store(false)
	}
}

func (b *bareFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Attr = b.node(in.NodeId).attr
	out.SetTimeout(bareValid)
	return fuse.OK
}

// Open gives the content of a small file to the kernel when it is opened for the first time, as blobmount does. A kernel
// that does not take it would measure something else, so that is an error.
func (b *bareFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return fuse.EROFS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	n := b.node(in.NodeId)
	if size := len(n.content); size > 0 && size <= blobcache.WholeMax && n.given.CompareAndSwap(false, true) {
		return b.server.InodeNotifyStoreCache(in.NodeId, 0, n.content)
	}
	return fuse.OK
}

func (b *bareFS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	content := b.node(in.NodeId).content
	from := min(in.Offset, uint64(len(content)))
	to := min(from+uint64(in.Size), uint64(len(content)))
	return fuse.ReadResultVector([][]byte{content[from:to]}), fuse.OK
}

// OpenDir lets the kernel keep the names: they stay the same.
func (b *bareFS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// ReadDirPlus shows all names with attributes, as blobmount does those of files that are in its cache. Nobody asks for
// names alone: the kernel was not offered the choice.
func (b *bareFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := b.node(in.NodeId)
	for i := in.Offset; i < uint64(len(dir.entries)); i++ {
		e := dir.entries[i]
		if e.node == nil { // "." or "..", of which the kernel takes the names only
			if out.AddDirLookupEntry(fuse.DirEntry{Name: e.name, Mode: syscall.S_IFDIR, Ino: dir.attr.Ino, Off: i + 1}) == nil {
				break
			}
			continue
		}
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.name, Mode: e.node.attr.Mode, Ino: e.node.attr.Ino, Off: i + 1})
		if entry == nil {
			break
		}
		e.node.entry(entry)
	}
	return fuse.OK
}
