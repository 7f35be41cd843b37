package blobcache

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// The rename of a directory where the service has no such operation: all that is below it is copied in the service, each
// blob under the ETag that was listed and to a name that must be free, and noted in a journal. When all copies are there,
// that is noted too, on the disk, and from then on the rename only goes forward: the sources are deleted, each under the
// ETag that was copied. If a copy fails before that, the copies are deleted again, and the source is whole. The markers of
// the directory itself come last. A process that ends in the middle leaves the journal to the next one. So that no other host
// copies to the same name meanwhile, that is claimed, see claim.

// renameAtOnce bounds the requests of one rename.
const renameAtOnce = 32

// renameProgress is how often the log says how far a rename has come.
const renameProgress = 5 * time.Second

// Why a directory is not renamed, beside the errors of the service.
var (
	ErrNotEmpty    = errors.New("directory is not empty")
	ErrNameTooLong = errors.New("name of a blob would be too long")
	ErrRenaming    = errors.New("another rename to this name is under way, or was interrupted")
)

// DirRename says which directory RenameDir renames, and who has to know. No function of it may be nil.
type DirRename struct {
	From, To string // without a slash at the end
	// Files are the open and dirty Files below From, by their names. They are committed first. What is not committed by
	// then stays so, under the new name.
	Files map[string]*File
	// Opened returns the File of a blob below From that was opened for reading meanwhile, nil for none. Nobody may open one
	// for writing until RenameDir has returned.
	Opened func(name string) *File
	// Deleting is called before the first source is deleted.
	Deleting func()
	// Moved is called for each blob that has its new name, from many goroutines at once. was is its version before.
	Moved func(name string, was blob.ETag, to string, w blob.Written)
	// Done is called when the directory has its new name, also if not all sources could be deleted: left says whether
	// anything stays under the old name. The marker has no name if there is none. Files can be committed after that.
	Done func(marker blob.Properties, left bool)
}

// RenameDir renames a directory, by one request where the container is a blob.Renamer, else by copies. To may be a directory
// that is empty, else the error is ErrNotEmpty, or ErrRenaming while another host has claimed it. The names of both must not be changed through this process meanwhile. After
// an error nothing has changed, unless Done was called; what remains to be done is left to RecoverRenames. A Renamer does
// not tell of single blobs, so that Deleting and Done are all that is called: their versions stay as they are.
func (c *Cache) RenameDir(ctx context.Context, cont blob.Container, r DirRename) error {
	d := &dirRename{c: c, cont: cont, DirRename: r, began: c.now(), held: map[string]*heldFile{}}
	moved, over, err := false, func() {}, error(nil)
	if s, ok := blob.AsRenamer(cont); ok {
		over, err = d.atOnce(ctx, s)
		moved = err == nil
	} else {
		moved, err = d.run(ctx)
	}
	if moved {
		r.Done(d.marker, err != nil || d.changed.Load() > 0)
	}
	over() // before anybody's lease is asked for
	for _, h := range d.held {
		h.release(moved)
	}
	if d.j != nil {
		d.setActive(false)
		d.j.close() // if anything is left to do, another process may
	}
	return err
}

// dirRename is the rename of one directory.
type dirRename struct {
	DirRename
	c     *Cache
	cont  blob.Container
	began time.Time
	// late: an earlier process has begun it, so that nothing is known of the copies but what the journal says.
	late    bool
	marker  blob.Properties // of the directory under its new name, if it has one
	claimed blob.ETag       // of the claim of the new name; empty: none was made, or it is not ours any more
	// claimedAt is when that was made.
	claimedAt time.Time

	copied, deleted, changed atomic.Int64

	mu     sync.Mutex // guards what is below
	j      *journal
	synced int64  // bytes of j that the disk has for certain
	path   string // of j
	state  renameState
	held   map[string]*heldFile
	active bool  // somebody works with it
	failed error // why nobody does
}

// heldFile is a File that cannot be committed as long as its blob is being renamed.
type heldFile struct {
	file  *File
	to    string
	isNew bool
	etag  blob.ETag
	now   *blob.Written // what the blob became
}

func (h *heldFile) release(moved bool) {
	if h.isNew && moved {
		h.now = &blob.Written{}
	}
	h.file.EndMove(h.to, h.now)
}

