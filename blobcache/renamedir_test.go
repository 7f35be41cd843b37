package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// renameTree is a directory of all kinds of blobs: content by name, and what goes with it.
var renameTree = map[string]struct {
	content string
	options blob.WriteOptions
}{
	"from":         {"", blob.WriteOptions{Metadata: map[string]string{MarkerKey: "true", "mode": "0700"}}},
	"from/":        {"", blob.WriteOptions{}},
	"from/a":       {"a", blob.WriteOptions{Metadata: map[string]string{"mode": "0600"}, Tags: map[string]string{"k": "v"}, Tier: "Cool"}},
	"from/b/c":     {"c", blob.WriteOptions{Headers: blob.Headers{ContentType: "text/plain"}}},
	"from/d":       {"", blob.WriteOptions{Metadata: map[string]string{MarkerKey: "true"}}},
	"from/d/":      {"", blob.WriteOptions{}},
	"from/link":    {"target", blob.WriteOptions{Metadata: map[string]string{"is_symlink": "true"}}},
	"from//odd":    {"odd", blob.WriteOptions{}},
	"from2/beside": {"beside", blob.WriteOptions{}},
}

func putTree(t *testing.T, s *service) {
	t.Helper()
	for name, b := range renameTree {
		if _, err := s.store.Put(name, []byte(b.content), b.options); err != nil {
			t.Fatal(err)
		}
	}
}

