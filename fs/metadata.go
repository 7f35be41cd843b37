package fs

import (
	"cmp"
	"context"
	"maps"
	"syscall"
	"time"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// maxMetadata is how many bytes names and values may have together ("Set Blob Metadata", remarks).
const maxMetadata = 8 << 10

func metadataSize(m map[string]string) int {
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
	}
	return size
}

// changeMetadata changes the metadata of a node: with the commit of a file that is dirty, in a directory's marker, else by
// one request. change is given what stat shows, and a copy of the metadata. It returns the time of the last change of the content that is to be
// shown, or zero if that stays. When it fails, or leaves both as they were, nothing is done.
//
// What is shown goes along, since the service's own time moves with each change of metadata. The root of the mount has no
// metadata and must not be given.
func (v *view) changeMetadata(ctx context.Context, n *node, change func(was attributes, m map[string]string) (mtime time.Time, err error)) error {
	changed := func(was attributes, m map[string]string) (time.Time, error) {
		before := maps.Clone(m)
		mtime, err := change(was, m)
		if err != nil || mtime.IsZero() && maps.Equal(m, before) {
			return mtime, err
		}
		if !v.defaults.NoMetadata {
			Stamp(m, cmp.Or(mtime, was.mtime))
		}
		if size := metadataSize(m); size > maxMetadata && size > metadataSize(before) {
			return mtime, syscall.ENOSPC // now, and not when a dirty file is committed
		}
		return mtime, nil
	}
	if n.kind == kindDir {
		return v.changeMarker(ctx, n, changed)
	}
	f := v.acquire(n, false)
	defer v.release(n, f, false)
	err := f.ChangeMetadata(ctx, func(s blobcache.State, m map[string]string) (time.Time, error) {
		was := v.defaults.attributesOf(n.kind, &s.Properties)
		if s.Dirty {
			was.mtime = s.Modified
		}
		return changed(was, m)
	})
	v.forgetChanged(n, err)
	return err
}

// changeMarker changes the metadata of a directory's marker, which is made if there is none. The kernel holds the
// directory.
func (v *view) changeMarker(ctx context.Context, n *node, change func(was attributes, m map[string]string) (time.Time, error)) error {
	e := n.getEntry()
	path, linked := v.nodes.path(n)
	if !linked {
		return syscall.ENOENT
	}
	m := map[string]string{}
	maps.Copy(m, e.Properties.Metadata)
	was := v.defaults.attributesOf(kindDir, &e.Properties)
	was.mtime = v.dirTime(n, was.mtime)
	mtime, err := change(was, m)
	if err != nil || mtime.IsZero() && maps.Equal(m, e.Properties.Metadata) {
		return err
	}
	if e.Shadowed {
		return syscall.EPERM // another blob has the marker's name
	}
	m[blobcache.MarkerKey] = "true"
	var w blob.Written
	if e.Marker {
		w, err = v.cont.SetMetadata(ctx, path, m, blob.Condition{IfMatch: e.Properties.ETag})
	} else {
		w, err = v.upload(ctx, path, "", blob.WriteOptions{Metadata: m, Condition: blob.Condition{IfNoneMatch: blob.Any}})
	}
	if err != nil {
		v.forgetChanged(n, err)
		if blob.Is(err, blob.Exists) {
			return syscall.ESTALE // it has a marker by now: the kernel looks the name up and tries again
		}
		return err
	}
	e.Marker = true
	e.Properties.Name, e.Properties.ETag, e.Properties.Modified, e.Properties.Metadata = path, w.ETag, w.Modified, m
	v.names.Set(path, e)
	n.setEntry(e)
	if !mtime.IsZero() {
		n.touch(time.Time{}) // what the marker says counts
	}
	return nil
}
