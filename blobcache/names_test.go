package blobcache

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// fill puts empty blobs; a name with a * is a directory's marker as Hadoop writes them.
func (s *service) fill(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		o := blob.WriteOptions{}
		body := []byte("x")
		if marked, ok := strings.CutPrefix(name, "*"); ok {
			name, body = marked, nil
			o.Metadata = map[string]string{"Hdi_isfolder": "true"}
		}
		if strings.HasSuffix(name, "/") {
			body = nil
		}
		if _, err := s.store.Put(name, body, o); err != nil {
			t.Fatal(err)
		}
	}
}

// clock is what time it is for a Names.
type clock struct{ now time.Time }

func (c *clock) forward(d time.Duration) { c.now = c.now.Add(d) }

func newNames(t testing.TB, s *service, timeout time.Duration) (*Names, *clock) {
	c := &clock{time.Unix(1e9, 0)}
	n := NewNames(t.Context(), s, timeout, 64<<20)
	n.now = func() time.Time { return c.now }
	return n, c
}

// show describes an entry in a word: what it is, and whose properties it has.
func show(e Entry) string {
	kind := "file"
	if e.Dir {
		kind = "dir"
	}
	for _, flag := range []struct {
		is   bool
		name string
	}{{e.Marker, "marker"}, {e.Shadowed, "shadowed"}, {e.Pending, "pending"}, {e.Properties.ETag != "", "etag"}} {
		if flag.is {
			kind += " " + flag.name
		}
	}
	return kind
}

func looked(t testing.TB, n *Names, p string) string {
	t.Helper()
	e, left, err := n.Lookup(t.Context(), p)
	if left < 0 || n.timeout >= 0 && left > n.timeout {
		t.Errorf("%q may be used for %v, the timeout is %v", p, left, n.timeout)
	}
	if blob.Is(err, blob.NotFound) {
		return "nothing"
	}
	if err != nil {
		t.Fatal(err)
	}
	return show(e)
}

func listed(t testing.TB, n *Names, dir string, fresh bool) []string {
	t.Helper()
	named, err := n.List(t.Context(), dir, fresh)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range named {
		out = append(out, x.Name+": "+show(x.Entry))
	}
	return out
}

// asked compares the requests since the last call.
func (s *service) asked(t testing.TB, want ...string) {
	t.Helper()
	got := s.Lines()
	slices.Sort(got) // those made at once come in any order
	if !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	s.Reset()
}

// TestLookup: what each kind of name is, by a lookup and by a listing, and what both cost.
func TestLookup(t *testing.T) {
	s := newService()
	s.fill(t, "d/file", "*d/marked", "*d/full", "d/full/x", "d/implied/x", "d/slash/", "d/shadowed", "d/shadowed/x",
		"d/shadowed-not", "d/Full", "d/sp ace%?#\\ü.")
	want := []string{
		"Full: file etag", "file: file etag", "full: dir marker etag", "implied: dir", "marked: dir marker etag",
		"shadowed-not: file etag", "shadowed: dir shadowed", "slash: dir", "sp ace%?#\\ü.: file etag",
	}
	n, _ := newNames(t, s, time.Minute)
	if got := listed(t, n, "d", false); !slices.Equal(got, want) {
		t.Errorf("listed\n%q, want\n%q", got, want)
	}
	s.asked(t, "List d/ delimiter=/")
	for _, line := range append(want, "missing: nothing", "shadowe: nothing") {
		name, kind, _ := strings.Cut(line, ": ")
		if got := looked(t, n, "d/"+name); got != kind {
			t.Errorf("%q is a %q after a listing, want %q", name, got, kind)
		}
		s.asked(t)
		cold, _ := newNames(t, s, time.Minute)
		for i := range 2 {
			if got := looked(t, cold, "d/"+name); got != kind {
				t.Errorf("%q is a %q by lookup, want %q", name, got, kind)
			}
			if i > 0 {
				s.asked(t)
				continue
			}
			below, head := "List d/"+name+"/ max=1", "Properties d/"+name
			if !slices.Contains([]string{"file", "full", "Full", "marked", "shadowed", "shadowed-not", "sp ace%?#\\ü."}, name) {
				head += " = blob not found"
			}
			s.asked(t, below, head)
		}
	}
}

