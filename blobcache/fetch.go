package blobcache

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"sync"

	"blobmount/blobcache/blob"
)

// fetch is one ranged request and the memory that its bytes arrive in. It is waited for by offset: a reader goes on
// as soon as its own bytes are there. After it has ended it stays in memory, on the list of residents, until the
// budget needs the room.
type fetch struct {
	v        *version
	off, end int64 // whole units
	slabs    []*slab

	elem *list.Element // in Cache.residents, guarded by its mutex

	pins    int  // readers that use the memory; guarded by version.mu
	dropped bool // taken out of the version; guarded by version.mu

	mu      sync.Mutex // guards what is below
	got     int64      // bytes up to here have arrived
	err     error      // set once, then no more bytes come
	ended   bool
	waiters []waiter
}

// waiter is a reader that needs the bytes before an offset.
type waiter struct {
	until int64
	ch    chan struct{}
}

func newFetch(v *version, x extent) *fetch { return &fetch{v: v, off: x.off, end: x.end, got: x.off} }

// start begins the transfer into slabs that hold at least end-off bytes.
func (f *fetch) start(slabs []*slab) {
	f.slabs = slabs
	f.v.running.Go(f.run)
}

func (f *fetch) run() {
	ctx := f.v.ctx
	err := f.v.c.downloads.acquire(ctx)
	stored := false
	if err == nil {
		stored, err = f.transfer(ctx)
		f.v.c.downloads.release()
	}
	f.finish(err, stored)
}

// transfer reads the body into memory, and hands every full slab to the disk.
func (f *fetch) transfer(ctx context.Context) (stored bool, err error) {
	f.v.mu.Lock()
	src := f.v.src
	f.v.mu.Unlock()
	body, err := f.v.c.readAt(ctx, src, f.off, f.end-f.off)
	if err != nil {
		return false, f.v.stale(src, err)
	}
	defer body.Close()
	if p := &body.Properties; p.ETag != src.etag || p.Size != f.v.size { // never kept as this version
		return false, &blob.Error{Code: blob.Damaged, Op: "ReadAt", Name: src.name,
			Err: fmt.Errorf("asked for version %s of %d bytes, got version %s of %d", src.etag, f.v.size, p.ETag, p.Size)}
	}
	stored = true
	pos := f.off
	for _, s := range f.slabs {
		from := pos
		mem := s.mem[:min(int64(len(s.mem)), f.end-pos)]
		for len(mem) > 0 {
			n, err := body.Read(mem)
			mem = mem[n:]
			pos += int64(n)
			f.advance(pos)
			if len(mem) > 0 && err != nil {
				if err == io.EOF {
					err = &blob.Error{Code: blob.Damaged, Op: "ReadAt", Name: src.name, Err: io.ErrUnexpectedEOF}
				}
				return false, f.v.stale(src, err)
			}
		}
		if pos == f.end {
			// The last bytes are in: a checksum that the body carries is compared at its end. That the last reader has
			// gone by now is no reason to drop them.
			if _, err := body.Read(make([]byte, 1)); err != io.EOF && err != nil && ctx.Err() == nil {
				return false, f.v.stale(src, err)
			}
		}
		if pos > from && !f.v.store(s.mem[:pos-from], from) {
			stored = false
		}
		if pos == f.end {
			break
		}
	}
	return stored, nil
}

// keep stores the bytes of a good fetch again, and reports whether they are on disk. They may have been forgotten
// together with damaged ones. The caller holds a pin.
func (f *fetch) keep() bool {
	pos := f.off
	for _, s := range f.slabs {
		n := min(int64(len(s.mem)), f.end-pos)
		if n <= 0 || !f.v.store(s.mem[:n], pos) {
			break
		}
		pos += n
	}
	return pos == f.end
}

// advance lets those go on whose bytes have arrived.
func (f *fetch) advance(got int64) {
	f.mu.Lock()
	f.got = got
	f.wakeLocked()
	f.mu.Unlock()
}

func (f *fetch) wakeLocked() {
	keep := f.waiters[:0]
	for _, w := range f.waiters {
		if w.until <= f.got || f.ended {
			close(w.ch)
		} else {
			keep = append(keep, w)
		}
	}
	f.waiters = keep
}

