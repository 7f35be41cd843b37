package blobcache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Who works with a journal, of a staging file or of the rename of a directory, holds an exclusive flock on it. Nobody else
// holds one for longer than a system call: to compare the checksums of a staging file takes a second for each GB or two, and
// the whole journal of a rename of a million blobs 240 ms, in which a mount that begins would take it for somebody's. So who
// only wants to know asks by a shared lock that is given back at once, and a mount reads without one of which container a
// journal is. All mounts of root share a cache directory.

// A lock that cannot be had for 50 ms is that of somebody who works.
const (
	lockTries = 10
	lockPause = 5 * time.Millisecond
)

// errInUse says that another process works with a journal.
var errInUse = errors.New("a process works with it")

// lock locks a journal that is about to be worked with, and reports whether it could.
func lock(f *os.File) bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }

// inUse reports whether a process works with a journal.
func inUse(f *os.File) bool {
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		return true
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	return false
}

// hasName reports whether an open file is the one of a path.
func hasName(f *os.File, path string) (bool, error) {
	var ours, named unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &ours); err != nil {
		return false, err
	}
	err := unix.Stat(path, &named)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && ours.Dev == named.Dev && ours.Ino == named.Ino, err
}

// containerOf returns of which container a journal is. That never changes, so that no lock is needed. An error is one of
// readRecords, or errJournal for a journal of another version.
func containerOf(f *os.File) (string, error) {
	var head struct {
		Version   int    `json:"version"`
		Container string `json:"container"`
	}
	enough := errors.New("enough")
	_, _, err := readRecords(io.NewSectionReader(f, 0, 1<<62), func(typ byte, p []byte) error {
		if typ != recHeader {
			return fmt.Errorf("%w: it begins with a record of type %q", errJournal, typ)
		}
		if err := json.Unmarshal(p, &head); err != nil {
			return fmt.Errorf("%w: %w", errJournal, err)
		}
		if head.Version != journalVersion {
			return fmt.Errorf("%w: it has version %d", errJournal, head.Version)
		}
		return enough
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return head.Container, err
}

// isForeign reports whether a journal is certainly of another container.
func isForeign(f *os.File, container string) bool {
	of, err := containerOf(f)
	return err == nil && of != container
}

// soon calls try with names of journals, and again with those that it returns since they are in use, until there are none or
// 50 ms have passed. It returns them.
func soon(names []string, try func(names []string) (busy []string)) (busy []string) {
	for n := 1; ; n++ {
		names = try(names)
		if len(names) == 0 || n == lockTries {
			return names
		}
		time.Sleep(lockPause)
	}
}

// later calls try with names of journals as soon does, in the background until none is in use or the cache is closed: after
// 1 s, 2 s, 4 s ... up to a minute. Close waits for a try that is under way, whose ctx is done then.
func (c *Cache) later(names []string, try func(ctx context.Context, names []string) (busy []string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(names) == 0 {
		return
	}
	c.looking.Go(func() {
		for wait := firstRetry; len(names) > 0; wait = min(2*wait, lastRetry) {
			select {
			case <-c.look.Done():
				return
			case <-time.After(wait):
			}
			names = try(c.look, names)
		}
	})
}
