package blobcache

import (
	"hash/crc32"
	"time"

	"golang.org/x/sys/unix"
)

// Whole gives use all bytes of a file that the disk has whole, if it is small and nothing in it was changed, and reports
// whether it did. The bytes were compared with their checksum just now, and are lent for the call only. It opens no
// version, which saves eight system calls and the version; so it is for a file that nobody reads yet.
func (f *File) Whole(use func([]byte)) bool {
	f.mu.RLock()
	size := f.size
	idle := f.base == nil && f.stage == nil && f.limit == size && !f.dirty()
	url, etag := f.cont.URL(f.under.name), f.under.etag
	f.mu.RUnlock()
	if !idle || size == 0 || size > min(f.c.small, WholeMax) {
		return false
	}
	slabs := f.c.budget.try(size)
	if slabs == nil {
		return false
	}
	defer f.c.budget.put(slabs)
	buf := slabs[0].mem[:size]
	if !f.c.readWhole(keyOf(url, etag), buf) {
		return false
	}
	use(buf)
	return true
}

// WholeMax is the size in bytes up to which a file is small to File.Whole. It is read whole for its checksum in any case;
// larger ones the kernel reads by itself, if it may.
const WholeMax = 256 << 10

// readWhole fills buf with the complete version of a blob of this size, and reports whether it is there and good. What is
// wrong with it is found again, and dealt with, by who reads the version. No lock is needed: should somebody take the file
// for a staging file meanwhile, the checksum is not that of the bytes.
func (c *Cache) readWhole(k key, buf []byte) bool {
	fd, err := openFd(k.path(c.dir)+extBlob, unix.O_RDONLY|unix.O_NOATIME) // touchFd notes the use, less often
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Size != int64(len(buf)) {
		return false
	}
	sum, err := readSum(fd, k, st.Size)
	if err != nil {
		return false
	}
	n, err := unix.Pread(fd, buf, 0)
	if err != nil || n < len(buf) || crc32.Checksum(buf, castagnoli) != sum {
		return false
	}
	if now := c.now(); now.Sub(time.Unix(st.Atim.Unix())) >= touchEvery {
		touchFd(fd, now)
	}
	return true
}
