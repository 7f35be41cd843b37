package blobcache

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// stored puts a blob of blocks into the service, with ids of a length, and returns its bytes.
func (s *service) stored(t *testing.T, name string, idLength int, sizes ...int64) []byte {
	t.Helper()
	direct := blobtest.NewContainer(s.store, "https://account.example/container") // its calls do not count
	var ids []string
	var all []byte
	for i, n := range sizes {
		id := fmt.Sprintf("%0*d", idLength, i)
		b := content(uint64(50+i), n)
		if err := direct.StageBlock(t.Context(), name, id, bytes.NewReader(b), n); err != nil {
			t.Fatal(err)
		}
		ids, all = append(ids, id), append(all, b...)
	}
	if _, err := direct.CommitBlockList(t.Context(), name, ids, blob.WriteOptions{Metadata: map[string]string{"foreign": "1"}}); err != nil {
		t.Fatal(err)
	}
	return all
}

func (s *service) counts(ops ...string) string {
	var b strings.Builder
	for _, op := range ops {
		if n := s.Count(op); n > 0 {
			fmt.Fprintf(&b, "%s %d ", op, n)
		}
	}
	return strings.TrimSpace(b.String())
}

// TestChangeInTheMiddle: blocks that nothing has changed are not uploaded, whoever made them.
func TestChangeInTheMiddle(t *testing.T) {
	for _, tc := range []struct {
		name  string
		id    int // length of the block ids; 0: one Put Blob
		sizes []int64
		at, n int64
		want  string
	}{
		{"one block", 24, []int64{200 * kib, 200 * kib, 100 * kib}, 250 * kib, 100, "StageBlock 1 CommitBlockList 1 BlockList 1"},
		{"two blocks", 64, []int64{200 * kib, 200 * kib, 100 * kib}, 200*kib - 1, 2, "StageBlock 2 CommitBlockList 1 BlockList 1"},
		{"uneven", 48, []int64{7, 300 * kib, 11, 100 * kib}, 8, 1, "StageBlock 1 CommitBlockList 1 BlockList 1"},
		{"append", 24, []int64{64 * kib, 64 * kib, 10}, 128*kib + 10, 100, "StageBlock 1 CommitBlockList 1 BlockList 1"},
		{"long append", 24, []int64{64 * kib, 64 * kib}, 128 * kib, 130 * kib, "StageBlock 3 CommitBlockList 1 BlockList 1"},
		{"put blob", 0, []int64{300 * kib}, 100 * kib, 10, "StageBlock 1 StageBlockFrom 4 CommitBlockList 1 BlockList 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			var want []byte
			if tc.id == 0 {
				_, want = s.put(t, "a", tc.sizes[0], 3)
			} else {
				want = s.stored(t, "a", tc.id, tc.sizes...)
			}
			c := openCache(t, config(t.TempDir()))
			f := c.OpenFile(s, s.properties(t, "a"), noHooks)
			f.Acquire(true)
			change := put(t, f, content(9, tc.n), tc.at)
			want = append(want[:min(tc.at, int64(len(want)))], append(bytes.Clone(change), want[min(tc.at+tc.n, int64(len(want))):]...)...)
			if err := f.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := s.counts("Upload", "StageBlock", "StageBlockFrom", "CommitBlockList", "BlockList"); got != tc.want {
				t.Errorf("requests: %s, want %s", got, tc.want)
			}
			same(t, s.content(t, "a"), want)
			expectAll(t, f, want)
			f.Release(true)
			expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
		})
	}
}

// TestManySyncs: a log that grows by little, synced each time, sends its last block each time, and keeps few blocks.
func TestManySyncs(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "log"}, noHooks)
	f.Acquire(true)
	var want []byte
	for i := range 100 {
		want = append(want, put(t, f, content(uint64(i), 3*kib), int64(len(want)))...)
		if err := f.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	same(t, s.content(t, "log"), want)
	list, err := s.BlockList(t.Context(), "log")
	if err != nil || len(list.Committed) != 5 {
		t.Errorf("%d blocks of 64 KiB for 300 KiB, error %v", len(list.Committed), err)
	}
	// Up to 64 KiB by Put Blob, then one block a sync, and one more where a block ends.
	if n := s.Count("Upload") + s.Count("StageBlock") + s.Count("StageBlockFrom"); n > 105 {
		t.Errorf("%d uploads for 100 syncs", n)
	}
	f.Release(true)
}

// TestCopyInService: a copy within the mount moves no bytes.
func TestCopyInService(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	p, want := s.put(t, "a", 300*kib, 4)
	src := openBlob(t, c, s, p)
	dst := c.CreateFile(s, blob.Properties{Name: "b", Metadata: map[string]string{"mode": "0600"}}, noHooks)
	dst.Acquire(true)
	var at int64
	for at < 300*kib { // as the kernel does: in pieces
		n, err := dst.CopyFrom(t.Context(), src, at, at, 130*kib)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		at += n
	}
	if err := dst.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.counts("Upload", "StageBlock", "StageBlockFrom", "CommitBlockList", "ReadAt", "Copy"); got != "Copy 1" {
		t.Errorf("requests: %s, want one Copy", got)
	}
	same(t, s.content(t, "b"), want)
	if m := s.properties(t, "b").Metadata["mode"]; m != "0600" {
		t.Errorf("metadata of the copy: mode %q", m)
	}
	// A change of the copy leaves the source alone, and reuses what the service has.
	copy(want[100*kib:], put(t, dst, content(5, 10), 100*kib))
	if err := dst.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.counts("Upload", "StageBlock", "StageBlockFrom"); got != "StageBlock 1 StageBlockFrom 4" {
		t.Errorf("requests for a change of the copy: %s", got)
	}
	same(t, s.content(t, "b"), want)
	expectAll(t, dst, want)
	dst.Release(true)
	expectAll(t, openBlob(t, c, s, s.properties(t, "b")), want)
}

