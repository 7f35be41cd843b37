package blobcache

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"blobmount/blobcache/blob"
)

// version is one open version of a blob: what the disk has of it, what is arriving, and where to get the rest.
// There is one for each key in a process. All methods may be called in parallel.
type version struct {
	c    *Cache
	size int64

	// refs counts the Files and others that have it open, reads the reads through it that are under way; the version
	// ends when both are 0. Guarded by Cache.mu.
	refs, reads int
	quieted     signal        // reads may be 0 again
	ended       chan struct{} // closed when it has ended, and its files are closed

	mu       sync.Mutex // guards what is below
	key      key
	src      source
	files    files
	p        presence
	checked  bitmap // units whose checksum this process has compared
	fetches  []*fetch
	ahead    readahead
	retired  []files // forgotten, closed at the end
	checking bool    // check runs or has run
	diskless bool    // the disk failed: go on without it
	touched  time.Time

	ctx     context.Context // ends when the last user has gone
	cancel  context.CancelFunc
	running sync.WaitGroup // transfers

	storing sync.Mutex // held while bytes that arrived go to the cache file; guards nothing
}

// source says where a version's bytes come from.
type source struct {
	cont blob.Container
	name string
	etag blob.ETag
}

func (c *Cache) newVersion(k key, src source, size int64) *version {
	v := &version{c: c, size: size, key: k, src: src, refs: 1, ended: make(chan struct{})}
	v.ctx, v.cancel = context.WithCancel(c.ctx)
	v.ahead = readahead{size: size, whole: c.whole, maxWindow: c.window, piece: c.piece}
	return v
}

// inUse reports whether the version has not begun to end. Cache.mu is held.
func (v *version) inUse() bool { return v.refs > 0 || v.reads > 0 }

// Data is the answer to a read. The bytes stay valid until Done, which must be called once.
type Data struct {
	Bytes [][]byte
	pin   *fetch
	view  []byte   // a mapping of the cache file
	of    *version // of which that is, held
}

// Len returns the number of bytes.
func (d *Data) Len() int {
	n := 0
	for _, b := range d.Bytes {
		n += len(b)
	}
	return n
}

// Done gives the memory back.
func (d *Data) Done() {
	if d.pin != nil {
		d.pin.unpin()
	}
	if d.view != nil {
		unmap(d.view)
		d.of.c.unhold(d.of)
	}
	*d = Data{}
}

// read returns the bytes [off, off+len(buf)), fewer at the end of the blob. They lie in buf, or in memory that the
// cache lends out until Data.Done. When it fails no byte is returned.
//
// For toKernel the memory may be a mapping of the cache file: if somebody cuts the file meanwhile, the kernel's copy
// fails, where one of ours would be a SIGBUS. For toBlock only what is asked for is fetched: the rest of the block is
// what was written.
func (v *version) read(ctx context.Context, buf []byte, off int64, use use) (Data, error) {
	if off >= v.size || len(buf) == 0 {
		return Data{}, nil
	}
	end := min(off+int64(len(buf)), v.size)
	buf = buf[:end-off]
	v.mu.Lock()
	v.touch()
	switch {
	case v.files.complete:
	case use == toBlock:
		v.demand(off, end)
	default:
		v.plan(off, end-off)
	}
	// One fetch that holds it all is lent without a copy; that is faster than the disk, even than its page cache.
	if f := v.covering(off); f != nil && f.end >= end {
		f.pins++
		v.mu.Unlock()
		err := f.wait(ctx, end)
		if err == nil {
			return Data{Bytes: f.slices(off, end), pin: f}, nil
		}
		f.unpin()
		if err := v.final(ctx, err); err != nil {
			return Data{}, err
		}
	} else if v.unread(off, end) {
		good := v.readChecked(buf)
		v.mu.Unlock()
		if good {
			return Data{Bytes: [][]byte{buf}}, nil
		}
	} else if v.onDisk(off, end) {
		data := v.files.data
		v.mu.Unlock()
		if use == toKernel {
			if d, ok := lend(data, off, end); ok {
				v.c.hold(v)
				d.of = v
				return d, nil
			}
		}
		if v.pread(data, buf, off) {
			return Data{Bytes: [][]byte{buf}}, nil
		}
	} else {
		v.mu.Unlock()
	}
	for pos := off; pos < end; {
		n, err := v.readSome(ctx, buf[pos-off:], pos)
		if err != nil {
			return Data{}, err
		}
		pos += int64(n)
	}
	return Data{Bytes: [][]byte{buf}}, nil
}

// use says what the bytes of a read are for.
type use uint8

const (
	toKernel use = iota // a reply of bytes that only the version has
	toReply             // a part of a reply
	toBlock             // the rest of a block that was changed
)