// atOnce lets the service rename the directory. Reads of what is open wait for over.
func (d *dirRename) atOnce(ctx context.Context, s blob.Renamer) (over func(), err error) {
	var moving []func()
	over = func() {
		for _, h := range d.held {
			if h.now != nil {
				h.file.MovedTo(h.to, *h.now)
			}
		}
		for _, f := range moving {
			f()
		}
	}
	if err := d.holdAll(ctx); err != nil {
		return over, err
	}
	for name, h := range d.held {
		moving = append(moving, d.c.Moving(d.cont, name, h.etag))
	}
	d.Deleting()
	if err = s.Rename(ctx, d.To, d.From, blob.RenameOptions{}); err != nil {
		if blob.Is(err, blob.NotEmpty) {
			err = fmt.Errorf("%w: %w", ErrNotEmpty, err)
		}
		return over, err
	}
	for _, h := range d.held {
		if !h.isNew {
			h.now = &blob.Written{ETag: h.etag, Modified: h.file.State().Properties.Modified}
		}
	}
	if p, err := d.cont.Properties(ctx, d.To, blob.Condition{}); err == nil {
		d.marker = p
	}
	return over, nil
}

// run renames, and reports whether the directory has its new name.
func (d *dirRename) run(ctx context.Context) (moved bool, err error) {
	header, err := d.look(ctx)
	if err != nil {
		return false, err
	}
	if err := d.holdAll(ctx); err != nil {
		return false, err
	}
	if err := d.begin(header); err != nil {
		return false, fmt.Errorf("journal of the rename: %w", err)
	}
	defer d.report()()
	return d.proceed(ctx, nil)
}

// proceed does what is left of a rename. Of rest copies were planned, and not noted.
func (d *dirRename) proceed(ctx context.Context, rest []renamedBlob) (moved bool, err error) {
	if d.state.phase == renameCopies {
		err := d.copies(ctx, rest)
		if err == nil {
			err = d.decide(recForward, renameForward)
		}
		if err != nil && d.late && passing(err) {
			return false, d.postponed("copies are missing", err)
		}
		if err != nil {
			d.c.log.Warn("directory cannot be renamed, taking its copies back", "from", d.From, "to", d.To, "error", err)
			if back := d.decide(recBack, renameBack); back != nil {
				d.c.log.Warn("journal of a rename cannot be written", "error", back)
			}
			return false, errors.Join(err, d.takeBack(context.WithoutCancel(ctx)))
		}
	}
	if d.state.phase == renameBack {
		return false, d.takeBack(ctx)
	}
	d.Deleting()
	if d.late && d.state.planned > 0 {
		if err = d.holdClaim(ctx); errors.Is(err, ErrRenaming) {
			err = nil // it was the last that the process before has done
		}
	}
	if err == nil {
		err = d.deleteAll(ctx)
	}
	if err == nil {
		err = d.moveMarkers(ctx)
	}
	if err != nil {
		return true, errors.Join(d.postponed("all is under the new name, and some is still under the old one too", err), d.moveRest())
	}
	d.end()
	d.c.log.Info("renamed a directory", d.progress()...)
	return true, nil
}

// copies makes the copies, of which rest were planned, and not noted.
func (d *dirRename) copies(ctx context.Context, rest []renamedBlob) error {
	if d.late && d.state.planned > 0 {
		if err := d.holdClaim(ctx); err != nil {
			return err
		}
	}
	if err := d.copyPage(ctx, d.state.planned-int64(len(rest)), rest); err != nil {
		return err
	}
	if err := d.copyAll(ctx); err != nil || d.state.planned == 0 {
		return err
	}
	return d.holdClaim(ctx) // who has removed the new directory may have let another host in
}

// passing reports whether an error may be gone when the same is tried later.
func passing(err error) bool {
	switch blob.CodeOf(err) {
	case blob.Unavailable, blob.Throttled, blob.Unauthenticated, blob.Forbidden, blob.ContainerNotFound, blob.Leased, blob.Busy:
		return true
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// postponed says what the next mount has to do, and returns the error.
func (d *dirRename) postponed(state string, err error) error {
	d.mu.Lock()
	d.failed = err
	d.mu.Unlock()
	level := slog.LevelError
	if d.late && d.c.ctx.Err() != nil {
		level = slog.LevelInfo // it was this mount's turn, and that ends
	}
	d.c.log.Log(context.Background(), level, "rename of a directory is not finished: "+state+"; the next mount goes on with it",
		append(d.progress(), "journal", d.path, "error", err)...)
	return err
}

func (d *dirRename) progress() []any {
	return []any{"from", d.From, "to", d.To, "copied", d.copied.Load(), "deleted", d.deleted.Load(),
		"changed_by_others", d.changed.Load(), "seconds", int(d.c.now().Sub(d.began).Seconds())}
}

// report writes the progress into the log until what it returns is called.
func (d *dirRename) report() (end func()) {
	over := make(chan struct{})
	ticks := time.NewTicker(renameProgress)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-ticks.C:
				d.c.log.Info("renaming a directory", d.progress()...)
			case <-over:
				return
			}
		}
	})
	return func() {
		ticks.Stop()
		close(over)
		done.Wait()
	}
}

