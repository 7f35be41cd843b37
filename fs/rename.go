package fs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// end is one end of a rename.
type end struct {
	dir  *node
	name string
	path string
}

// rename moves a file or directory. noReplace refuses to replace a target.
func (v *view) rename(ctx context.Context, from, to end, noReplace bool) error {
	n, release, err := v.beginRename(ctx, &from, &to)
	if err != nil {
		return err
	}
	defer release()
	defer v.nodes.drop(n)
	target, _, err := v.lookup(ctx, to.dir, to.name, false)
	switch {
	case err == nil:
		defer v.nodes.drop(target)
		if err := mayReplace(n, target, noReplace); err != nil {
			return err
		}
	case errno(err) == syscall.ENOENT:
		target = nil
	default:
		return err
	}
	if n == target {
		return nil
	}
	if err := blob.SettleRenamer(ctx, v.cont); err != nil {
		return err
	}
	defer from.dir.leave(from.name)()
	if n.kind == kindDir {
		err = v.renameDir(ctx, n, target, from, to)
	} else {
		err = v.renameFile(ctx, n, target, from, to, noReplace)
	}
	if err != nil {
		return err
	}
	now := time.Now()
	from.dir.touch(now)
	to.dir.touch(now)
	return nil
}

// beginRename finds both ends, and keeps others from changing their names until release is called. It holds the node.
func (v *view) beginRename(ctx context.Context, from, to *end) (n *node, release func(), err error) {
	places := func() error {
		var err error
		if from.path, err = v.place(from.dir, from.name); err == nil {
			to.path, err = v.placeNew(to.dir, to.name)
		}
		return err
	}
	for {
		if n, _, err = v.lookup(ctx, from.dir, from.name, false); err != nil {
			return nil, nil, err
		}
		begin := v.moves.change
		if n.kind == kindDir {
			begin = v.moves.move
			if err := places(); err == nil && strings.HasPrefix(to.path, from.path+"/") {
				v.nodes.drop(n)
				return nil, nil, syscall.EINVAL // below itself
			}
		}
		release, err = begin(ctx, func() ([]string, error) {
			err := places()
			return []string{from.path, to.path}, err
		})
		if err != nil {
			v.nodes.drop(n)
			return nil, nil, err
		}
		if path, linked := v.nodes.path(n); linked && path == from.path {
			return n, release, nil
		}
		// It was renamed or removed while this waited.
		release()
		v.nodes.drop(n)
	}
}

// mayReplace checks the kinds of both ends as rename(2) says.
func mayReplace(n, target *node, noReplace bool) error {
	switch {
	case noReplace:
		return syscall.EEXIST
	case n.kind == kindDir && target.kind != kindDir:
		return syscall.ENOTDIR
	case n.kind != kindDir && target.kind == kindDir:
		return syscall.EISDIR
	}
	return nil
}

// renameFile copies in the service under the source's ETag, then deletes the source. At no instant is neither name
// there, and the target changes from its old version to the new in one step.
func (v *view) renameFile(ctx context.Context, n, target *node, from, to end, noReplace bool) error {
	if err := v.keepDir(ctx, from.dir); err != nil {
		return err
	}
	f := v.acquire(n, false) // who opens it meanwhile shares it
	defer v.release(n, f, false)
	// The service has neither name: the first commit will write the new one.
	unsaved := func() {
		p := n.properties()
		p.Name = to.path
		v.moved(n, from, to, blobcache.Entry{Properties: p, Pending: true})
	}
	if target == nil && f.Rename(to.path, unsaved) {
		return nil
	}
	p, err := f.BeginMove(ctx, to.path)
	if err != nil {
		return err
	}
	over := v.cache.Moving(v.cont, from.path, p.ETag)
	w, err := v.moveBlob(ctx, target, from.path, to.path, p, noReplace)
	if err != nil {
		over()
		f.EndMove("", nil)
		return err
	}
	// A rename by the service leaves the version as it is: another one may be somebody else's, whose bytes are not ours.
	_, atOnce := blob.AsRenamer(v.cont)
	same := !atOnce || w.ETag == p.ETag
	if same {
		v.cache.Moved(v.cont, from.path, p.ETag, to.path, w.ETag)
	}
	p.Name, p.ETag, p.Modified = to.path, w.ETag, w.Modified
	// Before a commit can be made: it is to tell Names of the new path, and of a later version than this.
	v.moved(n, from, to, blobcache.Entry{Properties: p})
	if same {
		f.MovedTo(to.path, w)
	}
	over() // reads that failed under the old name wait for it, and not for the lease that EndMove takes
	f.EndMove(to.path, &w)
	return nil
}

// moveBlob copies a blob over another name, and deletes it.
func (v *view) moveBlob(ctx context.Context, target *node, from, to string, p blob.Properties, noReplace bool) (blob.Written, error) {
	o := blob.CopyOptions{Source: blob.Condition{IfMatch: p.ETag}}
	if noReplace {
		o.Condition.IfNoneMatch = blob.Any
	}
	if r, ok := blob.AsRenamer(v.cont); ok {
		return v.renameBlob(ctx, r, target, from, to, p, blob.RenameOptions{Source: o.Source, Condition: o.Condition})
	}
	var w blob.Written
	doCopy := func(bool) (err error) {
		w, err = v.cont.Copy(ctx, to, from, o)
		return err
	}
	var err error
	if target != nil {
		err = v.remove(ctx, target, to, doCopy)
	} else {
		err = doCopy(true)
	}
	if err != nil {
		if blob.Is(err, blob.ConditionNotMet) {
			v.names.Forget(from) // somebody changed it: the next try sees their version
		}
		return w, err
	}
	// When nothing is there any more, the name has gone by itself; unless another host has renamed the same blob, and the
	// copy may be its.
	if err := v.cont.Delete(ctx, from, blob.Condition{IfMatch: p.ETag}); err != nil && (w.Doubtful || !blob.Is(err, blob.NotFound)) {
		v.names.Forget(from)
		v.names.Forget(to)
		return w, err
	}
	return w, nil
}

