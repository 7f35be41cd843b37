package fs

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
)

// moves keeps changes of names, and openings for writing, apart from the rename of a directory that they lie in: it takes
// as long as its requests take, and what is written under the old name when the copy is made would stay behind. Changes of
// other names go on. All methods may be called in parallel.
type moves struct {
	leaving atomic.Int64 // directories whose old names are being deleted

	mu      sync.Mutex // guards what is below; comes before table.mu
	changes map[*nameChange]struct{}
	moving  map[*move]struct{}
	ended   chan struct{} // closed when a change or a move ends; nil when nobody waits
}

// nameChange is an operation under way, with the paths that it is about.
type nameChange struct{ paths []string }

// move is a rename of a directory under way.
type move struct {
	from, to string
	leaving  bool // the old names are being deleted
}

// within reports whether a path is that of a directory or below it.
func within(path, dir string) bool {
	return strings.HasPrefix(path, dir) && (len(path) == len(dir) || path[len(dir)] == '/')
}

func (m *move) covers(path string) bool { return within(path, m.from) || within(path, m.to) }

// wait returns when something has ended. mu is held, and let go meanwhile.
func (m *moves) wait(ctx context.Context) error {
	if m.ended == nil {
		m.ended = make(chan struct{})
	}
	ended := m.ended
	m.mu.Unlock()
	defer m.mu.Lock()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wake lets everybody who waits look again. mu is held.
func (m *moves) wake() {
	if m.ended != nil {
		close(m.ended)
		m.ended = nil
	}
}

// change begins a change of names, and waits for the renames of directories that they lie in. where returns the names as
// they are now: such a rename may change them. end must be called when the change is over; until then no other may begin
// in the same operation.
func (m *moves) change(ctx context.Context, where func() ([]string, error)) (end func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		paths, err := where()
		if err != nil {
			return nil, err
		}
		if !m.covered(paths) {
			c := &nameChange{paths}
			if m.changes == nil {
				m.changes = map[*nameChange]struct{}{}
			}
			m.changes[c] = struct{}{}
			return func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				delete(m.changes, c)
				m.wake()
			}, nil
		}
		if err := m.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// covered reports whether a path lies in a directory that is being renamed. mu is held.
func (m *moves) covered(paths []string) bool {
	for v := range m.moving {
		for _, p := range paths {
			if v.covers(p) {
				return true
			}
		}
	}
	return false
}

// move begins the rename of a directory: where returns its old and its new name. It waits for other renames that have to
// do with either, lets no further change below them begin, and waits for those under way.
func (m *moves) move(ctx context.Context, where func() ([]string, error)) (end func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var v *move
	for {
		paths, err := where()
		if err != nil {
			return nil, err
		}
		v = &move{from: paths[0], to: paths[1]}
		if !m.collides(v) {
			break
		}
		if err := m.wait(ctx); err != nil {
			return nil, err
		}
	}
	end = m.begin(v)
	for m.busy(v) {
		if err := m.wait(ctx); err != nil {
			m.end(v)
			return nil, err
		}
	}
	return end, nil
}

// begin notes a move. mu is held.
func (m *moves) begin(v *move) (end func()) {
	if m.moving == nil {
		m.moving = map[*move]struct{}{}
	}
	m.moving[v] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.end(v)
	}
}

// end forgets a move. mu is held.
func (m *moves) end(v *move) {
	delete(m.moving, v)
	if v.leaving {
		m.leaving.Add(-1)
	}
	m.wake()
}

// collides reports whether another move is about a part of the same tree. mu is held.
func (m *moves) collides(v *move) bool {
	for other := range m.moving {
		if other.covers(v.from) || other.covers(v.to) || v.covers(other.from) || v.covers(other.to) {
			return true
		}
	}
	return false
}

// busy reports whether a change within a move is under way. mu is held.
func (m *moves) busy(v *move) bool {
	for c := range m.changes {
		for _, p := range c.paths {
			if v.covers(p) {
				return true
			}
		}
	}
	return false
}

// leave notes that the old names below a directory that is being renamed are being deleted.
func (m *moves) leave(from string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for v := range m.moving {
		if v.from == from && !v.leaving {
			v.leaving = true
			m.leaving.Add(1)
		}
	}
}

// settled waits while the path that where returns is one of the names that are being deleted by a rename: the service does
// not have it any more then, and the new name is not known yet.
func (m *moves) settled(ctx context.Context, where func() string) error {
	if m.leaving.Load() == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.goes(where()) {
		if err := m.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leaves reports whether a path is one of the names that are being deleted by a rename.
func (m *moves) leaves(path string) bool {
	if m.leaving.Load() == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.goes(path)
}

// goes reports whether a path is below a directory whose old names are being deleted. mu is held.
func (m *moves) goes(path string) bool {
	for v := range m.moving {
		if v.leaving && path != v.from && within(path, v.from) {
			return true
		}
	}
	return false
}
