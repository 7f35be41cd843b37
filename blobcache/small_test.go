package blobcache

import (
	"os"
	"testing"
)

// whole returns what File.Whole gives, nil if nothing.
func whole(f *File) []byte {
	var got []byte
	if f.Whole(func(b []byte) { got = append(got, b...) }) != (got != nil) {
		panic("Whole reports what it did not do")
	}
	return got
}

// TestWhole: the bytes of a small file are given as they are, from the disk, and only if it has all of them as they were
// stored; what it does not give is read.
func TestWhole(t *testing.T) {
	const size = 25_000
	for _, tc := range []struct {
		name   string
		size   int64
		damage func(t *testing.T, path string)
		given  bool
	}{
		{name: "good", size: size, given: true},
		{name: "largest", size: WholeMax, given: true},
		{name: "too large", size: WholeMax + 1},
		{name: "empty"},
		{name: "one bit", size: size, damage: func(t *testing.T, p string) { edit(t, p, flip(size-1)) }},
		{name: "shorter", size: size, damage: func(t *testing.T, p string) { truncate(t, p, size-1) }},
		{name: "longer", size: size, damage: func(t *testing.T, p string) { truncate(t, p, size+1) }},
		{name: "evicted", size: size, damage: func(t *testing.T, p string) {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			cfg := config(t.TempDir())
			p, want := s.put(t, "a", tc.size, 1)
			if whole(openBlob(t, openCache(t, cfg), s, p)) != nil {
				t.Fatal("given before it was fetched")
			}
			if tc.size > 0 {
				cached(t, s, cfg, p, tc.size)
			}
			if tc.damage != nil {
				tc.damage(t, only(t, cfg.Dir, extBlob))
			}
			f := openBlob(t, openCache(t, cfg), s, p)
			s.Reset()
			switch got := whole(f); {
			case tc.given:
				same(t, got, want)
			case got != nil:
				t.Errorf("%d bytes are given", len(got))
			}
			if n := s.Count("ReadAt"); n != 0 {
				t.Errorf("%d requests", n)
			}
			expectAll(t, f, want)
			if whole(f) != nil {
				t.Error("given while the version is open")
			}
		})
	}
}

// TestWholeOfAWrittenFile: nothing of the old version is given of a file with writes that the service does not have.
func TestWholeOfAWrittenFile(t *testing.T) {
	s := newService()
	p, _ := s.put(t, "a", 25_000, 1)
	c := openCache(t, config(t.TempDir()))
	bring(t, c, s, p)
	f := c.OpenFile(s, p, noHooks)
	f.Acquire(true)
	defer f.Release(true)
	if err := f.Truncate(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if b := whole(f); b != nil {
		t.Errorf("%d bytes of the old version are given", len(b))
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
