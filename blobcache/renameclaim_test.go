package blobcache

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"

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
				if name != "to/" && len(name) > 3 && name[:3] == "to/" {
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
