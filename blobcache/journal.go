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
	recTally    = 'T' // from, to, CRC-64/NVME: what these bytes are, which the service holds as a block
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
	recTried    = 'A' // attempt, JSON: a commit is about to be sent
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
	// Blocks says that only attributes of the blob have changed: the service has our uncommitted blocks as before.
	// Otherwise they are part of the blob now, or gone.
	Blocks bool `json:"blocks,omitempty"`
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
//
// The salt goes first: a process that is killed between the two must not leave the first records without the last.
func (j *journal) empty() error {
	if _, err := j.file.WriteAt(make([]byte, saltSize), 0); err != nil {
		return err
	}
	long := j.size > keepJournal
	j.size = 0
	if long {
		return j.file.Truncate(keepJournal)
	}
	return nil
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

// The payload of a recFinished that stands whatever is written later.
const (
	standsOnly    = 0 // the disk may lack what was written
	standsDurable = 1 // the disk had the bytes before the record was made
)

// finish appends the checksums and that the file is meant to be saved; with stands, whatever is written to it later. With
// durable all of the journal is on disk afterwards, as the bytes must be before.
func (j *journal) finish(sums []sumOf, stands, durable bool) error {
	if err := j.sums(sums); err != nil {
		return err
	}
	var more []byte
	switch {
	case stands && durable:
		more = []byte{standsDurable}
	case stands:
		more = []byte{standsOnly}
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

// staged appends that the service holds [from, to) as a block of this id, and the checksum of that if t has it.
func (j *journal) staged(from, to int64, id string, t tally) error {
	ends := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(from)), uint64(to))
	rec := j.record(recStaged, slices.Concat(ends, []byte(id)))
	if t.n == to-from {
		rec = append(rec, j.record(recTally, binary.LittleEndian.AppendUint64(ends, t.crc64))...)
	}
	return j.addRecords(rec)
}

func (j *journal) close() { _ = j.file.Close() }

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
