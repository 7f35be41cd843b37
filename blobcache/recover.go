package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"blobmount/blobcache/blob"
)

// What is done with staging files that earlier processes have left.

// file returns a File for a staging file, which must have a record. It is dirty, nobody has it open, and it owns l.
func (c *Cache) file(l *left, cont blob.Container, hooks Hooks) (*File, error) {
	rec := l.rec
	if l.data == nil {
		var err error
		if l.data, err = os.OpenFile(c.stagingPath(l.ID, extData), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return nil, err
		}
	}
	if err := l.journal.Truncate(rec.length); err != nil { // what is cut off must not be taken for a record
		return nil, err
	}
	d, b := rec.Details, rec.Base
	f := &File{c: c, cont: cont, hooks: hooks, isNew: b.New, size: rec.Size, modified: d.Modified,
		under: lower{b.From, b.FromETag, b.FromSize}, limit: b.Limit, moving: rec.Moving, gen: 2, saved: 1, since: l.Changed}
	f.props = blob.Properties{Name: b.Name, ETag: b.ETag, Kind: b.Kind, Size: b.FromSize, Headers: d.Headers,
		Metadata: d.Metadata, Tier: d.Tier, TierInferred: d.Tier == "", TagCount: d.TagCount}
	if rec.finished {
		f.acked = f.gen
	}
	st := c.stageOf(l.ID)
	st.file, st.journal = l.data, &journal{file: l.journal, size: rec.length, salt: rec.salt}
	st.changed = rec.changed
	st.valid, st.released = rec.trusted()
	st.tallies, st.doubtful = rec.tallies, st.released.and(rec.valid)
	st.durable.Store(true)                  // as far as this process knows
	st.count = roundBlock(st.valid.total()) // the process that staged it has counted it
	st.left = rec.staged
	st.layout = layout{first: rec.BlockSize, every: rec.Every}
	f.setStage(st)
	if rec.stands {
		st.noteSums(rec.sums)
	}
	f.takeUp(rec.tried)
	if f.limit == 0 && rec.BlockSize > 0 {
		if err := f.layOut(st.layout, nil); err != nil {
			f.setStage(nil)
			return nil, err
		}
	}
	c.track(f, true)
	return f, nil
}

// recoverAtOnce is how many files are committed at once when a mount begins.
const recoverAtOnce = 8

// Recover commits what earlier processes have left finished for a container, and tells the log of what has to wait for
// somebody. It returns when all is done or ctx ends; what is not committed then is tried again in the background. What
// another process works with is looked at again until that lets it go, or the cache is closed.
func (c *Cache) Recover(ctx context.Context, cont blob.Container, hooks Hooks) error {
	ids, err := leftIDs(c.dir)
	if err != nil {
		return err
	}
	r := &recovery{c: c, cont: cont, hooks: hooks, slots: make(semaphore, recoverAtOnce)}
	busy := soon(ids, func(ids []string) []string { return r.begin(ctx, ids) })
	r.underway.Wait()
	if len(busy) > 0 {
		c.log.Info("files that other processes work with are left to them, and are looked at again as long as this mount lives",
			"files", len(busy), "first_id", busy[0])
	}
	c.later(busy, func(ctx context.Context, ids []string) []string {
		busy := r.begin(ctx, ids)
		r.underway.Wait()
		return busy
	})
	return nil
}

// recovery is one call of Recover.
type recovery struct {
	c        *Cache
	cont     blob.Container
	hooks    Hooks
	slots    semaphore
	underway sync.WaitGroup
}

