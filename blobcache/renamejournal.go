package blobcache

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"blobmount/blobcache/blob"
)

// The journal of the rename of a directory says what was to be renamed, which copies were made, and whether the sources
// may be deleted. It has the form of the journals of staging files. It is what a later process needs to finish the
// rename; a process that works with it holds an exclusive flock on it.
//
// A page of the listing is planned by one record for each blob, on the disk before the first of them is copied. A record for each
// copy follows, in any order, and then the next page. So the journal is read page by page, whatever its length.

// renameVersion is in each header. A journal of another version is left alone and reported.
const renameVersion = 1

// renamesDir is the part of the cache directory for these journals.
const renamesDir = "renames"

// The types of their records. Numbers are little-endian; a text has its length in two bytes before it.
const (
	recRename  = 'H' // renameHeader, JSON
	recPlanned = 'P' // size, name, ETag: a blob is to be copied. The name is what follows that of the directory
	recStale   = 'S' // size, name, ETag: a claim that does not count any more: it goes with the sources, and is not copied
	recCopied  = 'C' // number, time, ETag, ETag: blob number n was copied as it was under the first ETag. None: it is gone
	recFound   = 'E' // the same, but the answer to the copy was lost, and a copy of this blob was found there
	recForward = 'D' // all copies are there: the sources are to be deleted
	recBack    = 'U' // the copies are to be deleted: the rename has failed
	recDeleted = 'X' // number: the sources of all blobs before it are deleted
)

// renameHeader begins the journal.
type renameHeader struct {
	Version   int       `json:"version"`
	Container string    `json:"container"` // its URL, without credentials
	PID       int       `json:"pid"`
	From      string    `json:"from"`
	To        string    `json:"to"`
	Began     time.Time `json:"began"`
	Claim     string    `json:"claim"` // the id in the claim of the new name, which is made before the first copy
	// Slash is the marker with a slash that the claim replaces, nil if there is none.
	Slash *slashMarker `json:"slash,omitempty"`
	// Stale is a claim of the old name that does not count any more: it goes, and is not copied.
	Stale blob.ETag `json:"stale,omitempty"`
	// The markers of both ends, in the order of markers; empty: there is none.
	Source [2]blob.ETag `json:"source"`
	Target [2]blob.ETag `json:"target"`
}

// markers are what a directory's own name may end with in the name of a marker: nothing, as Hadoop writes them, or a
// slash.
var markers = [2]string{"", "/"}

// renamePhase is what a rename is about.
type renamePhase uint8

const (
	renameCopies  renamePhase = iota // copies are made
	renameForward                    // sources are deleted
	renameBack                       // copies are deleted
)

// renameState is what a journal says, but for the single blobs.
type renameState struct {
	renameHeader
	phase   renamePhase
	planned int64  // number of blobs
	last    string // the name that was planned last
	deleted int64  // the sources of blobs before this number are deleted
	length  int64  // of the good part of the journal, bytes
	salt    uint32
}

// renamed is one blob of a rename.
type renamedBlob struct {
	name string    // what follows the name of the directory: it begins with a slash
	etag blob.ETag // of the source, as it is to be copied or was
	size int64     // bytes
	// modified is when that version was made; zero for one that an earlier process has planned.
	modified time.Time
	// done: it was copied, as the version copy; or, if that has no ETag, it was not there any more.
	done bool
	copy blob.Written
	// found: nobody has said that this rename made the copy.
	found bool
	// stale: it is the claim of a rename that a crash has left. A copy would count for an hour again.
	stale bool
}

// readRename returns what a journal says. page, if not nil, is called with the blobs of each page, and the number of the
// first; its error is returned.
func readRename(r io.Reader, page func(first int64, blobs []renamedBlob) error) (*renameState, error) {
	m := renameReader{page: page}
	length, salt, err := readRecords(bufio.NewReaderSize(r, 256<<10), m.take)
	if err == nil {
		err = m.turn()
	}
	if err != nil {
		return nil, err
	}
	m.state.length, m.state.salt = length, salt
	return m.state, nil
}

