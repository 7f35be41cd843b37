package blobcache

import (
	"context"
	"errors"
	"hash/crc32"
	"io"

	"blobmount/blobcache/blob"
)

// learn decides the layout: which blocks the blob has already and keeps, and where ours begin. It asks the service once
// for each staging file over a blob that is there.
func (f *File) learn(ctx context.Context, st *stage) error {
	for {
		f.mu.Lock()
		busy := st.learning
		if st.learned || f.stage != st {
			f.mu.Unlock()
			return nil
		}
		if busy == nil {
			st.learning = make(chan struct{})
			f.mu.Unlock()
			break
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := f.learnOnce(ctx, st)
	f.mu.Lock()
	defer f.mu.Unlock()
	close(st.learning)
	st.learning = nil
	return err
}

func (f *File) learnOnce(ctx context.Context, st *stage) error {
	f.mu.RLock()
	own := f.limit > 0 && !f.isNew && f.under.name == f.props.Name && f.props.Kind == blob.BlockBlob
	name := f.props.Name
	f.mu.RUnlock()
	var list blob.BlockList
	if own {
		var err error
		// The commit's condition sees to it if the blob is gone or another one.
		if list, err = f.cont.BlockList(ctx, name); err != nil && !blob.Is(err, blob.NotFound) {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stage != st || st.learned {
		return nil
	}
	l := newLayout(f.c.blockSize, f.size)
	if len(st.left) > 0 { // an earlier process has uploaded blocks of its layout
		l = layout{first: st.layout.first, every: st.layout.every}
	}
	ends, ok := joined(list.Committed, f.under.size)
	if !ok || f.under.name != f.props.Name || list.ETag != f.under.etag {
		return f.layOut(l, nil)
	}
	return f.layOut(l.keeping(ends), list.Committed)
}

// joined returns where blocks end, and whether they are all of a blob of this size.
func joined(blocks []blob.Block, size int64) ([]int64, bool) {
	ends := make([]int64, len(blocks))
	var at int64
	for i, b := range blocks {
		if b.Size == 0 {
			return nil, false
		}
		at += b.Size
		ends[i] = at
	}
	return ends, len(ends) > 0 && at == size
}

// keepBlocks takes over the blocks of the blob that nothing has changed. f.mu is held.
func (f *File) keepBlocks(blocks []blob.Block) {
	st := f.stage
	for i := range st.layout.kept {
		off, end := st.layout.span(i)
		if end > f.limit || st.changed.overlaps(off, end) {
			continue
		}
		st.blocks[i] = &block{gen: f.gen, staged: f.gen, committed: true, id: blocks[i].ID, size: end - off, ahead: true}
	}
}

// stageAll uploads all blocks of a file of this size that need it, in parallel.
func (f *File) stageAll(ctx context.Context, st *stage, size int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.mu.RLock()
	n := st.layout.count(size)
	f.mu.RUnlock()
	next := make(chan int)
	workers := min(n, stageWorkers)
	done := make(chan error, workers)
	for range workers {
		go func() {
			var first error
			for i := range next {
				if err := f.stageBlock(ctx, st, i, size); err != nil && first == nil {
					first = err
					cancel(err)
				}
			}
			done <- first
		}()
	}
	for i := range n {
		next <- i
	}
	close(next)
	var first error
	for range workers {
		if err := <-done; err != nil && (first == nil || errors.Is(first, context.Canceled)) {
			first = err
		}
	}
	return first
}

// stageWorkers is how many blocks of one file are uploaded at once. Sixteen blocks of 8 MiB under way fill
// 300 MiB a second at 0.4 s a block.
const stageWorkers = 16

// stageBlock uploads one block unless the service has it in its present state, or somebody else just uploads it.
func (f *File) stageBlock(ctx context.Context, st *stage, i int, size int64) error {
	for {
		f.mu.Lock()
		off, end := st.layout.span(i)
		n := min(end, size) - off
		if n <= 0 || f.stage != st || !st.learned { // the file was truncated, or committed, since the block was finished
			f.mu.Unlock()
			return nil
		}
		b := st.block(i)
		if b.gen == 0 {
			b.gen = f.gen // never touched by us: the base's bytes, or zeros
		}
		busy := b.busy
		if busy == nil {
			if b.current() && b.size == n {
				f.mu.Unlock()
				return nil
			}
			b.busy = make(chan struct{})
			f.mu.Unlock()
			err := f.send(ctx, st, i, b, off, n)
			f.mu.Lock()
			close(b.busy)
			b.busy = nil
			f.mu.Unlock()
			f.c.sent.signal()
			return err
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sending is a block on its way: bytes [off, off+n) of the file, as they are at one moment.
type sending struct {
	name, id string
	off, n   int64
	from     blob.Range // where the service has them already
	copied   bool       // from there
	tally    tally      // of all of them, once they were uploaded or if they were written in order
}

// send makes the service hold [off, off+n) as block i. When the program changes it meanwhile, the block counts for
// nothing.
func (f *File) send(ctx context.Context, st *stage, i int, b *block, off, n int64) error {
	for {
		f.mu.Lock()
		gen := b.gen
		s := &sending{name: f.props.Name, id: st.newID(), off: off, n: n, tally: b.tally.clone()}
		s.from, s.copied = f.unchanged(st, off, n)
		f.mu.Unlock()
		err := f.sendOnce(ctx, st, s)
		if s.copied && f.copyRefused(st, err) || blob.Is(err, blob.BlockIDLength) && f.matchIDs(ctx, st, s.name, len(s.id)) {
			continue
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.stage != st || st.blocks[i] != b || b.gen != gen || f.props.Name != s.name {
			return nil // changed under our hands: the round that follows sees it
		}
		if err != nil {
			return err
		}
		if err := st.journal.staged(off, off+n, s.id, s.tally); err != nil {
			return err
		}
		b.staged, b.id, b.size, b.tally, b.committed = gen, s.id, n, s.tally, false
		b.after = f.attempts
		return nil
	}
}

// sendOnce is one try. What the staging file lacks is fetched before an upload takes its turn: fetches wait for memory,
// and who has that may wait for a turn.
func (f *File) sendOnce(ctx context.Context, st *stage, s *sending) error {
	if !s.copied {
		if err := f.fill(ctx, st, s.off, s.off+s.n); err != nil {
			return err
		}
	}
	if err := f.c.uploads.acquire(ctx); err != nil {
		return err
	}
	defer f.c.uploads.release()
	if s.copied {
		return f.cont.StageBlockFrom(ctx, s.name, s.id, s.from)
	}
	return f.upload(ctx, st, s)
}

// copyRefused reports whether a block has to be uploaded because the service did not copy it: it cannot do so, or
// somebody has changed the blob that the file is a copy of. Of the blob itself that means that another writer has won.
func (f *File) copyRefused(st *stage, err error) bool {
	if blob.Is(err, blob.Unsupported) {
		f.c.noBlockCopy.Store(true)
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if (blob.Is(err, blob.ConditionNotMet) || blob.Is(err, blob.NotFound)) && f.under.name != f.props.Name {
		st.local = true
		return true
	}
	return false
}

// unchanged returns where the service has [off, off+n) already, if it has: then they need not travel. f.mu is held.
func (f *File) unchanged(st *stage, off, n int64) (blob.Range, bool) {
	if off+n > f.limit || st.changed.overlaps(off, off+n) || st.local || f.c.noBlockCopy.Load() {
		return blob.Range{}, false
	}
	if f.c.lastWriterWins && st.valid.covers(off, off+n) {
		return blob.Range{}, false // that version may be gone, and this is no reason to fail
	}
	return blob.Range{Name: f.under.name, Offset: off, Size: n, Condition: blob.Condition{IfMatch: f.under.etag}}, true
}

// upload sends the bytes out of the staging file, which has all of them. Checksums of what was written are better than any
// of what can be read now: the service refuses what a bad disk has changed since.
func (f *File) upload(ctx context.Context, st *stage, s *sending) error {
	body := blob.NewFileBody(st.file, s.off, s.n)
	written := s.tally.n == s.n
	if !written {
		var err error
		if s.tally, err = tallyOf(body, s.n); err != nil {
			return err
		}
	}
	body.SetCRC64(s.tally.crc64)
	f.c.writeOut(st.file, s.off, s.n)
	err := f.cont.StageBlock(ctx, s.name, s.id, body, s.n)
	if written {
		err = diagnose(err, body, s.tally)
	}
	return err
}

// diagnose says so when the service refused a body because the disk has changed it since it was written.
func diagnose(err error, body io.ReadSeeker, written tally) error {
	var refused *blob.Error
	if !blob.Is(err, blob.Damaged) || !errors.As(err, &refused) {
		return err
	}
	if now, again := tallyOf(body, written.n); again != nil || now.crc64 == written.crc64 {
		return err
	}
	return &blob.Error{Code: blob.Damaged, Op: refused.Op, Name: refused.Name, Err: errChanged}
}

// errChanged says that the staging file does not hold what a program has written.
var errChanged = errors.New("the disk of the cache directory has changed what was written: check it, and write the file anew")

// loadSlabs fills slabs with n bytes and returns them as a body. read fills its buffer from an offset of the body.
func loadSlabs(slabs []*slab, n int64, read func(p []byte, at int64) error) (*slabReader, error) {
	body := &slabReader{size: n}
	for i, at := 0, int64(0); at < n; i++ {
		part := slabs[i].mem[:min(int64(len(slabs[i].mem)), n-at)]
		if err := read(part, at); err != nil {
			return nil, err
		}
		body.parts = append(body.parts, part)
		at += int64(len(part))
	}
	return body, nil
}

// matchIDs makes our block ids as long as those of uncommitted blocks that somebody has left under this name: the
// service takes no others until those are committed or a week old. It reports whether that is worth another try.
func (f *File) matchIDs(ctx context.Context, st *stage, name string, tried int) bool {
	list, err := f.cont.BlockList(ctx, name)
	if err != nil || len(list.Uncommitted) == 0 {
		return false
	}
	length := len(list.Uncommitted[0].ID)
	if length == tried || length < shortestID {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	st.idLength = length
	return true
}

// stageAhead begins to upload the blocks that the program has just finished by writing on beyond them. f.mu is held.
func (f *File) stageAhead(off, end int64) {
	st := f.stage
	if f.props.Kind == blob.AppendBlob || end <= f.c.blockSize || f.gone || f.lost != nil {
		return
	}
	if !st.learned {
		if st.learning == nil && !st.asked {
			st.asked = true
			f.c.background.Go(func() { f.learnAhead(st) })
		}
		return
	}
	for i := max(0, st.layout.index(off)-1); ; i++ {
		from, to := st.layout.span(i)
		if to >= end {
			return
		}
		b := st.blocks[i]
		if b == nil || b.ahead || b.busy != nil || !st.valid.covers(from, to) {
			continue
		}
		b.ahead = true
		f.c.background.Go(func() { f.sendAhead(st, i) })
	}
}

// learnAhead learns the layout in the background, so that blocks can be uploaded while the program is writing.
func (f *File) learnAhead(st *stage) {
	err := f.learn(f.c.ctx, st)
	f.mu.Lock()
	defer f.mu.Unlock()
	st.asked = false
	if err != nil {
		f.c.log.Debug("blocks are not uploaded ahead of the commit", "blob", f.props.Name, "error", err)
		return
	}
	if f.stage == st {
		f.stageChanged()
	}
}

// stageChanged is stageAhead for everything that differs from the base. f.mu is held.
func (f *File) stageChanged() {
	for _, x := range f.stage.changed {
		f.stageAhead(x.off, min(x.end+1, f.size))
	}
}

// sendAhead uploads a block in the background. What fails is not lost: the commit uploads it again, and returns the
// error if it fails again.
func (f *File) sendAhead(st *stage, i int) {
	err := f.stageBlock(f.c.ctx, st, i, f.State().Size)
	if err == nil {
		return
	}
	f.c.log.Debug("block could not be uploaded ahead of the commit", "blob", f.Name(), "block", i, "error", err)
	f.mu.Lock()
	if b := st.blocks[i]; b != nil {
		b.ahead = false
	}
	f.mu.Unlock()
}

// fill copies what the staging file lacks of [off, end) from the base, so that the range can be uploaded from there,
// and the file become the cached version.
func (f *File) fill(ctx context.Context, st *stage, off, end int64) error {
	buf := []byte(nil)
	for pos := off; ; {
		f.mu.Lock()
		end = min(end, f.size)
		if f.stage != st || pos >= end { // committed, or cut
			f.mu.Unlock()
			return nil
		}
		to, valid := st.valid.run(pos, end)
		if !valid && st.released.overlaps(pos, to) {
			f.mu.Unlock() // the block was to be kept, or committed before it was changed
			return &blob.Error{Code: blob.InvalidBlockList, Op: "Commit", Name: f.Name(), Err: errReleased}
		}
		if valid || pos >= f.limit {
			if !valid {
				st.mark(pos, to) // a hole: zeros
			}
			f.mu.Unlock()
			pos = to
			continue
		}
		gap := min(to, f.limit, pos+2*f.c.piece)
		to = min(gap, pos+largeSlab)
		f.openBase()
		v := f.base
		f.c.hold(v)
		f.mu.Unlock()
		if buf == nil {
			buf = make([]byte, min(largeSlab, end-off))
		}
		v.want(pos, gap) // at once, not one slab after the other
		err := v.readFull(ctx, buf[:to-pos], pos, toBlock)
		f.c.unhold(v)
		if err != nil {
			return err
		}
		if err := f.fillFrom(st, buf[:to-pos], pos); err != nil {
			return err
		}
		pos = to
	}
}

// fillFrom puts the base's bytes where nobody has written in the meantime.
func (f *File) fillFrom(st *stage, p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stage != st {
		return nil
	}
	end := min(off+int64(len(p)), f.limit)
	for pos := off; pos < end; {
		to, valid := st.valid.run(pos, end)
		if !valid {
			if err := st.fill(p[pos-off:to-off], pos); err != nil {
				return err
			}
		}
		pos = to
	}
	return nil
}

// slabReader reads slabs one after the other.
type slabReader struct {
	parts [][]byte
	size  int64
	pos   int64
	tally tally // of all of it, or of nothing
}

// CRC64 implements blob.Summed.
func (r *slabReader) CRC64() (uint64, bool) { return r.tally.crc64, r.tally.n == r.size }

func (r *slabReader) Read(p []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	each := int64(len(r.parts[0])) // all but the last have the same length
	n := copy(p, r.parts[r.pos/each][r.pos%each:])
	r.pos += int64(n)
	return n, nil
}

// sum returns the CRC-32C of all of it.
func (r *slabReader) sum() uint32 {
	var crc uint32
	for _, p := range r.parts {
		crc = crc32.Update(crc, castagnoli, p)
	}
	return crc
}

func (r *slabReader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += r.size
	}
	if off < 0 {
		return 0, errors.New("seek before the start")
	}
	r.pos = off
	return off, nil
}

var _ io.ReadSeeker = (*slabReader)(nil)
