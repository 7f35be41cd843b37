package blobcache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// writeBackConfig never sends by itself what was closed.
func writeBackConfig(dir string) Config {
	cfg := config(dir)
	cfg.WriteBack, cfg.Delay = WriteBackClose, time.Hour
	return cfg
}

// TestRecover: what a close was answered for is saved by the next process, however it was written.
func TestRecover(t *testing.T) {
	for _, w := range writings {
		t.Run(w.name, func(t *testing.T) {
			s, cfg := newService(), writeBackConfig(t.TempDir())
			c := openCache(t, cfg)
			f, base, want := w.start(t, c, s)
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "a"), base)
			crash(c)
			if l := theLeft(t, cfg.Dir); l.State != LeftFinished || l.Name != "a" || l.Size != int64(len(want)) {
				t.Fatalf("left: %+v", l)
			}
			c = openCache(t, cfg)
			recoverAll(t, c, s)
			same(t, s.content(t, "a"), want)
			if all, err := ListLeft(cfg.Dir); err != nil || len(all) > 0 {
				t.Fatalf("still left: %+v, error %v", all, err)
			}
			expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
		})
	}
}

// TestRecoverUnfinished: a file that was being written is not committed, but kept for its owner.
func TestRecoverUnfinished(t *testing.T) {
	for _, w := range writings[1:] {
		t.Run(w.name, func(t *testing.T) {
			s, cfg := newService(), config(t.TempDir())
			c := openCache(t, cfg)
			_, base, want := w.start(t, c, s)
			crash(c)
			c = openCache(t, cfg)
			recoverAll(t, c, s)
			if got := s.content(t, "a"); !bytes.Equal(got, base) {
				t.Fatalf("the blob has %d bytes, want the %d of before", len(got), len(base))
			}
			l := theLeft(t, cfg.Dir)
			if l.State != LeftUnfinished {
				t.Fatalf("left: %+v", l)
			}
			var b bytes.Buffer
			if n, err := c.Save(t.Context(), l.ID, s, &b); n > 0 || err != nil {
				t.Fatal(n, err)
			}
			same(t, b.Bytes(), want)
			theLeft(t, cfg.Dir) // saving a copy changes nothing
			if err := c.Retry(t.Context(), l.ID, s, noHooks); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "a"), want)
			if err := Discard(cfg.Dir, l.ID); err == nil || !strings.Contains(err.Error(), "recover list") {
				t.Errorf("discard of what was saved: %v", err)
			}
		})
	}
}

// TestRecoverConflict: when somebody else has changed the blob, their version stays and ours is kept.
func TestRecoverConflict(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f, _, want := writings[4].start(t, c, s)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	crash(c)
	_, theirs := s.put(t, "a", 500, 99)
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	same(t, s.content(t, "a"), theirs)
	l := theLeft(t, cfg.Dir)
	if l.State != LeftConflict || !strings.Contains(l.Reason, "another writer") {
		t.Fatalf("left: %+v", l)
	}
	if err := c.Retry(t.Context(), l.ID, s, noHooks); !blob.Is(err, blob.ConditionNotMet) {
		t.Fatalf("retry without force: %v", err)
	}
	cfg.LastWriterWins = true
	forced := openCache(t, cfg)
	if err := forced.Retry(t.Context(), l.ID, s, noHooks); !blob.Is(err, blob.ConditionNotMet) {
		// What was not written is of a version that is gone: it must not be mixed with the new one.
		t.Fatalf("retry of a change to a version that is gone: %v", err)
	}
	_ = want
	if err := Discard(cfg.Dir, l.ID); err != nil {
		t.Fatal(err)
	}
	if all, _ := ListLeft(cfg.Dir); len(all) > 0 {
		t.Errorf("left after discard: %+v", all)
	}
}

// TestRecoverLanded: a commit whose reply was lost together with its process is no conflict.
func TestRecoverLanded(t *testing.T) {
	for _, w := range writings[1:] {
		t.Run(w.name, func(t *testing.T) {
			s, cfg := newService(), config(t.TempDir())
			c := openCache(t, cfg)
			f, _, want := w.start(t, c, s)
			for _, op := range []string{"Upload", "CommitBlockList"} {
				s.faults.Add(blobtest.Fault{Op: op, Err: &blob.Error{Code: blob.Unavailable}, After: true})
			}
			if err := f.Flush(t.Context()); err == nil {
				t.Fatal("a commit without a reply succeeded")
			}
			same(t, s.content(t, "a"), want)
			crash(c)
			s.faults.Clear()
			theLeft(t, cfg.Dir)
			recoverAll(t, openCache(t, cfg), s)
			same(t, s.content(t, "a"), want)
			if all, err := ListLeft(cfg.Dir); err != nil || len(all) > 0 {
				t.Errorf("left: %+v, error %v", all, err)
			}
		})
	}
}

