package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// TestSingleFlight: a range is fetched once, however many wait for it.
func TestSingleFlight(t *testing.T) {
	for _, size := range []int64{500 * kib, 3 * mib} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			s := newService()
			p, want := s.put(t, "a", size, 1)
			c := openCache(t, config(dir))
			hold := make(chan struct{})
			s.faults.Add(blobtest.Fault{Op: "ReadAt", Wait: hold})
			var all sync.WaitGroup
			for i := range 32 {
				f := openBlob(t, c, s, p)
				all.Go(func() { expect(t, f, 300*kib+int64(i), want[300*kib+i:320*kib]) })
			}
			synctest.Wait()
			if n := s.Count("ReadAt"); n != 1 {
				t.Errorf("%d readers of one range asked %q", 32, s.Lines())
			}
			close(hold)
			all.Wait()
			if n := s.Count("ReadAt"); n != 1 {
				t.Errorf("%d readers of one range asked %q", 32, s.Lines())
			}
		})
	}
}

// gated is a container whose bodies stop before an offset of the blob until the gate is open.
type gated struct {
	blob.Container
	at   int64
	gate chan struct{}
}

func (g *gated) ReadAt(ctx context.Context, name string, off, n int64, c blob.Condition) (*blob.Body, error) {
	b, err := g.Container.ReadAt(ctx, name, off, n, c)
	if err == nil {
		b.ReadCloser = &gatedBody{b.ReadCloser, g, ctx, off}
	}
	return b, err
}

type gatedBody struct {
	io.ReadCloser
	g   *gated
	ctx context.Context
	pos int64
}

func (b *gatedBody) Read(p []byte) (int, error) {
	if b.pos >= b.g.at {
		select {
		case <-b.g.gate:
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	} else {
		p = p[:min(int64(len(p)), b.g.at-b.pos)]
	}
	n, err := b.ReadCloser.Read(p)
	b.pos += int64(n)
	return n, err
}

// TestServedWhenThere: a reader goes on when its own bytes are there, not when the fetch is done.
func TestServedWhenThere(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		p, want := s.put(t, "a", 1000*kib, 1)
		c := openCache(t, config(dir))
		g := &gated{s, 500 * kib, make(chan struct{})}
		f := c.OpenFile(g, p, noHooks)
		f.Acquire(false)
		expect(t, f, 0, want[:4*kib])
		expect(t, f, 496*kib, want[496*kib:500*kib])
		done := make(chan struct{})
		go func() {
			expect(t, f, 499*kib, want[499*kib:501*kib])
			close(done)
		}()
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error)
		go func() {
			_, err := read(ctx, f, 600*kib, 1)
			given <- err
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("a reader was served bytes that had not arrived")
		default:
		}
		cancel()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("a reader that gave up got %v", err)
		}
		close(g.gate)
		<-done
		expectAll(t, f, want)
		f.Release(false)
		if n := s.Count("ReadAt"); n != 1 {
			t.Errorf("one small blob took %q", s.Lines())
		}
	})
}

// TestFailedFetch: the readers of a failed fetch get its error, those whose bytes had come do not, and the next read
// tries again.
func TestFailedFetch(t *testing.T) {
	s := newService()
	p, want := s.put(t, "a", 1000*kib, 1)
	c := openCache(t, config(t.TempDir()))
	f := openBlob(t, c, s, p)
	s.faults.Add(blobtest.Fault{Op: "ReadAt", Nth: 1, Err: blobtest.Err("ServerBusy")})
	s.faults.Add(blobtest.Fault{Op: "ReadAt", Nth: 2, Err: blobtest.Err("InternalError"), BreakBody: true, BodyBytes: 500 * kib})
	s.faults.Add(blobtest.Fault{Op: "ReadAt", Nth: 3, Err: io.EOF, BreakBody: true, BodyBytes: 100 * kib})
	for _, code := range []blob.Code{blob.Throttled, blob.Unavailable} {
		if _, err := read(t.Context(), f, 900*kib, 4096); !blob.Is(err, code) {
			t.Errorf("error %v, want one that says %q", err, code)
		}
	}
	// A stream that ends early, and says that this is the end, is damaged all the same.
	if got, err := read(t.Context(), f, 900*kib, 4096); err == nil {
		t.Errorf("%d bytes that never came", len(got))
	}
	expectAll(t, f, want)
	if n := s.Count("ReadAt"); n != 4 {
		t.Errorf("%q", s.Lines())
	}
}

