package blobcache

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// LeftRename is a rename of a directory that a process has not finished.
type LeftRename struct {
	From, To string
	journal  string // path
}

// LeftRenames returns the renames in a container that earlier processes have left, the oldest first. A journal that cannot
// be read is only reported to the log.
func (c *Cache) LeftRenames(cont blob.Container) ([]LeftRename, error) {
	paths, err := c.renamePaths()
	var out []LeftRename
	var found []*dirRename
	for _, path := range paths {
		switch state, used, err := readRenameOf(path, cont.URL("")); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			c.log.Warn("the journal of a rename cannot be read and is left alone", "journal", path, "error", err)
		case used:
			c.log.Info("the rename of a directory is left to the process that works with it", "journal", path)
		default:
			found = append(found, c.leftRename(path, state, cont))
		}
	}
	sortRenames(found)
	for _, d := range found {
		out = append(out, LeftRename{d.From, d.To, d.path})
		c.noteRename(d)
	}
	return out, err
}

// HoldNames is called before a rename is finished, also in the background, and what it returned afterwards: nobody may change
// the names of both directories through this process meanwhile. It waits for changes under way until ctx is done, but not
// for other renames.
type HoldNames func(ctx context.Context, from, to string) (release func())

// RecoverRenames finishes the renames of directories in a container that earlier processes have left: forward if all
// copies were made or can be, else back. It returns when all is done or ctx ends, and goes on in the background then,
// until the cache is closed. What cannot be done now is left to the next call. A rename that another process works with is
// looked at again until that lets it go, or the cache is closed.
func (c *Cache) RecoverRenames(ctx context.Context, cont blob.Container, hold HoldNames) error {
	paths, err := c.renamePaths()
	if err != nil {
		return err
	}
	var found []*dirRename
	busy := soon(paths, func(paths []string) []string {
		opened, busy := c.openRenames(paths, cont)
		found = append(found, opened...)
		return busy
	})
	for _, path := range busy {
		c.log.Info("the rename of a directory is left to the process that works with it, and is looked at again as long as this mount lives",
			"journal", path)
	}
	c.later(busy, func(ctx context.Context, paths []string) []string {
		found, busy := c.openRenames(paths, cont)
		c.finishRenames(ctx, found, hold)
		return busy
	})
	if len(found) == 0 {
		return nil
	}
	select {
	case <-c.finishRenames(ctx, found, hold):
	case <-ctx.Done():
		c.log.Info("renames of directories that an earlier mount has left take longer, and go on in the background")
	}
	return nil
}

// finishRenames finishes renames in the background, and closes done when it has. ctx is that of hold.
func (c *Cache) finishRenames(ctx context.Context, found []*dirRename, hold HoldNames) (done chan struct{}) {
	sortRenames(found)
	// All of them now: a name may be changed before the turn of its rename comes.
	releases := make([]func(), len(found))
	for i, d := range found {
		releases[i] = hold(ctx, d.From, d.To)
		c.noteRename(d)
	}
	done = make(chan struct{})
	c.background.Go(func() {
		defer close(done)
		for i, d := range found {
			d.recover(c.ctx)
			releases[i]()
		}
	})
	return done
}

// sortRenames puts the oldest first.
func sortRenames(all []*dirRename) {
	slices.SortFunc(all, func(a, b *dirRename) int { return a.state.Began.Compare(b.state.Began) })
}

// renamePaths returns the paths of all journals of renames.
func (c *Cache) renamePaths() ([]string, error) {
	dir := filepath.Join(c.dir, renamesDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	paths := make([]string, 0, len(entries))
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths, err
}

// openRenames opens and locks those of the journals that are of a container, and returns the paths of those that other
// processes work with.
func (c *Cache) openRenames(paths []string, cont blob.Container) (found []*dirRename, busy []string) {
	for _, path := range paths {
		d, err := c.openRename(path, cont)
		switch {
		case err == nil:
			found = append(found, d)
		case errors.Is(err, errInUse):
			busy = append(busy, path)
		case !errors.Is(err, os.ErrNotExist):
			c.log.Warn("the journal of a rename cannot be read and is left alone", "journal", path, "error", err)
		}
	}
	return found, busy
}

// openRename opens and locks the journal of a rename. It fails with errInUse while another process works with it, and with
// os.ErrNotExist when there is nothing to do for this container.
func (c *Cache) openRename(path string, cont blob.Container) (*dirRename, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	state, err := lockRename(f, path, cont.URL(""))
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	d := c.leftRename(path, state, cont)
	d.j = &journal{file: f, size: state.length, salt: state.salt}
	return d, nil
}

func lockRename(f *os.File, path, container string) (*renameState, error) {
	if isForeign(f, container) {
		return nil, os.ErrNotExist
	}
	locked := lock(f)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	switch {
	case st.Nlink == 0:
		return nil, os.ErrNotExist // another process has finished it
	case !locked:
		return nil, errInUse
	}
	state, err := readRename(io.NewSectionReader(f, 0, 1<<62), nil)
	switch {
	case errors.Is(err, errEmpty): // nothing was begun
		_ = os.Remove(path)
		return nil, os.ErrNotExist
	case err != nil:
		return nil, err
	case state.Container != container:
		return nil, os.ErrNotExist
	}
	return state, nil
}

// leftRename returns a rename that another process has begun, without its journal.
func (c *Cache) leftRename(path string, state *renameState, cont blob.Container) *dirRename {
	return &dirRename{
		c: c, cont: cont, late: true, began: c.now(), held: map[string]*heldFile{},
		DirRename: DirRename{
			From: state.From, To: state.To, Opened: func(string) *File { return nil }, Deleting: func() {},
			Moved: func(string, blob.ETag, string, blob.Written) {},
		},
		path: path, state: *state,
	}
}

// recover finishes a rename.
func (d *dirRename) recover(ctx context.Context) {
	d.setActive(true)
	defer func() {
		d.setActive(false)
		d.j.close()
	}()
	var rest []renamedBlob // the last page
	err := d.pages(func(_ int64, blobs []renamedBlob) error {
		rest = slices.Clone(blobs)
		for _, b := range blobs {
			if b.done && !b.stale {
				d.copied.Add(1)
			}
		}
		return nil
	})
	if err == nil {
		err = d.j.file.Truncate(d.j.size) // what is cut off must not be taken for a record
	}
	if err != nil {
		d.mu.Lock()
		d.failed = err
		d.mu.Unlock()
		d.c.log.Error("journal of a rename cannot be used", "journal", d.path, "error", err)
		return
	}
	d.c.log.Info("finishing the rename of a directory that an earlier mount has left", d.progress()...)
	defer d.report()()
	_, _ = d.proceed(ctx, rest) // it has told the log
}
