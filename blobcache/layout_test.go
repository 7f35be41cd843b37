package blobcache

import (
	"math/rand/v2"
	"testing"

	"blobmount/blobcache/blob"
)

// TestLayout walks block by block and compares with the closed forms.
func TestLayout(t *testing.T) {
	for name, l := range map[string]layout{
		"new":            newLayout(8*mib, 0),
		"small blocks":   newLayout(64*kib, 0),
		"huge":           newLayout(8*mib, 190<<40),
		"uneven kept":    newLayout(8*mib, 0).keeping([]int64{5, 6, 100 * mib, 101 * mib, 200 * mib}),
		"short tail":     newLayout(8*mib, 0).keeping([]int64{8 * mib, 8*mib + 1}),
		"many kept":      newLayout(64*kib, 0).keeping(ends(600, 3*mib)),
		"only the short": newLayout(8*mib, 0).keeping([]int64{1}),
	} {
		t.Run(name, func(t *testing.T) {
			var at int64
			for i := range blob.MaxBlocks {
				off, end := l.span(i)
				if off != at || end <= off || end-off > blob.MaxBlockSize {
					t.Fatalf("block %d is [%d, %d), the one before ended at %d", i, off, end, at)
				}
				for _, x := range []int64{off, end - 1, off + rand.Int64N(end-off)} {
					if got := l.index(x); got != i {
						t.Fatalf("byte %d of block %d [%d, %d) is found in block %d", x, i, off, end, got)
					}
				}
				if l.count(end) != i+1 || l.count(off+1) != i+1 {
					t.Fatalf("%d bytes are %d blocks, %d bytes %d, want %d", end, l.count(end), off+1, l.count(off+1), i+1)
				}
				at = end
			}
			if l.capacity() != at {
				t.Errorf("capacity is %d, 50,000 blocks hold %d", l.capacity(), at)
			}
		})
	}
}

func ends(n int, each int64) []int64 {
	var out []int64
	for i := range n {
		out = append(out, int64(i+1)*each)
	}
	return out
}

// TestLayoutHolds checks the sizes that the documentation names.
func TestLayoutHolds(t *testing.T) {
	const tib = 1 << 40
	if got := newLayout(8*mib, 0).capacity(); got < 174*tib {
		t.Errorf("a file of unknown size holds %d TiB", got/tib)
	}
	if got := newLayout(8*mib, 190*tib).capacity(); got < 190*tib {
		t.Errorf("a file of 190 TiB has room for %d TiB", got/tib)
	}
	l := newLayout(8*mib, 0)
	if off, end := l.span(l.index(4<<30 - 1)); end-off != 8*mib {
		t.Errorf("block before 4 GiB has %d bytes", end-off)
	}
	if off, end := l.span(l.index(100 << 30)); end-off != 128*mib {
		t.Errorf("block at 100 GiB has %d bytes", end-off)
	}
	// A log that grows by little appends, opened anew for each, stays at the number of blocks that its size asks for.
	have := []int64{}
	for size := int64(1); size < 40*mib; size += 300 * kib {
		l := newLayout(8*mib, 0).keeping(have)
		have = have[:0]
		for i := range l.count(size) {
			_, end := l.span(i)
			have = append(have, min(end, size))
		}
	}
	if len(have) != 5 {
		t.Errorf("40 MiB of appends made %d blocks, want 5", len(have))
	}
}
