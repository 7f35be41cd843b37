package blobcache

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"blobmount/blobcache/blob"
)

// How a commit ended whose answer was lost, and what happens when another writer was faster.

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
		if b.current() && !b.committed {
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