// holdAll commits Files, and keeps them from being committed until the rename has ended.
func (d *dirRename) holdAll(ctx context.Context) error {
	names := make([]string, 0, len(d.Files))
	for name := range d.Files {
		names = append(names, name)
	}
	return inParallel(ctx, len(names), func(ctx context.Context, i int) error {
		_, err := d.hold(ctx, names[i], d.Files[names[i]])
		return err
	})
}

func (d *dirRename) hold(ctx context.Context, name string, f *File) (*heldFile, error) {
	h := &heldFile{file: f, to: d.To + name[len(d.From):]}
	if h.isNew = f.beginMoveNew(h.to); !h.isNew {
		p, err := f.BeginMove(ctx, h.to)
		if err != nil {
			return nil, err
		}
		h.etag = p.ETag
	}
	d.mu.Lock()
	d.held[name] = h
	d.mu.Unlock()
	return h, nil
}

// begin makes the journal, on the disk.
func (d *dirRename) begin(h renameHeader) error {
	dir := filepath.Join(d.c.dir, renamesDir)
	if unix.Access(dir, unix.F_OK) != nil {
		if err := makeDurable(dir); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, rand.Text()+extJournal)
	j, err := openJournal(path)
	if err != nil {
		return err
	}
	d.j, d.path, d.state = j, path, renameState{renameHeader: h}
	err = j.begin(h)
	if err == nil {
		err = j.file.Sync()
	}
	if err == nil {
		d.synced = j.size
		err = syncDir(dir)
	}
	if err != nil {
		d.end()
		return err
	}
	d.active = true
	d.c.noteRename(d)
	return nil
}

// sync returns when the disk has all of the journal. d.mu is held.
func (d *dirRename) sync() error {
	if err := unix.Fdatasync(int(d.j.file.Fd())); err != nil {
		return err
	}
	d.synced = d.j.size
	return nil
}

// decide notes, on the disk, in which direction the rename goes from now on.
func (d *dirRename) decide(record byte, phase renamePhase) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.j.add(record, nil)
	if err == nil {
		err = d.sync()
	}
	if err != nil && phase == renameForward {
		return err
	}
	d.state.phase = phase
	return err
}

// end removes the journal: nothing is left to do.
func (d *dirRename) end() {
	err := os.Remove(d.path)
	if err == nil {
		err = syncDir(filepath.Dir(d.path))
	}
	if err != nil { // every step of it is under an ETag, and does nothing the second time
		d.c.log.Warn("journal of a finished rename cannot be deleted", "journal", d.path, "error", err)
	}
	d.j.close()
	d.c.mu.Lock()
	delete(d.c.renames, d.path)
	d.c.mu.Unlock()
}

// pages calls do for the pages of the plan.
func (d *dirRename) pages(do func(first int64, blobs []renamedBlob) error) error {
	d.mu.Lock()
	whole := io.NewSectionReader(d.j.file, 0, d.j.size)
	d.mu.Unlock()
	_, err := readRename(whole, do)
	return err
}

// deleteAll deletes the sources. A blob that cannot be deleted for a reason of its own does not keep the others.
func (d *dirRename) deleteAll(ctx context.Context) error {
	var refused error
	var mu sync.Mutex // guards refused
	err := d.pages(func(first int64, blobs []renamedBlob) error {
		end := first + int64(len(blobs))
		if end <= d.state.deleted {
			return nil
		}
		if err := d.refreshClaim(ctx); err != nil && !errors.Is(err, ErrRenaming) {
			return err
		}
		err := inParallel(ctx, len(blobs), func(ctx context.Context, i int) error {
			var err error
			switch b := blobs[i]; {
			case b.stale:
				err = d.deleteStale(ctx, b)
			case b.copy.ETag != "":
				err = d.deleteOne(ctx, b)
			}
			switch blob.CodeOf(err) {
			case blob.Leased, blob.Immutable:
				mu.Lock()
				refused = cmp.Or(refused, err)
				mu.Unlock()
				return nil
			}
			return err
		})
		if err != nil || refused != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.j.number(recDeleted, end)
	})
	return cmp.Or(err, refused)
}

