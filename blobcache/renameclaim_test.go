package blobcache

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// TestRenameTwoHosts: two hosts rename the same directory to the same name at once. One fails late and goes back; it must
// not delete what the other counts on, which goes forward between any two steps of that.
func TestRenameTwoHosts(t *testing.T) {
	s := newService()
	putTree(t, s)
	looked, failed, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var look, fail sync.Once
	// The one that goes forward has seen that the target is empty, and waits for the other's failure with its first copy.
	forward := &meddling{service: s, before: func(op, name string) {
		if op == "Copy" {
			look.Do(func() { close(looked) })
			<-failed
		}
	}}
	b, a := openCache(t, config(t.TempDir())), openCache(t, config(t.TempDir()))
	var forwardErr error
	go func() {
		defer close(ended)
		defer look.Do(func() { close(looked) })
		forwardErr = b.RenameDir(t.Context(), forward, renaming())
	}()
	<-looked
	faults := blobtest.NewFaults(s)
	faults.Add(blobtest.Fault{Op: "Copy", Name: "to/b/c", Err: errService})
	back := &meddling{service: &service{blobtest.NewTrace(faults), s.store, faults}, before: func(op, name string) {
		if op == "Delete" && name == "to/a" { // it has seen that the source is there
			fail.Do(func() { close(failed) })
			<-ended
		}
	}}
	err := a.RenameDir(t.Context(), back, renaming())
	fail.Do(func() { close(failed) })
	<-ended
	if err == nil {
		t.Error("the one that cannot copy has succeeded")
	}
	want := "from"
	if forwardErr == nil {
		want = "to"
	}
	if at := where(t, s); at != want {
		t.Errorf("one ended with %v, the other with %v, and the service has %s", err, forwardErr, at)
	}
}

// TestRenameClaimed: while the rename of another host to a name is under way, or left from a crash, nobody renames to that
// name, nor a directory that it lies in; and the one whose journal it is goes on.
func TestRenameClaimed(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	putTree(t, s)
	s.put(t, "other/x", 3, 1)
	leaveRename(t, s, cfg, "Delete")
	before := snapshot(t, s)
	for from, to := range map[string]string{"other": "to", "to": "elsewhere"} {
		r := renaming()
		r.From, r.To = from, to
		if from == "other" { // as it is before the first copy
			for name := range before {
				if strings.HasPrefix(name, "to/") && name != "to/" {
					_ = s.store.Delete(name, blob.Condition{})
				}
			}
		}
		now := snapshot(t, s)
		if err := openCache(t, config(t.TempDir())).RenameDir(t.Context(), s, r); !errors.Is(err, ErrRenaming) {
			t.Errorf("%s to %s: %v", from, to, err)
		}
		if !maps.Equal(now, snapshot(t, s)) {
			t.Errorf("%s to %s: something has changed: %q", from, to, slices.Sorted(maps.Keys(snapshot(t, s))))
		}
	}
}

// TestRenameClaimLost: somebody else removes the new directory while the copies are made, so that another host could take
// the name. The rename goes back, and deletes no copy of which it is not certain that it is its own.
func TestRenameClaimLost(t *testing.T) {
	s := newService()
	putTree(t, s)
	var once sync.Once
	m := &meddling{service: s, before: func(op, name string) {
		if op == "Copy" && name == "to/a" {
			once.Do(func() {
				_ = s.store.Delete("to/", blob.Condition{})
				if _, err := s.store.Copy("to/a", "from/a", blob.CopyOptions{}); err != nil { // of the other host
					t.Error(err)
				}
			})
		}
	}}
	if err := openCache(t, config(t.TempDir())).RenameDir(t.Context(), m, renaming()); !errors.Is(err, ErrRenaming) {
		t.Errorf("error %v", err)
	}
	if string(s.content(t, "to/a")) != "a" {
		t.Error("the copy of the other host is deleted")
	}
	_ = s.store.Delete("to/a", blob.Condition{})
	if at := where(t, s); at != "from" {
		t.Errorf("not taken back: %s", at)
	}
}

// TestRenameClaimEnds: a host that has crashed in the middle of a rename, and does not come back, keeps others from its new
// name for an hour. If it comes back later, nothing is lost.
func TestRenameClaimEnds(t *testing.T) {
	later := func(c *Cache) *Cache {
		c.now = func() time.Time { return time.Now().Add(claimTime + time.Minute) }
		return c
	}
	for from, to := range map[string]string{"other": "to", "to": "elsewhere"} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		s.put(t, "other/x", 3, 1)
		leaveRename(t, s, cfg, "Delete")
		if from == "other" {
			for name := range snapshot(t, s) {
				if strings.HasPrefix(name, "to/") && name != "to/" {
					_ = s.store.Delete(name, blob.Condition{})
				}
			}
		}
		r := renaming()
		r.From, r.To = from, to
		if err := later(openCache(t, config(t.TempDir()))).RenameDir(t.Context(), s, r); err != nil {
			t.Errorf("%s to %s: %v", from, to, err)
		}
		if from == "other" && s.content(t, "to/x") == nil || from == "to" && string(s.content(t, "elsewhere/a")) != "a" {
			t.Errorf("%s to %s: %q", from, to, slices.Sorted(maps.Keys(snapshot(t, s))))
		}
		for name := range snapshot(t, s) {
			if p := s.properties(t, name); isClaim(&p) {
				t.Errorf("%s to %s: %q is still claimed", from, to, name)
			}
		}
		recoverRenames(t, later(openCache(t, cfg)), s)
		if string(s.content(t, "from/a")) != "a" || from == "other" && s.content(t, "to/x") == nil {
			t.Errorf("%s to %s: a file is lost: %q", from, to, slices.Sorted(maps.Keys(snapshot(t, s))))
		}
	}
}