// where returns "from" or "to" if all of the tree is there and nothing is at the other name; else it says what is wrong.
func where(t *testing.T, s *service) string {
	t.Helper()
	page, err := s.store.List(blob.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	at := map[string]int{}
	for _, b := range page.Blobs {
		names = append(names, b.Name)
		top, rest, _ := strings.Cut(b.Name, "/")
		if top == b.Name {
			rest = ""
		} else {
			rest = "/" + rest
		}
		at[top]++
		old := "from" + rest
		if top == "from2" {
			old = b.Name
		}
		want, ok := renameTree[old]
		if !ok || string(s.content(t, b.Name)) != want.content || !maps.Equal(b.Metadata, want.options.Metadata) ||
			b.TagCount != len(want.options.Tags) || want.options.Tier != "" && b.Tier != want.options.Tier ||
			want.options.Headers.ContentType != "" && b.Headers.ContentType != want.options.Headers.ContentType {
			return fmt.Sprintf("%q is not what it was: %+v", b.Name, b)
		}
	}
	for _, top := range []string{"from", "to"} {
		if at[top] == len(renameTree)-1 && len(at) == 2 && at["from2"] == 1 {
			return top
		}
	}
	return fmt.Sprintf("%q", names)
}

// renaming renames "from" to "to" for callers that have nothing open.
func renaming() DirRename {
	return DirRename{
		From: "from", To: "to", Opened: func(string) *File { return nil }, Deleting: func() {},
		Moved: func(string, blob.ETag, string, blob.Written) {}, Done: func(blob.Properties, bool) {},
	}
}

// journals returns the names of the journals of renames in a cache directory.
func journals(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, renamesDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func recoverRenames(t *testing.T, c *Cache, cont blob.Container) {
	t.Helper()
	var held atomic.Int64 // also by what goes on in the background
	err := c.RecoverRenames(t.Context(), cont, func(_ context.Context, from, to string) func() {
		if from != "from" || to != "to" {
			t.Errorf("recovers %q to %q", from, to)
		}
		held.Add(1)
		return func() { held.Add(-1) }
	})
	if err != nil || held.Load() != 0 {
		t.Fatalf("%v, %d held", err, held.Load())
	}
}

// TestRenameDir renames over nothing, and over an empty directory of each kind.
func TestRenameDir(t *testing.T) {
	marker := blob.WriteOptions{Metadata: map[string]string{MarkerKey: "true", "mode": "0711"}}
	for what, target := range map[string]map[string]blob.WriteOptions{
		"nothing":      {},
		"marker":       {"to": marker},
		"slash":        {"to/": {}},
		"both":         {"to": marker, "to/": {}},
		"other prefix": {},
	} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		for name, o := range target {
			if _, err := s.store.Put(name, nil, o); err != nil {
				t.Fatal(err)
			}
		}
		c := openCache(t, cfg)
		moved := map[string]string{}
		var mu sync.Mutex
		var marker blob.Properties
		r := renaming()
		r.Moved = func(name string, was blob.ETag, to string, w blob.Written) {
			mu.Lock()
			defer mu.Unlock()
			moved[name] = to
			if s.properties(t, to).ETag != w.ETag || was == "" || was == w.ETag {
				t.Errorf("%s: %q moved to %q as %v, was %v", what, name, to, w, was)
			}
		}
		r.Done = func(m blob.Properties, left bool) {
			if marker = m; left {
				t.Errorf("%s: something is left", what)
			}
		}
		if err := c.RenameDir(t.Context(), s, r); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if at := where(t, s); at != "to" {
			t.Errorf("%s: %s", what, at)
		}
		if len(moved) != len(renameTree)-3 || moved["from/b/c"] != "to/b/c" || marker.Name != "to" || marker.Metadata["mode"] != "0700" {
			t.Errorf("%s: told of %v, marker %+v", what, moved, marker)
		}
		if j := journals(t, cfg.Dir); len(j) > 0 {
			t.Errorf("%s: journals %q are left", what, j)
		}
	}
}

// TestRenameImplied renames a directory without a marker over an empty one, whose marker goes away.
func TestRenameImplied(t *testing.T) {
	s := newService()
	s.put(t, "from/x", 10, 1)
	if _, err := s.store.Put("to", nil, blob.WriteOptions{Metadata: map[string]string{MarkerKey: "true"}}); err != nil {
		t.Fatal(err)
	}
	c := openCache(t, config(t.TempDir()))
	if err := c.RenameDir(t.Context(), s, renaming()); err != nil {
		t.Fatal(err)
	}
	if s.store.Len() != 1 || s.content(t, "to/x") == nil {
		t.Errorf("%d blobs", s.store.Len())
	}
}

// TestRenameRefused: what cannot be renamed stays as it is, and nothing is left anywhere.
func TestRenameRefused(t *testing.T) {
	for what, test := range map[string]struct {
		arrange func(s *service)
		to      string
		is      func(error) bool
	}{
		"target not empty": {
			arrange: func(s *service) { s.put(t, "to/x", 1, 1) },
			is:      func(err error) bool { return errors.Is(err, ErrNotEmpty) },
		},
		"a blob that cannot be copied": {
			arrange: func(s *service) {
				if err := s.store.SetTier("from/b/c", "Archive"); err != nil {
					t.Fatal(err)
				}
			},
			is: func(err error) bool { return blob.Is(err, blob.Archived) },
		},
		"a name that is too long": {
			to: strings.Repeat("x", blob.MaxNameLength-3),
			is: func(err error) bool { return errors.Is(err, ErrNameTooLong) },
		},
	} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		if test.arrange != nil {
			test.arrange(s)
		}
		before := snapshot(t, s)
		r := renaming()
		if test.to != "" {
			r.To = test.to
		}
		r.Done = func(blob.Properties, bool) { t.Errorf("%s: done", what) }
		c := openCache(t, cfg)
		if err := c.RenameDir(t.Context(), s, r); !test.is(err) {
			t.Errorf("%s: error %v", what, err)
		}
		if after := snapshot(t, s); !maps.Equal(before, after) {
			t.Errorf("%s: before %v\nafter %v", what, before, after)
		}
		if j := journals(t, cfg.Dir); len(j) > 0 {
			t.Errorf("%s: journals %q are left", what, j)
		}
	}
}