// TestCopyChanged: a copy of a part, and a change before the copy is committed, take the source's bytes from the service.
func TestCopyChanged(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	p, want := s.put(t, "a", 300*kib, 4)
	src := openBlob(t, c, s, p)
	dst := c.CreateFile(s, blob.Properties{Name: "b"}, noHooks)
	dst.Acquire(true)
	if n, err := dst.CopyFrom(t.Context(), src, 0, 0, 200*kib); n != 200*kib || err != nil {
		t.Fatal(n, err)
	}
	want = want[:200*kib]
	expectAll(t, dst, want)
	copy(want[70*kib:], put(t, dst, content(5, 10), 70*kib))
	if n, err := dst.CopyFrom(t.Context(), src, 0, 1000, 10); n != 0 || err != nil {
		t.Fatalf("a copy to another place was taken: %d, %v", n, err)
	}
	if err := dst.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.counts("StageBlock", "StageBlockFrom"); got != "StageBlock 1 StageBlockFrom 3" {
		t.Errorf("requests: %s", got)
	}
	same(t, s.content(t, "b"), want)
	expectAll(t, dst, want)
	dst.Release(true)
}

// TestHoles: SEEK_DATA and SEEK_HOLE of a file that is being written.
func TestHoles(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	defer f.Release(true)
	put(t, f, content(1, 100), 1000)
	put(t, f, content(1, 100), 3000)
	if err := f.Truncate(t.Context(), 5000); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		off  int64
		hole bool
		want int64 // -1: none
	}{
		{0, false, 1000}, {1000, false, 1000}, {1099, false, 1099}, {1100, false, 3000}, {3100, false, -1}, {5000, false, -1},
		{0, true, 0}, {1000, true, 1100}, {3050, true, 3100}, {4999, true, 4999}, {5000, true, -1}, {-1, true, -1},
	} {
		got, ok := f.Data(tc.off, tc.hole)
		if !ok {
			got = -1
		}
		if got != tc.want {
			t.Errorf("from %d, hole %v: %d, want %d", tc.off, tc.hole, got, tc.want)
		}
	}
}

// TestAppendBlob: appends go by Append Block; other changes are refused, or convert the blob when that is wanted.
func TestAppendBlob(t *testing.T) {
	for _, convert := range []bool{false, true} {
		s := newService()
		cfg := config(t.TempDir())
		cfg.ConvertAppend = convert
		c := openCache(t, cfg)
		if _, err := s.Upload(t.Context(), "log", strings.NewReader(""), 0, blob.WriteOptions{Kind: blob.AppendBlob}); err != nil {
			t.Fatal(err)
		}
		f := c.OpenFile(s, s.properties(t, "log"), noHooks)
		f.Acquire(true)
		var want []byte
		for i := range 3 {
			want = append(want, put(t, f, content(uint64(i), 100*kib), int64(len(want)))...)
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "log"), want)
		}
		if p := s.properties(t, "log"); p.Kind != blob.AppendBlob {
			t.Errorf("the blob is of kind %d", p.Kind)
		}
		if convert {
			copy(want[5:], put(t, f, []byte("x"), 5))
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "log"), want)
			if p := s.properties(t, "log"); p.Kind != blob.BlockBlob {
				t.Errorf("the blob is of kind %d", p.Kind)
			}
		} else {
			for name, change := range map[string]func() error{
				"write":    func() error { return f.Write(t.Context(), []byte("x"), 5) },
				"truncate": func() error { return f.Truncate(t.Context(), 5) },
				"zero":     func() error { return f.Zero(t.Context(), 0, 5) },
			} {
				if err := change(); !blob.Is(err, blob.Unsupported) {
					t.Errorf("%s of an append blob: %v", name, err)
				}
			}
		}
		expectAll(t, f, want)
		f.Release(true)
		expectAll(t, openBlob(t, c, s, s.properties(t, "log")), want)
	}
}

// TestLargerThanCache: a file that is written in order may be larger than the cache, and is right.
func TestLargerThanCache(t *testing.T) {
	s := newService()
	cfg := config(t.TempDir())
	cfg.Size = 2 * mib
	c := openCache(t, cfg)
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	want := content(1, 20*mib)
	for off := int64(0); off < int64(len(want)); off += 128 * kib {
		put(t, f, want[off:off+128*kib], off)
		if n := c.space.inUse(); n > cfg.Size+mib {
			t.Fatalf("%d bytes are staged, the bound is %d", n, cfg.Size)
		}
	}
	if f.stage.released.total() == 0 {
		t.Fatal("nothing was given up")
	}
	// A read of what was given up needs a commit, and so does a change of it.
	expect(t, f, 100, want[100:5000])
	copy(want[300*kib:], put(t, f, content(2, 10), 300*kib))
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	f.Release(true)
	expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
}

// TestForeignUncommitted: blocks that another program has left uncommitted, with ids of another length, do not stop us.
func TestForeignUncommitted(t *testing.T) {
	s := newService()
	if err := s.StageBlock(t.Context(), "a", strings.Repeat("x", 40), strings.NewReader("theirs"), 6); err != nil {
		t.Fatal(err)
	}
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	want := put(t, f, content(1, 300*kib), 0)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	f.Release(true)
}
