package blobcache

import (
	"strings"

	"blobmount/blobcache/blob"
)

// The service lists blobs and prefixes in the order of their bytes: "a", "a-b", "a/". A blob and a prefix that are one
// entry, such as a directory and its marker, may so be any number of names apart. Entries are therefore kept in the order
// of their names with a slash behind: there both have the same place.

// compareNames compares two names of entries in the order of listings.
func compareNames(a, b string) int {
	n := min(len(a), len(b))
	if c := strings.Compare(a[:n], b[:n]); c != 0 {
		return c
	}
	switch {
	case len(a) == len(b):
		return 0
	case len(a) == n: // a and a slash against the rest of b
		if '/' <= b[n] {
			return -1
		}
		return 1
	case '/' <= a[n]:
		return 1
	default:
		return -1
	}
}

// within reports whether a name comes before or at the place of a key, which is a blob's name, or a prefix with its slash.
func within(name, key string) bool {
	n := min(len(name), len(key))
	if c := strings.Compare(name[:n], key[:n]); c != 0 {
		return c < 0
	}
	return len(key) > len(name) && '/' <= key[len(name)]
}

// fold makes entries of what the service lists in one directory. A blob waits until it is certain whether a prefix of the
// same name follows. It is a pure state machine. Entries come out in the order of compareNames: emit gets them, alone those
// of blobs without a prefix of their name.
type fold struct {
	key     string  // of the last blob or prefix
	waiting []Named // each name is the beginning of the next one
}

// blob takes a blob by its name in the directory. It returns false, and does nothing, when its key is not after the last.
func (f *fold) blob(name string, p blob.Properties, alone func(Named)) bool {
	if name <= f.key {
		return false
	}
	f.pass(name, alone)
	e := Entry{Properties: p}
	if IsMarker(&p) {
		e.Dir, e.Marker = true, true
	}
	f.waiting = append(f.waiting, Named{name, e})
	return true
}

// prefix takes a prefix by its name in the directory, without the slash. It returns false as blob does.
func (f *fold) prefix(name string, emit, alone func(Named)) bool {
	key := name + "/"
	if key <= f.key {
		return false
	}
	e := Entry{Dir: true}
	for last := len(f.waiting) - 1; last >= 0 && within(f.waiting[last].Name, key); last-- {
		if w := f.waiting[last]; w.Name == name {
			e = withPrefix(w.Entry)
		} else {
			alone(w)
		}
		f.waiting = f.waiting[:last]
	}
	f.key = key
	emit(Named{name, e})
	return true
}

// withPrefix returns the entry of a blob under whose name there is a prefix too.
func withPrefix(e Entry) Entry {
	if !e.Dir {
		return Entry{Dir: true, Shadowed: true}
	}
	return e
}

// pass brings what does not have to wait any more when the service is at key.
func (f *fold) pass(key string, alone func(Named)) {
	for len(f.waiting) > 0 {
		last := f.waiting[len(f.waiting)-1]
		if !within(last.Name, key) {
			break
		}
		f.waiting = f.waiting[:len(f.waiting)-1]
		alone(last)
	}
	f.key = key
}

// end brings the rest: nothing follows.
func (f *fold) end(alone func(Named)) {
	for i := len(f.waiting) - 1; i >= 0; i-- {
		alone(f.waiting[i])
	}
	f.waiting = nil
}
