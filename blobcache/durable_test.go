package blobcache

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// What was answered for outlives crashes, losses of power, refused changes and lost answers.

var errService = &blob.Error{Code: blob.Unavailable}

// loseAnswers lets commits be made, and their answers be lost, until the faults are cleared.
func (s *service) loseAnswers() {
	for _, op := range []string{"Upload", "CommitBlockList"} {
		s.faults.Add(blobtest.Fault{Op: op, Err: errService, After: true})
	}
}

// create opens a new file for writing and puts its first bytes into it.
func create(t *testing.T, c *Cache, s blob.Container, name string, b []byte) *File {
	t.Helper()
	f := c.CreateFile(s, blob.Properties{Name: name}, noHooks)
	f.Acquire(true)
	put(t, f, b, 0)
	return f
}

// erase makes zeros of bytes of a staging file, as a loss of power does to what was not synced.
func erase(t *testing.T, cfg Config, f *File, off, n int64) {
	t.Helper()
	path := filepath.Join(cfg.Dir, stagingDir, f.stage.id+extData)
	edit(t, path, func(b []byte) []byte {
		clear(b[off : off+n])
		return b
	})
}

// TestSharedVersion: two caches of one directory write to files over one cached version. Neither takes the cache file
// over, so neither sees or commits what the other has not committed.
func TestSharedVersion(t *testing.T) {
	const size = 2*mib + 5
	s, cfg := newService(), config(t.TempDir())
	p, base := s.put(t, "a", size, 1)
	var files []*File
	for range 2 {
		c := openCache(t, cfg)
		bring(t, c, s, p)
		f := c.OpenFile(s, p, noHooks)
		f.Acquire(true)
		v := f.version()
		if v.whole() == nil {
			t.Fatal("the version is not complete and checked")
		}
		c.unhold(v)
		files = append(files, f)
	}
	const at = mib + 100
	var wants [2][]byte
	for i, f := range files {
		wants[i] = bytes.Clone(base)
		copy(wants[i][at+1000*i:], put(t, f, content(uint64(7+i), 500), int64(at+1000*i)))
	}
	for i, f := range files {
		expectAll(t, f, wants[i])
	}
	if err := files[0].Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), wants[0])
	if err := files[1].Commit(t.Context()); !blob.Is(err, blob.ConditionNotMet) {
		t.Errorf("commit over the other cache's version: %v", err)
	}
	same(t, s.content(t, "a"), wants[0])
	for i, f := range files {
		expectAll(t, f, wants[i])
		f.Release(true)
	}
	expectAll(t, openBlob(t, openCache(t, cfg), s, s.properties(t, "a")), wants[0])
}

// TestCloseDuringDeletion: a close that falls into a deletion which then fails ends well only when the service has the
// bytes.
func TestCloseDuringDeletion(t *testing.T) {
	for _, tc := range []struct {
		name      string
		size      int64 // of the blob that is there; 0 for none
		lost      bool  // the answer to a commit
		inService bool
	}{{"existing", 200 * kib, false, true}, {"new", 0, false, false}, {"new, perhaps", 0, true, true}} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			c := openCache(t, config(t.TempDir()))
			f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
			var want []byte
			if tc.size > 0 {
				var p blob.Properties
				p, want = s.put(t, "a", tc.size, 1)
				f = c.OpenFile(s, p, noHooks)
			}
			f.Acquire(true)
			if tc.lost {
				s.loseAnswers()
				put(t, f, content(3, 1000), 0)
				if err := f.Sync(t.Context()); !blob.Is(err, blob.Unavailable) {
					t.Fatal(err)
				}
				s.faults.Clear()
			}
			change := put(t, f, content(2, 1000), 0)
			want = append(change, want[min(len(want), len(change)):]...)
			if inService, err := f.Detach(t.Context()); err != nil || inService != tc.inService {
				t.Fatalf("in the service: %v, error %v", inService, err)
			}
			closed := make(chan []byte)
			go func() {
				if err := f.Flush(t.Context()); err != nil {
					t.Error(err)
				}
				closed <- s.content(t, "a")
			}()
			for range 1000 { // the close may not end now: the deletion is still under way
				yield()
			}
			s.faults.Add(blobtest.Fault{Op: "Delete", Err: errService})
			if err := s.Delete(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Unavailable) {
				t.Fatal(err)
			}
			f.Attach()
			same(t, <-closed, want)
			expectAll(t, f, want)
			f.Release(true)
		})
	}
}