// renameBlob lets the service give a blob another name, in one step.
func (v *view) renameBlob(ctx context.Context, r blob.Renamer, target *node, from, to string, p blob.Properties, o blob.RenameOptions) (blob.Written, error) {
	doRename := func(bool) error { return r.Rename(ctx, to, from, o) }
	var err error
	if target != nil {
		err = v.remove(ctx, target, to, doRename)
	} else {
		err = doRename(true)
	}
	if err != nil {
		if blob.Is(err, blob.ConditionNotMet) {
			v.names.Forget(from)
		}
		return blob.Written{}, err
	}
	// The same object has another name. Whether the ETag follows the name is not documented.
	now, err := v.cont.Properties(ctx, to, blob.Condition{})
	if err != nil {
		return blob.Written{ETag: p.ETag, Modified: p.Modified}, nil // the next commit, or the next lookup, will tell
	}
	return blob.Written{ETag: now.ETag, Modified: now.Modified}, nil
}

// moved brings Names and the node table up to date. The table first: a write to either file may tell Names of its path
// until it has another one.
func (v *view) moved(n *node, from, to end, e blobcache.Entry) {
	v.nodes.move(n, to.dir, to.name)
	v.names.Remove(from.path)
	v.names.Set(to.path, e)
	e.Pending = false
	n.setEntry(e)
}

// renameDir renames a directory with all that is below it. Other hosts can see it half-way.
func (v *view) renameDir(ctx context.Context, n, target *node, from, to end) error {
	if target != nil && v.nodes.anyNew(target) {
		return syscall.ENOTEMPTY
	}
	if err := v.keepDir(ctx, from.dir); err != nil {
		return err
	}
	files := map[string]*blobcache.File{}
	for c, path := range v.nodes.below(n) {
		if f := c.opened(); f != nil {
			files[path] = f
		}
	}
	below := func(path string) *node { return v.nodes.at(n, path[len(from.path)+1:]) }
	err := v.cache.RenameDir(ctx, v.cont, blobcache.DirRename{
		From: from.path, To: to.path, Files: files,
		Opened: func(path string) *blobcache.File {
			if c := below(path); c != nil {
				return c.opened()
			}
			return nil
		},
		Deleting: func() { v.moves.leave(from.path) },
		Moved: func(path string, was blob.ETag, now string, w blob.Written) {
			if c := below(path); c != nil {
				c.renamed(was, now, w)
			}
		},
		Done: func(marker blob.Properties, left bool) { v.movedDir(n, from, to, marker, left) },
	})
	switch {
	case errors.Is(err, blobcache.ErrNotEmpty):
		v.forgetDir(to.path)
		return fmt.Errorf("%w: %w", syscall.ENOTEMPTY, err)
	case errors.Is(err, blobcache.ErrRenaming):
		v.forgetDir(to.path)
		return fmt.Errorf("%w: %w", syscall.EBUSY, err)
	case errors.Is(err, blobcache.ErrNameTooLong):
		return fmt.Errorf("%w: %w", syscall.ENAMETOOLONG, err)
	case err != nil:
		v.forgetDir(to.path)
	}
	if _, atOnce := blob.AsRenamer(v.cont); atOnce && err == nil {
		return v.renameOpened(ctx, n)
	}
	return err
}

// renameOpened gives files that were opened for reading while the service renamed a directory their new names.
func (v *view) renameOpened(ctx context.Context, n *node) error {
	for c, path := range v.nodes.below(n) {
		f := c.opened()
		if f == nil || f.Name() == path {
			continue
		}
		p, err := f.BeginMove(ctx, path)
		if err != nil {
			return err
		}
		f.EndMove(path, &blob.Written{ETag: p.ETag, Modified: p.Modified})
	}
	return nil
}

// movedDir brings Names and the node table up to date when a directory has its new name.
func (v *view) movedDir(n *node, from, to end, marker blob.Properties, left bool) {
	left = left || n.getEntry().Shadowed
	e := blobcache.Entry{Dir: true, Marker: marker.Name != "", Properties: marker}
	v.names.ForgetTree(to.path)
	v.nodes.move(n, to.dir, to.name)
	v.names.ForgetTree(from.path) // after the last write that could tell of a name below it
	n.setEntry(e)
	v.names.Set(to.path, e)
	v.names.Remove(from.path)
	if left {
		v.names.Forget(from.path)
	}
	_, atOnce := blob.AsRenamer(v.cont)
	for c, path := range v.nodes.below(n) {
		if p := c.properties(); atOnce && p.ETag != "" {
			v.cache.Moved(v.cont, from.path+path[len(to.path):], p.ETag, path, p.ETag)
			c.renamed(p.ETag, path, blob.Written{ETag: p.ETag, Modified: p.Modified})
		}
		if f := c.opened(); f != nil && f.State().Dirty { // the service does not have it, or not like this
			v.nodes.named(c, func(path string) {
				p := c.properties()
				p.Name = path
				v.names.Set(path, blobcache.Entry{Properties: p, Pending: true})
			})
		}
	}
}

// forgetDir drops what is known of a directory, its name included.
func (v *view) forgetDir(path string) {
	v.names.ForgetTree(path)
	v.names.Forget(path)
}
