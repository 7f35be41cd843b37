package fs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blobmount/blobcache"
)

// fileSystem translates the kernel's messages. Methods find the node, delegate to view, and fill in the answer.
type fileSystem struct {
	fuse.RawFileSystem // ENOSYS for what is not below: the kernel then does it itself, or not at all
	*view
	handles     handles
	passthrough passthrough
	opener      opener
	readers     readers
	prefetch    *prefetcher
	wanted      wanted
	pages       pages // nil: nothing is given to the kernel that it does not ask for
	openMode    OpenMode
	readOnly    bool
	about       Status
	credential  func() Credential // nil when there is nothing to say
}

var _ fuse.RawFileSystem = (*fileSystem)(nil)

func (fs *fileSystem) String() string { return "blobmount" }

// status turns an error into the answer. It is the one place where failures of operations are logged.
func (fs *fileSystem) status(op string, n *node, name string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	no := errno(err)
	path, _ := fs.nodes.path(n)
	if name != "" {
		path += "/" + name
	}
	if expected(no) || err == syscall.EPERM { // as it is: what a container cannot do, and no answer of the service
		fs.log.Debug("operation failed", "op", op, "path", path, "errno", no.Error(), "error", err)
	} else {
		fs.log.Warn("operation failed", "op", op, "path", path, "errno", no.Error(), "error", err)
	}
	return fuse.Status(no)
}

func callerOf(h *fuse.InHeader) caller { return caller{h.Uid, h.Gid} }

func (fs *fileSystem) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	dir := fs.nodes.get(h.NodeId)
	n, valid, err := fs.lookup(ctx, dir, name, true)
	if errno(err) == syscall.ENOENT && valid > 0 {
		out.NodeId = 0 // a negative entry: the kernel need not ask again until then
		out.SetEntryTimeout(valid)
		return fuse.OK
	}
	if err != nil {
		return fs.status("lookup", dir, name, err)
	}
	if n.kind != kindDir {
		dir.looked.Add(1)
		fs.wanted.looked(dir)
	}
	fs.entryOut(n, valid, out)
	return fuse.OK
}

func (fs *fileSystem) Forget(id, count uint64) {
	if n := fs.nodes.forget(id, count); n != nil {
		fs.readers.drop(n)
		fs.wanted.forget(n)
	}
}

func (fs *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := fs.nodes.get(in.NodeId)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	valid, err := fs.revalidate(ctx, n)
	if err != nil {
		return fs.status("getattr", n, "", err)
	}
	fs.attr(n, &out.Attr)
	out.SetTimeout(valid)
	return fuse.OK
}

func (fs *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := fs.nodes.get(in.NodeId)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	end, err := fs.changingNode(ctx, n)
	if err != nil {
		return fs.status("setattr", n, "", err)
	}
	defer end()
	if size, ok := in.GetSize(); ok {
		if fh, ok := in.GetFh(); ok && fs.handles.get(fh) != nil {
			err = fs.truncate(ctx, n, fs.handles.get(fh).file, int64(size))
		} else {
			err = fs.resize(ctx, n, int64(size))
		}
		if err != nil {
			return fs.status("truncate", n, "", err)
		}
	}
	if err := fs.setAttributes(ctx, n, in); err != nil {
		return fs.status("setattr", n, "", err)
	}
	fs.attr(n, &out.Attr)
	out.SetTimeout(fs.validFor())
	return fuse.OK
}

// validFor returns for how long what was just learned may be used.
func (fs *fileSystem) validFor() time.Duration {
	if fs.timeout < 0 {
		return blobcache.Forever
	}
	return fs.timeout
}

// made answers for something new.
func (fs *fileSystem) made(op string, dir, n *node, name string, err error, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return fs.status(op, dir, name, err)
	}
	fs.entryOut(n, fs.validFor(), out)
	return fuse.OK
}

func (fs *fileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir := fs.nodes.get(in.NodeId)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	end, err := fs.changing(ctx, dir, name)
	if err != nil {
		return fs.status("mknod", dir, name, err)
	}
	defer end()
	n, err := fs.mknod(ctx, dir, name, in.Mode, callerOf(&in.InHeader))
	return fs.made("mknod", dir, n, name, err, out)
}

func (fs *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir := fs.nodes.get(in.NodeId)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	end, err := fs.changing(ctx, dir, name)
	if err != nil {
		return fs.status("mkdir", dir, name, err)
	}
	defer end()
	n, err := fs.mkdir(ctx, dir, name, in.Mode, callerOf(&in.InHeader))
	return fs.made("mkdir", dir, n, name, err, out)
}

