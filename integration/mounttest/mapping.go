package mounttest

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mapping is a shared mapping (mmap(2), MAP_SHARED) of a part of a file, whose bytes are touched only inside system
// calls. A thread of Go code that waits for a page cannot be stopped for a garbage collection, which then stops all
// others; if one of them is the file system or the service that the page comes from, nothing goes on, and not even a
// signal ends it. In a system call (process_vm_readv(2) on the own process) a thread may wait for as long as it likes.
// Calls may be made in parallel.
type Mapping struct{ memory []byte }

// Map maps size bytes from offset off of a file, a multiple of the page size. With write it can be written to, and the
// file must be open for reading and writing.
func Map(f *os.File, off int64, size int, write bool) (*Mapping, error) {
	protection := unix.PROT_READ
	if write {
		protection |= unix.PROT_WRITE
	}
	m, err := unix.Mmap(int(f.Fd()), off, size, protection, unix.MAP_SHARED)
	return &Mapping{m}, err
}

// Read copies len(b) bytes of the mapping from byte at on. What cannot be paged in is an error, not a signal.
func (m *Mapping) Read(b []byte, at int) error {
	return m.transfer("read", b, at, unix.ProcessVMReadv)
}

// Write copies b into the mapping from byte at on.
func (m *Mapping) Write(b []byte, at int) error {
	return m.transfer("write", b, at, unix.ProcessVMWritev)
}

func (m *Mapping) transfer(what string, b []byte, at int, call func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error)) error {
	if len(b) == 0 {
		return nil
	}
	part := m.memory[at : at+len(b)]
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := call(os.Getpid(), local, []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&part[0])), Len: len(part)}}, 0)
	if err == nil && n < len(b) {
		err = fmt.Errorf("only %d of %d bytes", n, len(b))
	}
	if err != nil {
		return fmt.Errorf("%s of a mapping at byte %d: %w", what, at, err)
	}
	return nil
}

// Sync is msync(2) with MS_SYNC.
func (m *Mapping) Sync() error { return unix.Msync(m.memory, unix.MS_SYNC) }

// Close unmaps it.
func (m *Mapping) Close() error { return unix.Munmap(m.memory) }
