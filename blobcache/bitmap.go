package blobcache

import "math/bits"

// bitmap is a fixed-length set of small integers. The zero value is an empty set of length zero. It is not safe
// for parallel use.
type bitmap struct {
	words []uint64
	n     int // length in bits
	ones  int
}

func newBitmap(n int) bitmap { return bitmap{words: make([]uint64, (n+63)/64), n: n} }

func (b *bitmap) get(i int) bool { return b.words[i>>6]&(1<<(i&63)) != 0 }

func (b *bitmap) set(i int) {
	if m := uint64(1) << (i & 63); b.words[i>>6]&m == 0 {
		b.words[i>>6] |= m
		b.ones++
	}
}

func (b *bitmap) full() bool { return b.ones == b.n }

func (b *bitmap) setAll() {
	for i := range b.words {
		b.words[i] = ^uint64(0)
	}
	if tail := b.n & 63; tail != 0 {
		b.words[len(b.words)-1] = 1<<tail - 1
	}
	b.ones = b.n
}

// remove takes the members of another set of the same length out.
func (b *bitmap) remove(other *bitmap) {
	b.ones = 0
	for i := range b.words {
		b.words[i] &^= other.words[i]
		b.ones += bits.OnesCount64(b.words[i])
	}
}

func (b *bitmap) clearAll() {
	clear(b.words)
	b.ones = 0
}

// nextSet returns the first member at or after i and before end, end when there is none.
func (b *bitmap) nextSet(i, end int) int { return b.next(i, end, 0) }

// nextClear returns the first non-member at or after i and before end, end when there is none.
func (b *bitmap) nextClear(i, end int) int { return b.next(i, end, ^uint64(0)) }

func (b *bitmap) next(i, end int, flip uint64) int {
	for i < end {
		if w := (b.words[i>>6] ^ flip) >> (i & 63); w != 0 {
			return min(i+bits.TrailingZeros64(w), end)
		}
		i = (i | 63) + 1
	}
	return end
}

// byteAt returns bits 8*i to 8*i+7 as one byte, the first in its lowest bit: the form on disk.
func (b *bitmap) byteAt(i int) byte { return byte(b.words[i>>3] >> ((i & 7) * 8)) }

// load takes the set from its form on disk; bits beyond the length are dropped.
func (b *bitmap) load(p []byte) {
	b.clearAll()
	for i := range b.n {
		if p[i>>3]&(1<<(i&7)) != 0 {
			b.set(i)
		}
	}
}
