package blobtest

import (
	"encoding/binary"
	"io"
	"iter"
	"math/bits"
	"sort"
	"sync"
)

// Generator fills p with the content of a synthetic blob from offset on. It must give the same bytes for the same
// offset at every call, and may be called in parallel.
type Generator func(p []byte, offset int64)

// Random returns a Generator of bytes that look random and depend on the seed and the offset only, so that a
// block that lands in the wrong place is noticed. It makes 7 to 11 GB/s on one core (BenchmarkRandom), but a quarter of that
// where it is inlined into another package: the compiler then calls what should be inlined into it.
//
//go:noinline
func Random(seed uint64) Generator {
	return func(p []byte, offset int64) {
		word := uint64(offset) / 8
		if skip := int(offset % 8); skip != 0 && len(p) > 0 {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], mix(seed, word))
			p = p[copy(p, b[skip:]):]
			word++
		}
		for ; len(p) >= 32; p = p[32:] { // four at a time: twice as fast as one
			q := p[:32]
			binary.LittleEndian.PutUint64(q[0:], mix(seed, word))
			binary.LittleEndian.PutUint64(q[8:], mix(seed, word+1))
			binary.LittleEndian.PutUint64(q[16:], mix(seed, word+2))
			binary.LittleEndian.PutUint64(q[24:], mix(seed, word+3))
			word += 4
		}
		for len(p) > 0 {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], mix(seed, word))
			p = p[copy(p, b[:]):]
			word++
		}
	}
}

// mix is one step of the wyrand generator (Wang Yi): a multiplication to 128 bits, folded.
func mix(seed, word uint64) uint64 {
	s := seed + (word+1)*0x2D358DCCAA6C78A5
	hi, lo := bits.Mul64(s, s^0x8BB84B93962EACC9)
	return hi ^ lo
}

// piece is a run of content that lies together: bytes, or a window of a generator.
type piece struct {
	data []byte    // immutable; nil for a window
	gen  Generator // nil for bytes
	base int64     // where the window starts in the generator's stream
	end  int64     // offset after the piece in the content it is part of
}

// content is the immutable content of a version or a block. Committing a block list concatenates pieces, not
// bytes, so that a blob of many GiB costs its bytes once.
type content struct {
	pieces []piece
}

func bytesContent(data []byte) content {
	if len(data) == 0 {
		return content{}
	}
	return content{[]piece{{data: data, end: int64(len(data))}}}
}

func syntheticContent(size int64, gen Generator) content {
	if size == 0 {
		return content{}
	}
	return content{[]piece{{gen: gen, end: size}}}
}

func (c content) size() int64 {
	if len(c.pieces) == 0 {
		return 0
	}
	return c.pieces[len(c.pieces)-1].end
}

// concat returns the contents one after the other.
func concat(parts []content) content {
	n := 0
	for _, p := range parts {
		n += len(p.pieces)
	}
	c := content{make([]piece, 0, n)}
	var at int64
	for _, part := range parts {
		for _, p := range part.pieces {
			p.end += at
			c.pieces = append(c.pieces, p)
		}
		at += part.size()
	}
	return c
}

// cut returns the part of c from offset, count bytes; the range must lie inside c.
func (c content) cut(offset, count int64) content {
	var out content
	at := int64(0)
	for i, start := c.seek(offset); i < len(c.pieces) && count > 0; i++ {
		p := c.pieces[i]
		skip := offset - start
		n := min(p.end-start-skip, count)
		start = p.end
		if p.gen != nil {
			p.base += skip
		} else {
			p.data = p.data[skip : skip+n]
		}
		at += n
		p.end = at
		out.pieces = append(out.pieces, p)
		offset += n
		count -= n
	}
	return out
}

// seek returns the piece that holds offset, and where it starts.
func (c content) seek(offset int64) (i int, start int64) {
	i = sort.Search(len(c.pieces), func(i int) bool { return c.pieces[i].end > offset })
	if i > 0 {
		start = c.pieces[i-1].end
	}
	return i, start
}

// Range is a range of one version's content. It stays readable whatever happens to the blob, and may be used in
// parallel.
type Range struct {
	c      content
	offset int64
	count  int64
}

// Len returns the number of bytes.
func (r Range) Len() int64 { return r.count }

// syntheticChunk is the size of the buffer that generated content passes through: it fits the second-level cache.
const syntheticChunk = 256 << 10

var syntheticBuffers = sync.Pool{New: func() any { return new([syntheticChunk]byte) }}

// Chunks iterates over the bytes in order, at most limit at a time. Stored bytes are handed out as they lie in
// memory, without a copy: the receiver must not change them. A chunk is valid until the next one.
func (r Range) Chunks(limit int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		offset, left := r.offset, r.count
		for i, start := r.c.seek(offset); left > 0; i++ {
			p := r.c.pieces[i]
			n := min(p.end-offset, left)
			if !p.chunks(offset-start, n, limit, yield) {
				return
			}
			offset, left, start = offset+n, left-n, p.end
		}
	}
}

func (p piece) chunks(offset, count int64, limit int, yield func([]byte) bool) bool {
	if p.gen == nil {
		data := p.data[offset : offset+count]
		for len(data) > limit {
			if !yield(data[:limit]) {
				return false
			}
			data = data[limit:]
		}
		return yield(data)
	}
	buf := syntheticBuffers.Get().(*[syntheticChunk]byte)
	defer syntheticBuffers.Put(buf)
	for count > 0 {
		b := buf[:min(int64(limit), count, syntheticChunk)]
		p.gen(b, p.base+offset)
		if !yield(b) {
			return false
		}
		offset += int64(len(b))
		count -= int64(len(b))
	}
	return true
}

// Reader returns a reader over the range.
func (r Range) Reader() io.Reader { return &rangeReader{r: r} }

type rangeReader struct{ r Range }

func (rr *rangeReader) Read(p []byte) (int, error) {
	r := &rr.r
	if r.count == 0 {
		return 0, io.EOF
	}
	i, start := r.c.seek(r.offset)
	done := 0
	for ; done < len(p) && r.count > 0; i++ {
		pc := r.c.pieces[i]
		n := int(min(pc.end-r.offset, r.count, int64(len(p)-done)))
		if pc.gen != nil {
			pc.gen(p[done:done+n], pc.base+r.offset-start)
		} else {
			copy(p[done:done+n], pc.data[r.offset-start:])
		}
		done += n
		r.offset += int64(n)
		r.count -= int64(n)
		start = pc.end
	}
	return done, nil
}
