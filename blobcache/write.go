package blobcache

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// Write puts p at off. It does not wait for the service as long as what is not sent yet is less than the cache may hold;
// beyond that it becomes slower (see relieve). On an error nothing of p counts as written.
func (f *File) Write(ctx context.Context, p []byte, off int64) error {
	return f.writeAt(ctx, p, func() int64 { return off })
}

// Append is Write at the end of the file, whatever else changes it, and returns where that was.
func (f *File) Append(ctx context.Context, p []byte) (off int64, err error) {
	err = f.writeAt(ctx, p, func() int64 {
		off = f.size
		return off
	})
	return off, err
}

// writeAt is Write at a place that is asked for with f.mu held.
func (f *File) writeAt(ctx context.Context, p []byte, at func() int64) error {
	f.relieve(ctx)
	place := func() (int64, int64) {
		off := at()
		return off, off + int64(len(p))
	}
	return f.change(ctx, place, func(off, end int64) error {
		if err := f.mayWrite(off); err != nil {
			return err
		}
		if err := f.prepare(end); err != nil {
			return err
		}
		err := f.stage.write(p, off)
		if errors.Is(err, unix.ENOSPC) && f.releaseAll() {
			err = f.stage.write(p, off)
		}
		if err != nil {
			f.spoiled(off, end)
			return err
		}
		f.size = max(f.size, end)
		f.changed(off, end, p)
		f.stageAhead(off, end)
		return nil
	})
}

// spoiled notes a change that failed: the staging file may have it, in part or as a whole, so that is what the file is
// within its size, and what the next commit sends. f.mu is held.
func (f *File) spoiled(off, end int64) {
	if end > f.size {
		_ = f.stage.file.Truncate(f.size) // else what lies there would show when the file grows
	}
	end = min(end, f.size)
	for pos := off; pos < end; {
		to, valid := f.stage.valid.run(pos, end)
		if !valid && pos < f.limit {
			pos = min(to, f.limit)
			continue
		}
		f.stage.changed.add(pos, to)
		f.stage.mark(pos, to)
		f.changed(pos, to, nil)
		pos = to
	}
}

// change calls act, with f.mu held, for a change of the bytes that place returns. What has to be committed before is.
func (f *File) change(ctx context.Context, place func() (off, end int64), act func(off, end int64) error) error {
	for {
		f.writers.RLock()
		f.mu.Lock()
		off, end := place()
		first := f.commitFirst(off, end)
		var err error
		if !first {
			err = act(off, end)
		}
		f.mu.Unlock()
		f.writers.RUnlock()
		if !first {
			return err
		}
		if err := f.Commit(ctx); err != nil {
			return err
		}
	}
}

// commitFirst reports whether a change of [off, end) has to wait for a commit. f.mu is held.
func (f *File) commitFirst(off, end int64) bool {
	if f.lost != nil || !f.dirty() {
		return false
	}
	// Blocks of which only the service has the bytes can be changed when they can be read, and what may just be at the end
	// of an append blob when it is known whether it is.
	if f.stage != nil && f.stage.released.overlaps(off, end) || f.appending(off) {
		return true
	}
	// A close was answered for what is here now: what comes later must not touch it before the service has it. Of a new
	// empty file only the name can be lost, and the journal keeps that: a shell closes a descriptor of the file that it
	// is about to write to.
	return f.acked == f.gen && f.c.writeBack == WriteBackClose && !(f.isNew && f.size == 0)
}

// prepare makes sure that there is a staging file and that a file of this size can be committed. f.mu is held.
func (f *File) prepare(size int64) error {
	if f.lost != nil {
		return f.lost // it could never be committed: say so before more is written
	}
	if f.left {
		return errClosed
	}
	if f.stage == nil {
		// The base must be open before the first write: the blob's name and ETag change with the commit.
		f.openBase()
		st, err := f.newStage()
		if err != nil {
			return err
		}
		f.setStage(st)
	}
	return f.fits(size)
}

// fits makes sure that the blocks of a file hold size bytes. f.mu is held.
func (f *File) fits(size int64) error {
	st := f.stage
	if !st.learned && f.limit == 0 {
		if err := f.layOut(newLayout(f.c.blockSize, size), nil); err != nil {
			return err
		}
	}
	if !st.learned || size <= st.layout.capacity() {
		return nil // one that is not learned is checked at the commit
	}
	if l := newLayout(f.c.blockSize, size); size <= l.capacity() && len(st.layout.kept) == 0 && !st.anyStaged() {
		return f.layOut(l, nil)
	}
	return &blob.Error{Code: blob.TooLarge, Op: "Write", Name: f.props.Name}
}

