package blobcache

import (
	"context"
	"slices"
	"sort"

	"blobmount/blobcache/blob"
)

// Reader reads a directory from its beginning. One goroutine at a time may use it.
type Reader struct {
	n    *Names
	d    *dirNames
	l    *listing
	tail []Named // what is there and not in the listing; nil before it is needed
	// shift is what makes a position of an index in the listing: it is not 0 when the listing took the place of another.
	shift int
	// shown is the position behind the entry that was shown last, and name its name.
	shown int
	name  string
	// own are the names that the listings before this one lacked, and that were not shown yet: in this one they may come
	// before the reader's place.
	own map[string]ownName
	// stamp is the state of the directory when the reader began.
	stamp Stamp
	// resume is the name behind which to go on in a listing that has just taken the place of another; empty: none has.
	resume string
}

// ownName is what a name stands for, as far as a listing shows it.
type ownName struct {
	dir      bool
	metadata map[string]string
}

// Stamp names a state of a directory: as long as it is the same, so are the entries and their positions. The zero Stamp
// is that of no state.
type Stamp struct {
	listing, changes uint64
}

// Stamp returns the state of a directory whose listing a reader that begins now would use, without asking: the zero
// Stamp if there is none.
func (n *Names) Stamp(dir string) Stamp {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.dirs[dir]; d != nil && d.listing != nil && n.usable(d.listing) {
		return Stamp{d.listing.number, d.changes}
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
	return &Reader{n: n, d: d, l: d.listing, stamp: Stamp{d.listing.number, d.changes}}, nil
}

// Stamp returns the state of the directory when the reader began: what was learned since may not be shown.
func (r *Reader) Stamp() Stamp { return r.stamp }

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
			r.shown, r.name = pos, entries[i].Name
			delete(r.own, r.name)
		}
		switch {
		case len(entries) > 0:
		case !more:
			return nil
		default:
			if err := r.advance(ctx, pos, &walked); err != nil {
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
	if r.resume != "" {
		i, ok := l.behind(r.resume)
		if !ok {
			return entries, next, !l.done
		}
		r.shift, r.resume = pos-i, ""
	}
	at := max(pos-r.shift, 0) // the index of the next entry
	for len(entries) < batch && at < l.count {
		i := sort.SearchInts(l.first, at+1) - 1
		p := l.parts[i]
		if p == nil {
			// It was given up. The same entries come again by a listing of this reader's own.
			r.replace(r.n.private(l.dir), pos)
			return entries, next, true
		}
		for j := at - l.first[i]; j < p.len() && len(entries) < batch; j++ {
			at++
			e := p.entry(l.dir, j)
			if one, ok := r.d.over[e.Name]; ok && !one.ask && (one.Pending || !l.after(p, one)) {
				if !one.exists {
					continue
				}
				e.Entry = one.Entry
			}
			entries, next = append(entries, e), append(next, at+r.shift)
		}
	}
	switch {
	case !l.done && len(entries) > 0 && at >= l.nextAt() && l.walk == nil:
		r.n.start(l) // the kernel has work for a part of what the next page takes
	case l.done && len(entries) == 0:
		if r.tail == nil {
			r.tail = r.others()
		}
		for i := at - l.count; i < len(r.tail) && len(entries) < batch; i++ {
			entries, next = append(entries, r.tail[i]), append(next, l.count+i+1+r.shift)
		}
	}
	return entries, next, !l.done
}

// replace goes on in another listing of the directory, behind the entry that was shown last: the names that are gone by now
// have moved all indexes. A reader that has jumped elsewhere can only take its position for an index. Names.mu is held.
func (r *Reader) replace(l *listing, pos int) {
	for name, k := range r.d.over {
		if !k.exists || !r.l.lacks(name) {
			continue
		}
		if r.own == nil {
			r.own = map[string]ownName{}
		}
		r.own[name] = ownName{k.Dir, k.Properties.Metadata}
	}
	r.l = l
	if pos > 0 && pos == r.shown {
		r.resume = r.name
	}
}

// others returns what is there beside a complete listing, sorted. Names.mu is held.
func (r *Reader) others() []Named {
	out := []Named{}
	d, l := r.d, r.l
	for name, own := range r.own {
		k, known := d.find(name)
		switch {
		case !known: // it was there, and what was known of it was given up since
			out = append(out, Named{name, Entry{Dir: own.dir, Properties: blob.Properties{Metadata: own.metadata}}})
		case k.exists:
			out = append(out, Named{name, k.Entry})
		}
	}
	for name, k := range d.over {
		if _, own := r.own[name]; own || !k.exists {
			continue
		}
		if p := l.part(name); p != nil {
			if _, there := p.find(l.dir, name); there || !k.Pending && l.after(p, k) {
				continue // it was shown, or is gone
			}
		} else if !l.lacks(name) && (!k.Pending || k.Properties.ETag != "") {
			continue // it may have been shown
		}
		out = append(out, Named{name, k.Entry})
	}
	slices.SortFunc(out, func(a, b Named) int { return compareNames(a.Name, b.Name) })
	return out
}

// advance brings more of the listing. walked counts the requests of a walk that were made for this reader alone; when they
// are too many the directory is listed by itself.
func (r *Reader) advance(ctx context.Context, pos int, walked *int) error {
	r.n.mu.Lock()
	if w := r.l.walk; w != nil && !r.l.done && (w.dead || !w.worth(*walked)) {
		switch d := r.n.dirs[r.d.path]; {
		case d != r.d:
			r.replace(r.n.private(r.l.dir), pos)
		case d.listing != nil && d.listing != r.l && r.n.usable(d.listing):
			r.replace(d.listing, pos) // another reader was here before
		default:
			r.replace(r.n.newListing(d), pos)
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
