package blobcache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stage is a staging file: what was written to a File, at its natural offsets, and which blocks of it the service
// holds already. It is guarded by File.mu, but for reading the file, which anybody may do who knows that the range is
// valid.
type stage struct {
	c      *Cache
	file   *os.File
	path   string  // where file is, which its Name need not be
	valid  extents // bytes that the file holds; the others are the base's, or zeros
	count  int64   // bytes accounted for
	blocks map[int64]*block
	// writer is the first part of every block id of this staging file. It is random, so that two writers of one
	// blob never take each other's blocks for their own.
	writer string
	serial uint64
}

// block is one block of the file, as it is to be uploaded.
type block struct {
	gen    uint64        // File.gen when it was changed last
	staged uint64        // gen that the service holds as a block, 0 for none
	id     string        // the block id of that
	size   int64         // bytes of that
	sums   []uint32      // CRC-32C of its grains
	busy   chan struct{} // closed when the upload under way ends; nil when there is none
	ahead  bool          // it was uploaded while the program was writing; only once for each block
}

func (c *Cache) newStage() (*stage, error) {
	f, err := os.OpenFile(filepath.Join(c.staging, rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return c.stageOf(f, f.Name()), nil
}

// stageOf returns a staging file that is open already and counts for nothing yet.
func (c *Cache) stageOf(f *os.File, path string) *stage {
	return &stage{c: c, file: f, path: path, blocks: map[int64]*block{}, writer: rand.Text()[:16]}
}

// block returns the block with an index.
func (s *stage) block(i int64) *block {
	b := s.blocks[i]
	if b == nil {
		b = &block{}
		s.blocks[i] = b
	}
	return b
}

// newID returns a block id that was never used before: 16 random characters, and a count of 16 digits.
func (s *stage) newID() string {
	s.serial++
	return fmt.Sprintf("%s-%016d", s.writer, s.serial)
}

// restage forgets what the service holds.
func (s *stage) restage() {
	for _, b := range s.blocks {
		b.staged, b.ahead = 0, false
	}
}

// anyStaged reports whether blocks are, or are about to be, in the service.
func (s *stage) anyStaged() bool {
	for _, b := range s.blocks {
		if b.staged != 0 || b.busy != nil {
			return true
		}
	}
	return false
}

func (s *stage) readAt(p []byte, off int64) error {
	n, err := s.file.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:]) // valid but never written: a hole at the end
		return nil
	}
	return err
}

func (s *stage) writeAt(p []byte, off int64) error {
	if _, err := s.file.WriteAt(p, off); err != nil {
		return err
	}
	s.mark(off, off+int64(len(p)))
	return nil
}

// mark notes that the file holds [off, end).
func (s *stage) mark(off, end int64) {
	s.valid.add(off, end)
	s.account()
}

// account tells what the file takes now, in whole blocks as release counts. Holes count until the file is adopted: they
// may be filled at any time.
func (s *stage) account() { s.recount(roundBlock(s.valid.total())) }

func (s *stage) recount(now int64) {
	if now > s.count {
		s.c.space.take(now - s.count)
	} else if now < s.count {
		s.c.space.release(s.count - now)
	}
	s.count = now
}

func (s *stage) truncate(size int64) error {
	if err := s.file.Truncate(size); err != nil {
		return err
	}
	s.valid.remove(size, 1<<62)
	s.account()
	for i, b := range s.blocks {
		if i*s.c.blockSize >= size {
			b.gen, b.staged, b.ahead = 0, 0, false
		}
	}
	return nil
}

func (s *stage) zero(off, end int64) error {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(s.file.Fd()), punch, off, end-off); err != nil {
		return fmt.Errorf("punch a hole into the staging file: %w", err)
	}
	s.mark(off, end)
	return nil
}

// discard deletes the staging file. Only a commit, or the deletion of the blob, justifies that.
func (s *stage) discard() {
	_ = os.Remove(s.path)
	_ = s.file.Close()
	s.c.space.release(s.count)
	s.count = 0
}

// sumsOf returns the checksums of the units of a file, out of its blocks where they are known.
func (s *stage) sumsOf(p *presence, size int64) error {
	buf := make([]byte, min(p.unit, size))
	per := int(s.c.blockSize / grain)
	for i := range p.sums {
		if b := s.blocks[int64(i/per)]; !p.single() && b != nil && b.staged == b.gen && i%per < len(b.sums) {
			p.sums[i] = b.sums[i%per]
			continue
		}
		off := int64(i) * p.unit
		part := buf[:min(p.unit, size-off)]
		if err := s.readAt(part, off); err != nil {
			return err
		}
		p.sums[i] = crc32.Checksum(part, castagnoli)
	}
	return nil
}

// adopt makes a staging file that holds all of a version the cached file of that version.
func (c *Cache) adopt(k key, s *stage, size int64) error {
	p := newPresence(size, c.small)
	if err := s.sumsOf(&p, size); err != nil {
		return err
	}
	p.have.setAll()
	base := k.path(c.dir)
	if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
		return err
	}
	f := files{data: s.file}
	if !p.single() {
		c.space.take(roundBlock(mapSize(p.have.n)))
		if err := f.createMap(base, size, p.have.n); err != nil {
			return err
		}
		defer f.maps.Close()
		if err := f.saveMap(&p, 0, p.have.n); err != nil {
			return err
		}
	}
	if err := f.publish(base, size, &p); err != nil {
		return err
	}
	var st unix.Stat_t
	if unix.Fstat(int(s.file.Fd()), &st) == nil {
		s.recount(st.Blocks * 512) // what eviction will give back
	}
	c.setChecked(k, s.file)
	_ = os.Remove(s.path) // it has its new name
	// The kernel may hold this very open file as a backing file, and with it the lock of takeOver.
	_ = unix.Flock(int(s.file.Fd()), unix.LOCK_UN)
	_ = s.file.Close()
	c.space.settle()
	return nil
}
