package blobcache

import (
	"cmp"
	"context"
	"maps"
	"math/bits"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blobmount/blobcache/blob"
)

// Entry is what a name in a directory stands for.
type Entry struct {
	Dir bool
	// Properties are those of the blob; of a directory those of its marker, if it has one.
	Properties blob.Properties
	// Marker says that a directory is marked by a blob of its own name (see IsMarker).
	Marker bool
	// Shadowed says that a directory hides a blob of the same name that is not a marker.
	Shadowed bool
	// Pending says that the service does not have this state of the name yet.
	Pending bool
}

// Named is an entry with its name in the directory.
type Named struct {
	Name string
	Entry
}

// MarkerKey is the metadata name by which Hadoop, azcopy and blobfuse2 mark a zero-length blob as a directory.
const MarkerKey = "hdi_isfolder"

// IsMarker reports whether a blob stands for a directory.
func IsMarker(p *blob.Properties) bool {
	return p.Size == 0 && strings.EqualFold(p.Metadata[MarkerKey], "true")
}

// Names is what is known of the names in a container: attributes, listings, and what is not there. Knowledge is used
// for the blob-cache timeout and then asked for again. Paths have no leading slash; the root is "". All methods may be
// called in parallel. A change made here is seen by every call that begins after it, whatever request is under way.
type Names struct {
	ctx     context.Context
	cont    blob.Container
	timeout time.Duration // negative: never ask again
	now     func() time.Time

	hidden atomic.Int64     // blobs that no path can express, as of the last listing of each directory
	sizes  [65]atomic.Int64 // blobs in the listings so far, by the number of bits of their size

	mu   sync.Mutex // guards what is below
	seq  uint64     // counts our own changes
	dirs map[string]*dirNames
}

// dirNames is what is known of one directory.
type dirNames struct {
	names map[string]known
	// listed is when the directory was listed as a whole: what names lacks is not there. Zero: never.
	listed  time.Time
	listing *listing // under way, or nil
	asked   int      // lookups that had to ask the service since the last listing
	hidden  int64    // blobs that the last listing left out
	// since is the change of ours with which knowledge begins: answers to questions from before it are not kept.
	since uint64
}

// known is what is known of one name.
type known struct {
	Entry
	exists bool
	at     time.Time // when it was true
	seq    uint64    // our change that made it so; 0: the service said so
}

// listing is a request that several may wait for.
type listing struct {
	done chan struct{}
	err  error
}

// NewNames returns an empty Names. timeout is the blob-cache timeout; a negative one means for ever, 0 means to ask
// each time. Listings in the background end with ctx.
func NewNames(ctx context.Context, c blob.Container, timeout time.Duration) *Names {
	return &Names{ctx: ctx, cont: c, timeout: timeout, now: time.Now, dirs: map[string]*dirNames{}}
}

// forever is what the kernel is told for a timeout without end.
const forever = 365 * 24 * time.Hour

// left returns how long something that was true at a time may still be used, at most 0 if not any more.
func (n *Names) left(at time.Time) time.Duration {
	if n.timeout < 0 {
		return forever
	}
	return n.timeout - n.now().Sub(at)
}

// split returns the directory and the name in it.
func split(p string) (dir, name string) {
	dir, name = path.Split(p)
	return strings.TrimSuffix(dir, "/"), name
}

func (n *Names) dir(p string) *dirNames {
	d := n.dirs[p]
	if d == nil {
		d = &dirNames{names: map[string]known{}}
		n.dirs[p] = d
	}
	return d
}

// peek returns what is known, whether anything is, and for how long it may be used. n.mu is held.
func (n *Names) peek(p string) (k known, ok bool, left time.Duration) {
	dir, name := split(p)
	d := n.dirs[dir]
	if d == nil {
		return known{}, false, 0
	}
	if k, ok = d.names[name]; ok {
		if k.Pending {
			return k, true, max(n.left(n.now()), 0)
		}
		if left = n.left(k.at); left > 0 {
			return k, true, left
		}
		return k, false, 0
	}
	if !d.listed.IsZero() {
		if left = n.left(d.listed); left > 0 {
			return known{}, true, left
		}
	}
	return known{}, false, 0
}

