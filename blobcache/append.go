package blobcache

import (
	"context"
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

// commitAppend sends what was written behind the end of an append blob. Each piece that is sent stays, also when a later
// one fails.
func (f *File) commitAppend(ctx context.Context) error {
	for {
		f.mu.RLock()
		st, name, at, size, gen := f.stage, f.props.Name, f.props.Size, f.size, f.gen
		c := f.condition()
		metadata := f.props.Metadata
		f.mu.RUnlock()
		n := min(size-at, appendPiece)
		if n <= 0 {
			return f.sendMetadata(ctx, metadata) // the times of the last change
		}
		if err := f.fill(ctx, st, at, at+n); err != nil { // gaps are zeros
			return err
		}
		if err := f.c.uploads.acquire(ctx); err != nil {
			return err
		}
		w, err := f.cont.AppendBlock(ctx, name, io.NewSectionReader(paddedReader{st.file}, at, n), n, at, c)
		f.c.uploads.release()
		if err != nil {
			return err
		}
		f.appended(w, at+n, at+n == size, gen)
		if at+n == size {
			return nil
		}
	}
}

// appended notes that the blob is size bytes long now.
func (f *File) appended(w blob.Written, size int64, all bool, gen uint64) {
	f.mu.Lock()
	f.props.ETag, f.props.Modified, f.props.Size = w.ETag, w.Modified, size
	f.dropBase()
	f.under, f.limit = lower{f.props.Name, w.ETag, size}, size
	clean := all && f.gen == gen
	if all {
		f.saved = gen
	}
	if clean {
		f.stage.changed = nil
	} else {
		f.stage.changed.remove(0, size)
	}
	f.compact(clean)
	p := f.props
	f.mu.Unlock()
	if clean {
		f.c.track(f, false)
	}
	f.hooks.Committed(p, !clean)
}
