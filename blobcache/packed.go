package blobcache

import (
	"encoding/binary"
	"sort"
	"time"

	"blobmount/blobcache/blob"
)

// packed is a part of a directory's listing: entries in the order of compareNames, encoded in two blocks of memory that
// hold no pointers, so that a million of them cost the collector nothing. An entry of a blob without metadata takes about
// 80 bytes and its name; a Named takes 450. It does not change.
type packed struct {
	data   []byte
	starts []uint32 // where each entry begins in data
	words  []string // texts that many entries share: content types, tiers, names of metadata
	// bound is the key up to which (see within) this part and those before it know all names.
	bound string
	at    time.Time // when the service was asked
	seq   uint64    // our changes up to this one are in it
}

// packedOverhead is what a packed takes beside its data, in bytes.
const packedOverhead = 300

func (p *packed) size() int64 {
	n := packedOverhead + cap(p.data) + 4*cap(p.starts) + len(p.bound)
	for _, w := range p.words {
		n += 16 + len(w)
	}
	return int64(n)
}

func (p *packed) len() int { return len(p.starts) }

// name returns the name of the i-th entry without making a string of it.
func (p *packed) name(i int) []byte {
	b := p.data[p.starts[i]:]
	n, w := binary.Uvarint(b)
	return b[w : w+int(n)]
}

// find returns the entry of a name in a directory.
func (p *packed) find(dir, name string) (Entry, bool) {
	i := sort.Search(len(p.starts), func(i int) bool { return compareNames(string(p.name(i)), name) >= 0 })
	if i == len(p.starts) || string(p.name(i)) != name {
		return Entry{}, false
	}
	return p.entry(dir, i).Entry, true
}

// The flags of an entry.
const (
	flagDir = 1 << iota
	flagMarker
	flagShadowed
	flagBlob // the fields of a blob follow
	flagHeaders
	flagRare // fields that few blobs have follow
)

// packer makes a packed. Entries are added in the order of compareNames.
type packer struct {
	data   []byte
	starts []uint32
	words  []string
	index  map[string]uint64 // into words
}

func (w *packer) uint(v uint64) { w.data = binary.AppendUvarint(w.data, v) }

func (w *packer) text(s string) {
	w.uint(uint64(len(s)))
	w.data = append(w.data, s...)
}

// word writes a text that other entries will have too.
func (w *packer) word(s string) {
	i, ok := w.index[s]
	if !ok {
		if w.index == nil {
			w.index = map[string]uint64{}
		}
		i = uint64(len(w.words))
		w.index[s] = i
		w.words = append(w.words, s)
	}
	w.uint(i)
}

// time writes a time. The zero time has no nanoseconds since 1970; the service has none before that either.
func (w *packer) time(t time.Time) {
	if t.IsZero() {
		w.uint(0)
		return
	}
	w.uint(uint64(t.UnixNano()))
}

func (w *packer) add(e Named) {
	w.starts = append(w.starts, uint32(len(w.data)))
	w.text(e.Name)
	p := &e.Properties
	var flags byte
	for _, f := range []struct {
		is  bool
		bit byte
	}{
		{e.Dir, flagDir}, {e.Marker, flagMarker}, {e.Shadowed, flagShadowed}, {p.ETag != "", flagBlob},
		{p.Headers.ContentType != "" || p.Headers.ContentMD5 != nil, flagHeaders},
		{p.Headers.ContentEncoding != "" || p.Headers.ContentLanguage != "" || p.Headers.ContentDisposition != "" ||
			p.Headers.CacheControl != "" || p.TagCount != 0 || p.VersionID != "" || p.CopiedFrom != "" || len(p.Metadata) != 0 || p.TierInferred ||
			p.Kind != blob.BlockBlob, flagRare},
	} {
		if f.is {
			flags |= f.bit
		}
	}
	if flags&flagBlob == 0 {
		flags &^= flagHeaders | flagRare
	}
	w.data = append(w.data, flags)
	if flags&flagBlob == 0 {
		return
	}
	w.text(string(p.ETag))
	w.uint(uint64(p.Size))
	w.time(p.Modified)
	w.time(p.Created)
	w.word(p.Tier)
	if flags&flagHeaders != 0 {
		w.word(p.Headers.ContentType)
		w.text(string(p.Headers.ContentMD5))
	}
	if flags&flagRare == 0 {
		return
	}
	w.uint(uint64(p.Kind))
	inferred := uint64(0)
	if p.TierInferred {
		inferred = 1
	}
	w.uint(inferred)
	w.uint(uint64(p.TagCount))
	w.text(p.VersionID)
	w.text(p.CopiedFrom)
	w.word(p.Headers.ContentEncoding)
	w.word(p.Headers.ContentLanguage)
	w.text(p.Headers.ContentDisposition) // often has the blob's name
	w.word(p.Headers.CacheControl)
	w.uint(uint64(len(p.Metadata)))
	for k, v := range p.Metadata {
		w.word(k)
		w.text(v)
	}
}

// done returns what was added. The packer is as new then, with its memory kept for the next one.
func (w *packer) done(bound string, at time.Time, seq uint64) *packed {
	p := &packed{bound: bound, at: at, seq: seq, words: w.words}
	p.data = append(make([]byte, 0, len(w.data)), w.data...)
	p.starts = append(make([]uint32, 0, len(w.starts)), w.starts...)
	*w = packer{data: w.data[:0], starts: w.starts[:0]}
	return p
}

// unpacker reads an entry. What it reads was written by packer in this process.
type unpacker struct {
	b     []byte
	words []string
}

func (r *unpacker) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.b = r.b[n:]
	return v
}

func (r *unpacker) text() string {
	n := r.uint()
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *unpacker) word() string { return r.words[r.uint()] }

func (r *unpacker) time() time.Time {
	v := r.uint()
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(v)).UTC()
}

// entry returns the i-th entry of a part of a directory.
func (p *packed) entry(dir string, i int) Named {
	r := unpacker{p.data[p.starts[i]:], p.words}
	e := Named{Name: r.text()}
	flags := r.b[0]
	r.b = r.b[1:]
	e.Dir, e.Marker, e.Shadowed = flags&flagDir != 0, flags&flagMarker != 0, flags&flagShadowed != 0
	if flags&flagBlob == 0 {
		return e
	}
	q := &e.Properties
	q.Name = join(dir, e.Name)
	q.ETag = blob.ETag(r.text())
	q.Size = int64(r.uint())
	q.Modified, q.Created = r.time(), r.time()
	q.Tier = r.word()
	if flags&flagHeaders != 0 {
		q.Headers.ContentType = r.word()
		if sum := r.text(); sum != "" {
			q.Headers.ContentMD5 = []byte(sum)
		}
	}
	if flags&flagRare == 0 {
		return e
	}
	q.Kind = blob.Kind(r.uint())
	q.TierInferred = r.uint() != 0
	q.TagCount = int(r.uint())
	q.VersionID, q.CopiedFrom = r.text(), r.text()
	q.Headers.ContentEncoding, q.Headers.ContentLanguage = r.word(), r.word()
	q.Headers.ContentDisposition = r.text()
	q.Headers.CacheControl = r.word()
	if n := r.uint(); n > 0 {
		q.Metadata = make(map[string]string, n)
		for range n {
			k := r.word()
			q.Metadata[k] = r.text()
		}
	}
	return e
}

// join returns the path of a name in a directory.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