// Lookup returns what a path stands for, and for how long the answer may be used. When there is nothing, the error
// has the code NotFound, and the duration is for how long that may be relied upon.
// An unknown name costs two requests at once, a known one whose time is over costs one conditional request.
func (n *Names) Lookup(ctx context.Context, p string) (Entry, time.Duration, error) {
	n.mu.Lock()
	k, ok, left := n.peek(p)
	before := n.seq
	var d *dirNames
	if !ok {
		d = n.noteAsk(p)
	}
	n.mu.Unlock()
	if !ok {
		var err error
		if k, err = n.ask(ctx, p, k); err != nil {
			return Entry{}, 0, err
		}
		k, left = n.learn(d, p, k, before)
	}
	if !k.exists {
		return Entry{}, left, &blob.Error{Code: blob.NotFound, Op: "Lookup", Name: p}
	}
	return k.Entry, left, nil
}

// listAfter is how many lookups in one directory ask the service before the directory is listed: one request brings
// 5,000 names then.
const listAfter = 3

// noteAsk counts a lookup that has to ask, and lists the directory in the background when there were several. It returns
// what is known of the directory. n.mu is held.
func (n *Names) noteAsk(p string) *dirNames {
	dir, _ := split(p)
	d := n.dir(dir)
	if d.asked++; d.asked != listAfter || n.timeout == 0 || d.listing != nil {
		return d
	}
	go func() {
		// A failure is not lost: the lookups themselves ask too, and report theirs.
		_, _ = n.List(n.ctx, dir, false)
	}()
	return d
}

// Known returns what is known of a path without asking, and for how long it may be used, which may be 0. It reports
// false for a path that does not exist or of which nothing is known.
func (n *Names) Known(p string) (Entry, time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k, _, left := n.peek(p)
	return k.Entry, left, k.exists
}

// ask asks the service about one path. old is what was known.
func (n *Names) ask(ctx context.Context, p string, old known) (known, error) {
	at := n.now()
	if old.exists && !old.Dir {
		got, err := n.cont.Properties(ctx, p, blob.Condition{IfNoneMatch: old.Properties.ETag})
		switch {
		case blob.Is(err, blob.NotModified):
			old.at, old.seq = at, 0
			return old, nil
		case err == nil && !IsMarker(&got):
			return known{Entry: Entry{Properties: got}, exists: true, at: at}, nil
		case err != nil && !blob.Is(err, blob.NotFound):
			return known{}, err
		}
	}
	type answer struct {
		props blob.Properties
		err   error
	}
	head := make(chan answer, 1)
	go func() {
		props, err := n.cont.Properties(ctx, p, blob.Condition{})
		head <- answer{props, err}
	}()
	below, listErr := n.anyBelow(ctx, p)
	a := <-head
	if listErr != nil {
		return known{}, listErr
	}
	if a.err != nil && !blob.Is(a.err, blob.NotFound) {
		return known{}, a.err
	}
	k := known{at: at, exists: below || a.err == nil}
	k.Dir = below
	if a.err == nil {
		k.Properties = a.props
		switch {
		case IsMarker(&a.props):
			k.Dir, k.Marker = true, true
		case below:
			k.Shadowed, k.Properties = true, blob.Properties{}
		}
	}
	return k, nil
}

// anyBelow reports whether any blob's name begins with p and a slash.
func (n *Names) anyBelow(ctx context.Context, p string) (bool, error) {
	o := blob.ListOptions{Prefix: p + "/", MaxResults: 1}
	for {
		page, err := n.cont.List(ctx, o)
		if err != nil || len(page.Blobs) > 0 {
			return len(page.Blobs) > 0, err
		}
		if page.Next == "" {
			return false, nil
		}
		o.Marker = page.Next
	}
}

