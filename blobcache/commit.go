package blobcache

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"time"

	"blobmount/blobcache/blob"
)

// Commit makes the service hold what was written up to now. A clean file costs nothing. On an error the file stays
// dirty, its bytes stay staged, and the next Commit tries again; but when another writer has changed the blob
// (ConditionNotMet), this and all later commits fail, and the bytes are kept.
//
// A file of up to one block is sent by one Put Blob, if a quarter of the memory holds it. A larger one is a list of blocks, of which those that were
// written in order have been uploaded while the program was still writing.
func (f *File) Commit(ctx context.Context) error {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.RLock()
	lost, clean := f.lost, f.gen == f.saved || f.gone
	written := f.stage != nil || f.isNew
	f.mu.RUnlock()
	if clean {
		return nil
	}
	if lost != nil {
		return lost
	}
	if !written { // only the metadata changed, while the blob was about to be deleted
		return f.sendMetadata(ctx, f.Metadata())
	}
	err := f.commitOnce(ctx)
	if blob.Is(err, blob.InvalidBlockList) {
		// Somebody's commit under this name has discarded our uncommitted blocks. The condition of the next
		// attempt decides whether that somebody has won.
		f.mu.Lock()
		f.stage.restage()
		f.mu.Unlock()
		err = f.commitOnce(ctx)
	}
	switch blob.CodeOf(err) {
	case blob.Exists, blob.ConditionNotMet:
		f.conflict(err)
		return f.lost
	}
	return err
}

// conflict ends a file that another writer has overtaken. f.commit is held.
func (f *File) conflict(err error) {
	f.mu.Lock()
	f.lost = &blob.Error{Code: blob.ConditionNotMet, Op: "Commit", Name: f.props.Name, Err: err}
	etag := f.props.ETag
	f.mu.Unlock()
	f.c.log.Error("another writer changed this blob since it was opened; its version stays, ours is kept on disk",
		"blob", f.Name(), "opened-as", string(etag), "bytes-in", f.stagingPath(), "error", err)
	if f.hooks.Lost != nil {
		f.hooks.Lost()
	}
}

func (f *File) commitOnce(ctx context.Context) error {
	for round := 0; ; round++ {
		f.mu.RLock()
		small := f.size <= f.c.putMax && (f.stage == nil || !f.stage.anyStaged())
		f.mu.RUnlock()
		if !small {
			return f.commitBlocks(ctx)
		}
		if grown, err := f.commitSmall(ctx, round); !grown {
			return err
		}
	}
}

// options returns what goes with the write. f.mu is held.
func (f *File) options() blob.WriteOptions {
	o := blob.WriteOptions{Headers: f.props.Headers, Tier: "", Metadata: maps.Clone(f.props.Metadata)}
	o.Headers.ContentMD5 = nil // of the old content
	if o.Metadata == nil {
		o.Metadata = map[string]string{}
	}
	if f.hooks.Stamp != nil {
		f.hooks.Stamp(o.Metadata, f.modified)
	}
	if f.isNew {
		o.Condition.IfNoneMatch = blob.Any
	} else {
		o.Condition.IfMatch = f.props.ETag
	}
	return o
}

// commitSmall sends the file by one Put Blob, out of memory, so that writers need not wait. It does nothing and reports
// true if the file has grown meanwhile, so that the memory does not hold it: more must not be asked for while some is
// held.
func (f *File) commitSmall(ctx context.Context, round int) (grown bool, err error) {
	if round == 2 { // as in commitBlocks
		f.writers.Lock()
		defer f.writers.Unlock()
	}
	f.mu.RLock()
	size, st := f.size, f.stage
	f.mu.RUnlock()
	if err := f.fill(ctx, st, 0, size); err != nil {
		return false, err
	}
	var slabs []*slab
	if size > 0 {
		if slabs, err = f.c.budget.get(ctx, size); err != nil {
			return false, err
		}
		defer f.c.budget.put(slabs)
	}
	f.mu.RLock()
	if f.size > size {
		f.mu.RUnlock()
		return true, nil
	}
	size = f.size
	body := &slabReader{size: size}
	for n, rest := 0, size; rest > 0; n++ {
		part := slabs[n].mem[:min(int64(len(slabs[n].mem)), rest)]
		if err := st.readAt(part, size-rest); err != nil {
			f.mu.RUnlock()
			return false, err
		}
		body.parts = append(body.parts, part)
		rest -= int64(len(part))
	}
	name, gen, o := f.props.Name, f.gen, f.options()
	f.mu.RUnlock()
	if err := f.c.uploads.acquire(ctx); err != nil {
		return false, err
	}
	w, err := f.cont.Upload(ctx, name, body, size, o)
	f.c.uploads.release()
	if err != nil {
		return false, err
	}
	f.done(w, o, size, gen, true)
	return false, nil
}