// TestRecoverReleased: a block that was given up after the close was answered for takes its checksums with it, so the
// next process finds no damage where only the service has the bytes.
func TestRecoverReleased(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	s.faults.Add(blobtest.Fault{Op: "StageBlock", Err: errService}) // not ahead: there are to be checksums of all
	want := content(1, 200*kib)
	f := create(t, c, s, "a", want)
	c.background.Wait()
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.faults.Clear()
	s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Err: errService})
	if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
		t.Fatal(err)
	}
	if !f.releaseStaged(1) || f.stage.released.total() != 64*kib {
		t.Fatal("no block was given up")
	}
	crash(c)
	s.faults.Clear()
	if l := theLeft(t, cfg.Dir); l.State != LeftFinished || l.Only != 64*kib {
		t.Fatalf("left: %+v", l)
	}
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	same(t, s.content(t, "a"), want)
	theNone(t, cfg.Dir)
	expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
}

// TestPowerCutBehindBlocks: of bytes that the service had as blocks before the file was finished there are no checksums.
// What the disk has of them after a loss of power is not trusted, and is not what is cached.
func TestPowerCutBehindBlocks(t *testing.T) {
	for _, size := range []int64{200 * kib, mib + 100} {
		s, cfg := newService(), config(t.TempDir())
		c := openCache(t, cfg)
		want := content(1, size)
		f := create(t, c, s, "a", want)
		c.background.Wait()
		ahead := int64(s.Count("StageBlock")) * 64 * kib
		if ahead != size/(64*kib)*64*kib {
			t.Fatalf("%d bytes were uploaded ahead", ahead)
		}
		s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Err: errService})
		if err := f.Flush(t.Context()); !blob.Is(err, blob.Unavailable) {
			t.Fatal(err)
		}
		crash(c)
		s.faults.Clear()
		erase(t, cfg, f, 0, ahead)
		c = openCache(t, cfg)
		recoverAll(t, c, s)
		same(t, s.content(t, "a"), want)
		theNone(t, cfg.Dir)
		expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
		expectAll(t, openBlob(t, openCache(t, cfg), s, s.properties(t, "a")), want)
	}
}

// TestPowerCutAfterSync: after a loss of power a file is what it was at its last fsync, or is not saved: what was written
// over it since may be on the disk or not, or be zeros.
func TestPowerCutAfterSync(t *testing.T) {
	boot := bootID
	t.Cleanup(func() { bootID = boot })
	synced, later := content(1, 50*kib), content(2, 20*kib)
	const at = 10 * kib
	for name, tc := range map[string]struct {
		disk  []byte // from at on
		saved bool
	}{
		"zeros": {make([]byte, len(later)), false},
		"later": {later, false},
		"half":  {append(bytes.Clone(later[:4*kib]), synced[at+4*kib:at+20*kib]...), false},
		"lost":  {synced[at : at+20*kib], true},
	} {
		t.Run(name, func(t *testing.T) {
			bootID = boot
			s, cfg := newService(), writeBackConfig(t.TempDir())
			cfg.WriteBack = WriteBackSync
			c := openCache(t, cfg)
			f := create(t, c, s, "a", synced)
			if err := f.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			put(t, f, later, at)
			crash(c)
			edit(t, filepath.Join(cfg.Dir, stagingDir, f.stage.id+extData), func(b []byte) []byte {
				copy(b[at:], tc.disk)
				return b
			})
			bootID = func() string { return "the next start" }
			c = openCache(t, cfg)
			recoverAll(t, c, s)
			if tc.saved {
				same(t, s.content(t, "a"), synced)
				expectAll(t, openBlob(t, c, s, s.properties(t, "a")), synced)
				theNone(t, cfg.Dir)
				return
			}
			if got := s.content(t, "a"); got != nil {
				t.Errorf("%d bytes were committed that nobody vouches for", len(got))
			}
			if l := theLeft(t, cfg.Dir); l.State != LeftDamaged {
				t.Errorf("left: %+v", l)
			}
		})
	}
}

