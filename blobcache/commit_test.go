package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// A writing is one way to use the write path.
type writing struct {
	name string
	base int64 // bytes of the blob that is there; 0 for none
	// change makes the file what it returns.
	change func(t *testing.T, f *File, base []byte) []byte
}

var writings = []writing{
	{"new, empty", 0, func(*testing.T, *File, []byte) []byte { return []byte{} }},
	{"new, small", 0, func(t *testing.T, f *File, _ []byte) []byte { return put(t, f, content(1, 1000), 0) }},
	{"new, blocks in order", 0, func(t *testing.T, f *File, _ []byte) []byte { return put(t, f, content(2, 200*kib), 0) }},
	{"new, sparse", 0, func(t *testing.T, f *File, _ []byte) []byte {
		return append(make([]byte, 150*kib), put(t, f, content(3, 100), 150*kib)...)
	}},
	{"small, changed", 10 * kib, func(t *testing.T, f *File, base []byte) []byte {
		b := bytes.Clone(base)
		copy(b[5000:], put(t, f, content(4, 100), 5000))
		return b
	}},
	{"blocks, changed", 300 * kib, func(t *testing.T, f *File, base []byte) []byte {
		b := bytes.Clone(base)
		copy(b[130*kib:], put(t, f, content(5, 100), 130*kib))
		return append(b, put(t, f, content(6, 70*kib), 300*kib)...)
	}},
	{"blocks, written anew", 300 * kib, func(t *testing.T, f *File, base []byte) []byte {
		if err := f.Truncate(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		return put(t, f, content(7, 100*kib), 0)
	}},
}

// put writes and returns what it wrote.
func put(t *testing.T, f *File, p []byte, off int64) []byte {
	t.Helper()
	if err := f.Write(t.Context(), p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// start opens the file of a writing, and changes it.
func (w writing) start(t *testing.T, c *Cache, s *service) (f *File, base, want []byte) {
	t.Helper()
	if w.base == 0 {
		f = c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	} else {
		var p blob.Properties
		p, base = s.put(t, "a", w.base, 10)
		f = c.OpenFile(s, p, noHooks)
	}
	f.Acquire(true)
	return f, base, w.change(t, f, base)
}

// checkWhole: a blob is always a whole old version or a whole new one.
func checkWhole(t *testing.T, s *service, base, want []byte) {
	t.Helper()
	if got := s.content(t, "a"); !bytes.Equal(got, base) && !bytes.Equal(got, want) || (got == nil) != (base == nil) && !bytes.Equal(got, want) {
		t.Errorf("the blob has %d bytes that are neither the old %d nor the new %d", len(got), len(base), len(want))
	}
}

// TestFaultAtEachCall lets each request of each writing fail: before the service acted, after it, and by never being
// answered while the caller gives up. The data stays readable, and the next commit saves it.
func TestFaultAtEachCall(t *testing.T) {
	for _, w := range writings {
		for _, how := range []string{"before", "after", "hang"} {
			t.Run(w.name+"/"+how, func(t *testing.T) {
				for n := 1; faultAt(t, w, how, n); n++ {
					if n > 50 {
						t.Fatal("more requests than a file of a few blocks needs")
					}
				}
			})
		}
	}
}

// faultAt runs a writing whose n-th request fails, and reports whether there was one.
func faultAt(t *testing.T, w writing, how string, n int) bool {
	t.Helper()
	s := newService()
	c := openCache(t, config(t.TempDir()))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hang := make(chan struct{})
	fault := blobtest.Fault{Nth: n, After: how == "after", Err: blobtest.Err("ServerBusy")}
	if how == "hang" {
		fault = blobtest.Fault{Nth: n, Wait: hang}
	}
	hits := s.faults.Add(fault)
	f, base, want := w.start(t, c, s)
	done := make(chan error)
	go func() { done <- f.Commit(ctx) }()
	var err error
	for ended := false; !ended; {
		select {
		case err = <-done:
			ended = true
		default:
			if how == "hang" && hits() > 0 {
				cancel()
			}
			yield()
		}
	}
	if hits() == 0 {
		if err != nil {
			t.Fatalf("without a fault: %v", err)
		}
		return false
	}
	// A request of an upload ahead may fail without harm: the commit makes it again.
	if dirty := f.State().Dirty; dirty != (err != nil) {
		t.Errorf("request %d: dirty is %v, the error %v", n, dirty, err)
	}
	if err != nil && !blob.Is(err, blob.Throttled) && !errors.Is(err, context.Canceled) {
		t.Errorf("request %d: %v", n, err)
	}
	checkWhole(t, s, base, want)
	s.faults.Clear()
	close(hang) // a request that hangs may be one that a reader waits for
	expectAll(t, f, want)
	if err := f.Commit(t.Context()); err != nil {
		t.Fatalf("request %d, second try: %v", n, err)
	}
	same(t, s.content(t, "a"), want)
	expectAll(t, f, want)
	f.Release(true)
	return true
}

// TestRequests keeps the number of requests that each writing costs.
func TestRequests(t *testing.T) {
	want := map[string]map[string]int{
		"new, empty":           {"Upload": 1},
		"new, small":           {"Upload": 1},
		"new, blocks in order": {"StageBlock": 4, "CommitBlockList": 1},
		"new, sparse":          {"StageBlock": 3, "CommitBlockList": 1},
		"small, changed":       {"ReadAt": 1, "Upload": 1},
		"blocks, changed":      {"BlockList": 1, "ReadAt": 1, "StageBlock": 3, "StageBlockFrom": 3, "CommitBlockList": 1},
		"blocks, written anew": {"StageBlock": 2, "CommitBlockList": 1},
	}
	for _, w := range writings {
		s := newService()
		c := openCache(t, config(t.TempDir()))
		f, _, _ := w.start(t, c, s)
		for range 2 { // the second commit finds a clean file
			if err := f.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]int{}
		for _, op := range []string{"ReadAt", "Upload", "StageBlock", "StageBlockFrom", "CommitBlockList", "SetMetadata", "BlockList", "Properties", "List", "Copy", "Delete"} {
			if n := s.Count(op); n > 0 {
				got[op] = n
			}
		}
		if !maps.Equal(got, want[w.name]) {
			t.Errorf("%s: %v, want %v", w.name, got, want[w.name])
		}
		if len(c.versions) > 0 {
			t.Errorf("%s: the old version is still held, though the staging file has it all", w.name)
		}
		f.Release(true)
	}
}

// TestConflict: a commit carries the condition of the version it began with. Who loses keeps the bytes, and every later
// commit says so again.
func TestConflict(t *testing.T) {
	for _, w := range writings {
		t.Run(w.name, func(t *testing.T) {
			s := newService()
			c, err := Open(config(t.TempDir()))
			if err != nil {
				t.Fatal(err)
			}
			f, _, want := w.start(t, c, s)
			if w.base > 0 { // what is not read before somebody else writes is gone
				expectAll(t, f, want)
			}
			_, theirs := s.put(t, "a", 500, 99)
			for range 2 {
				err := f.Commit(t.Context())
				if !blob.Is(err, blob.ConditionNotMet) {
					t.Fatalf("commit over another writer's version: %v", err)
				}
			}
			if err := f.Write(t.Context(), []byte("more"), 0); !blob.Is(err, blob.ConditionNotMet) {
				t.Fatalf("write that could never be committed: %v", err)
			}
			if err := f.Commit(t.Context()); !blob.Is(err, blob.ConditionNotMet) {
				t.Fatalf("commit after a conflict: %v", err)
			}
			expectAll(t, f, want)
			same(t, s.content(t, "a"), theirs)
			path := ""
			if f.stage != nil {
				path = c.stagingPath(f.stage.id, extData)
			}
			if len(want) > 0 { // nothing was staged for an empty file
				kept, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(kept, want) {
					t.Errorf("the staging file has %d bytes, want the %d that were written, error %v", len(kept), len(want), err)
				}
			}
			if !f.Release(true) {
				t.Error("a file that lost is not given up")
			}
			if err := c.Close(t.Context()); err != nil { // the writer and the log have been told
				t.Errorf("closing a cache with kept bytes: %v", err)
			}
			if _, err := os.Stat(path); err != nil && len(want) > 0 {
				t.Error(err)
			}
		})
	}
}

// TestBlocksDiscarded: a commit of others under the name discards our uncommitted blocks. When the condition still holds,
// they are sent again.
func TestBlocksDiscarded(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	defer f.Release(true)
	want := put(t, f, content(1, 200*kib), 0)
	s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Nth: 1, Err: blobtest.Err("ServerBusy")})
	if err := f.Commit(t.Context()); !blob.Is(err, blob.Throttled) {
		t.Fatal(err)
	}
	// Somebody creates the blob, and deletes it again.
	s.put(t, "a", 10, 2)
	if err := s.store.Delete("a", blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	if n := s.Count("StageBlock"); n != 8 {
		t.Errorf("%d blocks were sent, want each of 4 twice", n)
	}
}

// TestRenameUnsaved: the blocks of a file that is renamed before its first commit are sent again under the new name, where
// the service looks for them.
func TestRenameUnsaved(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	want := put(t, f, content(1, 128*kib), 0)
	c.background.Wait() // the first block has been uploaded ahead
	told := func() {
		if f.commit.TryLock() {
			f.commit.Unlock()
			t.Error("a commit can be made before the new name is known")
		}
	}
	if !f.Rename("b", told) {
		t.Fatal("a file that the service does not have cannot be renamed")
	}
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "b"), want)
	s.asked(t, "CommitBlockList b blocks=2 if-none-match=*", "StageBlock a 65536", "StageBlock b 65536", "StageBlock b 65536")
	if f.Rename("c", func() { t.Error("told of a rename that was not made") }) {
		t.Error("a file that the service has was renamed without it")
	}
	f.Release(true)
}

