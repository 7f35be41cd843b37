package blobcache

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// What the records of a journal say together.

// stagedBlock is a block that the service holds and that was not committed yet.
type stagedBlock struct {
	extent
	id string
}

// record is what a journal says at its end.
type record struct {
	header
	valid    extents // bytes in the staging file
	changed  extents // of them and of the released ones, those that differ from the base
	released extents // bytes that only the service has
	staged   []stagedBlock
	sums     []sumOf
	named    bool   // a close was answered for when it was new and empty
	finished bool   // it is to be saved as it is
	stands   bool   // whatever is written later
	dirty    bool   // there is something that the service does not have
	kept     string // why it waits for somebody
	going    bool   // the blob is about to be deleted or replaced
	gone     bool
	tried    []attempt // commits whose outcome is not noted
	stable   *record   // at the last time that it was finished to stand
	length   int64     // of the good part of the journal, bytes
	salt     uint32
}

// trusted returns the bytes of the staging file that are known to be what was written, and those that only the service
// has. After a loss of power the disk may lack any byte without a checksum: of the base, which is fetched again, or of a
// block that the service holds. Of an unfinished file there are no checksums; its owner decides.
func (r *record) trusted() (valid, released extents) {
	released = slices.Clone(r.released)
	if !r.finished {
		return r.valid.and(r.changed), released
	}
	var known extents
	for _, s := range r.sums {
		known.add(s.off, s.end)
	}
	for _, x := range r.changed {
		for pos := x.off; pos < x.end; {
			to, in := known.run(pos, x.end)
			if !in {
				released.add(pos, to)
			}
			pos = to
		}
	}
	return r.valid.and(known), released
}

// lacks reports whether there are bytes that neither a checksum nor a block vouches for.
func (r *record) lacks() bool {
	_, released := r.trusted()
	for _, b := range r.staged {
		released.remove(b.off, b.end)
	}
	return len(released) > 0
}

// clone returns a copy that shares nothing that replay changes.
func (r *record) clone() *record {
	n := *r
	n.valid, n.changed, n.released = slices.Clone(r.valid), slices.Clone(r.changed), slices.Clone(r.released)
	n.staged, n.sums = slices.Clone(r.staged), slices.Clone(r.sums)
	n.tried = r.cloneTried()
	return &n
}

// apply takes one more record into account. Only a header may come first.
func (r *record) apply(typ byte, p []byte) (*record, error) {
	if typ == recHeader {
		n := &record{}
		if err := json.Unmarshal(p, &n.header); err != nil {
			return nil, fmt.Errorf("%w: %w", errJournal, err)
		}
		if n.Version != journalVersion {
			return nil, fmt.Errorf("%w: it has version %d, this program reads %d", errJournal, n.Version, journalVersion)
		}
		n.dirty = n.Base.New
		return n, nil
	}
	if r == nil {
		return nil, fmt.Errorf("%w: it begins with a record of type %q", errJournal, typ)
	}
	switch typ {
	case recWritten, recHeld, recStaged, recReleased, recDropped, recSum, recLayout:
		if len(p) < 16 {
			return nil, fmt.Errorf("%w: record %q is too short", errJournal, typ)
		}
		x := extent{int64(binary.LittleEndian.Uint64(p)), int64(binary.LittleEndian.Uint64(p[8:]))}
		return r, r.span(typ, x, p[16:])
	case recSize:
		if len(p) != 8 {
			return nil, fmt.Errorf("%w: record %q has %d bytes", errJournal, typ, len(p))
		}
		r.truncate(int64(binary.LittleEndian.Uint64(p)))
	case recDetails:
		r.Details = details{}
		r.dirty = true
		r.outdate(extent{})
		return r, json.Unmarshal(p, &r.Details)
	case recBase:
		was := r.Base
		r.Base = base{}
		if err := json.Unmarshal(p, &r.Base); err != nil {
			return nil, fmt.Errorf("%w: %w", errJournal, err)
		}
		r.rebased(was)
		r.staged, r.released, r.Moving = nil, nil, ""
		r.kept, r.named = "", r.named && r.Base.New
		if r.Base.Clean {
			r.changed, r.sums, r.dirty, r.finished, r.stands, r.stable = nil, nil, false, false, false, nil
		}
	case recFinished:
		r.finished, r.stands = true, len(p) > 0
		r.named = r.named || r.Base.New && r.Size == 0
		if r.stands {
			r.stable = r.clone()
		}
	case recKept:
		r.kept = string(p)
	case recGoing:
		r.going = len(p) > 0 && p[0] == 1
	case recMoving:
		r.Moving = string(p)
	case recGone:
		r.gone = true
	case recTried:
		return r, r.try(p)
	default:
		return nil, fmt.Errorf("%w: record of unknown type %q", errJournal, typ)
	}
	return r, nil
}

func (r *record) span(typ byte, x extent, more []byte) error {
	if typ == recLayout {
		r.BlockSize, r.Every = x.off, int(x.end)
		r.staged = nil
		return nil
	}
	if x.off < 0 || x.end < x.off {
		return fmt.Errorf("%w: record %q of [%d, %d)", errJournal, typ, x.off, x.end)
	}
	switch typ {
	case recWritten:
		r.valid.add(x.off, x.end)
		r.change(x)
		r.Size = max(r.Size, x.end)
	case recHeld:
		r.valid.add(x.off, x.end)
	case recReleased:
		r.drop(x)
		r.released.add(x.off, x.end)
	case recDropped:
		r.drop(x)
	case recStaged:
		r.staged = append(r.staged, stagedBlock{x, string(more)})
	case recSum:
		if len(more) != 4 {
			return fmt.Errorf("%w: checksum of %d bytes", errJournal, len(more))
		}
		r.sums = append(r.sums, sumOf{x, binary.LittleEndian.Uint32(more)})
		r.valid.add(x.off, x.end) // they are of bytes that the staging file holds
	}
	return nil
}

// drop notes that the staging file does not hold x any more.
func (r *record) drop(x extent) {
	r.valid.remove(x.off, x.end)
	r.sums = slices.DeleteFunc(r.sums, func(s sumOf) bool { return s.off < x.end && x.off < s.end })
}

// change notes that the program changed x: blocks and checksums of before do not hold any more.
func (r *record) change(x extent) {
	r.changed.add(x.off, x.end)
	r.released.remove(x.off, x.end)
	r.outdate(x)
	r.touch(func(y extent) bool { return y.off < x.end && x.off < y.end })
}

// truncate notes a change of the size. A block that ended at the old end keeps its place: whether it is still a whole
// block is for the layout to say.
func (r *record) truncate(size int64) {
	for _, x := range []*extents{&r.valid, &r.changed, &r.released} {
		x.remove(size, 1<<62)
	}
	r.cut(size)
	r.touch(func(y extent) bool { return y.end > size })
	r.Base.Limit = min(r.Base.Limit, size)
	r.Size = size
}

// touch notes a change, after which the blocks and checksums that are named do not count.
func (r *record) touch(stale func(extent) bool) {
	r.dirty, r.finished = true, r.stands
	r.staged = slices.DeleteFunc(r.staged, func(b stagedBlock) bool { return stale(b.extent) })
	r.sums = slices.DeleteFunc(r.sums, func(s sumOf) bool { return stale(s.extent) })
}
