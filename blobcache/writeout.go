package blobcache

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeOut begins to write a block of a staging file to the disk, and lets go of the pages that lie Config.Pages bytes before
// its end. It waits for nothing.
//
// Left to itself, the kernel collects what is written until dirty pages are a tenth of the memory, and soon after that makes
// writers wait for the disk; and a file that is larger than the memory pushes everything else out of it. What is on its way
// to the service will not change any more, so nothing is written twice. Pages that are not written yet stay.
//
// One block at a time: sync_file_range(2) waits when the disk has all that it can take. Where the disk is slower than the
// service, blocks that come meanwhile are left to the kernel, and no upload is held up.
func (c *Cache) writeOut(file *os.File, off, n int64) {
	if !c.writingOut.TryLock() {
		return
	}
	c.background.Go(func() {
		defer c.writingOut.Unlock()
		conn, err := file.SyscallConn()
		if err != nil {
			return // closed: the file is discarded, or has become a cached version
		}
		// An error is met again by who saves the file, or by nobody.
		_ = conn.Control(func(fd uintptr) {
			_ = unix.SyncFileRange(int(fd), off, n, unix.SYNC_FILE_RANGE_WRITE)
			// From the start: what was not written yet the last time, or lies in a folio with what was to stay, goes now.
			if far := off + n - c.pages; far > 0 {
				_ = unix.Fadvise(int(fd), 0, far, unix.FADV_DONTNEED)
			}
		})
	})
}
