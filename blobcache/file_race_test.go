package blobcache

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// A File is read, written and committed at the same time; these tests hold the moments at which the base version, the
// staging file or the name changes under somebody's hands.

// TestReadWhileTruncated: a read that waits for the service goes on when another thread empties the file.
func TestReadWhileTruncated(t *testing.T) {
	s := newService()
	p, want := s.put(t, "a", 3*mib, 1)
	c := openCache(t, config(t.TempDir()))
	f := openBlob(t, c, s, p)
	hold := make(chan struct{})
	hits := s.faults.Add(blobtest.Fault{Op: "ReadAt", Wait: hold})
	type answer struct {
		b   []byte
		err error
	}
	done := make(chan answer)
	go func() {
		b, err := read(t.Context(), f, 2*mib, 4096)
		done <- answer{b, err}
	}()
	for hits() == 0 {
		yield()
	}
	f.Acquire(true)
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	close(hold)
	a := <-done
	if a.err != nil || len(a.b) > 0 && !bytes.Equal(a.b, want[2*mib:2*mib+4096]) {
		t.Errorf("the read got %d bytes, error %v; want those before the truncation, or none", len(a.b), a.err)
	}
	if got, err := read(t.Context(), f, 0, 1); err != nil || len(got) > 0 {
		t.Errorf("a read after the truncation got %d bytes, error %v", len(got), err)
	}
	f.Release(true)
}

// TestReadWhileSettling: a reader never finds the file empty while its staging file becomes the cached version.
func TestReadWhileSettling(t *testing.T) {
	s := newService()
	p, want := s.put(t, "a", 100*kib, 2)
	c := openCache(t, config(t.TempDir()))
	f := openBlob(t, c, s, p)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := read(t.Context(), f, 0, int64(len(want)))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, error %v", len(got), err)
					return
				}
			}
		})
	}
	for i := range 40 {
		f.Acquire(true)
		at := int64(i%10) * 10 * kib
		if err := f.Write(t.Context(), want[at:at+kib], at); err != nil { // the bytes that are there
			t.Error(err)
		}
		if err := f.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		f.Release(true)
	}
	close(stop)
	readers.Wait()
}

// TestTruncateBehindUploads: blocks that are uploaded ahead may find that the file has become shorter than they begin.
func TestTruncateBehindUploads(t *testing.T) {
	s := newService()
	c := openCache(t, config(t.TempDir()))
	for range 50 {
		f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
		f.Acquire(true)
		if err := f.Write(t.Context(), content(3, 200*kib), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, s.content(t, "a"), content(3, 10))
		f.Release(true)
		if err := s.store.Delete("a", blob.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommitOfGrowingFile: a commit that finds the file longer than the memory it waited for must not wait for more
// while it holds that.
func TestCommitOfGrowingFile(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		cfg := config(dir)
		cfg.Memory, cfg.BlockSize = MinMemory, 16*mib // up to 8 MiB by one Put Blob
		c, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
		f.Acquire(true)
		want := content(4, 5*mib)
		if err := f.Write(t.Context(), want[:4*mib], 0); err != nil {
			t.Fatal(err)
		}
		held, err := c.budget.get(t.Context(), MinMemory)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- f.Commit(t.Context()) }()
		synctest.Wait() // it waits for 4 MiB
		if err := f.Write(t.Context(), want[4*mib:], 4*mib); err != nil {
			t.Fatal(err)
		}
		c.budget.put(held[:4])
		synctest.Wait() // it has them, and needs 5
		c.budget.put(held[4:5])
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		same(t, s.content(t, "a"), want)
		c.budget.put(held[5:])
		f.Release(true)
		shut(t, c)
	})
}

// TestDetachOfDamagedFile: what is damaged on the disk is fetched before the blob is deleted too.
func TestDetachOfDamagedFile(t *testing.T) {
	for _, part := range []int64{3 * mib, mib} {
		s := newService()
		cfg := config(t.TempDir())
		p, want := s.put(t, "a", 3*mib, 1)
		cached(t, s, cfg, p, part)
		ext := extBlob
		if part < p.Size {
			ext = extPart
		}
		edit(t, only(t, cfg.Dir, ext), flip(700*kib))
		c := openCache(t, cfg)
		f := openBlob(t, c, s, p)
		if _, err := f.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), "a", blob.Condition{}); err != nil {
			t.Fatal(err)
		}
		f.Gone()
		expectAll(t, f, want)
	}
}

