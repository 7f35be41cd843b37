package blobcache

import (
	"slices"

	"blobmount/blobcache/blob"
)

// layout says where the blocks of a file begin and end. It is decided before the first block is uploaded, since a block
// list can only be committed of blocks that join.
//
// A blob has at most 50,000 blocks. So blocks are small at the start, where most files end, and double every so many:
// with 8 MiB and 512 blocks of each size, a file of 4 GiB has blocks of 8 MiB, one of 100 GiB has blocks of up to
// 128 MiB, and 50,000 blocks hold 175 TiB. A file whose size is set before it is written (ftruncate, fallocate) gets
// larger blocks from the start if it needs them, up to the 190.7 TiB that the service can hold.
//
// A blob that is there keeps the blocks that it has, whoever made them, and grows by ours.
type layout struct {
	first int64   // bytes of a block at the start
	every int     // so many blocks have one size before it doubles; 0: all blocks have the largest size
	kept  []int64 // where the blocks end that the blob has already
}

// doubleEvery is how many blocks have one size, unless the size of the file asks for less.
const doubleEvery = 512

// newLayout returns the layout of a new file that is to hold at least size bytes.
func newLayout(first, size int64) layout {
	for every := doubleEvery; every > 0; every /= 8 {
		l := layout{first: first, every: every}
		if l.capacity() >= size {
			return l
		}
	}
	return layout{first: first}
}

// keeping returns a layout that keeps the blocks with these ends. The last one is extended by what is appended, if it is
// shorter than a block of ours: else many small appends would use up all 50,000 blocks.
func (l layout) keeping(ends []int64) layout {
	n := len(ends)
	if n == 0 {
		return l
	}
	from := int64(0)
	if n > 1 {
		from = ends[n-2]
	}
	if ends[n-1]-from < l.size(n-1) {
		ends = ends[:n-1]
	}
	l.kept = slices.Clip(ends)
	return l
}

// largestBlock is the most that a block may have in whole grains: 4,000 MiB.
const largestBlock = blob.MaxBlockSize / grain * grain

// size returns how many bytes block i has if it is ours and not the last.
func (l layout) size(i int) int64 {
	if l.every == 0 {
		return largestBlock
	}
	if shift := i / l.every; shift < 32 {
		return min(l.first<<shift, largestBlock)
	}
	return largestBlock
}

// sum returns how many bytes the first n blocks have if all are ours.
func (l layout) sum(n int) int64 {
	if l.every == 0 {
		return int64(n) * largestBlock
	}
	var sum int64
	for i := 0; i < n; i += l.every {
		sum += int64(min(l.every, n-i)) * l.size(i)
	}
	return sum
}

// span returns where block i begins and ends.
func (l layout) span(i int) (off, end int64) {
	if i < len(l.kept) {
		if i > 0 {
			off = l.kept[i-1]
		}
		return off, l.kept[i]
	}
	n := len(l.kept)
	if n > 0 {
		off = l.kept[n-1]
	}
	off += l.sum(i) - l.sum(n)
	return off, off + l.size(i)
}

// index returns the block that holds the byte at off.
func (l layout) index(off int64) int {
	n := len(l.kept)
	if n > 0 && off < l.kept[n-1] {
		i, found := slices.BinarySearch(l.kept, off)
		if found {
			i++ // ends lie outside
		}
		return i
	}
	rest := off
	if n > 0 {
		rest -= l.kept[n-1]
	}
	for i := n; ; {
		size := l.size(i)
		same := blob.MaxBlocks // blocks of this size from here on
		if l.every > 0 && size < largestBlock {
			same = l.every - i%l.every
		}
		if rest < int64(same)*size {
			return i + int(rest/size)
		}
		rest -= int64(same) * size
		i += same
	}
}

// count returns how many blocks a file of size bytes has.
func (l layout) count(size int64) int {
	if size == 0 {
		return 0
	}
	return l.index(size-1) + 1
}

// capacity returns the most bytes that a file can have.
func (l layout) capacity() int64 {
	if len(l.kept) >= blob.MaxBlocks {
		return l.kept[len(l.kept)-1]
	}
	_, end := l.span(blob.MaxBlocks - 1)
	return end
}