// deleteOne deletes the source of a copy. A source that was changed since stays: both are somebody's wish.
func (d *dirRename) deleteOne(ctx context.Context, b renamedBlob) error {
	src, dst := d.From+b.name, d.To+b.name
	if d.late || b.found {
		// Days may have passed: who has deleted the copy did not mean to lose the file. One that was found may be another's,
		// if somebody has removed the claim meanwhile.
		if _, err := d.cont.Properties(ctx, dst, blob.Condition{}); blob.Is(err, blob.NotFound) {
			d.changed.Add(1)
			d.c.log.Warn("renamed blob is not there any more under its new name, and stays under the old one", "from", src, "to", dst)
			return nil
		} else if err != nil {
			return err
		}
	}
	h, err := d.follow(ctx, src, b.etag)
	if err != nil {
		return err
	}
	over := d.c.Moving(d.cont, src, b.etag)
	defer over()
	err = d.cont.Delete(ctx, src, blob.Condition{IfMatch: b.etag})
	switch {
	case blob.Is(err, blob.ConditionNotMet):
		d.changed.Add(1)
		d.c.log.Warn("another writer has changed a blob while it was renamed: its version stays under the old name, the one before is under the new name",
			"from", src, "to", dst)
		return nil
	case err != nil && !blob.Is(err, blob.NotFound):
		return err
	}
	d.deleted.Add(1)
	if err == nil || !d.late { // the process before may have copied a later version than it had planned, and not noted that
		d.c.Moved(d.cont, src, b.etag, dst, b.copy.ETag)
	}
	d.Moved(src, b.etag, dst, b.copy)
	if h == nil {
		// Who has opened it since still has the old name; who opens it from now on gets the new one.
		if h, err = d.follow(ctx, src, b.etag); err != nil {
			return err
		}
	}
	if h != nil {
		h.now = &blob.Written{ETag: b.copy.ETag, Modified: b.copy.Modified}
		h.file.MovedTo(dst, *h.now)
	}
	return nil
}

// deleteStale deletes a claim that does not count any more. One that was made anew stays.
func (d *dirRename) deleteStale(ctx context.Context, b renamedBlob) error {
	err := d.cont.Delete(ctx, d.From+b.name, blob.Condition{IfMatch: b.etag})
	switch {
	case blob.Is(err, blob.ConditionNotMet):
		d.changed.Add(1)
		d.c.log.Warn("the name of a directory was claimed anew while one above it was renamed: the claim stays under the old name",
			"blob", d.From+b.name)
		return nil
	case blob.Is(err, blob.NotFound):
		return nil
	}
	return err
}

// follow returns the File whose blob is about to move, nil if there is none, or if it is of another version.
func (d *dirRename) follow(ctx context.Context, name string, etag blob.ETag) (*heldFile, error) {
	d.mu.Lock()
	h := d.held[name]
	d.mu.Unlock()
	if h == nil {
		f := d.Opened(name)
		if f == nil {
			return nil, nil
		}
		var err error
		if h, err = d.hold(ctx, name, f); err != nil {
			return nil, err
		}
	}
	if h.etag != etag {
		return nil, nil
	}
	return h, nil
}

// moveRest lets everybody here use the copies whose sources could not be deleted.
func (d *dirRename) moveRest() error {
	return d.pages(func(_ int64, blobs []renamedBlob) error {
		for _, b := range blobs {
			name := d.From + b.name
			if b.copy.ETag == "" {
				continue
			}
			h := d.held[name]
			if h != nil && h.now == nil && h.etag == b.etag {
				h.now = &blob.Written{ETag: b.copy.ETag, Modified: b.copy.Modified}
			}
			d.Moved(name, b.etag, d.To+b.name, b.copy)
		}
		return nil
	})
}

// inParallel calls do for 0 to n-1, renameAtOnce at a time, and returns the first error after all calls have ended. After
// an error no further call is begun.
func inParallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	begin, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	slots := make(semaphore, renameAtOnce)
	for i := range n {
		if slots.acquire(begin) != nil || begin.Err() != nil {
			break
		}
		wg.Go(func() {
			defer slots.release()
			if err := do(ctx, i); err != nil {
				stop(err) // only the first counts
			}
		})
	}
	wg.Wait()
	return context.Cause(begin)
}
