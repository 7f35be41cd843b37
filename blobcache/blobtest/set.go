package blobtest

import (
	"cmp"
	"fmt"
	"sort"
	"time"

	"github.com/tidwall/btree"

	"blobmount/blobcache/blob"
)

// Set is a set of block blobs that are made when they are asked for, so that a million of them cost no memory. Its
// functions give the same answer at every call, and may be called in parallel.
type Set struct {
	Count int
	// Name returns the name of the i-th blob, from 0 on. Names ascend by their bytes.
	Name func(i int) string
	// Size is that of each blob, in bytes.
	Size int64
	// Content returns what a blob holds.
	Content func(name string) Generator
	// Metadata returns what the i-th blob has, in lower case and as it is stored; nil: none has any.
	Metadata func(i int) map[string]string
}

// ruled is a Set in a Store. It is immutable.
type ruled struct {
	Set
	etag uint64 // of the first blob; the others follow
	made time.Time
}

// deleted is the record of a blob of a Set that was deleted.
var deleted = new(record)

// AddSet adds blobs. They can be changed and deleted as any other, which then costs memory for each; a blob that is
// there under one of the names stays. StoreOptions.Written is not told of them.
func (s *Store) AddSet(set Set) error {
	last := ""
	for i := range set.Count {
		name := set.Name(i)
		if err := checkName(name); err != nil {
			return err
		}
		if name <= last {
			return fmt.Errorf("set of blobs: %q comes after %q", name, last)
		}
		last = name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var first record
	s.stamp(&first)
	s.mu.ticks += uint64(set.Count)
	s.mu.sets = append(s.mu.sets, &ruled{set, first.etag, first.modified})
	return nil
}

// seek returns the first index whose name is not before from.
func (r *ruled) seek(from string) int {
	return sort.Search(r.Count, func(i int) bool { return r.Name(i) >= from })
}

// find returns the index of a name.
func (r *ruled) find(name string) (int, bool) {
	return sort.Find(r.Count, func(i int) int { return cmp.Compare(name, r.Name(i)) })
}

// record makes the i-th blob.
func (r *ruled) record(i int, name string) *record {
	n := &record{etag: r.etag + uint64(i), modified: r.made, created: r.made, kind: blob.BlockBlob}
	n.content = syntheticContent(r.Size, func(p []byte, offset int64) { r.Content(name)(p, offset) })
	if r.Metadata != nil {
		n.metadata = r.Metadata(i)
	}
	return n
}

// fromSets returns the blob of this name as the sets have it, nil when they have none. The caller holds mu.
func (s *Store) fromSets(name string) *record {
	for _, r := range s.mu.sets {
		if i, ok := r.find(name); ok {
			return r.record(i, name)
		}
	}
	return nil
}

// walker goes over all blobs in the order of their names. The caller holds mu as long as it is in use.
type walker struct {
	tree btree.MapIter[string, *record]
	more bool // tree stands on a record
	sets []setIter
	name string
}

// setIter stands before the i-th blob of a set.
type setIter struct {
	*ruled
	i    int
	name string
}

func (it *setIter) stand(i int) {
	if it.i = i; i < it.Count {
		it.name = it.Name(i)
	}
}

// walk returns a walker that stands on the first name that is not before from, and whether there is one.
func (s *Store) walk(from string) (*walker, bool) {
	w := &walker{tree: s.mu.blobs.Iter(), sets: make([]setIter, len(s.mu.sets))}
	for i, r := range s.mu.sets {
		w.sets[i].ruled = r
	}
	return w, w.seek(from)
}

// seek goes to the first name that is not before from, and reports whether there is one.
func (w *walker) seek(from string) bool {
	w.more = w.tree.Seek(from)
	for i := range w.sets {
		w.sets[i].stand(w.sets[i].seek(from))
	}
	return w.settle()
}

// settle finds the first name of all.
func (w *walker) settle() bool {
	for {
		found := false
		for i := range w.sets {
			if it := &w.sets[i]; it.i < it.Count && (!found || it.name < w.name) {
				w.name, found = it.name, true
			}
		}
		if !w.more || found && w.name < w.tree.Key() {
			return found
		}
		w.name = w.tree.Key()
		if w.tree.Value() != deleted {
			return true
		}
		w.pass()
	}
}

// pass leaves the name on which the walker stands.
func (w *walker) pass() {
	for i := range w.sets {
		if it := &w.sets[i]; it.i < it.Count && it.name == w.name {
			it.stand(it.i + 1)
		}
	}
	if w.more && w.tree.Key() == w.name {
		w.more = w.tree.Next()
	}
}

// next goes to the next name, and reports whether there is one.
func (w *walker) next() bool {
	w.pass()
	return w.settle()
}

// properties returns those of the blob on which the walker stands.
func (w *walker) properties() blob.Properties {
	if w.more && w.tree.Key() == w.name {
		return w.tree.Value().properties(w.name)
	}
	for i := range w.sets {
		if it := &w.sets[i]; it.i < it.Count && it.name == w.name {
			return it.record(it.i, it.name).properties(it.name)
		}
	}
	panic("blobtest: the walker stands nowhere") // settle sees to it
}