// TestChangedBlob: one handle sees one version. What is cached of it stays readable, the rest is ESTALE, and a new open
// sees the new version.
func TestChangedBlob(t *testing.T) {
	for _, change := range []string{"overwritten", "shortened", "deleted"} {
		s := newService()
		p, want := s.put(t, "a", 3*mib, 1)
		c := openCache(t, config(t.TempDir()))
		f := openBlob(t, c, s, p)
		expect(t, f, 2*mib, want[2*mib:2*mib+4096]) // one grain
		var theirs []byte
		switch change {
		case "overwritten":
			_, theirs = s.put(t, "a", 3*mib, 2)
		case "shortened":
			_, theirs = s.put(t, "a", 10, 3)
		case "deleted":
			if err := s.store.Delete("a", blob.Condition{}); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, f, 2*mib, want[2*mib:2*mib+4096])
		for _, r := range [][2]int64{{0, 4096}, {2*mib - 4096, 8192}, {2 * mib, 128 * kib}} {
			if got, err := read(t.Context(), f, r[0], r[1]); !blob.Is(err, blob.ConditionNotMet) {
				t.Errorf("%s: read %d+%d of the old version: %d bytes, error %v", change, r[0], r[1], len(got), err)
			}
		}
		if theirs != nil {
			expectAll(t, openBlob(t, c, s, s.properties(t, "a")), theirs)
		}
	}
}

// TestNeverMixed: a blob is replaced again and again while it is read. Each handle reads bytes of the version that it
// opened, or an error.
func TestNeverMixed(t *testing.T) {
	const size = mib + 100*kib // more than is fetched by one request
	s := newService()
	c := openCache(t, config(t.TempDir()))
	replace := func(k int) {
		if _, err := s.store.Put("a", bytes.Repeat([]byte{byte(k)}, size+k), blob.WriteOptions{}); err != nil {
			t.Error(err)
		}
	}
	replace(0)
	var read atomic.Int64
	var all sync.WaitGroup
	stop := make(chan struct{})
	for w := range 3 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(4, uint64(w)))
			buf := make([]byte, 256*kib)
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, err := s.store.Properties("a", blob.Condition{})
				if err != nil {
					t.Error(err)
					return
				}
				fill := bytes.Repeat([]byte{byte(p.Size - size)}, len(buf))
				f := c.OpenFile(s, p, noHooks)
				f.Acquire(false)
				for range 4 {
					d, err := f.Read(t.Context(), buf, rnd.Int64N(size-int64(len(buf))))
					if blob.Is(err, blob.ConditionNotMet) {
						break
					}
					if err != nil || d.Len() != len(buf) {
						t.Errorf("%d bytes, error %v", d.Len(), err)
						break
					}
					for _, b := range d.Bytes {
						if !bytes.Equal(b, fill[:len(b)]) {
							t.Errorf("version %d has other bytes", fill[0])
						}
					}
					d.Done()
					read.Add(1)
				}
				f.Release(false)
			}
		})
	}
	for k := 1; k <= 40; k++ {
		before := read.Load()
		replace(k)
		for read.Load() < before+int64(k%5) && !t.Failed() {
			yield()
		}
	}
	close(stop)
	all.Wait()
}

// TestSharedDirectory: two processes use one cache directory. Each reads right bytes, and what one has complete the
// other finds.
func TestSharedDirectory(t *testing.T) {
	s := newService()
	cfg := config(t.TempDir())
	cfg.Size = 6 * mib // both evict
	var props []blob.Properties
	var want [][]byte
	for i, size := range []int64{1, 60 * kib, 700 * kib, mib + 1, 2*mib + 9, 1500 * kib} {
		p, b := s.put(t, fmt.Sprint(i), size, uint64(i))
		props, want = append(props, p), append(want, b)
	}
	caches := []*Cache{openCache(t, cfg), openCache(t, cfg)}
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(5, uint64(w)))
			for range 25 {
				i := rnd.IntN(len(props))
				f := caches[w%2].OpenFile(s, props[i], noHooks)
				f.Acquire(false)
				off := rnd.Int64N(props[i].Size)
				n := min(props[i].Size-off, 1+rnd.Int64N(400*kib))
				got, err := read(t.Context(), f, off, n)
				if err != nil || !bytes.Equal(got, want[i][off:off+n]) {
					t.Errorf("blob %d, %d+%d: %d bytes, error %v", i, off, n, len(got), err)
				}
				f.Release(false)
			}
		})
	}
	all.Wait()
	p, b := s.put(t, "new", 900*kib, 77)
	bring(t, caches[0], s, p)
	s.Reset()
	expectAll(t, openBlob(t, caches[1], s, p), b)
	if n := s.Count(""); n > 0 {
		t.Errorf("the other cache had it, and still %q", s.Lines())
	}
}

