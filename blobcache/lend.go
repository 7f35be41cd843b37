package blobcache

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lendMin is the size in bytes from which mapping a piece of the cache file for one answer is cheaper than copying it: a
// copy of 128 KiB takes 16 µs, the mapping and its end about 5.
const lendMin = 128 << 10

// lend maps [off, end) of a cache file for one answer, so that its bytes go from the page cache to the reader with one
// copy instead of two. It declines when not all of it is in the page cache: a page fault in the middle of the answer
// would wait for the disk page by page, where a pread reads ahead.
func lend(f *os.File, off, end int64) (Data, bool) {
	if end-off < lendMin {
		return Data{}, false
	}
	page := int64(os.Getpagesize())
	from := off &^ (page - 1)
	m, err := unix.Mmap(int(f.Fd()), from, int(end-from), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return Data{}, false
	}
	if !resident(m, page) {
		unmap(m)
		return Data{}, false
	}
	// One call for all pages, where the copy would fault on every sixteenth. Linux before 5.14 does not have it.
	_ = unix.Madvise(m, unix.MADV_POPULATE_READ)
	return Data{Bytes: [][]byte{m[off-from:]}, view: m}, true
}

// resident reports whether all pages of a mapping are in memory.
func resident(m []byte, page int64) bool {
	in := make([]byte, (int64(len(m))+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		return false
	}
	for _, b := range in {
		if b&1 == 0 {
			return false
		}
	}
	return true
}
