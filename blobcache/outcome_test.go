package blobcache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// Commits whose outcome is not known, and what others do meanwhile.

// replaceBlock makes another writer's block of the i-th block of a blob, and returns what the blob is then.
func (s *service) replaceBlock(t *testing.T, name string, i int) []byte {
	t.Helper()
	direct := blobtest.NewContainer(s.store, "https://account.example/container")
	list, err := direct.BlockList(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(list.Committed))
	for k, b := range list.Committed {
		ids[k] = b.ID
	}
	theirs := content(77, list.Committed[i].Size)
	ids[i] = strings.Repeat("z", len(ids[i]))
	if err := direct.StageBlock(t.Context(), name, ids[i], bytes.NewReader(theirs), int64(len(theirs))); err != nil {
		t.Fatal(err)
	}
	if _, err := direct.CommitBlockList(t.Context(), name, ids, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	return s.content(t, name)
}

// TestReplacedAfterLanding: our block list lands, its answer is lost, and another writer replaces a block that we have
// not touched but hold. Their bytes are read from then on, in this process or the next.
func TestReplacedAfterLanding(t *testing.T) {
	for _, dies := range []bool{false, true} {
		s, cfg := newService(), config(t.TempDir())
		c := openCache(t, cfg)
		sizes := make([]int64, 20)
		for i := range sizes {
			sizes[i] = 64 * kib
		}
		s.stored(t, "a", 24, sizes...)
		p := s.properties(t, "a")
		bring(t, c, s, p)
		f := c.OpenFile(s, p, noHooks)
		f.Acquire(true)
		if f.Backing() == nil { // so that the first write takes over all of the version
			t.Fatal("the version is not complete and checked")
		}
		put(t, f, content(9, 100), 10)
		if !f.stage.valid.covers(0, p.Size) {
			t.Fatal("the cache file was not taken over")
		}
		s.loseAnswers()
		if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
			t.Fatal(err)
		}
		s.faults.Clear()
		theirs := s.replaceBlock(t, "a", 5)
		if dies {
			crash(c)
			c = openCache(t, cfg)
			recoverAll(t, c, s)
			theNone(t, cfg.Dir)
		} else {
			// To call it a conflict is right as well: the version is not ours.
			if err := f.Commit(t.Context()); err == nil {
				expectAll(t, f, theirs)
			} else if !blob.Is(err, blob.ConditionNotMet) {
				t.Fatal(err)
			}
			f.Release(true)
		}
		same(t, s.content(t, "a"), theirs)
		expectAll(t, openBlob(t, c, s, s.properties(t, "a")), theirs)
		expectAll(t, openBlob(t, openCache(t, cfg), s, s.properties(t, "a")), theirs)
		closeCache(t, c)
	}
}

// TestRecoverNameOfOthers: the empty file that a close was answered for replaces nothing, also when the last writer wins.
func TestRecoverNameOfOthers(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	cfg.LastWriterWins = true
	c := openCache(t, cfg)
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, f, content(1, 100), 0)
	crash(c)
	_, theirs := s.put(t, "a", 500, 99)
	recoverAll(t, openCache(t, cfg), s)
	same(t, s.content(t, "a"), theirs)
	if l := theLeft(t, cfg.Dir); l.State != LeftUnfinished {
		t.Errorf("left: %+v", l)
	}
}

// TestJournalOfAnother: a block of a file that is deleted while it is uploaded leaves no word in the journal, which
// another file has by then.
func TestJournalOfAnother(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	c := openCache(t, cfg)
	hold := make(chan struct{})
	hits := s.faults.Add(blobtest.Fault{Op: "StageBlock", Wait: hold})
	f := create(t, c, s, "a", content(1, 200*kib))
	for hits() < 3 {
		yield()
	}
	journal := f.stage.journal
	if _, err := f.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Gone()
	if !f.Release(true) {
		t.Fatal("a deleted file is not idle")
	}
	want := content(2, 1000)
	g := create(t, c, s, "b", want)
	if g.stage.journal != journal {
		t.Fatal("the journal was not used again")
	}
	close(hold)
	c.background.Wait()
	raw, err := os.ReadFile(c.stagingPath(g.stage.id, extJournal))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := readJournal(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if rec.Base.Name != "b" || len(rec.staged) > 0 || rec.Size != 1000 {
		t.Errorf("the journal speaks of %s of %d bytes, with blocks %v", rec.Base.Name, rec.Size, rec.staged)
	}
	if err := g.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "b"), want)
	g.Release(true)
	shut(t, c)
}

