package blobcache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// What may be done, and what is remembered, as long as the outcome of a commit is open.

// lateCommit is a container on which a commit is made only when the next one arrives: its caller has given up long before.
type lateCommit struct {
	blob.Container
	late func() // the one that is on its way
}

// hold keeps a commit on its way, if none is, and reports whether it did.
func (l *lateCommit) hold(act func()) bool {
	if l.late != nil {
		l.late()
		l.late = func() {}
		return false
	}
	l.late = act
	return true
}

func (l *lateCommit) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return blob.Written{}, err
	}
	send := func() (blob.Written, error) { return l.Container.Upload(ctx, name, bytes.NewReader(b), size, o) }
	if l.hold(func() { _, _ = send() }) {
		return blob.Written{}, errService
	}
	return send()
}

func (l *lateCommit) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	send := func() (blob.Written, error) { return l.Container.CommitBlockList(ctx, name, ids, o) }
	if l.hold(func() { _, _ = send() }) {
		return blob.Written{}, errService
	}
	return send()
}

// TestLostAndLate: a commit that was given up arrives when it is known not to have landed, and the file was changed and is
// committed again: the older one is ours as well.
func TestLostAndLate(t *testing.T) {
	for _, w := range writings[1:] {
		for how, change := range lostChanges {
			t.Run(w.name+"/"+how, func(t *testing.T) {
				s := newService()
				c := openCache(t, config(t.TempDir()))
				f, _, want := w.start(t, c, s)
				c.background.Wait()
				f.cont = &lateCommit{Container: s}
				if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
					t.Fatal(err)
				}
				want = change(t, f, bytes.Clone(want))
				if err := f.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				same(t, s.content(t, "a"), want)
				expectAll(t, f, want)
				f.Release(true)
			})
		}
	}
}

// TestLostAppend: of several pieces of an append the answer to one is lost. What is there is not appended again, and the
// rest follows. What may be at the end of the blob already is not changed before that is known.
func TestLostAppend(t *testing.T) {
	for nth := 1; nth <= 3; nth++ {
		for _, landed := range []bool{true, false} {
			for _, dies := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d/%v/%v", nth, landed, dies), func(t *testing.T) {
					s, cfg := newService(), config(t.TempDir())
					c := openCache(t, cfg)
					want := content(1, 100*kib)
					if _, err := s.store.PutAppend("log", bytes.Clone(want), blob.WriteOptions{}); err != nil {
						t.Fatal(err)
					}
					f := c.OpenFile(s, s.properties(t, "log"), noHooks)
					f.Acquire(true)
					want = append(want, put(t, f, content(2, 9*mib), 100*kib)...)
					s.faults.Add(blobtest.Fault{Op: "AppendBlock", Nth: nth, Err: errService, After: landed})
					if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
						t.Fatal(err)
					}
					s.faults.Add(blobtest.Fault{Op: "Properties", Nth: 1, Err: errService})
					if dies {
						crash(c)
						c = openCache(t, cfg)
						recoverAll(t, c, s)
						shut(t, c)
						theNone(t, cfg.Dir)
						same(t, s.content(t, "log"), want)
						if p := s.properties(t, "log"); p.Kind != blob.AppendBlob {
							t.Error("it is no append blob any more")
						}
						return
					}
					over := int64(100*kib + (nth-1)*appendPiece + 5)
					if err := f.Write(t.Context(), []byte("over it"), over); !blob.Is(err, blob.Unavailable) {
						t.Errorf("a write over what may be there: %v", err)
					}
					s.faults.Clear()
					if err := f.Write(t.Context(), []byte("over it"), over); !blob.Is(err, blob.Unsupported) {
						t.Errorf("a write over what is there: %v", err)
					}
					if err := f.Commit(t.Context()); err != nil {
						t.Fatal(err)
					}
					same(t, s.content(t, "log"), want)
					expectAll(t, f, want)
					f.Release(true)
				})
			}
		}
	}
}

