package blobcache

import (
	"container/list"
	"context"
	"math/bits"
	"path"
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

// Representable reports whether a path can have a segment: not empty, not "." or "..", at most 255 bytes (NAME_MAX of
// Linux), and without NUL and slash.
func Representable(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "\x00/")
}

// Names is what is known of the names in a container: attributes, listings, and what is not there. Knowledge is used
// for the blob-cache timeout and then asked for again. Paths have no leading slash; the root is "". All methods may be
// called in parallel. A change made here is seen by every call that begins after it, whatever request is under way.
//
// What was listed is kept packed (see packed), within a bound of memory; the directories that were not used for longest
// are forgotten first. Only what the service does not have yet is never forgotten.
type Names struct {
	ctx     context.Context // of requests that several may wait for
	cont    blob.Container
	timeout time.Duration // negative: never ask again
	limit   int64         // bytes of memory
	now     func() time.Time

	hidden atomic.Int64     // blobs that no path can express, as of the last listing of each directory
	sizes  [65]atomic.Int64 // blobs in the listings so far, by the number of bits of their size

	mu  sync.Mutex // guards what is below, and all fields of dirNames, listing and walk that do not say otherwise
	seq uint64     // counts our own changes
	// listings counts the listings, to number them.
	listings uint64
	// lastDrop is seq when all knowledge of a directory was dropped last.
	lastDrop uint64
	dirs     map[string]*dirNames
	recent   *list.List // of *dirNames, the one that was used last at the front
	used     int64      // bytes, as estimated
	walks    []*walk
	// unordered says that the service does not list names in the order of their bytes, so that there can be no walks.
	unordered bool
}

// dirNames is what is known of one directory.
type dirNames struct {
	path    string
	place   *list.Element // in Names.recent
	listing *listing      // nil: never listed
	// over is what is known of single names: our own changes, and answers about one name. It counts where it is newer
	// than the listing.
	over  map[string]known
	asked int // lookups that had to ask the service since the last listing
	// changes counts what may have changed the names that a reader shows, beside the listing.
	changes uint64
	// other is a name that was there when somebody asked whether there is any, see knowsOther.
	other string
}

// known is what is known of one name.
type known struct {
	Entry
	exists bool
	// ask says that nothing is known: the name has to be asked for.
	ask bool
	at  time.Time // when it was true
	seq uint64    // our change that made it so; 0: the service said so
	// stray is the listing in which it came out of order, nil if in none: its parts do not know it.
	stray *listing
}

// Estimates of memory, in bytes.
const (
	dirOverhead  = 700 // a directory with a listing that is empty
	overOverhead = 700 // an entry of over
)

// NewNames returns an empty Names. timeout is the blob-cache timeout; a negative one means for ever, 0 means to ask
// each time. memory bounds what is kept, in bytes. Requests for several callers end with ctx.
func NewNames(ctx context.Context, c blob.Container, timeout time.Duration, memory int64) *Names {
	return &Names{
		ctx: ctx, cont: c, timeout: timeout, limit: memory, now: time.Now,
		dirs: map[string]*dirNames{}, recent: list.New(),
	}
}

// Forever is what the kernel is told for a timeout without end.
const Forever = 365 * 24 * time.Hour

// left returns how long something that was true at a time may still be used, at most 0 if not any more.
func (n *Names) left(at time.Time) time.Duration {
	if n.timeout < 0 {
		return Forever
	}
	return n.timeout - n.now().Sub(at)
}

// split returns the directory and the name in it.
func split(p string) (dir, name string) {
	dir, name = path.Split(p)
	return strings.TrimSuffix(dir, "/"), name
}

// dir returns what is known of a directory, and notes that it was used. n.mu is held.
func (n *Names) dir(p string) *dirNames {
	d := n.dirs[p]
	if d == nil {
		d = &dirNames{path: p, over: map[string]known{}}
		d.place = n.recent.PushFront(d)
		n.dirs[p] = d
		n.grow(dirOverhead + int64(len(p)))
	}
	n.recent.MoveToFront(d.place)
	return d
}

// set stores what is known of a single name. n.mu is held.
func (n *Names) set(d *dirNames, name string, k known) {
	if old, ok := d.find(name); ok && (old.exists != k.exists || old.Dir != k.Dir) || !ok && k.exists {
		d.changes++
	}
	if _, ok := d.over[name]; !ok {
		n.grow(overOverhead + int64(len(name)))
	}
	d.over[name] = k
}

// peek returns what is known, whether anything is, and for how long it may be used. What may not be used any more is
// returned too: it serves to ask conditionally. n.mu is held.
func (n *Names) peek(p string) (k known, ok bool, left time.Duration) {
	dir, name := split(p)
	d := n.dirs[dir]
	if d == nil {
		return known{}, false, 0
	}
	n.recent.MoveToFront(d.place)
	k, covered := d.find(name)
	switch {
	case k.Pending:
		return k, true, max(n.left(n.now()), 0)
	case k.ask || !covered:
		return known{}, false, 0
	}
	if left = n.left(k.at); left > 0 {
		return k, true, left
	}
	return k, false, 0
}

