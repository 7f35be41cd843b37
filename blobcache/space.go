package blobcache

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// space accounts for the disk space of the cache directory. The counter is a mapped file, so that all processes
// that use the directory see one number, and it survives a crash of any of them. It is not taken on trust: see
// measure.go. All methods may be called in parallel.
type space struct {
	usage
	dir   string
	limit int64 // bytes
	// reserveFree is how much of the file system is left to others.
	reserveFree int64
	log         *slog.Logger

	// evict makes room for n bytes and returns how many it has freed. measure returns what the files take that were made
	// before a time, and false if it was interrupted.
	evict   func(n int64) int64
	measure func(before time.Time) (int64, bool)

	mu       sync.Mutex // guards what is below, and makes eviction one at a time
	grant    int64      // bytes that may still be written before the file system is asked again
	complain bool       // whether the log has been told that the cache is full
	counted  time.Time  // when the disk was measured last
	trust    int64      // bytes that may still be evicted before the disk is measured

	taken    atomic.Int64 // since over has asked the file system
	wasShort atomic.Bool  // what it said
	gained   atomic.Int64 // reserved and taken since trust was reckoned
	low      atomic.Bool  // more was released than was counted

	coming atomic.Int64 // reserved in this process, and perhaps not on disk yet
}

func openSpace(dir string, limit int64, log *slog.Logger) (*space, error) {
	s := &space{dir: dir, limit: limit, log: log, complain: true}
	s.trust = s.tenth()
	// 1 % of the disk, at most 1 GiB and at least 64 MiB, stay free: a full disk hurts everybody on the machine.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, err
	}
	s.reserveFree = min(1<<30, max(64<<20, int64(st.Blocks)*st.Bsize/100))
	return s, s.usage.open(dir)
}

// inUse returns the bytes in use by versions and staging.
func (s *space) inUse() int64 { return atomic.LoadInt64(s.used) }

// reserve takes n bytes for cached data, evicting if need be. It reports whether they are to be had.
func (s *space) reserve(n int64) bool {
	n = roundBlock(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse() < 0 || s.low.Load() {
		s.audit()
	}
	for {
		excess := s.inUse() + n - s.limit
		if excess <= 0 && s.diskHas(n) {
			break
		}
		if !s.makeRoom(excess, n) {
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
	s.gained.Add(n)
	atomic.AddInt64(s.used, n)
	return true
}

// arrived tells that n bytes of a reserve are on disk, or were released. Each reserve that succeeded is followed by it.
func (s *space) arrived(n int64) { s.coming.Add(-roundBlock(n)) }

// makeRoom evicts n bytes and a little more, for the counter is excess bytes too high, or for the disk is short if excess
// is not positive. It reports whether there is hope: then the caller looks again. s.mu is held.
func (s *space) makeRoom(excess, n int64) bool {
	if excess <= 0 {
		return s.evict(n) > 0
	}
	if !s.trusted(excess) {
		switch s.count() {
		case busy:
			return false
		case corrected:
			return true
		}
	}
	freed := s.evict(n)
	s.trust -= freed
	return freed > 0 || s.audit()
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
	s.gained.Add(n)
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
	for excess := s.inUse() - s.limit; excess > 0 && s.makeRoom(excess, excess); excess = s.inUse() - s.limit {
	}
	for s.short() && s.evict(shortDisk) > 0 {
	}
}

// release gives bytes back. The counter never falls below zero: what a power cut left uncounted may be evicted.
func (s *space) release(n int64) {
	n = roundBlock(n)
	atomic.AddInt64(s.freed, n)
	for {
		old := atomic.LoadInt64(s.used)
		if atomic.CompareAndSwapInt64(s.used, old, max(0, old-n)) {
			if old < n-s.limit/100 {
				s.low.Store(true)
			}
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

// diskUse returns how many bytes an open file takes on the disk, and whether that is known. While the kernel writes a file
// back, ext4 counts blocks for some microseconds neither as promised nor as taken (ext4_da_update_reserve_space in
// fs/ext4/inode.c): one look in 2,000 saw less than there was. So it looks three times.
func diskUse(file *os.File) (bytes int64, ok bool) {
	for range 3 {
		var st unix.Stat_t
		if unix.Fstat(int(file.Fd()), &st) == nil {
			bytes, ok = max(bytes, st.Blocks*512), true
		}
		runtime.Gosched()
	}
	return bytes, ok
}
