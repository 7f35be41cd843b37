package treemodel

import (
	"math/rand/v2"
	"strings"
)

// Generator makes operations that fit the state of a model often enough to succeed, and seldom enough to fail too.
type Generator struct {
	Random *rand.Rand
	// Foreign and Remounts let it make such operations. Unmounted makes those of other hosts only while nothing is mounted.
	Foreign, Remounts, Unmounted bool
}

// segments are the names in each directory: few, so that operations meet.
var segments = []string{"a", "b", "c", "d e", "ü%41", "f#?"}

// maxDepth bounds the directories of a path.
const maxDepth = 3

// maxOffset bounds where writes begin: with blocks of 64 KiB a file has a few.
const maxOffset = 200 << 10

// weights are how often an operation is made, of all of them together.
var weights = [kinds]int{
	Create: 14, Write: 5, Append: 4, Truncate: 4, Read: 3, Rename: 16, Mkdir: 9, Rmdir: 5, Unlink: 7, Symlink: 3, Chmod: 5,
	Utimes: 3, Stat: 4, Readdir: 3, Open: 7, WriteHandle: 7, TruncateHandle: 2, ReadHandle: 3, SyncHandle: 1, CloseHandle: 4,
	Remount: 1, ForeignPut: 8, ForeignDelete: 4,
}

// Next returns an operation for a state of a model.
func (g *Generator) Next(m *Model) Op {
	o := Op{Do: g.kind()}
	r := g.Random
	o.Path = g.path(m)
	content := func() {
		o.Seed = r.Uint64N(1000)
		switch n := r.IntN(20); {
		case n < 3:
			o.Size = 0
		case n < 18:
			o.Size = r.Int64N(5000)
		default:
			o.Size = r.Int64N(150 << 10)
		}
	}
	switch o.Do {
	case Create:
		content()
		o.Mode, o.Exclusive = g.mode(), r.IntN(4) == 0
	case Write, WriteHandle:
		content()
		if r.IntN(3) > 0 {
			o.Off = r.Int64N(6000)
		} else {
			o.Off = r.Int64N(maxOffset)
		}
	case Append:
		content()
	case ForeignPut, ForeignDelete:
		o.Exclusive = g.Unmounted
		if o.Do == ForeignPut {
			content()
		}
	case Truncate, TruncateHandle:
		o.Size = []int64{0, r.Int64N(6000), r.Int64N(maxOffset)}[r.IntN(3)]
	case Rename:
		o.To, o.Exclusive = g.path(m), r.IntN(5) == 0
	case Mkdir, Chmod:
		o.Mode = g.mode() | 0o111
		if o.Do == Chmod && r.IntN(2) == 0 {
			o.Mode &^= 0o111
		}
	case Symlink:
		o.To = []string{"gone", "../gone/b", "/nowhere/ü", "gone/a b"}[r.IntN(4)]
	case Utimes:
		o.Time = 1e9 + r.Int64N(1e8)
	case Open:
		if r.IntN(2) == 0 {
			o.Mode = g.mode()
		}
	case Remount:
		o.Exclusive = r.IntN(2) == 0
	}
	switch o.Do {
	case Open:
		o.Handle = r.IntN(Handles)
	case WriteHandle, TruncateHandle, ReadHandle, SyncHandle, CloseHandle:
		o.Handle, o.Path = r.IntN(Handles), ""
	case Remount:
		o.Path = ""
	}
	return o
}

func (g *Generator) kind() Kind {
	for {
		n, all := 0, 0
		for _, w := range weights {
			all += w
		}
		n = g.Random.IntN(all)
		k := Kind(0)
		for n >= weights[k] {
			n -= weights[k]
			k++
		}
		foreign := k == ForeignPut || k == ForeignDelete
		if foreign && !g.Foreign || k == Remount && !g.Remounts {
			continue
		}
		// A remount costs as much as a hundred others.
		if (k == Remount || foreign && g.Unmounted) && g.Random.IntN(4) > 0 {
			continue
		}
		return k
	}
}

func (g *Generator) mode() uint32 {
	return []uint32{0o644, 0o600, 0o755, 0o444, 0o640}[g.Random.IntN(5)]
}

// path returns a path: mostly one that is there, or a new name in a directory that is there, and now and then what is
// open, or a directory above it.
func (g *Generator) path(m *Model) string {
	if n := m.handles[g.Random.IntN(Handles)]; n != nil && g.Random.IntN(8) == 0 {
		if n.parent != nil && n.parent != m.root && g.Random.IntN(2) == 0 {
			n = n.parent
		}
		if p, ok := m.path(n); ok {
			return p
		}
	}
	var path []string
	at := m.root
	for depth := 1; ; depth++ {
		var name string
		if names := at.names(); len(names) > 0 && g.Random.IntN(10) < 7 {
			name = names[g.Random.IntN(len(names))]
		} else {
			name = segments[g.Random.IntN(len(segments))]
		}
		path = append(path, name)
		next := at.children[name]
		switch {
		case depth == maxDepth, next == nil && g.Random.IntN(10) > 0, g.Random.IntN(5) == 0:
			return strings.Join(path, "/")
		case next == nil || next.kind != dir:
			if g.Random.IntN(10) > 0 {
				return strings.Join(path, "/")
			}
			next = newDir(0, false) // beyond what is there
		}
		at = next
	}
}