// TestPropertiesSurvive: headers and metadata that blobmount knows nothing about outlive a change of the content, in both
// ways to commit. The checksum of the old content does not.
func TestPropertiesSurvive(t *testing.T) {
	for _, size := range []int64{1000, 200 * kib} {
		s := newService()
		o := blob.WriteOptions{
			Headers: blob.Headers{ContentType: "text/csv", ContentEncoding: "gzip", ContentLanguage: "de",
				ContentDisposition: "inline", CacheControl: "no-store", ContentMD5: make([]byte, 16)},
			Metadata: map[string]string{"project": "x", "mode": "0644"},
		}
		if _, err := s.store.Put("a", content(1, size), o); err != nil {
			t.Fatal(err)
		}
		stamped := time.Unix(1234, 0)
		hooks := Hooks{
			Committed: func(blob.Properties, bool) {},
			Stamp:     func(m map[string]string, at time.Time) { m["mtime"] = fmt.Sprint(at.Unix()) },
		}
		c := openCache(t, config(t.TempDir()))
		f := c.OpenFile(s, s.properties(t, "a"), hooks)
		f.Acquire(true)
		put(t, f, []byte("x"), 0)
		err := f.ChangeMetadata(t.Context(), func(State, map[string]string) (time.Time, error) { return stamped, nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := s.properties(t, "a")
		o.Headers.ContentMD5 = nil
		if fmt.Sprint(p.Headers) != fmt.Sprint(o.Headers) {
			t.Errorf("%d bytes: headers %+v, want %+v", size, p.Headers, o.Headers)
		}
		o.Metadata["mtime"] = "1234"
		if !maps.Equal(p.Metadata, o.Metadata) {
			t.Errorf("%d bytes: metadata %v, want %v", size, p.Metadata, o.Metadata)
		}
		f.Release(true)
	}
}

// TestWriteDuringCommit: what is written while a commit is under way is not lost: the commit saves a state of the file,
// and says whether there is more.
func TestWriteDuringCommit(t *testing.T) {
	for _, w := range writings[1:] {
		t.Run(w.name, func(t *testing.T) {
			s := newService()
			c := openCache(t, config(t.TempDir()))
			f, _, want := w.start(t, c, s)
			var dirtyAfter []bool
			f.hooks.Committed = func(_ blob.Properties, dirty bool) { dirtyAfter = append(dirtyAfter, dirty) }
			hold := make(chan struct{})
			upload := s.faults.Add(blobtest.Fault{Op: "Upload", Wait: hold})
			list := s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Wait: hold})
			done := make(chan error)
			go func() { done <- f.Commit(t.Context()) }()
			for upload()+list() == 0 {
				yield()
			}
			want = bytes.Clone(want)
			copy(want[10:], put(t, f, []byte("written meanwhile"), 10))
			close(hold)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if !f.State().Dirty || len(dirtyAfter) != 1 || !dirtyAfter[0] {
				t.Errorf("dirty is %v, and was said to be %v", f.State().Dirty, dirtyAfter)
			}
			expectAll(t, f, want)
			if err := f.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, s.content(t, "a"), want)
			f.Release(true)
		})
	}
}

