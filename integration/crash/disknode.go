package crash

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or a directory of a Disk, as the kernel knows it.
type node struct {
	*fs.LoopbackNode
	disk *Disk
}

var (
	_ fs.NodeWrapChilder    = (*node)(nil)
	_ fs.NodeCreater        = (*node)(nil)
	_ fs.NodeMkdirer        = (*node)(nil)
	_ fs.NodeMknoder        = (*node)(nil)
	_ fs.NodeSymlinker      = (*node)(nil)
	_ fs.NodeLinker         = (*node)(nil)
	_ fs.NodeUnlinker       = (*node)(nil)
	_ fs.NodeRmdirer        = (*node)(nil)
	_ fs.NodeRenamer        = (*node)(nil)
	_ fs.NodeOpener         = (*node)(nil)
	_ fs.NodeOpendirHandler = (*node)(nil)
	_ fs.NodeFsyncer        = (*node)(nil)
)

// WrapChild makes the nodes of all children.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{ops.(*fs.LoopbackNode), n.disk}
}

// path returns the path of the node below the disk.
func (n *node) path() string {
	return filepath.Join(n.RootData.Path, n.Path(n.Root()))
}

// handle is an open file. The kernel reads and writes it by us: what goes past us could not be lost.
type handle struct {
	*fs.LoopbackFile
	f *os.File
}

var _ fs.FilePassthroughFder = (*handle)(nil)

func (h *handle) PassthroughFd() (int, bool) { return -1, false }

func newHandle(f *os.File) *handle { return &handle{fs.NewLoopbackFileFromOS(f), f} }

// openFlags are those of an open file below the disk: it can always be read, to see what an fsync keeps.
func openFlags(flags uint32) int {
	flags &^= syscall.O_APPEND | fuse.FMODE_EXEC
	if flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		flags = flags&^syscall.O_ACCMODE | syscall.O_RDWR
	}
	return int(flags)
}

func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fd, err := syscall.Open(n.path(), openFlags(flags), 0)
	if err != nil {
		return nil, 0, errno(err)
	}
	return newHandle(os.NewFile(uintptr(fd), n.path())), 0, 0
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	d := n.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(n.path(), name)
	known := d.objectAt(path) != nil
	fd, err := syscall.Open(path, openFlags(flags)|syscall.O_CREAT, mode)
	if err != nil {
		return nil, nil, 0, errno(err)
	}
	if !known {
		d.entered(n.path(), name)
	}
	inode, e := n.Lookup(ctx, name, out)
	f := os.NewFile(uintptr(fd), path)
	if e != 0 {
		_ = f.Close()
		return nil, nil, 0, e
	}
	return inode, newHandle(f), 0, 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	inode, e := n.LoopbackNode.Mkdir(ctx, name, mode, out)
	if e == 0 {
		n.disk.entered(n.path(), name)
	}
	return inode, e
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	inode, e := n.LoopbackNode.Link(ctx, target, name, out)
	if e == 0 {
		n.disk.entered(n.path(), name)
	}
	return inode, e
}

// Mknod is refused: nothing here would keep it.
func (n *node) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Symlink is refused: nothing here would keep it.
func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.remove(name, func() syscall.Errno { return n.LoopbackNode.Unlink(ctx, name) })
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.remove(name, func() syscall.Errno { return n.LoopbackNode.Rmdir(ctx, name) })
}

func (n *node) remove(name string, act func() syscall.Errno) syscall.Errno {
	d := n.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	undo, err := d.leave(filepath.Join(n.path(), name))
	if err != nil {
		return syscall.EIO
	}
	if e := act(); e != 0 {
		undo()
		return e
	}
	d.note(n.path(), change{set: map[string]*object{name: nil}})
	return 0
}

func (n *node) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	d := n.disk
	target, ok := newParent.(*node)
	if !ok || flags&^unix.RENAME_NOREPLACE != 0 {
		return syscall.EINVAL
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	from, to := n.path(), target.path()
	moved, undo := d.objectAt(filepath.Join(from, name)), func() {}
	if d.objectAt(filepath.Join(to, newName)) != moved {
		var err error
		if undo, err = d.leave(filepath.Join(to, newName)); err != nil {
			return syscall.EIO
		}
	}
	if e := n.LoopbackNode.Rename(ctx, name, target.LoopbackNode, newName, flags); e != 0 {
		undo()
		return e
	}
	if from == to {
		d.note(to, change{set: map[string]*object{name: nil, newName: moved}})
		return 0
	}
	source, dest := d.objectAt(from).dir, d.objectAt(to).dir
	source.changes = append(source.changes, change{set: map[string]*object{name: nil}, peer: dest, with: dest.next()})
	dest.changes = append(dest.changes, change{set: map[string]*object{newName: moved}, peer: source, with: source.next() - 1})
	return 0
}

// OpendirHandle opens a directory.
func (n *node) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	stream, e := fs.NewLoopbackDirStream(n.path())
	if e != 0 {
		return nil, 0, e
	}
	return &dirHandle{stream.(dirStream), n}, 0, 0
}

// dirStream is what go-fuse asks of an open directory, without fsync.
type dirStream interface {
	fs.FileReaddirenter
	fs.FileSeekdirer
	fs.FileReleasedirer
}

// dirHandle is an open directory.
type dirHandle struct {
	dirStream
	n *node
}

var _ fs.FileFsyncdirer = (*dirHandle)(nil)

// Fsyncdir keeps the names of the directory as they are.
func (h *dirHandle) Fsyncdir(context.Context, uint32) syscall.Errno {
	d := h.n.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.objectAt(h.n.path()); o != nil && o.dir != nil {
		o.dir.sync(len(o.dir.changes))
	}
	return 0
}

// Fsync keeps a file as it is. The kernel has sent what was mapped before it asks.
func (n *node) Fsync(_ context.Context, f fs.FileHandle, _ uint32) syscall.Errno {
	h, ok := f.(*handle)
	if !ok {
		return syscall.EINVAL
	}
	d := n.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(h.f.Fd()), &st); err != nil {
		return errno(err)
	}
	o := d.live[st.Ino]
	if o == nil || st.Nlink == 0 {
		return 0 // it has no name any more
	}
	s, err := takeSnapshot(fmt.Sprintf("/proc/self/fd/%d", h.f.Fd()))
	if err != nil {
		return syscall.EIO
	}
	o.synced = s
	return 0
}

// splitNames splits what listxattr(2) returns.
func splitNames(list []byte) []string {
	var names []string
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if len(name) > 0 {
			names = append(names, string(name))
		}
	}
	return names
}
