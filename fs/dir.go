package fs

import (
	"context"
	"math/rand/v2"
	"syscall"
	"time"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// caller is who asks: the owner of what is made.
type caller struct{ uid, gid uint32 }

// newMetadata returns the metadata of something new.
func (v *view) newMetadata(k kind, mode uint32, who caller) map[string]string {
	m := map[string]string{}
	v.defaults.put(m, k, attributes{mode: mode & 0o7777, typ: mode & syscall.S_IFMT, uid: who.uid, gid: who.gid})
	return m
}

// mkdir makes a directory: a zero-length blob of its name that says so in its metadata.
func (v *view) mkdir(ctx context.Context, dir *node, name string, mode uint32, who caller) (*node, error) {
	p, err := v.placeNew(dir, name)
	if err != nil {
		return nil, err
	}
	m := v.newMetadata(kindDir, mode, who)
	m[blobcache.MarkerKey] = "true"
	e, err := v.create(ctx, p, "", blob.WriteOptions{Metadata: m})
	if err != nil {
		return nil, err
	}
	e.Dir, e.Marker = true, true
	v.names.SetEmpty(p)
	return v.made(dir, name, p, e), nil
}

// placeNew returns the path for a new name.
func (v *view) placeNew(dir *node, name string) (string, error) {
	p, err := v.place(dir, name)
	if err != nil {
		return "", err
	}
	return p, v.checkName(p)
}

// create writes a small new blob, which must not be there yet: what a lock between hosts may be made of. So a time that no
// other host gives tells them apart, see blob.WriteOptions.Distinct.
func (v *view) create(ctx context.Context, p, content string, o blob.WriteOptions) (blobcache.Entry, error) {
	o.Condition.IfNoneMatch = blob.Any
	if !v.defaults.NoMetadata {
		Stamp(o.Metadata, distinctTime())
		o.Distinct = true
	}
	w, err := v.upload(ctx, p, content, o)
	if err != nil {
		if blob.Is(err, blob.Exists) {
			v.names.Forget(p) // somebody was faster: let the next lookup see it
		}
		return blobcache.Entry{}, err
	}
	return blobcache.Entry{Properties: blob.Properties{
		Name: p, ETag: w.ETag, Modified: w.Modified, Created: w.Modified, Size: int64(len(content)),
		Metadata: o.Metadata, Headers: o.Headers,
	}}, nil
}

// distinctTime returns the time of now, with a random number of nanoseconds in place of those that a clock of microseconds
// would not tell.
func distinctTime() time.Time {
	return time.Now().Truncate(time.Microsecond).Add(time.Duration(rand.IntN(1000)))
}

// rmdir removes an empty directory, with its markers of both kinds. The service is asked whether it is empty: another
// host may have put something into it.
func (v *view) rmdir(ctx context.Context, dir *node, name string) error {
	n, _, err := v.lookup(ctx, dir, name, false)
	if err != nil {
		return err
	}
	defer v.nodes.drop(n)
	if n.kind != kindDir {
		return syscall.ENOTDIR
	}
	p, _ := v.nodes.path(n)
	if err := v.checkEmpty(ctx, p); err != nil {
		return err
	}
	if err := blob.SettleRenamer(ctx, v.cont); err != nil {
		return err
	}
	defer dir.leave(name)()
	if err := v.keepDir(ctx, dir); err != nil {
		return err
	}
	if err := v.deleteMarkers(ctx, p, n.getEntry()); err != nil {
		return err
	}
	v.gone(n, p)
	dir.touch(time.Now())
	return nil
}

// gone tells that a node has lost its name. The node first: what is told of it from then on does not bring the name back.
// The kernel holds the directory, so that nobody makes the name anew meanwhile.
func (v *view) gone(n *node, path string) {
	v.nodes.unlink(n)
	v.names.Remove(path)
}

// checkEmpty fails with ENOTEMPTY if there is anything in a directory.
func (v *view) checkEmpty(ctx context.Context, p string) error {
	empty, err := v.names.IsEmpty(ctx, p)
	if err == nil && !empty {
		return syscall.ENOTEMPTY
	}
	return err
}

// deleteMarkers deletes the blobs that stand for a directory: "p" with metadata, and "p/" of other tools.
func (v *view) deleteMarkers(ctx context.Context, p string, e blobcache.Entry) error {
	if r, ok := blob.AsRenamer(v.cont); ok {
		if err := r.DeleteDirectory(ctx, p); err != nil && !blob.Is(err, blob.NotFound) {
			return err
		}
		return nil
	}
	if e.Marker {
		if err := v.cont.Delete(ctx, p, blob.Condition{}); err != nil && !blob.Is(err, blob.NotFound) {
			return err
		}
	}
	page, err := v.cont.List(ctx, blob.ListOptions{Prefix: p + "/", MaxResults: 1})
	if err != nil {
		return err
	}
	if len(page.Blobs) == 0 {
		return nil
	}
	if page.Blobs[0].Name != p+"/" {
		return syscall.ENOTEMPTY // just now
	}
	return v.cont.Delete(ctx, p+"/", blob.Condition{})
}

// unlink deletes a file, link or FIFO. Those who have it open go on using it.
func (v *view) unlink(ctx context.Context, dir *node, name string) error {
	n, _, err := v.lookup(ctx, dir, name, false)
	if err != nil {
		return err
	}
	defer v.nodes.drop(n)
	if n.kind == kindDir {
		return syscall.EISDIR
	}
	p, _ := v.nodes.path(n)
	defer dir.leave(name)()
	if err := v.keepDir(ctx, dir); err != nil {
		return err
	}
	err = v.remove(ctx, n, p, func(inService bool) error {
		if !inService {
			return nil
		}
		return v.cont.Delete(ctx, p, blob.Condition{})
	})
	if err != nil {
		if blob.Is(err, blob.NotFound) {
			v.gone(n, p)
		}
		return err
	}
	v.gone(n, p)
	dir.touch(time.Now())
	return nil
}

// remove makes the open file of a node independent of the service, and then lets act delete or replace the blob, which
// is told whether the service has one.
func (v *view) remove(ctx context.Context, n *node, p string, act func(inService bool) error) error {
	f := n.opened()
	if f == nil {
		return act(true)
	}
	inService, err := f.Detach(ctx)
	if err != nil {
		v.log.Warn("an open file cannot be removed or replaced: its readers still need bytes that do not fit into the cache",
			"path", p, "error", err)
		return err
	}
	if err := act(inService); err != nil {
		f.Attach()
		return err
	}
	f.Gone()
	if f.Settle() {
		v.retire(n, f) // it was dirty, with nobody left to read it
	}
	return nil
}
