package fs

import (
	"context"
	"errors"
	"strings"
	"sync"
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
	var err error
	if from.path, err = v.place(from.dir, from.name); err != nil {
		return err
	}
	if to.path, err = v.placeNew(to.dir, to.name); err != nil {
		return err
	}
	n, _, err := v.lookup(ctx, from.dir, from.name, false)
	if err != nil {
		return err
	}
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
	if target == nil && f.Rename(to.path) {
		// The service has neither name: the first commit will write the new one.
		p := n.properties()
		p.Name = to.path
		v.moved(n, from, to, blobcache.Entry{Properties: p, Pending: true})
		return nil
	}
	p, err := f.BeginMove(ctx)
	if err != nil {
		return err
	}
	w, err := v.moveBlob(ctx, target, from.path, to.path, p, noReplace)
	if err != nil {
		f.EndMove("", nil)
		return err
	}
	v.cache.Moved(v.cont, from.path, p.ETag, to.path, w.ETag)
	f.EndMove(to.path, &w)
	p.Name, p.ETag, p.Modified = to.path, w.ETag, w.Modified
	v.moved(n, from, to, blobcache.Entry{Properties: p})
	return nil
}

// moveBlob copies a blob over another name, and deletes it.
func (v *view) moveBlob(ctx context.Context, target *node, from, to string, p blob.Properties, noReplace bool) (blob.Written, error) {
	o := blob.CopyOptions{Source: blob.Condition{IfMatch: p.ETag}}
	if noReplace {
		o.Condition.IfNoneMatch = blob.Any
	}
	defer v.cache.Moving(v.cont, from, p.ETag)()
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
	if err := v.cont.Delete(ctx, from, blob.Condition{IfMatch: p.ETag}); err != nil && !blob.Is(err, blob.NotFound) {
		v.names.Forget(from)
		v.names.Forget(to)
		return w, err
	}
	return w, nil
}

// moved brings Names and the node table up to date.
func (v *view) moved(n *node, from, to end, e blobcache.Entry) {
	v.names.Remove(from.path)
	v.names.Set(to.path, e)
	v.nodes.move(n, to.dir, to.name)
	e.Pending = false
	n.setEntry(e)
}

// copiesAtOnce bounds the requests of one directory rename.
const copiesAtOnce = 16

// renameDir copies all blobs below a directory, each under its ETag, and deletes the sources when all copies are
// there. Other hosts can see it half-way. If a copy fails, the copies are taken back and the source stays whole.
func (v *view) renameDir(ctx context.Context, n, target *node, from, to end) error {
	if to.path == from.path || strings.HasPrefix(to.path, from.path+"/") {
		return syscall.EINVAL
	}
	if target != nil {
		if err := v.checkEmpty(ctx, to.path); err != nil {
			return err
		}
	}
	if err := v.keepDir(ctx, from.dir); err != nil {
		return err
	}
	nodes := v.nodes.below(n)
	moving, err := v.beginMoves(ctx, nodes)
	defer func() {
		for _, f := range moving { // those that did not come to their end
			f.EndMove("", nil)
		}
	}()
	if err != nil {
		return err
	}
	blobs, err := v.tree(ctx, from.path, n.getEntry())
	if err != nil {
		return err
	}
	newName := func(old string) string { return to.path + strings.TrimPrefix(old, from.path) }
	written := make([]blob.Written, len(blobs))
	for _, b := range blobs {
		defer v.cache.Moving(v.cont, b.Name, b.ETag)()
	}
	err = inParallel(ctx, len(blobs), func(ctx context.Context, i int) (err error) {
		written[i], err = v.cont.Copy(ctx, newName(blobs[i].Name), blobs[i].Name,
			blob.CopyOptions{Source: blob.Condition{IfMatch: blobs[i].ETag}})
		return err
	})
	if err != nil {
		v.takeBack(ctx, blobs, written, newName)
		return err
	}
	err = inParallel(ctx, len(blobs), func(ctx context.Context, i int) error {
		err := v.cont.Delete(ctx, blobs[i].Name, blob.Condition{IfMatch: blobs[i].ETag})
		if blob.Is(err, blob.NotFound) {
			return nil
		}
		return err
	})
	v.names.ForgetTree(from.path)
	v.names.ForgetTree(to.path)
	if err != nil {
		v.names.Forget(from.path)
		v.names.Forget(to.path)
		v.log.Warn("directory was copied, but not all of the source could be deleted: both are there",
			"from", from.path, "to", to.path, "error", err)
		return err
	}
	byPath := make(map[string]*node, len(nodes))
	for c, p := range nodes {
		byPath[p] = c
	}
	e := blobcache.Entry{Dir: true}
	for i, b := range blobs {
		c := byPath[b.Name]
		v.cache.Moved(v.cont, b.Name, b.ETag, newName(b.Name), written[i].ETag)
		if f := moving[b.Name]; f != nil {
			f.EndMove(newName(b.Name), &written[i])
			delete(moving, b.Name)
		}
		p := b
		p.Name, p.ETag, p.Modified = newName(b.Name), written[i].ETag, written[i].Modified
		if b.Name == from.path {
			e.Marker, e.Properties = true, p
		}
		if c != nil {
			c.setEntry(blobcache.Entry{Dir: c.kind == kindDir, Marker: c.kind == kindDir, Properties: p})
		}
	}
	for c, path := range v.nodes.below(n) { // made meanwhile
		if f := c.opened(); f != nil && f.State().New {
			f.Rename(newName(path))
		}
	}
	v.moved(n, from, to, e)
	return nil
}

