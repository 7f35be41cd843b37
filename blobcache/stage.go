package blobcache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// stage is a staging file: what was written to a File, at its natural offsets, with its journal, and which blocks of it
// the service holds already. It is guarded by File.mu, but for reading the file, which anybody may do who knows that the
// range is valid.
type stage struct {
	c       *Cache
	id      string // names the files, and stands in messages
	file    *os.File
	journal *journal
	valid   extents // bytes that the file holds; the others are the base's, or zeros
	changed extents // bytes that differ from the base
	summed  extents // bytes with checksums in the journal, of a state that stands whatever is written later
	// released are bytes that only the service has, as blocks that are not committed yet: nobody can read them.
	released extents
	count    int64       // bytes accounted for
	named    bool        // the names of both files are on disk
	moved    bool        // the data file has another name
	durable  atomic.Bool // the disk has a record that the file is to be saved

	layout   layout
	learned  bool          // the layout is decided; before that no block is uploaded
	learning chan struct{} // closed when the decision under way is over; nil when there is none
	asked    bool          // learnAhead is under way
	local    bool          // blocks are not copied in the service: their source is not what it was
	blocks   map[int]*block
	tallies  []tallied     // of blocks that an earlier process has uploaded
	doubtful extents       // released bytes that the file has, and that nobody vouches for
	left     []stagedBlock // blocks that an earlier process has uploaded, and that are no blocks of the layout
	// writer is the first part of every block id of this staging file. It is random, so that two writers of one
	// blob never take each other's blocks for their own.
	writer   string
	idLength int
	serial   uint64
}

// block is one block of the file, as it is to be uploaded.
type block struct {
	gen       uint64        // File.gen when it was changed last
	staged    uint64        // gen that the service holds as a block, 0 for none
	after     uint64        // File.attempts when it was staged
	committed bool          // that block is part of the blob, and survives a commit
	id        string        // the block id of that
	size      int64         // bytes of that
	tally     tally         // of its bytes as they are
	busy      chan struct{} // closed when the upload under way ends; nil when there is none
	ahead     bool          // it was uploaded while the program was writing; only once for each block
}

// current reports whether the service holds the block in its present state. A nil block is none.
func (b *block) current() bool { return b != nil && b.staged != 0 && b.staged == b.gen }

// The extensions of staging files.
const (
	extData    = ".data"
	extJournal = ".journal"
)

func (c *Cache) stagingPath(id, ext string) string { return filepath.Join(c.staging, id+ext) }

// newStage makes a staging file whose journal begins with h.
func (c *Cache) newStage(h header) (*stage, error) {
	// The journal comes first: a staging file without one would be nobody's.
	s, err := c.journaled(h)
	if err != nil {
		return nil, err
	}
	s.file, err = os.OpenFile(c.stagingPath(s.id, extData), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		s.drop()
		return nil, err
	}
	return s, nil
}

// spareJournals is how many journals are kept empty for the next staging files: to ext4, an inode that is made while
// many others were deleted costs 100 µs, as much as all else that a small file takes.
const spareJournals = 64

// spare is an empty journal.
type spare struct {
	id      string
	journal *journal
}