// layOut decides the layout. Of the blocks that the blob has, those that nothing has changed are kept. f.mu is held.
func (f *File) layOut(l layout, have []blob.Block) error {
	st := f.stage
	if l.first != st.layout.first || l.every != st.layout.every {
		if err := st.journal.span(recLayout, l.first, int64(l.every)); err != nil {
			return err
		}
	}
	st.layout, st.learned = l, true
	clear(st.blocks)
	f.keepBlocks(have)
	f.markChanged()
	st.left = slices.DeleteFunc(st.left, func(b stagedBlock) bool { // by an earlier process
		i := l.index(b.off)
		is := st.isBlock(i, b.extent, f.size)
		if is {
			st.blocks[i] = &block{gen: f.gen, staged: f.gen, after: f.attempts, id: b.id, size: b.end - b.off, ahead: true}
		}
		return is
	})
	if f.size > l.capacity() {
		return &blob.Error{Code: blob.TooLarge, Op: "Commit", Name: f.props.Name}
	}
	return nil
}

// isBlock reports whether x is block i of a file of this size.
func (s *stage) isBlock(i int, x extent, size int64) bool {
	off, end := s.layout.span(i)
	return x == extent{off, min(end, size)}
}

// newStage returns a staging file for the File as it is. f.mu is held.
func (f *File) newStage() (*stage, error) {
	if f.base != nil && f.under.name == f.props.Name {
		st, err := f.takeOver()
		if err == nil {
			f.dropBase()
			return st, nil
		}
		if f.exposed {
			return nil, err
		}
	}
	if f.exposed { // the kernel would go on reading the file that it was shown
		return nil, f.busy()
	}
	return f.c.newStage(f.header())
}

// header returns what a journal of the File as it is begins with. f.mu is held.
func (f *File) header() header {
	var l layout
	if f.stage != nil {
		l = f.stage.layout
	} else if f.limit == 0 {
		l = newLayout(f.c.blockSize, f.size)
	}
	return header{
		Version: journalVersion, Container: f.cont.URL(""), PID: os.Getpid(), Boot: bootID(), Began: f.c.now(),
		BlockSize: l.first, Every: l.every, Base: f.lower(!f.dirty()), Details: f.details(), Size: f.size,
		Moving: f.moving,
	}
}

// lower returns what the journal says of the blob and of what lies under the writes. f.mu is held.
func (f *File) lower(clean bool) base {
	b := base{Name: f.props.Name, New: f.isNew, Kind: f.props.Kind, Limit: f.limit, Clean: clean}
	if !f.isNew {
		b.ETag = f.props.ETag
	}
	if f.limit > 0 {
		b.From, b.FromETag, b.FromSize = f.under.name, f.under.etag, f.under.size
	}
	return b
}

// details returns what a commit sends beside the content. f.mu is held.
func (f *File) details() details {
	d := details{Headers: f.props.Headers, Metadata: f.props.Metadata, TagCount: f.props.TagCount, Modified: f.modified}
	if !f.props.TierInferred {
		d.Tier = f.props.Tier
	}
	return d
}

// changed notes a change of [off, end), to p unless that is nil. f.mu is held.
func (f *File) changed(off, end int64, p []byte) {
	f.bump()
	f.modified = f.c.now()
	f.markBlocks(off, end, p)
}

// bump counts a change. f.mu is held.
func (f *File) bump() {
	if f.gen == f.saved {
		f.since = f.c.now()
		f.c.track(f, true)
	}
	f.gen++
}

// markBlocks notes that the blocks of [off, end) have to be uploaded, once it is known which those are, and that p was
// written there unless it is nil.
func (f *File) markBlocks(off, end int64, p []byte) {
	st := f.stage
	st.left = slices.DeleteFunc(st.left, func(b stagedBlock) bool { return b.off < end && off < b.end })
	if !st.learned || off >= end {
		return
	}
	for i := st.layout.index(off); i <= st.layout.index(end-1); i++ {
		b := st.block(i)
		b.gen, b.committed = f.gen, false
		if p == nil {
			b.tally = tally{}
			continue
		}
		from, to := st.layout.span(i)
		at := max(from, off)
		b.tally.add(p[at-off:min(to, end)-off], at-from)
	}
}

// markChanged is markBlocks for everything that differs from the base. f.mu is held.
func (f *File) markChanged() {
	left := f.stage.left
	f.stage.left = nil // these are not changes of now
	for _, x := range f.stage.changed {
		f.markBlocks(x.off, x.end, nil)
	}
	f.stage.left = left
}

// Truncate sets the size in bytes. What is added reads as zeros.
func (f *File) Truncate(ctx context.Context, size int64) error {
	// A block of which only the service has the bytes can be given up, but not cut.
	place := func() (int64, int64) {
		if size == 0 || size > f.size {
			return 0, 0
		}
		return size - 1, min(size+1, f.size)
	}
	return f.change(ctx, place, func(_, _ int64) error { return f.truncate(size) })
}

