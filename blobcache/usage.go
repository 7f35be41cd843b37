package blobcache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The file "usage", which all processes that use the directory have mapped. Numbers are of the machine:
//
//	0   8   bytes in use by versions and staging files
//	8   8   bytes that were ever given back; only its growth means something
//	16  48  the boot id under which the disk was measured last, filled up with zeros
//
// The page is written to the disk when the kernel likes: after a loss of power it says what was true some time before.
const (
	usageFile = "usage"
	usageBoot = 16
	usageSize = 64
)

// usage is that file, mapped.
type usage struct {
	path  string
	used  *int64 // shared with other processes, atomic
	freed *int64 // the same
	mem   []byte

	booting sync.Mutex // guards the boot id, as far as this process goes
}

// open maps the file in a cache directory, and makes it if need be.
func (u *usage) open(dir string) error {
	u.path = filepath.Join(dir, usageFile)
	f, err := os.OpenFile(u.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != usageSize {
		if err := f.Truncate(usageSize); err != nil {
			return err
		}
	}
	u.mem, err = unix.Mmap(int(f.Fd()), 0, usageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", f.Name(), err)
	}
	u.used, u.freed = (*int64)(unsafe.Pointer(&u.mem[0])), (*int64)(unsafe.Pointer(&u.mem[8]))
	if st.Size() == 0 && isEmpty(filepath.Join(dir, "v1")) && isEmpty(filepath.Join(dir, stagingDir)) {
		u.noteBoot() // there is nothing to measure
	}
	return nil
}

// close unmaps the counter. A Cache that was in use does not: whoever releases a File after Close still counts, and one
// page is less than a fault.
func (u *usage) close() { _ = unix.Munmap(u.mem) }

// everFreed returns the bytes that were ever given back, by all processes.
func (u *usage) everFreed() int64 { return atomic.LoadInt64(u.freed) }

// correct adds n to what is counted.
func (u *usage) correct(n int64) {
	for {
		old := atomic.LoadInt64(u.used)
		if atomic.CompareAndSwapInt64(u.used, old, max(0, old+n)) {
			return
		}
	}
}

// noteBoot notes that the counter was measured since the machine was started.
func (u *usage) noteBoot() {
	u.booting.Lock()
	defer u.booting.Unlock()
	clear(u.mem[usageBoot:])
	copy(u.mem[usageBoot:], bootID())
}

// restarted reports whether the machine was started since the counter was measured: a loss of power may have undone its
// last changes.
func (u *usage) restarted() bool {
	u.booting.Lock()
	defer u.booting.Unlock()
	var now [usageSize - usageBoot]byte
	copy(now[:], bootID())
	return string(now[:]) != string(u.mem[usageBoot:])
}

// isEmpty reports whether a directory has no entries, or is not there.
func isEmpty(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	return err == io.EOF
}