// TestRenameDropsOldClaims: what another host's crash has left below a directory goes with the rename of that, also if that
// is interrupted between any two requests: a copy would keep everybody from the new name for an hour again.
func TestRenameDropsOldClaims(t *testing.T) {
	ends := map[string]int{}
	for n, more := 1, true; more; n++ {
		s, cfg := newService(), config(t.TempDir())
		made := time.Now()
		clock := func() time.Time { return made }
		s.store = blobtest.NewStore(blobtest.StoreOptions{Now: func() time.Time { return clock() }})
		s.Trace = blobtest.NewTrace(blobtest.NewContainer(s.store, "https://account.example/container"))
		claim := blob.WriteOptions{Metadata: map[string]string{claimKey: "x"}}
		for _, name := range []string{"from/a/", "from/sub/", "from/z/"} {
			if _, err := s.store.Put(name, nil, claim); err != nil {
				t.Fatal(err)
			}
		}
		clock = func() time.Time { return made.Add(claimTime + time.Minute) }
		s.put(t, "from/sub/file", 1, 1)
		open := func() *Cache {
			c := openCache(t, cfg)
			c.now = clock
			return c
		}
		c := open()
		dying := &mortal{service: s, n: n}
		err := c.RenameDir(t.Context(), smallPages{Container: dying, max: 1}, renaming())
		more = dying.died()
		crash(c)
		recoverRenames(t, open(), s)
		got := strings.Join(slices.Sorted(maps.Keys(snapshot(t, s))), " ")
		ends[got]++
		if got != "to/sub/file" && (err == nil || got != "from/a/ from/sub/ from/sub/file from/z/") {
			t.Errorf("request %d: %v, the service has %q", n, err, got)
		}
		if got != "to/sub/file" {
			continue
		}
		r := renaming()
		r.From, r.To = "to/sub", "elsewhere"
		if err := open().RenameDir(t.Context(), s, r); err != nil {
			t.Errorf("request %d: a directory that was claimed cannot be renamed: %v", n, err)
		}
	}
	if len(ends) != 2 {
		t.Errorf("one way is not tried: %v", ends)
	}
}

// TestRenameKeepsItsClaim: a rename that takes hours is not taken for one of a host that has crashed.
func TestRenameKeepsItsClaim(t *testing.T) {
	s := newService()
	var mu sync.Mutex
	ahead, tried := time.Duration(0), 0
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	s.store = blobtest.NewStore(blobtest.StoreOptions{Now: clock})
	s.Trace = blobtest.NewTrace(blobtest.NewContainer(s.store, "https://account.example/container"))
	for i := range 20 {
		s.put(t, fmt.Sprintf("from/%02d", i), 1, 1)
	}
	s.put(t, "from/sub/x", 1, 1)
	other := openCache(t, config(t.TempDir()))
	other.now = clock
	m := &meddling{service: s, before: func(op, name string) {
		mu.Lock()
		ahead += 11 * time.Minute
		mu.Unlock()
		if !strings.HasSuffix(name, "5") {
			return
		}
		tried++
		r := renaming()
		r.From, r.To = "to", "elsewhere"
		if err := other.RenameDir(t.Context(), s, r); !errors.Is(err, ErrRenaming) {
			t.Errorf("%s %s: another host's rename: %v", op, name, err)
		}
	}}
	c := openCache(t, config(t.TempDir()))
	c.now = clock
	if err := c.RenameDir(t.Context(), smallPages{Container: m, max: 1}, renaming()); err != nil {
		t.Fatal(err)
	}
	if tried != 4 {
		t.Errorf("tried %d times", tried)
	}
	if s.content(t, "to/19") == nil || s.content(t, "to/sub/x") == nil || s.store.Len() != 21 {
		t.Errorf("the service has %q", slices.Sorted(maps.Keys(snapshot(t, s))))
	}
}

// TestRenameRestoresTarget: a rename over an empty directory of other tools that fails leaves the marker of that as it was.
func TestRenameRestoresTarget(t *testing.T) {
	s := newService()
	putTree(t, s)
	o := blob.WriteOptions{Metadata: map[string]string{"k": "v"}, Headers: blob.Headers{ContentType: "text/plain"}}
	if _, err := s.store.Put("to/", nil, o); err != nil {
		t.Fatal(err)
	}
	s.faults.Add(blobtest.Fault{Op: "Copy", Name: "to/b/c", Err: errService})
	if err := openCache(t, config(t.TempDir())).RenameDir(t.Context(), s, renaming()); err == nil {
		t.Fatal("no error")
	}
	if p := s.properties(t, "to/"); !maps.Equal(p.Metadata, o.Metadata) || p.Headers.ContentType != "text/plain" {
		t.Errorf("the marker is %+v", p)
	}
}