// truncate is Truncate with f.mu held.
func (f *File) truncate(size int64) error {
	if size == f.size {
		return nil
	}
	if err := f.mayWrite(min(size, f.size)); err != nil {
		return err
	}
	if err := f.prepare(size); err != nil {
		return err
	}
	old := f.size
	if f.exposed || size < old {
		// The kernel reads an exposed staging file by itself: its end is the file's.
		if err := f.stage.truncate(size); err != nil {
			return err
		}
	} else if err := f.stage.journal.setSize(size); err != nil {
		return err
	}
	f.limit = min(f.limit, size)
	f.cut(size)
	if f.limit == 0 {
		f.dropBase()
	}
	f.size = size
	// The blocks in which the old and the new end lie have other contents or lengths now.
	f.changed(max(min(old, size)-1, 0), max(min(old, size)+1, size), nil)
	return nil
}

// Zero makes [off, off+n) read as zeros, as far as it lies within the file.
func (f *File) Zero(ctx context.Context, off, n int64) error {
	place := func() (int64, int64) { return off, min(off+n, f.size) }
	return f.change(ctx, place, func(off, end int64) error {
		if off >= end {
			return nil
		}
		if err := f.mayWrite(off); err != nil {
			return err
		}
		if err := f.prepare(f.size); err != nil {
			return err
		}
		if err := f.stage.zero(off, end); err != nil {
			f.spoiled(off, end)
			return err
		}
		f.changed(off, end, nil)
		return nil
	})
}

// Data returns where the next byte from off on lies that is not known to be zero, or with hole the next one that is: the
// end of the file counts as one. It returns false when there is none, or off is not in the file. Holes are known only in
// a file that is dirty: the service keeps none.
func (f *File) Data(off int64, hole bool) (int64, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off < 0 || off >= f.size {
		return 0, false
	}
	for pos := off; pos < f.size; {
		end, data := f.extentAt(pos)
		if data != hole {
			return pos, true
		}
		pos = end
	}
	return f.size, hole
}

// extentAt returns whether the byte at pos may be other than zero, and up to where that is so. f.mu is held.
func (f *File) extentAt(pos int64) (int64, bool) {
	if pos < f.limit {
		return min(f.limit, f.size), true
	}
	if f.stage == nil {
		return f.size, false
	}
	end, data := f.stage.valid.run(pos, f.size)
	if data {
		return end, true
	}
	until, released := f.stage.released.run(pos, end)
	return until, released
}

// ChangeMetadata replaces the metadata by what change makes of m, a copy of it. A dirty file takes it along with its
// commit; otherwise it is sent at once, by one request. change is told what the file looks like, no commit comes in
// between, and what it returns is from then on the time of the last change of the content, unless it is zero. It is called
// once and must not call the File. When it fails, or leaves m as it was and returns zero, nothing is done.
func (f *File) ChangeMetadata(ctx context.Context, change func(s State, m map[string]string) (modified time.Time, err error)) error {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.Lock()
	s := f.state()
	m := maps.Clone(f.props.Metadata)
	if m == nil {
		m = map[string]string{}
	}
	modified, err := change(s, m)
	if err != nil || modified.IsZero() && maps.Equal(m, f.props.Metadata) {
		f.mu.Unlock()
		return err
	}
	if !modified.IsZero() {
		f.modified = modified
	}
	if f.gen != f.saved || f.gone {
		defer f.mu.Unlock()
		acked := f.acked == f.gen
		f.props.Metadata = m
		f.gen++
		if acked {
			f.acked = f.gen
		}
		f.noteDetails()
		return nil
	}
	f.mu.Unlock()
	return f.sendMetadata(ctx, m)
}

// noteDetails puts metadata and times into the journal of a dirty file. f.mu is held.
func (f *File) noteDetails() {
	if f.stage == nil || !f.dirty() {
		return
	}
	if err := f.stage.journal.json(recDetails, f.details()); err != nil {
		// The content is what must not be lost, and the commit sends what is in memory.
		f.c.log.Warn("attributes of a file that is not saved yet would be lost in a crash", "blob", f.props.Name, "error", err)
	}
}

// sendMetadata replaces the metadata in the service. f.commit is held.
func (f *File) sendMetadata(ctx context.Context, metadata map[string]string) error {
	f.mu.RLock()
	p, gen, only := f.props, f.gen, f.stage == nil
	f.mu.RUnlock()
	defer f.c.Moving(f.cont, p.Name, p.ETag)()
	w, err := f.cont.SetMetadata(ctx, p.Name, metadata, blob.Condition{IfMatch: p.ETag})
	if err != nil {
		return err
	}
	if w.Doubtful {
		// What is cached must not be taken for the content of that version: the name is looked up anew, and who has the
		// file open stays with the version of before.
		if f.hooks.Lost != nil {
			f.hooks.Lost()
		}
		return nil
	}
	f.c.Moved(f.cont, p.Name, p.ETag, p.Name, w.ETag)
	f.mu.Lock()
	f.props.Metadata = metadata
	f.renamed(p.Name, w, true)
	if only && f.gen == gen {
		f.saved = gen
	}
	p = f.props
	dirty := f.gen != f.saved
	f.mu.Unlock()
	if !dirty {
		f.c.track(f, false)
	}
	f.hooks.Committed(p, dirty)
	return nil
}
