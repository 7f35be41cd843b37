package blobcache

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"blobmount/blobcache/blob"
)

// Commit makes the service hold what was written up to now. A clean file costs nothing. On an error the file stays
// dirty, its bytes stay staged, and the next Commit tries again; but when another writer has changed the blob
// (ConditionNotMet), this and all later commits fail, and the bytes are kept.
//
// A file of up to one block is sent by one Put Blob, if a quarter of the memory holds it. A larger one is a list of
// blocks: those that the blob has already, those that were uploaded while the program was still writing, and the rest.
func (f *File) Commit(ctx context.Context) error { return f.commitState(ctx, 0) }

// errMoved says that the state that was to be committed is not there any more.
var errMoved = errors.New("the file is being changed")

// commitState is Commit, of the state only unless that is 0: a commit in the background must not take what a program is
// just writing for what it has closed. It fails with errMoved if the state is another one.
func (f *File) commitState(ctx context.Context, only uint64) error {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.only = only
	err := f.commitLocked(ctx)
	f.only = 0
	if errors.Is(err, errMoved) {
		return err
	}
	f.mu.Lock()
	f.failed = err
	f.mu.Unlock()
	return err
}

// commitLocked is Commit with f.commit held.
func (f *File) commitLocked(ctx context.Context) error {
	f.mu.RLock()
	lost, dirty, left := f.lost, f.dirty(), f.left
	written := f.stage != nil || f.isNew
	f.mu.RUnlock()
	if !dirty {
		return nil
	}
	if lost != nil {
		return lost
	}
	if left {
		return errClosed
	}
	if !written { // only the metadata changed, while the blob was about to be deleted
		return f.sendMetadata(ctx, f.Metadata())
	}
	if over, err := f.resolve(ctx); over || err != nil {
		return err
	}
	err := f.commitOnce(ctx)
	for try := 0; blob.Is(err, blob.InvalidBlockList) && try < discardedTries; try++ {
		// Somebody's commit under this name has discarded our uncommitted blocks. The condition of the next
		// attempt decides whether that somebody has won.
		f.mu.Lock()
		f.stage.prove()
		lost := f.stage.relearn()
		f.mu.Unlock()
		if lost {
			return f.conflict(ctx, err)
		}
		err = f.commitOnce(ctx)
	}
	switch blob.CodeOf(err) {
	case blob.Exists, blob.ConditionNotMet:
		landed, unknown := f.landed(ctx)
		switch {
		case unknown != nil: // whose version it is will be asked again by the next commit
			return unknown
		case !landed:
			return f.conflict(ctx, err)
		case f.State().Dirty: // it was changed after the try that had landed
			return f.commitLocked(ctx)
		}
		return nil
	}
	return err
}

// resolve finds out how that ended which an earlier commit, or an earlier process, has begun. It reports whether there is
// nothing to commit any more. When it fails nothing may be sent: a second try would make the first one look like another
// writer's. f.commit is held.
func (f *File) resolve(ctx context.Context) (over bool, err error) {
	if err := f.followMove(ctx); err != nil {
		return false, err
	}
	f.mu.RLock()
	unknown := len(f.tried) > 0
	f.mu.RUnlock()
	if unknown {
		if _, err := f.landed(ctx); err != nil {
			return false, err
		}
	}
	if err := f.wentAway(ctx); err != nil {
		return false, err
	}
	return !f.State().Dirty, nil
}

// discardedTries bounds how often blocks are uploaded again because another writer's commits discard them, which
// happens more than once only without conditions.
const discardedTries = 5

// commitOnce sends what there is to send, in the way that is cheapest.
func (f *File) commitOnce(ctx context.Context) error {
	f.mu.RLock()
	st := f.stage
	f.mu.RUnlock()
	if f.fitsPut() && !f.isCopy() && st != nil {
		// The checksums of the journal are to cover all of it: then a later process can tell whether the version that it
		// finds is this one.
		if err := f.fill(ctx, st, 0, f.c.putMax); err != nil {
			return err
		}
	}
	if err := f.finish(false, f.only); err != nil {
		return err
	}
	for round := 0; ; round++ {
		f.mu.RLock()
		kind := f.props.Kind
		f.mu.RUnlock()
		switch {
		case kind == blob.AppendBlob && f.onlyAppended():
			return f.commitAppend(ctx)
		case kind == blob.AppendBlob:
			if err := f.convert(ctx); err != nil {
				return err
			}
			continue
		case f.isCopy():
			err := f.commitCopy(ctx)
			if blob.Is(err, blob.Unsupported) || blob.Is(err, blob.ConditionNotMet) || blob.Is(err, blob.NotFound) {
				return f.commitBlocks(ctx) // the source has changed, or the blob: that tells which
			}
			return err
		case !f.fitsPut():
			return f.commitBlocks(ctx)
		}
		if grown, err := f.commitSmall(ctx, round); !grown {
			return err
		}
	}
}

// fitsPut reports whether the file is sent by one Put Blob.
func (f *File) fitsPut() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.props.Kind == blob.BlockBlob && f.size <= f.c.putMax && (f.stage == nil || !f.stage.anyStaged())
}

