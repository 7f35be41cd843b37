package blobcache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

const kib, mib = 1 << 10, 1 << 20

// service is a container in memory that records its calls and fails on request. A call that fails is recorded too.
type service struct {
	*blobtest.Trace
	store  *blobtest.Store
	faults *blobtest.Faults
}

func newService() *service { return newServiceOf(blobtest.StoreOptions{}) }

func newServiceOf(o blobtest.StoreOptions) *service {
	store := blobtest.NewStore(o)
	faults := blobtest.NewFaults(blobtest.NewContainer(store, "https://account.example/container"))
	return &service{blobtest.NewTrace(faults), store, faults}
}

// put makes a blob of bytes that depend on the seed and the offset, and returns its properties and the bytes.
func (s *service) put(t testing.TB, name string, size int64, seed uint64) (blob.Properties, []byte) {
	t.Helper()
	b := content(seed, size)
	if _, err := s.store.Put(name, bytes.Clone(b), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	return s.properties(t, name), b
}

func (s *service) properties(t testing.TB, name string) blob.Properties {
	t.Helper()
	p, err := s.store.Properties(name, blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// content returns what the service holds under a name; nil when there is nothing.
func (s *service) content(t testing.TB, name string) []byte {
	t.Helper()
	_, r, err := s.store.Get(name, 0, -1, blob.Condition{})
	if blob.Is(err, blob.NotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func content(seed uint64, size int64) []byte {
	b := make([]byte, size)
	blobtest.Random(seed)(b, 0)
	return b
}

// config is a cache of small blocks, so that small files use block lists.
func config(dir string) Config {
	return Config{Dir: dir, Size: 1 << 30, Memory: 64 * mib, BlockSize: 64 * kib, Log: slog.New(slog.DiscardHandler)}
}

func openCache(t testing.TB, cfg Config) *Cache {
	t.Helper()
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeCache(t, c) })
	return c
}

// closeCache closes a cache whose dirty files do not matter.
func closeCache(t testing.TB, c *Cache) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Close(ctx); err != nil && !errors.Is(err, context.Canceled) && !blob.Is(err, blob.ConditionNotMet) {
		t.Error(err)
	}
}

// shut closes a cache and expects everything to be saved.
func shut(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// noHooks are the hooks of a file whose owner adds nothing.
var noHooks = Hooks{Committed: func(blob.Properties, bool) {}}

// openBlob opens a blob for reading until the test ends.
func openBlob(t testing.TB, c *Cache, cont blob.Container, p blob.Properties) *File {
	t.Helper()
	f := c.OpenFile(cont, p, noHooks)
	f.Acquire(false)
	t.Cleanup(func() { f.Release(false) })
	return f
}

// read returns the bytes of one read.
func read(ctx context.Context, f *File, off, n int64) ([]byte, error) {
	d, err := f.Read(ctx, make([]byte, n), off)
	if err != nil {
		return nil, err
	}
	defer d.Done()
	return bytes.Join(d.Bytes, nil), nil
}

// expect reads a range and compares it.
func expect(t testing.TB, f *File, off int64, want []byte) {
	t.Helper()
	got, err := read(t.Context(), f, off, int64(len(want)))
	if err != nil {
		t.Fatalf("read %d+%d: %v", off, len(want), err)
	}
	same(t, got, want)
}

// expectAll reads the whole file by requests of 128 KiB, and one more at the end.
func expectAll(t testing.TB, f *File, want []byte) {
	t.Helper()
	size := int64(len(want))
	for off := int64(0); off < size; off += 128 * kib {
		expect(t, f, off, want[off:min(off+128*kib, size)])
	}
	if got, err := read(t.Context(), f, size, 1); err != nil || len(got) > 0 {
		t.Fatalf("read at the end: %d bytes, error %v", len(got), err)
	}
}

// same compares bytes and tells the first difference.
func same(t testing.TB, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Fatalf("%d bytes, want %d; first difference at %d", len(got), len(want), at)
}

// yield lets other goroutines run, in loops that wait for a count of calls.
func yield() { runtime.Gosched() }

// bring returns when all of a blob is on disk, for tests that look there: a read returns before that.
func bring(t testing.TB, c *Cache, cont blob.Container, p blob.Properties) {
	t.Helper()
	if err := c.Prefetch(t.Context(), cont, p); err != nil {
		t.Fatal(err)
	}
}

// setMetadata replaces the metadata of a File.
func setMetadata(ctx context.Context, f *File, metadata map[string]string) error {
	return f.ChangeMetadata(ctx, func(_ State, m map[string]string) (time.Time, error) {
		clear(m)
		maps.Copy(m, metadata)
		return time.Time{}, nil
	})
}
