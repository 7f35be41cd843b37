// Package crash judges whether files survive what should not hurt them: a daemon that is killed, a disk that forgets
// what was not synced, a service that goes away. It has
//
//   - contents that say of each 32 bytes which file, version and offset they belong to (Image),
//   - a Ledger of what was begun and what was acknowledged, which judges a file that is found afterwards,
//   - a Workload of many small and large files that writes to a Ledger,
//   - a Disk, which is a directory that can lose what was not synced, as in a power cut,
//   - a Link to a service, which can be cut.
//
// It knows nothing of blobmount: what is under test is a directory.
package crash

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
)

// Stamp names who wrote bytes: one version of one path. A path never has two versions of one number.
type Stamp struct {
	Path    string
	Version int
}

// recordSize is that of the unit that names its writer: 8 bytes each for path, version, offset, and a checksum.
const recordSize = 32

// record returns the record at an offset, a multiple of recordSize.
func (s Stamp) record(offset int64) (r [recordSize]byte) {
	h := fnv.New64a()
	h.Write([]byte(s.Path))
	binary.BigEndian.PutUint64(r[0:], h.Sum64())
	binary.BigEndian.PutUint64(r[8:], uint64(s.Version))
	binary.BigEndian.PutUint64(r[16:], uint64(offset))
	h.Write(r[:24])
	binary.BigEndian.PutUint64(r[24:], h.Sum64())
	return r
}

// fill writes the bytes of a stamp that belong at an offset of its file.
func (s Stamp) fill(p []byte, offset int64) {
	for len(p) > 0 {
		r := s.record(offset - offset%recordSize)
		n := copy(p, r[offset%recordSize:])
		p, offset = p[n:], offset+int64(n)
	}
}

// Image is the content of a file: ranges that follow each other, each written by one version of one path. The zero
// value is an empty file. An Image is immutable, and needs no memory for its bytes.
type Image struct{ parts []part }

// part is a range from the end of the part before it.
type part struct {
	end   int64
	stamp Stamp
}

// NewImage returns the content that one version wrote as a whole.
func NewImage(s Stamp, size int64) Image { return Image{}.Patch(s, 0, size) }

// Size returns the number of bytes.
func (m Image) Size() int64 {
	if len(m.parts) == 0 {
		return 0
	}
	return m.parts[len(m.parts)-1].end
}

// Patch returns the content after a write of size bytes at off, which is at most the size of the file.
func (m Image) Patch(s Stamp, off, size int64) Image {
	head, tail := m.Cut(off), m.parts
	parts := append(head.parts, part{off + size, s})
	for _, p := range tail {
		if p.end > off+size {
			parts = append(parts, p)
		}
	}
	return Image{parts}
}

// Cut returns the content after a truncate to size bytes, which is at most the size of the file.
func (m Image) Cut(size int64) Image {
	var parts []part
	start := int64(0)
	for _, p := range m.parts {
		if start >= size {
			break
		}
		parts = append(parts, part{min(p.end, size), p.stamp})
		start = p.end
	}
	return Image{parts}
}

// Over returns the content after head was written over its beginning.
func (m Image) Over(head Image) Image {
	parts := slices.Clone(head.parts)
	for _, p := range m.parts {
		if p.end > head.Size() {
			parts = append(parts, p)
		}
	}
	return Image{parts}
}

// Bytes returns the content.
func (m Image) Bytes() []byte {
	b := make([]byte, m.Size())
	start := int64(0)
	for _, p := range m.parts {
		p.stamp.fill(b[start:p.end], start)
		start = p.end
	}
	return b
}

// Is reports whether b is exactly this content.
func (m Image) Is(b []byte) bool { return int64(len(b)) == m.Size() && string(b) == string(m.Bytes()) }

// Describe says of which versions of which of the paths b consists, for the message of a failure.
func Describe(b []byte, paths ...string) string {
	known := map[uint64]string{}
	for _, p := range paths {
		r := Stamp{Path: p}.record(0)
		known[binary.BigEndian.Uint64(r[:])] = p
	}
	var runs []string
	start, last := 0, ""
	flush := func(end int) {
		if end > start {
			runs = append(runs, fmt.Sprintf("[%d, %d) %s", start, end, last))
		}
		start = end
	}
	for off := 0; off < len(b); off += recordSize {
		if what := describeRecord(b[off:min(len(b), off+recordSize)], int64(off), known); what != last {
			flush(off)
			last = what
		}
	}
	flush(len(b))
	const most = 12
	if len(runs) > most {
		runs = append(runs[:most], fmt.Sprintf("and %d more", len(runs)-most))
	}
	return fmt.Sprintf("%d bytes: %s", len(b), strings.Join(runs, ", "))
}

// describeRecord says what the record at an offset is.
func describeRecord(r []byte, off int64, known map[uint64]string) string {
	if len(r) < recordSize {
		return "end"
	}
	if string(r) == string(make([]byte, recordSize)) {
		return "zeros"
	}
	path, ok := known[binary.BigEndian.Uint64(r)]
	version := int(binary.BigEndian.Uint64(r[8:]))
	at := int64(binary.BigEndian.Uint64(r[16:]))
	want := Stamp{path, version}.record(at)
	switch {
	case !ok || string(r) != string(want[:]):
		return "no whole record"
	case at != off:
		return fmt.Sprintf("%s version %d from offset %d", path, version, at)
	}
	return fmt.Sprintf("%s version %d", path, version)
}
