package fs

import "sync"

// wanted decides whether a directory is shown with the attributes of what is in it. They make a node of each name, which
// costs ten times the time of the name alone and 1 KiB: ls -l, du and data loaders save a message for each file by them,
// find and shells only throw them away. The kernel asks for them with the beginning of each directory, used or not. So some
// directories are shown without them, as a probe: who wants attributes then looks up the files one by one.
type wanted struct {
	mu    sync.Mutex // guards what is below
	off   bool
	probe *node // the directory that was shown without attributes last
	found int   // files in it that were looked up since
	shown int   // directories with attributes since the last probe
}

const (
	// probeEvery is how many directories are shown with attributes for one without them.
	probeEvery = 16
	// wantedAfter is how many files of a probe have to be looked up.
	wantedAfter = 2
)

// begin returns whether a directory is to be shown with attributes, from its beginning.
func (w *wanted) begin(dir *node) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.off && w.shown < probeEvery {
		w.shown++
		return true
	}
	w.off, w.probe, w.found, w.shown = true, dir, 0, 0
	return false
}

// looked notes that the kernel looked up a file that it was not given with its directory.
func (w *wanted) looked(dir *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if dir != w.probe {
		return
	}
	if w.found++; w.found >= wantedAfter {
		w.off = false
	}
}

// forget drops a directory that is no node any more.
func (w *wanted) forget(dir *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.probe == dir {
		w.probe = nil
	}
}