// finish ends the fetch. A good one stays in memory for its readers; a bad one is taken out, so that the next
// reader tries again.
func (f *fetch) finish(err error, stored bool) {
	if err != nil {
		f.fail(err)
		return
	}
	f.mu.Lock()
	f.ended = true
	f.wakeLocked()
	f.mu.Unlock()
	f.v.c.residents.add(f)
	f.v.c.budget.kick()
}

// fail ends the fetch without its bytes. It is taken out before its readers are told, so that one that reads again does
// not find it.
func (f *fetch) fail(err error) {
	f.v.mu.Lock()
	f.abandon()
	f.v.mu.Unlock()
	f.mu.Lock()
	f.err, f.ended = err, true
	f.wakeLocked()
	f.mu.Unlock()
}

// wait returns when the bytes before until have arrived, the fetch failed, or ctx is done. The caller holds a pin.
func (f *fetch) wait(ctx context.Context, until int64) error {
	f.mu.Lock()
	if f.got >= until || f.ended {
		defer f.mu.Unlock()
		if f.got >= until {
			return nil
		}
		return f.err
	}
	w := waiter{until, make(chan struct{})}
	f.waiters = append(f.waiters, w)
	f.mu.Unlock()
	select {
	case <-w.ch:
	case <-ctx.Done():
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.got >= until {
		return nil
	}
	return f.err
}

// slices returns the memory of [off, end), which must have arrived. The caller holds a pin.
func (f *fetch) slices(off, end int64) [][]byte {
	size := int64(len(f.slabs[0].mem))
	out := make([][]byte, 0, 2)
	for off < end {
		i := (off - f.off) / size
		from := (off - f.off) % size
		n := min(size-from, end-off)
		out = append(out, f.slabs[i].mem[from:from+n])
		off += n
	}
	return out
}

// unpin ends a reader's use.
func (f *fetch) unpin() {
	f.v.mu.Lock()
	f.pins--
	last := f.pins == 0
	free := last && f.dropped
	f.v.mu.Unlock()
	if free {
		f.v.c.budget.put(f.slabs)
	} else if last {
		f.v.c.budget.kick()
	}
}

// drop gives up the memory of an ended fetch unless somebody uses it. The caller has taken it off the residents.
func (f *fetch) drop() bool {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if f.pins > 0 {
		return false
	}
	f.abandon()
	return true
}

// abandon takes a fetch that has ended out of its version. Its memory goes when the last user has gone: the kernel may
// close a file before we have noticed that it has got our answer. version.mu is held.
func (f *fetch) abandon() {
	if f.dropped {
		return
	}
	f.v.remove(f)
	f.dropped = true
	if f.pins == 0 {
		f.v.c.budget.put(f.slabs)
	}
}

// residents are the ended fetches, oldest first: memory that only saves time.
type residents struct {
	mu   sync.Mutex // guards list and every fetch.elem
	list list.List  // of *fetch
}

func (r *residents) add(f *fetch) {
	r.mu.Lock()
	f.elem = r.list.PushBack(f)
	r.mu.Unlock()
}

// remove takes a fetch off the list, and reports whether it was there.
func (r *residents) remove(f *fetch) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.elem == nil {
		return false
	}
	r.list.Remove(f.elem)
	f.elem = nil
	return true
}

// take takes the oldest fetch off the list; nil if there is none.
func (r *residents) take() *fetch {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.list.Front()
	if e == nil {
		return nil
	}
	f := r.list.Remove(e).(*fetch)
	f.elem = nil
	return f
}

// reclaim drops the oldest fetch that nobody uses, and reports whether there was one.
func (r *residents) reclaim() bool {
	r.mu.Lock()
	n := r.list.Len()
	r.mu.Unlock()
	for range n {
		f := r.take()
		if f == nil {
			return false
		}
		if f.drop() || r.putBack(f) {
			return true
		}
	}
	return false
}

// putBack puts a fetch that could not be dropped behind the others. When its last reader has gone since, it drops it after
// all, and reports that: the waiter that the reader has woken may have looked while the fetch was not on the list, and
// nobody would be woken for it again.
func (r *residents) putBack(f *fetch) bool {
	r.add(f)
	f.v.mu.Lock()
	idle := f.pins == 0
	f.v.mu.Unlock()
	if !idle || !r.remove(f) { // in use, or somebody else has it now
		return false
	}
	return f.drop() || r.putBack(f)
}

// semaphore bounds how many may do something at once.
type semaphore chan struct{}

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s semaphore) release() { <-s }