// TestPowerCut cuts and zeroes a staging file that was not synced: what cannot be proven to be what was written is not
// committed.
func TestPowerCut(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"cut":     func(path string) error { return os.Truncate(path, 100) },
		"zeroed":  func(path string) error { return os.WriteFile(path, make([]byte, 1000), 0o600) },
		"missing": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			s, cfg := newService(), config(t.TempDir())
			c := openCache(t, cfg)
			f, _, _ := writings[1].start(t, c, s)
			s.faults.Add(blobtest.Fault{Op: "Upload", Err: &blob.Error{Code: blob.Unavailable}})
			if f.Flush(t.Context()) == nil {
				t.Fatal("a commit that failed succeeded")
			}
			crash(c)
			s.faults.Clear()
			if err := damage(filepath.Join(cfg.Dir, stagingDir, f.stage.id+extData)); err != nil {
				t.Fatal(err)
			}
			c = openCache(t, cfg)
			recoverAll(t, c, s)
			if got := s.content(t, "a"); got != nil {
				t.Errorf("%d damaged bytes were committed", len(got))
			}
			if l := theLeft(t, cfg.Dir); l.State != LeftDamaged {
				t.Errorf("left: %+v", l)
			}
		})
	}
}

// TestLeftWithoutData: where the file with the bytes is missing, nobody gets zeros for them.
func TestLeftWithoutData(t *testing.T) {
	for _, closed := range []bool{false, true} {
		s, cfg := newService(), writeBackConfig(t.TempDir())
		c := openCache(t, cfg)
		f, _, _ := writings[1].start(t, c, s)
		if closed {
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		crash(c)
		if err := os.Remove(c.stagingPath(f.stage.id, extData)); err != nil {
			t.Fatal(err)
		}
		c = openCache(t, cfg)
		recoverAll(t, c, s)
		l := theLeft(t, cfg.Dir)
		if l.State != LeftDamaged || l.Reason != errNoData.Error() {
			t.Fatalf("left: %+v", l)
		}
		if _, err := c.Save(t.Context(), l.ID, s, io.Discard); !errors.Is(err, errNoData) {
			t.Errorf("closed %v: saved, error %v", closed, err)
		}
		if err := c.Retry(t.Context(), l.ID, s, noHooks); err == nil || s.content(t, "a") != nil {
			t.Errorf("closed %v: sent, error %v", closed, err)
		}
		if err := Discard(cfg.Dir, l.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecoverDeleted: a file that was deleted before it was saved does not come back.
func TestRecoverDeleted(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f, _, _ := writings[1].start(t, c, s)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if inService, err := f.Detach(t.Context()); err != nil || inService {
		t.Fatal(inService, err)
	}
	f.Gone()
	c.track(f, true) // for crash
	crash(c)
	recoverAll(t, openCache(t, cfg), s)
	if got := s.content(t, "a"); got != nil {
		t.Errorf("the deleted file has %d bytes", len(got))
	}
	if names, _ := os.ReadDir(filepath.Join(cfg.Dir, stagingDir)); len(names) > 0 {
		t.Errorf("staging files of a deleted file: %v", names)
	}
}

// TestLeftInUse: nobody takes a staging file from a living process.
func TestLeftInUse(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f, _, want := writings[1].start(t, c, s)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := theLeft(t, cfg.Dir)
	if l.State != LeftInUse {
		t.Errorf("left: %+v", l)
	}
	other := openCache(t, cfg)
	recoverAll(t, other, s)
	if got := s.content(t, "a"); got != nil {
		t.Error("another process has committed it")
	}
	if err := Discard(cfg.Dir, l.ID); err == nil || !strings.Contains(err.Error(), "unmount") {
		t.Errorf("discard: %v", err)
	}
	shut(t, c)
	same(t, s.content(t, "a"), want)
	theNone(t, cfg.Dir)
}

func theNone(t *testing.T, dir string) {
	t.Helper()
	if all, err := ListLeft(dir); err != nil || len(all) > 0 {
		t.Errorf("left: %+v, error %v; want nothing", all, err)
	}
}

// TestWriteBackOrder: what comes after a close that was answered for waits until the service has what was closed.
func TestWriteBackOrder(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f, _, want := writings[1].start(t, c, s)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.content(t, "a"); got != nil {
		t.Fatal("it was sent at once")
	}
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	put(t, f, []byte("half of the next"), 0)
	same(t, s.content(t, "a"), want)
	crash(c)
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	same(t, s.content(t, "a"), want)
	if l := theLeft(t, cfg.Dir); l.State != LeftUnfinished {
		t.Errorf("left: %+v", l)
	}
}

// TestCrashAtEachCall ends the process when a request fails, before or after the service acted. What was answered for
// is in the service or is saved by the next process; what was not is whole, old or new, and nothing that was written
// is gone.
func TestCrashAtEachCall(t *testing.T) {
	for _, w := range writings[1:] {
		for _, mode := range []WriteBack{WriteThrough, WriteBackClose} {
			for _, after := range []bool{false, true} {
				for n := 1; crashAt(t, w, mode, n, after); n++ {
					if n > 50 {
						t.Fatal("more requests than a file of a few blocks needs")
					}
				}
			}
		}
	}
}

// crashAt reports whether there was an n-th request.
func crashAt(t *testing.T, w writing, mode WriteBack, n int, after bool) bool {
	t.Helper()
	s, cfg := newService(), writeBackConfig(t.TempDir())
	cfg.WriteBack = mode
	c := openCache(t, cfg)
	hits := s.faults.Add(blobtest.Fault{Nth: n, After: after, Err: blobtest.Err("ServerBusy")})
	f, base, want := w.start(t, c, s)
	answer := f.Flush(t.Context())
	if answer == nil && mode != WriteThrough {
		_ = f.Commit(t.Context())
	}
	hit := hits() > 0
	crash(c)
	s.faults.Clear()
	checkWhole(t, s, base, want)
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	checkWhole(t, s, base, want)
	saved := bytes.Equal(s.content(t, "a"), want)
	if !saved && answer == nil {
		t.Errorf("%s, mode %d, request %d: what was answered for is not saved", w.name, mode, n)
	}
	if !saved {
		var b bytes.Buffer
		if _, err := c.Save(t.Context(), theLeft(t, cfg.Dir).ID, s, &b); err != nil {
			t.Fatal(err)
		}
		same(t, b.Bytes(), want)
	}
	return hit
}

// TestWriteBackEmpty: a shell closes a descriptor of the new file that it is about to write to. That costs no request;
// after a crash the name is there, and what was written is kept.
func TestWriteBackEmpty(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := put(t, f, content(1, 100), 0)
	if n := s.Count("Upload"); n > 0 {
		t.Errorf("%d uploads before the file was closed", n)
	}
	crash(c)
	for range 2 { // the second mount finds the name saved
		c = openCache(t, cfg)
		recoverAll(t, c, s)
		same(t, s.content(t, "a"), []byte{})
	}
	l := theLeft(t, cfg.Dir)
	if l.State != LeftUnfinished {
		t.Fatalf("left: %+v", l)
	}
	if err := c.Retry(t.Context(), l.ID, s, noHooks); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
}

// TestRecoverLandedSync: a log that is appended to and synced, of which the answer to one sync is lost with the process.
func TestRecoverLandedSync(t *testing.T) {
	for lost := 1; lost <= 12; lost++ {
		s, cfg := newService(), config(t.TempDir())
		c := openCache(t, cfg)
		f := c.CreateFile(s, blob.Properties{Name: "log"}, noHooks)
		f.Acquire(true)
		var want []byte
		for i := range lost {
			want = append(want, put(t, f, content(uint64(i), 20*kib), int64(len(want)))...)
			if i == lost-1 {
				for _, op := range []string{"Upload", "CommitBlockList"} {
					s.faults.Add(blobtest.Fault{Op: op, Err: &blob.Error{Code: blob.Unavailable}, After: true})
				}
			}
			if err := f.Sync(t.Context()); (err != nil) != (i == lost-1) {
				t.Fatal(i, err)
			}
		}
		same(t, s.content(t, "log"), want)
		crash(c)
		s.faults.Clear()
		recoverAll(t, openCache(t, cfg), s)
		same(t, s.content(t, "log"), want)
		if all, err := ListLeft(cfg.Dir); err != nil || len(all) > 0 {
			t.Errorf("sync %d: left: %+v, error %v", lost, all, err)
		}
	}
}

// TestRecoverLandedAgain is the same for a log that each process opens anew.
func TestRecoverLandedAgain(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	var want []byte
	if _, err := s.Upload(t.Context(), "log", bytes.NewReader(nil), 0, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		c := openCache(t, cfg)
		f := c.OpenFile(s, s.properties(t, "log"), noHooks)
		f.Acquire(true)
		for k := range 3 {
			want = append(want, put(t, f, content(uint64(3*i+k), 7*kib), int64(len(want)))...)
			if k == 2 {
				for _, op := range []string{"Upload", "CommitBlockList"} {
					s.faults.Add(blobtest.Fault{Op: op, Err: &blob.Error{Code: blob.Unavailable}, After: true})
				}
			}
			if err := f.Sync(t.Context()); (err != nil) != (k == 2) {
				t.Fatal(i, k, err)
			}
		}
		same(t, s.content(t, "log"), want)
		crash(c)
		s.faults.Clear()
		recoverAll(t, openCache(t, cfg), s)
		same(t, s.content(t, "log"), want)
		if all, err := ListLeft(cfg.Dir); err != nil || len(all) > 0 {
			t.Fatalf("process %d: left: %+v, error %v", i, all, err)
		}
	}
}

// TestBackgroundNotFinished: a commit in the background whose turn comes when the file is being written anew does not
// note that as meant to be saved.
func TestBackgroundNotFinished(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	f, _, want := writings[1].start(t, c, s)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	closed := f.gen
	if err := f.Truncate(t.Context(), 0); err != nil { // has saved what was closed
		t.Fatal(err)
	}
	if err := f.commitState(t.Context(), closed); !errors.Is(err, errMoved) {
		t.Errorf("commit of a state that is gone: %v", err)
	}
	crash(c)
	recoverAll(t, openCache(t, cfg), s)
	same(t, s.content(t, "a"), want)
}
