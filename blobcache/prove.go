package blobcache

import (
	"io"
	"os"

	"github.com/minio/crc64nvme"

	"blobmount/blobcache/blob"
)

// What a staging file has of blocks that an earlier process has uploaded. They are committed by their ids, whatever the disk
// has; but the service drops blocks after a week, and when somebody else commits that name.

// matches reports whether a file has the bytes of the block.
func (x tallied) matches(file *os.File) bool {
	scratch := unitBuffers.Get().(*[sumMax]byte)
	defer unitBuffers.Put(scratch)
	h := crc64nvme.New()
	n, err := io.CopyBuffer(writerOnly{h}, readerOnly{blob.NewFileBody(file, x.off, x.end-x.off)}, scratch[:])
	return err == nil && n == x.end-x.off && h.Sum64() == x.crc
}

// writerOnly and readerOnly make io.CopyBuffer use its buffer.
type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

// prove takes bytes for what was written that only the service was known to have, if their checksums match.
func (s *stage) prove() {
	for _, x := range s.tallies {
		if s.released.overlaps(x.off, x.end) && x.matches(s.file) {
			s.regain(extents{x.extent}.and(s.doubtful))
		}
	}
}

// regain makes bytes that were released valid.
func (s *stage) regain(xs extents) {
	for _, x := range xs {
		s.released.remove(x.off, x.end)
		s.doubtful.remove(x.off, x.end)
		s.valid.add(x.off, x.end)
	}
	s.count = roundBlock(s.valid.total()) // the process that staged them has counted them
}

// believe takes all that the file has for what was written, and returns how many bytes of that nobody vouches for.
func (s *stage) believe() int64 {
	s.prove()
	x := append(extents(nil), s.doubtful...)
	s.regain(x)
	return x.total()
}