// commitBlocks uploads the blocks that the service does not have in their present state, and commits the list.
func (f *File) commitBlocks(ctx context.Context) error {
	for round := 0; ; round++ {
		// A writer that goes on writing can make every upload stale: in the third round it has to wait.
		if round == 2 {
			f.writers.Lock()
			defer f.writers.Unlock()
		}
		f.mu.RLock()
		size, st := f.size, f.stage
		f.mu.RUnlock()
		if err := f.stageAll(ctx, st, size); err != nil {
			return err
		}
		f.mu.RLock()
		if f.size != size {
			f.mu.RUnlock()
			continue
		}
		ids, ok := f.list(size)
		name, gen, o := f.props.Name, f.gen, f.options()
		f.mu.RUnlock()
		if !ok {
			continue
		}
		w, err := f.cont.CommitBlockList(ctx, name, ids, o)
		if err != nil {
			return err
		}
		f.done(w, o, size, gen, false)
		return nil
	}
}

// list returns the block ids of a file of this size, and whether all of them are up to date. f.mu is held.
func (f *File) list(size int64) ([]string, bool) {
	var ids []string
	for i := int64(0); i*f.c.blockSize < size; i++ {
		b := f.stage.blocks[i]
		if b == nil || b.staged == 0 || b.staged != b.gen || b.size != min(f.c.blockSize, size-i*f.c.blockSize) {
			return nil, false
		}
		ids = append(ids, b.id)
	}
	return ids, true
}

