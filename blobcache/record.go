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

// tallied is the checksum of a block, CRC-64/NVME. To read all blocks costs a second for each GB, and most are committed by
// their ids: it is only compared when there is no such block any more.
type tallied struct {
	extent
	crc uint64
}

// record is what a journal says at its end.
type record struct {
	header
	valid    extents // bytes in the staging file
	changed  extents // of them and of the released ones, those that differ from the base
	released extents // bytes that only the service has
	lost     extents // bytes that only the service had, when it dropped its uncommitted blocks
	staged   []stagedBlock
	sums     []sumOf
	tallies  []tallied // of bytes that the staging file holds, and that are or were in a block of the service
	proven   extents   // of them, those that were read and match
	named    bool      // a close was answered for when it was new and empty
	finished bool      // it is to be saved as it is
	stands   bool      // whatever is written later
	dirty    bool      // there is something that the service does not have
	kept     string    // why it waits for somebody
	going    bool      // the blob is about to be deleted or replaced
	gone     bool
	tried    []attempt // commits whose outcome is not noted
	stable   *record   // at the last time that it was finished to stand, and durable
	here     bool      // the machine was not restarted since: the kernel has what was written
	length   int64     // of the good part of the journal, bytes
	salt     uint32
}

// trusted returns the bytes of the staging file that are known to be what was written, and those that only the service
// has. After a loss of power the disk may lack any byte without a checksum: of the base, which is fetched again, or of a
// block that the service holds. Of an unfinished file there are no checksums; its owner decides. Nor are there of what was
// written after a sync that stands: as long as the machine runs, the kernel has that.
func (r *record) trusted() (valid, released extents) {
	released = slices.Clone(r.released)
	for _, x := range r.lost {
		released.add(x.off, x.end)
	}
	if !r.finished {
		return r.valid.and(r.changed), released
	}
	var known extents
	for _, s := range r.sums {
		known.add(s.off, s.end)
	}
	for _, x := range r.proven {
		known.add(x.off, x.end)
	}
	if r.here && r.stands {
		written := r.valid.and(r.changed)
		for _, b := range r.staged { // committed by its id
			written.remove(b.off, b.end)
		}
		for _, x := range written {
			known.add(x.off, x.end)
		}
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

// lacks returns the bytes that neither a checksum nor a block vouches for.
func (r *record) lacks() extents {
	_, released := r.trusted()
	for _, b := range r.staged {
		released.remove(b.off, b.end)
	}
	return released
}

// clone returns a copy that shares nothing that replay changes.
func (r *record) clone() *record {
	n := *r
	n.valid, n.changed, n.released = slices.Clone(r.valid), slices.Clone(r.changed), slices.Clone(r.released)
	n.lost = slices.Clone(r.lost)
	n.staged, n.sums, n.tallies = slices.Clone(r.staged), slices.Clone(r.sums), slices.Clone(r.tallies)
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
	case recWritten, recHeld, recStaged, recReleased, recDropped, recTally, recSum, recLayout:
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
		var b base
		if err := json.Unmarshal(p, &b); err != nil {
			return nil, fmt.Errorf("%w: %w", errJournal, err)
		}
		r.rebase(b)
	case recFinished:
		r.finished, r.stands = true, len(p) > 0
		r.named = r.named || r.Base.New && r.Size == 0
		if r.stands && p[0] == standsDurable {
			r.stable = nil // else each would keep all before it
			r.stable = r.clone()
		}
	case recKept, recGoing, recMoving, recGone:
		r.fate(typ, p)
		if r.stable != nil {
			r.stable.fate(typ, p)
		}
	case recTried:
		return r, r.try(p)
	default:
		return nil, fmt.Errorf("%w: record of unknown type %q", errJournal, typ)
	}
	return r, nil
}

// fate notes what is to become, or has become, of the blob, whatever its content.
func (r *record) fate(typ byte, p []byte) {
	switch typ {
	case recKept:
		r.kept = string(p)
	case recGoing:
		r.going = len(p) > 0 && p[0] == 1
	case recMoving:
		r.Moving = string(p)
	case recGone:
		r.gone = true
	}
}

// rebase notes that the name or the version of the blob is another one.
func (r *record) rebase(b base) {
	old := r.Base
	if s := r.stable; s != nil && (b.Name != old.Name || b.Blocks) {
		s.rebase(b) // another name, not another content
	}
	r.Base, r.Moving, r.kept, r.named = b, "", "", r.named && b.New
	r.rebased(old)
	switch {
	case b.Clean:
		r.tallies = nil
		r.changed, r.sums, r.lost, r.dirty, r.finished, r.stands, r.stable = nil, nil, nil, false, false, false, nil
	case b.Blocks:
		return
	default:
		committed := int64(0) // what was released and lies below that is part of the blob now
		if b.From == b.Name && b.FromETag != old.FromETag {
			committed = b.Limit
		}
		for _, x := range r.released {
			r.changed.remove(x.off, min(x.end, max(x.off, committed)))
			if from := max(x.off, committed); from < x.end {
				r.lost.add(from, x.end)
			}
		}
	}
	r.staged, r.released = nil, nil
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
	case recTally:
		if len(more) != 8 {
			return fmt.Errorf("%w: checksum of %d bytes", errJournal, len(more))
		}
		r.tallies = append(r.tallies, tallied{x, binary.LittleEndian.Uint64(more)})
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
	r.tallies = slices.DeleteFunc(r.tallies, func(s tallied) bool { return s.off < x.end && x.off < s.end })
}

// change notes that the program changed x: blocks and checksums of before do not hold any more.
func (r *record) change(x extent) {
	r.changed.add(x.off, x.end)
	r.released.remove(x.off, x.end)
	r.lost.remove(x.off, x.end)
	r.outdate(x)
	r.touch(func(y extent) bool { return y.off < x.end && x.off < y.end })
}

// truncate notes a change of the size. A block that ended at the old end keeps its place: whether it is still a whole
// block is for the layout to say.
func (r *record) truncate(size int64) {
	for _, x := range []*extents{&r.valid, &r.changed, &r.released, &r.lost} {
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
	r.tallies = slices.DeleteFunc(r.tallies, func(s tallied) bool { return stale(s.extent) })
}
