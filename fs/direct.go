package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// What is written through a handle that can only write (O_WRONLY) goes past the kernel's pages: FOPEN_DIRECT_IO. It costs
// one copy and a page for each 4 KiB less, so that a stream of large writes is 1.6 times as fast, and takes half as much
// of the page cache: the staging file is there too. Such a handle cannot be read or mapped, so it misses nothing.
//
// Others may have pages of the file. The kernel drops those of a range before the range is written; not all kernels do it
// once more behind it (fuse_direct_io in fs/fuse/file.c, since Linux 6.19), and who reads the range meanwhile brings the
// old bytes back. So we drop them before the write is answered. This waits for reads of the range that are under way,
// which are answered without a lock that a write holds.

// cachedFlags returns the flags of a handle that goes through the cache. n.mu is held.
func (n *node) cachedFlags(access uint32) uint32 {
	// A node is a version: the pages that the kernel has of it are right.
	const flags = fuse.FOPEN_KEEP_CACHE
	switch {
	case access == syscall.O_RDWR:
		n.mappable, n.paged = true, true
	case access == syscall.O_RDONLY:
		n.paged = true
	case !n.mappable: // else the kernel could meet a page that a mapping has changed and that it cannot drop: the write fails
		return flags | fuse.FOPEN_DIRECT_IO
	}
	return flags
}

// writeHandle is a write through a handle.
func (fs *fileSystem) writeHandle(ctx context.Context, h *handle, in *fuse.WriteIn, data []byte) error {
	off := int64(in.Offset)
	if !h.direct {
		err := fs.write(ctx, h.node, h.file, data, off)
		if in.WriteFlags&fuse.WRITE_CACHE != 0 {
			h.node.stored.Add(1)
		}
		return err
	}
	if err := fs.writeDirect(ctx, h, in, data); err != nil {
		return err
	}
	// The kernel sends no FSYNC after a direct write (fuse_direct_write_iter in fs/fuse/file.c). The flags have what the file
	// was opened with, and what goes for this write or for the mount.
	if in.Flags&syscall.O_DSYNC != 0 {
		return h.file.Sync(ctx)
	}
	return nil
}

// mostRewrites bounds how often a direct write is repeated because a mapping changes the same pages all the time.
const mostRewrites = 1000

// errRewritten is for a direct write that a mapping undid again and again.
var errRewritten = fmt.Errorf("%w: a mapping of the file changes the same pages all the time", syscall.EBUSY)

// writeDirect puts data where the kernel says, or at the end of the file. A page that somebody has changed in a mapping
// meanwhile, and that has the old bytes of this range, may be written back between the write and the end of dropping it:
// so the write is repeated until no page was written back beside it.
func (fs *fileSystem) writeDirect(ctx context.Context, h *handle, in *fuse.WriteIn, data []byte) error {
	n, off, end := h.node, int64(in.Offset), int64(in.Offset)+int64(len(data))
	appends := in.Flags&syscall.O_APPEND != 0
	for range mostRewrites {
		stored := n.stored.Load()
		var err error
		if appends {
			// Where the kernel takes the end to be need not be the end: it holds no lock of the file while an open truncates it.
			off, err = fs.append(ctx, n, h.file, data)
			end, appends = max(end, off+int64(len(data))), false
		} else {
			err = fs.write(ctx, n, h.file, data, off)
		}
		if h.paged {
			// Also if it failed: a part may be in the file.
			err = errors.Join(err, fs.dropPages(n, min(off, int64(in.Offset)), end, off != int64(in.Offset)))
		}
		if err != nil || n.stored.Load() == stored {
			return err
		}
	}
	return errRewritten
}

// dropPages drops the pages of a range that was written past them, if there may be any, or always: then the kernel has a
// wrong size, which it forgets too.
func (fs *fileSystem) dropPages(n *node, off, end int64, always bool) error {
	n.mu.Lock()
	paged := n.paged || always
	n.mu.Unlock()
	if !paged || fs.pages == nil {
		return nil
	}
	if s := fs.pages.InodeNotify(n.id, off, end-off); s != fuse.OK && s != fuse.ENOENT {
		return fmt.Errorf("%w: the kernel does not drop its pages of what was written: %v", syscall.EIO, s)
	}
	return nil
}
