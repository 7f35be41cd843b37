package blobcache

import "slices"

// extent is the range of bytes [off, end).
type extent struct{ off, end int64 }

// extents is a set of bytes kept as sorted ranges that neither overlap nor touch. It is not safe for parallel
// use. Operations cost O(log n) to find and O(n) to shift; n is the number of separate ranges, 1 for a file that
// is written in order.
type extents []extent

// search returns the index of the first range that ends after off.
func (x extents) search(off int64) int {
	i, _ := slices.BinarySearchFunc(x, off, func(e extent, off int64) int {
		if e.end <= off {
			return -1
		}
		return 1
	})
	return i
}

// add puts [off, end) into the set.
func (x *extents) add(off, end int64) {
	if off >= end {
		return
	}
	// Ranges that touch are merged, so look for the first one that ends at off or later.
	i := x.search(off - 1)
	j := i
	for j < len(*x) && (*x)[j].off <= end {
		off = min(off, (*x)[j].off)
		end = max(end, (*x)[j].end)
		j++
	}
	*x = slices.Replace(*x, i, j, extent{off, end})
}

// remove takes [off, end) out of the set.
func (x *extents) remove(off, end int64) {
	if off >= end {
		return
	}
	i := x.search(off)
	var keep [2]extent
	n, j := 0, i
	for ; j < len(*x) && (*x)[j].off < end; j++ {
		if e := (*x)[j]; e.off < off {
			keep[n] = extent{e.off, off}
			n++
		}
		if e := (*x)[j]; e.end > end {
			keep[n] = extent{end, e.end}
			n++
		}
	}
	*x = slices.Replace(*x, i, j, keep[:n]...)
}

// covers reports whether all of [off, end) is in the set.
func (x extents) covers(off, end int64) bool {
	if off >= end {
		return true
	}
	i := x.search(off)
	return i < len(x) && x[i].off <= off && end <= x[i].end
}

// overlaps reports whether any byte of [off, end) is in the set.
func (x extents) overlaps(off, end int64) bool {
	i := x.search(off)
	return off < end && i < len(x) && x[i].off < end
}

// and returns the bytes that are in both sets.
func (x extents) and(y extents) extents {
	var both extents
	for _, e := range x {
		for pos := e.off; pos < e.end; {
			to, in := y.run(pos, e.end)
			if in {
				both.add(pos, to)
			}
			pos = to
		}
	}
	return both
}

// run returns the end of the stretch that begins at off and lies either wholly inside the set or wholly outside,
// at most end, and which of both it is.
func (x extents) run(off, end int64) (int64, bool) {
	i := x.search(off)
	if i == len(x) {
		return end, false
	}
	if x[i].off <= off {
		return min(end, x[i].end), true
	}
	return min(end, x[i].off), false
}

// total returns the number of bytes in the set.
func (x extents) total() int64 {
	var n int64
	for _, e := range x {
		n += e.end - e.off
	}
	return n
}