// TestRenameTooLong: names that would be too long are found before anything is done, on whichever page of the listing, and
// also those of files that the service does not have yet.
func TestRenameTooLong(t *testing.T) {
	long := strings.Repeat("n", blob.MaxNameLength-len("from/z"))
	deep := strings.Repeat("/x", blob.MaxSegments-1)[1:]
	for what, test := range map[string]struct {
		to, name string
		isNew    bool
	}{
		"length":   {to: "longer", name: "from/z" + long},
		"segments": {to: "to/deeper", name: "from/" + deep},
		"new file": {to: "longer", name: "from/z" + long, isNew: true},
	} {
		s := newService()
		for i := range 5000 {
			if _, err := s.store.Put(fmt.Sprintf("from/%04d", i), nil, blob.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		c := openCache(t, config(t.TempDir()))
		r := renaming()
		r.To = test.to
		dirty := c.OpenFile(s, s.properties(t, "from/0001"), noHooks)
		dirty.Acquire(true)
		put(t, dirty, []byte("x"), 0)
		r.Files = map[string]*File{"from/0001": dirty}
		if test.isNew {
			f := create(t, c, s, test.name, []byte("new"))
			defer f.Release(true)
			r.Files[test.name] = f
		} else {
			s.put(t, test.name, 1, 1)
		}
		s.Reset()
		if err := c.RenameDir(t.Context(), s, r); !errors.Is(err, ErrNameTooLong) {
			t.Errorf("%s: error %v", what, err)
		}
		for _, line := range s.Lines() {
			if op, _, _ := strings.Cut(line, " "); op != "List" && op != "Properties" {
				t.Errorf("%s: %.60s", what, line)
			}
		}
		dirty.Release(true)
	}
}

// snapshot returns the versions of all blobs.
func snapshot(t *testing.T, s *service) map[string]blob.ETag {
	t.Helper()
	page, err := s.store.List(blob.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]blob.ETag{}
	for _, b := range page.Blobs {
		all[b.Name] = b.ETag
	}
	return all
}

// TestRenameFaultAtEachCall lets each request of a rename fail, before and after the service acted. The rename succeeds,
// or nothing has changed, or the next mount finishes it.
func TestRenameFaultAtEachCall(t *testing.T) {
	for _, after := range []bool{false, true} {
		hit, outcomes := true, map[string]int{}
		for n := 1; hit; n++ {
			s, cfg := newService(), config(t.TempDir())
			putTree(t, s)
			c := openCache(t, cfg)
			hits := s.faults.Add(blobtest.Fault{Nth: n, After: after, Err: errService})
			done := false
			r := renaming()
			r.Done = func(blob.Properties, bool) { done = true }
			err := c.RenameDir(t.Context(), s, r)
			hit = hits() > 0
			at, left := where(t, s), journals(t, cfg.Dir)
			switch {
			case err == nil && (at != "to" || len(left) > 0 || !done):
				t.Errorf("request %d, after %v: succeeded, but %s, journals %q", n, after, at, left)
			case err != nil && !done && len(left) == 0 && at != "from":
				t.Errorf("request %d, after %v: %v, nothing is left to do, but %s", n, after, err, at)
			case err != nil && done && len(left) == 0:
				t.Errorf("request %d, after %v: %v, it is done, but no journal is left", n, after, err)
			}
			s.faults.Clear()
			crash(c)
			recoverRenames(t, openCache(t, cfg), s)
			at = where(t, s)
			if want := map[bool]string{true: "to", false: "from"}[done]; at != want || len(journals(t, cfg.Dir)) > 0 {
				t.Errorf("request %d, after %v: %v, then recovered to %s, want %s", n, after, err, at, want)
			}
			outcomes[fmt.Sprintf("done %v, error %v, journal %v", done, err != nil, len(left) > 0)]++
		}
		if len(outcomes) < 3 {
			t.Errorf("few outcomes: %v", outcomes)
		}
	}
}

// mortal is a service for a process that ends: from the n-th request on all fail, and the service has acted on the n-th
// if after.
type mortal struct {
	*service
	mu    sync.Mutex // guards calls
	calls int
	n     int
	after bool
}

// died reports whether the n-th request came. A rename that has failed may have asked for its next page.
func (m *mortal) died() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls >= m.n
}

func (m *mortal) dies(act func() error) error {
	m.mu.Lock()
	m.calls++
	calls := m.calls
	m.mu.Unlock()
	if calls < m.n || calls == m.n && m.after {
		if err := act(); err != nil || calls < m.n {
			return err
		}
	}
	return errService
}

func (m *mortal) Properties(ctx context.Context, name string, c blob.Condition) (p blob.Properties, err error) {
	return p, m.dies(func() error { p, err = m.service.Properties(ctx, name, c); return err })
}

func (m *mortal) List(ctx context.Context, o blob.ListOptions) (p blob.Page, err error) {
	return p, m.dies(func() error { p, err = m.service.List(ctx, o); return err })
}

func (m *mortal) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (w blob.Written, err error) {
	return w, m.dies(func() error { w, err = m.service.Copy(ctx, dst, src, o); return err })
}

func (m *mortal) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (w blob.Written, err error) {
	return w, m.dies(func() error { w, err = m.service.Upload(ctx, name, body, size, o); return err })
}

func (m *mortal) Delete(ctx context.Context, name string, c blob.Condition) error {
	return m.dies(func() error { return m.service.Delete(ctx, name, c) })
}

// TestRenameCrashAtEachCall ends the process between any two requests of a rename, and the next one between any two
// requests of its recovery. The third one always ends with each blob in exactly one place.
func TestRenameCrashAtEachCall(t *testing.T) { renameCrashes(t, crash) }

// TestRenamePowerCutAtEachCall is the same with losses of power.
func TestRenamePowerCutAtEachCall(t *testing.T) {
	renameCrashes(t, func(c *Cache) { powerCut(t, c) })
}

func renameCrashes(t *testing.T, crash func(*Cache)) {
	for _, after := range []bool{false, true} {
		ends := map[string]int{}
		for n, more := 1, true; more; n++ {
			for k, again := 1, true; again; k += 3 {
				s, cfg := newService(), config(t.TempDir())
				putTree(t, s)
				c := openCache(t, cfg)
				dying := &mortal{service: s, n: n, after: after}
				err := c.RenameDir(t.Context(), dying, renaming())
				more = dying.died()
				crash(c)
				c = openCache(t, cfg)
				dying = &mortal{service: s, n: k, after: after}
				recoverRenames(t, c, dying)
				again = dying.died()
				crash(c)
				recoverRenames(t, openCache(t, cfg), s)
				at := where(t, s)
				if at != "from" && at != "to" || err == nil && at != "to" || len(journals(t, cfg.Dir)) > 0 {
					t.Errorf("request %d, then %d, after %v: %v, recovered to %s", n, k, after, err, at)
				}
				ends[at]++
			}
		}
		if ends["from"] == 0 || ends["to"] == 0 {
			t.Errorf("ended at %v: one way is not tried", ends)
		}
	}
}

// leave lets a process end in the middle of a rename, just before the n-th call of op for a name.
func leaveRename(t *testing.T, s *service, cfg Config, ops ...string) {
	t.Helper()
	for _, op := range ops {
		s.faults.Add(blobtest.Fault{Op: op, Err: errService})
	}
	c := openCache(t, cfg)
	if err := c.RenameDir(t.Context(), s, renaming()); err == nil {
		t.Fatal("no error")
	}
	crash(c)
	s.faults.Clear()
	if len(journals(t, cfg.Dir)) != 1 {
		t.Fatal("no journal")
	}
}

// TestRecoverRenameTwice: a rename that another process works with is left alone, one of another container too, and a
// journal that cannot be read.
func TestRecoverRenameTwice(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	putTree(t, s)
	leaveRename(t, s, cfg, "Delete")
	path := journals(t, cfg.Dir)[0]
	c := openCache(t, cfg)
	recoverRenames(t, c, blob.Sub(s, "from/"))
	if left, err := c.LeftRenames(s); err != nil || len(left) != 1 || left[0].From != "from" || left[0].To != "to" {
		t.Errorf("left %+v, %v", left, err)
	}
	d, err := c.openRename(path, s)
	if err != nil {
		t.Fatal(err)
	}
	other := openCache(t, cfg)
	before := snapshot(t, s)
	recoverRenames(t, other, s)
	if !maps.Equal(before, snapshot(t, s)) {
		t.Error("two processes work with one rename")
	}
	d.j.close()
	if err := os.WriteFile(path+"2", []byte("something else that is no journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	recoverRenames(t, other, s)
	if at, left := where(t, s), journals(t, cfg.Dir); at != "to" || !slices.Equal(left, []string{path + "2"}) {
		t.Errorf("%s, journals %q", at, left)
	}
}

// TestRecoverRenameBesideOthers: who holds the journal of a rename just when a mount begins does not keep it from finishing
// that: at once after some milliseconds, else when the other lets it go, of which the log tells once. It does not ask for one
// of another container.
func TestRecoverRenameBesideOthers(t *testing.T) {
	for _, held := range []time.Duration{0, lockPause / 2, 3 * lockPause, 10 * time.Minute} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		leaveRename(t, s, cfg, "Delete")
		path := journals(t, cfg.Dir)[0]
		var log logged
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		synctest.Test(t, func(t *testing.T) {
			other := lockJournal(t, path)
			c := openCache(t, cfg)
			begun := time.Now()
			recoverRenames(t, c, blob.Sub(s, "from/"))
			if took := time.Since(begun); took > 0 || strings.Contains(log.String(), path) {
				t.Errorf("a mount of another container waited for %v, log %q", took, log.String())
			}
			go func() {
				time.Sleep(held)
				_ = other.Close()
			}()
			if held < lockPause {
				synctest.Wait()
			}
			recoverRenames(t, c, s)
			late := held > time.Second
			if at := where(t, s); (at == "to") == late || strings.Count(log.String(), path) != map[bool]int{true: 1}[late] {
				t.Errorf("locked for %v by another process: %s, log %q", held, at, log.String())
			}
			time.Sleep(held + lastRetry)
			synctest.Wait()
			if at := where(t, s); at != "to" || strings.Count(log.String(), path) != map[bool]int{true: 1}[late] {
				t.Errorf("when the other process has let it go after %v: %s, log %q", held, at, log.String())
			}
			closeCache(t, c)
		})
	}
}

// TestRecoverRenameOfDeletedCopy: between the end of a process and the next, somebody has deleted a copy, or changed a
// source. Nothing of theirs is undone.
func TestRecoverRenameOfDeletedCopy(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	putTree(t, s)
	leaveRename(t, s, cfg, "Delete")
	if err := s.store.Delete("to/a", blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	s.put(t, "from/b/c", 3, 7)
	recoverRenames(t, openCache(t, cfg), s)
	if s.content(t, "from/a") == nil || len(s.content(t, "from/b/c")) != 3 || string(s.content(t, "to/b/c")) != "c" {
		t.Errorf("the service has %v", slices.Sorted(maps.Keys(snapshot(t, s))))
	}
	if len(journals(t, cfg.Dir)) > 0 {
		t.Error("a journal is left")
	}
}

// meddling is a service on which somebody acts just before requests.
type meddling struct {
	*service
	before func(op, name string)
}

func (m *meddling) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	m.before("Copy", dst)
	return m.service.Copy(ctx, dst, src, o)
}

func (m *meddling) Properties(ctx context.Context, name string, c blob.Condition) (blob.Properties, error) {
	m.before("Properties", name)
	return m.service.Properties(ctx, name, c)
}

func (m *meddling) Delete(ctx context.Context, name string, c blob.Condition) error {
	m.before("Delete", name)
	return m.service.Delete(ctx, name, c)
}

// TestRenameBesideWriters: what other hosts do meanwhile is neither lost nor overwritten.
func TestRenameBesideWriters(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	putTree(t, s)
	m := &meddling{service: s, before: func(op, name string) {
		switch op + " " + name {
		case "Copy to/a": // changed after it was listed: the new version is renamed
			if s.content(t, "from/a")[0] == 'a' {
				s.put(t, "from/a", 2, 1)
			}
		case "Copy to/link": // deleted after it was listed
			_ = s.store.Delete("from/link", blob.Condition{})
		case "Delete from/b/c": // changed after it was copied: both stay
			s.put(t, "from/b/c", 3, 1)
		}
	}}
	var left bool
	r := renaming()
	r.Done = func(_ blob.Properties, l bool) { left = l }
	c := openCache(t, cfg)
	if err := c.RenameDir(t.Context(), m, r); err != nil {
		t.Fatal(err)
	}
	got := snapshot(t, s)
	want := []string{"from/b/c", "from2/beside", "to", "to/", "to//odd", "to/a", "to/b/c", "to/d", "to/d/"}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) || !left {
		t.Errorf("the service has %q, want %q; left %v", names, want, left)
	}
	if len(s.content(t, "to/a")) != 2 || len(s.content(t, "from/b/c")) != 3 || string(s.content(t, "to/b/c")) != "c" {
		t.Error("a version of another writer is lost")
	}

	// A name that somebody takes below the target ends it.
	s, cfg = newService(), config(t.TempDir())
	putTree(t, s)
	m = &meddling{service: s, before: func(op, name string) {
		if op+" "+name == "Copy to/b/c" {
			s.put(t, "to/b/c", 5, 1)
		}
	}}
	if err := openCache(t, cfg).RenameDir(t.Context(), m, renaming()); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("error %v", err)
	}
	if len(s.content(t, "to/b/c")) != 5 {
		t.Error("the blob of another writer is lost")
	}
	_ = s.store.Delete("to/b/c", blob.Condition{})
	if at := where(t, s); at != "from" {
		t.Errorf("not taken back: %s", at)
	}
}