// TestLostCopySource: a copy whose answer was lost, and whose source was replaced by as many bytes before the question, is
// not taken for one of the source as it was.
func TestLostCopySource(t *testing.T) {
	w := commitWays[len(commitWays)-1]
	for _, gone := range []bool{false, true} {
		s := newService()
		c := openCache(t, config(t.TempDir()))
		f, _, want := w.begin(t, c, s)
		s.loseCommit(t, f)
		if _, err := s.Copy(t.Context(), "a", "source", blob.CopyOptions{}); err != nil { // somebody's
			t.Fatal(err)
		}
		if gone {
			if err := s.Delete(t.Context(), "source", blob.Condition{}); err != nil {
				t.Fatal(err)
			}
		} else {
			s.put(t, "source", int64(len(want)), 77)
		}
		if err := f.Commit(t.Context()); !blob.Is(err, blob.ConditionNotMet) {
			t.Errorf("gone %v: %v", gone, err)
		}
		same(t, s.content(t, "a"), want)
		f.Release(true)
	}
}

// TestTriedAgain: a commit that is repeated during an outage is remembered once, and the next process finds it once.
func TestTriedAgain(t *testing.T) {
	for _, w := range commitWays {
		s, cfg := newService(), config(t.TempDir())
		c := openCache(t, cfg)
		f, _, want := w.begin(t, c, s)
		for _, op := range commits {
			s.faults.Add(blobtest.Fault{Op: op, Name: "a", Err: errService})
		}
		for range 5 {
			if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
				t.Fatal(err)
			}
		}
		raw, err := os.ReadFile(c.stagingPath(f.stage.id, extJournal))
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := readJournal(bytes.NewReader(raw)); err != nil || len(rec.tried) != 1 || len(f.tried) != 1 {
			t.Errorf("%s: %d remembered, in the journal %d, error %v", w.name, len(f.tried), len(rec.tried), err)
		}
		s.faults.Clear()
		if err := f.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, s.content(t, "a"), want)
		f.Release(true)
	}
}

// TestReleaseUnderCommit: a block that is uploaded during a commit, or after one whose outcome is open, is not given up on
// the disk: the commit discards it.
func TestReleaseUnderCommit(t *testing.T) {
	for _, lost := range []bool{false, true} {
		s := newService()
		c := openCache(t, config(t.TempDir()))
		want := content(1, 320*kib)
		f := create(t, c, s, "a", want)
		hold, done := make(chan struct{}), make(chan error, 1)
		fault := blobtest.Fault{Op: "CommitBlockList", Wait: hold}
		if lost {
			fault.Err, fault.After = errService, true
		}
		hits := s.faults.Add(fault)
		go func() { done <- f.Commit(t.Context()) }()
		for hits() == 0 {
			yield()
		}
		if lost {
			close(hold)
			if err := <-done; !blob.Is(err, blob.Unavailable) {
				t.Fatal(err)
			}
			s.faults.Clear()
		}
		want = append(want, put(t, f, content(2, 200*kib), 320*kib)...)
		c.background.Wait()
		if n := s.Count("StageBlock"); n != 8 {
			t.Fatalf("%d blocks were sent", n)
		}
		if !f.releaseStaged(100) || f.stage.released.total() != 320*kib {
			t.Errorf("%d bytes were given up, want those of the commit", f.stage.released.total())
		}
		if !lost {
			close(hold)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, s.content(t, "a"), want)
		expectAll(t, f, want)
		f.Release(true)
	}
}

// TestCopyUnderCommit: while the outcome of a commit is open, no other blob can become what lies under the file.
func TestCopyUnderCommit(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	p, want := s.put(t, "source", 300*kib, 1)
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	put(t, f, []byte("x"), 0)
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.loseCommit(t, f)
	if n, err := f.CopyFrom(t.Context(), c.OpenFile(s, p, noHooks), 0, 0, p.Size); n != 0 || err != nil {
		t.Fatalf("%d bytes were copied, error %v", n, err)
	}
	put(t, f, want, 0) // as the caller does then
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	f.Release(true)
}

