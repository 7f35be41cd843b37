package fs

import (
	"context"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// open opens a file for reading, and for writing if write; with truncate it becomes empty at once.
func (v *view) open(ctx context.Context, n *node, write, truncate bool) (*blobcache.File, error) {
	if n.overtaken.Load() {
		return nil, syscall.ESTALE // the kernel then looks the name up and opens what it stands for now
	}
	p := n.properties()
	if p.Tier == "Archive" && !n.pending.Load() {
		v.log.Warn("blob is in the archive tier: rehydrate it to an online tier before it can be opened", "blob", p.Name)
		return nil, syscall.EACCES
	}
	if write && p.Kind == blob.PageBlob {
		v.log.Warn("page blobs can only be read", "blob", p.Name)
		return nil, syscall.EPERM
	}
	f := v.acquire(n, write)
	var err error
	if write {
		err = f.Lease(ctx)
	}
	if err == nil && truncate {
		err = v.truncate(ctx, n, f, 0)
	}
	if err != nil {
		v.release(n, f, write)
		return nil, err
	}
	return f, nil
}

// createFile makes a new file and opens it for writing. The name is visible here at once, in the service with the
// first commit; with exclusive the service is asked at once, so that lock files work between hosts.
func (v *view) createFile(ctx context.Context, dir *node, name string, mode uint32, exclusive bool, who caller) (*node, *blobcache.File, error) {
	p, err := v.placeNew(dir, name)
	if err != nil {
		return nil, nil, err
	}
	if exclusive || v.cache.Leases() {
		return v.createNow(ctx, dir, name, mode, exclusive, who)
	}
	props := blob.Properties{Name: p, Headers: v.newHeaders(p), Metadata: v.newMetadata(kindFile, mode, who), Modified: time.Now()}
	n := v.made(dir, name, p, blobcache.Entry{Properties: props, Pending: true})
	n.pending.Store(true)
	n.beginWriting()
	n.mu.Lock()
	v.nodes.hold(n)
	n.file = v.cache.CreateFile(v.cont, props, v.hooks(n))
	n.file.Acquire(true)
	n.users++
	f := n.file
	n.mu.Unlock()
	return n, f, nil
}

// newHeaders returns the headers of a new file.
func (v *view) newHeaders(path string) blob.Headers {
	return blob.Headers{ContentType: v.types.of(path)}
}

// createNow makes a file that is in the service at once, empty, and leases it if files are leased.
func (v *view) createNow(ctx context.Context, dir *node, name string, mode uint32, exclusive bool, who caller) (*node, *blobcache.File, error) {
	n, err := v.mknod(ctx, dir, name, syscall.S_IFREG|mode&0o7777, who)
	if blob.Is(err, blob.Exists) && !exclusive {
		return nil, nil, syscall.ESTALE // made elsewhere just now: the kernel looks it up and opens it
	}
	if err != nil {
		return nil, nil, err
	}
	f := v.acquire(n, true)
	if err := f.Lease(ctx); err != nil {
		v.release(n, f, true)
		v.nodes.forget(n.id, 1) // the kernel is not told of it
		return nil, nil, err
	}
	return n, f, nil
}

// write puts p at off. For a handle that appends through the kernel's pages, off is what the kernel takes for the end.
func (v *view) write(ctx context.Context, n *node, f *blobcache.File, p []byte, off int64) error {
	v.dirty(n)
	return f.Write(ctx, p, off)
}

// append puts p at the end of a file, and returns where that was.
func (v *view) append(ctx context.Context, n *node, f *blobcache.File, p []byte) (off int64, err error) {
	v.dirty(n)
	return f.Append(ctx, p)
}

// killPrivileges is what a write by somebody without privilege does to the mode.
func (v *view) killPrivileges(ctx context.Context, n *node, f *blobcache.File) error {
	return f.ChangeMetadata(ctx, func(s blobcache.State, m map[string]string) (time.Time, error) {
		a := v.defaults.attributesOf(n.kind, &s.Properties)
		if mode := killed(a.mode); mode != a.mode {
			a.mode = mode
			v.defaults.put(m, n.kind, a)
		}
		return time.Time{}, nil
	})
}

func (v *view) truncate(ctx context.Context, n *node, f *blobcache.File, size int64) error {
	if f.State().Size == size {
		return nil
	}
	v.dirty(n)
	return f.Truncate(ctx, size)
}

// resize sets the size of a file that nobody need have open: then it is committed at once, since no close follows.
func (v *view) resize(ctx context.Context, n *node, size int64) error {
	f, err := v.open(ctx, n, true, false)
	if err != nil {
		return err
	}
	defer v.release(n, f, true)
	if err := v.truncate(ctx, n, f, size); err != nil {
		return err
	}
	return f.Flush(ctx)
}

// allocate implements fallocate(2).
func (v *view) allocate(ctx context.Context, n *node, f *blobcache.File, mode uint32, off, size int64) error {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	switch mode {
	case 0:
		if off+size <= f.State().Size {
			return nil
		}
		return v.truncate(ctx, n, f, off+size)
	case keep:
		return nil // room is found when it is written; a blob has no allocation
	case keep | unix.FALLOC_FL_PUNCH_HOLE, keep | unix.FALLOC_FL_ZERO_RANGE:
		v.dirty(n)
		return f.Zero(ctx, off, size)
	case unix.FALLOC_FL_ZERO_RANGE:
		if off+size > f.State().Size {
			if err := v.truncate(ctx, n, f, off+size); err != nil {
				return err
			}
		}
		v.dirty(n)
		return f.Zero(ctx, off, size)
	}
	return syscall.EOPNOTSUPP
}

// largestCopy is how much one copy_file_range may answer for, in bytes: the answer has 32 bits.
const largestCopy = 1<<32 - 1<<20

// copyRange lets the service copy a part of one file into another, as far as it can. It returns how many bytes it did.
func (v *view) copyRange(ctx context.Context, from, to *handle, srcOff, off, n int64) (int64, error) {
	did, err := to.file.CopyFrom(ctx, from.file, srcOff, off, n)
	if did > 0 {
		v.dirty(to.node)
	}
	return did, err
}
