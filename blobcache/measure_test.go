package blobcache

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// A user who empties the cache by hand must not be left with a cache that believes it is full.
func TestRecountAfterFilesWereDeletedByHand(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(Config{Dir: dir, Size: 64 << 20, Memory: MinMemory, BlockSize: MinBlockSize, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	atomic.StoreInt64(c.space.used, 64<<20)
	if err := os.RemoveAll(filepath.Join(dir, "v1")); err != nil {
		t.Fatal(err)
	}
	if !c.space.reserve(1 << 20) {
		t.Fatal("no room in an empty cache")
	}
	if got := c.space.inUse(); got < 1<<20 || got > 2<<20 {
		t.Errorf("%d bytes in use, want about 1 MiB", got)
	}
	// Measuring takes time: it is not done for every write to a cache that really is full.
	atomic.StoreInt64(c.space.used, 64<<20)
	if c.space.reserve(1 << 20) {
		t.Error("measured twice within a minute")
	}
}

// TestRecount: when the cache is said to be full and has nothing to evict, the disk is measured. What is reserved but on
// its way is no mistake of the counter.
func TestRecount(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.Size = 4 * mib
	c := openCache(t, cfg)
	if !c.space.reserve(3 * mib) {
		t.Fatal("an empty cache has no room")
	}
	if c.space.reserve(2 * mib) {
		t.Error("there was room for 5 MiB of 4")
	}
	c.space.arrived(3 * mib)
	c.space.counted = time.Time{} // a minute later
	if !c.space.reserve(2 * mib) {
		t.Error("what somebody has deleted by hand is still counted")
	}
	if n := c.space.inUse(); n != 2*mib {
		t.Errorf("%d bytes are counted", n)
	}
}

// fill brings blobs of 100 KiB into a cache.
func fill(t *testing.T, c *Cache, s *service, prefix string, count int) {
	t.Helper()
	for i := range count {
		p, _ := s.put(t, fmt.Sprint(prefix, i), 100*kib, uint64(i))
		bring(t, c, s, p)
	}
}

// measured counts how often a cache measures the disk from now on.
func measured(c *Cache) *int {
	n := 0
	measure := c.space.measure
	c.space.measure = func(before time.Time) (int64, bool) { n++; return measure(before) }
	return &n
}

// TestUsageWrong: whatever becomes of the counter while the cache is in use, little is evicted for no reason, the bound
// holds, writers do not wait for room that there is, and the counter is right soon.
func TestUsageWrong(t *testing.T) {
	for _, tc := range []struct {
		name   string
		value  func(used int64) int64
		limit  int64
		fill   int // files of 100 KiB
		stay   int // as many of them stay at least
		writes bool
		drift  bool // it is only right when nothing is left to evict, or after a restart
	}{
		{name: "a high bit", value: func(n int64) int64 { return n | 1<<40 }, limit: 1 << 30, fill: 50, stay: 100},
		{name: "the highest bit but one", value: func(n int64) int64 { return n | 1<<62 }, limit: 1 << 30, fill: 50, stay: 100},
		{name: "a little too much", value: func(n int64) int64 { return n + 64*mib - 6*mib }, limit: 64 * mib, fill: 100, stay: 20, drift: true},
		{name: "the sign", value: func(n int64) int64 { return n | -1<<63 }, limit: 4 * mib, fill: 30},
		{name: "negative", value: func(n int64) int64 { return -n }, limit: 4 * mib, fill: 30},
		{name: "nothing", value: func(n int64) int64 { return 0 }, limit: 4 * mib, fill: 30},
		{name: "a high bit, writing", value: func(n int64) int64 { return n | 1<<40 }, limit: 1 << 30, fill: 50, stay: 50, writes: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, cfg := newService(), config(t.TempDir())
			cfg.Size = tc.limit
			c := openCache(t, cfg)
			fill(t, c, s, "a", tc.fill)
			before := len(versionFiles(t, c.dir, extBlob))
			right := c.space.inUse()
			atomic.StoreInt64(c.space.used, tc.value(right))
			if tc.writes {
				f := c.CreateFile(s, blob.Properties{Name: "new"}, noHooks)
				f.Acquire(true)
				put(t, f, content(1, 100), 0)
				if c.space.over() {
					t.Error("the next write has to wait")
				}
				if err := f.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.Release(true)
			} else {
				if c.space.inUse() < right {
					c.evict(1) // gives back what is not counted
				}
				fill(t, c, s, "b", tc.fill)
			}
			if n := len(versionFiles(t, c.dir, extBlob)); n < tc.stay {
				t.Errorf("%d of %d files are left, want %d", n, before, tc.stay)
			}
			if n, _ := onDisk(t, c.dir); n > cfg.Size+minTrust {
				t.Errorf("%d bytes on the disk, the limit is %d", n, cfg.Size)
			}
			if !tc.drift {
				checkUsage(t, c)
			}
		})
	}
}

// TestUsageWrongAtOpen: an impossible counter is corrected when the directory is opened, and so is any after the machine
// was started anew: a loss of power may have undone its last changes. Otherwise nothing is measured.
func TestUsageWrongAtOpen(t *testing.T) {
	boot := bootID
	t.Cleanup(func() { bootID = boot })
	for _, tc := range []struct {
		name      string
		value     func(used int64) int64
		restarted bool
		want      func(used int64) int64 // what is counted then
	}{
		{"right", same64, false, same64},
		{"a little more", add(20 * mib), false, add(20 * mib)},
		{"negative", func(int64) int64 { return -1 }, false, same64},
		{"more than the disk has", add(1 << 50), false, same64},
		{"restarted, right", same64, true, same64},
		{"restarted, a little more", add(20 * mib), true, same64},
		{"restarted, a little less", add(-4 * mib), true, same64},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bootID = boot
			s, cfg := newService(), config(t.TempDir())
			cfg.Size = 200 * mib
			c := openCache(t, cfg)
			fill(t, c, s, "a", 50)
			right := c.space.inUse()
			atomic.StoreInt64(c.space.used, tc.value(right))
			shut(t, c)
			if tc.restarted {
				bootID = func() string { return "the next start" }
			}
			c = openCache(t, cfg)
			c.background.Wait()
			if got, want := c.space.inUse(), tc.want(right); got < want-mib || got > want+mib {
				t.Errorf("%d bytes are counted, want %d", got, want)
			}
			shut(t, c)
			c = openCache(t, cfg)
			c.background.Wait()
			if !c.space.counted.IsZero() {
				t.Error("measured a second time since the start")
			}
		})
	}
}