// TestRenameLostCopy: another host writes a blob of the same size after it was copied, and the answer to the copy is lost.
// Its version stays under the old name, also when the process ends before it has noted the copy.
func TestRenameLostCopy(t *testing.T) {
	for _, ended := range []bool{false, true} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		copied, path, saved := false, "", []byte(nil)
		m := &meddling{service: s, before: func(op, name string) {
			if op != "Copy" || name != "to/a" || copied {
				return
			}
			copied = true
			o := blob.CopyOptions{Source: blob.Condition{IfMatch: s.properties(t, "from/a").ETag}}
			if _, err := s.store.Copy("to/a", "from/a", o); err != nil {
				t.Error(err)
			}
			if ended {
				path = journals(t, cfg.Dir)[0]
				var err error
				if saved, err = os.ReadFile(path); err != nil {
					t.Error(err)
				}
				s.faults.Add(blobtest.Fault{Err: errService})
				return
			}
			s.put(t, "from/a", 1, 7)
		}}
		c := openCache(t, cfg)
		if err := c.RenameDir(t.Context(), m, renaming()); (err != nil) != ended {
			t.Fatalf("ended %v: %v", ended, err)
		}
		if ended {
			crash(c)
			s.faults.Clear()
			if err := os.WriteFile(path, saved, 0o600); err != nil {
				t.Fatal(err)
			}
			s.put(t, "from/a", 1, 7)
			recoverRenames(t, openCache(t, cfg), s)
		}
		if old := s.content(t, "from/a"); len(old) != 1 || old[0] == 'a' || string(s.content(t, "to/a")) != "a" {
			t.Errorf("ended %v: under the old name is %q, under the new %q", ended, old, s.content(t, "to/a"))
		}
		if s.content(t, "from/b/c") != nil || string(s.content(t, "to/b/c")) != "c" || len(journals(t, cfg.Dir)) > 0 {
			t.Errorf("ended %v: not finished: %q", ended, slices.Sorted(maps.Keys(snapshot(t, s))))
		}
	}
}

