package main

import (
	"math"
	"runtime/debug"
	"time"
)

// heapLimit makes the garbage collector work harder as the Go heap nears what it should take: about 64 MiB for the
// runtime, connections and the kernel's requests, more with a larger budget of data, which has more of them under way, and
// what is known of names, which grows with what programs look at. The budget of data itself lies outside that heap.
type heapLimit struct {
	base int64 // bytes; 0: the user has set GOMEMLIMIT, which wins
	set  func(int64) int64
	free func()
	last int64 // bytes of names when the limit was set last
}

func newHeapLimit(memory int64, lookupEnv func(string) (string, bool)) *heapLimit {
	h := &heapLimit{base: 64<<20 + memory/8, set: debug.SetMemoryLimit, free: debug.FreeOSMemory}
	if _, ok := lookupEnv("GOMEMLIMIT"); ok {
		h.base = 0
	}
	return h
}

// heapStep is how far the memory of names has to move before the limit follows, in bytes.
const heapStep = 16 << 20

// follow sets the limit for so many bytes of names: a half more than they take, since garbage needs room too. What they do
// not take any more is given back to the machine, which the runtime alone would do over minutes.
func (h *heapLimit) follow(names int64) {
	if h.base != 0 {
		h.set(min(h.base+names+names/2, math.MaxInt64/2))
	}
	if names < h.last {
		h.free()
	}
	h.last = names
}

// run follows until done is closed.
func (h *heapLimit) run(names func() int64, done <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-done:
			return
		}
		if now := names(); now > h.last+heapStep || now < h.last-heapStep {
			h.follow(now)
		}
	}
}