// TestCommitWhileWriting: writers that never pause do not keep a commit from ending, and the last commit has it all.
func TestCommitWhileWriting(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	want := put(t, f, content(1, 300*kib), 0)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i := range int64(2) {
		writers.Go(func() {
			for k := int64(0); ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				at := (k%37*8 + i*4) * kib
				if err := f.Write(t.Context(), content(uint64(k), 4*kib), at); err != nil {
					t.Error(err)
				}
				if err := f.Write(t.Context(), want[at:at+4*kib], at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		if err := f.Commit(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writers.Wait()
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	f.Release(true)
}

// TestRetry: what could not be saved when it was closed is tried again, at growing intervals, until it is.
func TestRetry(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		c, err := Open(config(dir))
		if err != nil {
			t.Fatal(err)
		}
		f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
		f.Acquire(true)
		want := put(t, f, content(1, 200*kib), 0)
		hits := s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Err: blobtest.Err("InternalError")})
		if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
			t.Fatal(err)
		}
		if f.Release(true) {
			t.Fatal("an unsaved file is idle")
		}
		began := time.Now()
		for hits() < 5 {
			time.Sleep(time.Second) // the bubble's clock
		}
		if d := time.Since(began); d < 15*time.Second || d > 17*time.Second { // 1+2+4+8
			t.Errorf("four tries after %v", d)
		}
		s.faults.Clear()
		time.Sleep(time.Minute)
		same(t, s.content(t, "a"), want)
		if !f.Settle() {
			t.Error("a saved file is not idle")
		}
		shut(t, c)
		left, err := filepath.Glob(filepath.Join(dir, stagingDir, "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%q are left in staging, error %v", left, err)
		}
	})
}