// journaled returns a staging file that has only a journal yet. Its id was never used before: people are told ids.
func (c *Cache) journaled(h header) (*stage, error) {
	s := c.stageOf(rand.Text())
	path := c.stagingPath(s.id, extJournal)
	c.mu.Lock()
	if n := len(c.spares); n > 0 {
		if x := c.spares[n-1]; os.Rename(c.stagingPath(x.id, extJournal), path) == nil {
			s.journal = x.journal
			c.spares = c.spares[:n-1]
		}
	}
	c.mu.Unlock()
	for s.journal == nil {
		var err error
		if s.journal, err = openJournal(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	s.layout = layout{first: h.BlockSize, every: h.Every}
	if err := s.journal.begin(h); err != nil {
		s.drop()
		return nil, err
	}
	return s, nil
}

// giveUp empties a journal, and keeps it for the next staging file or removes it.
func (c *Cache) giveUp(x spare) {
	keep := x.journal.empty() == nil
	c.mu.Lock()
	if keep = keep && !c.closed && len(c.spares) < spareJournals; keep {
		c.spares = append(c.spares, x)
	}
	c.mu.Unlock()
	if !keep {
		_ = os.Remove(c.stagingPath(x.id, extJournal))
		x.journal.close()
	}
}

// dropSpares removes the journals that are not used.
func (c *Cache) dropSpares() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.spares {
		_ = os.Remove(c.stagingPath(x.id, extJournal))
		x.journal.close()
	}
	c.spares = nil
}

// stageOf returns a staging file without files that counts for nothing yet.
func (c *Cache) stageOf(id string) *stage {
	return &stage{c: c, id: id, blocks: map[int]*block{}, writer: rand.Text() + rand.Text() + rand.Text(), idLength: idLength}
}

// block returns the block with an index.
func (s *stage) block(i int) *block {
	b := s.blocks[i]
	if b == nil {
		b = &block{}
		s.blocks[i] = b
	}
	return b
}

// The length of our block ids, in characters: random ones of the writer, and a count to base 36, so 2.8e12 blocks.
const (
	idLength   = 24
	idCount    = 8
	shortestID = 16 // 40 random bits tell writers apart well enough
)

// newID returns a block id that was never used before. All ids of one blob have the same length.
func (s *stage) newID() string {
	s.serial++
	count := strconv.FormatUint(s.serial, 36)
	return s.writer[:s.idLength-idCount] + strings.Repeat("0", idCount-len(count)) + count
}

// restage forgets what the service holds and is not part of the blob yet. It reports whether bytes are lost with that.
func (s *stage) restage() bool {
	for _, b := range s.blocks {
		if b.ahead = false; !b.committed {
			b.staged = 0
		}
	}
	return len(s.released) > 0
}

// relearn forgets all blocks: the layout has to be decided anew.
func (s *stage) relearn() bool {
	lost := s.restage()
	s.blocks = map[int]*block{}
	s.learned, s.left = false, nil
	return lost
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

// write puts what the program wrote into the file and the journal.
func (s *stage) write(p []byte, off int64) error {
	if err := s.unsum(off, off+int64(len(p))); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(p, off); err != nil {
		return err
	}
	return s.wrote(off, off+int64(len(p)))
}

// unsum notes ahead of a change of [off, end) that checksums in the journal do not hold any more: a process that is killed
// between the change and its record would leave bytes that look damaged.
func (s *stage) unsum(off, end int64) error {
	if len(s.summed) == 0 {
		return nil
	}
	for _, x := range s.summed.and(extents{{off, end}}) {
		if err := s.journal.span(recWritten, x.off, x.end); err != nil {
			return err
		}
	}
	s.summed.remove(off, end)
	return nil
}

// wrote notes that the program changed [off, end) and that the file holds it.
func (s *stage) wrote(off, end int64) error {
	if err := s.journal.span(recWritten, off, end); err != nil {
		return err
	}
	s.changed.add(off, end)
	s.mark(off, end)
	return nil
}

// zero makes [off, end) read as zeros.
func (s *stage) zero(off, end int64) error {
	if err := s.unsum(off, end); err != nil {
		return err
	}
	if err := s.punch(off, end); err != nil {
		return err
	}
	return s.wrote(off, end)
}

// fill puts bytes of the base where the file has none. They need no place in the journal: the base still has them.
func (s *stage) fill(p []byte, off int64) error {
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

// account tells what the file takes now, in whole blocks as space.release counts. Holes count until the file is adopted:
// they may be filled at any time.
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
	if err := s.journal.setSize(size); err != nil {
		return err
	}
	if err := s.file.Truncate(size); err != nil {
		return err
	}
	for _, x := range []*extents{&s.valid, &s.changed, &s.released, &s.summed} {
		x.remove(size, 1<<62)
	}
	s.account()
	s.left = slices.DeleteFunc(s.left, func(b stagedBlock) bool { return b.end > size })
	for i, b := range s.blocks {
		if off, _ := s.layout.span(i); off >= size {
			if b.busy == nil {
				delete(s.blocks, i)
			} else {
				b.gen, b.staged, b.committed, b.ahead, b.tally = 0, 0, false, false, tally{}
			}
		}
	}
	return nil
}

func (s *stage) punch(off, end int64) error {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(s.file.Fd()), punch, off, end-off); err != nil {
		return fmt.Errorf("punch a hole into the staging file: %w", err)
	}
	return nil
}

// release gives back the disk space of [off, end), which the service holds as a block: as a part of the blob if
// committed.
func (s *stage) release(off, end int64, committed bool) error {
	typ := byte(recReleased)
	if committed {
		typ = recDropped
	}
	if err := s.journal.span(typ, off, end); err != nil {
		return err
	}
	// After a loss of power the ids of the blocks must not be missing where the bytes are.
	if err := unix.Fdatasync(int(s.journal.file.Fd())); err != nil {
		return err
	}
	if err := s.punch(off, end); err != nil {
		return err
	}
	s.valid.remove(off, end)
	s.summed.remove(off, end)
	if !committed {
		s.released.add(off, end)
	}
	s.account()
	return nil
}

// discard deletes the staging file. Only a commit, or the deletion of the blob, justifies that.
func (s *stage) discard() {
	s.drop()
	s.c.space.release(s.count)
	s.count = 0
}

// drop removes the files. The journal goes last: bytes without one would be nobody's.
func (s *stage) drop() {
	if s.file != nil {
		if !s.moved {
			_ = os.Remove(s.c.stagingPath(s.id, extData))
		}
		_ = s.file.Close()
	}
	s.c.giveUp(spare{s.id, s.journal})
}

// leave closes the files and lets them lie, for a later process or for blobmount recover.
func (s *stage) leave() {
	_ = s.file.Close()
	s.journal.close()
}

// sumsOf returns the checksums of the units of a file, out of its blocks where they are known.
func (s *stage) sumsOf(p *presence, size int64) error {
	buf := make([]byte, min(p.unit, size))
	for i := range p.sums {
		off := int64(i) * p.unit
		part := buf[:min(p.unit, size-off)]
		if sum, ok := s.knownSum(off, int64(len(part))); ok {
			p.sums[i] = sum
			continue
		}
		if err := s.readAt(part, off); err != nil {
			return err
		}
		p.sums[i] = crc32.Checksum(part, castagnoli)
	}
	return nil
}

// knownSum returns the CRC-32C of [off, off+n), if it is a grain of which a block has it.
func (s *stage) knownSum(off, n int64) (uint32, bool) {
	i := s.layout.index(off)
	b := s.blocks[i]
	if b == nil {
		return 0, false
	}
	from, _ := s.layout.span(i)
	return b.tally.grain(off-from, n)
}

// publish gives the data file the name of a complete version. When another process has published that, its file stays.
func (s *stage) publish(base string, k key, size int64, p *presence) error {
	if p.single() {
		if err := writeSum(s.file, k, size, p.sums[0]); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		return err
	}
	if st.Size != size {
		if err := s.file.Truncate(size); err != nil {
			return err
		}
	}
	err := unix.Renameat2(unix.AT_FDCWD, s.c.stagingPath(s.id, extData), unix.AT_FDCWD, base+extBlob, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that knows no flags
		err = os.Rename(s.c.stagingPath(s.id, extData), base+extBlob)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	s.moved = err == nil
	return err
}

// adopt makes a staging file that holds all of a version the cached file of that version.
func (c *Cache) adopt(k key, s *stage, size int64) error {
	p := newPresence(size, c.small)
	if err := s.sumsOf(&p, size); err != nil {
		return err
	}
	p.have.setAll()
	base := k.path(c.dir)
	if unix.Access(filepath.Dir(base), unix.F_OK) != nil {
		if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
			return err
		}
	}
	f := files{data: s.file}
	if !p.single() {
		// Nobody may add to the map before the data has its name: what others have stored is in another file.
		var err error
		if f.maps, err = lockMap(base); err != nil {
			return err
		}
		defer f.maps.Close()
		if err := c.fillMap(&f, base, k, size, &p); err != nil {
			if errors.Is(err, errReplaced) {
				s.discard()
				return nil
			}
			return err
		}
	}
	if err := s.publish(base, k, size, &p); err != nil {
		return err
	}
	if !s.moved {
		s.discard()
		return nil
	}
	if f.maps != nil {
		c.space.release(removeFile(base + extPart)) // whoever fills it goes on with the complete version
	}
	if use, ok := diskUse(s.file); ok {
		s.recount(use) // what eviction will give back
	}
	c.setChecked(k, s.file)
	// The kernel may hold this very open file as a backing file, and with it the lock of takeOver.
	_ = unix.Flock(int(s.file.Fd()), unix.LOCK_UN)
	s.drop() // the data has its new name
	if f.maps != nil {
		_ = f.maps.Close() // the version may have to go at once
	}
	if c.space.over() {
		c.space.settle()
	}
	return nil
}

// fillMap makes the map, which is locked, say that all of the version is there, and counts it.
func (c *Cache) fillMap(f *files, base string, k key, size int64, p *presence) error {
	grown, err := f.beginMap(base, k, size, p)
	c.space.change(grown)
	if err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Fstat(int(f.maps.Fd()), &before); err != nil {
		return err
	}
	_, err = f.addToMap(p, size, 0, p.have.n)
	c.space.change(f.grownSince(&before))
	return err
}
