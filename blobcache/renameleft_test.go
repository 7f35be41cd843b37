package blobcache

import (
	"os"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blobtest"
)

// listRenames returns the renames in a cache directory, each as a line.
func listRenames(t *testing.T, dir string) (lines []string) {
	t.Helper()
	all, err := ListRenames(dir)
	if err != nil {
		t.Fatal(err)
	}
	return renameLines(all)
}

func renameLines(all []Rename) (lines []string) {
	for _, r := range all {
		line := r.Step.String() + " " + r.From + " " + r.To
		if r.InUse {
			line += ", in use"
		}
		if r.Reason != "" {
			line += ", it failed"
		}
		lines = append(lines, line)
	}
	return lines
}

// TestListRenames: what is under way, and what was left, is told with its step, to the process that renames and to others.
func TestListRenames(t *testing.T) {
	for op, want := range map[string]struct{ during, left string }{
		"Copy":   {"copying from to, in use", "going back from to"},
		"Delete": {"deleting from to, in use", "deleting from to"},
	} {
		s, cfg := newService(), config(t.TempDir())
		putTree(t, s)
		c := openCache(t, cfg)
		check := func(when string, got []string, want ...string) {
			t.Helper()
			if strings.Join(got, "; ") != strings.Join(want, "; ") {
				t.Errorf("%s, %s: %q, want %q", op, when, got, want)
			}
		}
		wait, reached := make(chan struct{}), make(chan struct{})
		name := map[string]string{"Copy": "to/b/c", "Delete": "from/b/c"}[op]
		s.faults.Add(blobtest.Fault{Op: op, Name: name, Wait: wait, Err: errService})
		if op == "Copy" {
			s.faults.Add(blobtest.Fault{Op: "Delete", Err: errService}) // it does not get back
		}
		m := &meddling{service: s, before: func(o, n string) {
			if o == op && n == name {
				close(reached)
			}
		}}
		done := make(chan error)
		began := time.Now()
		go func() { done <- c.RenameDir(t.Context(), m, renaming()) }()
		<-reached
		check("during it", listRenames(t, cfg.Dir), want.during)
		check("during it, to its process", renameLines(c.Renames(m)), want.during)
		close(wait)
		if err := <-done; err == nil {
			t.Error("no error")
		}
		check("after it", listRenames(t, cfg.Dir), want.left)
		check("after it, to its process", renameLines(c.Renames(m)), want.left+", it failed")
		all, err := ListRenames(cfg.Dir)
		if err != nil || len(all) != 1 || all[0].Blobs != int64(len(renameTree)-3) || all[0].PID != os.Getpid() || all[0].Began.Before(began.Add(-time.Second)) ||
			all[0].Container != s.URL("") {
			t.Errorf("%s: %+v, %v", op, all, err)
		}
		crash(c)
		s.faults.Clear()
		c = openCache(t, cfg)
		if left, err := c.LeftRenames(s); err != nil || len(left) != 1 {
			t.Errorf("%s: %v, %v", op, left, err)
		}
		check("to a process that finds it", renameLines(c.Renames(s)), want.left)
		recoverRenames(t, openCache(t, cfg), s)
		check("when it is finished", listRenames(t, cfg.Dir))
		check("when it is finished by another process", renameLines(c.Renames(s)))
	}

	cfg := config(t.TempDir())
	openCache(t, cfg)
	if err := os.MkdirAll(cfg.Dir+"/"+renamesDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.Dir+"/"+renamesDir+"/X"+extJournal, []byte("something else that is no journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := listRenames(t, cfg.Dir); len(got) != 1 || !strings.HasPrefix(got[0], "unreadable") {
		t.Errorf("a journal that cannot be read: %q", got)
	}
}