// TestLostQuestionAtRecovery: a process died in a rename or a deletion, and the question what became of it fails at the
// next mount. Until it is answered nothing is sent, and no conflict is declared.
func TestLostQuestionAtRecovery(t *testing.T) {
	for _, tc := range []struct {
		name  string
		begin func(t *testing.T, s *service, f *File) // what the process did last
		at    string                                  // where the file is saved; empty: nowhere
	}{
		{"move made", func(t *testing.T, s *service, f *File) {
			if err := f.beginMove("b"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Copy(t.Context(), "b", "a", blob.CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := s.Delete(t.Context(), "a", blob.Condition{}); err != nil {
				t.Fatal(err)
			}
		}, "b"},
		{"move not made", func(t *testing.T, _ *service, f *File) {
			if err := f.beginMove("b"); err != nil {
				t.Fatal(err)
			}
		}, "a"},
		{"deleted", func(t *testing.T, s *service, f *File) {
			if _, err := f.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.Delete(t.Context(), "a", blob.Condition{}); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"not deleted", func(t *testing.T, _ *service, f *File) {
			if _, err := f.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, "a"},
		{"landed, not deleted", func(t *testing.T, s *service, f *File) {
			s.loseCommit(t, f)
			put(t, f, content(3, 100), 0)
			if err := f.finish(true, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, "a"},
	} {
		for nth := 1; nth <= 3; nth++ { // the question that fails
			t.Run(fmt.Sprintf("%s/%d", tc.name, nth), func(t *testing.T) {
				s, cfg := newService(), writeBackConfig(t.TempDir())
				cfg.WriteBack = WriteBackSync
				c := openCache(t, cfg)
				p, want := s.put(t, "a", 10*kib, 1)
				f := c.OpenFile(s, p, noHooks)
				f.Acquire(true)
				f.Acquire(false)
				expectAll(t, f, want)
				copy(want, put(t, f, content(2, 1000), 0))
				if err := f.finish(true, 0); err != nil {
					t.Fatal(err)
				}
				tc.begin(t, s, f)
				if tc.name == "landed, not deleted" {
					copy(want, content(3, 100))
				}
				crash(c)
				c = openCache(t, cfg)
				before := s.made()
				hits := s.faults.Add(blobtest.Fault{Op: "Properties", Nth: nth, Err: errService})
				recoverAll(t, c, s)
				if hits() > 0 && s.made() > before {
					t.Error("a version was sent")
				}
				s.faults.Clear()
				shut(t, c)
				theNone(t, cfg.Dir)
				for _, name := range []string{"a", "b"} {
					got := s.content(t, name)
					if name == tc.at {
						same(t, got, want)
					} else if got != nil {
						t.Errorf("%s is there", name)
					}
				}
			})
		}
	}
}

// TestJournalTried: a journal tells which commits may be in the service, and what has changed since each of them.
func TestJournalTried(t *testing.T) {
	h := testHeader()
	j, read := newTestJournal(t, h)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	first := attempt{Way: byPut, Size: 100, CRC: 7}
	second := attempt{Way: byList, Size: 200, IDs: digest([]string{"x", "y"})}
	must(j.json(recTried, &first))
	if got := read().tried; len(got) != 1 || got[0].changed || got[0].upTo != 100 || !got[0].old || got[0].CRC != 7 {
		t.Fatalf("after the first: %+v", got)
	}
	must(j.span(recWritten, 90, 200))
	must(j.finish(nil, true, true))
	must(j.json(recTried, &second))
	must(j.setSize(50))
	must(j.span(recWritten, 40, 60))
	rec := read()
	if got := rec.tried; len(got) != 2 || !got[0].changed || !got[1].changed || got[0].upTo != 50 || got[1].upTo != 50 ||
		!reflect.DeepEqual(got[1].since, extents{{40, 60}}) || !bytes.Equal(got[1].IDs, second.IDs) {
		t.Fatalf("after the second: %+v", got)
	}
	// The state that was to stand does not know what came later, but what may have landed.
	if got := rec.stable.tried; len(got) != 2 || got[0].upTo != 100 || got[1].upTo != 200 || !got[1].changed {
		t.Fatalf("of the state that stands: %+v", got)
	}
	h.Base.Limit = 50
	must(j.json(recBase, h.Base))
	if got := read().tried; len(got) != 2 {
		t.Fatalf("on the same version: %+v", got)
	}
	h.Base.ETag = `"2"`
	must(j.json(recBase, h.Base))
	if got := read().tried; len(got) != 0 {
		t.Fatalf("on another version: %+v", got)
	}
	for range 3 * mostTried {
		must(j.json(recTried, &first))
		first.CRC++
	}
	if got := read().tried; len(got) != mostTried || got[0].CRC != 7 || got[mostTried-1].CRC != first.CRC-1 {
		t.Fatalf("of many: %+v", got)
	}
}
