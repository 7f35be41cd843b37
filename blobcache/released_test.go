package blobcache

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// Bytes that only the service has, in blocks that are not committed, and what makes it drop them.

// expectKept retries what is left of a file, and expects the service to have want.
func expectKept(t *testing.T, c *Cache, s *service, want []byte) {
	t.Helper()
	l := theLeft(t, c.dir)
	if l.State != LeftUnfinished {
		t.Fatalf("left: %+v", l)
	}
	if err := c.Retry(t.Context(), l.ID, s, noHooks); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	theNone(t, c.dir)
}

// TestRecoverName: of a new file that was closed empty and written to since, the next mount makes the name, but never at the
// price of bytes, nor of a file that was deleted.
func TestRecoverName(t *testing.T) {
	const size = 200 * kib
	for _, tc := range []struct {
		name  string
		after func(t *testing.T, c *Cache, f *File) // it was written to
		made  bool                                  // the name
		gone  bool                                  // nothing is kept
	}{
		{"blocks are also here", func(*testing.T, *Cache, *File) {}, true, false},
		{"blocks are only in the service", func(t *testing.T, _ *Cache, f *File) {
			if !f.releaseStaged(2) || f.stage.released.total() != 128*kib {
				t.Fatal("no blocks were given up")
			}
		}, false, false},
		{"deleted", func(t *testing.T, c *Cache, f *File) {
			if inService, err := f.Detach(t.Context()); err != nil || inService {
				t.Fatal(inService, err)
			}
			f.Gone()
			c.track(f, true) // for crash
		}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, cfg := newService(), writeBackConfig(t.TempDir())
			c := openCache(t, cfg)
			f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
			f.Acquire(true)
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := put(t, f, content(1, size), 0)
			c.background.Wait()
			if n := s.Count("StageBlock"); n != 3 {
				t.Fatalf("%d blocks were uploaded ahead", n)
			}
			tc.after(t, c, f)
			crash(c)
			for range 2 { // the second mount finds what the first has done
				c = openCache(t, cfg)
				recoverAll(t, c, s)
				if got := s.content(t, "a"); (got != nil) != tc.made || len(got) > 0 {
					t.Fatalf("the blob is there: %v, with %d bytes", got != nil, len(got))
				}
			}
			if tc.gone {
				if names, _ := os.ReadDir(filepath.Join(cfg.Dir, stagingDir)); len(names) > 0 {
					t.Errorf("staging files of a deleted file: %v", names)
				}
				return
			}
			expectKept(t, c, s, want)
		})
	}
}

// TestReleasedLost: where the service has dropped the only copy of some bytes, nobody gets zeros for them.
func TestReleasedLost(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f := create(t, c, s, "a", content(1, 200*kib))
	c.background.Wait()
	if !f.releaseStaged(1) {
		t.Fatal("no block was given up")
	}
	w, err := s.Upload(t.Context(), "a", bytes.NewReader(nil), 0, blob.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.isNew, f.props.ETag = false, w.ETag
	err = f.noteBase(false)
	f.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	crash(c)
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	l := theLeft(t, cfg.Dir)
	if l.State != LeftDamaged || l.Reason != lostReason(64*kib) {
		t.Fatalf("left: %+v", l)
	}
	if _, err := c.Save(t.Context(), l.ID, s, io.Discard); err == nil {
		t.Error("bytes that are lost were saved")
	}
	if err := c.Retry(t.Context(), l.ID, s, noHooks); err == nil {
		t.Error("bytes that are lost were sent")
	}
	same(t, s.content(t, "a"), []byte{})
}

// TestReleasedDuringMetadata: blocks that are given up while attributes of the blob are sent are not forgotten with the
// ETag that it had.
func TestReleasedDuringMetadata(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	p, _ := s.put(t, "a", 100, 1)
	c := openCache(t, cfg)
	f := c.OpenFile(s, p, noHooks)
	f.Acquire(true)
	gate := make(chan struct{})
	hits := s.faults.Add(blobtest.Fault{Op: "SetMetadata", Wait: gate})
	sent := make(chan error)
	go func() { sent <- setMetadata(t.Context(), f, map[string]string{"k": "v"}) }()
	for hits() == 0 {
		yield()
	}
	want := put(t, f, content(2, 200*kib), 0)
	c.background.Wait()
	if !f.releaseStaged(1) || f.stage.released.total() != 64*kib {
		t.Fatal("no block was given up")
	}
	close(gate)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	crash(c)
	if l := theLeft(t, cfg.Dir); l.Only != 64*kib {
		t.Fatalf("left: %+v", l)
	}
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	expectKept(t, c, s, want)
}