func (fs *fileSystem) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir := fs.nodes.get(h.NodeId)
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	end, err := fs.changing(ctx, dir, name)
	if err != nil {
		return fs.status("symlink", dir, name, err)
	}
	defer end()
	n, err := fs.symlink(ctx, dir, name, target, callerOf(h))
	return fs.made("symlink", dir, n, name, err, out)
}

func (fs *fileSystem) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := fs.nodes.get(h.NodeId)
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	target, err := fs.readlink(ctx, n)
	return target, fs.status("readlink", n, "", err)
}

// Link refuses hard links: a blob has one name.
func (fs *fileSystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (fs *fileSystem) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	dir := fs.nodes.get(h.NodeId)
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	end, err := fs.changing(ctx, dir, name)
	if err != nil {
		return fs.status("unlink", dir, name, err)
	}
	defer end()
	return fs.status("unlink", dir, name, fs.unlink(ctx, dir, name))
}

func (fs *fileSystem) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	dir := fs.nodes.get(h.NodeId)
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	end, err := fs.changing(ctx, dir, name)
	if err != nil {
		return fs.status("rmdir", dir, name, err)
	}
	defer end()
	return fs.status("rmdir", dir, name, fs.rmdir(ctx, dir, name))
}

// RENAME_NOREPLACE, the one flag of renameat2(2) that a container can honour.
const renameNoReplace = 1

func (fs *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, to := fs.nodes.get(in.NodeId), fs.nodes.get(in.Newdir)
	if in.Flags&^renameNoReplace != 0 {
		return fuse.EINVAL
	}
	// Not to be interrupted: the copies of a directory would be left half-way.
	err := fs.rename(context.Background(), end{dir: from, name: oldName}, end{dir: to, name: newName},
		in.Flags&renameNoReplace != 0)
	return fs.status("rename", from, oldName, err)
}

func (fs *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := fs.nodes.get(in.NodeId)
	access := in.Flags & syscall.O_ACCMODE
	truncate := in.Flags&syscall.O_TRUNC != 0
	write := access != syscall.O_RDONLY || truncate // O_TRUNC goes with O_RDONLY too, and is committed by the close
	if write && fs.readOnly {
		return fuse.EROFS
	}
	if fs.silent(n) {
		return fuse.ENOSYS // the kernel does not ask again
	}
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	mappable := access == syscall.O_RDWR
	if mappable { // before it is truncated
		var err error
		if out.OpenFlags, err = fs.passthrough.mappable(ctx, n); err != nil {
			return fs.status("open", n, "", err)
		}
	}
	f, err := fs.openChanging(ctx, n, write, truncate)
	if err != nil {
		if mappable {
			fs.passthrough.leave(n)
		}
		return fs.status("open", n, "", err)
	}
	if !mappable {
		out.OpenFlags, out.BackingID = fs.passthrough.enter(n, f, access)
	}
	out.Fh = fs.handles.add(newHandle(n, f, write, out))
	if !write {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH // nothing to commit
	}
	fs.prefetch.opened(n, !write && fs.give(n, f))
	return fuse.OK
}

// openChanging is view.open, and keeps a rename of a directory above away from one that may change the file.
func (fs *fileSystem) openChanging(ctx context.Context, n *node, write, truncate bool) (*blobcache.File, error) {
	if write {
		end, err := fs.changingNode(ctx, n)
		if err != nil {
			return nil, err
		}
		defer end()
	}
	return fs.open(ctx, n, write, truncate)
}

func (fs *fileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir := fs.nodes.get(in.NodeId)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	end, err := fs.changing(ctx, dir, name)
	if err != nil {
		return fs.status("create", dir, name, err)
	}
	defer end()
	n, f, err := fs.createFile(ctx, dir, name, in.Mode, in.Flags&syscall.O_EXCL != 0, callerOf(&in.InHeader))
	if err != nil {
		return fs.status("create", dir, name, err)
	}
	fs.entryOut(n, fs.validFor(), &out.EntryOut)
	out.OpenFlags, out.BackingID = fs.passthrough.enter(n, f, in.Flags&syscall.O_ACCMODE)
	out.Fh = fs.handles.add(newHandle(n, f, true, &out.OpenOut))
	return fuse.OK
}

// lent is a ReadResult whose bytes the cache lends until the kernel has them.
type lent struct{ blobcache.Data }

func (l *lent) Size() int                          { return l.Len() }
func (l *lent) Done()                              { l.Data.Done() }
func (l *lent) Slices() ([][]byte, fuse.Status)    { return l.Data.Bytes, fuse.OK }
func (l *lent) Bytes([]byte) ([]byte, fuse.Status) { return nil, fuse.EIO }

