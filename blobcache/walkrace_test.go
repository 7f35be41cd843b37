package blobcache

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// TestReaderKeepsItsPlace: a program deletes what it is shown, of a directory whose listing is taken over by another one on
// the way. The indexes have moved by then; everything is shown all the same, once.
func TestReaderKeepsItsPlace(t *testing.T) {
	s := newService()
	want := []string{}
	for i := range 6 {
		s.fill(t, fmt.Sprintf("r/a%d/x", i))
	}
	for i := range 10 {
		want = append(want, fmt.Sprintf("f%03d", i))
	}
	for i := range 200 {
		s.fill(t, fmt.Sprintf("r/m/sub/%03d", i)) // the walk through these is given up
	}
	want = append(want, "sub")
	for i := range 5 {
		want = append(want, fmt.Sprintf("z%03d", i))
	}
	for _, name := range want {
		if name != "sub" {
			s.fill(t, "r/m/"+name)
		}
	}
	n, _ := newNames(t, s, time.Hour)
	n.cont = smallPages{Container: s, max: 10}
	listed(t, n, "r", false)
	for i := range 6 {
		listed(t, n, fmt.Sprintf("r/a%d", i), false)
	}
	r, err := n.Open(t.Context(), "r/m")
	if err != nil {
		t.Fatal(err)
	}
	if r.l.walk == nil {
		t.Fatal("no walk brings the directory: the test does not test what it says")
	}
	var seen []string
	for pos, before := 0, -1; len(seen) != before; {
		before = len(seen)
		if err := r.Read(t.Context(), pos, func(e Named, next int) bool {
			if len(seen) == before+4 {
				return false
			}
			seen, pos = append(seen, e.Name), next
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for _, name := range seen[before:] {
			if name != "sub" {
				remove(t, s, "r/m/"+name)
				n.Remove("r/m/" + name)
			}
		}
	}
	if r.l.walk != nil {
		t.Error("the walk was not given up")
	}
	if !slices.Equal(seen, want) {
		t.Errorf("shown %q, want %q", seen, want)
	}
}

// TestForgottenIsNotOlder: our own change counts against a walk that was under way, also when it was forgotten meanwhile for
// want of memory, or when nothing was known of its directory.
func TestForgottenIsNotOlder(t *testing.T) {
	for _, how := range []string{"released", "forgotten"} {
		s := newService()
		s.fill(t, "r/b/gone", "r/b/other")
		for i := range 6 {
			s.fill(t, fmt.Sprintf("r/a%d/x", i))
		}
		n, _ := newNames(t, s, time.Hour)
		raced := false
		n.cont = &hook{Container: s, after: func() {
			n.mu.Lock()
			walking := len(n.walks) > 0
			n.mu.Unlock()
			if raced || !walking {
				return
			}
			raced = true
			if err := s.store.Delete("r/b/gone", blob.Condition{}); err != nil {
				t.Error(err)
			}
			if how == "forgotten" {
				n.Forget("r/b/gone")
				return
			}
			n.Remove("r/b/gone")
			n.mu.Lock()
			n.release(n.dirs["r/b"])
			n.mu.Unlock()
		}}
		listed(t, n, "r", false)
		for i := range 5 {
			listed(t, n, fmt.Sprintf("r/a%d", i), false)
		}
		if !raced {
			t.Fatal("there was no walk")
		}
		if got := looked(t, n, "r/b/gone"); got != "nothing" {
			t.Errorf("%s: a deleted name is a %s", how, got)
		}
		if got := listed(t, n, "r/b", false); !slices.Equal(got, []string{"other: file etag"}) {
			t.Errorf("%s: listed %q", how, got)
		}
	}
}

// TestWalkIsBounded: however well a walk did before, one directory does not wait for a huge one beside it.
func TestWalkIsBounded(t *testing.T) {
	s := newService()
	for i := range 400 {
		s.fill(t, fmt.Sprintf("r/a%03d/x", i))
	}
	for i := range 600 {
		s.fill(t, fmt.Sprintf("r/huge/%04d", i))
	}
	s.fill(t, "r/zz/one")
	n, _ := newNames(t, s, time.Hour)
	n.cont = smallPages{Container: s, max: 10}
	listed(t, n, "r", false)
	for i := range 400 {
		listed(t, n, fmt.Sprintf("r/a%03d", i), false)
	}
	s.Reset()
	listed(t, n, "r/zz", false)
	if got := s.Count("List"); got > cheapPages+2 {
		t.Errorf("%d requests for a directory with one name", got)
	}
}

// TestOtherIsRemembered: deleting a directory name by name looks at all names a few times, not once for each.
func TestOtherIsRemembered(t *testing.T) {
	s := newService()
	const names = 1000
	for i := range names {
		s.fill(t, fmt.Sprintf("d/%04d", i))
	}
	n, _ := newNames(t, s, time.Hour)
	listed(t, n, "d", false)
	searches, last := 0, ""
	for i := range names {
		name := fmt.Sprintf("%04d", i)
		has, err := n.HasOther(t.Context(), "d", name)
		if err != nil || has != (i < names-1) {
			t.Fatalf("%s: %v, error %v", name, has, err)
		}
		if other := n.dirs["d"].other; other != last {
			searches, last = searches+1, other
		}
		n.Remove("d/" + name)
	}
	if searches > names/20 {
		t.Errorf("%d searches", searches) // about ln 1000, 7
	}
}