// lateAnswer is a container that appends at once, and answers when the gate is open.
type lateAnswer struct {
	blob.Container
	acted, gate chan struct{}
}

func (l *lateAnswer) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, at int64, c blob.Condition) (blob.Written, error) {
	w, err := l.Container.AppendBlock(ctx, name, body, size, at, c)
	close(l.acted)
	<-l.gate
	l.acted = make(chan struct{})
	return w, err
}

// TestWriteDuringAppend: what a program writes over a tail that is just being appended is refused or saved, never lost.
func TestWriteDuringAppend(t *testing.T) {
	for _, convert := range []bool{false, true} {
		s := newService()
		cfg := config(t.TempDir())
		cfg.ConvertAppend = convert
		c := openCache(t, cfg)
		if _, err := s.store.PutAppend("log", nil, blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		l := &lateAnswer{s, make(chan struct{}), make(chan struct{})}
		f := c.OpenFile(l, s.properties(t, "log"), noHooks)
		f.Acquire(true)
		want := put(t, f, content(1, 100*kib), 0)
		committed, written := make(chan error), make(chan error)
		acted := l.acted
		go func() { committed <- f.Commit(t.Context()) }()
		<-acted
		go func() { written <- f.Write(t.Context(), []byte("over it"), 50*kib) }()
		for range 1000 {
			yield()
		}
		close(l.gate)
		if err := <-committed; err != nil {
			t.Fatal(err)
		}
		err := <-written
		if convert != (err == nil) || !convert && !blob.Is(err, blob.Unsupported) {
			t.Fatalf("conversion %v, write: %v", convert, err)
		}
		if err == nil {
			copy(want[50*kib:], "over it")
		}
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, s.content(t, "log"), want)
		expectAll(t, f, want)
		f.Release(true)
	}
}

// TestAppendTakenBack: an append blob that has grown and was cut again is clean after one request.
func TestAppendTakenBack(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	want := content(1, 100*kib)
	if _, err := s.store.PutAppend("log", bytes.Clone(want), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	var dirtyAfter []bool
	f := c.OpenFile(s, s.properties(t, "log"), Hooks{Committed: func(_ blob.Properties, dirty bool) { dirtyAfter = append(dirtyAfter, dirty) }})
	f.Acquire(true)
	put(t, f, content(2, 1000), 100*kib)
	if err := f.Truncate(t.Context(), 100*kib); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second close finds it clean
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.counts("AppendBlock", "SetMetadata", "Upload"); got != "SetMetadata 1" || f.State().Dirty {
		t.Errorf("requests: %s; dirty: %v", got, f.State().Dirty)
	}
	if len(dirtyAfter) == 0 || dirtyAfter[len(dirtyAfter)-1] {
		t.Errorf("its owner was told that dirty is %v", dirtyAfter)
	}
	expectAll(t, f, want)
	if !f.Release(true) {
		t.Error("it is not idle")
	}
	same(t, s.content(t, "log"), want)
}

// TestOneConnectionLittleMemory: a commit that needs bytes of the blob, and closes that hold all of the memory while they
// wait for the one connection, do not wait for each other.
func TestOneConnectionLittleMemory(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, cfg := newService(), config(dir)
		cfg.Memory, cfg.BlockSize, cfg.Connections = MinMemory, 8*mib, 1
		c := openCache(t, cfg)
		if _, err := s.store.PutSynthetic("base", 16*mib, blobtest.Random(1), blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		p := s.properties(t, "base")
		f := c.OpenFile(s, p, noHooks)
		f.Acquire(true)
		want := content(1, 16*mib)
		copy(want[9*mib:], put(t, f, content(2, 100), 9*mib))
		files, wants := []*File{f}, [][]byte{want}
		for i := range 4 { // as much as the memory holds
			b := content(uint64(10+i), 8*mib)
			files, wants = append(files, create(t, c, s, fmt.Sprint(i), b)), append(wants, b)
		}
		if err := c.uploads.acquire(t.Context()); err != nil { // somebody uploads
			t.Fatal(err)
		}
		done := make(chan error, len(files))
		for _, f := range files {
			go func() { done <- f.Flush(t.Context()) }()
			synctest.Wait()
		}
		c.uploads.release()
		for range files {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		for i, f := range files {
			same(t, s.content(t, f.Name()), wants[i])
			f.Release(true)
		}
		shut(t, c)
	})
}

// TestWritesAfterLostAnswer: a sync whose answer was lost is no conflict for the close after further writes.
func TestWritesAfterLostAnswer(t *testing.T) {
	more := map[string]func(t *testing.T, f *File, b []byte) []byte{
		"nothing": func(_ *testing.T, _ *File, b []byte) []byte { return b },
		"over": func(t *testing.T, f *File, b []byte) []byte {
			copy(b, put(t, f, content(30, min(700, int64(len(b)))), 0))
			return b
		},
		"append": func(t *testing.T, f *File, b []byte) []byte {
			return append(b, put(t, f, content(31, 90*kib), int64(len(b)))...)
		},
		"cut": func(t *testing.T, f *File, b []byte) []byte {
			if err := f.Truncate(t.Context(), int64(len(b)/2)); err != nil {
				t.Fatal(err)
			}
			return b[:len(b)/2]
		},
	}
	for _, w := range writings[1:] {
		for how, on := range more {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/%v", w.name, how, after), func(t *testing.T) {
					s := newService()
					c := openCache(t, config(t.TempDir()))
					f, _, want := w.start(t, c, s)
					for _, op := range []string{"Upload", "CommitBlockList"} {
						s.faults.Add(blobtest.Fault{Op: op, Err: errService, After: after})
					}
					if err := f.Sync(t.Context()); !blob.Is(err, blob.Unavailable) {
						t.Fatal(err)
					}
					s.faults.Clear()
					want = on(t, f, bytes.Clone(want))
					if err := f.Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
					same(t, s.content(t, "a"), want)
					expectAll(t, f, want)
					f.Release(true)
					expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
				})
			}
		}
	}
}

