package blobcache

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// space accounts for the disk space of the cache directory. The counter is a mapped file, so that all processes
// that use the directory see one number, and it survives a crash of any of them. All methods may be called in
// parallel.
type space struct {
	dir   string
	limit int64 // bytes
	// reserveFree is how much of the file system is left to others.
	reserveFree int64
	log         *slog.Logger

	used *int64 // shared with other processes, atomic
	mem  []byte

	// evict makes room for n bytes and reports whether it found any. measure returns what the cached files take.
	evict   func(n int64) bool
	measure func() int64

	mu       sync.Mutex // guards what is below, and makes eviction one at a time
	grant    int64      // bytes that may still be written before the file system is asked again
	complain bool       // whether the log has been told that the cache is full
	counted  time.Time  // when recount has measured last

	taken    atomic.Int64 // since over has asked the file system
	wasShort atomic.Bool  // what it said

	coming atomic.Int64 // reserved in this process, and perhaps not on disk yet
}

func openSpace(dir string, limit int64, log *slog.Logger) (*space, error) {
	f, err := os.OpenFile(filepath.Join(dir, "usage"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	s := &space{dir: dir, limit: limit, log: log, mem: mem, used: (*int64)(unsafe.Pointer(&mem[0])), complain: true}
	// 1 % of the disk, at most 1 GiB and at least 64 MiB, stay free: a full disk hurts everybody on the machine.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, err
	}
	s.reserveFree = min(1<<30, max(64<<20, int64(st.Blocks)*st.Bsize/100))
	return s, nil
}

// close unmaps the counter. A Cache that was in use does not: whoever releases a File after Close still counts, and one
// page is less than a fault.
func (s *space) close() { _ = unix.Munmap(s.mem) }

// inUse returns the bytes in use by versions and staging.
func (s *space) inUse() int64 { return atomic.LoadInt64(s.used) }

// reserve takes n bytes for cached data, evicting if need be. It reports whether they are to be had.
func (s *space) reserve(n int64) bool {
	n = roundBlock(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.inUse()+n > s.limit || !s.diskHas(n) {
		if !s.evict(n) && !s.recount() {
			if s.complain {
				s.complain = false
				s.log.Warn("cache is full of files in use, reading goes on without caching",
					"bytes", s.inUse(), "limit", s.limit)
			}
			return false
		}
		s.grant = 0
	}
	s.complain = true
	s.grant -= n
	s.coming.Add(n)
	atomic.AddInt64(s.used, n)
	return true
}

// arrived tells that n bytes of a reserve are on disk, or were released. Each reserve that succeeded is followed by it.
func (s *space) arrived(n int64) { s.coming.Add(-roundBlock(n)) }

// recountEvery bounds how often the disk is measured: a million files take some seconds.
const recountEvery = time.Minute

// recount corrects the counter when there is nothing to evict though it says that the cache is full: somebody may have
// deleted files by hand, or a power cut have lost its last changes. It reports whether that made a difference of 1 % of
// the limit. s.mu is held.
func (s *space) recount() bool {
	if time.Since(s.counted) < recountEvery {
		return false
	}
	before := s.inUse() - s.coming.Load()
	wrong := before - s.measure() // what others change meanwhile stays in the counter
	s.counted = time.Now()
	if wrong < s.limit/100 {
		return false
	}
	s.log.Info("cached data was counted anew", "bytes", before-wrong, "before", before)
	s.release(wrong)
	return true
}

// diskHas reports whether the file system has n bytes beyond what is left to others. It is asked once for 64 MiB
// at most. s.mu is held.
func (s *space) diskHas(n int64) bool {
	if s.grant >= n {
		return true
	}
	var st unix.Statfs_t
	if unix.Statfs(s.dir, &st) != nil {
		return false
	}
	free := int64(st.Bavail)*st.Bsize - s.reserveFree
	if free < n {
		return false
	}
	s.grant = min(free, 64<<20)
	return s.grant >= n
}

// roundBlock rounds up to the block size of the usual file systems: that is what n bytes cost.
func roundBlock(n int64) int64 { return (n + 4095) &^ 4095 }

// take counts n bytes that are written whatever the bound: staged data must not be refused because of it.
func (s *space) take(n int64) {
	atomic.AddInt64(s.used, n)
	s.taken.Add(n)
}

// change counts n bytes that are on the disk beyond those that are counted; fewer if n is negative.
func (s *space) change(n int64) {
	if n > 0 {
		s.take(n)
	} else if n < 0 {
		s.release(-n)
	}
}

// shortDisk is how much free space, in bytes, lets writers slow down.
const shortDisk = 64 << 20

// over reports whether staged and cached data are more than the limit, or the disk is short. The file system is asked
// once for 4 MiB that are taken.
func (s *space) over() bool {
	if s.inUse() > s.limit {
		return true
	}
	if !s.wasShort.Load() && s.taken.Load() < shortDisk/16 {
		return false
	}
	s.taken.Store(0)
	s.wasShort.Store(s.short())
	return s.wasShort.Load()
}

func (s *space) short() bool {
	var st unix.Statfs_t
	return unix.Statfs(s.dir, &st) == nil && int64(st.Bavail)*st.Bsize < shortDisk
}

// settle evicts what take brought beyond the limit.
func (s *space) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.inUse() > s.limit && s.evict(s.inUse()-s.limit) {
	}
	for s.short() && s.evict(shortDisk) {
	}
}

// release gives bytes back. The counter never falls below zero: what a power cut left uncounted may be evicted.
func (s *space) release(n int64) {
	n = roundBlock(n)
	for {
		old := atomic.LoadInt64(s.used)
		if atomic.CompareAndSwapInt64(s.used, old, max(0, old-n)) {
			return
		}
	}
}

// checkDir makes dir if need be, and sees that nobody else can plant data in it.
func checkDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("cache directory %q: give an absolute path", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cache directory cannot be made: %w; name another with --cache-dir", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("cache directory %s is not a directory", dir)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("cache directory %s can be written by others (mode %04o): run chmod go-w on it, or name another with --cache-dir",
			dir, st.Mode().Perm())
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("cache directory %s cannot be written (%w): change its permissions, or name another with --cache-dir", dir, err)
	}
	return checkFormat(filepath.Join(dir, "format"))
}

const formatLine = "blobmount cache 1\n"

// checkFormat refuses a directory of another format, and leaves it alone.
func checkFormat(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := writeFormat(path); err != nil {
			return fmt.Errorf("cache directory cannot be written: %w; name another with --cache-dir", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if string(b) != formatLine {
		return fmt.Errorf("cache directory %s has the format %q, this version reads %q: name another with --cache-dir",
			filepath.Dir(path), b, formatLine)
	}
	return nil
}

// writeFormat writes the file so that it is there as a whole or not at all, also after a loss of power.
func writeFormat(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "format-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(formatLine)
	if err == nil {
		err = f.Sync()
	}
	if err := cmp.Or(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