func (fs *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := fs.handles.get(in.Fh)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	buf = buf[:min(len(buf), int(in.Size))]
	if h == nil {
		return fs.readSilent(ctx, in, buf)
	}
	d, err := h.file.Read(ctx, buf, int64(in.Offset))
	if err != nil {
		return nil, fs.status("read", h.node, "", err)
	}
	return &lent{d}, fuse.OK
}

func (fs *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := fs.handles.get(in.Fh)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := fs.killPrivileges(context.Background(), h.node, h.file); err != nil {
			return 0, fs.status("write", h.node, "", err)
		}
	}
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	if err := fs.writeHandle(ctx, h, in, data); err != nil {
		return 0, fs.status("write", h.node, "", err)
	}
	return uint32(len(data)), fuse.OK
}

// Flush is close(2): what was written is in the service afterwards. It cannot be interrupted, since a process that is
// being killed closes its files too; the bound of the service's retries is its bound.
func (fs *fileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.ENOSYS // silent opens: no close has anything to say
	}
	if !h.write {
		return fuse.OK
	}
	return fs.status("close", h.node, "", h.file.Flush(context.Background()))
}

func (fs *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	return fs.status("fsync", h.node, "", h.file.Sync(ctx))
}

// Release is the last close of a handle. Nobody waits for its answer; what a mapping wrote after the close is committed
// here, unless another handle may just be in the middle of writing.
func (fs *fileSystem) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	h := fs.handles.remove(in.Fh)
	if h.write {
		fs.status("release", h.node, "", h.file.FlushLast(context.Background()))
	}
	fs.passthrough.leave(h.node)
	fs.release(h.node, h.file, h.write)
}

