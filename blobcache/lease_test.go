package blobcache

import (
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// TestLease: a second writer fails when it opens the file, and gets it when the first is done.
func TestLease(t *testing.T) {
	s := newService()
	_, _ = s.put(t, "a", 100, 1)
	cfg := config(t.TempDir())
	cfg.Leases = true
	c := openCache(t, cfg)
	f := c.OpenFile(s, s.properties(t, "a"), noHooks)
	f.Acquire(true)
	if err := f.Lease(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Lease(t.Context()); err != nil {
		t.Errorf("a second handle of the same file: %v", err)
	}
	// Another mount is another Container.
	cfg.Dir = t.TempDir()
	other := openCache(t, cfg)
	elsewhere := blobtest.NewContainer(s.store, "https://account.example/container")
	g := other.OpenFile(elsewhere, s.properties(t, "a"), noHooks)
	g.Acquire(true)
	if err := g.Lease(t.Context()); !blob.Is(err, blob.Leased) {
		t.Fatalf("the lease of a file that is leased: %v", err)
	}
	want := put(t, f, content(2, 300*kib), 0)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Release(true)
	c.background.Wait()
	if err := g.Lease(t.Context()); err != nil {
		t.Fatalf("the lease of a file that was closed: %v", err)
	}
	same(t, s.content(t, "a"), want)
	g.Release(true)
	other.background.Wait()
	if n := s.Count("ReleaseLease"); n != 1 {
		t.Errorf("the first writer has given its lease back %d times", n)
	}
}
