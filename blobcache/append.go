package blobcache

import (
	"context"
	"hash/crc32"
	"io"

	"blobmount/blobcache/blob"
)

// appendPiece is how much one Append Block carries, in bytes: the most that all versions of the service take.
const appendPiece = 4 << 20

// mayWrite checks that a blob of this kind can take a change at off. f.mu is held.
func (f *File) mayWrite(off int64) error {
	if f.props.Kind == blob.BlockBlob || f.props.Kind == blob.AppendBlob && (f.c.convertAppend || off >= f.props.Size) {
		return nil
	}
	return &blob.Error{Code: blob.Unsupported, Op: "Write", Name: f.props.Name}
}

// onlyAppended reports whether the blob's own bytes are what they were.
func (f *File) onlyAppended() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.limit == f.props.Size && (f.stage == nil || !f.stage.changed.overlaps(0, f.props.Size))
}

// convert makes place for a block blob: the service does not let one replace an append blob (InvalidBlobType). So that
// is deleted when all of it is here, and the commit makes a new one. In between there is no blob; what is staged is saved
// by the next mount if this process ends then.
func (f *File) convert(ctx context.Context) error {
	f.writers.Lock()
	defer f.writers.Unlock()
	f.mu.RLock()
	st, name, etag, size, gen := f.stage, f.props.Name, f.props.ETag, f.size, f.gen
	f.mu.RUnlock()
	if err := f.learnTags(ctx); err != nil { // while there is a blob that has them
		return err
	}
	if err := f.fill(ctx, st, 0, size); err != nil {
		return err
	}
	f.mu.Lock()
	err := st.journal.span(recWritten, 0, size)
	st.changed.add(0, size)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f.finish(true, 0); err != nil { // soon the only place of these bytes
		return err
	}
	f.mu.RLock()
	durable := f.acked == gen
	f.mu.RUnlock()
	if !durable {
		return errMoved
	}
	// An earlier process may have come as far as this.
	if err := f.cont.Delete(ctx, name, blob.Condition{IfMatch: etag}); err != nil && !blob.Is(err, blob.NotFound) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropBase()
	f.isNew, f.limit, f.under, f.tried = true, 0, lower{}, nil
	f.props.Kind, f.props.Size, f.props.ETag = blob.BlockBlob, 0, ""
	return f.noteBase(false)
}

// commitAppend sends what was written behind the end of an append blob. Each piece that is sent stays, also when a later
// one fails; writers wait, since what is sent cannot be changed any more.
func (f *File) commitAppend(ctx context.Context) error {
	f.writers.Lock()
	defer f.writers.Unlock()
	f.mu.RLock()
	st, size := f.stage, f.size
	f.mu.RUnlock()
	for {
		f.mu.RLock()
		name, at, c := f.props.Name, f.props.Size, f.condition()
		f.mu.RUnlock()
		n := min(size-at, appendPiece)
		if n <= 0 {
			return f.appendedNothing(ctx)
		}
		if err := f.fill(ctx, st, at, at+n); err != nil { // gaps are zeros
			return err
		}
		a, err := f.beginAppend(st, at, n, size)
		if err != nil {
			return err
		}
		if err := f.c.uploads.acquire(ctx); err != nil {
			return err
		}
		w, err := f.cont.AppendBlock(ctx, name, blob.NewFileBody(st.file, at, n), n, at, c)
		f.c.uploads.release()
		if err != nil {
			return err
		}
		f.appended(w, a)
		if a.Last {
			return nil
		}
	}
}

// beginAppend is begin for n bytes from at on. f.writers is held.
func (f *File) beginAppend(st *stage, at, n, size int64) (*attempt, error) {
	h := crc32.New(castagnoli)
	if _, err := io.Copy(h, blob.NewFileBody(st.file, at, n)); err != nil {
		return nil, err
	}
	a := &attempt{Way: byAppend, Size: at + n, At: at, Last: at+n == size, CRC: h.Sum32()}
	f.mu.Lock()
	defer f.mu.Unlock()
	return a, f.begin(a)
}

// appendedNothing ends a commit of a file that has grown and was cut again: only times and attributes are sent.
func (f *File) appendedNothing(ctx context.Context) error {
	f.mu.RLock()
	gen := f.gen
	f.mu.RUnlock()
	if err := f.sendMetadata(ctx, f.Metadata()); err != nil {
		return err
	}
	f.mu.Lock()
	if f.gen != gen {
		f.mu.Unlock()
		return nil
	}
	f.saved = gen
	f.stage.changed, f.tried = nil, nil
	f.compact(true)
	f.report(true)
	return nil
}

// appended notes that the blob has one more piece now.
func (f *File) appended(w blob.Written, a *attempt) {
	f.mu.Lock()
	f.props.ETag, f.props.Modified, f.props.Size = w.ETag, w.Modified, a.Size
	f.dropBase()
	f.under, f.limit, f.tried = lower{f.props.Name, w.ETag, a.Size}, a.Size, nil
	clean := a.Last && f.gen == a.gen
	if a.Last {
		f.saved = a.gen
	}
	if clean {
		f.stage.changed = nil
	} else {
		f.stage.changed.remove(0, a.Size)
	}
	f.compact(clean)
	f.report(clean)
}