func (fs *fileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	return fs.status("fallocate", h.node, "", fs.allocate(ctx, h.node, h.file, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others by itself.
func (fs *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil || h.file == nil {
		return fuse.ENOSYS // opens without messages: the kernel takes all for data
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, ok := h.file.Data(int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if !ok {
		return fuse.Status(syscall.ENXIO)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// CopyFileRange lets the service copy. EOPNOTSUPP makes the kernel read and write instead.
func (fs *fileSystem) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := fs.handles.get(in.FhIn), fs.handles.get(in.FhOut)
	if from == nil || to == nil || !to.write || in.Flags != 0 {
		return 0, fuse.Status(syscall.EOPNOTSUPP)
	}
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	n, err := fs.copyRange(ctx, from, to, int64(in.OffIn), int64(in.OffOut), int64(min(in.Len, largestCopy)))
	if err != nil {
		return 0, fs.status("copy_file_range", to.node, "", err)
	}
	if n == 0 {
		return 0, fuse.Status(syscall.EOPNOTSUPP)
	}
	return uint32(n), fuse.OK
}

func (fs *fileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := fs.nodes.get(in.NodeId)
	fs.nodes.hold(n)
	h := &handle{node: n}
	if fs.timeout != 0 {
		// The kernel keeps what it is shown, and needs no message to show it again while it is the same.
		out.OpenFlags = fs.openCached(cancel, in.Pid, h)
	}
	out.Fh = fs.handles.add(h)
	return fuse.OK
}

// openCached opens a directory whose names the kernel may keep, and returns how it is to use its cache.
func (fs *fileSystem) openCached(cancel <-chan struct{}, pid uint32, h *handle) (flags uint32) {
	var r *blobcache.Reader
	var now blobcache.Stamp
	if path, linked := fs.nodes.path(h.node); linked && h.node.mayKeep(fs.names.Stamp(path)) {
		ctx := newRequest(cancel, pid)
		defer ctx.end()
		var err error
		if r, err = fs.names.Open(ctx, path); err == nil {
			now = r.Stamp()
		}
	}
	flags, h.tag = h.node.openDirCache(now)
	h.keeps = flags&fuse.FOPEN_CACHE_DIR != 0
	if h.keeps && flags&fuse.FOPEN_KEEP_CACHE != 0 {
		h.reader = r // it may begin in the middle, when the kernel has dropped a part of what it kept
	}
	return flags
}

func (fs *fileSystem) ReleaseDir(in *fuse.ReleaseIn) {
	h := fs.handles.remove(in.Fh)
	if h.keeps {
		h.node.closeDirCache()
	}
	fs.nodes.drop(h.node)
}

// FsyncDir has nothing to do: names are in the service before their operation returns.
func (fs *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (fs *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(cancel, in, func(d fuse.DirEntry, _ *node, _ string) bool { return out.AddDirEntry(d) })
}

func (fs *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	part := fs.beginPart(fs.handles.get(in.Fh), in.Offset, int(in.Size))
	return fs.readDir(cancel, in, func(d fuse.DirEntry, dir *node, path string) bool {
		eo := out.AddDirLookupEntry(d)
		if eo == nil {
			return false
		}
		part.add(d.Name)
		if dir == nil || !part.any() {
			return true
		}
		// The names may have changed since the directory was listed: what is true now counts. An entry without
		// attributes makes the kernel look it up if it needs to.
		e, valid, ok := fs.names.Known(path)
		if !ok || !part.shows(&e) || fs.moves.leaves(path) {
			return true
		}
		if n := fs.nodes.bind(dir, d.Name, e, true, false); n != nil {
			fs.entryOut(n, valid, eo)
		}
		return true
	})
}

// readDir walks the entries from the offset of the request. add gets each, with its directory and path if it has a node of its
// own, until it has no more room.
func (fs *fileSystem) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(d fuse.DirEntry, dir *node, path string) bool) fuse.Status {
	h := fs.handles.get(in.Fh)
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	prefix, _ := fs.nodes.path(h.node)
	if prefix != "" {
		prefix += "/"
	}
	err := h.read(ctx, fs.view, in.Offset, func(e blobcache.Named, next uint64) bool {
		if e.Name == "." || e.Name == ".." {
			return add(fuse.DirEntry{Name: e.Name, Mode: syscall.S_IFDIR, Ino: h.node.ino, Off: next}, nil, "")
		}
		path := prefix + e.Name
		a := fs.defaults.attributesOf(kindOf(e.Entry), &e.Properties)
		d := fuse.DirEntry{Name: e.Name, Mode: a.typ, Ino: fs.nodes.inode(h.node, e.Name, path), Off: next}
		return add(d, h.node, path)
	})
	return fs.status("readdir", h.node, "", err)
}

// sized answers a request for something whose length the caller may want to know first.
func sized(value string, dest []byte) (uint32, fuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (fs *fileSystem) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n := fs.nodes.get(h.NodeId)
	if n == fs.nodes.root && name == StatusAttr {
		return fs.getStatus(h, dest)
	}
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	value, err := fs.xattr(ctx, n, name)
	if err != nil {
		return 0, fs.status("getxattr", n, "", err)
	}
	return sized(value, dest)
}

func (fs *fileSystem) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	return sized(fs.xattrs(fs.nodes.get(h.NodeId)), dest)
}

func (fs *fileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	n := fs.nodes.get(in.NodeId)
	if fs.readOnly {
		return fuse.EROFS
	}
	ctx := newRequest(cancel, in.Pid)
	defer ctx.end()
	end, err := fs.changingNode(ctx, n)
	if err != nil {
		return fs.status("setxattr", n, "", err)
	}
	defer end()
	return fs.status("setxattr", n, "", fs.setXattr(ctx, n, name, string(data), in.Flags))
}

func (fs *fileSystem) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	n := fs.nodes.get(h.NodeId)
	if fs.readOnly {
		return fuse.EROFS
	}
	ctx := newRequest(cancel, h.Pid)
	defer ctx.end()
	end, err := fs.changingNode(ctx, n)
	if err != nil {
		return fs.status("removexattr", n, "", err)
	}
	defer end()
	return fs.status("removexattr", n, "", fs.removeXattr(ctx, n, name))
}

func (fs *fileSystem) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	fs.statfs(out)
	return fuse.OK
}

// Access is not asked: the mount has default_permissions.
func (fs *fileSystem) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return fuse.ENOSYS
}

// revalidate makes sure that the attributes of a node are not older than the blob-cache timeout, and returns for how
// long they may be used. A node that is open or has lost its name stays what it is.
func (fs *fileSystem) revalidate(ctx context.Context, n *node) (time.Duration, error) {
	if n == fs.nodes.root || n.opened() != nil {
		return fs.validFor(), nil
	}
	if n.overtaken.Load() {
		return 0, syscall.ESTALE
	}
	var p string
	var linked bool
	err := fs.moves.settled(ctx, func() string {
		p, linked = fs.nodes.path(n)
		return p
	})
	if err != nil {
		return 0, err
	}
	if p, linked = fs.nodes.path(n); !linked {
		return fs.validFor(), nil
	}
	e, valid, err := fs.names.Lookup(ctx, p)
	if err != nil {
		return 0, err
	}
	if !fs.isSame(n, e) {
		// Another version has the name: this inode is gone, the next lookup gives the new one.
		return 0, syscall.ESTALE
	}
	fs.nodes.mu.Lock()
	n.refresh(e)
	fs.nodes.mu.Unlock()
	return valid, nil
}
