package blobcache

import (
	"context"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// What happens to a File when its blob gets another name, or none.

// Rename gives a File whose blob is not in the service yet another name. For one that is, or may be, use
// BeginMove. It reports whether it could; if so, told was called, before a commit could be made under the new name.
func (f *File) Rename(name string, told func()) bool {
	f.commit.Lock()
	defer f.commit.Unlock()
	if !f.rename(name) {
		return false
	}
	told()
	return true
}

// rename is Rename with f.commit held.
func (f *File) rename(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Blocks belong to the name that they were staged under.
	if !f.isNew || len(f.tried) > 0 || f.stage != nil && len(f.stage.released) > 0 {
		return false
	}
	old := f.props.Name
	f.props.Name = name
	err := f.noteBase(false)
	if err == nil && f.stage != nil && f.stage.durable.Load() { // what was answered for stays so under the new name
		err = unix.Fdatasync(int(f.stage.journal.file.Fd()))
	}
	if err != nil {
		f.props.Name = old
		return false
	}
	if f.stage != nil {
		f.stage.restage()
	}
	return true
}

// renamed notes another name or ETag of the blob. Of one that keeps its name the service keeps the uncommitted blocks too.
// f.mu is held.
func (f *File) renamed(name string, w blob.Written, blocks bool) {
	if f.under.name == f.props.Name && f.under.etag == f.props.ETag {
		f.under.name, f.under.etag = name, w.ETag
	}
	f.props.Name = name
	if !f.isNew {
		f.props.ETag, f.props.Modified = w.ETag, w.Modified
	}
	b := f.lower(f.gen == f.saved)
	b.Blocks = blocks
	if err := f.noteLower(b); err != nil {
		f.c.log.Warn("a crash now would leave a copy of a saved file for blobmount recover", "blob", name, "error", err)
	}
}

// noteBase puts what the File lies over into the journal, if there is one. f.mu is held.
func (f *File) noteBase(clean bool) error { return f.noteLower(f.lower(clean)) }

func (f *File) noteLower(b base) error {
	if f.stage == nil {
		return nil
	}
	return f.stage.journal.json(recBase, b)
}

// Detach prepares for the deletion or replacement of the blob: what is not cached is fetched, so that those who have
// the File open go on reading. It reports whether the service may have the blob. Unless it fails, call Attach when the
// deletion has failed, or Gone when it has happened: until then commits and closes wait.
func (f *File) Detach(ctx context.Context) (inService bool, err error) {
	for {
		if err := f.prepareDetach(ctx); err != nil {
			return false, err
		}
		f.commit.Lock()
		f.mu.Lock()
		if f.users > 0 && f.stage != nil && len(f.stage.released) > 0 { // just now
			f.mu.Unlock()
			f.commit.Unlock()
			continue
		}
		defer f.mu.Unlock()
		if err := f.noteGoing(1); err != nil {
			f.commit.Unlock()
			return false, err
		}
		f.detached = true
		return !f.isNew || len(f.tried) > 0, nil
	}
}

// Gone tells that the deletion or replacement that Detach prepared for has happened. Until then a crash leaves what was
// written to be saved.
func (f *File) Gone() {
	f.mu.Lock()
	st := f.stage
	var err error
	if st != nil && f.gen != f.saved {
		err = st.journal.add(recGone, nil)
	}
	f.gone, f.detached = true, false
	name := f.props.Name
	f.mu.Unlock()
	f.c.track(f, false)
	if err != nil {
		f.c.log.Warn("a crash now would leave a copy of a deleted file for blobmount recover", "blob", name, "error", err)
	}
	f.syncNote(st)
	f.commit.Unlock()
}

// prepareDetach brings everything here that those who have the File open may read.
func (f *File) prepareDetach(ctx context.Context) error {
	f.mu.RLock()
	used, released := f.users > 0, f.stage != nil && len(f.stage.released) > 0
	f.mu.RUnlock()
	if !used {
		return nil
	}
	if released { // only a commit makes them readable
		if err := f.Commit(ctx); err != nil {
			return err
		}
	}
	f.mu.RLock()
	under := f.needsBase()
	f.mu.RUnlock()
	if !under {
		return nil
	}
	v := f.version()
	if v == nil {
		return nil
	}
	defer f.c.unhold(v)
	return v.fill(ctx)
}

// noteGoing puts into the journal whether the blob is about to be deleted or replaced: when it is another one or none
// after a crash, that was the program's wish, and no other writer's doing. f.mu is held.
func (f *File) noteGoing(going byte) error {
	if f.stage == nil || f.gen == f.saved {
		return nil
	}
	return f.stage.journal.add(recGoing, []byte{going})
}

// Attach takes Detach back.
func (f *File) Attach() {
	f.mu.Lock()
	f.detached = false
	if err := f.noteGoing(0); err != nil {
		f.c.log.Warn("a file that is not saved could be taken for deleted after a crash", "blob", f.props.Name, "error", err)
	}
	f.mu.Unlock()
	f.commit.Unlock()
}

// BeginMove prepares for giving the blob the name to in the service. What was written is committed, and until EndMove
// commits and closes wait. It returns the properties of what is to be moved. When it fails, EndMove must not be called.
func (f *File) BeginMove(ctx context.Context, to string) (blob.Properties, error) {
	f.commit.Lock()
	err := f.commitLocked(ctx)
	if err == nil {
		err = f.beginMove(to)
	}
	if err != nil {
		f.commit.Unlock()
		return blob.Properties{}, err
	}
	return f.State().Properties, nil
}

// beginMoveNew is BeginMove for a File whose blob is not in the service and cannot be: nothing is committed. It reports
// whether it is one. EndMove gets a Written without an ETag.
func (f *File) beginMoveNew(to string) bool {
	f.commit.Lock()
	f.mu.RLock()
	isNew := f.isNew && len(f.tried) == 0 && (f.stage == nil || len(f.stage.released) == 0)
	f.mu.RUnlock()
	if !isNew || f.beginMove(to) != nil {
		f.commit.Unlock()
		return false
	}
	return true
}

// beginMove notes that the blob is about to have another name: a process that ends before the outcome is noted may leave
// it under either.
func (f *File) beginMove(to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stage != nil {
		if err := f.stage.journal.add(recMoving, []byte(to)); err != nil {
			return err
		}
	}
	f.moving = to
	f.detached = true // no block that is staged meanwhile may be the only place of its bytes: it is under the old name
	return nil
}

// MovedTo tells, between BeginMove and EndMove and after Cache.Moved, that the blob has its new name: what nobody has read
// yet is read under it from now on. Nothing is asked of the service, so that reads can wait for it.
func (f *File) MovedTo(name string, w blob.Written) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renamed(name, w, false)
	// A version that was opened under the old name after what is cached had got the new one finds nothing there.
	if f.base != nil && f.under.name == name && f.under.etag == w.ETag && !f.base.isOf(name, w.ETag) {
		f.dropBase()
	}
}

// EndMove tells that the blob is now under another name and ETag, with the same bytes and blocks; or, with a nil w, that
// it is not.
func (f *File) EndMove(name string, w *blob.Written) {
	defer f.commit.Unlock()
	f.mu.Lock()
	f.detached, f.moving = false, ""
	st := f.stage
	switch {
	case w != nil:
		f.renamed(name, *w, false)
		if st != nil {
			st.restage()
		}
	case st != nil:
		if err := st.journal.add(recMoving, nil); err != nil {
			f.c.log.Debug("a crash now would cost one more request", "blob", f.props.Name, "error", err)
		}
	}
	f.mu.Unlock()
	f.syncNote(st)
	if w == nil || f.lease.name == "" {
		return
	}
	if err := f.takeLease(f.c.ctx); err != nil {
		f.c.log.Warn("renamed file could not be leased under its new name", "blob", name, "error", err)
	}
}