// readFull fills buf from off; the blob must reach that far.
func (v *version) readFull(ctx context.Context, buf []byte, off int64, use use) error {
	d, err := v.read(ctx, buf, off, use)
	if err != nil {
		return err
	}
	defer d.Done()
	n := 0
	for _, b := range d.Bytes {
		if &b[0] != &buf[n] {
			copy(buf[n:], b)
		}
		n += len(b)
	}
	if n < len(buf) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// errClosed is what is left to readers of a cache that was closed under them.
var errClosed = errors.New("the cache is closed")

// final returns the error for a reader whose fetch failed, nil if it is to try again: the fetch failed for a reason
// that is not the reader's, when those who had wanted it went away, or when the blob changed its name meanwhile.
func (v *version) final(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil || !errors.Is(err, context.Canceled):
		return err
	case v.ctx.Err() != nil:
		return errClosed // there will be no other fetch
	}
	return nil
}

// readSome copies at least one byte at pos into buf, from wherever it is to be had.
func (v *version) readSome(ctx context.Context, buf []byte, pos int64) (int, error) {
	end := pos + int64(len(buf))
	for tries := 0; ; tries++ {
		v.mu.Lock()
		if f := v.covering(pos); f != nil {
			f.pins++
			v.mu.Unlock()
			to := min(end, f.end)
			err := f.wait(ctx, to)
			n := 0
			if err == nil {
				for _, b := range f.slices(pos, to) {
					n += copy(buf[n:], b)
				}
			}
			f.unpin()
			if err == nil {
				return n, nil
			}
			if err := v.final(ctx, err); err != nil {
				return 0, err
			}
			continue
		}
		unit := int(pos / v.p.unit)
		if v.p.have.get(unit) {
			to := min(end, int64(v.p.have.nextClear(unit, v.p.have.n))*v.p.unit)
			data := v.files.data
			ok := v.verify(pos, to)
			v.mu.Unlock()
			if ok && v.pread(data, buf[:to-pos], pos) {
				return int(to - pos), nil
			}
			continue // what the disk had was not good and is forgotten
		}
		gap := v.gap(extent{pos, end})
		f := newFetch(v, gap)
		f.pins++ // ours, so that it is not reclaimed before we look at it
		v.insert(f)
		v.mu.Unlock()
		slabs, err := v.c.budget.get(ctx, gap.end-gap.off)
		if err != nil {
			f.fail(context.Canceled) // others who wait for it try for themselves
			f.unpin()
			return 0, err
		}
		f.start(slabs)
		f.unpin()
	}
}

// plan asks the read-ahead machine and starts what it wants, as far as there is memory. v.mu is held.
func (v *version) plan(off, n int64) {
	p := v.ahead.read(off, n)
	v.prefetch(p.demand)
	for _, x := range p.ahead {
		if at := v.prefetch(x); at < x.end {
			v.ahead.refused(at, x.end)
			return
		}
	}
}

// want starts fetching what is missing of [off, end), and nothing beyond that.
func (v *version) want(off, end int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.files.complete {
		v.demand(off, end)
	}
}

// demand is want with v.mu held, which is let go in between.
func (v *version) demand(off, end int64) {
	unit := v.p.unit
	v.prefetch(extent{off / unit * unit, min((end+unit-1)/unit*unit, v.size)})
}

// prefetch starts fetching what is missing of a range, as far as there is memory, and returns how far it came. v.mu is
// held, and let go in between: making room may take the mutex of any version.
func (v *version) prefetch(x extent) int64 {
	for pos := x.off; pos < x.end; {
		if f := v.covering(pos); f != nil {
			pos = f.end
			continue
		}
		unit := int(pos / v.p.unit)
		if v.p.have.get(unit) {
			pos = int64(v.p.have.nextClear(unit, v.p.have.n)) * v.p.unit
			continue
		}
		gap := v.gap(extent{pos, x.end})
		v.mu.Unlock()
		slabs := v.c.budget.try(gap.end - gap.off)
		v.mu.Lock()
		if slabs == nil {
			return pos
		}
		if v.covering(gap.off) != nil || v.p.have.get(unit) || v.gap(gap) != gap {
			v.c.budget.put(slabs) // somebody else was faster
			continue
		}
		f := newFetch(v, gap)
		v.insert(f)
		f.start(slabs)
		pos = gap.end
	}
	return x.end
}

