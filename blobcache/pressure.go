package blobcache

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Staged bytes are never refused because of the cache's size. But when they alone reach it, or the disk is short, the
// parts that the service holds as blocks are given up here, and writers wait for such parts to become more. So a file
// that is written in order may be larger than the cache, and is written as fast as the service takes it.

// longestPause bounds how long one write waits, so that none fails because nothing can be given up: while the disk has
// room, writing goes on at one request a second, until the service answers again.
const longestPause = time.Second

// relieve slows a writer down while what is staged takes more than the cache may.
func (f *File) relieve(ctx context.Context) {
	c := f.c
	if !c.space.over() {
		return
	}
	c.space.settle()
	deadline := time.NewTimer(longestPause)
	defer deadline.Stop()
	for c.space.over() {
		sent := c.sent.next()
		if f.releaseSome() {
			continue
		}
		f.sendComplete()
		select {
		case <-sent:
		case <-deadline.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// releaseSome gives up a block of this file, or else of another one, that the service holds. It reports whether it could.
func (f *File) releaseSome() bool {
	if f.releaseStaged(1) {
		return true
	}
	f.c.mu.Lock()
	others := slices.Collect(maps.Keys(f.c.stagers))
	f.c.mu.Unlock()
	return slices.ContainsFunc(others, func(o *File) bool { return o != f && o.releaseStaged(1) })
}

func (f *File) releaseStaged(most int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.release(most)
}

// releaseAll gives up all blocks of this file that the service holds. f.mu is held.
func (f *File) releaseAll() bool { return f.release(1 << 30) }

// release gives up the first blocks, at most so many, that the service holds in their present state. f.mu is held.
func (f *File) release(most int) bool {
	st := f.stage
	// The kernel reads an exposed staging file by itself, so nothing of that may go.
	if st == nil || f.exposed || !st.learned || f.gone || f.detached {
		return false
	}
	did := 0
	for _, x := range slices.Clone(st.valid) {
		for i := st.layout.index(x.off); did < most; i++ {
			off, end := st.layout.span(i)
			if off >= x.end {
				break
			}
			b := st.blocks[i]
			if !b.current() || b.busy != nil || b.size != end-off || !st.valid.covers(off, end) ||
				off%grain != 0 || end%grain != 0 || !b.committed && !f.mayRelease(b) {
				continue
			}
			if err := st.release(off, end, b.committed); err != nil {
				f.c.log.Warn("staged bytes could not be given up", "blob", f.props.Name, "error", err)
				return did > 0
			}
			did++
		}
	}
	return did > 0
}

// sendComplete begins again to upload blocks that could not be uploaded while the program was writing them.
func (f *File) sendComplete() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stage != nil {
		f.stageChanged()
	}
}

// signal wakes those who wait for something to happen.
type signal struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// next returns a channel that is closed when signal is called the next time.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) signal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
