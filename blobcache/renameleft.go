package blobcache

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// RenameStep says how far the rename of a directory is.
type RenameStep uint8

const (
	// RenameCopying: copies are made, and all is under the old name.
	RenameCopying RenameStep = iota
	// RenameDeleting: all is under the new name, and what is under the old one is deleted.
	RenameDeleting
	// RenameGoingBack: all is under the old name, and the copies are deleted.
	RenameGoingBack
	// RenameUnreadable: its journal cannot be read, at least not by this version of the program.
	RenameUnreadable
)

var stepNames = [...]string{"copying", "deleting", "going back", "unreadable"}

func (s RenameStep) String() string { return stepNames[s] }

var stepOf = map[renamePhase]RenameStep{
	renameCopies: RenameCopying, renameForward: RenameDeleting, renameBack: RenameGoingBack,
}

// Rename is the rename of a directory that is under way, or that a process has not finished.
type Rename struct {
	Step      RenameStep
	InUse     bool // a process works with it
	Reason    string
	Journal   string // its path
	Container string // URL, with the prefix of the mount
	From, To  string // relative to that
	Blobs     int64  // that are to be renamed, as far as they were listed
	Began     time.Time
	PID       int // of the process that began it
}

// ListRenames returns the renames of directories in a cache directory that are not finished, the oldest first.
func ListRenames(dir string) ([]Rename, error) {
	dir = filepath.Join(dir, renamesDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []Rename
	for _, e := range entries {
		if r, err := readLeftRename(filepath.Join(dir, e.Name())); err == nil { // else there is nothing to do
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Rename) int { return cmp.Or(a.Began.Compare(b.Began), strings.Compare(a.Journal, b.Journal)) })
	return out, nil
}

// readLeftRename reads one journal. os.ErrNotExist: there is nothing to do.
func readLeftRename(path string) (Rename, error) {
	r := Rename{Journal: path}
	state, used, err := readRenameOf(path, "")
	r.InUse = used
	switch {
	case errors.Is(err, os.ErrNotExist):
		return r, err
	case err != nil:
		r.Step, r.Reason = RenameUnreadable, err.Error()
		if st, err := os.Lstat(path); err == nil {
			r.Began = st.ModTime().Truncate(time.Second)
		}
		return r, nil
	}
	r.Step, r.Container, r.From, r.To = stepOf[state.phase], state.Container, state.From, state.To
	r.Blobs, r.Began, r.PID = state.planned, state.Began, state.PID
	return r, nil
}

// readRenameOf reads the journal of a rename in a container, of any for "", without a lock, and says whether a process works
// with it. os.ErrNotExist: there is nothing to do.
func readRenameOf(path, container string) (state *renameState, used bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	if container != "" && isForeign(f, container) {
		return nil, false, os.ErrNotExist
	}
	used = inUse(f)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, used, err
	}
	if st.Nlink == 0 {
		return nil, used, os.ErrNotExist // finished just now
	}
	state, err = readRename(io.NewSectionReader(f, 0, 1<<62), nil)
	if errors.Is(err, errEmpty) {
		err = os.ErrNotExist
	}
	return state, used, err
}

// noteRename makes a rename known to Renames.
func (c *Cache) noteRename(d *dirRename) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renames[d.path] = d
}

// Renames returns the renames of directories in a container that are under way, or that this process knows not to be
// finished, the oldest first. Reason is why nobody works with it then.
func (c *Cache) Renames(cont blob.Container) []Rename {
	c.mu.Lock()
	all := make([]*dirRename, 0, len(c.renames))
	for path, d := range c.renames {
		if unix.Access(path, unix.F_OK) != nil { // by this process, or another one
			delete(c.renames, path)
		} else if d.cont.URL("") == cont.URL("") {
			all = append(all, d)
		}
	}
	c.mu.Unlock()
	out := make([]Rename, 0, len(all))
	for _, d := range all {
		out = append(out, d.describe())
	}
	slices.SortFunc(out, func(a, b Rename) int { return cmp.Or(a.Began.Compare(b.Began), strings.Compare(a.From, b.From)) })
	return out
}

func (d *dirRename) describe() Rename {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := Rename{
		Step: stepOf[d.state.phase], InUse: d.active, Journal: d.path, Container: d.state.Container, From: d.From, To: d.To,
		Blobs: d.state.planned, Began: d.state.Began, PID: d.state.PID,
	}
	if d.failed != nil {
		r.Reason = d.failed.Error()
	}
	return r
}

// setActive notes whether somebody works with a rename.
func (d *dirRename) setActive(is bool) {
	d.mu.Lock()
	d.active = is
	d.mu.Unlock()
}