// TestRenameChangedMarker: another host changes the marker of an empty directory that is being renamed. It has its new name
// then, also when the answer to its copy was lost, and what is under the old name is not deleted unseen.
func TestRenameChangedMarker(t *testing.T) {
	marker := func(mode string) blob.WriteOptions {
		return blob.WriteOptions{Metadata: map[string]string{MarkerKey: "true", "mode": mode}}
	}
	for _, what := range []string{"changed", "changed and lost", "target removed"} {
		lost := what == "changed and lost"
		s := newService()
		put := func(name, mode string) {
			if _, err := s.store.Put(name, nil, marker(mode)); err != nil {
				t.Error(err)
			}
		}
		put("from", "0700")
		put("to", "0711")
		changed := false
		m := &meddling{service: s, before: func(op, name string) {
			if op != "Copy" || changed {
				return
			}
			changed = true
			if lost {
				if _, err := s.store.Copy("to", "from", blob.CopyOptions{}); err != nil {
					t.Error(err)
				}
			}
			if what == "target removed" {
				_ = s.store.Delete("to", blob.Condition{})
			} else {
				put("from", "0755")
			}
		}}
		var left bool
		r := renaming()
		r.Done = func(_ blob.Properties, l bool) { left = l }
		if err := openCache(t, config(t.TempDir())).RenameDir(t.Context(), m, r); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		want, there := "0700", []string{"to"}
		switch what {
		case "changed":
			want = "0755"
		case "changed and lost": // both are somebody's wish
			there = []string{"from", "to"}
		}
		if got := slices.Sorted(maps.Keys(snapshot(t, s))); !slices.Equal(got, there) || left != lost {
			t.Errorf("%s: the service has %q, left %v", what, got, left)
		} else if got := s.properties(t, "to").Metadata["mode"]; got != want {
			t.Errorf("%s: mode %s, want %s", what, got, want)
		}
	}
}