// gap returns the missing whole units from x.off on, at most to the unit of x.end, to what is there or arriving, and
// to the next multiple of the piece size. v.mu is held, and the unit of x.off is missing.
func (v *version) gap(x extent) extent {
	u := v.p.unit
	first := int(x.off / u)
	last := v.p.have.nextSet(first, int((x.end+u-1)/u))
	g := extent{int64(first) * u, min(int64(last)*u, v.size)}
	if next := (g.off/v.c.piece + 1) * v.c.piece; g.end > next && !v.p.single() {
		g.end = next
	}
	for _, f := range v.fetches { // sorted; those before g.off do not reach it
		if f.off >= g.off && f.off < g.end {
			g.end = f.off
			break
		}
	}
	return g
}

// covering returns the fetch that holds the byte at pos or will, nil when there is none. v.mu is held.
func (v *version) covering(pos int64) *fetch {
	i, _ := slices.BinarySearchFunc(v.fetches, pos, func(f *fetch, pos int64) int {
		if f.end <= pos {
			return -1
		}
		return 1
	})
	if i < len(v.fetches) && v.fetches[i].off <= pos {
		return v.fetches[i]
	}
	return nil
}

// insert adds a fetch in its place. v.mu is held.
func (v *version) insert(f *fetch) {
	i, _ := slices.BinarySearchFunc(v.fetches, f.off, func(f *fetch, off int64) int { return int(f.off - off) })
	v.fetches = slices.Insert(v.fetches, i, f)
}

// remove takes a fetch out. v.mu is held.
func (v *version) remove(f *fetch) {
	if i := slices.Index(v.fetches, f); i >= 0 {
		v.fetches = slices.Delete(v.fetches, i, i+1)
	}
}

// closed ends the version: nobody reads it any more, and who opens it again waits until it has ended.
func (v *version) closed() {
	v.cancel()
	v.running.Wait()
	v.mu.Lock()
	fetches := slices.Clone(v.fetches)
	v.mu.Unlock()
	for _, f := range fetches {
		v.c.residents.remove(f)
	}
	v.mu.Lock()
	for _, f := range fetches {
		f.abandon()
	}
	v.mu.Unlock()
	v.files.close()
	for i := range v.retired {
		v.retired[i].close()
	}
}

// stale turns "somebody changed or deleted the blob" into the one error that means it: the handle's version is
// not to be had any more. If it was ourselves who changed it, and only its name or ETag, the readers try again.
func (v *version) stale(src source, err error) error {
	if c := blob.CodeOf(err); c != blob.ConditionNotMet && c != blob.NotFound && c != blob.InvalidRange {
		return err
	}
	v.c.moved(v.ctx, src)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.src.name != src.name || v.src.etag != src.etag {
		return context.Canceled
	}
	return &blob.Error{Code: blob.ConditionNotMet, Op: "ReadAt", Name: src.name, Err: err}
}

// isOf reports whether the version's bytes come from a name and ETag.
func (v *version) isOf(name string, etag blob.ETag) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.src.name == name && v.src.etag == etag
}

// bring fetches all units that are missing, and returns when they are on disk.
func (v *version) bring(ctx context.Context) error {
	for {
		v.mu.Lock()
		unit := v.p.have.nextClear(0, v.p.have.n)
		if unit == v.p.have.n {
			v.mu.Unlock()
			return nil
		}
		pos := int64(unit) * v.p.unit
		f := v.covering(pos)
		mine := f == nil
		if mine {
			f = newFetch(v, v.gap(extent{pos, v.size}))
			v.insert(f)
		}
		f.pins++
		v.mu.Unlock()
		if mine {
			slabs, err := v.c.budget.get(ctx, f.end-f.off)
			if err != nil {
				f.fail(context.Canceled)
				f.unpin()
				return err
			}
			f.start(slabs)
		}
		err := f.wait(ctx, f.end+1) // not only arrived, but ended
		stored := err == nil && (v.stored(unit) || f.keep())
		f.unpin()
		if err != nil {
			if err := v.final(ctx, err); err != nil {
				return err
			}
			continue
		}
		if !stored {
			return errors.New("the cache has no room")
		}
	}
}

func (v *version) stored(unit int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.p.have.get(unit)
}

// fill fetches all that is missing, or damaged on the disk, so that the version outlives the blob in the service.
func (v *version) fill(ctx context.Context) error {
	buf := make([]byte, largeSlab)
	for off := int64(0); off < v.size; off += largeSlab {
		v.mu.Lock()
		done := v.files.complete && v.checked.full()
		v.mu.Unlock()
		if done {
			return nil
		}
		d, err := v.read(ctx, buf, off, toReply)
		if err != nil {
			return err
		}
		d.Done()
	}
	return v.bring(ctx) // what has arrived need not be stored yet
}

var _ slog.LogValuer = key{}

// LogValue shows the key as it stands in file names.
func (k key) LogValue() slog.Value { return slog.StringValue(k.path("")) }
