package blobcache

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// What is put into the journal around a commit, and what happens when another writer was faster.

// largestJournal is how long a journal may get, in bytes, before a commit makes it begin anew.
const largestJournal = 1 << 20

// compact puts a commit into the journal. f.mu is held.
func (f *File) compact(clean bool) {
	st := f.stage
	err := f.noteBase(clean)
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
	if st != nil {
		todo = st.unsent(f.size <= f.c.putMax)
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
	// What was released meanwhile may have been read as a hole.
	sums = slices.DeleteFunc(sums, func(s sumOf) bool { return !st.valid.covers(s.off, s.end) })
	if err := st.journal.finish(sums, f.c.writeBack == WriteBackSync, durable); err != nil {
		return err
	}
	if durable {
		f.acked = gen
		st.durable.Store(true)
	}
	return nil
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
		if b.staged != 0 && b.staged == b.gen {
			off, end := s.layout.span(i)
			x.remove(off, end)
		}
	}
	for _, b := range s.left {
		x.remove(b.off, b.end)
	}
	return x
}

// sums returns the checksums of bytes of the staging file, for pieces that lie within a grain each: a block that is
// released then takes whole pieces with it.
func (s *stage) sums(todo extents) ([]sumOf, error) {
	var out []sumOf
	if len(todo) == 0 {
		return nil, nil
	}
	scratch := unitBuffers.Get().(*[sumMax]byte)
	defer unitBuffers.Put(scratch)
	for _, x := range todo {
		for off := x.off; off < x.end; {
			part := scratch[:min(grain-off%grain, x.end-off)]
			if err := s.readAt(part, off); err != nil {
				return nil, err
			}
			out = append(out, sumOf{extent{off, off + int64(len(part))}, crc32.Checksum(part, castagnoli)})
			off += int64(len(part))
		}
	}
	return out, nil
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

// attempt is a commit whose outcome is not known.
type attempt struct {
	gen  uint64
	size int64    // bytes
	ids  []string // of a block list
	crc  uint32   // CRC-32C of the content of a Put Blob
}

// landed reports whether the version that is in the service is what was to be committed: the answer of an earlier try was
// lost, perhaps together with the process that waited for it. The File is over that version then, and clean unless it
// was changed after that try. f.commit is held.
func (f *File) landed(ctx context.Context) bool {
	f.mu.RLock()
	name, size, gen, st, o, tried := f.props.Name, f.size, f.gen, f.stage, f.options(), f.tried
	var blocks map[int64]stagedBlock
	whole := false
	if st != nil {
		blocks = st.sentBlocks()
		whole = st.valid.covers(0, size)
	}
	f.mu.RUnlock()
	if tried != nil {
		size, gen = tried.size, tried.gen
	}
	p, err := f.cont.Properties(ctx, name, blob.Condition{})
	if err != nil || p.Size != size {
		return false
	}
	var ids []string
	switch {
	case size == 0:
	case tried != nil && tried.ids != nil:
		if !f.sameList(ctx, name, p, tried.ids) {
			return false
		}
		ids = tried.ids
	case tried != nil:
		if !f.sameSum(ctx, name, p, tried.crc) {
			return false
		}
	case len(blocks) > 0:
		if !f.sameBlocks(ctx, name, p, st, blocks) {
			return false
		}
	case whole && size <= f.c.putMax:
		if !f.sameContent(ctx, name, p.ETag, st, size) {
			return false
		}
	default:
		return false
	}
	f.mu.Lock()
	if tried == nil {
		f.upTo = size
	}
	f.mu.Unlock()
	f.done(blob.Written{ETag: p.ETag, Modified: p.Modified}, o, size, gen, ids)
	return true
}

// sentBlocks returns the blocks that were uploaded and not known to be committed, by their offsets. There are none when
// something that was changed is in no block.
func (s *stage) sentBlocks() map[int64]stagedBlock {
	if len(s.unsent(false)) > 0 {
		return nil
	}
	blocks := map[int64]stagedBlock{}
	for _, b := range s.left {
		blocks[b.off] = b
	}
	for i, b := range s.blocks {
		if b.staged != 0 && b.staged == b.gen && !b.committed {
			off, _ := s.layout.span(i)
			blocks[off] = stagedBlock{extent{off, off + b.size}, b.id}
		}
	}
	return blocks
}

// sameList reports whether a version consists of these blocks.
func (f *File) sameList(ctx context.Context, name string, p blob.Properties, ids []string) bool {
	l, err := f.cont.BlockList(ctx, name)
	return err == nil && l.ETag == p.ETag &&
		slices.EqualFunc(l.Committed, ids, func(b blob.Block, id string) bool { return b.ID == id })
}

// sameBlocks reports whether all these blocks are part of a version, where they belong. Their ids are random, so nobody
// else has put them there first; but the rest may be somebody else's by now, so of the staging file only they count.
func (f *File) sameBlocks(ctx context.Context, name string, p blob.Properties, st *stage, blocks map[int64]stagedBlock) bool {
	l, err := f.cont.BlockList(ctx, name)
	if err != nil || l.ETag != p.ETag {
		return false
	}
	var at int64
	var ours extents
	found := 0
	for _, b := range l.Committed {
		if blocks[at].id == b.ID {
			found++
			ours.add(at, at+b.Size)
		}
		at += b.Size
	}
	if found != len(blocks) || at != p.Size {
		return false
	}
	f.mu.Lock()
	st.valid = st.valid.and(ours)
	f.mu.Unlock()
	return true
}

// sameSum reports whether a version of up to putMax bytes has this checksum.
func (f *File) sameSum(ctx context.Context, name string, p blob.Properties, crc uint32) bool {
	body, err := f.cont.ReadAt(ctx, name, 0, p.Size, blob.Condition{IfMatch: p.ETag})
	if err != nil {
		return false
	}
	defer body.Close()
	h := crc32.New(castagnoli)
	n, err := io.Copy(h, body)
	return err == nil && n == p.Size && h.Sum32() == crc
}

// sameContent reports whether a version of up to putMax bytes has the bytes of the staging file.
func (f *File) sameContent(ctx context.Context, name string, etag blob.ETag, st *stage, size int64) bool {
	body, err := f.cont.ReadAt(ctx, name, 0, size, blob.Condition{IfMatch: etag})
	if err != nil {
		return false
	}
	defer body.Close()
	theirs, ours := make([]byte, grain), make([]byte, grain)
	for off := int64(0); off < size; off += grain {
		n := min(grain, size-off)
		if _, err := io.ReadFull(body, theirs[:n]); err != nil || st.readAt(ours[:n], off) != nil || !bytes.Equal(theirs[:n], ours[:n]) {
			return false
		}
	}
	return true
}

// gather copies what the cache still has of the base into the staging file, for blobmount recover: the service has that
// version no more, and the cache may evict it.
func (f *File) gather(ctx context.Context) {
	f.mu.RLock()
	st, limit := f.stage, f.limit
	f.mu.RUnlock()
	if st == nil {
		return
	}
	if err := f.fill(ctx, st, 0, limit); err != nil {
		f.c.log.Debug("kept file lacks bytes of the version it was made from", "blob", f.Name(), "error", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	sums, err := st.sums(st.valid)
	for _, x := range st.valid {
		if err == nil {
			err = st.journal.span(recHeld, x.off, x.end)
		}
	}
	if err == nil {
		err = st.journal.sums(sums)
	}
	if err != nil {
		f.c.log.Warn("kept file may lack bytes of the version it was made from", "blob", f.props.Name, "error", err)
	}
}

// conflict ends a file that another writer has overtaken, and returns the error. f.commit is held.
func (f *File) conflict(ctx context.Context, cause error) error {
	theirs := blob.ETag("none")
	if p, err := f.cont.Properties(ctx, f.Name(), blob.Condition{}); err == nil {
		theirs = p.ETag
	}
	f.gather(ctx)
	f.mu.Lock()
	f.lost = &blob.Error{Code: blob.ConditionNotMet, Op: "Commit", Name: f.props.Name, Err: cause}
	ours := f.props.ETag
	if f.isNew {
		ours = "none"
	}
	st, name := f.stage, f.props.Name
	var gone int64
	if st != nil {
		gone = st.released.total()
		if err := st.journal.add(recKept, fmt.Appendf(nil, "another writer changed the blob: opened as %s, now %s", ours, theirs)); err != nil {
			f.c.log.Warn("reason could not be noted for blobmount recover", "blob", name, "error", err)
		}
	}
	f.mu.Unlock()
	attrs := []any{"blob", name, "opened_as", string(ours), "is_now", string(theirs), "error", cause}
	if st != nil {
		attrs = append(attrs, "get_ours_by", fmt.Sprintf("blobmount recover --cache-dir %s save %s FILE", f.c.dir, st.id))
	}
	if gone > 0 {
		attrs = append(attrs, "lost_bytes", gone) // they were only in the service, since the disk was short
	}
	f.c.log.Error("another writer changed this blob since it was opened: its version stays, ours is kept on disk", attrs...)
	if f.hooks.Lost != nil {
		f.hooks.Lost()
	}
	return f.lost
}
