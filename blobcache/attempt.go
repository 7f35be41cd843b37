package blobcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"blobmount/blobcache/blob"
)

// What is remembered of a commit until its outcome is known: its answer may be lost, perhaps together with the process
// that waited for it. Then the service may have it, may not have it, or may get it yet.

// attempt is a commit whose outcome is not known: what the blob is if it has landed. The exported fields are in the
// journal, written before the request. They need no sync: what they save after a kill is an answer that was not given, and
// a loss of power leaves the ways of before to recognise our own version (File.guess).
type attempt struct {
	Way      way       `json:"way"`
	Size     int64     `json:"size"`                // of the blob, bytes
	At       int64     `json:"at,omitempty"`        // where the piece begins that was appended
	Last     bool      `json:"last,omitempty"`      // it was the last piece of the file
	CRC      uint32    `json:"crc,omitempty"`       // CRC-32C of the content, or of the piece
	IDs      []byte    `json:"ids,omitempty"`       // digest of the block ids
	From     string    `json:"from,omitempty"`      // the blob that was copied
	FromETag blob.ETag `json:"from_etag,omitempty"` // and its version

	gen  uint64 // the state of the file
	upTo int64  // bytes of what it makes that are still part of the file
	n    uint64 // counts the attempts of a File
	old  bool   // of an earlier process
	// since is what was written since then. It is known of those of earlier processes only, and changed says whether
	// anything else has changed.
	since   extents
	changed bool
}

// way is how a commit is made.
type way string

const (
	byPut    way = "put"
	byList   way = "list"
	byAppend way = "append"
	byCopy   way = "copy"
	// byGuess is none that was made: it stands for whatever an earlier process may have sent of what is here. It is not in
	// journals.
	byGuess way = "guess"
)

// digest tells lists of block ids apart: of 50,000 it needs 32 bytes, not 1.2 MB in memory and twice that in the journal.
func digest(ids []string) []byte {
	h := sha256.New()
	for _, id := range ids {
		_, _ = fmt.Fprintf(h, "%d:%s", len(id), id)
	}
	return h.Sum(nil)
}

// mostTried bounds how many attempts are remembered. Each further one is of a program that changes the file and saves it
// again, while the requests of before may still be on their way.
const mostTried = 8

// remember adds an attempt. The first stays: it says since when blocks may be discarded (see File.mayRelease).
func remember[T any](tried []T, a T) []T {
	if len(tried) == mostTried {
		tried = slices.Delete(tried, 1, 2)
	}
	return append(tried, a)
}

// begin notes what is about to be committed, as it is now: from here on until the outcome is known the service may have
// it. It fails with errMoved if that is not the state that is wanted. f.mu and f.commit are held.
func (f *File) begin(a *attempt) error {
	if f.moved() {
		return errMoved
	}
	f.attempts++
	a.gen, a.upTo, a.n = f.gen, a.Size, f.attempts
	if i := slices.IndexFunc(f.tried, a.same); i >= 0 { // during an outage: it is in the journal
		a.n = f.tried[i].n
		f.tried[i] = a
		return nil
	}
	f.tried = remember(f.tried, a)
	if f.stage == nil {
		return nil
	}
	if err := f.stage.journal.json(recTried, a); err != nil {
		// The commit is what gives room on a full disk.
		f.c.log.Warn("a crash now could make a commit look like another writer's", "blob", f.props.Name, "error", err)
	}
	return nil
}

// same reports whether two attempts make the same of the same state.
func (a *attempt) same(b *attempt) bool {
	return a.gen == b.gen && a.Way == b.Way && a.Size == b.Size && a.At == b.At && a.CRC == b.CRC && bytes.Equal(a.IDs, b.IDs) &&
		a.From == b.From && a.FromETag == b.FromETag
}

// cut notes that the file has ended at size meanwhile. f.mu is held.
func (f *File) cut(size int64) {
	for _, a := range f.tried {
		a.upTo = min(a.upTo, size)
	}
}

// mayRelease reports whether an uncommitted block may become the only place of its bytes. A commit discards the blocks
// that are not part of it, at a time that nobody knows as long as its outcome is open. f.mu is held.
func (f *File) mayRelease(b *block) bool { return len(f.tried) == 0 || b.after < f.tried[0].n }

// appending reports whether bytes from off on may just be at the end of the append blob, where nothing can change them.
// f.mu is held.
func (f *File) appending(off int64) bool {
	return slices.ContainsFunc(f.tried, func(a *attempt) bool { return a.Way == byAppend && off < a.Size })
}

// try notes an attempt that a journal tells of.
func (r *record) try(p []byte) error {
	var a attempt
	if err := json.Unmarshal(p, &a); err != nil {
		return fmt.Errorf("%w: %w", errJournal, err)
	}
	a.upTo, a.old = a.Size, true
	r.tried = remember(r.tried, a)
	if r.stable != nil { // the state of before is compared with it after a loss of power
		a.changed = true
		r.stable.tried = remember(r.stable.tried, a)
	}
	return nil
}

// outdate notes for the attempts that the file was changed in x, or if that is empty its size or what goes with it.
func (r *record) outdate(x extent) {
	for i := range r.tried {
		r.tried[i].changed = true
		r.tried[i].since.add(x.off, x.end)
	}
}

// cut is File.cut for a journal.
func (r *record) cut(size int64) {
	r.outdate(extent{})
	for i := range r.tried {
		r.tried[i].upTo = min(r.tried[i].upTo, size)
		r.tried[i].since.remove(size, 1<<62)
	}
}

// rebased forgets the attempts when the blob is another one than they were made on.
func (r *record) rebased(was base) {
	if r.Base.Clean || r.Base.Name != was.Name || r.Base.ETag != was.ETag || r.Base.New != was.New {
		r.tried = nil
	}
	if r.Base.Kind == blob.AppendBlob && was.Kind == blob.AppendBlob { // it has grown by a piece, of which the rest is not sent
		r.changed.remove(was.FromSize, r.Base.FromSize)
	}
}

// cloneTried returns a copy that shares nothing.
func (r *record) cloneTried() []attempt {
	tried := slices.Clone(r.tried)
	for i := range tried {
		tried[i].since = slices.Clone(tried[i].since)
	}
	return tried
}

// takeUp gives a File the attempts of its journal.
func (f *File) takeUp(tried []attempt) {
	for _, a := range tried {
		f.attempts++
		a.gen, a.n = f.gen, f.attempts
		if a.changed {
			a.gen = f.saved
		}
		f.tried = append(f.tried, &a)
	}
}
