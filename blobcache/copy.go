package blobcache

import (
	"context"

	"blobmount/blobcache/blob"
)

// CopyFrom lets a new file begin with the bytes [0, end) of another one without fetching them: they are read from that
// version, and the service copies them at the commit. It reports how many bytes of [off, off+n) became part of the file,
// 0 if it cannot be done so: then the caller copies by Read and Write. It can where the copy is contiguous from the
// start of both, src has nothing that is not committed, what is copied was never written here, and the kernel does not
// read the file by itself.
func (f *File) CopyFrom(ctx context.Context, src *File, srcOff, off, n int64) (int64, error) {
	if f == src || off != srcOff || f.cont != src.cont {
		return 0, nil
	}
	src.mu.RLock()
	from, end, clean := lower{src.props.Name, src.props.ETag, src.size}, min(off+n, src.size), src.gen == src.saved && !src.gone
	copied := src.props
	src.mu.RUnlock()
	if !clean || copied.Kind != blob.BlockBlob || end <= off {
		return 0, nil
	}
	var did int64
	place := func() (int64, int64) { return off, end }
	err := f.change(ctx, place, func(off, end int64) error {
		first := off == 0 && f.size == 0 && f.limit == 0 && f.props.Kind == blob.BlockBlob
		more := off > 0 && f.limit == off && f.size == off && f.under == from
		// A commit that has landed is what lies under the writes from then on, and would take the place of the source.
		if !first && !more || len(f.tried) > 0 || f.stage != nil && f.stage.valid.overlaps(off, end) {
			return nil
		}
		if f.exposed { // the kernel's readers have a file, which must get the bytes
			return nil
		}
		if err := f.prepare(end); err != nil {
			return err
		}
		if err := f.stage.journal.setSize(end); err != nil {
			return err
		}
		under, limit, size := f.under, f.limit, f.size
		f.under, f.limit, f.size, f.copied = from, end, end, copied
		if err := f.noteBase(false); err != nil {
			f.under, f.limit, f.size = under, limit, size
			return err
		}
		f.dropBase()
		f.openBase()
		f.stage.relearn()
		f.changed(off, end, nil)
		did = end - off
		return nil
	})
	return did, err
}
