package blobcache

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/minio/crc64nvme"
)

// Whatever is written where, a tally is the checksums of the first bytes of what a block then holds; written in order, of
// all of it.
func TestTally(t *testing.T) {
	const size = 5*grain + 1234
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 9))
		content := make([]byte, size)
		var tl tally
		write := func(off, end int) {
			for i := off; i < end; i++ {
				content[i] = byte(r.Uint32())
			}
			tl.add(content[off:end], int64(off))
			checkTally(t, tl, content)
		}
		for range r.IntN(6) {
			off := r.IntN(size)
			write(off, off+r.IntN(size-off)+1)
		}
		for off := 0; off < size; { // anew from the start, in pieces
			end := min(size, off+1+r.IntN(2*grain))
			write(off, end)
			off = end
		}
		if tl.n != size {
			t.Fatalf("seed %d: %d bytes counted, %d were written in order", seed, tl.n, size)
		}
	}
}

func checkTally(t *testing.T, tl tally, content []byte) {
	t.Helper()
	if got, want := tl.crc64, crc64nvme.Checksum(content[:tl.n]); got != want {
		t.Fatalf("CRC-64 of %d bytes is %x, want %x", tl.n, got, want)
	}
	for off := int64(0); off < tl.n; off += grain {
		n := min(grain, tl.n-off)
		sum, ok := tl.grain(off, n)
		if want := crc32.Checksum(content[off:off+n], castagnoli); !ok || sum != want {
			t.Fatalf("CRC-32C of [%d, %d) of %d bytes is %x (%t), want %x", off, off+n, tl.n, sum, ok, want)
		}
	}
}

// What is no counted grain has no checksum.
func TestTallyGrain(t *testing.T) {
	var tl tally
	tl.add(make([]byte, 2*grain+10), 0)
	for _, c := range []struct {
		off, n int64
		ok     bool
	}{
		{0, grain, true},
		{grain, grain, true},
		{2 * grain, 10, true},
		{2 * grain, 9, false},        // a part of it
		{2 * grain, 11, false},       // more than was counted
		{2 * grain, grain, false},    // the same
		{0, grain - 1, false},        // a part of a grain
		{1, grain, false},            // over two
		{0, 2 * grain, false},        // two
		{3 * grain, 1, false},        // beyond
		{2*grain + 10, 0, false},     // nothing
		{grain, grain + 10, false},   // more than one
		{2*grain + 5, 5, false},      // not from its start
		{0, 2*grain + 10, false},     // all
		{grain, 2, false},            // the start of one
		{4 * grain, grain, false},    // far beyond
		{2*grain - 1, 1, false},      // the end of one
		{2*grain + grain, 10, false}, // behind it
	} {
		if _, ok := tl.grain(c.off, c.n); ok != c.ok {
			t.Errorf("[%d, %d): known %t, want %t", c.off, c.off+c.n, ok, c.ok)
		}
	}
}