// TestExpiry: what is known is used for the timeout, and then asked for by one conditional request.
func TestExpiry(t *testing.T) {
	s := newService()
	s.fill(t, "d/a", "d/b/x")
	n, now := newNames(t, s, time.Minute)
	ask := []string{"List d/a/ max=1", "Properties d/a"}
	looked(t, n, "d/a")
	s.asked(t, ask...)
	now.forward(59 * time.Second)
	if _, left, ok := n.Known("d/a"); !ok || left != time.Second {
		t.Errorf("known %v for %v", ok, left)
	}
	looked(t, n, "d/a")
	s.asked(t)
	now.forward(time.Second)
	if _, left, ok := n.Known("d/a"); !ok || left != 0 {
		t.Errorf("known %v for %v", ok, left)
	}
	looked(t, n, "d/a")
	s.asked(t, "Properties d/a if-none-match = blob is not modified")
	now.forward(59 * time.Second)
	looked(t, n, "d/a")
	s.asked(t)
	now.forward(time.Second)
	s.fill(t, "d/a")      // another version
	n.dirs["d"].asked = 0 // else this is the lookup after which the directory is listed in the background
	old, _, _ := n.Known("d/a")
	if e, _, err := n.Lookup(t.Context(), "d/a"); err != nil || e.Properties.ETag == old.Properties.ETag {
		t.Errorf("the version of before, error %v", err)
	}
	s.asked(t, "Properties d/a if-none-match")
	now.forward(time.Minute)
	if err := s.store.Delete("d/a", blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	if got := looked(t, n, "d/a"); got != "nothing" {
		t.Errorf("a deleted blob is a %s", got)
	}

	// A whole listing expires too, for what is there and what is not.
	n, now = newNames(t, s, time.Minute)
	listed(t, n, "d", false)
	s.Reset()
	listed(t, n, "d", false)
	looked(t, n, "d/b")
	looked(t, n, "d/none")
	s.asked(t)
	listed(t, n, "d", true)
	s.asked(t, "List d/ delimiter=/")
	now.forward(time.Minute)
	s.fill(t, "d/none")
	if got := looked(t, n, "d/none"); got != "file etag" {
		t.Errorf("a new blob is %s", got)
	}
	s.Reset()
	listed(t, n, "d", false)
	s.asked(t, "List d/ delimiter=/")
}

// TestTimeoutZeroAndNone: 0 asks each time, a negative timeout never again.
func TestTimeoutZeroAndNone(t *testing.T) {
	s := newService()
	s.fill(t, "d/a")
	n, _ := newNames(t, s, 0)
	looked(t, n, "d/a")
	s.Reset()
	for range 5 {
		looked(t, n, "d/a")
		s.asked(t, "Properties d/a if-none-match = blob is not modified")
		listed(t, n, "d", false)
		s.asked(t, "List d/ delimiter=/")
	}
	n, now := newNames(t, s, -1)
	listed(t, n, "d", false)
	looked(t, n, "e")
	s.Reset()
	now.forward(1000 * time.Hour)
	s.fill(t, "d/b", "e")
	if got := listed(t, n, "d", false); !slices.Equal(got, []string{"a: file etag"}) {
		t.Errorf("%q", got)
	}
	if looked(t, n, "d/b") != "nothing" || looked(t, n, "e") != "nothing" || looked(t, n, "d/a") != "file etag" {
		t.Error("what was known has changed")
	}
	if _, left, _ := n.Lookup(t.Context(), "d/a"); left < 24*time.Hour {
		t.Errorf("for ever is %v", left)
	}
	s.asked(t)
}

// TestListAfterLookups: several lookups in one directory turn into one listing.
func TestListAfterLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("d/%d", i))
		}
		s.fill(t, names...)
		n, _ := newNames(t, s, time.Minute)
		for _, name := range names {
			looked(t, n, name)
			synctest.Wait()
		}
		if got, want := s.Count(""), 2*listAfter+1; got != want {
			t.Errorf("%d requests for 20 lookups, want %d: %q", got, want, s.Lines())
		}
	})
}

