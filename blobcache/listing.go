package blobcache

import (
	"context"
	"math/bits"
	"sort"
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// listing is one reading of a directory in the service, page by page, as far as somebody wanted to know. It only grows:
// an entry keeps its position. Names.mu guards it.
type listing struct {
	number uint64 // counted up
	dir    string
	parts  []*packed // the first cut of them are nil: they were given up for want of memory
	cut    int
	low    string    // the bound of the last part that was given up
	of     *dirNames // whose listing it is or was; nil if it is one reader's own
	// beside are the names that were known to be there when the parts were given up that would have had them, and had not:
	// nobody could tell else whether they were shown. Made when needed.
	beside  map[string]struct{}
	first   []int     // the position of each part's first entry
	count   int       // entries in all parts
	begun   time.Time // when the first page was asked for
	done    bool      // there is nothing beyond the last part
	stale   bool      // a name was forgotten: the next reader lists again
	kept    bool      // it is that of a dirNames in Names.dirs, so its bytes count
	bytes   int64     // of memory
	hidden  int64     // blobs that no path can express
	lookups bool      // it was begun for the sake of lookups
	strayed bool      // some of it came out of order
	// visited is how many directories below this one were listed one by one since visitedAt, and walked says that a walk was
	// made for them, see walk.
	visited   int
	visitedAt time.Time
	walked    bool
	walk      *walk // who brings the entries; nil: requests for this directory alone

	// Who has set busy uses these without the lock, until busy is closed.
	fold   fold
	marker string
	waits  *request // of the oldest that waits in fold; nil: nothing does

	busy chan struct{} // closed when the request under way has ended; nil: there is none
	err  error         // of the last request
}

// request is a request for a page.
type request struct {
	at  time.Time // when it was made
	seq uint64    // our changes up to this one are in the answer
}

// unlist forgets the listing of a directory. Who reads it goes on reading it. n.mu is held.
func (n *Names) unlist(d *dirNames) {
	if old := d.listing; old != nil {
		n.used -= old.bytes
		n.hidden.Add(-old.hidden)
		old.kept = false
		d.listing = nil
	}
}

// private begins a listing that nobody else will use. n.mu is held.
func (n *Names) private(dir string) *listing {
	n.listings++
	return &listing{number: n.listings, dir: dir, begun: n.now()}
}

// newListing begins to list a directory. n.mu is held.
func (n *Names) newListing(d *dirNames) *listing {
	n.unlist(d)
	d.listing = n.private(d.path)
	d.listing.of, d.listing.kept = d, true
	d.asked = 0
	return d.listing
}

// complete makes a listing complete as it is, true at a time. n.mu is held.
func (n *Names) complete(l *listing, at time.Time, seq uint64) {
	if len(l.parts) == 0 {
		n.addPart(l, &packed{at: at, seq: seq})
	}
	l.done = true
}

// addPart adds a part. Of a listing that is not kept only the end stays. n.mu is held.
func (n *Names) addPart(l *listing, p *packed) {
	l.parts = append(l.parts, p)
	l.first = append(l.first, l.count)
	l.count += p.len()
	l.bytes += p.size()
	if l.kept {
		n.grow(p.size())
		return
	}
	for l.trim() > 0 {
	}
}

// nextAt returns the position from which on a reader makes the next page be asked for: half of the first page, since many
// want only a few names, and then the beginning of the last. Names.mu is held.
func (l *listing) nextAt() int {
	if len(l.first) == 1 {
		return l.count / 2
	}
	return l.first[len(l.first)-1]
}

// usable reports whether a reader that begins now may use a listing. n.mu is held.
func (n *Names) usable(l *listing) bool {
	return n.timeout != 0 && !l.stale && l.cut == 0 && n.left(l.begun) > 0 && (l.walk == nil || l.done || !l.walk.dead)
}

// part returns the part that knows whether a name is there, nil if none does. Names.mu is held.
func (l *listing) part(name string) *packed {
	if i := l.partIndex(name); i < len(l.parts) {
		return l.parts[i]
	}
	return nil
}

// partIndex returns the index of the part that knows whether a name is there, which is nil if it was given up;
// len(l.parts) if none does. Names.mu is held.
func (l *listing) partIndex(name string) int {
	if l.cut > 0 && within(name, l.low) {
		return 0
	}
	return l.cut + sort.Search(len(l.parts)-l.cut, func(i int) bool {
		i += l.cut
		return within(name, l.parts[i].bound) || i == len(l.parts)-1 && l.done
	})
}

// behind returns the index of the first entry behind a name; false when it is not known yet. Names.mu is held.
func (l *listing) behind(name string) (int, bool) {
	i := l.partIndex(name)
	switch {
	case i == len(l.parts):
		return 0, false
	case l.parts[i] == nil:
		return l.first[l.cut], true // what was given up is behind the reader, or it would not have been
	}
	p := l.parts[i]
	return l.first[i] + sort.Search(p.len(), func(j int) bool { return compareNames(string(p.name(j)), name) > 0 }), true
}

// trim gives up the oldest part, but not the last two, and returns its size, or 0. Names.mu is held.
func (l *listing) trim() int64 {
	if len(l.parts)-l.cut <= 2 {
		return 0
	}
	p := l.parts[l.cut]
	l.noteBeside(p)
	l.low, l.parts[l.cut] = p.bound, nil
	l.cut++
	l.bytes -= p.size()
	return p.size()
}

// noteBeside notes the names that are there, and not in a part that would have them and is about to be given up: the first
// of those that are left. Names.mu is held.
func (l *listing) noteBeside(p *packed) {
	if l.of == nil {
		return
	}
	for name, k := range l.of.over {
		if !k.exists || !within(name, p.bound) || l.cut > 0 && within(name, l.low) {
			continue
		}
		if _, there := p.find(l.dir, name); there {
			continue
		}
		if l.beside == nil {
			l.beside = map[string]struct{}{}
		}
		l.beside[name] = struct{}{}
	}
}

// lacks reports whether a name that is there would have been in the listing so far, and was not. Names.mu is held.
func (l *listing) lacks(name string) bool {
	i := l.partIndex(name)
	if i < len(l.parts) && l.parts[i] != nil {
		_, there := l.parts[i].find(l.dir, name)
		return !there
	}
	_, beside := l.beside[name]
	return beside
}

// more brings the next page, or waits for it if it is on its way. It reports whether the listing is complete.
func (n *Names) more(ctx context.Context, l *listing) (done bool, err error) {
	n.mu.Lock()
	if l.done {
		n.mu.Unlock()
		return true, nil
	}
	if w := l.walk; w != nil {
		n.mu.Unlock()
		err := n.step(ctx, w)
		n.mu.Lock()
		defer n.mu.Unlock()
		return l.done, err
	}
	busy := n.start(l)
	n.mu.Unlock()
	if err := await(ctx, busy); err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return l.done, l.err
}

// await waits for the end of a request, or of the caller.
func await(ctx context.Context, busy <-chan struct{}) error {
	select {
	case <-busy:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start asks for the next page of an incomplete listing, unless that is being done. The request does not end with the one
// who caused it, since others may wait for it. n.mu is held.
func (n *Names) start(l *listing) (busy chan struct{}) {
	if l.busy == nil {
		l.busy = make(chan struct{})
		go n.fetch(l, request{n.now(), n.seq})
	}
	return l.busy
}

// fetch gets a page of a listing.
func (n *Names) fetch(l *listing, req request) {
	page, err := n.cont.List(n.ctx, blob.ListOptions{Prefix: below(l.dir), Delimiter: "/", Marker: l.marker})
	var t taker
	var part *packed
	if err == nil {
		part = t.page(l, page, req)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l.err = err
	if err == nil {
		l.marker = page.Next
		n.took(l, part, &t)
		if page.Next == "" {
			n.finish(l, req)
		}
	}
	close(l.busy)
	l.busy = nil
	n.shrink()
}

// below returns the prefix of the names in a directory.
func below(dir string) string {
	if dir == "" {
		return ""
	}
	return dir + "/"
}

// taker packs what the service lists in one directory.
type taker struct {
	packer
	hidden int64
	strays []stray  // what came out of order
	empty  []string // directories that have nothing in them
	sizes  [65]int64
}

// stray is a blob or prefix that did not come in the order of its bytes. The REST pages promise alphabetical order, and
// do not say of what; so it must be right all the same.
type stray struct {
	name   string
	prefix bool
	props  blob.Properties
}

// page packs a page of a listing by directories. l's request is under way.
func (t *taker) page(l *listing, page blob.Page, req request) *packed {
	cut := len(below(l.dir))
	blobs, prefixes := page.Blobs, page.Prefixes
	for len(blobs)+len(prefixes) > 0 {
		if len(prefixes) == 0 || len(blobs) > 0 && blobs[0].Name < prefixes[0] {
			t.blob(l, blobs[0].Name[cut:], blobs[0])
			blobs = blobs[1:]
		} else {
			t.prefix(l, strings.TrimSuffix(prefixes[0][cut:], "/"))
			prefixes = prefixes[1:]
		}
	}
	if page.Next == "" {
		l.fold.end(t.alone)
	}
	return t.part(l, req)
}

// part returns what was taken for a listing.
func (t *taker) part(l *listing, req request) *packed {
	oldest := req
	if l.waits != nil {
		oldest = *l.waits // entries that have waited are of that time
	}
	switch {
	case len(l.fold.waiting) == 0:
		l.waits = nil
	case l.waits == nil:
		l.waits = &req
	}
	return t.done(l.fold.key, oldest.at, oldest.seq)
}

// alone takes a blob of whose name there is no prefix. If it marks a directory, nothing is in that.
func (t *taker) alone(e Named) {
	t.add(e)
	if e.Dir {
		t.empty = append(t.empty, e.Name)
	}
}

func (t *taker) blob(l *listing, name string, p blob.Properties) {
	switch {
	case name == "":
		// the directory's own marker of the other kind, "dir/"
	case !Representable(name):
		t.hidden++
	default:
		if !l.fold.blob(name, p, t.alone) {
			t.strays = append(t.strays, stray{name, false, p})
		}
		t.sizes[bits.Len64(uint64(p.Size))]++
	}
}

func (t *taker) prefix(l *listing, name string) {
	switch {
	case !Representable(name):
		t.hidden++
	default:
		if !l.fold.prefix(name, t.add, t.alone) {
			t.strays = append(t.strays, stray{name: name, prefix: true})
		}
	}
}

// took adds to a listing what was taken of it. n.mu is held.
func (n *Names) took(l *listing, p *packed, t *taker) {
	n.addPart(l, p)
	l.hidden += t.hidden
	if l.kept {
		n.hidden.Add(t.hidden)
	}
	for i, c := range t.sizes {
		if c > 0 {
			n.sizes[i].Add(c)
		}
	}
	d := n.dirs[l.dir]
	if d == nil || d.listing != l {
		return
	}
	if l.strayed {
		for name, k := range d.over {
			if e, there := p.find(l.dir, name); k.stray == l && there && e.Dir {
				k.Entry = withPrefix(k.Entry)
				d.over[name] = k
			}
		}
	}
	for _, s := range t.strays {
		l.strayed = true
		n.addStray(d, s, p)
	}
	if p.seq < n.lastDrop || len(t.strays) > 0 {
		return // one of the directories may have been made another since
	}
	for _, name := range t.empty {
		if e := n.dir(join(l.dir, name)); e.listing == nil || !n.usable(e.listing) {
			n.complete(n.newListing(e), p.at, p.seq)
		}
	}
}

// addStray stores what came out of order as the knowledge of a single name. n.mu is held.
func (n *Names) addStray(d *dirNames, s stray, p *packed) {
	k, known := d.find(s.name)
	if known && (k.Pending || k.seq > p.seq) {
		return
	}
	switch {
	case s.prefix && k.exists:
		k.Entry = withPrefix(k.Entry)
	case s.prefix:
		k.Entry = Entry{Dir: true}
	case k.exists && k.Dir && !IsMarker(&s.props):
		k.Entry = Entry{Dir: true, Shadowed: true}
	default:
		k.Entry = Entry{Properties: s.props, Dir: IsMarker(&s.props), Marker: IsMarker(&s.props)}
	}
	k.exists, k.at, k.seq, k.stray = true, p.at, p.seq, d.listing
	n.set(d, s.name, k)
}

// finish makes a listing complete, and drops the knowledge of single names that is older. n.mu is held.
func (n *Names) finish(l *listing, req request) {
	n.complete(l, req.at, req.seq)
	d := n.dirs[l.dir]
	if d == nil || d.listing != l {
		return
	}
	for name, k := range d.over {
		if k.Pending {
			continue
		}
		if p := l.part(name); p != nil && l.after(p, k) {
			delete(d.over, name)
			n.used -= overOverhead + int64(len(name))
		}
	}
}