// TestRetryNow: what waits for its next attempt does not wait any longer, and an attempt that is under way, and fails, is
// followed by another one at once.
func TestRetryNow(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		c, err := Open(config(dir))
		if err != nil {
			t.Fatal(err)
		}
		f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
		f.Acquire(true)
		want := put(t, f, content(1, 200*kib), 0)
		hits := s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Err: blobtest.Err("AuthenticationFailed")})
		if err := f.Commit(t.Context()); !blob.Is(err, blob.Unauthenticated) {
			t.Fatal(err)
		}
		f.Release(true)
		time.Sleep(5 * time.Minute) // now it is tried once a minute
		synctest.Wait()
		before := hits()
		c.RetryNow()
		synctest.Wait()
		if hits() != before+1 {
			t.Errorf("%d attempts at once, want 1", hits()-before)
		}
		time.Sleep(4 * time.Second) // 1 and 2 seconds later
		synctest.Wait()
		if hits() != before+3 {
			t.Errorf("%d attempts in 4 s, want 3", hits()-before)
		}

		// An attempt that fails after RetryNow was called began before it, perhaps with what was wrong.
		s.faults.Clear()
		release := make(chan struct{})
		hits = s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Nth: 1, Wait: release, Err: blobtest.Err("AuthenticationFailed")})
		time.Sleep(time.Minute)
		synctest.Wait()
		if hits() != 1 {
			t.Fatal("no attempt is under way")
		}
		c.RetryNow()
		close(release)
		synctest.Wait()
		same(t, s.content(t, "a"), want)
		shut(t, c)
	})
}