// TestPages: a listing is whole, whatever the pages are.
func TestPages(t *testing.T) {
	s := newService()
	s.store = blobtest.NewStore(blobtest.StoreOptions{EmptyPages: true})
	s.Trace = blobtest.NewTrace(blobtest.NewContainer(s.store, "https://account.example/container"))
	var want []string
	for i := range blobtest.MaxPage + 100 {
		name := fmt.Sprintf("%06d", i)
		kind := ": file etag"
		switch i % 10 {
		case 3:
			kind = ": dir"
			s.fill(t, "d/"+name+"/x")
		case 4: // the blob, and what lies below it, may come on different pages
			kind = ": dir shadowed"
			s.fill(t, "d/"+name, "d/"+name+"/x", "d/"+name+"-")
			want = append(want, name+"-: file etag") // names sort as if a slash followed
		default:
			s.fill(t, "d/"+name)
		}
		want = append(want, name+kind)
	}
	n, _ := newNames(t, s, time.Minute)
	if got := listed(t, n, "d", false); !slices.Equal(got, want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	if got := looked(t, n, "d/000003/"+"x"); got != "file etag" {
		t.Error(got)
	}
	if got := looked(t, n, "nothing/below"); got != "nothing" {
		t.Error(got)
	}
}

// TestNextPage: the second page of a listing is asked for when half of the first has been read, and not before, each further
// one when somebody reads beyond the page before.
func TestNextPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const page = 1000
		s := newService()
		for i := range 4 * page {
			s.fill(t, fmt.Sprintf("d/%06d", i))
		}
		n, _ := newNames(t, s, time.Minute)
		n.cont = smallPages{Container: s, max: page}
		r, err := n.Open(t.Context(), "d")
		if err != nil {
			t.Fatal(err)
		}
		pos := 0
		for _, step := range []struct{ names, requests int }{{10, 1}, {400, 1}, {600, 2}, {page - 100, 2}, {page + 10, 3}, {2*page - 100, 3}, {2*page + 10, 4}} {
			err := r.Read(t.Context(), pos, func(_ Named, next int) bool {
				pos = next
				return pos < step.names
			})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := s.Count("List"); got != step.requests {
				t.Errorf("%d requests after %d names, want %d", got, step.names, step.requests)
			}
		}
	})
}

// TestHidden: names that no path can express are left out, and counted once, however often they are listed.
func TestHidden(t *testing.T) {
	s := newService()
	long := strings.Repeat("n", 256)
	s.fill(t, "d/a", "d//x", "d/./x", "d/..", "d/"+long, "d/"+long+"/x", "d/"+long[1:])
	n, _ := newNames(t, s, time.Minute)
	want := []string{"a: file etag", long[1:] + ": file etag"}
	for range 3 {
		if got := listed(t, n, "d", true); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	}
	if got := n.Hidden(); got != 5 {
		t.Errorf("%d are hidden, want 5", got)
	}
	if err := s.store.Delete("d//x", blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	listed(t, n, "d", true)
	if got := n.Hidden(); got != 4 {
		t.Errorf("%d are hidden after one was deleted, want 4", got)
	}
	for name, ok := range map[string]bool{"": false, ".": false, "..": false, "...": true, "a\x00": false, "a/b": false,
		long: false, long[1:]: true, "\xff": true, " ": true} {
		if Representable(name) != ok {
			t.Errorf("Representable(%q) = %v", name, !ok)
		}
	}
}

// late is a container that can keep the answers that it has got from those who wait for them.
type late struct {
	blob.Container
	got  chan struct{} // sent to when an answer is kept
	mu   sync.Mutex    // guards keep
	keep chan struct{} // closed to let the answers go; nil: none is kept
}

func (l *late) wait() {
	l.mu.Lock()
	keep := l.keep
	l.mu.Unlock()
	if keep != nil {
		l.got <- struct{}{}
		<-keep
	}
}

func (l *late) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	page, err := l.Container.List(ctx, o)
	l.wait()
	return page, err
}

func (l *late) Properties(ctx context.Context, name string, c blob.Condition) (blob.Properties, error) {
	p, err := l.Container.Properties(ctx, name, c)
	l.wait()
	return p, err
}

// during makes a call that asks the service n times at once, changes something when the service has answered, and only
// then lets the call have the answers.
func (l *late) during(n int, call, change func()) {
	keep := make(chan struct{})
	l.mu.Lock()
	l.keep = keep
	l.mu.Unlock()
	var done sync.WaitGroup
	done.Go(call)
	for range n {
		<-l.got
	}
	l.mu.Lock()
	l.keep = nil
	l.mu.Unlock()
	change()
	close(keep)
	done.Wait()
}

