package blobcache

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// dropBlocks makes the service forget all uncommitted blocks of a name, as it does when somebody else makes a blob of that
// name, and after a week.
func (s *service) dropBlocks(t *testing.T, name string) {
	t.Helper()
	other := blobtest.NewContainer(s.store, "https://account.example/container")
	if _, err := other.Upload(t.Context(), name, bytes.NewReader(nil), 0, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := other.Delete(t.Context(), name, blob.Condition{}); err != nil {
		t.Fatal(err)
	}
}

// withoutRecords takes all records of a type out of a journal.
func withoutRecords(t *testing.T, path string, without byte) {
	t.Helper()
	edit(t, path, func(b []byte) []byte {
		out := bytes.Clone(b[:saltSize])
		at := int64(saltSize)
		if _, _, err := readRecords(bytes.NewReader(b), func(typ byte, p []byte) error {
			n := 9 + int64(len(p))
			if typ != without {
				out = append(out, b[at:at+n]...)
			}
			at += n
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	})
}

// TestBlocksGone: a close was answered for a file of which blocks had been uploaded ahead, and the service has dropped those
// when the next mount comes. What is here and proven is sent, whatever the order in which it was written; what is not proven
// can be saved.
func TestBlocksGone(t *testing.T) {
	const size = 200 * kib
	for _, tc := range []struct {
		name     string
		damage   func(t *testing.T, cfg Config, f *File, want []byte)
		unproven int64 // 0: it is sent
	}{
		{"all is here", func(*testing.T, Config, *File, []byte) {}, 0},
		{"a block lost by the disk", func(t *testing.T, cfg Config, f *File, want []byte) {
			erase(t, cfg, f, 70*kib, 10)
			clear(want[70*kib : 70*kib+10])
		}, 64 * kib},
		{"a journal of before", func(t *testing.T, cfg Config, f *File, _ []byte) {
			withoutRecords(t, filepath.Join(cfg.Dir, stagingDir, f.stage.id+extJournal), recTally)
		}, 192 * kib},
	} {
		for _, order := range []string{"in order", "not in order"} {
			t.Run(tc.name+", "+order, func(t *testing.T) {
				s, cfg := newService(), writeBackConfig(t.TempDir())
				c := openCache(t, cfg)
				want := content(1, size)
				f := create(t, c, s, "a", nil)
				if order == "in order" {
					put(t, f, want, 0)
				} else {
					for off := int64(64*kib) - 1000; off > -1000; off -= 1000 { // the first block from its end
						at := max(off, 0)
						put(t, f, want[at:off+1000], at)
					}
					put(t, f, want[64*kib:], 64*kib)
				}
				c.background.Wait()
				if n := s.Count("StageBlock"); n != 3 {
					t.Fatalf("%d blocks were uploaded ahead", n)
				}
				if err := f.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				crash(c)
				s.dropBlocks(t, "a")
				tc.damage(t, cfg, f, want)
				c = openCache(t, cfg)
				recoverAll(t, c, s)
				if tc.unproven == 0 {
					same(t, s.content(t, "a"), want)
					theNone(t, cfg.Dir)
					expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
					return
				}
				if got := s.content(t, "a"); got != nil {
					t.Errorf("%d bytes were sent that nobody vouches for", len(got))
				}
				l := theLeft(t, cfg.Dir)
				var b bytes.Buffer
				if n, err := c.Save(t.Context(), l.ID, s, &b); n != tc.unproven || err != nil {
					t.Fatalf("saved with %d unproven bytes, want %d; error %v", n, tc.unproven, err)
				}
				same(t, b.Bytes(), want)
				theLeft(t, cfg.Dir)
			})
		}
	}
}

// TestSaveBlocks: blocks that the service still has are no reason not to save what is here.
func TestSaveBlocks(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	c := openCache(t, cfg)
	want := content(1, 200*kib)
	f := create(t, c, s, "a", want)
	c.background.Wait()
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	crash(c)
	c = openCache(t, cfg)
	l := theLeft(t, cfg.Dir)
	used := c.space.inUse()
	var b bytes.Buffer
	if n, err := c.Save(t.Context(), l.ID, s, &b); n != 0 || err != nil {
		t.Fatalf("%d unproven bytes, error %v", n, err)
	}
	same(t, b.Bytes(), want)
	if n := c.space.inUse(); n != used {
		t.Errorf("the cache takes %d bytes, was %d", n, used)
	}
	recoverAll(t, c, s)
	same(t, s.content(t, "a"), want)
}

// TestRecoverAfterHalf: a commit during which the program wrote on leaves bytes that are in the blob, and are in no block that
// is not committed. The next close has no checksums of their grains.
func TestRecoverAfterHalf(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		s, cfg := newService(), writeBackConfig(t.TempDir())
		c := openCache(t, cfg)
		want := content(1, 200*kib)
		f := create(t, c, s, "a", want)
		c.background.Wait()
		gate := make(chan struct{})
		hits := s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Wait: gate})
		synced := make(chan error)
		go func() { synced <- f.Sync(t.Context()) }()
		for hits() == 0 {
			yield()
		}
		want = append(want, put(t, f, content(2, 1000), 200*kib)...)
		close(gate)
		if err := <-synced; err != nil {
			t.Fatal(err)
		}
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		crash(c)
		if damaged {
			erase(t, cfg, f, 70*kib, 10)
			if l := theLeft(t, cfg.Dir); l.State != LeftDamaged {
				t.Fatalf("left: %+v", l)
			}
			continue
		}
		if l := theLeft(t, cfg.Dir); l.State != LeftFinished {
			t.Fatalf("left: %+v", l)
		}
		c = openCache(t, cfg)
		recoverAll(t, c, s)
		same(t, s.content(t, "a"), want)
		theNone(t, cfg.Dir)
	}
}

// TestTalliedMatches: a checksum of a block is of all its bytes; what the file lacks is zeros.
func TestTalliedMatches(t *testing.T) {
	b := content(1, 100*kib)
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, b[:90*kib], 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tc := range []struct {
		off, n int64 // of the block
		sum    []byte
		want   bool
	}{
		{0, 90 * kib, b[:90*kib], true},
		{10, 70*kib + 1, b[10 : 70*kib+11], true},
		{0, 90 * kib, b[1 : 90*kib+1], false},
		{80 * kib, 20 * kib, b[80*kib:], false},
		{80 * kib, 20 * kib, append(bytes.Clone(b[80*kib:90*kib]), make([]byte, 10*kib)...), true},
	} {
		var tl tally
		tl.add(tc.sum, 0)
		if got := (tallied{extent{tc.off, tc.off + tc.n}, tl.crc64}).matches(file); got != tc.want {
			t.Errorf("block of %d bytes at %d: %v", tc.n, tc.off, got)
		}
	}
}
