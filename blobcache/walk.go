package blobcache

import (
	"context"
	"slices"
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// A program that walks through a tree (find, du, rsync, os.walk) lists one directory after the other: a request for each,
// however few names it has. When several directories of one directory were listed, the tree below that is listed flat
// instead: 5,000 names a request, whatever the directories.

// walk is a flat listing of all names below a directory, as far as somebody wanted to know. It fills the listings of the
// directories that it comes through. Names.mu guards it.
type walk struct {
	root  string // the directory; its own entries are known
	pages int    // how many were listed
	// passed counts the directories directly below root that are complete.
	passed int
	served bool // a directory was listed by it
	missed int  // directories in a row that it did not reach in time
	done   bool // nothing is left
	dead   bool // nobody goes on with it

	// Who has set busy uses these without the lock, until busy is closed.
	marker string
	open   []*opening // the directories that the walk is in, the outermost first
	key    string     // the last name, relative to root

	busy chan struct{} // closed when the request under way has ended; nil: there is none
	err  error         // of the last request
	// dropped are the directories of which knowledge was dropped since the request was made: it may be from before that.
	dropped []string
}

// opening is a directory that a walk is in.
type opening struct {
	listing *listing // nil for the walk's root
	taker   taker
}

const (
	// walkAfter is how many directories below one are listed one by one, within walkWindow, before a walk is recognised.
	// Somebody who looks around takes longer for that than a program.
	walkAfter  = 4
	walkWindow = 5 * time.Second
	// firstPages and nextPages are how many requests are made for the sake of one directory: before a walk has served any,
	// and then. One that covers four directories with a request costs less than it saves, and may make cheapPages: more
	// would let one lookup wait for a directory of millions that comes before.
	firstPages = 3
	nextPages  = 8
	cheapPages = 32
	// maxWalks bounds the walks that may go on.
	maxWalks = 4
)

// worth reports whether a walk should go on after so many requests for one directory. Names.mu is held.
func (w *walk) worth(requests int) bool {
	switch {
	case w.cheap():
		return requests < cheapPages
	case w.served:
		return requests < nextPages
	default:
		return requests < firstPages
	}
}

// cheap reports whether a walk saves more requests than it makes. Names.mu is held.
func (w *walk) cheap() bool { return 4*w.pages <= w.passed }

// covers reports whether a walk comes through a directory.
func (w *walk) covers(dir string) bool {
	return dir != w.root && (w.root == "" || strings.HasPrefix(dir, w.root+"/"))
}

// visited notes that a directory is about to be listed, and begins a walk of the highest directory below which there were
// several of late. Only those count that were listed themselves: find lists a directory before what is in it. n.mu is held.
func (n *Names) visited(d *dirNames) {
	if n.timeout == 0 || n.unordered {
		return
	}
	now := n.now()
	var root *dirNames
	for p := d.path; p != ""; {
		p, _ = split(p)
		up := n.dirs[p]
		if up == nil || up.listing == nil {
			break
		}
		l := up.listing
		if l.visited == 0 || now.Sub(l.visitedAt) > walkWindow {
			l.visited, l.visitedAt = 0, now
		}
		if l.visited++; l.visited >= walkAfter && !l.walked {
			root = up
		}
	}
	if root == nil || slices.ContainsFunc(n.walks, func(w *walk) bool { return w.covers(d.path) }) {
		return
	}
	if len(n.walks) == maxWalks {
		n.end(n.walks[0])
	}
	root.listing.walked = true
	n.walks = append(n.walks, &walk{root: root.path, open: []*opening{{}}})
}

// end gives up a walk. n.mu is held.
func (n *Names) end(w *walk) {
	w.dead = true
	n.walks = slices.DeleteFunc(n.walks, func(x *walk) bool { return x == w })
}

// fromWalk lets a walk that comes through a directory bring its listing, if that costs less than to list it. n.mu is held,
// but not while it waits.
func (n *Names) fromWalk(ctx context.Context, dir string) error {
	var w *walk
	for _, x := range n.walks {
		if x.covers(dir) && (w == nil || len(x.root) > len(w.root)) {
			w = x
		}
	}
	if w == nil {
		return nil
	}
	for requests := 0; ; requests++ {
		if d := n.dirs[dir]; d != nil && d.listing != nil && n.usable(d.listing) {
			w.missed, w.served = 0, true
			n.ahead(w)
			return nil
		}
		if w.dead || w.done || w.busy == nil && w.behind(dir) {
			return nil
		}
		if !w.worth(requests) {
			break
		}
		n.mu.Unlock()
		err := n.step(ctx, w)
		n.mu.Lock()
		if err != nil {
			return err
		}
	}
	if w.cheap() {
		return nil // the next directory may find it further on
	}
	if w.missed++; w.missed == 2 {
		n.end(w)
	}
	return nil
}

// behind reports whether a walk has come past a directory. No request is under way.
func (w *walk) behind(dir string) bool {
	rel := strings.TrimPrefix(dir, below(w.root)) + "/"
	return w.key > rel && !strings.HasPrefix(w.key, rel)
}

// ahead gets the next page of a walk before it is asked for, when what it has is being used up. n.mu is held.
func (n *Names) ahead(w *walk) {
	if !w.done && !w.dead && w.busy == nil {
		n.startWalk(w)
	}
}

// step gets the next page of a walk, or waits for it if it is on its way.
func (n *Names) step(ctx context.Context, w *walk) error {
	n.mu.Lock()
	if w.done || w.dead {
		n.mu.Unlock()
		return nil
	}
	busy := w.busy
	if busy == nil {
		busy = n.startWalk(w)
	}
	n.mu.Unlock()
	if err := await(ctx, busy); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return w.err
}

// startWalk asks for the next page. n.mu is held.
func (n *Names) startWalk(w *walk) chan struct{} {
	w.busy, w.dropped = make(chan struct{}), nil
	go n.fetchWalk(w, request{n.now(), n.seq})
	return w.busy
}

// fetchWalk gets a page of a walk.
func (n *Names) fetchWalk(w *walk, req request) {
	page, err := n.cont.List(n.ctx, blob.ListOptions{Prefix: below(w.root), Marker: w.marker})
	var got harvest
	if err == nil {
		got = w.take(page, req)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w.err = err
	if err == nil && got.disorder {
		n.unordered = true
		n.forgetWalk(w)
	} else if err == nil {
		w.pages++
		w.passed += got.passed
		w.marker = page.Next
		n.reap(w, got, req)
		if page.Next == "" {
			w.done = true
			n.end(w)
		}
	}
	close(w.busy)
	w.busy = nil
	n.shrink()
}

// harvest is what a page of a walk brought, in the order in which it has to be stored.
type harvest struct {
	parts  []grown
	passed int // directories directly below the root that are complete
	// disorder: the names did not come in the order of their bytes, so that a directory may come again after its end.
	disorder bool
}

// grown is a listing with its next part.
type grown struct {
	listing *listing
	begun   bool // it is new
	ended   bool
	part    *packed
	taker   taker
}

// take sorts the names of a page into directories.
func (w *walk) take(page blob.Page, req request) harvest {
	var h harvest
	began := map[*listing]bool{}
	grow := func(o *opening, ended bool) {
		if o.listing == nil {
			return
		}
		if ended {
			o.listing.fold.end(o.taker.alone)
		}
		g := grown{listing: o.listing, begun: began[o.listing], ended: ended, part: o.taker.part(o.listing, req)}
		g.taker = taker{hidden: o.taker.hidden, strays: o.taker.strays, empty: o.taker.empty, sizes: o.taker.sizes}
		o.taker = taker{packer: o.taker.packer}
		h.parts = append(h.parts, g)
	}
	leave := func(depth int) {
		for len(w.open) > depth {
			last := len(w.open) - 1
			grow(w.open[last], true)
			if last == 1 {
				h.passed++
			}
			w.open = w.open[:last]
		}
	}
	cut := len(below(w.root))
	var dirs []string // names of the directories that the walk is in, without the root
	for _, o := range w.open[1:] {
		_, name := split(o.listing.dir)
		dirs = append(dirs, name)
	}
	for _, b := range page.Blobs {
		rest := b.Name[cut:]
		if rest <= w.key {
			return harvest{disorder: true}
		}
		w.key = rest
		depth := 0
		for {
			name, after, more := strings.Cut(rest, "/")
			if !more {
				break
			}
			if depth < len(dirs) && dirs[depth] == name {
				depth, rest = depth+1, after
				continue
			}
			leave(depth + 1)
			dirs = dirs[:depth]
			if !Representable(name) {
				break
			}
			up := w.open[depth]
			l := &listing{begun: req.at, walk: w} // reap gives it its number
			if up.listing == nil {
				l.dir = join(w.root, name)
			} else {
				up.taker.prefix(up.listing, name)
				l.dir = join(up.listing.dir, name)
			}
			began[l] = true
			w.open, dirs = append(w.open, &opening{listing: l}), append(dirs, name)
			depth, rest = depth+1, after
		}
		leave(depth + 1)
		dirs = dirs[:depth]
		o := w.open[depth]
		if o.listing == nil {
			continue // the root is listed by itself
		}
		if strings.Contains(rest, "/") {
			o.taker.hidden++ // below a name that no path can express
			continue
		}
		o.taker.blob(o.listing, rest, b)
	}
	if page.Next == "" {
		leave(1)
		return h
	}
	for _, o := range w.open {
		grow(o, false)
	}
	return h
}

// reap stores what a page of a walk brought. n.mu is held.
func (n *Names) reap(w *walk, h harvest, req request) {
	for _, g := range h.parts {
		l := g.listing
		if g.begun {
			n.listings++
			l.number = n.listings
		}
		if g.begun && !w.wasDropped(l.dir) {
			d := n.dir(l.dir)
			if d.listing == nil || !n.usable(d.listing) {
				n.newListing(d)
				d.listing, l.of, l.kept = l, d, true
			}
		}
		n.took(l, g.part, &g.taker)
		if g.ended {
			n.finish(l, req)
		}
	}
}

// forgetWalk forgets all that a walk has brought. n.mu is held.
func (n *Names) forgetWalk(w *walk) {
	n.end(w)
	for _, d := range n.dirs {
		if d.listing != nil && d.listing.walk == w {
			n.unlist(d)
		}
	}
}

// wasDropped reports whether knowledge of a directory was dropped while the request was under way.
func (w *walk) wasDropped(dir string) bool {
	return slices.ContainsFunc(w.dropped, func(p string) bool { return dir == p || strings.HasPrefix(dir, p+"/") })
}

// droppedInWalks tells the walks that knowledge of a directory was dropped. n.mu is held.
func (n *Names) droppedInWalks(p string) {
	for _, w := range n.walks {
		if w.busy != nil {
			w.dropped = append(w.dropped, p)
		}
	}
}