// begin begins to commit what is finished of some staging files, and returns those that other processes work with.
func (r *recovery) begin(ctx context.Context, ids []string) (busy []string) {
	c := r.c
	for _, id := range ids {
		l, err := c.openLeftOf(id, r.cont)
		switch {
		case c.look.Err() != nil: // the checksums were not all compared
			if l != nil {
				l.close()
			}
			return nil
		case errors.Is(err, errInUse):
			busy = append(busy, id)
			continue
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			c.log.Warn("a staging file cannot be opened and is left alone", "id", id, "dir", c.staging, "error", err)
			continue
		}
		whole := c.mayRecover(l, r.cont)
		// An empty Put Blob makes the service drop the blocks that are not committed.
		nameOnly := l.State == LeftUnfinished && l.rec.named && l.Only == 0 && l.worthSaving() && l.Container == r.cont.URL("")
		if !whole && !nameOnly {
			l.close()
			continue
		}
		f, err := c.file(l, r.cont, r.hooks)
		if err != nil {
			l.close()
			c.log.Warn("a staging file cannot be used and is left alone", "id", id, "dir", c.staging, "error", err)
			continue
		}
		if nameOnly {
			f.recoverName(ctx)
			continue
		}
		if r.slots.acquire(context.WithoutCancel(ctx)) != nil {
			break
		}
		f.mu.Lock()
		f.going = l.rec.going
		f.mu.Unlock()
		r.underway.Go(func() {
			defer r.slots.release()
			f.recover(ctx)
		})
	}
	return busy
}

// openLeftOf is openLeft for a staging file of a container. os.ErrNotExist: it is another one's.
func (c *Cache) openLeftOf(id string, cont blob.Container) (*left, error) {
	j, err := os.Open(c.stagingPath(id, extJournal))
	if err != nil {
		return nil, err
	}
	foreign := isForeign(j, cont.URL(""))
	_ = j.Close()
	if foreign {
		return nil, os.ErrNotExist
	}
	return openLeft(c.look, c.dir, id)
}

// mayRecover decides what becomes of a staging file, and reports whether it is to be committed.
func (c *Cache) mayRecover(l *left, cont blob.Container) bool {
	if l.rec == nil {
		c.log.Warn("a journal cannot be read and is left alone", "id", l.ID, "dir", c.staging, "error", l.Reason)
		return false
	}
	if l.Container != cont.URL("") {
		return false
	}
	if !l.worthSaving() {
		if err := l.remove(c.dir); err != nil {
			c.log.Warn("a staging file that is not needed any more cannot be deleted", "id", l.ID, "error", err)
		}
		c.space.release(roundBlock(l.Here))
		return false
	}
	if l.State != LeftFinished {
		c.log.Warn("a file that was not saved needs your decision: see blobmount recover --cache-dir "+c.dir+" list",
			"id", l.ID, "state", l.State.String(), "blob", l.Name, "bytes", l.Size, "reason", l.Reason)
		return false
	}
	return true
}

// wentAway looks whether a blob that was about to be deleted or replaced when its process ended is not there any more.
// Then there is nothing to save. f.commit is held.
func (f *File) wentAway(ctx context.Context) error {
	f.mu.RLock()
	p, isNew, going := f.props, f.isNew, f.going
	f.mu.RUnlock()
	if !going {
		return nil
	}
	now, err := f.cont.Properties(ctx, p.Name, blob.Condition{})
	missing := blob.Is(err, blob.NotFound)
	if err != nil && !missing {
		return err
	}
	f.mu.Lock()
	f.going = false
	if missing {
		f.gone = !isNew // else nothing has replaced it
	} else {
		f.gone = isNew || now.ETag != p.ETag
	}
	gone := f.gone
	f.mu.Unlock()
	if gone {
		f.c.track(f, false)
	}
	return nil
}

// followMove gives a File the name under which its blob is, when its process ended in the middle of a rename. f.commit is
// held.
func (f *File) followMove(ctx context.Context) error {
	f.mu.RLock()
	p, isNew, to := f.props, f.isNew, f.moving
	f.mu.RUnlock()
	if to == "" {
		return nil
	}
	var now blob.Properties
	var err error
	if !isNew {
		_, err = f.cont.Properties(ctx, p.Name, blob.Condition{})
	}
	away := blob.Is(err, blob.NotFound)
	if away {
		now, err = f.cont.Properties(ctx, to, blob.Condition{})
	}
	if err != nil && !blob.Is(err, blob.NotFound) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moving = ""
	// Else it has its old name, or a commit will tell what is wrong.
	if away && err == nil && (now.CopiedFrom == p.Name || now.ETag == p.ETag) {
		f.renamed(to, blob.Written{ETag: now.ETag, Modified: now.Modified}, false)
		f.stage.relearn()
	}
	return nil
}