// TestOwnChangesWin: a change made here is seen by every call that begins after it, though answers of the service from
// before are still on their way.
func TestOwnChangesWin(t *testing.T) {
	file := Entry{Properties: blob.Properties{Name: "d/new", ETag: "mine"}}
	pending := file
	pending.Pending = true
	ask := map[string]struct {
		requests int
		call     func(ctx context.Context, n *Names)
	}{
		"listing":       {1, func(ctx context.Context, n *Names) { _, _ = n.List(ctx, "d", false) }},
		"fresh listing": {1, func(ctx context.Context, n *Names) { _, _ = n.List(ctx, "d", true) }},
		"lookup":        {2, func(ctx context.Context, n *Names) { _, _, _ = n.Lookup(ctx, "d/a") }},
		"lookup of new": {2, func(ctx context.Context, n *Names) { _, _, _ = n.Lookup(ctx, "d/new") }},
	}
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, s *service, n *Names)
		want   map[string]string // what is then
		list   []string
	}{
		{"created", func(_ *testing.T, s *service, n *Names) {
			s.fill(t, "d/new")
			n.Set("d/new", file)
		}, map[string]string{"d/a": "file etag", "d/new": "file etag"}, []string{"a: file etag", "b: file etag", "new: file etag"}},
		{"created here only", func(_ *testing.T, _ *service, n *Names) { n.Set("d/new", pending) },
			map[string]string{"d/new": "file pending etag"}, []string{"a: file etag", "b: file etag", "new: file pending etag"}},
		{"removed", func(t *testing.T, s *service, n *Names) {
			remove(t, s, "d/a")
			n.Remove("d/a")
		}, map[string]string{"d/a": "nothing"}, []string{"b: file etag"}},
		{"replaced by a directory", func(t *testing.T, s *service, n *Names) {
			remove(t, s, "d/a")
			n.Remove("d/a")
			s.fill(t, "*d/a")
			n.Set("d/a", Entry{Dir: true, Marker: true})
			n.SetEmpty("d/a")
		}, map[string]string{"d/a": "dir marker", "d/a/x": "nothing"}, nil},
		{"directory made anew", func(t *testing.T, s *service, n *Names) {
			for _, name := range []string{"a", "b"} {
				remove(t, s, "d/"+name)
				n.Remove("d/" + name)
			}
			n.Remove("d")
			s.fill(t, "*d")
			n.Set("d", Entry{Dir: true, Marker: true})
			n.SetEmpty("d")
		}, map[string]string{"d/a": "nothing", "d/new": "nothing"}, []string{}},
		{"directory removed", func(t *testing.T, s *service, n *Names) {
			for _, name := range []string{"a", "b"} {
				remove(t, s, "d/"+name)
				n.Remove("d/" + name)
			}
			n.Remove("d")
		}, map[string]string{"d/a": "nothing", "d": "nothing"}, []string{}},
		{"forgotten", func(t *testing.T, s *service, n *Names) {
			remove(t, s, "d/a")
			n.Forget("d/a")
		}, map[string]string{"d/a": "nothing"}, []string{"b: file etag"}},
		{"tree forgotten", func(t *testing.T, s *service, n *Names) {
			remove(t, s, "d/a")
			n.ForgetTree("d")
		}, map[string]string{"d/a": "nothing"}, []string{"b: file etag"}},
	} {
		for call, a := range ask {
			t.Run(tc.name+"/"+call, func(t *testing.T) {
				s := newService()
				s.fill(t, "d/a", "d/b")
				l := &late{Container: s, got: make(chan struct{}, 8)}
				n, _ := newNames(t, s, time.Minute)
				n.cont = l
				l.during(a.requests, func() { a.call(t.Context(), n) }, func() { tc.change(t, s, n) })
				for range 2 {
					for p, want := range tc.want {
						if got := looked(t, n, p); got != want {
							t.Errorf("%q is %s, want %s", p, got, want)
						}
					}
					if tc.list == nil {
						continue
					}
					if got := listed(t, n, "d", false); !slices.Equal(got, tc.list) {
						t.Errorf("listed %q, want %q", got, tc.list)
					}
				}
			})
		}
	}
}

func remove(t testing.TB, s *service, name string) {
	t.Helper()
	if err := s.store.Delete(name, blob.Condition{}); err != nil {
		t.Fatal(err)
	}
}

// TestPendingStays: a state that the service does not have yet outlives every listing and every timeout, until it is set
// anew.
func TestPendingStays(t *testing.T) {
	s := newService()
	s.fill(t, "d/a")
	n, now := newNames(t, s, time.Minute)
	n.Set("d/new", Entry{Pending: true})
	n.Set("d/a", Entry{Pending: true})
	for range 3 {
		now.forward(time.Hour)
		if got := listed(t, n, "d", true); !slices.Equal(got, []string{"a: file pending", "new: file pending"}) {
			t.Errorf("listed %q", got)
		}
		if got := looked(t, n, "d/new"); got != "file pending" {
			t.Errorf("a new file is %s", got)
		}
	}
	n.Set("d/new", Entry{})
	now.forward(time.Hour)
	if got := listed(t, n, "d", false); !slices.Equal(got, []string{"a: file pending"}) {
		t.Errorf("listed %q", got)
	}
}