// stageAll uploads all blocks of a file of this size that need it, in parallel.
func (f *File) stageAll(ctx context.Context, st *stage, size int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n := (size + f.c.blockSize - 1) / f.c.blockSize
	next := make(chan int64)
	workers := int(min(n, stageWorkers))
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
func (f *File) stageBlock(ctx context.Context, st *stage, i, size int64) error {
	off := i * f.c.blockSize
	n := min(f.c.blockSize, size-off)
	for {
		f.mu.Lock()
		if n <= 0 || f.stage != st { // the file was truncated, or committed, since the block was finished
			f.mu.Unlock()
			return nil
		}
		b := st.block(i)
		if b.gen == 0 {
			b.gen = f.gen // never touched by us: the base's bytes, or zeros
		}
		busy := b.busy
		if busy == nil {
			if b.staged == b.gen && b.size == n {
				f.mu.Unlock()
				return nil
			}
			b.busy = make(chan struct{})
			f.mu.Unlock()
			err := f.upload(ctx, st, b, off, n)
			f.mu.Lock()
			close(b.busy)
			b.busy = nil
			f.mu.Unlock()
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

// upload sends [off, off+n) as a block. When the program changes it meanwhile, the block counts for nothing.
func (f *File) upload(ctx context.Context, st *stage, b *block, off, n int64) error {
	if err := f.c.uploads.acquire(ctx); err != nil {
		return err
	}
	defer f.c.uploads.release()
	if err := f.fill(ctx, st, off, off+n); err != nil {
		return err
	}
	f.mu.Lock()
	gen, id, name := b.gen, st.newID(), f.props.Name
	f.mu.Unlock()
	body := io.NewSectionReader(paddedReader{st.file}, off, n)
	sums, err := grainSums(body, n)
	if err == nil {
		err = f.cont.StageBlock(ctx, name, id, body, n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.gen != gen || f.props.Name != name {
		return nil // changed under our hands: the round that follows sees it
	}
	if err != nil {
		return err
	}
	b.staged, b.id, b.size, b.sums = gen, id, n, sums
	return nil
}

// stageAhead begins to upload the blocks that the program has just finished by writing on beyond them. f.mu is held.
func (f *File) stageAhead(off, end int64) {
	size, st := f.c.blockSize, f.stage
	for i := max(0, off/size-1); (i+1)*size < end; i++ {
		b := st.block(i)
		if b.ahead || b.busy != nil || f.gone || f.lost != nil || !st.valid.covers(i*size, (i+1)*size) {
			continue
		}
		b.ahead = true
		f.c.background.Go(func() {
			if err := f.stageBlock(f.c.ctx, st, i, f.State().Size); err != nil {
				// Not lost: the commit uploads it again, and returns the error if it fails again.
				f.c.log.Debug("block could not be uploaded ahead of the commit", "blob", f.Name(), "block", i, "error", err)
			}
		})
	}
}

// fill copies what the staging file lacks of [off, end) from the base, so that the range can be uploaded from there,
// and the file become the cached version.
func (f *File) fill(ctx context.Context, st *stage, off, end int64) error {
	buf := []byte(nil)
	for pos := off; pos < end; {
		f.mu.Lock()
		if f.stage != st {
			f.mu.Unlock()
			return nil // it is committed
		}
		to, valid := st.valid.run(pos, end)
		if valid || pos >= f.limit {
			if !valid {
				st.mark(pos, to) // a hole: zeros
			}
			f.mu.Unlock()
			pos = to
			continue
		}
		to = min(to, f.limit, pos+largeSlab)
		v := f.base // prepare has opened it
		f.c.hold(v)
		f.mu.Unlock()
		if buf == nil {
			buf = make([]byte, min(largeSlab, end-off))
		}
		err := v.readFull(ctx, buf[:to-pos], pos)
		f.c.unhold(v)
		if err != nil {
			return err
		}
		if err := f.fillFrom(st, buf[:to-pos], pos); err != nil {
			return err
		}
		pos = to
	}
	return nil
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
			if err := st.writeAt(p[pos-off:to-off], pos); err != nil {
				return err
			}
		}
		pos = to
	}
	return nil
}

// done notes a commit of the state gen. f.commit is held.
func (f *File) done(w blob.Written, o blob.WriteOptions, size int64, gen uint64, put bool) {
	f.mu.Lock()
	f.props.ETag, f.props.Modified, f.props.Size = w.ETag, w.Modified, size
	f.props.Kind, f.props.Headers = blob.BlockBlob, o.Headers
	if f.gen == gen {
		f.props.Metadata = o.Metadata
	}
	f.isNew = false
	f.saved = gen
	if put && f.stage != nil {
		f.stage.restage() // Put Blob leaves no blocks
	}
	// All that the old version had is in the staging file now.
	f.limit = 0
	f.dropBase()
	clean := f.gen == gen
	p := f.props
	f.mu.Unlock()
	if clean {
		f.c.track(f, false)
	}
	f.hooks.Committed(p, !clean)
}

// retry commits a file that nobody has open any more and that could not be committed. It gives up when the file is
// opened again, since then the next close does it.
func (f *File) retry() {
	defer func() {
		f.mu.Lock()
		f.retrying = false
		f.mu.Unlock()
		if f.Settle() && f.hooks.Idle != nil {
			f.hooks.Idle(f)
		}
	}()
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		select {
		case <-time.After(wait):
		case <-f.c.ctx.Done():
			return
		}
		err := f.Commit(f.c.ctx)
		f.mu.RLock()
		over := err == nil || f.users > 0 || f.lost != nil
		f.mu.RUnlock()
		if over {
			return
		}
		f.c.log.Warn("file is not saved in the service yet, trying again", "blob", f.Name(), "next-in", 2*wait, "error", err)
	}
}

// grainSums returns the checksum of each grain of a body, and rewinds it.
func grainSums(r io.ReadSeeker, n int64) ([]uint32, error) {
	sums := make([]uint32, 0, n/grain+1)
	buf := make([]byte, min(grain, n))
	for rest := n; rest > 0; {
		part := buf[:min(grain, rest)]
		if _, err := io.ReadFull(r, part); err != nil {
			return nil, err
		}
		sums = append(sums, crc32.Checksum(part, castagnoli))
		rest -= int64(len(part))
	}
	_, err := r.Seek(0, io.SeekStart)
	return sums, err
}

// paddedReader reads zeros beyond the end of a staging file: a valid hole there was never written.
type paddedReader struct{ r io.ReaderAt }

func (p paddedReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return len(b), nil
	}
	return n, err
}

// slabReader reads slabs one after the other.
type slabReader struct {
	parts [][]byte
	size  int64
	pos   int64
}

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
