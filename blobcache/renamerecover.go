package blobcache

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	found, err := c.openRenames(cont)
	var out []LeftRename
	for _, d := range found {
		out = append(out, LeftRename{d.From, d.To, d.path})
		c.noteRename(d)
		d.j.close()
	}
	return out, err
}

// RecoverRenames finishes the renames of directories in a container that earlier processes have left: forward if all
// copies were made or can be, else back. It returns when all is done or ctx ends, and goes on in the background then,
// until the cache is closed. What cannot be done now is left to the next call. hold is called before each, and what it
// returned afterwards: nobody may change the names of both directories through this process meanwhile.
func (c *Cache) RecoverRenames(ctx context.Context, cont blob.Container, hold func(from, to string) (release func())) error {
	found, err := c.openRenames(cont)
	if err != nil || len(found) == 0 {
		return err
	}
	// All of them now: a name may be changed before the turn of its rename comes.
	releases := make([]func(), len(found))
	for i, d := range found {
		releases[i] = hold(d.From, d.To)
		c.noteRename(d)
	}
	done := make(chan struct{})
	c.background.Go(func() {
		defer close(done)
		for i, d := range found {
			d.recover(c.ctx)
			releases[i]()
		}
	})
	select {
	case <-done:
	case <-ctx.Done():
		c.log.Info("renames of directories that an earlier mount has left take longer, and go on in the background")
	}
	return nil
}

// openRenames opens and locks the journals of renames in a container that no process works with, the oldest first.
func (c *Cache) openRenames(cont blob.Container) ([]*dirRename, error) {
	dir := filepath.Join(c.dir, renamesDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []*dirRename
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // finished just now
		}
		if err != nil {
			for _, d := range found {
				d.j.close()
			}
			return nil, err
		}
		if d := c.openRename(f, path, cont); d != nil {
			found = append(found, d)
		} else {
			_ = f.Close()
		}
	}
	slices.SortFunc(found, func(a, b *dirRename) int { return a.state.Began.Compare(b.state.Began) })
	return found, nil
}

// Who lists renames locks each journal for some microseconds, so that a lock that fails says nothing yet.
const (
	lockTries = 10
	lockPause = 5 * time.Millisecond
)

// lockRename locks a journal, and reports whether it could: no process works with it.
func lockRename(f *os.File) bool {
	for try := 1; ; try++ {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return true
		}
		if try == lockTries {
			return false
		}
		time.Sleep(lockPause)
	}
}

// openRename returns nil for a journal that is not to be worked with.
func (c *Cache) openRename(f *os.File, path string, cont blob.Container) *dirRename {
	locked := lockRename(f)
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink == 0 {
		return nil // another process has finished it
	}
	if !locked {
		c.log.Info("the rename of a directory is left to the process that works with it", "journal", path)
		return nil
	}
	state, err := readRename(io.NewSectionReader(f, 0, 1<<62), nil)
	switch {
	case errors.Is(err, errEmpty): // nothing was begun
		_ = os.Remove(path)
		return nil
	case err != nil:
		c.log.Warn("the journal of a rename cannot be read and is left alone", "journal", path, "error", err)
		return nil
	case state.Container != cont.URL(""):
		return nil
	}
	return &dirRename{
		c: c, cont: cont, late: true, began: c.now(), held: map[string]*heldFile{},
		DirRename: DirRename{
			From: state.From, To: state.To, Opened: func(string) *File { return nil }, Deleting: func() {},
			Moved: func(string, blob.ETag, string, blob.Written) {},
		},
		path: path, state: *state, j: &journal{file: f, size: state.length, salt: state.salt},
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
