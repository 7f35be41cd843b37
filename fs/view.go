package fs

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// view is a directory tree over one container: what every operation means. It knows nothing of the kernel's
// messages.
type view struct {
	cont     blob.Container
	prefix   string // of cont, see blob.Prefix
	cache    *blobcache.Cache
	names    *blobcache.Names
	nodes    *table
	moves    moves
	defaults Defaults
	types    ContentTypes
	odd      *odd
	timeout  time.Duration // blob-cache timeout
	started  time.Time
	log      *slog.Logger
}

// checkName refuses what cannot be the name of a blob, before anything is made of it: a file that is open under a
// name that the service refuses could never be committed. p is a path whose last part is not checked yet; the kernel has
// seen to slashes and NUL. The prefix of the mount is part of the name.
func (v *view) checkName(p string) error {
	name := p[strings.LastIndexByte(p, '/')+1:]
	whole := v.prefix + p
	switch {
	case len(name) > maxNameBytes:
		return syscall.ENAMETOOLONG
	case !utf8.ValidString(name):
		return syscall.EILSEQ // names travel in URLs and XML, which are UTF-8
	case blob.NameLength(whole) > blob.MaxNameLength, strings.Count(whole, "/") >= blob.MaxSegments:
		return syscall.ENAMETOOLONG
	}
	return blob.CheckName("Lookup", name)
}

// maxNameBytes is NAME_MAX of Linux.
const maxNameBytes = 255

// place returns the path of a name in a directory.
func (v *view) place(dir *node, name string) (string, error) {
	p, linked := v.nodes.path(dir)
	if !linked {
		return "", syscall.ENOENT
	}
	if p == "" {
		return name, nil
	}
	return p + "/" + name, nil
}

// find returns what a name in a directory stands for, and for how long that may be used.
func (v *view) find(ctx context.Context, dir *node, name string) (blobcache.Entry, time.Duration, error) {
	p, err := v.place(dir, name)
	if err != nil {
		return blobcache.Entry{}, 0, err
	}
	if err := v.checkName(p); err != nil {
		return blobcache.Entry{}, 0, err
	}
	return v.names.Lookup(ctx, p)
}

// lookup returns the node under a name. One lookup is counted if count, else the node is held.
func (v *view) lookup(ctx context.Context, dir *node, name string, count bool) (*node, time.Duration, error) {
	var before blob.ETag
	for again := false; ; again = true {
		err := v.moves.settled(ctx, func() string {
			p, _ := v.place(dir, name)
			return p
		})
		if err != nil {
			return nil, 0, err
		}
		e, valid, err := v.find(ctx, dir, name)
		if err != nil {
			return nil, valid, err
		}
		// When the table has another version, our own commit may have come in between: then Names knows by now. What
		// Names says twice in a row is somebody else's version.
		if n := v.nodes.bind(dir, name, e, count, again && e.Properties.ETag == before); n != nil {
			return n, valid, nil
		}
		before = e.Properties.ETag
	}
}

func (v *view) isSame(n *node, e blobcache.Entry) bool {
	v.nodes.mu.Lock()
	defer v.nodes.mu.Unlock()
	return n.same(e)
}

// changing begins a change of a name in a directory. It waits if a directory that it lies in is being renamed.
func (v *view) changing(ctx context.Context, dir *node, name string) (end func(), err error) {
	return v.moves.change(ctx, func() ([]string, error) {
		p, err := v.place(dir, name)
		return []string{p}, err
	})
}

// changingNode begins a change of what a node is. One without a name has nothing to wait for.
func (v *view) changingNode(ctx context.Context, n *node) (end func(), err error) {
	return v.moves.change(ctx, func() ([]string, error) {
		if p, linked := v.nodes.path(n); linked && p != "" {
			return []string{p}, nil
		}
		return nil, nil
	})
}

// made tells of a new name, and returns its node with one lookup counted.
func (v *view) made(dir *node, name, p string, e blobcache.Entry) *node {
	if c := v.nodes.child(dir, name); c != nil {
		v.nodes.unlink(c)
	}
	v.names.Set(p, e) // after what a write to the file that had the name may have told of it
	dir.touch(time.Now())
	return v.nodes.bind(dir, name, e, true, true)
}

// upload writes a small blob that is no file with content: a marker, a link, a FIFO, an empty file.
func (v *view) upload(ctx context.Context, name, content string, o blob.WriteOptions) (blob.Written, error) {
	return v.cont.Upload(ctx, name, strings.NewReader(content), int64(len(content)), o)
}

// keepDir makes sure that a directory stays when the names in it that are leaving go away: directories do not vanish
// because their last file was removed through this mount. Implied ones get a marker then.
func (v *view) keepDir(ctx context.Context, dir *node) error {
	if _, real := blob.AsRenamer(v.cont); real || dir == v.nodes.root || dir.getEntry().Marker {
		return nil
	}
	p, linked := v.nodes.path(dir)
	if !linked {
		return nil
	}
	if other, err := v.names.HasOther(ctx, p, dir.leavingNames()...); err != nil || other {
		return err
	}
	return v.mark(ctx, dir, p)
}

// mark gives an implied directory its marker.
func (v *view) mark(ctx context.Context, dir *node, p string) error {
	m := map[string]string{blobcache.MarkerKey: "true"}
	w, err := v.upload(ctx, p, "", blob.WriteOptions{Metadata: m, Condition: blob.Condition{IfNoneMatch: blob.Any}})
	if blob.Is(err, blob.Exists) {
		return nil // a marker that we had not seen, or a shadowed blob, which also keeps the name
	}
	if err != nil {
		return fmt.Errorf("keep directory %q: %w", p, err)
	}
	e := blobcache.Entry{Dir: true, Marker: true}
	e.Properties = blob.Properties{Name: p, ETag: w.ETag, Modified: w.Modified, Metadata: m}
	v.names.Set(p, e)
	dir.setEntry(e)
	return nil
}
