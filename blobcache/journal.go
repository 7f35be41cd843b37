package blobcache

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// A journal lies beside each staging file and says what that holds: which bytes were written, over which version of
// which blob, and which of them the service has as blocks. It is what a later process finds after a crash. A record is
// appended ahead of the answer that it justifies, and after the bytes that it speaks of.
//
// It begins with 8 random bytes, the salt; eight zeros mean that it is empty. A record is: length of the payload (4 bytes),
// CRC-32C of salt, type and payload (4), type (1), payload. Numbers are little-endian. What follows a record that is cut
// off or damaged counts for nothing: its answers were never given, or were not to survive the loss of power. The file is
// used again for the next staging file, from its start; what is left of earlier records does not fit the new salt.
//
// The process that works with a staging file holds an exclusive flock on its journal.
type journal struct {
	file *os.File
	size int64  // bytes that say something
	salt uint32 // CRC-32C of the salt
}

const saltSize = 8

// journalVersion is in each header. A journal of another version is left alone and reported.
const journalVersion = 1

// stagingDir is the part of the cache directory for staging files and their journals.
const stagingDir = "staging"

// maxRecord bounds the payload of a record in bytes. Metadata has at most 8 KiB.
const maxRecord = 64 << 10

// The types of records.
const (
	recHeader   = 'H' // header, JSON: everything before it counts for nothing
	recWritten  = 'W' // from, to: the program changed these bytes, and the staging file holds them
	recHeld     = 'V' // from, to: the staging file holds these bytes, which are those of the base
	recSize     = 'S' // size: the program set it; the bytes from there on are gone
	recStaged   = 'B' // from, to, block id: the service holds these bytes as an uncommitted block
	recReleased = 'R' // from, to: the staging file does not hold them any more, the service does
	recDropped  = 'U' // from, to: the staging file does not hold them any more, the blob does
	recLayout   = 'L' // first, every: the layout of blocks is another one now
	recDetails  = 'D' // details, JSON
	recBase     = 'N' // base, JSON: the blob's name or version has changed
	recSum      = 'C' // from, to, CRC-32C: what changed bytes are at the next recFinished
	recFinished = 'F' // the program closed or synced the file: it is meant to be saved as it is
	recKept     = 'K' // text: why it could not be saved, and has to wait for somebody
	recGoing    = 'I' // a byte: 1 if the blob is about to be deleted or replaced, as the program has asked, 0 if it stays
	recMoving   = 'M' // text: the name that the blob is about to have; none: it keeps the one that it has
	recGone     = 'G' // the blob was deleted: there is nothing to save
)

// header begins a journal.
type header struct {
	Version   int       `json:"version"`
	Container string    `json:"container"` // its URL, without credentials
	PID       int       `json:"pid"`
	Boot      string    `json:"boot"`       // of the machine: what was not synced is lost with it
	BlockSize int64     `json:"block_size"` // of the layout, bytes
	Every     int       `json:"every"`      // of the layout
	Base      base      `json:"base"`
	Details   details   `json:"details"`
	Size      int64     `json:"size"`
	Began     time.Time `json:"began"`
	Moving    string    `json:"moving,omitempty"` // the name that the blob is about to have
}

// base is what a staging file lies over.
type base struct {
	Name string    `json:"name"`
	New  bool      `json:"new,omitempty"` // the service does not have it
	ETag blob.ETag `json:"etag,omitempty"`
	Kind blob.Kind `json:"kind,omitempty"`
	// From, FromETag and FromSize say which version the bytes are of that were never written: that of the blob itself,
	// or another blob's that the file is a copy of.
	From     string    `json:"from,omitempty"`
	FromETag blob.ETag `json:"from_etag,omitempty"`
	FromSize int64     `json:"from_size,omitempty"`
	Limit    int64     `json:"limit,omitempty"` // bytes of it from here on are not part of the file
	// Clean says that the blob is what the file is: nothing before this record is to be saved.
	Clean bool `json:"clean,omitempty"`
}