// TestPowerCutSyncedBlock: a block that the service has from before the last fsync stands for its bytes.
func TestPowerCutSyncedBlock(t *testing.T) {
	boot := bootID
	t.Cleanup(func() { bootID = boot })
	s, cfg := newService(), writeBackConfig(t.TempDir())
	cfg.WriteBack = WriteBackSync
	c := openCache(t, cfg)
	want := content(1, 200*kib)
	f := create(t, c, s, "a", want)
	c.background.Wait()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, f, content(2, 20*kib), 10*kib)
	crash(c)
	erase(t, cfg, f, 10*kib, 20*kib)
	bootID = func() string { return "the next start" }
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	same(t, s.content(t, "a"), want)
	expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
}

// A refusal is a change that fails at the journal.
type refusal struct {
	name   string
	change func(t *testing.T, f *File) error
}

var refusals = []refusal{
	{"write", func(t *testing.T, f *File) error { return f.Write(t.Context(), content(20, 3000), 500) }},
	{"write beyond the end", func(t *testing.T, f *File) error {
		return f.Write(t.Context(), content(20, 3000), f.State().Size-100)
	}},
	{"zero", func(t *testing.T, f *File) error { return f.Zero(t.Context(), 500, 3000) }},
	{"cut", func(t *testing.T, f *File) error { return f.Truncate(t.Context(), f.State().Size/2) }},
	{"grow", func(t *testing.T, f *File) error { return f.Truncate(t.Context(), f.State().Size+1000) }},
}

// TestRefusedChange: after a change that could not be put into the journal, what is read, what is committed and what is
// cached agree, and the size is what it was.
func TestRefusedChange(t *testing.T) {
	for _, w := range writings[1:] {
		for _, r := range refusals {
			t.Run(w.name+"/"+r.name, func(t *testing.T) {
				s := newService()
				c := openCache(t, config(t.TempDir()))
				f, _, want := w.start(t, c, s)
				c.background.Wait() // blocks of before the change are in the service
				full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer full.Close()
				f.mu.Lock()
				journal := f.stage.journal.file
				f.stage.journal.file = full
				f.mu.Unlock()
				if err := r.change(t, f); err == nil {
					t.Fatal("a change that is not in the journal succeeded")
				}
				f.mu.Lock()
				f.stage.journal.file = journal
				f.mu.Unlock()
				size := int64(len(want))
				if n := f.State().Size; n != size {
					t.Fatalf("the size is %d, was %d", n, size)
				}
				got, err := read(t.Context(), f, 0, size)
				if err != nil {
					t.Fatal(err)
				}
				// What comes behind the end is not what was refused.
				if err := f.Truncate(t.Context(), size+5000); err != nil {
					t.Fatal(err)
				}
				got = append(got, make([]byte, 5000)...)
				expectAll(t, f, got)
				if err := f.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				same(t, s.content(t, "a"), got)
				expectAll(t, f, got)
				f.Release(true)
				expectAll(t, openBlob(t, c, s, s.properties(t, "a")), got)
			})
		}
	}
}

// TestRefusedWrite: a write that the staging file does not take leaves the bytes below as they are.
func TestRefusedWrite(t *testing.T) {
	for _, w := range writings[1:] {
		t.Run(w.name, func(t *testing.T) {
			s := newService()
			c := openCache(t, config(t.TempDir()))
			f, _, want := w.start(t, c, s)
			c.background.Wait()
			readOnly, err := os.Open(c.stagingPath(f.stage.id, extData))
			if err != nil {
				t.Fatal(err)
			}
			defer readOnly.Close()
			f.mu.Lock()
			file := f.stage.file
			f.stage.file = readOnly
			f.mu.Unlock()
			if err := f.Write(t.Context(), content(20, 300), 100); err == nil {
				t.Fatal("a write that went nowhere succeeded")
			}
			f.mu.Lock()
			f.stage.file = file
			f.mu.Unlock()
			expectAll(t, f, want)
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "a"), want)
			f.Release(true)
			expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
		})
	}
}