func same64(n int64) int64 { return n }

func add(m int64) func(int64) int64 { return func(n int64) int64 { return n + m } }

// TestUsageLost: a directory whose usage file is gone is measured when it is opened.
func TestUsageLost(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	cfg.Size = 200 * mib
	c := openCache(t, cfg)
	fill(t, c, s, "a", 50)
	shut(t, c)
	toNothing(t, filepath.Join(cfg.Dir, usageFile))
	c = openCache(t, cfg)
	c.background.Wait()
	checkUsage(t, c)
}

// TestMeasureBeside: what other processes add while the disk is measured is counted once, before and behind the measuring
// one; and when they remove more than the counter seems wrong, it is left alone.
func TestMeasureBeside(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	cfg.Size = 100 * mib
	c, other := openCache(t, cfg), openCache(t, cfg)
	fill(t, c, s, "a", 20)
	atomic.AddInt64(c.space.used, 50*mib)
	measure := c.space.measure
	c.space.measure = func(before time.Time) (int64, bool) {
		fill(t, other, s, "before", 20)
		n, ok := measure(before)
		fill(t, other, s, "behind", 20)
		if v := other.space.recount(); v != busy {
			t.Errorf("another process measures too, and says %d", v)
		}
		return n, ok
	}
	if v := c.space.recount(); v != corrected {
		t.Fatalf("the verdict is %d", v)
	}
	checkUsage(t, c)
	c.space.measure = func(before time.Time) (int64, bool) {
		n, ok := measure(before)
		other.evict(1 << 40)
		return n - 3*mib, ok
	}
	if v := c.space.recount(); v != confirmed {
		t.Errorf("the verdict is %d", v)
	}
	checkUsage(t, c)
}

// TestMeasureSeldom: a cache that is full and goes on fetching, or is given a lower limit, does not measure the disk again
// and again.
func TestMeasureSeldom(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	cfg.Size = 15 * mib
	a, b := openCache(t, cfg), openCache(t, cfg)
	ofA := measured(a)
	fill(t, b, s, "b", 100)
	fill(t, a, s, "a", 250)
	if *ofA > 0 || a.evicted.Load() == 0 {
		t.Errorf("measured %d times, evicted %d", *ofA, a.evicted.Load())
	}
	shut(t, a)
	shut(t, b)
	cfg.Size = 5 * mib
	a = openCache(t, cfg)
	ofA = measured(a)
	fill(t, a, s, "c", 50)
	if *ofA > 1 {
		t.Errorf("measured %d times", *ofA)
	}
	if n, _ := onDisk(t, cfg.Dir); n > cfg.Size {
		t.Errorf("%d bytes on the disk, the limit is %d", n, cfg.Size)
	}
}

// TestMeasureInterrupted: a cache that is closed while it measures does not wait for the end, and changes nothing.
func TestMeasureInterrupted(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	c := openCache(t, cfg)
	fill(t, c, s, "a", 5)
	atomic.AddInt64(c.space.used, 1<<40)
	want := c.space.inUse()
	c.cancel()
	if v := c.space.recount(); v != busy || c.space.inUse() != want {
		t.Errorf("the verdict is %d, %d bytes are counted", v, c.space.inUse())
	}
}