// TestDetachOfUnknown: of a new file whose commit has no known outcome the service may have the blob.
func TestDetachOfUnknown(t *testing.T) {
	for _, w := range writings[1:4] {
		for _, after := range []bool{false, true} {
			s := newService()
			c := openCache(t, config(t.TempDir()))
			f, _, want := w.start(t, c, s)
			for _, op := range []string{"Upload", "CommitBlockList"} {
				s.faults.Add(blobtest.Fault{Op: op, Err: errService, After: after})
			}
			if err := f.Sync(t.Context()); !blob.Is(err, blob.Unavailable) {
				t.Fatal(err)
			}
			s.faults.Clear()
			if f.Rename("b", func() {}) {
				t.Errorf("%s: it was renamed here only", w.name)
			}
			if inService, err := f.Detach(t.Context()); err != nil || !inService {
				t.Fatalf("%s: in the service: %v, error %v", w.name, inService, err)
			}
			if err := s.Delete(t.Context(), "a", blob.Condition{}); after != (err == nil) {
				t.Errorf("%s: deletion: %v", w.name, err)
			}
			f.Gone()
			expectAll(t, f, want)
			f.Release(true)
			if s.content(t, "a") != nil {
				t.Errorf("%s: the deleted blob is back", w.name)
			}
		}
	}
}

// TestSourceOfCopyChanged: a copy is of what its source was then, also when that is changed before the copy is closed.
func TestSourceOfCopyChanged(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int64
		cold bool // nothing of the source is cached
	}{{"small", 10 * kib, false}, {"blocks", 300 * kib, false}, {"large", 2*mib + 7, false}, {"cold", 300 * kib, true}} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			c := openCache(t, config(t.TempDir()))
			p, want := s.put(t, "a", tc.size, 1)
			src := c.OpenFile(s, p, noHooks)
			src.Acquire(true)
			if !tc.cold {
				expectAll(t, src, want)
			}
			dst := c.CreateFile(s, blob.Properties{Name: "b"}, noHooks)
			dst.Acquire(true)
			if n, err := dst.CopyFrom(t.Context(), src, 0, 0, tc.size); n != tc.size || err != nil {
				t.Fatal(n, err)
			}
			changed := bytes.Clone(want)
			copy(changed[100:], put(t, src, content(2, 1000), 100))
			if err := src.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "a"), changed)
			if err := dst.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "b"), want)
			expectAll(t, dst, want)
			dst.Release(true)
			src.Release(true)
			expectAll(t, openBlob(t, c, s, s.properties(t, "b")), want)
		})
	}
}
