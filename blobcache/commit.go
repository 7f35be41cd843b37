package blobcache

import (
	"context"
	"errors"
	"maps"

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
	f.mu.RLock()
	unknown := f.tried != nil
	f.mu.RUnlock()
	if unknown && f.landed(ctx) && !f.State().Dirty {
		return nil
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
		if !f.landed(ctx) {
			return f.conflict(ctx, err)
		}
		if f.State().Dirty { // it was changed after the try that had landed
			return f.commitLocked(ctx)
		}
		return nil
	}
	return err
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
	name, gen, o := f.props.Name, f.gen, f.options()
	moved := f.snapshot(size)
	f.mu.Unlock()
	if moved != nil {
		return false, moved
	}
	if err := f.c.uploads.acquire(ctx); err != nil {
		return false, err
	}
	f.trying(&attempt{gen: gen, size: size, crc: body.sum()})
	w, err := f.cont.Upload(ctx, name, body, size, o)
	f.c.uploads.release()
	if err != nil {
		return false, diagnose(err, body, body.tally)
	}
	f.done(w, o, size, gen, nil)
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
		name, gen, o := f.props.Name, f.gen, f.options()
		moved := f.snapshot(size)
		f.mu.Unlock()
		if moved != nil {
			return moved
		}
		if !ok {
			continue
		}
		f.trying(&attempt{gen: gen, size: size, ids: ids})
		w, err := f.cont.CommitBlockList(ctx, name, ids, o)
		if err != nil {
			return err
		}
		f.done(w, o, size, gen, ids)
		return nil
	}
}

// snapshot notes that size bytes are about to be committed as they are now. It fails with errMoved if that is not the state
// that is wanted. f.mu and f.commit are held.
func (f *File) snapshot(size int64) error {
	f.upTo = size
	if f.only != 0 && f.only != f.gen {
		return errMoved
	}
	return nil
}

// trying notes what is about to be committed.
func (f *File) trying(a *attempt) {
	f.mu.Lock()
	f.tried = a
	f.mu.Unlock()
}

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
	name, under, gen, size, o := f.props.Name, f.under, f.gen, f.size, f.options()
	f.upTo = size
	f.mu.Unlock()
	w, err := f.cont.Copy(ctx, name, under.name, blob.CopyOptions{
		Source: blob.Condition{IfMatch: under.etag}, Condition: o.Condition, Metadata: o.Metadata,
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	o.Headers, f.tags = f.copied.Headers, nil // they came along, and the tags
	tags := f.copied.TagCount
	f.mu.Unlock()
	f.done(w, o, size, gen, nil)
	f.mu.Lock()
	f.props.TagCount = tags
	f.mu.Unlock()
	return nil
}

// done notes a commit of the state gen, as the list of these blocks. Without one the blob has others, or none.
// f.commit is held.
func (f *File) done(w blob.Written, o blob.WriteOptions, size int64, gen uint64, ids []string) {
	f.mu.Lock()
	f.props.ETag, f.props.Modified, f.props.Size = w.ETag, w.Modified, size
	f.props.Kind, f.props.Headers, f.props.TagCount = blob.BlockBlob, o.Headers, len(o.Tags)
	if f.gen == gen {
		f.props.Metadata = o.Metadata
	}
	f.isNew, f.tried = false, nil
	f.saved = gen
	clean := f.gen == gen
	f.dropBase()
	f.under, f.limit = lower{f.props.Name, w.ETag, size}, f.upTo
	if st := f.stage; st != nil {
		st.released = nil
		if clean {
			st.changed = nil
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
// dropped all that are not named.
func (s *stage) committed(ids []string) {
	if ids == nil {
		s.relearn()
		return
	}
	for i, b := range s.blocks {
		b.committed = i < len(ids) && b.id == ids[i] && b.staged != 0
		if !b.committed {
			b.staged = 0
		}
	}
}
