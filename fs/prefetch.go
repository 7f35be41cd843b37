package fs

import (
	"context"
	"math"
	"sync"

	"blobmount/blobcache"
)

// A data loader opens the files of a directory one after the other, in listing order or shuffled. When several were
// opened, the rest is fetched ahead, many at a time: with 10 ms to the first byte, 32 requests under way bring 3,000
// small files a second, and one reader that waits for each brings 100.

// walk decides how far to fetch ahead in one directory. It does nothing else.
type walk struct {
	need   int // distinct files that must have been opened before anything is fetched ahead
	opens  int // distinct files opened
	hits   int // of those, the ones that had been fetched ahead
	issued int // files fetched ahead
}

const (
	// walkNeed is how many files of a directory are opened before it counts as a walk: a program that opens its three
	// configuration files is none.
	walkNeed = 4
	// walkAhead is how many files are fetched ahead for each that was opened. A shuffled reader hits few of them at
	// first, so the number must grow with its progress; a reader that stops has wasted at most so many for each file.
	walkAhead = 16
	// maxPenalty bounds how much more evidence is asked for after useless prefetching: 4 << 8 is 1,024 files.
	maxPenalty = 8
)

// opened notes that a file was opened for the first time.
func (w *walk) opened(hit bool) {
	w.opens++
	if hit {
		w.hits++
	}
}

// more returns how many files may be fetched ahead now.
func (w *walk) more() int {
	if w.opens < w.need {
		return 0
	}
	return max(0, walkAhead*w.opens-(w.issued-w.hits))
}

// useful reports whether at least half of what was fetched ahead was used, and whether there was enough to say so.
func (w *walk) useful() (useful, known bool) {
	return 2*w.hits >= w.issued, w.issued >= 2*walkAhead
}

// prefetcher watches the opens of a mount. Its methods may be called in parallel.
type prefetcher struct {
	v     *view
	ctx   context.Context // ends with the mount
	slots chan struct{}   // requests under way

	mu      sync.Mutex // guards what is below
	dirs    map[*node]*walker
	clock   uint64
	penalty int // doublings of walkNeed
}

// walker is the walk through one directory and what it needs to act.
type walker struct {
	walk
	used    uint64 // prefetcher.clock of the last open
	seen    map[string]bool
	ahead   map[string]bool // fetched or being fetched, and not opened yet
	files   []blobcache.Named
	next    int // index into files where to go on
	skipped int // files looked at in a row that were opened or fetched already
	cached  int // files looked at in a row that were in the cache already
	running bool
}

// maxWalks bounds the directories that are watched at once.
const maxWalks = 16

// maxListed bounds the files of one directory that may be fetched ahead: a list of 100,000 takes 50 MB.
const maxListed = 100_000

// defaultPrefetch is how many files are fetched ahead at once.
const defaultPrefetch = 48

func newPrefetcher(ctx context.Context, v *view, slots int) *prefetcher {
	return &prefetcher{v: v, ctx: ctx, slots: make(chan struct{}, slots), dirs: map[*node]*walker{}}
}

// opened notes an open, or a first read, of a file. One that was in the cache whole begins no walk: to find out that nothing
// is to be fetched, the directory would be gone through.
func (p *prefetcher) opened(n *node, cached bool) {
	if cap(p.slots) == 0 || n.properties().Size > blobcache.SmallSize {
		return
	}
	dir, name := p.v.nodes.place(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if cached && p.dirs[dir] == nil {
		return
	}
	w := p.walker(dir)
	if w.seen[name] {
		return
	}
	w.seen[name] = true
	hit := w.ahead[name]
	delete(w.ahead, name)
	w.opened(hit && w.hits < w.issued)
	if !w.running && w.more() > 0 {
		w.running = true
		go p.run(dir, w, name)
	}
}

// walker returns the walker of a directory. It forgets the one that was used least recently when there are too many.
// p.mu is held.
func (p *prefetcher) walker(dir *node) *walker {
	p.clock++
	w := p.dirs[dir]
	if w == nil {
		w = &walker{walk: walk{need: walkNeed << p.penalty}, seen: map[string]bool{}, ahead: map[string]bool{}}
		p.dirs[dir] = w
		if len(p.dirs) > maxWalks {
			p.retire()
		}
	}
	w.used = p.clock
	return w
}

// retire forgets a walk, and learns from it. p.mu is held.
func (p *prefetcher) retire() {
	var oldest *node
	for d, w := range p.dirs {
		if w.used > 0 && (oldest == nil || w.used < p.dirs[oldest].used) {
			oldest = d
		}
	}
	if useful, known := p.dirs[oldest].useful(); known && useful {
		p.penalty = max(0, p.penalty-1)
	} else if known {
		p.penalty = min(maxPenalty, p.penalty+1)
	}
	delete(p.dirs, oldest)
}

// run fetches ahead in one directory for as long as its walk allows. from is the name that was opened last: those
// after it are the likeliest.
func (p *prefetcher) run(dir *node, w *walker, from string) {
	if w.files == nil { // nobody else touches it while running is set
		files, err := p.list(dir)
		if err != nil {
			p.v.log.Debug("directory cannot be listed for prefetching", "error", err)
		}
		w.files = files
		for i := range files {
			if files[i].Name == from {
				w.next = i + 1
			}
		}
	}
	for {
		select {
		case p.slots <- struct{}{}:
		case <-p.ctx.Done():
			return
		}
		f, ok := p.pick(dir, w)
		if !ok {
			<-p.slots
			return
		}
		if p.v.cache.Has(p.v.cont, f.Properties) {
			<-p.slots
			if p.had(w) {
				return
			}
			continue
		}
		w.cached = 0
		go func() {
			defer func() { <-p.slots }()
			if err := p.v.cache.Prefetch(p.ctx, p.v.cont, f.Properties); err != nil {
				p.v.log.Debug("file could not be fetched ahead", "blob", f.Properties.Name, "error", err)
			}
		}()
	}
}

// pick returns the next file to fetch. Without one the walk is not running any more.
func (p *prefetcher) pick(dir *node, w *walker) (blobcache.Named, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.dirs[dir] == w && w.more() > 0 && w.skipped < len(w.files) {
		f := w.files[w.next%len(w.files)]
		w.next++
		if w.seen[f.Name] || w.ahead[f.Name] {
			w.skipped++
			continue
		}
		w.skipped = 0
		w.ahead[f.Name] = true
		w.issued++
		return f, true
	}
	w.running = false
	return blobcache.Named{}, false
}

// enoughCached is how many files in a row are found in the cache before a directory is taken to be cached as a whole: it
// is not the first epoch.
const enoughCached = 64

// had notes that a picked file was in the cache already. It reports whether that ends the walk.
func (p *prefetcher) had(w *walker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.issued-- // nothing was fetched for it, so it proves nothing
	if w.cached++; w.cached < enoughCached {
		return false
	}
	w.need = math.MaxInt
	w.running = false
	return true
}

// list returns the small files of a directory.
func (p *prefetcher) list(dir *node) ([]blobcache.Named, error) {
	path, linked := p.v.nodes.path(dir)
	if !linked {
		return nil, nil
	}
	r, err := p.v.names.Open(p.ctx, path)
	if err != nil {
		return nil, err
	}
	var files []blobcache.Named
	err = r.Read(p.ctx, 0, func(e blobcache.Named, _ int) bool {
		if kindOf(e.Entry) == kindFile && !e.Pending && e.Properties.Size > 0 && e.Properties.Size <= blobcache.SmallSize {
			files = append(files, e)
		}
		return len(files) < maxListed
	})
	return files, err
}
