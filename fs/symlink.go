package fs

import (
	"context"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache/blob"
)

// symlink makes a symbolic link: a blob whose content is the target, as blobfuse2 writes it.
func (v *view) symlink(ctx context.Context, dir *node, name, target string, who caller) (*node, error) {
	p, err := v.placeNew(dir, name)
	if err != nil {
		return nil, err
	}
	m := v.newMetadata(kindSymlink, 0, who)
	m[keySymlink] = "true"
	e, err := v.create(ctx, p, target, blob.WriteOptions{Metadata: m})
	if err != nil {
		return nil, err
	}
	return v.made(dir, name, p, e), nil
}

// maxTarget is PATH_MAX of Linux: a longer target could not be used.
const maxTarget = 4096

// readlink returns the target of a link.
func (v *view) readlink(ctx context.Context, n *node) ([]byte, error) {
	p := n.properties()
	if n.kind != kindSymlink || p.Size > maxTarget {
		return nil, syscall.EINVAL
	}
	if p.Size == 0 {
		return nil, nil
	}
	body, err := v.cont.ReadAt(ctx, p.Name, 0, p.Size, blob.Condition{IfMatch: p.ETag})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// mknod makes a regular file, a FIFO or a socket. The latter are names with a mode; who opens them talks through this
// kernel, not through the blob.
func (v *view) mknod(ctx context.Context, dir *node, name string, mode uint32, who caller) (*node, error) {
	k := kindSpecial
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG, 0:
		k = kindFile
	case syscall.S_IFIFO, syscall.S_IFSOCK:
	default:
		return nil, syscall.EPERM // device nodes
	}
	p, err := v.placeNew(dir, name)
	if err != nil {
		return nil, err
	}
	o := blob.WriteOptions{Metadata: v.newMetadata(k, mode, who)}
	if k == kindFile {
		o.Headers = v.newHeaders(p)
	}
	e, err := v.create(ctx, p, "", o)
	if err != nil {
		return nil, err
	}
	return v.made(dir, name, p, e), nil
}

// statfs never asks the service: health probes call it every minute, and a container has no size.
func (v *view) statfs(out *fuse.StatfsOut) {
	const blocks = 1 << 38 // of 4 KiB: 1 PiB
	*out = fuse.StatfsOut{
		Blocks: blocks, Bfree: blocks, Bavail: blocks, Files: 1 << 40, Ffree: 1 << 40,
		Bsize: 4096, Frsize: 4096, NameLen: 255,
	}
}
