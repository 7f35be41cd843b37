package blobcache

import (
	"cmp"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The counter of the space in use is eight bytes that several processes share, and that a loss of power or a bad bit may
// change: one that is too high would evict everything, one that is too low lets the cache grow without bound. So the disk
// is measured, and the counter corrected in either direction,
//
//   - when the directory is opened and the counter is impossible, or the machine was started since it was measured last: in
//     the background, since a million files take some seconds;
//   - before more is evicted than a tenth of the limit beyond what this process has added;
//   - at most once a minute when there is nothing to evict though the counter says that the cache is full, and when it
//     has fallen below zero.

// recountEvery bounds how often the disk is measured for the last of these reasons.
const recountEvery = time.Minute

// minTrust is what may be evicted without measuring however small the limit is, so that a small cache does not measure for
// every slab.
const minTrust = 4 * largeSlab

// tenth is how many bytes may be evicted on the counter's word alone.
func (s *space) tenth() int64 { return max(s.limit/10, minTrust) }

// trusted reports whether excess bytes may be evicted before the disk is measured. What this process has added to the cache
// has to go sooner or later, so it is no reason for doubt; but a process that has filled a large cache has not earned the
// right to empty it. s.mu is held.
func (s *space) trusted(excess int64) bool {
	s.trust = max(s.trust, min(s.trust+s.gained.Swap(0), s.tenth()))
	return excess <= s.trust
}

// verdict is what measuring the disk has said of the counter.
type verdict int

const (
	busy      verdict = iota // nothing: somebody else measures, or this was interrupted
	confirmed                // it is right
	corrected                // it was wrong
)

// audit measures the disk if that was not done for a minute, and reports whether the counter was wrong. s.mu is held.
func (s *space) audit() bool {
	return time.Since(s.counted) >= recountEvery && s.count() == corrected
}

// count is recount, and notes that it was done. s.mu is held.
func (s *space) count() verdict {
	v := s.recount()
	s.noteCounted(v)
	return v
}

func (s *space) noteCounted(v verdict) {
	if v == busy {
		return
	}
	s.counted = time.Now()
	s.low.Store(false)
	s.trust = max(0, s.inUse()-s.limit) + s.tenth() // that much has to go if the limit was made smaller
	s.gained.Store(0)
}

// countInBackground is count for who does not hold s.mu: nobody has to wait for it.
func (s *space) countInBackground() {
	v := s.recount()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteCounted(v)
}

// recount measures the disk, and corrects the counter if it is wrong by 1 % of the limit. Others go on meanwhile, also in
// other processes: what they add is counted by them, and its files are too young to be measured. What they remove may have
// been measured before or not, so no correction is made that is not larger than that. Only one process measures at a time,
// else both would make the same correction.
func (s *space) recount() verdict {
	lock, err := os.Open(s.path)
	if err != nil {
		return busy
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return busy
	}
	now, err := nextStamp(lock)
	if err != nil {
		return busy
	}
	freed := s.everFreed()
	coming := s.coming.Load()
	before := s.inUse() - coming
	bytes, ok := s.measure(now)
	if !ok {
		return busy
	}
	s.noteBoot()
	// What was on its way at the start, or came into files that were there, may have been measured: it is counted by now. So
	// only what is beyond that was missing. What is released just now counts for both.
	most := s.inUse()
	freed = s.everFreed() - freed
	most += freed
	switch bound := s.limit / 100; {
	case before-bytes > bound+freed:
		s.correct(bytes - before)
	case bytes-most > bound:
		s.correct(bytes - most)
	default:
		return confirmed
	}
	s.log.Info("cached data was counted anew", "bytes", bytes, "before", before)
	return corrected
}

// nextStamp returns a time such that files which are there were stamped before by their file system, and those that are
// made from now on are not. It changes the times of f for that, until they go on: every 1 to 10 ms, or at once since Linux
// 6.13. The clocks that programs can read are not the one of the stamps.
func nextStamp(f *os.File) (time.Time, error) {
	stamp := func() (time.Time, error) {
		now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
		var st unix.Stat_t
		err := cmp.Or(unix.UtimesNanoAt(unix.AT_FDCWD, f.Name(), now, 0), unix.Fstat(int(f.Fd()), &st))
		return time.Unix(st.Ctim.Unix()), err
	}
	was, err := stamp()
	for err == nil {
		var now time.Time
		if now, err = stamp(); now.After(was) {
			return now, nil
		}
		time.Sleep(100 * time.Microsecond)
	}
	return was, err
}

// implausible reports whether the counter cannot be right: it is negative, or more than is in use of the file system.
func (s *space) implausible() bool {
	used := s.inUse()
	var st unix.Statfs_t
	return used < 0 || unix.Statfs(s.dir, &st) == nil && used > int64(st.Blocks-st.Bfree)*st.Bsize
}

// measure returns the bytes that cached and staged files take on disk, of all processes, but for those that were made at a
// time or later. It returns false when the cache was closed meanwhile.
func (c *Cache) measure(before time.Time) (int64, bool) {
	versions, ok := c.measureDir(filepath.Join(c.dir, "v1"), before)
	if !ok {
		return 0, false
	}
	staged, ok := c.measureDir(c.staging, before)
	return versions + staged, ok
}

// measureDir leaves out what it cannot read.
func (c *Cache) measureDir(path string, before time.Time) (bytes int64, ok bool) {
	d, err := os.Open(path)
	if err != nil {
		return 0, true
	}
	defer d.Close()
	for err == nil {
		if c.ctx.Err() != nil {
			return 0, false
		}
		var entries []os.DirEntry
		entries, err = d.ReadDir(1024) // a directory of a cache of ten million files has 2,500
		for _, e := range entries {
			if e.IsDir() {
				n, ok := c.measureDir(filepath.Join(path, e.Name()), before)
				if !ok {
					return 0, false
				}
				bytes += n
				continue
			}
			var st unix.Statx_t
			if unix.Statx(int(d.Fd()), e.Name(), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BLOCKS|unix.STATX_BTIME, &st) != nil {
				continue
			}
			if st.Mask&unix.STATX_BTIME == 0 || time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).Before(before) {
				bytes += int64(st.Blocks) * 512
			}
		}
	}
	return bytes, true
}