// options returns what goes with the write. f.mu is held.
func (f *File) options() blob.WriteOptions {
	o := blob.WriteOptions{Headers: f.props.Headers, Metadata: maps.Clone(f.props.Metadata), Tags: f.tags}
	o.Headers.ContentMD5 = nil // of the old content
	if !f.props.TierInferred {
		o.Tier = f.props.Tier
	}
	if o.Metadata == nil {
		o.Metadata = map[string]string{}
	}
	if f.hooks.Stamp != nil {
		f.hooks.Stamp(o.Metadata, f.modified)
	}
	o.Condition = f.condition()
	return o
}

// condition returns under which the blob may be replaced. f.mu is held.
func (f *File) condition() blob.Condition {
	switch {
	case f.c.lastWriterWins:
		return blob.Condition{}
	case f.isNew:
		return blob.Condition{IfNoneMatch: blob.Any}
	}
	return blob.Condition{IfMatch: f.props.ETag}
}

// learnTags fetches the blob's index tags, which a write that does not send them would remove.
func (f *File) learnTags(ctx context.Context) error {
	f.mu.RLock()
	name, missing := f.props.Name, f.props.TagCount > 0 && f.tags == nil
	f.mu.RUnlock()
	if !missing {
		return nil
	}
	tags, err := f.cont.Tags(ctx, name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.tags = tags
	f.mu.Unlock()
	return nil
}

// commitSmall sends the file by one Put Blob, out of memory, so that writers need not wait. It does nothing and reports
// true if the file has grown meanwhile, so that the memory does not hold it: more must not be asked for while some is
// held.
func (f *File) commitSmall(ctx context.Context, round int) (grown bool, err error) {
	if round == 2 { // as in commitBlocks
		f.writers.Lock()
		defer f.writers.Unlock()
	}
	f.mu.RLock()
	size, st := f.size, f.stage
	f.mu.RUnlock()
	if err := f.learnTags(ctx); err != nil {
		return false, err
	}
	if err := f.fill(ctx, st, 0, size); err != nil {
		return false, err
	}
	var slabs []*slab
	if size > 0 {
		if slabs, err = f.c.budget.get(ctx, size); err != nil {
			return false, err
		}
		defer f.c.budget.put(slabs)
	}
	// Nothing may come between the note of what is sent and the request.
	if err := f.c.uploads.acquire(ctx); err != nil {
		return false, err
	}
	release := sync.OnceFunc(f.c.uploads.release)
	defer release()
	f.mu.Lock()
	if f.size > size {
		f.mu.Unlock()
		return true, nil
	}
	size = f.size
	body, err := loadSlabs(slabs, size, func(p []byte, at int64) error { return st.readAt(p, at) })
	if err != nil {
		f.mu.Unlock()
		return false, err
	}
	if st != nil && st.blocks[0] != nil && st.blocks[0].tally.n == size { // an empty file has no stage
		body.tally = st.blocks[0].tally.clone()
	}
	name, o := f.props.Name, f.options()
	a := &attempt{Way: byPut, Size: size, CRC: body.sum()}
	moved := f.begin(a)
	f.mu.Unlock()
	if moved != nil {
		return false, moved
	}
	w, err := f.cont.Upload(ctx, name, body, size, o)
	release()
	if err != nil {
		return false, diagnose(err, body, body.tally)
	}
	f.done(w, o, a, nil)
	f.mu.Lock()
	if f.stage != nil { // a Put Blob leaves no blocks
		_ = f.layOut(newLayout(f.c.blockSize, f.size), nil) // else the next commit asks the service
	}
	f.mu.Unlock()
	return false, nil
}

// commitBlocks uploads the blocks that the service does not have in their present state, and commits the list.
func (f *File) commitBlocks(ctx context.Context) error {
	if err := f.learnTags(ctx); err != nil {
		return err
	}
	for round := 0; ; round++ {
		// A writer that goes on writing can make every upload stale: in the third round it has to wait.
		if round == 2 {
			f.writers.Lock()
			defer f.writers.Unlock()
		}
		f.mu.RLock()
		size, st := f.size, f.stage
		f.mu.RUnlock()
		if err := f.learn(ctx, st); err != nil {
			return err
		}
		if err := f.stageAll(ctx, st, size); err != nil {
			return err
		}
		f.mu.Lock()
		ids, ok := f.list(size)
		name, o := f.props.Name, f.options()
		a := &attempt{Way: byList, Size: size, IDs: digest(ids)}
		var moved error
		if ok {
			moved = f.begin(a)
		} else if f.moved() {
			moved = errMoved
		}
		f.mu.Unlock()
		if moved != nil {
			return moved
		}
		if !ok {
			continue
		}
		w, err := f.cont.CommitBlockList(ctx, name, ids, o)
		if err != nil {
			return err
		}
		f.done(w, o, a, ids)
		return nil
	}
}

// moved reports whether the state that is to be committed is not there any more. f.mu and f.commit are held.
func (f *File) moved() bool { return f.only != 0 && f.only != f.gen }

// list returns the block ids of a file of this size, and whether all of them are up to date. f.mu is held.
func (f *File) list(size int64) ([]string, bool) {
	if f.size != size || !f.stage.learned {
		return nil, false
	}
	ids := make([]string, 0, f.stage.layout.count(size))
	for i := range cap(ids) {
		b := f.stage.blocks[i]
		off, end := f.stage.layout.span(i)
		if !b.current() || b.size != min(end, size)-off {
			return nil, false
		}
		ids = append(ids, b.id)
	}
	return ids, true
}

// isCopy reports whether the file is, as a whole, a copy of another blob.
func (f *File) isCopy() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.under.name != f.props.Name && f.limit > 0 && f.limit == f.size && f.size == f.under.size &&
		(f.stage == nil || len(f.stage.changed) == 0)
}