// details are what a commit sends beside the content.
type details struct {
	Headers  blob.Headers      `json:"headers,omitzero"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Tier     string            `json:"tier,omitempty"` // empty: the account's default
	TagCount int               `json:"tag_count,omitempty"`
	Modified time.Time         `json:"modified"`
}

// openJournal makes the empty file of a journal and locks it. path must not exist.
func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	// Whoever looks for what was left behind locks it for a moment, and may have removed it as empty.
	var st unix.Stat_t
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && st.Nlink == 0 {
		err = os.ErrNotExist
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &journal{file: f}, nil
}

// begin puts salt and header, which is written as JSON, into an empty journal.
func (j *journal) begin(header any) error {
	p, err := json.Marshal(header)
	if err != nil {
		return err
	}
	salt := binary.LittleEndian.AppendUint64(nil, rand.Uint64()|1) // never zero
	j.salt = crc32.Checksum(salt, castagnoli)
	rec := append(salt, j.record(recHeader, p)...)
	if _, err := j.file.WriteAt(rec, 0); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.size = int64(len(rec))
	return nil
}

// keepJournal is how long an empty journal may be, in bytes.
const keepJournal = 4 << 10

// empty makes a journal say nothing. Its place on the disk stays: to give it back and take it again costs as much as to
// write it.
func (j *journal) empty() error {
	if j.size > keepJournal {
		if err := j.file.Truncate(keepJournal); err != nil {
			return err
		}
	}
	j.size = 0
	_, err := j.file.WriteAt(make([]byte, saltSize), 0)
	return err
}

// record returns the bytes of a record.
func (j *journal) record(typ byte, payload []byte) []byte {
	rec := make([]byte, 9+len(payload))
	binary.LittleEndian.PutUint32(rec, uint32(len(payload)))
	rec[8] = typ
	copy(rec[9:], payload)
	binary.LittleEndian.PutUint32(rec[4:], crc32.Update(j.salt, castagnoli, rec[8:]))
	return rec
}

// add appends a record. When it fails nothing is appended.
func (j *journal) add(typ byte, payload []byte) error { return j.addRecords(j.record(typ, payload)) }

// addRecords appends records at once. When it fails nothing is appended.
func (j *journal) addRecords(rec []byte) error {
	if _, err := j.file.WriteAt(rec, j.size); err != nil { // a part of it is overwritten by the next
		return fmt.Errorf("journal: %w", err)
	}
	j.size += int64(len(rec))
	return nil
}

// span appends a record about [from, to).
func (j *journal) span(typ byte, from, to int64, more ...byte) error {
	p := binary.LittleEndian.AppendUint64(make([]byte, 0, 16+len(more)), uint64(from))
	return j.add(typ, append(binary.LittleEndian.AppendUint64(p, uint64(to)), more...))
}

func (j *journal) setSize(size int64) error { return j.number(recSize, size) }

// number appends a record about one number.
func (j *journal) number(typ byte, n int64) error {
	return j.add(typ, binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func (j *journal) json(typ byte, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(p) > maxRecord {
		return fmt.Errorf("journal: record of %d bytes is too long", len(p))
	}
	return j.add(typ, p)
}

// sumOf is the checksum of changed bytes [off, end).
type sumOf struct {
	extent
	crc uint32
}

// finish appends the checksums and that the file is meant to be saved; with stands, whatever is written to it later. With
// durable all of the journal is on disk afterwards.
func (j *journal) finish(sums []sumOf, stands, durable bool) error {
	if err := j.sums(sums); err != nil {
		return err
	}
	var more []byte
	if stands {
		more = []byte{1}
	}
	if err := j.add(recFinished, more); err != nil {
		return err
	}
	if durable {
		return unix.Fdatasync(int(j.file.Fd()))
	}
	return nil
}

// sums appends checksums.
func (j *journal) sums(sums []sumOf) error {
	for _, s := range sums {
		if err := j.span(recSum, s.off, s.end, binary.LittleEndian.AppendUint32(nil, s.crc)...); err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) close() { _ = j.file.Close() }

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
	stable   *record // at the last time that it was finished to stand
	length   int64   // of the good part of the journal, bytes
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
	return &n
}

// bootID tells one start of the machine from another; empty if the kernel does not say.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// errJournal says that a file is not a journal that this version can read.
var errJournal = errors.New("journal cannot be read")

// errEmpty says that a journal says nothing: it is kept for the next staging file, or its process has just begun.
var errEmpty = fmt.Errorf("%w: it is empty", errJournal)

// readJournal returns what a journal says.
func readJournal(r io.Reader) (*record, error) {
	var rec *record
	length, salt, err := readRecords(r, func(typ byte, p []byte) error {
		next, err := rec.apply(typ, p)
		if err == nil {
			rec = next
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	rec.length, rec.salt = length, salt
	return rec, nil
}

// readRecords gives the records of a journal to take, whose error it returns. It returns the length of the good part in
// bytes, and the CRC-32C of the salt. A journal without a record is an error.
func readRecords(r io.Reader, take func(typ byte, payload []byte) error) (length int64, seed uint32, err error) {
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(r, salt); err != nil && !atEnd(err) {
		return 0, 0, fmt.Errorf("%w: %w", errJournal, err)
	} else if err != nil || binary.LittleEndian.Uint64(salt) == 0 {
		return 0, 0, errEmpty
	}
	seed = crc32.Checksum(salt, castagnoli)
	length = int64(saltSize)
	head := make([]byte, 9)
	for {
		if _, err := io.ReadFull(r, head); err != nil && !atEnd(err) { // else the records behind it would be cut off
			return 0, 0, fmt.Errorf("%w: %w", errJournal, err)
		} else if err != nil {
			break
		}
		n := binary.LittleEndian.Uint32(head)
		if n > maxRecord {
			break
		}
		body := make([]byte, 1+n)
		body[0] = head[8]
		if _, err := io.ReadFull(r, body[1:]); err != nil && !atEnd(err) {
			return 0, 0, fmt.Errorf("%w: %w", errJournal, err)
		} else if err != nil || crc32.Update(seed, castagnoli, body) != binary.LittleEndian.Uint32(head[4:]) {
			break
		}
		if err := take(body[0], body[1:]); err != nil {
			return 0, 0, err
		}
		length += int64(len(head)) + int64(n)
	}
	if length == saltSize {
		return 0, 0, fmt.Errorf("%w: it has no header", errJournal)
	}
	return length, seed, nil
}

// atEnd reports whether a read failed since the file ends there.
func atEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

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
		return r, json.Unmarshal(p, &r.Details)
	case recBase:
		r.Base = base{}
		if err := json.Unmarshal(p, &r.Base); err != nil {
			return nil, fmt.Errorf("%w: %w", errJournal, err)
		}
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
	r.touch(func(y extent) bool { return y.off < x.end && x.off < y.end })
}

// truncate notes a change of the size. A block that ended at the old end keeps its place: whether it is still a whole
// block is for the layout to say.
func (r *record) truncate(size int64) {
	for _, x := range []*extents{&r.valid, &r.changed, &r.released} {
		x.remove(size, 1<<62)
	}
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