// TestDetachOfColdFile: what was never read is fetched before the blob is deleted, and read afterwards.
func TestDetachOfColdFile(t *testing.T) {
	for _, size := range []int64{1, 100 * kib, 2*mib + 1} {
		s := newService()
		p, want := s.put(t, "a", size, 5)
		c := openCache(t, config(t.TempDir()))
		f := openBlob(t, c, s, p)
		if inService, err := f.Detach(t.Context()); err != nil || !inService {
			t.Fatalf("blob of %d bytes: in the service %v, error %v", size, inService, err)
		}
		if err := s.Delete(t.Context(), "a", blob.Condition{}); err != nil {
			t.Fatal(err)
		}
		f.Gone()
		f.Settle()
		s.Reset()
		expectAll(t, f, want)
		if n := s.Count(""); n != 0 {
			t.Errorf("blob of %d bytes: %q after its deletion", size, s.Lines())
		}
	}
}

// TestAttachKeepsMetadata: metadata that was set while the blob was about to be deleted is saved when it stays.
func TestAttachKeepsMetadata(t *testing.T) {
	for _, size := range []int64{0, 10, 200 * kib} {
		s := newService()
		p, want := s.put(t, "a", size, 6)
		c := openCache(t, config(t.TempDir()))
		f := openBlob(t, c, s, p)
		if _, err := f.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		set := make(chan error)
		go func() { set <- setMetadata(t.Context(), f, map[string]string{"mode": "0600"}) }()
		yield()
		f.Attach()
		if err := <-set; err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.properties(t, "a").Metadata["mode"]; got != "0600" {
			t.Errorf("blob of %d bytes has the mode %q", size, got)
		}
		same(t, s.content(t, "a"), want)
	}
}

// TestCloseDuringRetry: a file that is tried again in the background does not outlive its cache.
func TestCloseDuringRetry(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		c, err := Open(config(dir))
		if err != nil {
			t.Fatal(err)
		}
		f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
		f.Acquire(true)
		if err := f.Write(t.Context(), []byte("hello"), 0); err != nil {
			t.Fatal(err)
		}
		s.faults.Add(blobtest.Fault{Op: "Upload", Nth: 1, Err: blobtest.Err("ServerBusy")})
		if err := f.Commit(t.Context()); !blob.Is(err, blob.Throttled) {
			t.Fatalf("the service was busy, the error is %v", err)
		}
		if f.Release(true) {
			t.Fatal("a file that is not saved is idle")
		}
		synctest.Wait() // it waits for its next try
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		same(t, s.content(t, "a"), []byte("hello"))
	})
}

// TestCloseDuringRead: a cache may be closed while a reader waits, as when a mount is torn down.
func TestCloseDuringRead(t *testing.T) {
	s := newService()
	p, _ := s.put(t, "a", 2*mib, 7)
	c, err := Open(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	f := c.OpenFile(s, p, noHooks)
	f.Acquire(false)
	hold := make(chan struct{})
	hits := s.faults.Add(blobtest.Fault{Op: "ReadAt", Wait: hold})
	done := make(chan error)
	go func() {
		_, err := read(t.Context(), f, 0, 4096)
		done <- err
	}()
	for hits() == 0 {
		yield()
	}
	shut(t, c)
	if err := <-done; err == nil {
		t.Error("the read succeeded without its bytes")
	}
	f.Release(false)
}

// TestOwnChangeWhileReading: a change of metadata makes a new ETag, but the bytes are the same: readers do not notice.
func TestOwnChangeWhileReading(t *testing.T) {
	s := newService()
	p, want := s.put(t, "a", 3*mib, 8)
	c := openCache(t, config(t.TempDir()))
	f := openBlob(t, c, s, p)
	hold := make(chan struct{})
	hits := s.faults.Add(blobtest.Fault{Op: "ReadAt", Wait: hold})
	done := make(chan error)
	go func() {
		got, err := read(t.Context(), f, 2*mib, 4096)
		if err == nil && !bytes.Equal(got, want[2*mib:2*mib+4096]) {
			t.Error("wrong bytes")
		}
		done <- err
	}()
	for hits() == 0 {
		yield()
	}
	if err := setMetadata(t.Context(), f, map[string]string{"mode": "0600"}); err != nil {
		t.Fatal(err)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	expectAll(t, f, want)
}
