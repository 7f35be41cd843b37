package blobcache

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
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