// commitCopy lets the service copy the blob.
func (f *File) commitCopy(ctx context.Context) error {
	f.mu.Lock()
	name, under, o := f.props.Name, f.under, f.options()
	a := &attempt{Way: byCopy, Size: f.size, From: under.name, FromETag: under.etag}
	moved := f.begin(a)
	f.mu.Unlock()
	if moved != nil {
		return moved
	}
	w, err := f.cont.Copy(ctx, name, under.name, blob.CopyOptions{
		Source: blob.Condition{IfMatch: under.etag}, Condition: o.Condition, Metadata: o.Metadata,
	})
	if err != nil {
		return err
	}
	f.mu.RLock()
	headers, tags := f.copied.Headers, f.copied.TagCount
	f.mu.RUnlock()
	f.doneCopy(w, o, a, headers, tags)
	return nil
}

// doneCopy is done for a copy in the service: headers and tags came along.
func (f *File) doneCopy(w blob.Written, o blob.WriteOptions, a *attempt, headers blob.Headers, tags int) {
	o.Headers = headers
	f.mu.Lock()
	f.tags = nil
	f.mu.Unlock()
	f.done(w, o, a, nil)
	f.mu.Lock()
	f.props.TagCount = tags
	f.mu.Unlock()
}

// done notes a commit, as the list of these blocks. Without one the blob has others, or none. f.commit is held.
func (f *File) done(w blob.Written, o blob.WriteOptions, a *attempt, ids []string) {
	f.mu.Lock()
	f.props.ETag, f.props.Modified, f.props.Size = w.ETag, w.Modified, a.Size
	f.props.Kind, f.props.Headers, f.props.TagCount = blob.BlockBlob, o.Headers, len(o.Tags)
	clean := f.gen == a.gen
	if clean {
		f.props.Metadata = o.Metadata
	}
	f.isNew, f.tried = false, nil
	f.saved = a.gen
	f.dropBase()
	f.under, f.limit = lower{f.props.Name, w.ETag, a.Size}, a.upTo
	if st := f.stage; st != nil {
		switch {
		case clean:
			st.changed = nil
		case a.old:
			st.changed = st.changed.and(a.since)
		}
		st.committed(ids)
		f.compact(clean)
	}
	f.report(clean)
}

// report tells of a commit that was noted, and whether there are no later changes. f.mu is held, and let go.
func (f *File) report(clean bool) {
	p, st := f.props, f.stage
	f.mu.Unlock()
	f.syncNote(st)
	if clean {
		f.c.track(f, false)
	}
	f.hooks.Committed(p, !clean)
}

// committed notes that the blob consists of these blocks now, or that it has others if there are none: the service has
// dropped all that are not named, unless they came later. Those that only the service has are still counted on: there is
// nothing else to count on.
func (s *stage) committed(ids []string) {
	named := make(map[string]bool, len(ids))
	for _, id := range ids {
		named[id] = true
	}
	var later []stagedBlock
	stays := func(b stagedBlock) bool {
		if named[b.id] {
			s.released.remove(b.off, b.end)
		} else if s.released.overlaps(b.off, b.end) {
			later = append(later, b)
			return true
		}
		return false
	}
	s.left = slices.DeleteFunc(s.left, func(b stagedBlock) bool { return !stays(b) })
	for i, b := range s.blocks {
		if b.staged == 0 {
			continue
		}
		off, _ := s.layout.span(i)
		b.committed = i < len(ids) && b.id == ids[i]
		if !stays(stagedBlock{extent{off, off + b.size}, b.id}) && !b.committed {
			b.staged = 0
		}
	}
	if len(later) == 0 {
		s.released = nil
	}
	if ids == nil {
		s.relearn()
		s.left = later
	}
}

// later returns the uploaded blocks that the blob does not have, of bytes that are nowhere else.
func (s *stage) later() []stagedBlock {
	if len(s.released) == 0 {
		return nil
	}
	later := slices.Clone(s.left)
	for i, b := range s.blocks {
		if b.staged != 0 && !b.committed {
			off, _ := s.layout.span(i)
			later = append(later, stagedBlock{extent{off, off + b.size}, b.id})
		}
	}
	return later
}