// TestBound: much more than fits streams through several readers. The bound holds all the time, and no read fails.
func TestBound(t *testing.T) {
	const limit = 4 * mib
	s := newService()
	cfg := config(t.TempDir())
	cfg.Size = limit
	c := openCache(t, cfg)
	var all sync.WaitGroup
	for w := range 4 {
		for i := range 6 {
			s.put(t, fmt.Sprintf("%d/%d", w, i), 1100*kib+1, uint64(w*100+i))
		}
		all.Go(func() {
			for i := range 6 {
				name := fmt.Sprintf("%d/%d", w, i)
				f := c.OpenFile(s, s.properties(t, name), noHooks)
				f.Acquire(false)
				expectAll(t, f, content(uint64(w*100+i), 1100*kib+1))
				f.Release(false)
				if n := c.space.inUse(); n > limit+4*64*kib { // and the maps
					t.Errorf("%d bytes in use, the limit is %d", n, limit)
				}
			}
		})
	}
	all.Wait()
	if c.evicted.Load() == 0 {
		t.Error("nothing was evicted")
	}
	if n, _ := onDisk(t, cfg.Dir); n > limit+64*kib {
		t.Errorf("%d bytes on disk, the limit is %d", n, limit)
	}
	checkUsage(t, c)
}

// TestNoRoom: a cache that can hold nothing caches nothing, and reads go on.
func TestNoRoom(t *testing.T) {
	s := newService()
	cfg := config(t.TempDir())
	cfg.Size = 4 * kib
	c := openCache(t, cfg)
	for i, size := range []int64{100 * kib, 3 * mib} {
		p, want := s.put(t, fmt.Sprint(i), size, uint64(i))
		f := openBlob(t, c, s, p)
		for range 2 {
			expectAll(t, f, want)
		}
		if err := c.Prefetch(t.Context(), s, p); err == nil {
			t.Error("prefetched into no room")
		}
	}
	if n, _ := onDisk(t, cfg.Dir); n > cfg.Size {
		t.Errorf("%d bytes on disk", n)
	}
	// What is written is kept whatever the bound, and is not cached afterwards.
	f := c.CreateFile(s, blob.Properties{Name: "w"}, noHooks)
	f.Acquire(true)
	want := put(t, f, content(9, 200*kib), 0)
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Release(true)
	expectAll(t, openBlob(t, c, s, s.properties(t, "w")), want)
}

// TestLittleMemory: eight sequential readers share the least memory that a cache works with.
func TestLittleMemory(t *testing.T) {
	const size = 5 * mib
	s := newService()
	cfg := config(t.TempDir())
	cfg.Memory = MinMemory
	cfg.Size = 1 << 20 // most is not cached either
	c := openCache(t, cfg)
	var all sync.WaitGroup
	for w := range 8 {
		name := fmt.Sprint(w)
		if _, err := s.store.PutSynthetic(name, size, blobtest.Random(uint64(w)), blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		f := openBlob(t, c, s, s.properties(t, name))
		all.Go(func() {
			want := make([]byte, 128*kib)
			for off := int64(0); off < size; off += int64(len(want)) {
				blobtest.Random(uint64(w))(want, off)
				got, err := read(t.Context(), f, off, int64(len(want)))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("reader %d at %d: %d bytes, error %v", w, off, len(got), err)
					return
				}
			}
		})
	}
	all.Wait()
	if c.budget.peak > MinMemory {
		t.Errorf("%d bytes of memory, the limit is %d", c.budget.peak, MinMemory)
	}
}