// TestCloseSaves: closing the cache commits what is dirty.
func TestCloseSaves(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	var want [][]byte
	for i := range 5 {
		f := c.CreateFile(s, blob.Properties{Name: fmt.Sprint(i)}, noHooks)
		f.Acquire(true)
		want = append(want, put(t, f, content(uint64(i), int64(i+1)*30*kib), 0))
	}
	shut(t, c)
	for i := range want {
		same(t, s.content(t, fmt.Sprint(i)), want[i])
	}
}

// TestDetach: a deleted file is not committed any more, and a deletion that failed changes nothing.
func TestDetach(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	p, base := s.put(t, "a", 200*kib, 1)
	f := c.OpenFile(s, p, noHooks)
	f.Acquire(true)
	want := append(put(t, f, []byte("changed"), 0), base[7:]...)
	if inService, err := f.Detach(t.Context()); err != nil || !inService {
		t.Fatal(inService, err)
	}
	closed := make(chan error)
	go func() { closed <- f.Flush(t.Context()) }() // waits: what became of the blob decides
	for range 100 {
		yield()
	}
	same(t, s.content(t, "a"), base)
	f.Attach()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	copy(want[10:], put(t, f, []byte("again"), 10))
	if _, err := f.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a", blob.Condition{}); err != nil {
		t.Fatal(err)
	}
	f.Gone()
	f.Settle()
	copy(want[20:], put(t, f, []byte("nameless"), 20))
	expectAll(t, f, want)
	if !f.Release(true) {
		t.Error("a deleted file is not idle")
	}
	if s.content(t, "a") != nil {
		t.Error("the deleted blob is back")
	}
	fresh := c.CreateFile(s, blob.Properties{Name: "b"}, noHooks)
	if inService, err := fresh.Detach(t.Context()); err != nil || inService {
		t.Errorf("a file that the service never had: %v, %v", inService, err)
	}
	fresh.Gone()
	if !fresh.Settle() {
		t.Error("it is not idle")
	}
}

// TestTooLarge: a file that no block list can hold is refused by the write, not by the commit.
func TestTooLarge(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	defer f.Release(true)
	limit := int64(blob.MaxBlocks * largestBlock)
	if err := f.Write(t.Context(), []byte("x"), limit); !blob.Is(err, blob.TooLarge) {
		t.Errorf("a byte beyond the largest block list: %v", err)
	}
	if err := f.Truncate(t.Context(), limit+1); !blob.Is(err, blob.TooLarge) {
		t.Errorf("a size beyond the largest block list: %v", err)
	}
	if got := f.State().Size; got != 0 {
		t.Errorf("the size is %d after refused changes", got)
	}
	if _, err := f.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Gone()
}

// TestSlabReader: the body of a Put Blob is read more than once, from any place.
func TestSlabReader(t *testing.T) {
	for _, size := range []int64{0, 1, 63, 64, 65, 200} {
		want := content(1, size)
		r := &slabReader{size: size}
		for rest := want; len(rest) > 0; {
			n := min(64, len(rest))
			r.parts = append(r.parts, rest[:n])
			rest = rest[n:]
		}
		if err := iotest.TestReader(r, want); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestStagingDamaged: what the disk has changed since it was written is not committed, whichever way, and the error says
// where to look.
func TestStagingDamaged(t *testing.T) {
	s := newService()
	cfg := config(t.TempDir())
	c := openCache(t, cfg)
	f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
	f.Acquire(true)
	put(t, f, content(1, 200*kib), 0)
	edit(t, c.stagingPath(f.stage.id, extData), func(b []byte) []byte {
		b[150*kib] ^= 1 // in the third of four blocks, which may have been sent; then it may not count
		return b
	})
	f.mu.Lock()
	f.stage.restage()
	f.mu.Unlock()
	for range 2 {
		err := f.Commit(t.Context())
		if !blob.Is(err, blob.Damaged) || !errors.Is(err, errChanged) {
			t.Fatalf("commit of a damaged staging file: %v", err)
		}
	}
	if _, err := s.Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.NotFound) {
		t.Errorf("there is a blob: %v", err)
	}
	// Written anew it is whole.
	want := put(t, f, content(2, 200*kib), 0)
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.content(t, "a"), want)
	f.Release(true)
}
