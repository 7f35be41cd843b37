package blobtest

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

func TestETagsDifferThoughTheClockStands(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	s := NewStore(StoreOptions{Now: func() time.Time { return now }})
	seen := map[blob.ETag]bool{}
	for range 1000 {
		w, err := s.Put("a", nil, blob.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if seen[w.ETag] {
			t.Fatalf("ETag %s twice", w.ETag)
		}
		seen[w.ETag] = true
		if want := now.Truncate(time.Second); !w.Modified.Equal(want) {
			t.Fatalf("modified %v, want whole seconds", w.Modified)
		}
	}
}

// Synthetic content must be the same through every way of reading it, and at every split.
func TestSyntheticContent(t *testing.T) {
	const size = 1<<20 + 11
	want := make([]byte, size)
	Random(7)(want, 0)
	s := NewStore(StoreOptions{})
	if _, err := s.PutSynthetic("a", size, Random(7), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ offset, count int64 }{{0, size}, {1, 7}, {3, 1}, {8, 8}, {5, 300_000}, {size - 1, 1}, {262_143, 3}} {
		_, got, err := s.Get("a", r.offset, r.count, blob.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		expect := want[r.offset : r.offset+r.count]
		if b, err := io.ReadAll(got.Reader()); err != nil || !bytes.Equal(b, expect) {
			t.Errorf("Reader of %v: wrong bytes, %v", r, err)
		}
		for _, limit := range []int{13, 4096, 1 << 30} {
			if limit == 13 && r.count > 1000 {
				continue
			}
			var b []byte
			for chunk := range got.Chunks(limit) {
				if len(chunk) > limit {
					t.Errorf("chunk of %d, limit %d", len(chunk), limit)
				}
				b = append(b, chunk...)
			}
			if !bytes.Equal(b, expect) {
				t.Errorf("Chunks(%d) of %v: wrong bytes", limit, r)
			}
		}
	}
}

// A blob far larger than memory costs nothing, also when its ranges become blocks of another blob.
func TestSyntheticBlocks(t *testing.T) {
	const size = 10 << 40
	s := NewStore(StoreOptions{})
	if _, err := s.PutSynthetic("src", size, Random(1), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutBlockFrom("dst", "1", s, "src", size-100, -1, blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutBlock("dst", "2", []byte("own")); err != nil {
		t.Fatal(err)
	}
	if err := s.PutBlockFrom("dst", "3", s, "src", 5, 10, blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlockList("dst", []BlockRef{{ID: "3"}, {ID: "2"}, {ID: "1"}}, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 113)
	Random(1)(want[:10], 5)
	copy(want[10:], "own")
	Random(1)(want[13:], size-100)
	for offset := range int64(len(want)) {
		_, r, err := s.Get("dst", offset, -1, blob.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r.Reader()); err != nil || !bytes.Equal(got, want[offset:]) {
			t.Fatalf("from %d: wrong bytes, %v", offset, err)
		}
	}
	// The block in the middle is reused out of the committed content.
	if _, err := s.PutBlockList("dst", []BlockRef{{ID: "2", From: Committed}}, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if p, _, err := s.Get("dst", 0, -1, blob.Condition{}); err != nil || p.Size != 3 {
		t.Fatalf("size %d, %v", p.Size, err)
	}
}

func TestBlockListKinds(t *testing.T) {
	s := NewStore(StoreOptions{})
	put := func(id, body string) {
		t.Helper()
		if err := s.PutBlock("a", id, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	put("1", "old")
	if _, err := s.PutBlockList("a", []BlockRef{{ID: "1"}}, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	put("1", "new")
	_, err := s.PutBlockList("a", []BlockRef{{ID: "1", From: Committed}, {ID: "1", From: Uncommitted}, {ID: "1", From: Latest}}, blob.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, r, err := s.Get("a", 0, -1, blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(r.Reader()); string(got) != "oldnewnew" {
		t.Errorf("content %q", got)
	}
	if _, err := s.PutBlockList("a", []BlockRef{{ID: "1", From: Uncommitted}}, blob.WriteOptions{}); !blob.Is(err, blob.InvalidBlockList) {
		t.Errorf("an uncommitted block after the commit: %v", err)
	}
}

func TestLimits(t *testing.T) {
	s := NewStore(StoreOptions{})
	ids := make([]BlockRef, blob.MaxBlocks+1)
	for i := range ids {
		ids[i].ID = "1"
	}
	if err := s.PutBlock("a", "1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlockList("a", ids, blob.WriteOptions{}); !blob.Is(err, blob.TooLarge) {
		t.Errorf("%d blocks: %v", len(ids), err)
	}
	if _, err := s.PutBlockList("a", ids[1:], blob.WriteOptions{}); err != nil {
		t.Errorf("%d blocks: %v", len(ids)-1, err)
	}
	if err := s.PutBlock("a", strings.Repeat("i", 65), []byte("x")); err == nil {
		t.Error("an id of 65 bytes is accepted")
	}
	if err := s.PutBlock("b", "1", nil); err == nil {
		t.Error("an empty block is accepted")
	}
	metadata := func(n int) blob.WriteOptions {
		return blob.WriteOptions{Metadata: map[string]string{"k": strings.Repeat("v", n-1)}}
	}
	if _, err := s.Put("a", nil, metadata(8<<10)); err != nil {
		t.Errorf("8 KiB of metadata: %v", err)
	}
	if _, err := s.Put("a", nil, metadata(8<<10+1)); !blob.Is(err, blob.TooLarge) {
		t.Errorf("more than 8 KiB of metadata: %v", err)
	}
	for _, name := range []string{"", "1a", "a-b", "a b", "é", "a.b"} {
		if _, err := s.Put("a", nil, blob.WriteOptions{Metadata: map[string]string{name: "v"}}); err == nil {
			t.Errorf("metadata name %q is accepted", name)
		}
	}
	for _, name := range []string{"", strings.Repeat("n", 1025), "a\x00b", "\xff"} {
		if _, err := s.Put(name, nil, blob.WriteOptions{}); !blob.Is(err, blob.InvalidName) {
			t.Errorf("blob name %.10q: %v", name, err)
		}
	}
}

func TestKinds(t *testing.T) {
	s := NewStore(StoreOptions{})
	if _, err := s.PutAppend("log", []byte("one,"), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, at, err := s.AppendBlock("log", []byte("two"), AppendCondition{Position: 4, MaxSize: 7}); err != nil || at != 4 {
		t.Fatalf("appended at %d, %v", at, err)
	}
	if _, _, err := s.AppendBlock("log", []byte("x"), AppendCondition{Position: 4, MaxSize: -1}); !blob.Is(err, blob.ConditionNotMet) {
		t.Errorf("append at a position that has passed: %v", err)
	}
	if _, err := s.PutPage("disk", make([]byte, 1024), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutPage("disk2", make([]byte, 1000), blob.WriteOptions{}); err == nil {
		t.Error("a page blob of 1000 bytes is accepted")
	}
	for name, want := range map[string]blob.Kind{"log": blob.AppendBlob, "disk": blob.PageBlob} {
		p, _, err := s.Get(name, 0, -1, blob.Condition{})
		if err != nil || p.Kind != want || p.Tier != "" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		if err := s.PutBlock(name, "1", []byte("x")); !blob.Is(err, blob.Unsupported) {
			t.Errorf("PutBlock to %s: %v", name, err)
		}
		if _, err := s.Blocks(name); !blob.Is(err, blob.Unsupported) {
			t.Errorf("Blocks of %s: %v", name, err)
		}
		if _, err := s.Copy(name+"2", name, blob.CopyOptions{}); err != nil {
			t.Errorf("Copy of %s: %v", name, err)
		}
	}
	if _, r, err := s.Get("log", 2, -1, blob.Condition{}); err != nil {
		t.Error(err)
	} else if got, _ := io.ReadAll(r.Reader()); string(got) != "e,two" {
		t.Errorf("log holds %q", got)
	}
}

func TestTier(t *testing.T) {
	s := NewStore(StoreOptions{})
	w, err := s.Put("a", []byte("x"), blob.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetTier("a", "Archive"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get("a", 0, -1, blob.Condition{}); !blob.Is(err, blob.Archived) {
		t.Errorf("Get: %v", err)
	}
	if _, err := s.Copy("b", "a", blob.CopyOptions{}); !blob.Is(err, blob.Archived) {
		t.Errorf("Copy: %v", err)
	}
	if err := s.SetTier("a", "Cool"); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Properties("a", blob.Condition{}); err != nil || p.Tier != "Cool" || p.ETag != w.ETag {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestAnswersAreCopies(t *testing.T) {
	s := NewStore(StoreOptions{})
	given := map[string]string{"k": "v"}
	if _, err := s.Put("a", nil, blob.WriteOptions{Metadata: given}); err != nil {
		t.Fatal(err)
	}
	given["k"] = "changed"
	p, err := s.Properties("a", blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	p.Metadata["k"] = "changed"
	if p, err = s.Properties("a", blob.Condition{}); err != nil || p.Metadata["k"] != "v" {
		t.Errorf("%v, %v", p.Metadata, err)
	}
}

func TestSuccessor(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a/": "a0", "a\xff": "b", "\xff\xff": ""} {
		if got, ok := successor(prefix); got != want || ok != (want != "") {
			t.Errorf("successor(%q) = %q, %v", prefix, got, ok)
		}
	}
}

func TestMarkersAreChecked(t *testing.T) {
	s := NewStore(StoreOptions{})
	for _, marker := range []string{"!", "eA==", formatMarker('x', "y")} {
		if _, err := s.List(blob.ListOptions{Marker: marker}); err == nil {
			t.Errorf("marker %q is accepted", marker)
		}
	}
	if _, err := s.List(blob.ListOptions{MaxResults: -1}); err == nil {
		t.Error("a negative page size is accepted")
	}
}

func TestPageMaximum(t *testing.T) {
	s := manyBlobs(t, MaxPage+1, "%d")
	for _, max := range []int{0, MaxPage, MaxPage + 1, 1 << 30} {
		page, err := s.List(blob.ListOptions{MaxResults: max})
		if err != nil || len(page.Blobs) != MaxPage || page.Next == "" {
			t.Errorf("MaxResults %d: %d blobs, next %q, %v", max, len(page.Blobs), page.Next, err)
		}
	}
}

func manyBlobs(tb testing.TB, n int, format string) *Store {
	tb.Helper()
	s := NewStore(StoreOptions{})
	for i := range n {
		if _, err := s.PutSynthetic(fmt.Sprintf(format, i), 100, Random(uint64(i)), blob.WriteOptions{}); err != nil {
			tb.Fatal(err)
		}
	}
	return s
}

// A page must not cost more when more blobs lie below its folded prefixes: 1,000 in one directory, 1,000,000 blobs.
func BenchmarkListMillion(b *testing.B) {
	s := manyBlobs(b, 1_000_000, "dir%[1]d/%[1]d")
	flat := NewStore(StoreOptions{})
	for i := range 1_000_000 {
		if _, err := flat.PutSynthetic(fmt.Sprintf("%d/%d", i%3, i), 1, Random(0), blob.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for _, bench := range []struct {
		name string
		s    *Store
		o    blob.ListOptions
	}{
		{"Flat5000", s, blob.ListOptions{}},
		{"Folded5000", s, blob.ListOptions{Delimiter: "/"}},
		{"ThreePrefixesOf333333", flat, blob.ListOptions{Delimiter: "/"}},
		{"One", s, blob.ListOptions{MaxResults: 1}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bench.s.List(bench.o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRandom(b *testing.B) {
	buf := make([]byte, syntheticChunk)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		Random(1)(buf, 0)
	}
}
