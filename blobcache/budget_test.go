package blobcache

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newBudget(limit int64) *budget {
	return &budget{limit: limit, reclaim: func() bool { return false }}
}

// holds returns the bytes of slabs.
func holds(slabs []*slab) int64 {
	var n int64
	for _, s := range slabs {
		n += int64(len(s.mem))
	}
	return n
}

// TestBudgetOrder: a large request that came first is served first, though a small one behind it would fit.
func TestBudgetOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(4 * mib)
		defer b.close()
		held, err := b.get(t.Context(), 4*mib)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan []*slab, 3)
		for _, n := range []int64{3 * mib, 64 * kib, mib} {
			go func() {
				s, err := b.get(t.Context(), n)
				if err != nil {
					t.Error(err)
				}
				served <- s
			}()
			synctest.Wait() // it waits in the queue now
		}
		for len(held) > 1 {
			b.put(held[:1])
			held = held[1:]
			synctest.Wait()
			if b.try(smallSlab) != nil {
				t.Error("a request that does not wait overtook those that do")
			}
			if len(held) > 1 && len(served) > 0 {
				t.Errorf("one of %d bytes was served while the first had to wait", holds(<-served))
			}
		}
		first := <-served
		if holds(first) != 3*mib {
			t.Errorf("%d bytes were served first", holds(first))
		}
		if len(served) != 0 {
			t.Errorf("%d bytes beyond the limit", holds(<-served))
		}
		b.put(held)
		if n := holds(<-served); n != 64*kib {
			t.Errorf("%d bytes were served second", n)
		}
		synctest.Wait()
		if len(served) != 0 {
			t.Errorf("%d bytes beyond the limit", holds(<-served))
		}
		b.put(first)
		if n := holds(<-served); n != mib {
			t.Errorf("%d bytes were served last", n)
		}
	})
}

// TestBudgetCancel: who gives up waiting must not keep those behind it waiting.
func TestBudgetCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(2 * mib)
		defer b.close()
		held, err := b.get(t.Context(), mib)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := b.get(ctx, 2*mib)
			failed <- err
		}()
		synctest.Wait()
		served := make(chan []*slab, 1)
		go func() {
			s, err := b.get(t.Context(), mib)
			if err != nil {
				t.Error(err)
			}
			served <- s
		}()
		synctest.Wait()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled wait ended with %v", err)
		}
		b.put(<-served) // the free mebibyte was enough for it all along
		b.put(held)
	})
}

// TestBudgetReclaim: memory that only saves time is given up before anybody waits.
func TestBudgetReclaim(t *testing.T) {
	b := newBudget(2 * mib)
	defer b.close()
	var kept [][]*slab
	b.reclaim = func() bool {
		if len(kept) == 0 {
			return false
		}
		s := kept[0]
		kept = kept[1:]
		b.put(s)
		return true
	}
	for range 2 {
		s, err := b.get(t.Context(), mib)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, s)
	}
	s, err := b.get(t.Context(), 2*mib)
	if err != nil || len(kept) != 0 {
		t.Fatalf("error %v, %d not given up", err, len(kept))
	}
	b.put(s)
	s = b.try(mib)
	if s == nil {
		t.Fatal("free memory was refused")
	}
	kept = append(kept, s)
	if s = b.try(2 * mib); s == nil {
		t.Fatal("memory that could be given up was refused")
	}
	b.put(s)
}

// TestBudgetLimit: many at once, never above the limit, nobody left waiting, nothing lost.
func TestBudgetLimit(t *testing.T) {
	const limit = 8 * mib
	b := newBudget(limit)
	var mu sync.Mutex // guards used and owner
	var used int64
	owner := map[*slab]bool{}
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(3, uint64(w)))
			for range 200 {
				n := rnd.Int64N(limit/2) + 1
				if rnd.IntN(2) == 0 {
					n = rnd.Int64N(smallSlab) + 1
				}
				var s []*slab
				ctx, cancel := context.WithCancel(t.Context())
				switch rnd.IntN(4) {
				case 0:
					s = b.try(n)
				case 1:
					go cancel() // at any time
					s, _ = b.get(ctx, n)
				default:
					var err error
					if s, err = b.get(ctx, n); err != nil {
						t.Error(err)
					}
				}
				cancel()
				if s == nil {
					continue
				}
				if holds(s) < n {
					t.Errorf("%d bytes for %d", holds(s), n)
				}
				mu.Lock()
				used += holds(s)
				if used > limit {
					t.Errorf("%d bytes are out, the limit is %d", used, limit)
				}
				for _, x := range s {
					if owner[x] {
						t.Error("a slab was handed out twice")
					}
					owner[x] = true
				}
				mu.Unlock()
				for _, x := range s {
					x.mem[0], x.mem[len(x.mem)-1] = byte(w), byte(w) // for the race detector
				}
				mu.Lock()
				used -= holds(s)
				for _, x := range s {
					delete(owner, x)
				}
				mu.Unlock()
				b.put(s)
			}
		})
	}
	all.Wait()
	if b.used > limit || b.peak > limit {
		t.Errorf("%d bytes used, %d at most; the limit is %d", b.used, b.peak, limit)
	}
	if len(b.waiting) != 0 {
		t.Errorf("%d wait though nothing is out", len(b.waiting))
	}
	if free := holds(slices.Concat(b.free[0], b.free[1])); free != b.used {
		t.Errorf("%d bytes are on the free lists, %d are accounted for", free, b.used)
	}
	if b.close(); b.used != 0 {
		t.Errorf("%d bytes used after close", b.used)
	}
}

// TestBudgetPutBack: somebody takes the only resident fetch off the list and finds it in use. Its reader then goes, and the
// waiter that this wakes finds an empty list. It must not wait for ever: it is served as soon as the fetch is put back.
func TestBudgetPutBack(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	p, _ := s.put(t, "a", 4*mib, 1)
	v := openVersion(c, s, p)
	defer c.release(v)
	if err := v.bring(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	f := v.fetches[0]
	f.pins++ // a reader whose answer is on its way
	v.mu.Unlock()
	var held []*slab
	for x := c.budget.try(mib); x != nil; x = c.budget.try(mib) {
		held = append(held, x...)
	}
	defer func() { c.budget.put(held) }()
	if taken := c.residents.take(); taken != f || f.drop() {
		t.Fatal("the fetch was not there, or was dropped in use")
	}
	served := make(chan []*slab, 1)
	go func() {
		x, err := c.budget.get(t.Context(), mib)
		if err != nil {
			t.Error(err)
		}
		served <- x
	}()
	queued := func() chan struct{} {
		for {
			c.budget.mu.Lock()
			if w := c.budget.waiting; len(w) == 1 {
				defer c.budget.mu.Unlock()
				return w[0]
			}
			c.budget.mu.Unlock()
			yield()
		}
	}
	before := queued()
	f.unpin() // wakes the waiter
	for queued() == before {
		yield()
	}
	if !c.residents.putBack(f) {
		t.Error("the fetch that nobody uses was put back")
	}
	select {
	case x := <-served:
		c.budget.put(x)
	case <-time.After(10 * time.Second):
		t.Fatal("nobody has woken the waiter")
	}
}
