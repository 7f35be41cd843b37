package blobcache

import (
	"hash/crc32"
	"io"
	"slices"

	"github.com/minio/crc64nvme"
)

// tally has the checksums of the first bytes of a block, computed while the program writes them in order and they are in
// the processor's cache. To read them again for that costs 0.2 ms for 1 MiB, a tenth of all that writing takes.
//
// It is a pure state machine: a change of bytes that it has counted makes it begin anew, and so does a write at the start
// of the block. The zero tally has counted nothing.
type tally struct {
	n     int64    // bytes counted
	crc64 uint64   // CRC-64/NVME of those, which the service checks
	sums  []uint32 // CRC-32C of each grain of them, which the cached version has
}

// add takes into account that p was written at off of the block.
func (t *tally) add(p []byte, off int64) {
	if off < t.n {
		*t = tally{}
	}
	if off != t.n {
		return
	}
	for len(p) > 0 {
		in := t.n % grain
		if in == 0 {
			t.sums = append(t.sums, 0)
		}
		part := p[:min(grain-in, int64(len(p)))]
		last := &t.sums[len(t.sums)-1]
		*last = crc32.Update(*last, castagnoli, part)
		t.crc64 = crc64nvme.Update(t.crc64, part)
		t.n += int64(len(part))
		p = p[len(part):]
	}
}

// clone returns a copy that does not change when t counts on.
func (t *tally) clone() tally { return tally{t.n, t.crc64, slices.Clone(t.sums)} }

// grain returns the CRC-32C of n bytes from off on of the block, if they are a grain that was counted, the last one perhaps
// in part.
func (t *tally) grain(off, n int64) (uint32, bool) {
	if n <= 0 || off%grain != 0 || n > grain || off+n > t.n || n < grain && off+n < t.n {
		return 0, false
	}
	return t.sums[off/grain], true
}

// tallyOf reads a body of n bytes from its start.
func tallyOf(r io.ReadSeeker, n int64) (tally, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return tally{}, err
	}
	var t tally
	buf := make([]byte, min(grain, n))
	for t.n < n {
		part := buf[:min(grain, n-t.n)]
		if _, err := io.ReadFull(r, part); err != nil {
			return tally{}, err
		}
		t.add(part, t.n)
	}
	return t, nil
}
