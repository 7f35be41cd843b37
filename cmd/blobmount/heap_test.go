package main

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestHeapLimit: the limit follows what is known of names in steps, memory is given back when they are forgotten, and the
// user's own limit wins.
func TestHeapLimit(t *testing.T) {
	for _, own := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var limits []int64
			freed := 0
			h := newHeapLimit(128<<20, func(name string) (string, bool) { return "1GiB", own && name == "GOMEMLIMIT" })
			h.set = func(n int64) int64 { limits = append(limits, n>>20); return 0 }
			h.free = func() { freed++ }
			h.follow(0)
			names := []int64{1 << 20, 10 << 20, 100 << 20, 110 << 20, 400 << 20, 390 << 20, 0, 0}
			done := make(chan struct{})
			go h.run(func() int64 {
				if len(names) == 0 {
					return 0
				}
				n := names[0]
				names = names[1:]
				return n
			}, done)
			time.Sleep(10 * time.Second)
			close(done)
			synctest.Wait()
			want := []int64{80, 80 + 150, 80 + 600, 80}
			if own {
				want = nil
			}
			if !slices.Equal(limits, want) || freed != 1 {
				t.Errorf("limits %v MiB, want %v; freed %d times, want 1", limits, want, freed)
			}
		})
	}
}
