package fs

import (
	"testing"

	"blobmount/blobcache"
)

// TestWanted: attributes are shown to a program that looks files up, from its second directory on, and not to one that only
// reads names.
func TestWanted(t *testing.T) {
	var w wanted
	// read reads so many directories, and returns how many were shown with attributes. stat says that the program wants
	// the attributes of files.
	read := func(directories int, stat bool) (with int) {
		for range directories {
			dir := newNode(blobcache.Entry{Dir: true})
			if w.begin(dir) {
				with++
				continue
			}
			for range 5 {
				if stat {
					w.looked(dir)
				}
				w.looked(newNode(blobcache.Entry{Dir: true})) // in another directory
			}
		}
		return with
	}
	if got := read(probeEvery, true); got != probeEvery {
		t.Errorf("the first %d directories were shown with attributes, want %d", got, probeEvery)
	}
	if got := read(1000, false); got != 0 {
		t.Errorf("find was shown attributes in %d more directories", got)
	}
	if got := read(17*100, true); got != 16*100 {
		t.Errorf("ls -l was shown attributes in %d of 1700 directories, want 1600", got)
	}
	if got := read(1000, false); got > probeEvery {
		t.Errorf("find after it was shown attributes in %d directories", got)
	}
	dir := newNode(blobcache.Entry{Dir: true})
	w.begin(dir)
	w.looked(dir) // one file is no habit
	if got := read(10, false); got != 0 {
		t.Errorf("after one file %d directories were shown with attributes", got)
	}
	w.begin(dir)
	w.forget(dir)
	w.looked(dir)
	w.looked(dir)
	if !w.off || w.probe != nil {
		t.Error("a directory that is gone counts")
	}
}
