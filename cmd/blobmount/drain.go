package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
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
	err  error // of each file, for the log
}

func (e *drainError) Error() string { return e.text }
func (e *drainError) Unwrap() error { return e.err }

// drain sends what is left when nobody can write any more.
func (m *mountCommand) drain(ctx context.Context, p *parts) error {
	// The mount may be gone because ctx is done: writing is not less important then.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(m.config.DrainTimeout))
	defer cancel()
	waiting := len(p.cache.Unsaved())
	if waiting > 0 {
		p.log.Info("sending what is left", "files", waiting, "at_most", m.config.DrainTimeout.String())
	}
	err := p.cache.Close(ctx)
	if err == nil {
		p.log.Info("unmounted", "mount_point", p.mountPoint)
		return nil
	}
	left := leftoverOf(err, p.cache.Unsaved())
	if left.Waiting+left.Kept == 0 {
		return fmt.Errorf("end the cache in %s: %w", m.config.CacheDir, err)
	}
	if p.lock != nil {
		if err := p.lock.leave(left); err != nil {
			p.log.Warn("blobmount unmount will not know what is left", "error", err)
		}
	}
	return &drainError{left.text(m.config.Source.Verbatim, m.config.CacheDir), err}
}

// leftoverOf sums up why a cache could not be closed, and the files that it still has to send.
func leftoverOf(err error, unsaved []blobcache.Unsaved) leftover {
	l := leftover{Waiting: len(unsaved)}
	for _, u := range unsaved {
		l.Names = append(l.Names, u.Name)
	}
	slices.Sort(l.Names)
	l.Names = l.Names[:min(len(l.Names), namedAtMost)]
	errs := []error{err}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		errs = joined.Unwrap()
	}
	for _, err := range errs {
		if blob.Is(err, blob.ConditionNotMet) {
			l.Kept++
		}
	}
	return l
}
