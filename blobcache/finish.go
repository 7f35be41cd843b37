package blobcache

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// What is put into the journal around a commit.

// largestJournal is how long a journal may get, in bytes, before a commit makes it begin anew.
const largestJournal = 1 << 20

// compact puts a commit into the journal. f.mu is held.
func (f *File) compact(clean bool) {
	st := f.stage
	err := f.noteBase(clean)
	if clean && err == nil {
		st.summed = nil
	}
	for _, b := range st.later() { // the record of the base has made them count for nothing
		if err == nil {
			err = st.journal.span(recStaged, b.off, b.end, []byte(b.id)...)
		}
	}
	if err == nil && clean && st.journal.size > largestJournal {
		err = st.rewriteJournal(f.header())
	}
	if err != nil {
		f.c.log.Warn("a crash now would leave a copy of a saved file for blobmount recover", "blob", f.props.Name, "error", err)
	}
}

// finish puts into the journal that the file is meant to be saved as it is, with the checksums of what only the staging
// file has, so that a later process can save it. With durable the staging file and its journal are on disk afterwards.
// It does nothing for a file that is being changed, or that is not in the state only any more, unless that is 0.
func (f *File) finish(durable bool, only uint64) error {
	f.mu.RLock()
	gen, st := f.gen, f.stage
	var todo extents
	var known []sumOf
	if st != nil {
		known, todo = st.knownSums(st.unsent(f.size <= f.c.putMax))
	}
	f.mu.RUnlock()
	if st == nil || only != 0 && gen != only {
		return nil
	}
	sums, err := st.sums(todo)
	if err != nil {
		return err
	}
	if durable {
		if err := st.sync(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen != gen || f.stage != st {
		return nil
	}
	sums = append(sums, known...)
	// What was released meanwhile may have been read as a hole.
	sums = slices.DeleteFunc(sums, func(s sumOf) bool { return !st.valid.covers(s.off, s.end) })
	stands := f.c.writeBack == WriteBackSync
	if err := st.journal.finish(sums, stands, durable); err != nil {
		return err
	}
	if stands {
		st.noteSums(sums)
	}
	if durable {
		f.acked = gen
		st.durable.Store(true)
	}
	return nil
}

// noteSums notes that the journal has these checksums. Without a state that stands, a change makes them count for nothing
// by itself, since the file is not finished any more.
func (s *stage) noteSums(sums []sumOf) {
	for _, x := range sums {
		s.summed.add(x.off, x.end)
	}
}

// syncNote brings what was just noted to the disk, if what was noted before is there: after a loss of power that would
// bring a file back that is saved, and perhaps renamed or deleted since.
func (f *File) syncNote(st *stage) {
	if st == nil || !st.durable.Load() {
		return
	}
	if err := unix.Fdatasync(int(st.journal.file.Fd())); err != nil {
		f.c.log.Warn("a loss of power now would bring back a saved file as it was before", "blob", f.Name(), "error", err)
	}
}

// unsent returns the bytes that the program changed, or with all what the file holds, and that are not in a block that the
// service holds.
func (s *stage) unsent(all bool) extents {
	x := slices.Clone(s.changed)
	if all {
		x = slices.Clone(s.valid)
	}
	for i, b := range s.blocks {
		if b.current() {
			off, end := s.layout.span(i)
			x.remove(off, end)
		}
	}
	for _, b := range s.left {
		x.remove(b.off, b.end)
	}
	return x
}

// knownSums returns the checksums of the grains of todo that are known, and what remains.
func (s *stage) knownSums(todo extents) (known []sumOf, rest extents) {
	for x := range pieces(todo) {
		if sum, ok := s.knownSum(x.off, x.end-x.off); ok {
			known = append(known, sumOf{x, sum})
		} else {
			rest.add(x.off, x.end)
		}
	}
	return known, rest
}

// sums returns the checksums of bytes of the staging file.
func (s *stage) sums(todo extents) ([]sumOf, error) {
	var out []sumOf
	if len(todo) == 0 {
		return nil, nil
	}
	scratch := unitBuffers.Get().(*[sumMax]byte)
	defer unitBuffers.Put(scratch)
	for x := range pieces(todo) {
		part := scratch[:x.end-x.off]
		if err := s.readAt(part, x.off); err != nil {
			return nil, err
		}
		out = append(out, sumOf{x, crc32.Checksum(part, castagnoli)})
	}
	return out, nil
}

// pieces cuts extents so that each lies within a grain: a block that is released then takes whole pieces with it.
func pieces(xs extents) iter.Seq[extent] {
	return func(yield func(extent) bool) {
		for _, x := range xs {
			for off := x.off; off < x.end; {
				end := min(off-off%grain+grain, x.end)
				if !yield(extent{off, end}) {
					return
				}
				off = end
			}
		}
	}
}

// sync brings the staging file to the disk, and the names of both files.
func (s *stage) sync() error {
	if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
		return fmt.Errorf("staging file: %w", err)
	}
	if s.named {
		return nil
	}
	if err := syncDir(s.c.staging); err != nil {
		return fmt.Errorf("staging directory: %w", err)
	}
	s.named = true
	return nil
}

// makeDurable makes a directory below one that is there, and brings the names of both to the disk.
func makeDurable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	above := filepath.Dir(dir)
	return cmp.Or(syncDir(above), syncDir(filepath.Dir(above)))
}

// syncDir brings the names in a directory to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// rewriteJournal replaces the journal by one that begins with h and says what the staging file holds.
func (s *stage) rewriteJournal(h header) error {
	path := s.c.stagingPath(s.id, extJournal)
	_ = os.Remove(path + ".new") // of a crash
	j, err := openJournal(path + ".new")
	if err != nil {
		return err
	}
	err = j.begin(h)
	for _, x := range s.valid {
		if err == nil {
			err = j.span(recHeld, x.off, x.end)
		}
	}
	if err == nil && s.named { // it stands for bytes that are durable
		err = j.file.Sync()
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		j.close()
		_ = os.Remove(path + ".new")
		return err
	}
	s.journal.close()
	s.journal, s.named = j, false
	return nil
}
