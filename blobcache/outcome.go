package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"blobmount/blobcache/blob"
)

// How a commit ended whose answer was lost, and what happens when another writer was faster.

// errOvertaken says that the blob was replaced while it was looked at.
var errOvertaken = errors.New("the blob was replaced while it was looked at")

// lookAgain is how often a blob that others replace meanwhile is looked at, before the next commit has to do it.
const lookAgain = 5

// landed reports whether the version that is in the service is what was to be committed: the answer of an earlier try was
// lost, perhaps together with the process that waited for it. The File is over that version then, and clean unless it
// was changed after that try. An error means that this is not known, and nothing is changed. f.commit is held.
func (f *File) landed(ctx context.Context) (bool, error) {
	for range lookAgain {
		landed, err := f.landedOnce(ctx)
		if !errors.Is(err, errOvertaken) {
			return landed, err
		}
	}
	return false, &blob.Error{Code: blob.Busy, Op: "Commit", Name: f.Name(), Err: errOvertaken}
}

func (f *File) landedOnce(ctx context.Context) (bool, error) {
	f.mu.Lock()
	name, o, was := f.props.Name, f.options(), f.props.ETag
	isNew := f.isNew
	guess := f.guess()
	tried := slices.Clone(f.tried)
	f.mu.Unlock()
	defer f.forget(guess)
	p, err := f.cont.Properties(ctx, name, blob.Condition{})
	if blob.Is(err, blob.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !isNew && p.ETag == was { // nothing has landed, whatever the content
		return false, nil
	}
	v := &found{f: f, p: p}
	// The first comes first: what is the same content twice may differ in its metadata, and counts as changed since.
	for _, a := range tried {
		is, err := v.is(ctx, a)
		if err != nil {
			return false, err
		}
		if !is {
			continue
		}
		w := blob.Written{ETag: p.ETag, Modified: p.Modified}
		switch a.Way {
		case byAppend:
			f.appended(w, a)
		case byCopy:
			f.doneCopy(w, o, a, p.Headers, p.TagCount)
		default:
			f.done(w, o, a, v.ids)
		}
		return true, nil
	}
	return false, nil
}

// guess adds an attempt, and returns it, for what an earlier process may have sent without a word in the journal that has
// survived. What this process has sent is known. f.mu is held.
func (f *File) guess() *attempt {
	if slices.ContainsFunc(f.tried, func(a *attempt) bool { return !a.old }) {
		return nil
	}
	a := &attempt{Way: byGuess, Size: f.size, gen: f.gen, upTo: f.size, old: true}
	f.tried = append(f.tried, a)
	return a
}

// forget takes an attempt back that was not made.
func (f *File) forget(a *attempt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried = slices.DeleteFunc(f.tried, func(b *attempt) bool { return b == a })
}

// found is a version in the service that is compared with attempts.
type found struct {
	f     *File
	p     blob.Properties
	asked bool
	list  []blob.Block // if asked
	ids   []string     // of these
}

// is reports whether the version is what an attempt was to make. It fails with errOvertaken when it is not there any more.
func (v *found) is(ctx context.Context, a *attempt) (bool, error) {
	if v.p.Size != a.Size || (v.p.Kind == blob.AppendBlob) != (a.Way == byAppend) {
		return false, nil
	}
	switch a.Way {
	case byPut:
		return v.hasSum(ctx, 0, a.Size, a.CRC)
	case byAppend:
		return v.hasSum(ctx, a.At, a.Size-a.At, a.CRC)
	case byList:
		err := v.blocks(ctx)
		return err == nil && bytes.Equal(digest(v.ids), a.IDs), err
	case byCopy:
		return v.isCopy(ctx, a)
	case byGuess:
		return v.isOurs(ctx, a.Size)
	}
	return false, nil // of a later program
}

// isCopy compares the source that the service has noted. It does not note the version; but if the source is still the one
// that was to be copied, the copy is of that.
func (v *found) isCopy(ctx context.Context, a *attempt) (bool, error) {
	if v.p.CopiedFrom != a.From {
		return false, nil
	}
	now, err := v.f.cont.Properties(ctx, a.From, blob.Condition{})
	if blob.Is(err, blob.NotFound) {
		return false, nil
	}
	return err == nil && now.ETag == a.FromETag, err
}

// isOurs compares a version with the staging file.
func (v *found) isOurs(ctx context.Context, size int64) (bool, error) {
	f := v.f
	f.mu.RLock()
	st := f.stage
	var blocks map[int64]stagedBlock
	whole := false
	if st != nil {
		blocks = st.sentBlocks()
		whole = st.valid.covers(0, size)
	}
	f.mu.RUnlock()
	switch {
	case size == 0:
		return true, nil
	case len(blocks) > 0:
		return v.hasBlocks(ctx, st, blocks)
	case whole && size <= f.c.putMax:
		return v.hasContent(ctx, st)
	}
	return false, nil
}

// replaced turns what is said of a version that is not there any more into errOvertaken.
func replaced(err error) error {
	if blob.Is(err, blob.NotFound) || blob.Is(err, blob.ConditionNotMet) {
		return errOvertaken
	}
	return err
}

// blocks asks for the blocks of the version, once.
func (v *found) blocks(ctx context.Context) error {
	if v.asked {
		return nil
	}
	l, err := v.f.cont.BlockList(ctx, v.p.Name)
	if err == nil && l.ETag != v.p.ETag {
		err = errOvertaken
	}
	if err != nil {
		return replaced(err)
	}
	v.asked, v.list, v.ids = true, l.Committed, make([]string, len(l.Committed))
	for i, b := range l.Committed {
		v.ids[i] = b.ID
	}
	return nil
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

// hasBlocks reports whether all these blocks are part of the version, where they belong. Their ids are random, so nobody
// else has put them there first; but the rest may be somebody else's by now, so of the staging file only they count.
func (v *found) hasBlocks(ctx context.Context, st *stage, blocks map[int64]stagedBlock) (bool, error) {
	if err := v.blocks(ctx); err != nil {
		return false, err
	}
	var at int64
	var ours extents
	count := 0
	for _, b := range v.list {
		if blocks[at].id == b.ID {
			count++
			ours.add(at, at+b.Size)
		}
		at += b.Size
	}
	if count != len(blocks) || at != v.p.Size {
		return false, nil
	}
	v.f.mu.Lock()
	st.valid = st.valid.and(ours)
	v.f.mu.Unlock()
	return true, nil
}

// hasSum reports whether n bytes of the version, few enough to be fetched, have this checksum.
func (v *found) hasSum(ctx context.Context, off, n int64, crc uint32) (bool, error) {
	h := crc32.New(castagnoli)
	err := v.read(ctx, off, n, func(body io.Reader) error {
		_, err := io.Copy(h, body)
		return err
	})
	return err == nil && h.Sum32() == crc, err
}

// hasContent reports whether the version, of up to putMax bytes, has the bytes of the staging file.
func (v *found) hasContent(ctx context.Context, st *stage) (same bool, err error) {
	theirs, ours := make([]byte, grain), make([]byte, grain)
	err = v.read(ctx, 0, v.p.Size, func(body io.Reader) error {
		same = true
		for off := int64(0); off < v.p.Size && same; off += grain {
			n := min(grain, v.p.Size-off)
			if _, err := io.ReadFull(body, theirs[:n]); err != nil {
				return err
			}
			if err := st.readAt(ours[:n], off); err != nil {
				return err
			}
			same = bytes.Equal(theirs[:n], ours[:n])
		}
		return nil
	})
	return same && err == nil, err
}

// read gives n bytes of the version to take.
func (v *found) read(ctx context.Context, off, n int64, take func(io.Reader) error) error {
	if n == 0 {
		return nil
	}
	body, err := v.f.cont.ReadAt(ctx, v.p.Name, off, n, blob.Condition{IfMatch: v.p.ETag})
	if err != nil {
		return replaced(err)
	}
	defer body.Close()
	return take(body)
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
