package blobcache

import (
	"context"
	"os"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// readGrain reads a byte of a grain without read-ahead, and returns when it is stored.
func readGrain(t *testing.T, v *version, i int) {
	t.Helper()
	if _, err := v.readSome(t.Context(), make([]byte, 1), int64(i)*grain); err != nil {
		t.Fatal(err)
	}
	for !v.stored(i) {
		yield()
	}
}

func openVersion(c *Cache, s *service, p blob.Properties) *version {
	return c.open(source{s, p.Name, p.ETag}, p.Size)
}

// isComplete reports whether a version is known to be complete.
func isComplete(v *version) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.files.complete
}

// TestSharedMap: of two processes that have begun to read a version, one completes it, and the other, which knows nothing
// of that, adds a grain. The version stays complete, the second one takes it over, and nothing is counted twice.
func TestSharedMap(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	p, want := s.put(t, "a", 8*mib+1, 1)
	a, b := openCache(t, cfg), openCache(t, cfg)
	va, vb := openVersion(a, s, p), openVersion(b, s, p)
	readGrain(t, va, 0)
	readGrain(t, vb, 1)
	if err := va.bring(t.Context()); err != nil {
		t.Fatal(err)
	}
	readGrain(t, vb, 70)
	if !isComplete(va) || !isComplete(vb) {
		t.Errorf("complete: %v for who has completed it, %v for the other", isComplete(va), isComplete(vb))
	}
	checkUsage(t, a)
	a.release(va)
	b.release(vb)
	s.Reset()
	for _, c := range []*Cache{b, openCache(t, cfg)} {
		expectAll(t, openBlob(t, c, s, p), want)
	}
	if n := s.Count("ReadAt"); n > 0 {
		t.Errorf("%d requests for what was complete", n)
	}
	checkUsage(t, a)
}

// TestSharedFill: what two processes fetch at the same time is stored and counted once.
func TestSharedFill(t *testing.T) {
	for _, size := range []int64{500*kib + 1, 4*mib + 1} {
		s, cfg := newService(), config(t.TempDir())
		p, want := s.put(t, "a", size, 1)
		a, b := openCache(t, cfg), openCache(t, cfg)
		gate := make(chan struct{})
		hits := s.faults.Add(blobtest.Fault{Op: "ReadAt", Wait: gate})
		done := make(chan error, 2)
		for _, c := range []*Cache{a, b} {
			go func() { done <- c.Prefetch(context.Background(), s, p) }()
		}
		for hits() < 2 {
			yield()
		}
		close(gate)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		checkUsage(t, a)
		only(t, cfg.Dir, extBlob)
		s.faults.Clear()
		s.Reset()
		expectAll(t, openBlob(t, openCache(t, cfg), s, p), want)
		if n := s.Count("ReadAt"); n > 0 {
			t.Errorf("%d bytes: %d requests for what was complete", size, n)
		}
	}
}

// TestSharedParts: two processes have each a part, which is all of it together. The next one takes it for complete.
func TestSharedParts(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	p, want := s.put(t, "a", 24*grain, 1)
	a, b := openCache(t, cfg), openCache(t, cfg)
	va, vb := openVersion(a, s, p), openVersion(b, s, p)
	for i := range 8 { // so that each has its own bytes of the bitmap
		readGrain(t, va, i)
		readGrain(t, vb, 16+i)
		readGrain(t, va, 8+i)
	}
	a.release(va)
	b.release(vb)
	s.Reset()
	c := openCache(t, cfg)
	expectAll(t, openBlob(t, c, s, p), want)
	if n := s.Count("ReadAt"); n > 0 || !c.Has(s, p) {
		t.Errorf("complete: %v, %d requests", c.Has(s, p), n)
	}
	checkUsage(t, c)
}

// TestSharedRemoved: another process has removed the files of a version, since they were damaged, and has begun new ones.
// Who still has the old ones adds nothing to the new map, and goes on with the new files.
func TestSharedRemoved(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	p, want := s.put(t, "a", 4*mib, 1)
	a, b := openCache(t, cfg), openCache(t, cfg)
	va, vb := openVersion(a, s, p), openVersion(b, s, p)
	readGrain(t, va, 0)
	readGrain(t, vb, 1)
	vb.mu.Lock()
	vb.forget()
	vb.mu.Unlock()
	readGrain(t, vb, 20)
	if _, err := va.readSome(t.Context(), make([]byte, 1), 40*grain); err != nil { // is not stored
		t.Fatal(err)
	}
	if err := va.bring(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.release(va)
	b.release(vb)
	checkUsage(t, a)
	s.Reset()
	c := openCache(t, cfg)
	expectAll(t, openBlob(t, c, s, p), want)
	if n := s.Count("ReadAt"); n > 0 {
		t.Errorf("%d requests for what was complete", n)
	}
}

// TestSharedLeftMap: the map of a version whose data was removed without it says nothing of new data.
func TestSharedLeftMap(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	p, want := s.put(t, "a", 4*mib, 1)
	cached(t, s, cfg, p, p.Size)
	toNothing(t, only(t, cfg.Dir, extBlob))
	c := openCache(t, cfg)
	v := openVersion(c, s, p)
	readGrain(t, v, 3)
	c.release(v)
	if got := c.Cached(s, p); got != grain {
		t.Errorf("%d bytes are said to be cached, want %d", got, grain)
	}
	expectAll(t, openBlob(t, c, s, p), want)
}

func toNothing(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
