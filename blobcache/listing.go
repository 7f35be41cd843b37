package blobcache

import (
	"context"
	"math/bits"
	"slices"
	"sort"
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// listing is one reading of a directory in the service, page by page, as far as somebody wanted to know. It only grows:
// an entry keeps its position. Names.mu guards it.
type listing struct {
	dir     string
	parts   []*packed // the first cut of them are nil: they were given up for want of memory
	cut     int
	low     string    // the bound of the last part that was given up
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

// newListing begins to list a directory. n.mu is held.
func (n *Names) newListing(d *dirNames) *listing {
	n.unlist(d)
	d.listing = &listing{dir: d.path, begun: n.now(), kept: true}
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

// usable reports whether a reader that begins now may use a listing. n.mu is held.
func (n *Names) usable(l *listing) bool {
	return n.timeout != 0 && !l.stale && l.cut == 0 && n.left(l.begun) > 0 && (l.walk == nil || l.done || !l.walk.dead)
}

// part returns the part that knows whether a name is there, nil if none does. Names.mu is held.
func (l *listing) part(name string) *packed {
	if l.cut > 0 && within(name, l.low) {
		return nil
	}
	parts := l.parts[l.cut:]
	i := sort.Search(len(parts), func(i int) bool {
		return within(name, parts[i].bound) || i == len(parts)-1 && l.done
	})
	if i == len(parts) {
		return nil
	}
	return parts[i]
}

// trim gives up the oldest part, but not the last two, and returns its size, or 0. Names.mu is held.
func (l *listing) trim() int64 {
	if len(l.parts)-l.cut <= 2 {
		return 0
	}
	p := l.parts[l.cut]
	l.low, l.parts[l.cut] = p.bound, nil
	l.cut++
	l.bytes -= p.size()
	return p.size()
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
	select {
	case <-busy:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return l.done, l.err
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

// Reader reads a directory from its beginning. One goroutine at a time may use it.
type Reader struct {
	n    *Names
	d    *dirNames
	l    *listing
	tail []Named // what is there and not in the listing; nil before it is needed
}

// Stamp names a state of a directory: as long as it is the same, so are the entries and their positions. The zero Stamp
// is that of no state.
type Stamp struct {
	l       *listing
	changes uint64
}

// Stamp returns the state of a directory whose listing a reader that begins now would use, without asking: the zero
// Stamp if there is none.
func (n *Names) Stamp(dir string) Stamp {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.dirs[dir]; d != nil && d.listing != nil && n.usable(d.listing) {
		return Stamp{d.listing, d.changes}
	}
	return Stamp{}
}

// Open begins to read a directory, from what is known if that is not older than the timeout.
func (n *Names) Open(ctx context.Context, dir string) (*Reader, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open(ctx, dir)
}

// open is Open with n.mu held, but not while it waits.
func (n *Names) open(ctx context.Context, dir string) (*Reader, error) {
	d := n.dir(dir)
	if d.listing == nil || !n.usable(d.listing) {
		n.visited(d)
		if err := n.fromWalk(ctx, dir); err != nil {
			return nil, err
		}
		d = n.dir(dir)
	}
	if d.listing == nil || !n.usable(d.listing) {
		n.newListing(d)
	}
	return &Reader{n: n, d: d, l: d.listing}, nil
}

// Stamp returns the state of the directory that the reader shows.
func (r *Reader) Stamp() Stamp {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	return Stamp{r.l, r.d.changes}
}

// batch is how many entries are copied out at once: about what fits into one answer to the kernel.
const batch = 64

// Read calls yield with the entries from a position on, and the position after each, until it returns false or there are
// no more. 0 is the first position; others are those that were given to yield before. Entries come in the order of their
// names with a slash behind, then those that were made meanwhile.
func (r *Reader) Read(ctx context.Context, pos int, yield func(e Named, next int) bool) error {
	entries := make([]Named, 0, batch)
	for walked := 0; ; {
		entries, next, more := r.copy(entries[:0], pos)
		for i := range entries {
			if !yield(entries[i], next[i]) {
				return nil
			}
			pos = next[i]
		}
		switch {
		case len(entries) > 0:
		case !more:
			return nil
		default:
			if err := r.advance(ctx, &walked); err != nil {
				return err
			}
		}
	}
}

// copy returns entries from a position on, each with the position after it. Without any, more says whether the service has
// to be asked for them.
func (r *Reader) copy(entries []Named, pos int) (_ []Named, next []int, more bool) {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	l := r.l
	for len(entries) < batch && pos < l.count {
		i := sort.SearchInts(l.first, pos+1) - 1
		p := l.parts[i]
		if p == nil {
			// It was given up. The same entries come again by a listing of this reader's own.
			r.l = &listing{dir: l.dir, begun: r.n.now()}
			return entries, next, true
		}
		for j := pos - l.first[i]; j < p.len() && len(entries) < batch; j++ {
			pos++
			e := p.entry(l.dir, j)
			if one, ok := r.d.over[e.Name]; ok && !one.ask && (one.Pending || !l.after(p, one)) {
				if !one.exists {
					continue
				}
				e.Entry = one.Entry
			}
			entries, next = append(entries, e), append(next, pos)
		}
	}
	switch {
	case !l.done && len(entries) > 0 && pos >= l.count && l.walk == nil:
		r.n.start(l) // the kernel has work for as long as the next page takes
	case l.done && len(entries) == 0:
		if r.tail == nil {
			r.tail = r.d.others(l)
		}
		for i := pos - l.count; i < len(r.tail) && len(entries) < batch; i++ {
			entries, next = append(entries, r.tail[i]), append(next, l.count+i+1)
		}
	}
	return entries, next, !l.done
}

// others returns what is there beside a complete listing, sorted. Names.mu is held.
func (d *dirNames) others(l *listing) []Named {
	out := []Named{}
	for name, k := range d.over {
		if !k.exists {
			continue
		}
		if p := l.part(name); p != nil {
			if _, there := p.find(l.dir, name); there || !k.Pending && l.after(p, k) {
				continue // it was shown, or is gone
			}
		} else if !k.Pending || k.Properties.ETag != "" {
			continue // it may have been shown
		}
		out = append(out, Named{name, k.Entry})
	}
	slices.SortFunc(out, func(a, b Named) int { return compareNames(a.Name, b.Name) })
	return out
}

// advance brings more of the listing. walked counts the requests of a walk that were made for this reader alone; when they
// are too many the directory is listed by itself.
func (r *Reader) advance(ctx context.Context, walked *int) error {
	r.n.mu.Lock()
	if w := r.l.walk; w != nil && !r.l.done && (w.dead || !w.worth(*walked)) {
		if r.n.dirs[r.d.path] == r.d {
			r.l = r.n.newListing(r.d)
		} else {
			r.l = &listing{dir: r.l.dir, begun: r.n.now()}
		}
	}
	r.n.mu.Unlock()
	*walked++
	_, err := r.n.more(ctx, r.l)
	return err
}

// List returns all entries of a directory, as a Reader does. fresh makes it ask in any case.
func (n *Names) List(ctx context.Context, dir string, fresh bool) ([]Named, error) {
	var r *Reader
	var err error
	n.mu.Lock()
	if fresh {
		d := n.dir(dir)
		r = &Reader{n: n, d: d, l: n.newListing(d)}
	} else {
		r, err = n.open(ctx, dir)
	}
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var out []Named
	err = r.Read(ctx, 0, func(e Named, _ int) bool {
		out = append(out, e)
		return true
	})
	return out, err
}

// HasOther reports whether the service has anything in a directory but the names given: from what is known if that is not
// older than the timeout, else by a listing of two names more than given, however many there are.
func (n *Names) HasOther(ctx context.Context, dir string, names ...string) (bool, error) {
	if has, known := n.knowsOther(dir, names); known {
		return has, nil
	}
	return n.askOther(ctx, dir, names)
}

// IsEmpty asks the service whether it has anything in a directory. What only this mount has counts too.
func (n *Names) IsEmpty(ctx context.Context, dir string) (bool, error) {
	n.mu.Lock()
	if d := n.dirs[dir]; d != nil {
		for _, k := range d.over {
			if k.exists && k.Pending {
				n.mu.Unlock()
				return false, nil
			}
		}
	}
	n.mu.Unlock()
	other, err := n.askOther(ctx, dir, nil)
	return !other, err
}

// askOther is HasOther by a request.
func (n *Names) askOther(ctx context.Context, dir string, names []string) (bool, error) {
	prefix := below(dir)
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

// knowsOther is HasOther without asking. known is false when it cannot tell.
func (n *Names) knowsOther(dir string, names []string) (has, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dirs[dir]
	if d == nil || d.listing == nil || !d.listing.done || !n.usable(d.listing) {
		return false, false
	}
	for other, k := range d.over {
		if k.exists && !k.Pending && !slices.Contains(names, other) {
			return true, true
		}
	}
	for _, p := range d.listing.parts {
		for i := range p.len() {
			other := string(p.name(i))
			if slices.Contains(names, other) {
				continue
			}
			if k, _ := d.find(other); k.exists && !k.Pending {
				return true, true
			}
		}
	}
	return false, true
}
