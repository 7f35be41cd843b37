package blobcache

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// What becomes of the rename of a directory when the machine loses its power: of the journal only that is left for certain
// which was synced.

// powerCut ends a cache as a loss of power does.
func powerCut(t *testing.T, c *Cache) {
	t.Helper()
	crash(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, d := range c.renames {
		if d.synced == 0 { // a later process, which has synced nothing: it has found all on the disk
			d.synced = d.state.length
		}
		if err := os.Truncate(path, d.synced); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// dyingRename begins a rename and ends its process when all copies are made and nothing is decided yet. It returns the path
// of the journal, what that says then, and how much of it the disk has for certain.
func dyingRename(t *testing.T, s *service, cfg Config) (path string, journal []byte, synced int64) {
	t.Helper()
	c := openCache(t, cfg)
	m := &meddling{service: s}
	copies, err := 0, error(nil)
	m.before = func(op, name string) {
		if op != "Properties" || name != "to/" || s.Count("Copy") == 0 || journal != nil {
			return
		}
		copies = s.Count("Copy")
		path = journals(t, cfg.Dir)[0]
		journal, err = os.ReadFile(path)
		d := c.renames[path]
		d.mu.Lock()
		journal, synced = journal[:d.j.size], d.synced
		d.mu.Unlock()
		s.faults.Add(blobtest.Fault{Err: errService})
	}
	if c.RenameDir(t.Context(), m, renaming()) == nil || err != nil || copies == 0 || synced == 0 {
		t.Fatalf("%d copies were made, %d bytes synced, %v", copies, synced, err)
	}
	crash(c)
	s.faults.Clear()
	return path, journal, synced
}

// names returns the names of all blobs below a prefix.
func (s *service) names(t *testing.T, prefix string) (names []string) {
	t.Helper()
	for marker := ""; ; {
		page, err := s.store.List(blob.ListOptions{Prefix: prefix, Marker: marker})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Blobs {
			names = append(names, p.Name)
		}
		if marker = page.Next; marker == "" {
			return names
		}
	}
}

// TestRenamePowerCut: copies are made, the power is lost, and another host writes a blob of the same size before the rename
// goes on. Its version stays, wherever the journal is cut.
func TestRenamePowerCut(t *testing.T) {
	for cut, size := int64(0), int64(1); cut < size; cut += 7 {
		s, cfg := newService(), config(t.TempDir())
		const n = 5
		for i := range n {
			s.put(t, fmt.Sprintf("from/%d", i), 100, uint64(i))
		}
		path, journal, synced := dyingRename(t, s, cfg)
		size = int64(len(journal))
		cut = max(cut, synced)
		if err := os.WriteFile(path, journal[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		_, theirs := s.put(t, "from/0", 100, 77)
		recoverRenames(t, openCache(t, cfg), s)
		if !bytes.Equal(s.content(t, "from/0"), theirs) || !bytes.Equal(s.content(t, "to/0"), content(0, 100)) {
			t.Errorf("cut at %d of %d: the version of another writer is lost", cut, size)
		}
		if from, to := s.names(t, "from/"), s.names(t, "to/"); len(from) != 1 || len(to) != n || len(journals(t, cfg.Dir)) > 0 {
			t.Errorf("cut at %d of %d: the service has %q and %q, journals %q", cut, size, from, to, journals(t, cfg.Dir))
		}
	}
}

// TestRenamePowerCutPages: a rename that goes on after a loss of power knows of each page of which it has made copies, also if
// a name that somebody adds leads it back.
func TestRenamePowerCutPages(t *testing.T) {
	s, cfg := newService(), config(t.TempDir())
	const n = 5003
	for i := range n {
		s.put(t, fmt.Sprintf("from/%04d", i), 10, uint64(i))
	}
	path, journal, synced := dyingRename(t, s, cfg)
	if err := os.WriteFile(path, journal[:synced], 0o600); err != nil {
		t.Fatal(err)
	}
	s.put(t, "from/!", 11, 1)
	s.put(t, "to/!", 12, 1)
	recoverRenames(t, openCache(t, cfg), s)
	from, to := s.names(t, "from/"), s.names(t, "to/")
	if len(from) != 1 || len(to) != n+1 || len(journals(t, cfg.Dir)) > 0 {
		t.Errorf("%d blobs are under the old name, %d under the new one, journals %q", len(from), len(to), journals(t, cfg.Dir))
	}
}

// TestRenamePlanLost: when the disk has lost what was synced, a copy that is older than the version that is listed then does
// not count for a copy of that.
func TestRenamePlanLost(t *testing.T) {
	now := time.Now()
	s := newServiceOf(blobtest.StoreOptions{Now: func() time.Time { return now }})
	cfg := config(t.TempDir())
	for i := range 3 {
		s.put(t, fmt.Sprintf("from/%d", i), 100, uint64(i))
	}
	path, journal, _ := dyingRename(t, s, cfg)
	j := &journalEnds{}
	if _, _, err := readRecords(bytes.NewReader(journal), j.take); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, journal[:j.header], 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * copySkew)
	_, theirs := s.put(t, "from/0", 100, 77)
	recoverRenames(t, openCache(t, cfg), s)
	if !bytes.Equal(s.content(t, "from/0"), theirs) || len(s.names(t, "from/")) != 3 {
		t.Errorf("the version of another writer is lost: %q and %q", s.names(t, "from/"), s.names(t, "to/"))
	}
	if to := s.names(t, "to/"); len(to) > 0 || len(journals(t, cfg.Dir)) > 0 {
		t.Errorf("not taken back: %q, journals %q", to, journals(t, cfg.Dir))
	}
}

// journalEnds finds the end of the header of a journal.
type journalEnds struct{ header int64 }

func (j *journalEnds) take(typ byte, p []byte) error {
	if typ == recRename {
		j.header = saltSize + 9 + int64(len(p))
	}
	return nil
}