// recover commits a file that an earlier process has left.
func (f *File) recover(ctx context.Context) {
	err := f.Commit(ctx)
	f.mu.RLock()
	name, lost, gone := f.props.Name, f.lost != nil, f.gone
	f.mu.RUnlock()
	switch {
	case gone:
	case err == nil:
		f.c.log.Info("saved what an earlier mount had left", "blob", name, "bytes", f.State().Size)
	case !lost:
		f.c.log.Warn("what an earlier mount had left is not saved yet, trying again", "blob", name, "error", err)
	}
	f.Settle() // tries again if need be
}

// recoverName makes the empty file that a close was answered for, of one that was written to since and not closed. What
// was written is kept.
func (f *File) recoverName(ctx context.Context) {
	defer f.putBack()
	f.mu.RLock()
	o := f.options()
	f.mu.RUnlock()
	o.Condition = blob.Condition{IfNoneMatch: blob.Any} // whoever wins otherwise: an empty file replaces nothing
	w, err := f.cont.Upload(ctx, f.props.Name, bytes.NewReader(nil), 0, o)
	if blob.Is(err, blob.Exists) {
		return // saved before
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.isNew, f.props.ETag = false, w.ETag
		err = f.noteBase(false)
	}
	if err != nil {
		f.c.log.Warn("an empty file that an earlier mount had left is not saved, the next mount tries again", "blob", f.props.Name, "error", err)
	}
}

// Save writes the content of a staging file to w. Bytes that were not written are those of the version that the file was
// made from: they come from the cache or else from cont. Nothing changes. It returns how many bytes no checksum vouches
// for: they are what was written if the machine has not lost power since.
func (c *Cache) Save(ctx context.Context, id string, cont blob.Container, w io.Writer) (unproven int64, err error) {
	f, err := c.openLeftFile(id, cont, LeftUnreadable)
	if err != nil {
		return 0, err
	}
	defer f.putBack()
	unproven = f.stage.believe()
	if n := f.stage.released.total(); n > 0 {
		return 0, fmt.Errorf("%d bytes of %s are only in blocks of the service that are not committed: commit it with blobmount recover retry %s", n, id, id)
	}
	buf := make([]byte, largeSlab)
	for off := int64(0); off < f.size; {
		d, err := f.Read(ctx, buf, off)
		if err != nil {
			return 0, fmt.Errorf("bytes from %d on of the version that the file was made from cannot be had: %w", off, err)
		}
		for _, b := range d.Bytes {
			if _, err := w.Write(b); err != nil {
				d.Done()
				return 0, err
			}
		}
		off += int64(d.Len())
		d.Done()
	}
	return unproven, nil
}

// Retry commits a staging file, whatever its state but LeftDamaged, as long as the blob is what it was made from; with
// LastWriterWins in the Config, whatever the blob is.
func (c *Cache) Retry(ctx context.Context, id string, cont blob.Container, hooks Hooks) error {
	f, err := c.openLeftFile(id, cont, LeftDamaged)
	if err != nil {
		return err
	}
	f.hooks = hooks
	if err := f.Commit(ctx); err != nil {
		f.putBack()
		return err
	}
	f.Settle()
	return nil
}

// openLeftFile returns a File for a staging file that somebody has named, unless it is in a state that is refused.
func (c *Cache) openLeftFile(id string, cont blob.Container, refused LeftState) (*File, error) {
	l, err := findLeft(c.dir, id)
	if err != nil {
		return nil, err
	}
	if l.rec == nil || l.State == refused {
		l.close()
		return nil, fmt.Errorf("%s is %s: %s", id, l.State, l.Reason)
	}
	if l.bodiless() {
		l.close()
		return nil, fmt.Errorf("%s: %w", id, errNoData)
	}
	if n := l.rec.lost.total(); n > 0 {
		l.close()
		return nil, fmt.Errorf("%s: %s", id, lostReason(n))
	}
	f, err := c.file(l, cont, Hooks{Committed: func(blob.Properties, bool) {}})
	if err != nil {
		l.close()
		return nil, err
	}
	return f, nil
}

// putBack leaves a staging file to others again.
func (f *File) putBack() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.c.track(f, false)
	f.dropBase()
	if f.stage != nil {
		f.stage.leave()
		f.setStage(nil)
	}
	f.saved = f.gen
}
