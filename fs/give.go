package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// A small file that is in the cache is given to the kernel when it is opened for the first time, or for the first time
// since somebody wrote to it: the bytes come as a notification, before the answer to the open, and no message asks for
// them. After a remount, an epoch over small files takes a quarter less time so.
//
// The notification waits for pages that are being read. Their reads are answered without a lock of this file, so that it
// cannot wait for ever. Bytes that are given must be what the file holds, so nobody may begin to change it meanwhile.

// pages is what go-fuse's Server offers.
type pages interface {
	InodeNotifyStoreCache(node uint64, off int64, data []byte) fuse.Status
	InodeNotify(node uint64, off, n int64) fuse.Status // drops pages, and what the kernel knows of the attributes
}

var _ pages = (*fuse.Server)(nil)

// give gives the content of a file to the kernel, once until it may have been changed. It reports whether the cache had it
// now; what it cannot give is read.
func (fs *fileSystem) give(n *node, f *blobcache.File) bool {
	if fs.pages == nil || !n.giving.TryLock() {
		return false // or somebody else is giving it
	}
	defer n.giving.Unlock()
	if n.given || n.writing > 0 {
		return false
	}
	n.given = true
	return f.Whole(func(b []byte) {
		if s := fs.pages.InodeNotifyStoreCache(n.id, 0, b); s != fuse.OK {
			fs.log.Debug("kernel does not take the content of a file, it reads it", "blob", f.Name(), "errno", s.String())
		}
	})
}

// beginWriting lets nothing be given until endWriting: somebody may change the content. It waits for what is being given.
func (n *node) beginWriting() {
	n.giving.Lock()
	n.writing++
	n.giving.Unlock()
}

// endWriting ends beginWriting. What was written may have gone past the kernel's pages, so that it lacks them.
func (n *node) endWriting() {
	n.giving.Lock()
	n.writing--
	n.given = false
	n.giving.Unlock()
}
