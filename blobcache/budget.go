package blobcache

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// The two sizes of buffer. A large slab is one FUSE request (1 MiB is the kernel's most), a small one is one grain,
// so that random reads of 4 KiB do not hold a mebibyte each.
const (
	smallSlab = grain
	largeSlab = 1 << 20
)

// slab is a buffer out of the budget. It lies outside the Go heap: the collector would otherwise let the heap grow
// to twice what is in use.
type slab struct{ mem []byte }

// budget bounds the memory of all buffers of a cache. All methods may be called in parallel.
type budget struct {
	limit int64
	// reclaim makes room by giving up memory that only saves time; it reports whether it found any.
	// It is called with no lock held.
	reclaim func() bool

	mu      sync.Mutex      // guards what is below
	used    int64           // bytes handed out or kept on the free lists
	free    [2][]*slab      // small, large
	waiting []chan struct{} // in the order of arrival; closed to wake
	peak    int64
}

func slabClass(size int) int {
	if size == smallSlab {
		return 0
	}
	return 1
}

// slabsFor returns the size and number of the slabs that hold n bytes.
func slabsFor(n int64) (size, count int) {
	if n <= smallSlab {
		return smallSlab, 1
	}
	return largeSlab, int((n + largeSlab - 1) / largeSlab)
}

// try returns slabs for n bytes if they are to be had without waiting, else nil. Those who wait go first, else a stream
// of small requests would starve a large one.
func (b *budget) try(n int64) []*slab {
	size, count := slabsFor(n)
	for {
		b.mu.Lock()
		wait := len(b.waiting) > 0
		var s []*slab
		if !wait {
			s = b.take(size, count)
		}
		b.mu.Unlock()
		if wait || s != nil || !b.reclaim() {
			return s
		}
	}
}

// get returns slabs for n bytes and waits for them until ctx is done, first come first served.
// n must not be more than the limit: Open sees to it.
func (b *budget) get(ctx context.Context, n int64) ([]*slab, error) {
	size, count := slabsFor(n)
	first := false // whether all who came before have been served
	for {
		b.mu.Lock()
		if first || len(b.waiting) == 0 {
			if s := b.take(size, count); s != nil {
				b.wake() // there may be enough for the next one too
				b.mu.Unlock()
				return s, nil
			}
		}
		// Queue before looking for room, so that no room made in between is missed.
		ch := make(chan struct{})
		if first {
			b.waiting = slices.Insert(b.waiting, 0, ch)
		} else {
			b.waiting = append(b.waiting, ch)
		}
		b.mu.Unlock()
		if b.reclaim() {
			b.kick()
		}
		select {
		case <-ch:
			first = true
		case <-ctx.Done():
			b.mu.Lock()
			b.leave(ch)
			b.mu.Unlock()
			return nil, ctx.Err()
		}
	}
}

// kick lets the oldest waiter look again: there may be something to reclaim now.
func (b *budget) kick() {
	b.mu.Lock()
	b.wake()
	b.mu.Unlock()
}

// leave takes a waiter out of the queue. One that was woken already passes the call on, and so does the oldest: what
// was too little for it may be enough for the next. b.mu is held.
func (b *budget) leave(ch chan struct{}) {
	i := slices.Index(b.waiting, ch)
	if i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
	if i <= 0 {
		b.wake()
	}
}

// wake lets the oldest waiter try again. b.mu is held.
func (b *budget) wake() {
	if len(b.waiting) > 0 {
		close(b.waiting[0])
		b.waiting = b.waiting[1:]
	}
}

// take returns count slabs of a size, or nil. b.mu is held.
func (b *budget) take(size, count int) []*slab {
	class := slabClass(size)
	have := min(len(b.free[class]), count)
	need := int64(count-have) * int64(size)
	for other := 1 - class; b.used+need > b.limit && len(b.free[other]) > 0; {
		last := len(b.free[other]) - 1
		s := b.free[other][last]
		b.free[other] = b.free[other][:last]
		b.used -= int64(len(s.mem))
		s.free()
	}
	if b.used+need > b.limit {
		return nil
	}
	out := make([]*slab, count)
	keep := len(b.free[class]) - have
	copy(out, b.free[class][keep:])
	b.free[class] = b.free[class][:keep]
	for i := have; i < count; i++ {
		mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			// The kernel has no memory or no map entries: behave as if the budget were used up.
			for _, s := range out[have:i] {
				s.free()
			}
			b.free[class] = append(b.free[class], out[:have]...)
			return nil
		}
		out[i] = &slab{mem}
	}
	b.used += need
	b.peak = max(b.peak, b.used)
	return out
}

// put gives slabs back.
func (b *budget) put(slabs []*slab) {
	if len(slabs) == 0 {
		return
	}
	b.mu.Lock()
	for _, s := range slabs {
		c := slabClass(len(s.mem))
		b.free[c] = append(b.free[c], s)
	}
	b.wake()
	b.mu.Unlock()
}

// close unmaps what is on the free lists. Slabs that are still out stay usable.
func (b *budget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.free {
		for _, s := range b.free[c] {
			b.used -= int64(len(s.mem))
			s.free()
		}
		b.free[c] = nil
	}
}

func (s *slab) free() {
	unmap(s.mem)
	s.mem = nil
}

func unmap(mem []byte) {
	if err := unix.Munmap(mem); err != nil {
		panic(fmt.Sprintf("munmap of our own mapping: %v", err)) // only a double free can do this
	}
}