// learn stores an answer of the service about a name in d, unless we changed the name, or more than that, after the
// question was put. It returns what is true now, and for how long that may be used.
func (n *Names) learn(d *dirNames, p string, k known, asked uint64) (known, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	dir, name := split(p)
	cur := n.dirs[dir]
	if cur != nil {
		if now, ok := cur.names[name]; ok && now.Pending {
			return now, max(n.left(n.now()), 0)
		} else if ok && now.seq > asked {
			return now, max(n.left(now.at), 0)
		}
	}
	if cur != d || asked < d.since {
		return k, 0
	}
	d.names[name] = k
	return k, max(n.left(k.at), 0)
}

// List returns the entries of a directory, sorted by the bytes of their names, from what is known if that is not
// older than the timeout. fresh makes it ask in any case. The result is the caller's.
func (n *Names) List(ctx context.Context, dir string, fresh bool) ([]Named, error) {
	n.mu.Lock()
	for {
		d := n.dir(dir)
		if !fresh && !d.listed.IsZero() && n.left(d.listed) > 0 {
			out := d.entries()
			n.mu.Unlock()
			return sorted(out), nil
		}
		l := d.listing
		if l == nil || fresh {
			l = &listing{done: make(chan struct{})}
			d.listing = l
			before := n.seq
			n.mu.Unlock()
			names, hidden, at, err := n.fetch(ctx, dir)
			n.mu.Lock()
			if d.listing == l {
				d.listing = nil
			}
			l.err = err
			close(l.done)
			if err != nil {
				n.mu.Unlock()
				return nil, err
			}
			if n.dirs[dir] == d && before >= d.since {
				n.hidden.Add(hidden - d.hidden)
				d.hidden = hidden
			} else {
				// We changed more than single names meanwhile. It is good for the one who asked before that.
				d = &dirNames{names: maps.Clone(n.dir(dir).names)}
			}
			d.merge(names, at, before)
			out := d.entries()
			n.mu.Unlock()
			return sorted(out), nil
		}
		n.mu.Unlock()
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		n.mu.Lock()
		if l.err == nil && n.timeout == 0 {
			// It was begun before we asked, but it is not older than the call that began it; ask ourselves.
			fresh = true
		}
	}
}

// HasOther reports whether the service has anything in a directory but the names given: from what is known if that is not
// older than the timeout, else by a listing of two names more than given, however many there are.
func (n *Names) HasOther(ctx context.Context, dir string, names ...string) (bool, error) {
	n.mu.Lock()
	if d := n.dirs[dir]; d != nil && !d.listed.IsZero() && n.left(d.listed) > 0 {
		defer n.mu.Unlock()
		for other, k := range d.names {
			if k.exists && !k.Pending && !slices.Contains(names, other) {
				return true, nil
			}
		}
		return false, nil
	}
	n.mu.Unlock()
	prefix := dir + "/"
	// Two: the directory's own marker of the other kind, "dir/", and one more.
	o := blob.ListOptions{Prefix: prefix, Delimiter: "/", MaxResults: len(names) + 2}
	for {
		page, err := n.cont.List(ctx, o)
		if err != nil {
			return false, err
		}
		for _, b := range page.Blobs {
			if other := b.Name[len(prefix):]; other != "" && !slices.Contains(names, other) {
				return true, nil
			}
		}
		for _, p := range page.Prefixes {
			if !slices.Contains(names, strings.TrimSuffix(p[len(prefix):], "/")) {
				return true, nil
			}
		}
		if page.Next == "" {
			return false, nil
		}
		o.Marker = page.Next
	}
}

// merge makes a listing that was begun at before the knowledge of a directory. Our own later changes stay, and so do
// later answers: a version that was seen must not be followed by an older one. Names.mu is held.
func (d *dirNames) merge(names map[string]known, at time.Time, before uint64) {
	for name, k := range d.names {
		if k.seq > before || k.Pending || k.at.After(at) {
			names[name] = k
		}
	}
	d.names, d.listed, d.asked = names, at, 0
}

// entries returns what is there, in any order. Names.mu is held.
func (d *dirNames) entries() []Named {
	out := make([]Named, 0, len(d.names))
	for name, k := range d.names {
		if k.exists {
			out = append(out, Named{name, k.Entry})
		}
	}
	return out
}

