package blobcache

import (
	"math/rand/v2"
	"testing"
)

// TestExtents compares a set of ranges with an array of bools under random changes.
func TestExtents(t *testing.T) {
	const size = 200
	rnd := rand.New(rand.NewPCG(2, 2))
	for range 20 {
		var x extents
		var model [size]bool
		for range 60 {
			off := rnd.Int64N(size)
			end := off + rnd.Int64N(min(40, size-off+1))
			add := rnd.IntN(5) < 3
			if add {
				x.add(off, end)
			} else {
				x.remove(off, end)
			}
			for i := off; i < end; i++ {
				model[i] = add
			}
			checkExtents(t, x, model[:])
		}
	}
}

func checkExtents(t *testing.T, x extents, model []bool) {
	t.Helper()
	size := int64(len(model))
	for i, e := range x {
		if e.off >= e.end {
			t.Fatalf("%v: range %d is empty", x, i)
		}
		if i > 0 && x[i-1].end >= e.off {
			t.Fatalf("%v: range %d is out of order, overlaps or touches the one before", x, i)
		}
	}
	var total int64
	for i := range size {
		if model[i] {
			total++
		}
		if x.covers(i, i+1) != model[i] {
			t.Fatalf("%v: byte %d is %v", x, i, !model[i])
		}
		end := i + 1
		for end < size && model[end] == model[i] {
			end++
		}
		if got, in := x.run(i, size); got != end || in != model[i] {
			t.Fatalf("%v: run(%d) = %d, %v; want %d, %v", x, i, got, in, end, model[i])
		}
		if got, _ := x.run(i, i+1); got != i+1 {
			t.Fatalf("%v: run(%d) went beyond its bound to %d", x, i, got)
		}
		if x.covers(i, end) != model[i] {
			t.Fatalf("%v: covers(%d, %d) = %v", x, i, end, !model[i])
		}
		if model[i] && end < size && x.covers(i, end+1) {
			t.Fatalf("%v: covers(%d, %d), but not byte %d", x, i, end+1, end)
		}
	}
	if x.total() != total {
		t.Fatalf("%v: total %d, want %d", x, x.total(), total)
	}
}

// TestExtentsInOrder: a file that is written in order must stay one range, however many writes it takes.
func TestExtentsInOrder(t *testing.T) {
	var x extents
	for off := range int64(1000) {
		x.add(off*4096, (off+1)*4096)
	}
	if len(x) != 1 || !x.covers(0, 1000*4096) {
		t.Fatalf("%d ranges", len(x))
	}
}
