package blobcache

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"
)

// WriteBack says when a close and an fsync are answered.
type WriteBack uint8

const (
	// WriteThrough: when the service has the file.
	WriteThrough WriteBack = iota
	// WriteBackClose: a close when the file and its journal are on the local disk, an fsync when the service has the
	// file. What a close was answered for is never touched by later writes: they wait for its commit.
	WriteBackClose
	// WriteBackSync: both when the file and its journal are on the local disk. After a crash the file is what it was at
	// the last fsync and what was written since, as on a local file system.
	WriteBackSync
)

// The waits between two attempts to commit a file in the background: doubled each time.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Flush is what a close means: the service has the file afterwards or, with write-back, the local disk has it, and the
// service gets it within the delay.
func (f *File) Flush(ctx context.Context) error {
	if f.c.writeBack == WriteThrough {
		return f.Commit(ctx)
	}
	return f.settleLocally(ctx)
}

// FlushLast is Flush for a handle that goes away after its close was answered: what a mapping wrote since is saved. When
// another handle may just be in the middle of writing, that one's close does it.
func (f *File) FlushLast(ctx context.Context) error {
	f.mu.RLock()
	gen := f.gen
	skip := !f.dirty() || f.acked == gen || f.writing > 1 || f.lost != nil
	back := f.c.writeBack != WriteThrough && f.stage != nil
	f.mu.RUnlock()
	if skip {
		return nil
	}
	var err error
	if back {
		if err = f.finish(true, gen); err == nil {
			f.mu.Lock()
			f.commitLater(f.c.delay)
			f.mu.Unlock()
		}
	} else {
		err = f.commitState(ctx, gen)
	}
	if errors.Is(err, errMoved) {
		return nil
	}
	return err
}

// Sync is what an fsync means.
func (f *File) Sync(ctx context.Context) error {
	if f.c.writeBack != WriteBackSync {
		return f.Commit(ctx)
	}
	return f.settleLocally(ctx)
}

// settleLocally makes the file durable on the local disk, and has it committed later.
func (f *File) settleLocally(ctx context.Context) error {
	f.mu.Lock()
	// What it is a copy of may be changed before its turn comes, and so may blocks that are not committed.
	elsewhere := f.under.name != f.props.Name && f.limit > 0 || f.stage != nil && len(f.stage.released) > 0
	dirty, lost := f.dirty(), f.lost
	var err error
	if dirty && lost == nil && !elsewhere {
		err = f.prepare(f.size) // a new file that is empty has no journal yet
	}
	f.mu.Unlock()
	switch {
	case lost != nil || err != nil:
		return cmp.Or(lost, err)
	case !dirty:
		return nil
	case elsewhere:
		return f.Commit(ctx)
	}
	for round := 0; ; round++ {
		settled, err := f.settleOnce(round)
		if err != nil {
			return err
		}
		if settled {
			f.mu.Lock()
			f.commitLater(f.c.delay)
			f.mu.Unlock()
			return nil
		}
	}
}

// settleOnce is an attempt to catch the file between two writes. In the third round writers have to wait.
func (f *File) settleOnce(round int) (bool, error) {
	if round == 2 {
		f.writers.Lock()
		defer f.writers.Unlock()
	}
	if err := f.finish(true, 0); err != nil {
		return false, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.acked == f.gen || !f.dirty() || f.stage == nil, nil
}

// commitLater commits the file in the background after a wait, and again until that succeeds. It does nothing if that is
// under way already. f.mu is held.
func (f *File) commitLater(wait time.Duration) {
	if f.later == nil && f.c.ctx.Err() == nil {
		f.wait = wait
		f.later = time.AfterFunc(wait, f.commitNow)
	}
}

// RetryNow begins at once what waits for its next attempt to be committed, and has these attempts follow each other as if
// it was the first. It is for when a reason to fail may have gone, such as a credential that had expired.
func (c *Cache) RetryNow() {
	c.retries.Add(1)
	c.mu.Lock()
	files := slices.Collect(maps.Keys(c.files))
	c.mu.Unlock()
	for _, f := range files {
		f.mu.Lock()
		// Stop fails when the attempt is under way: that one sees from the count that it may be wrong.
		if f.later != nil && f.failed != nil && f.later.Stop() {
			f.wait = 0
			f.later.Reset(0)
		}
		f.mu.Unlock()
	}
}

// commitNow is one attempt in the background. Without write-back it gives up when the file is open for writing again: then the next
// close does it.
func (f *File) commitNow() {
	if f.c.inBackground.acquire(f.c.ctx) != nil {
		return
	}
	retries := f.c.retries.Load()
	err := f.commitClosed()
	f.c.inBackground.release()
	if f.c.ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	f.later = nil
	if err != nil && !errors.Is(err, errMoved) && f.lost == nil {
		next := min(max(2*f.wait, firstRetry), lastRetry)
		if f.c.retries.Load() != retries {
			next = 0
		}
		f.commitLater(next)
		name := f.props.Name
		f.mu.Unlock()
		f.c.log.Warn("file is not saved in the service yet, trying again", "blob", name, "next_in", next, "error", err)
		return
	}
	if f.dirty() && f.acked == f.gen && f.lost == nil && f.c.writeBack != WriteThrough { // closed meanwhile
		f.commitLater(f.c.delay)
	}
	f.mu.Unlock()
	if f.Settle() && f.hooks.Idle != nil {
		f.hooks.Idle(f)
	}
}

// commitClosed commits the file as it was closed or synced. It fails with errMoved when it is open, and something else
// may come.
func (f *File) commitClosed() error {
	f.mu.RLock()
	gen, open := f.gen, f.writing > 0
	switch f.c.writeBack {
	case WriteBackClose:
		open = f.writing > 0 && f.acked != gen
	case WriteBackSync:
		gen, open = 0, false // as on a local disk
	}
	f.mu.RUnlock()
	if open {
		return errMoved
	}
	return f.commitState(f.c.ctx, gen)
}

// Unsaved is a file of which the service does not have all.
type Unsaved struct {
	Name  string
	ID    string // of its staging file; empty when it has none
	Size  int64  // bytes
	Since time.Time
	Open  bool  // somebody may be writing to it
	Acked bool  // a close was answered for it, since it is durable on the local disk
	Err   error // of the last attempt, nil when there was none
	Lost  bool  // another writer has won: it is kept for blobmount recover
}

// Unsaved returns the files that are not saved in the service, in no order.
func (c *Cache) Unsaved() []Unsaved {
	c.mu.Lock()
	files := slices.Collect(maps.Keys(c.files))
	c.mu.Unlock()
	out := make([]Unsaved, 0, len(files))
	for _, f := range files {
		f.mu.RLock()
		if f.dirty() {
			u := Unsaved{Name: f.props.Name, Size: f.size, Since: f.since, Open: f.writing > 0,
				Acked: f.acked == f.gen, Err: f.failed, Lost: f.lost != nil}
			if f.stage != nil {
				u.ID = f.stage.id
			}
			out = append(out, u)
		}
		f.mu.RUnlock()
	}
	return out
}