// TestRenameOpenFiles renames what is open: clean, dirty, new, and opened in the middle. Each goes on under its new name.
func TestRenameOpenFiles(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	putTree(t, s)
	c := openCache(t, cfg)
	clean := openBlob(t, c, s, s.properties(t, "from/link"))
	late := c.OpenFile(s, s.properties(t, "from/b/c"), noHooks)
	dirty := c.OpenFile(s, s.properties(t, "from/a"), noHooks)
	dirty.Acquire(true)
	put(t, dirty, []byte("A"), 0)
	isNew := create(t, c, s, "from/new", []byte("new"))
	r := renaming()
	r.Files = map[string]*File{"from/a": dirty, "from/new": isNew, "from/link": clean}
	r.Opened = func(name string) *File {
		if name == "from/b/c" {
			return late
		}
		return nil
	}
	if err := c.RenameDir(t.Context(), s, r); err != nil {
		t.Fatal(err)
	}
	if s.content(t, "from/new") != nil || s.content(t, "to/new") != nil {
		t.Error("a file that nobody closed was committed")
	}
	late.Acquire(true)
	put(t, late, []byte("C"), 0)
	put(t, dirty, []byte("more"), 1)
	for _, f := range []*File{dirty, isNew, late} {
		if err := f.Commit(t.Context()); err != nil {
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
	expect(t, clean, 0, []byte("target"))
	for name, want := range map[string]string{"to/a": "Amore", "to/new": "new", "to/b/c": "C"} {
		if got := s.content(t, name); string(got) != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"from/a", "from/new", "from/b/c"} {
		if s.content(t, name) != nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, f := range []*File{dirty, isNew, late} {
		f.Release(true)
	}
}

// TestRenameOpensMeanwhile opens a file for reading while its source is being deleted, and reads it before the rename ends.
// It goes on under its new name, and can be written to then.
func TestRenameOpensMeanwhile(t *testing.T) {
	for _, when := range []string{"before the deletion", "after it", "before the rename"} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		c := openCache(t, cfg)
		was := s.properties(t, "from/a")
		var f *File // opened with what was known before
		open := func() {
			f = c.OpenFile(s, was, noHooks)
			f.Acquire(false)
		}
		read := make(chan error, 1)
		m := &meddling{service: s, before: func(op, name string) {
			if op == "Delete" && name == "from/a" && when == "before the deletion" {
				open()
			}
		}}
		r := renaming()
		r.Opened = func(name string) *File {
			if name == "from/a" {
				return f
			}
			return nil
		}
		if when == "before the rename" {
			open()
			r.Files = map[string]*File{"from/a": f}
		}
		r.Moved = func(name string, _ blob.ETag, _ string, _ blob.Written) {
			if name != "from/a" {
				return
			}
			if when == "after it" {
				open()
			}
			go func() { // it waits until the move of this blob is over
				d, err := f.Read(t.Context(), make([]byte, 1), 0)
				if err == nil {
					d.Done()
				}
				read <- err
			}()
		}
		if err := c.RenameDir(t.Context(), m, r); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if err := <-read; err != nil {
			t.Errorf("opened %s: read during the rename: %v", when, err)
		}
		if f.Name() != "to/a" {
			t.Errorf("opened %s: the name is %q", when, f.Name())
		}
		expect(t, f, 0, []byte("a"))
		f.Acquire(true)
		put(t, f, []byte("A"), 0)
		if err := f.Flush(t.Context()); err != nil {
			t.Errorf("opened %s: close: %v", when, err)
		}
		if s.content(t, "from/a") != nil || string(s.content(t, "to/a")) != "A" {
			t.Errorf("opened %s: the new name has %q", when, s.content(t, "to/a"))
		}
		f.Release(true)
		f.Release(false)
	}
}

// TestRenameFailsWithOpenFiles: the files of a rename that failed go on under their old names.
func TestRenameFailsWithOpenFiles(t *testing.T) {
	s := newService()
	putTree(t, s)
	c := openCache(t, config(t.TempDir()))
	isNew := create(t, c, s, "from/new", []byte("new"))
	dirty := c.OpenFile(s, s.properties(t, "from/a"), noHooks)
	dirty.Acquire(true)
	put(t, dirty, []byte("A"), 0)
	r := renaming()
	r.Files = map[string]*File{"from/a": dirty, "from/new": isNew}
	s.faults.Add(blobtest.Fault{Op: "Copy", Name: "to/b/c", Err: errService})
	if err := c.RenameDir(t.Context(), s, r); err == nil {
		t.Fatal("no error")
	}
	s.faults.Clear()
	for _, f := range []*File{dirty, isNew} {
		put(t, f, []byte("!"), 3)
		if err := f.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		f.Release(true)
	}
	if got := string(s.content(t, "from/new")) + string(s.content(t, "from/a")); got != "new!A\x00\x00!" {
		t.Errorf("got %q", got)
	}
}

// TestRecoverMoved: a process ends when a file was renamed in the service and its File was not told, with bytes that a
// close was answered for. They are saved under the new name.
func TestRecoverMoved(t *testing.T) {
	for _, when := range []string{"before the copy", "after the deletion"} {
		s, cfg := newService(), writeBackConfig(t.TempDir())
		cfg.WriteBack = WriteBackSync
		s.put(t, "a", 3, 1)
		c := openCache(t, cfg)
		f := c.OpenFile(s, s.properties(t, "a"), noHooks)
		f.Acquire(true)
		put(t, f, []byte("1"), 0)
		p, err := f.BeginMove(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		put(t, f, []byte("23"), 1)
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := "a"
		if when == "after the deletion" {
			if _, err := s.store.Copy("b", "a", blob.CopyOptions{Source: blob.Condition{IfMatch: p.ETag}}); err != nil {
				t.Fatal(err)
			}
			if err := s.store.Delete("a", blob.Condition{}); err != nil {
				t.Fatal(err)
			}
			want = "b"
		}
		crash(c)
		recoverAll(t, openCache(t, cfg), s)
		if got := s.content(t, want); string(got) != "123" || s.store.Len() != 1 {
			t.Errorf("%s: %q, %d blobs", when, got, s.store.Len())
		}
		theNone(t, cfg.Dir)
	}
}

// TestRenameProgress: a rename that takes long says how far it has come.
func TestRenameProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, cfg := newService(), config(t.TempDir())
		var log bytes.Buffer // the handler locks it
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		putTree(t, s)
		c := openCache(t, cfg)
		wait := make(chan struct{})
		s.faults.Add(blobtest.Fault{Op: "Copy", Name: "to/b/c", Wait: wait})
		done := make(chan error)
		go func() { done <- c.RenameDir(t.Context(), s, renaming()) }()
		synctest.Wait()
		time.Sleep(renameProgress * 3 / 2) // of the bubble
		close(wait)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "copied=5") || !strings.Contains(lines[1], "renamed a directory") {
			t.Errorf("the log has %q", lines)
		}
		closeCache(t, c)
	})
}