// find returns the newest knowledge of a name in a directory, and whether there is any. Names.mu is held.
func (d *dirNames) find(name string) (known, bool) {
	one, single := d.over[name]
	if single && one.Pending {
		return one, true
	}
	if d.listing != nil {
		if part := d.listing.part(name); part != nil && (!single || d.listing.after(part, one)) {
			e, there := part.find(d.path, name)
			return known{Entry: e, exists: there, at: part.at}, true
		}
	}
	return one, single
}

// after reports whether a part of a listing is newer than what is known of a single name.
func (l *listing) after(p *packed, k known) bool {
	return k.stray != l && k.seq <= p.seq && !k.at.After(p.at)
}

// Lookup returns what a path stands for, and for how long the answer may be used. When there is nothing, the error
// has the code NotFound, and the duration is for how long that may be relied upon.
// An unknown name costs two requests at once, a known one whose time is over costs one conditional request.
func (n *Names) Lookup(ctx context.Context, p string) (Entry, time.Duration, error) {
	n.mu.Lock()
	k, ok, left := n.peek(p)
	if !ok && n.waitListing(ctx, p) {
		k, ok, left = n.peek(p)
	}
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

// noteAsk counts a lookup that has to ask. After several each brings a page of the directory in the background: not more,
// since it may be a directory of millions, of which a program opens four. It returns what is known of the directory.
// n.mu is held.
func (n *Names) noteAsk(p string) *dirNames {
	dir, _ := split(p)
	d := n.dir(dir)
	if d.asked++; d.asked < listAfter || n.timeout == 0 {
		return d
	}
	l := d.listing
	if l != nil && l.cut > 0 && n.left(l.begun) > 0 {
		return d // it does not fit into memory: a listing for lookups would begin again and again
	}
	if l == nil || !n.usable(l) {
		l = n.newListing(d)
		l.lookups = true
	}
	if !l.done && l.walk == nil {
		n.start(l) // a failure is not lost: the lookups ask too, and report theirs
	}
	return d
}

// waitListing waits for the first page of a directory when it is on its way for the sake of lookups: most probably it has
// the name. It reports whether it has waited. n.mu is held, but not meanwhile.
func (n *Names) waitListing(ctx context.Context, p string) bool {
	dir, _ := split(p)
	d := n.dirs[dir]
	if d == nil || d.listing == nil || !d.listing.lookups || d.listing.busy == nil || len(d.listing.parts) > 0 {
		return false
	}
	busy := d.listing.busy
	n.mu.Unlock()
	defer n.mu.Lock()
	return await(ctx, busy) == nil
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
			k.Entry = Entry{Dir: true, Shadowed: true}
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
		if now, ok := cur.over[name]; ok && (now.Pending || now.seq > asked) {
			if now.ask {
				return k, 0
			}
			return now, max(n.left(now.at), 0)
		}
	}
	if cur != d {
		return k, 0
	}
	n.set(d, name, k)
	n.shrink()
	return k, max(n.left(k.at), 0)
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

func (n *Names) change(p string, k known) {
	dir, name := split(p)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	k.seq, k.at = n.seq, n.now()
	n.set(n.dir(dir), name, k)
	n.shrink()
}

// SetEmpty tells that a directory was made here, so that nothing is in it.
func (n *Names) SetEmpty(dir string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	n.drop(dir)
	n.complete(n.newListing(n.dir(dir)), n.now(), n.seq)
}

// Forget drops what is known of one path, so that it is asked for, and so that its directory is listed again.
func (n *Names) Forget(p string) {
	dir, name := split(p)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	d := n.dirs[dir]
	if d == nil {
		n.lastDrop = n.seq
		n.droppedInWalks(dir) // a walk must not bring what is older
		return
	}
	n.set(d, name, known{ask: true, seq: n.seq, at: n.now()})
	if d.listing != nil {
		d.listing.stale = true
	}
}

// ForgetTree drops what is known of everything below a path.
func (n *Names) ForgetTree(p string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq++
	n.lastDrop = n.seq
	for d := range n.dirs {
		if d == p || strings.HasPrefix(d, p+"/") {
			n.drop(d)
		}
	}
	n.droppedInWalks(p)
}

// drop forgets what is known of a directory. Answers that are on their way are not kept. n.mu is held.
func (n *Names) drop(p string) {
	n.lastDrop = n.seq
	n.droppedInWalks(p)
	if d := n.dirs[p]; d != nil {
		n.detach(d)
	}
}

// detach takes away what is known of a directory. Who reads the listing goes on reading it. n.mu is held.
func (n *Names) detach(d *dirNames) {
	delete(n.dirs, d.path)
	n.recent.Remove(d.place)
	n.used -= d.size()
	if d.listing != nil {
		d.listing.kept = false
		n.hidden.Add(-d.listing.hidden)
	}
}

// size estimates the memory of what is known of a directory. Names.mu is held.
func (d *dirNames) size() int64 {
	s := dirOverhead + int64(len(d.path)) + d.overSize()
	if d.listing != nil {
		s += d.listing.bytes
	}
	return s
}

func (d *dirNames) overSize() int64 {
	var s int64
	for name := range d.over {
		s += overOverhead + int64(len(name))
	}
	return s
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