// sorted sorts entries by the bytes of their names. It is called without the lock, since a directory may be large.
func sorted(entries []Named) []Named {
	slices.SortFunc(entries, func(a, b Named) int { return cmp.Compare(a.Name, b.Name) })
	return entries
}

// fetch lists a directory in the service. It returns how many blobs no path can express, and when it began.
func (n *Names) fetch(ctx context.Context, dir string) (names map[string]known, hidden int64, at time.Time, err error) {
	at = n.now()
	names = map[string]known{}
	prefix := dir + "/"
	if dir == "" {
		prefix = ""
	}
	o := blob.ListOptions{Prefix: prefix, Delimiter: "/"}
	for {
		page, err := n.cont.List(ctx, o)
		if err != nil {
			return nil, 0, at, err
		}
		for _, b := range page.Blobs {
			name := b.Name[len(prefix):]
			if name == "" {
				continue // the directory's own marker of the other kind, "dir/"
			}
			if !Representable(name) {
				hidden++
				continue
			}
			k := names[name]
			marker := IsMarker(&b)
			switch {
			case marker:
				k.Dir, k.Marker, k.Properties = true, true, b
			case k.Dir:
				k.Shadowed = true
			default:
				k.Properties = b
				n.sizes[bits.Len64(uint64(b.Size))].Add(1)
			}
			k.exists, k.at = true, at
			names[name] = k
		}
		for _, p := range page.Prefixes {
			name := strings.TrimSuffix(p[len(prefix):], "/")
			if !Representable(name) {
				hidden++
				continue
			}
			k := names[name]
			if k.exists && !k.Dir {
				k.Shadowed, k.Properties = true, blob.Properties{}
			}
			k.exists, k.Dir, k.at = true, true, at
			names[name] = k
		}
		if page.Next == "" {
			break
		}
		o.Marker = page.Next
	}
	return names, hidden, at, nil
}

// Representable reports whether a path can have a segment: not empty, not "." or "..", at most 255 bytes (NAME_MAX of
// Linux), and without NUL and slash.
func Representable(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "\x00/")
}

// Set tells of a change made here: the path now stands for e.
func (n *Names) Set(p string, e Entry) { n.change(p, known{Entry: e, exists: true}) }

// Remove tells of a change made here: nothing has this path any more, and if it was a directory, it was empty.
func (n *Names) Remove(p string) {
	n.change(p, known{})
	n.mu.Lock()
	n.drop(p)
	n.mu.Unlock()
}

// drop forgets what is known of a directory. Answers that are on their way are not kept. n.mu is held.
func (n *Names) drop(p string) {
	if d := n.dirs[p]; d != nil {
		n.hidden.Add(-d.hidden)
		delete(n.dirs, p)
	}
}

func (n *Names) change(p string, k known) {
	dir, name := split(p)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	k.seq, k.at = n.seq, n.now()
	n.dir(dir).names[name] = k
}

// SetEmpty tells that a directory was made here, so that nothing is in it.
func (n *Names) SetEmpty(dir string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop(dir)
	n.dirs[dir] = &dirNames{names: map[string]known{}, listed: n.now()}
}

// Forget drops what is known of one path, so that it is asked for.
func (n *Names) Forget(p string) {
	dir, name := split(p)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	if d := n.dirs[dir]; d != nil {
		delete(d.names, name)
		d.listed, d.since = time.Time{}, n.seq
	}
}

// ForgetTree drops what is known of everything below a path.
func (n *Names) ForgetTree(p string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	for d := range n.dirs {
		if d == p || strings.HasPrefix(d, p+"/") {
			n.drop(d)
		}
	}
}

// Sizes returns how many blobs of less than limit bytes, a power of two, were in the listings so far, and how many in all.
func (n *Names) Sizes(limit int64) (small, all int64) {
	for i := range n.sizes {
		c := n.sizes[i].Load()
		all += c
		if i < bits.Len64(uint64(limit)) {
			small += c
		}
	}
	return small, all
}

// Hidden returns how many blobs, or prefixes of them, the last listings left out because no path can express their names.
func (n *Names) Hidden() int64 { return n.hidden.Load() }
