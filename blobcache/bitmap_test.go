package blobcache

import (
	"math/rand/v2"
	"testing"
)

// TestBitmap compares a bitmap with a map of bools under random changes.
func TestBitmap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, 7, 8, 63, 64, 65, 127, 128, 200, 1000} {
		b := newBitmap(n)
		model := map[int]bool{}
		for step := range 300 {
			switch {
			case n > 0 && step%50 != 49:
				i := rnd.IntN(n)
				b.set(i)
				model[i] = true
			case rnd.IntN(2) == 0:
				b.setAll()
				for i := range n {
					model[i] = true
				}
			default:
				b.clearAll()
				clear(model)
			}
			checkBitmap(t, &b, model, n)
		}
	}
}

func checkBitmap(t *testing.T, b *bitmap, model map[int]bool, n int) {
	t.Helper()
	if b.ones != len(model) || b.full() != (len(model) == n) {
		t.Fatalf("length %d: %d members, full %v; want %d", n, b.ones, b.full(), len(model))
	}
	// From the end, so that the next member and non-member are known without a search.
	set, clear := n, n
	for i := n - 1; i >= 0; i-- {
		if b.get(i) != model[i] {
			t.Fatalf("length %d: bit %d is %v", n, i, b.get(i))
		}
		if model[i] {
			set = i
		} else {
			clear = i
		}
		if got := b.nextSet(i, n); got != set {
			t.Fatalf("length %d: nextSet(%d) = %d, want %d", n, i, got, set)
		}
		if got := b.nextClear(i, n); got != clear {
			t.Fatalf("length %d: nextClear(%d) = %d, want %d", n, i, got, clear)
		}
		if end := i + (n-i)/2; b.nextSet(i, end) != min(set, end) || b.nextClear(i, end) != min(clear, end) {
			t.Fatalf("length %d: the bound %d from %d was not kept", n, end, i)
		}
	}
	form := make([]byte, bitmapBytes(n))
	for i := range (n + 7) / 8 {
		form[i] = b.byteAt(i)
	}
	again := newBitmap(n)
	again.load(form)
	for i := range n {
		if again.get(i) != model[i] {
			t.Fatalf("length %d: bit %d is %v after a round trip", n, i, again.get(i))
		}
	}
	if again.ones != len(model) {
		t.Fatalf("length %d: %d members after a round trip, want %d", n, again.ones, len(model))
	}
}

// TestBitmapLoadDropsTheRest: bits beyond the length, as damage may set them, must not count.
func TestBitmapLoadDropsTheRest(t *testing.T) {
	b := newBitmap(3)
	b.load([]byte{0xff, 0xff})
	if b.ones != 3 || !b.full() {
		t.Fatalf("%d members of 3", b.ones)
	}
}