// renameReader is the state of readRename.
type renameReader struct {
	state  *renameState
	page   func(first int64, blobs []renamedBlob) error
	first  int64 // number of the first of blobs
	blobs  []renamedBlob
	copied bool // a copy of this page was noted: the next plan begins another page
}

// turn ends a page.
func (m *renameReader) turn() error {
	if m.page == nil || len(m.blobs) == 0 {
		return nil
	}
	return m.page(m.first, m.blobs)
}

// take takes one more record into account.
func (m *renameReader) take(typ byte, p []byte) error {
	if (typ == recRename) != (m.state == nil) {
		return fmt.Errorf("%w: record %q in the wrong place", errJournal, typ)
	}
	d := payload{rest: p}
	switch typ {
	case recRename:
		m.state = &renameState{}
		if err := json.Unmarshal(p, &m.state.renameHeader); err != nil {
			return fmt.Errorf("%w: %w", errJournal, err)
		}
		if v := m.state.Version; v != renameVersion {
			return fmt.Errorf("%w: it has version %d, this program reads %d", errJournal, v, renameVersion)
		}
		return nil
	case recPlanned, recStale:
		if m.copied {
			if err := m.turn(); err != nil {
				return err
			}
			m.first, m.blobs, m.copied = m.state.planned, m.blobs[:0], false
		}
		b := renamedBlob{size: d.number(), name: d.text(), etag: blob.ETag(d.text())}
		b.stale, b.done = typ == recStale, typ == recStale
		m.blobs = append(m.blobs, b)
		m.state.planned++
		m.state.last = b.name
	case recCopied, recFound:
		n, modified := d.number()-m.first, d.number()
		if n < 0 || n >= int64(len(m.blobs)) {
			return fmt.Errorf("%w: copy of a blob that is not on the page", errJournal)
		}
		b := &m.blobs[n]
		b.found = typ == recFound
		m.copied, b.done, b.etag, b.copy.ETag = true, true, blob.ETag(d.text()), blob.ETag(d.text())
		b.copy.Modified = time.Unix(modified, 0).UTC()
	case recForward:
		m.state.phase = renameForward
	case recBack:
		m.state.phase = renameBack
	case recDeleted:
		m.state.deleted = d.number()
	default:
		return fmt.Errorf("%w: record of unknown type %q", errJournal, typ)
	}
	return d.end(typ)
}

// planRecord returns the payload of recPlanned and recStale.
func planRecord(b renamedBlob) []byte {
	p := binary.LittleEndian.AppendUint64(nil, uint64(b.size))
	return appendText(appendText(p, b.name), string(b.etag))
}

// copyRecord returns the payload of recCopied.
func copyRecord(number int64, b renamedBlob) []byte {
	p := binary.LittleEndian.AppendUint64(nil, uint64(number))
	p = binary.LittleEndian.AppendUint64(p, uint64(b.copy.Modified.Unix()))
	return appendText(appendText(p, string(b.etag)), string(b.copy.ETag))
}

func appendText(p []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint16(p, uint16(len(s))), s...) // a name has at most 4,096 bytes
}

// payload reads the payload of a record.
type payload struct {
	rest  []byte
	short bool
}

func (d *payload) take(n int) []byte {
	if len(d.rest) < n {
		d.rest, d.short = nil, true
		return make([]byte, n)
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p
}

func (d *payload) number() int64 { return int64(binary.LittleEndian.Uint64(d.take(8))) }

func (d *payload) text() string { return string(d.take(int(binary.LittleEndian.Uint16(d.take(2))))) }

// end demands that all was read.
func (d *payload) end(typ byte) error {
	if d.short || len(d.rest) > 0 {
		return fmt.Errorf("%w: record %q has a wrong length", errJournal, typ)
	}
	return nil
}
