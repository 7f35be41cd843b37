package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"blobmount/blobcache"
)

// leftover is what a mount could not send before it ended. The daemon leaves it in its lock file, for blobmount unmount.
type leftover struct {
	Waiting int      `json:"waiting"` // files that the next mount sends
	Names   []string `json:"names"`   // of the first of them
	Kept    int      `json:"kept"`    // files that another writer has changed
}

// namedAtMost is how many files a message names.
const namedAtMost = 10

// text says what is left and what to do, in one line.
func (l leftover) text(source, cacheDir string) string {
	var parts []string
	if l.Waiting > 0 {
		var names []string
		for _, n := range l.Names {
			names = append(names, fmt.Sprintf("%q", n))
		}
		if more := l.Waiting - len(names); more > 0 {
			names = append(names, fmt.Sprintf("and %d more", more))
		}
		parts = append(parts, fmt.Sprintf("not saved in the service yet: %s (%s); they are kept on the local disk, and the next mount of %s "+
			"with --cache-dir %s sends them", files(l.Waiting), strings.Join(names, ", "), source, cacheDir))
	}
	if l.Kept > 0 {
		parts = append(parts, fmt.Sprintf("changed by another writer meanwhile: %s; yours are kept: see blobmount recover --cache-dir %s list",
			files(l.Kept), cacheDir))
	}
	return strings.Join(parts, "; ")
}

func files(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// drainError is that a mount ended before everything was sent.
type drainError struct {
	text string
	err  error // of each file that was not sent, for the log; may be nil
}

func (e *drainError) Error() string { return e.text }
func (e *drainError) Unwrap() error { return e.err }

// drain sends what is left when nobody can write any more.
func (m *mountCommand) drain(ctx context.Context, p *parts) error {
	// The mount may be gone because ctx is done: writing is not less important then.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(m.config.DrainTimeout))
	defer cancel()
	before := p.cache.Unsaved()
	if len(before) > 0 {
		p.log.Info("sending what is left", "files", len(before), "at_most", m.config.DrainTimeout.String())
	}
	err := p.cache.Close(ctx)
	left := leftoverOf(p.cache.Unsaved())
	var kerr error
	if left.Kept, kerr = keptOf(m.config.CacheDir, before); kerr != nil {
		p.log.Warn("it cannot be found out whether another writer has changed files that were left", "error", kerr)
	}
	switch {
	case left.Waiting+left.Kept > 0:
	case err != nil:
		return fmt.Errorf("end the cache in %s: %w", m.config.CacheDir, err)
	default:
		p.log.Info("unmounted", "mount_point", p.mountPoint)
		return nil
	}
	if p.lock != nil {
		if err := p.lock.leave(left); err != nil {
			p.log.Warn("blobmount unmount will not know what is left", "error", err)
		}
	}
	return &drainError{left.text(m.config.Source.Verbatim, m.config.CacheDir), err}
}

// leftoverOf sums up the files that were not sent.
func leftoverOf(unsaved []blobcache.Unsaved) leftover {
	l := leftover{Waiting: len(unsaved)}
	for _, u := range unsaved {
		l.Names = append(l.Names, u.Name)
	}
	slices.Sort(l.Names)
	l.Names = l.Names[:min(len(l.Names), namedAtMost)]
	return l
}

// keptOf counts those of the files, unsaved a moment ago, of which another writer turned out to have changed the blob.
func keptOf(cacheDir string, before []blobcache.Unsaved) (n int, err error) {
	if len(before) == 0 {
		return 0, nil
	}
	ids := map[string]bool{}
	for _, u := range before {
		ids[u.ID] = true
	}
	all, err := blobcache.ListLeft(cacheDir)
	for _, l := range all {
		if l.State == blobcache.LeftConflict && ids[l.ID] {
			n++
		}
	}
	return n, err
}