// TestStress opens, reads and closes 200 blobs of all sizes at random, in a cache that holds a quarter of them.
func TestStress(t *testing.T) {
	s := newService()
	cfg := config(t.TempDir())
	cfg.Size = 4 * mib
	cfg.Memory = MinMemory
	c := openCache(t, cfg)
	var props []blob.Properties
	var want [][]byte
	rnd := rand.New(rand.NewPCG(6, 6))
	for i := range 200 {
		size := rnd.Int64N(32 * kib)
		if i%25 == 0 {
			size = mib + rnd.Int64N(mib)
		}
		p, b := s.put(t, fmt.Sprintf("%d/%d", i%7, i), size, uint64(i))
		props, want = append(props, p), append(want, b)
	}
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(w)))
			for range 80 {
				i := rnd.IntN(len(props))
				f := c.OpenFile(s, props[i], noHooks)
				f.Acquire(false)
				for range 1 + rnd.IntN(3) {
					off := rnd.Int64N(props[i].Size + 10)
					n := 1 + rnd.Int64N(100*kib)
					got, err := read(t.Context(), f, off, n)
					if from, to := min(off, props[i].Size), min(off+n, props[i].Size); err != nil || !bytes.Equal(got, want[i][from:to]) {
						t.Errorf("%s %d+%d: %d bytes, want %d, error %v", props[i].Name, off, n, len(got), to-from, err)
					}
				}
				if rnd.IntN(10) == 0 {
					ctx, cancel := context.WithCancel(t.Context())
					go cancel()
					if _, err := read(ctx, f, 0, props[i].Size+1); err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				}
				f.Release(false)
			}
		})
	}
	all.Wait()
	if len(c.versions) != 0 {
		t.Errorf("%d versions are open after the last release", len(c.versions))
	}
	checkUsage(t, c)
}

// TestEvictionOrder: what was not used for longest goes first, and what is open never does.
func TestEvictionOrder(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	clock := time.Now()
	c.now = func() time.Time { return clock }
	var props []blob.Properties
	var want [][]byte
	for i := range 4 {
		p, b := s.put(t, fmt.Sprint(i), 200*kib, uint64(i))
		bring(t, c, s, p)
		props, want = append(props, p), append(want, b)
	}
	open := c.OpenFile(s, props[2], noHooks)
	open.Acquire(false)
	expect(t, open, 0, want[2][:10])
	for _, i := range []int{2, 0, 3, 1} {
		clock = clock.Add(time.Hour)
		f := c.OpenFile(s, props[i], noHooks)
		f.Acquire(false)
		expect(t, f, 0, want[i][:10])
		f.Release(false)
	}
	c.space.limit = 1 // a fiftieth more than is asked for goes, which is nothing then
	var order []int
	for range 4 {
		c.evict(1)
		for i := range props {
			if !c.Has(s, props[i]) && !slices.Contains(order, i) {
				order = append(order, i)
			}
		}
	}
	if !slices.Equal(order, []int{0, 3, 1}) {
		t.Errorf("evicted in the order %v, want 0, 3, 1 and not 2, which is open", order)
	}
	s.Reset()
	expectAll(t, open, want[2])
	open.Release(false)
	if n := s.Count(""); n > 0 {
		t.Errorf("%q", s.Lines())
	}
	if oldest(nil) != nil {
		t.Error("the oldest of nothing")
	}
}

// TestMoved: a server-side rename takes what is cached along, in whole and in part, and readers do not notice.
func TestMoved(t *testing.T) {
	for i, size := range []int64{500 * kib, 3 * mib, 500 * kib, 3 * mib} {
		s := newService()
		cfg := config(t.TempDir())
		c := openCache(t, cfg)
		p, want := s.put(t, "a", size, 1)
		f := openBlob(t, c, s, p)
		expect(t, f, 400*kib, want[400*kib:404*kib])
		if i >= 2 {
			bring(t, c, s, p)
		}
		if _, err := f.BeginMove(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		over := c.Moving(s, "a", p.ETag)
		w, err := s.Copy(t.Context(), "b", "a", blob.CopyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), "a", blob.Condition{}); err != nil {
			t.Fatal(err)
		}
		// This one meets the moment at which the old name is gone and the new one not known.
		done := make(chan error)
		go func() {
			got, err := read(t.Context(), f, size-4096, 4096)
			if err == nil && !bytes.Equal(got, want[size-4096:]) {
				err = errors.New("wrong bytes")
			}
			done <- err
		}()
		yield()
		c.Moved(s, "a", p.ETag, "b", w.ETag)
		over()
		f.EndMove("b", &w)
		if err := <-done; err != nil {
			t.Error(err)
		}
		expectAll(t, f, want)
		p = s.properties(t, "b")
		bring(t, c, s, p)
		s.Reset()
		expectAll(t, openBlob(t, c, s, p), want)
		expectAll(t, openBlob(t, openCache(t, cfg), s, p), want)
		if n := s.Count(""); n > 0 {
			t.Errorf("%d bytes under the new name: %q", size, s.Lines())
		}
	}
}