// TestNewerAnswerStays: what a lookup has found is not taken back by a listing that was begun before it.
func TestNewerAnswerStays(t *testing.T) {
	s := newService()
	s.fill(t, "d/a")
	l := &late{Container: s, got: make(chan struct{}, 8)}
	n, now := newNames(t, s, time.Minute)
	n.cont = l
	var etag blob.ETag
	l.during(1, func() { listed(t, n, "d", false) }, func() {
		s.fill(t, "d/a", "d/b")
		now.forward(time.Second)
		e, _, err := n.Lookup(t.Context(), "d/a")
		if err != nil {
			t.Error(err)
		}
		etag = e.Properties.ETag
		if got := looked(t, n, "d/b"); got != "file etag" {
			t.Errorf("d/b is %s", got)
		}
	})
	if e, _, _ := n.Known("d/a"); e.Properties.ETag != etag {
		t.Error("the listing brought the old version back")
	}
	if got := listed(t, n, "d", false); !slices.Equal(got, []string{"a: file etag", "b: file etag"}) {
		t.Errorf("listed %q", got)
	}
}

// TestSharedListing: those who want one listing at once ask once; a failure is told to all of them, and the next asks again.
func TestSharedListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		s.fill(t, "d/a")
		n, _ := newNames(t, s, time.Minute)
		hold := make(chan struct{})
		s.faults.Add(blobtest.Fault{Op: "List", Nth: 1, Wait: hold, Err: blobtest.Err("ServerBusy")})
		errs := make(chan error, 8)
		for range cap(errs) {
			go func() {
				_, err := n.List(t.Context(), "d", false)
				errs <- err
			}()
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		synctest.Wait()
		go func() {
			_, err := n.List(ctx, "d", false)
			gone <- err
		}()
		synctest.Wait()
		s.asked(t, "List d/ delimiter=/")
		cancel()
		if err := <-gone; err != context.Canceled {
			t.Errorf("who gave up got %v", err)
		}
		close(hold)
		failed := 0
		for range cap(errs) {
			if err := <-errs; blob.Is(err, blob.Throttled) {
				failed++
			} else if err != nil {
				t.Error(err)
			}
		}
		if failed != 8 {
			t.Errorf("%d of 8 failed", failed)
		}
		s.asked(t)
		listed(t, n, "d", false)
		s.asked(t, "List d/ delimiter=/")
	})
}

// TestLookupFails: an error is not an answer: nothing is remembered, and a lost container is not an empty directory.
func TestLookupFails(t *testing.T) {
	for _, op := range []string{"Properties", "List"} {
		s := newService()
		s.fill(t, "d/a")
		n, _ := newNames(t, s, time.Minute)
		s.faults.Add(blobtest.Fault{Op: op, Err: blobtest.Err("ContainerNotFound")})
		for _, p := range []string{"d/a", "d/none"} {
			if _, _, err := n.Lookup(t.Context(), p); !blob.Is(err, blob.ContainerNotFound) {
				t.Errorf("lookup of %q without %s: %v", p, op, err)
			}
			if _, _, ok := n.Known(p); ok {
				t.Errorf("%q is known after a failure", p)
			}
		}
		if op == "List" {
			if _, err := n.List(t.Context(), "d", false); !blob.Is(err, blob.ContainerNotFound) {
				t.Errorf("listing: %v", err)
			}
		}
		s.faults.Clear()
		if got := looked(t, n, "d/a"); got != "file etag" {
			t.Error(got)
		}
	}
}

// TestHasOther: what keeps a directory from vanishing with one name, by what is known or by one small listing.
func TestHasOther(t *testing.T) {
	for _, tc := range []struct {
		names []string
		want  bool
	}{
		{nil, false},
		{[]string{"d/a"}, false},
		{[]string{"d/a/x", "d/a/y", "d/a"}, false},
		{[]string{"d/", "d/a"}, false},
		{[]string{"*d", "d/a"}, false},
		{[]string{"d/a", "d/b"}, true},
		{[]string{"d/a", "d/b/x"}, true},
		{[]string{"d/", "d/a", "d/a/x", "d/z"}, true},
		{[]string{"d/a", "d/a-"}, true},
	} {
		s := newService()
		s.fill(t, tc.names...)
		n, _ := newNames(t, s, time.Minute)
		for _, known := range []bool{false, true} {
			if known {
				listed(t, n, "d", false)
				s.Reset()
			}
			got, err := n.HasOther(t.Context(), "d", "a")
			if err != nil || got != tc.want {
				t.Errorf("%q, listed %v: %v, error %v; want %v", tc.names, known, got, err, tc.want)
			}
			if n := s.Count(""); known && n > 0 || n > 2 {
				t.Errorf("%q, listed %v: asked %q", tc.names, known, s.Lines())
			}
		}
	}
}