// beginMoves commits the open files among nodes and holds their commits. It returns those that are to move by their
// paths, also when it fails.
func (v *view) beginMoves(ctx context.Context, nodes map[*node]string) (map[string]*blobcache.File, error) {
	moving := map[string]*blobcache.File{}
	for c, path := range nodes {
		f := c.opened()
		if f == nil {
			continue
		}
		if _, err := f.BeginMove(ctx); err != nil {
			return moving, err
		}
		moving[path] = f
	}
	return moving, nil
}

// tree returns all blobs of a directory: its markers and everything below.
func (v *view) tree(ctx context.Context, p string, e blobcache.Entry) ([]blob.Properties, error) {
	var out []blob.Properties
	if e.Marker {
		m, err := v.cont.Properties(ctx, p, blob.Condition{})
		if err == nil {
			m.Name = p
			out = append(out, m)
		} else if !blob.Is(err, blob.NotFound) {
			return nil, err
		}
	}
	o := blob.ListOptions{Prefix: p + "/"}
	for {
		page, err := v.cont.List(ctx, o)
		if err != nil {
			return nil, err
		}
		out = append(out, page.Blobs...)
		if page.Next == "" {
			return out, nil
		}
		o.Marker = page.Next
	}
}

// takeBack deletes the copies of a rename that failed. What cannot be deleted is named in the log.
func (v *view) takeBack(ctx context.Context, blobs []blob.Properties, written []blob.Written, newName func(string) string) {
	ctx = context.WithoutCancel(ctx)
	err := inParallel(ctx, len(blobs), func(ctx context.Context, i int) error {
		if written[i].ETag == "" {
			return nil
		}
		return v.cont.Delete(ctx, newName(blobs[i].Name), blob.Condition{IfMatch: written[i].ETag})
	})
	if err != nil {
		v.log.Error("copies of a failed directory rename could not be deleted", "below", newName(blobs[0].Name), "error", err)
	}
}

// inParallel calls do for 0 to n-1, copiesAtOnce at a time, and returns the first error after all calls have ended.
// After an error no further call is begun.
func inParallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // guards first
	var first error
	var wg sync.WaitGroup
	slots := make(chan struct{}, copiesAtOnce)
	for i := range n {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(ctx, i); err != nil {
				mu.Lock()
				if first == nil || errors.Is(first, context.Canceled) {
					first = err
				}
				mu.Unlock()
				cancel(err)
			}
		})
	}
	wg.Wait()
	if first == nil {
		first = context.Cause(ctx)
	}
	return first
}
