package blobcache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

func testHeader() header {
	return header{
		Version: journalVersion, Container: "https://account.example/container", PID: 1, BlockSize: 64 * kib, Every: 512,
		Base:    base{Name: "a b%/ü", ETag: `"1"`, From: "a b%/ü", FromETag: `"1"`, FromSize: 100, Limit: 100},
		Details: details{Metadata: map[string]string{"mode": "0644"}, Modified: time.Unix(1, 2).UTC()},
		Size:    100,
	}
}

// newTestJournal returns a journal and what it says when it is read.
func newTestJournal(t *testing.T, h header) (*journal, func() *record) {
	path := filepath.Join(t.TempDir(), "x"+extJournal)
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.begin(h); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	return j, func() *record {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := readJournal(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
}

// TestJournal checks what each record changes.
func TestJournal(t *testing.T) {
	j, read := newTestJournal(t, testHeader())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if rec := read(); rec.dirty || rec.finished || !reflect.DeepEqual(rec.header, testHeader()) {
		t.Fatalf("after the header: %+v", rec)
	}
	must(j.span(recWritten, 90, 200))
	if rec := read(); !rec.dirty || rec.Size != 200 || !rec.valid.covers(90, 200) || !rec.changed.covers(90, 200) {
		t.Fatalf("after a write: %+v", rec)
	}
	must(j.span(recHeld, 0, 90))
	must(j.span(recStaged, 0, 100, []byte("id-0")...))
	must(j.span(recStaged, 100, 200, []byte("id-1")...))
	must(j.finish([]sumOf{{extent{90, 200}, 7}}, false, true))
	if rec := read(); !rec.finished || len(rec.sums) != 1 || rec.sums[0] != (sumOf{extent{90, 200}, 7}) || len(rec.staged) != 2 ||
		rec.staged[1] != (stagedBlock{extent{100, 200}, "id-1"}) || !rec.valid.covers(0, 200) {
		t.Fatalf("after the end: %+v", rec)
	}
	must(j.span(recReleased, 0, 100))
	if rec := read(); rec.valid.overlaps(0, 100) || !rec.released.covers(0, 100) || !rec.finished {
		t.Fatalf("after a release: %+v", rec)
	}
	must(j.setSize(150))
	if rec := read(); rec.finished || rec.Size != 150 || rec.valid.overlaps(150, 1000) || len(rec.staged) != 1 || len(rec.sums) != 0 {
		t.Fatalf("after a truncation: %+v", rec)
	}
	must(j.add(recKept, []byte("because")))
	if rec := read(); rec.gone || rec.kept != "because" {
		t.Fatalf("kept: %+v", rec)
	}
	must(j.json(recBase, base{Name: "b", ETag: `"2"`, From: "b", FromETag: `"2"`, FromSize: 150, Limit: 150, Clean: true}))
	if rec := read(); rec.dirty || rec.kept != "" || len(rec.changed)+len(rec.staged)+len(rec.released) > 0 || rec.Base.Name != "b" {
		t.Fatalf("after a commit: %+v", rec)
	}
	must(j.finish(nil, true, false))
	must(j.span(recWritten, 0, 10))
	if rec := read(); !rec.finished || !rec.dirty {
		t.Fatalf("what stands whatever is written later: %+v", rec)
	}
	must(j.add(recGone, nil))
	if !read().gone {
		t.Fatal("not gone")
	}
}

// TestJournalCut cuts and damages a journal at every byte: it says what the whole records before that say, or nothing.
func TestJournalCut(t *testing.T) {
	j, _ := newTestJournal(t, testHeader())
	ends := []int64{j.size}
	for i := range int64(5) {
		if err := j.span(recWritten, 100+10*i, 110+10*i); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.size)
	}
	whole := make([]byte, j.size)
	if _, err := j.file.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	check := func(at int, b []byte) {
		t.Helper()
		rec, err := readJournal(bytes.NewReader(b))
		n := 0 // records before the damage
		for n < len(ends) && ends[n] <= int64(at) {
			n++
		}
		if n == 0 {
			if !errors.Is(err, errJournal) {
				t.Fatalf("damage at %d: error %v", at, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("damage at %d: %v", at, err)
		}
		if want := int64(100 + 10*(n-1)); rec.Size != want || rec.length != ends[n-1] {
			t.Fatalf("damage at %d: size %d, want %d; length %d, want %d", at, rec.Size, want, rec.length, ends[n-1])
		}
	}
	for at := range whole {
		check(at, whole[:at])
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x40
		check(at, flipped)
		zeroed := bytes.Clone(whole)
		clear(zeroed[at:])
		if zeroed[at] != whole[at] {
			check(at, zeroed)
		}
	}
}

// TestJournalEmptied: a journal that is given up says nothing at once: its first records alone would be of a file that was not
// saved. Here the process ends before the journal is cut.
func TestJournalEmptied(t *testing.T) {
	fd, err := unix.MemfdCreate("journal", unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{file: os.NewFile(uintptr(fd), "journal")}
	t.Cleanup(j.close)
	if err := j.begin(testHeader()); err != nil {
		t.Fatal(err)
	}
	for j.size <= keepJournal {
		if err := j.span(recWritten, 100, 200); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	if err := j.empty(); !errors.Is(err, unix.EPERM) {
		t.Fatalf("error %v of a file that cannot be cut", err)
	}
	if _, err := readJournal(io.NewSectionReader(j.file, 0, 1<<40)); !errors.Is(err, errEmpty) {
		t.Errorf("error %v", err)
	}
}

// TestJournalVersion: a journal of a later version is not guessed at.
func TestJournalVersion(t *testing.T) {
	h := testHeader()
	h.Version++
	j, _ := newTestJournal(t, h)
	if _, err := readJournal(io.NewSectionReader(j.file, 0, 1<<40)); !errors.Is(err, errJournal) {
		t.Errorf("error %v", err)
	}
}

// TestJournalModel replays random records, and compares with a list of what each byte is.
func TestJournalModel(t *testing.T) {
	const most = 300
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		h := testHeader()
		h.Base, h.Size = base{Name: "a", New: true}, 0
		j, read := newTestJournal(t, h)
		var valid, changed, released [most]bool
		size := 0
		set := func(x *[most]bool, off, end int, to bool) {
			for i := off; i < end; i++ {
				x[i] = to
			}
		}
		var err error
		for range 60 {
			off := rnd.IntN(most)
			end := off + rnd.IntN(most-off)
			switch rnd.IntN(5) {
			case 0, 1:
				err = j.span(recWritten, int64(off), int64(end))
				set(&valid, off, end, true)
				set(&changed, off, end, true)
				set(&released, off, end, false)
				size = max(size, end)
			case 2:
				err = j.setSize(int64(off))
				set(&valid, off, most, false)
				set(&changed, off, most, false)
				set(&released, off, most, false)
				size = off
			case 3:
				err = j.span(recReleased, int64(off), int64(end))
				set(&valid, off, end, false)
				set(&released, off, end, true)
			case 4:
				err = j.span(recHeld, int64(off), int64(end))
				set(&valid, off, end, true)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		rec := read()
		if rec.Size != int64(size) {
			t.Fatalf("seed %d: size %d, want %d", seed, rec.Size, size)
		}
		for i := range most {
			at := int64(i)
			got := [3]bool{rec.valid.covers(at, at+1), rec.changed.covers(at, at+1), rec.released.covers(at, at+1)}
			if want := [3]bool{valid[i], changed[i], released[i]}; got != want {
				t.Fatalf("seed %d, byte %d: valid, changed, released are %v, want %v", seed, i, got, want)
			}
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte{})
	f.Add(binary.LittleEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rec, err := readJournal(bytes.NewReader(b)); err == nil && rec.length > int64(len(b)) {
			t.Errorf("%d good bytes out of %d", rec.length, len(b))
		}
	})
}

// crash ends a cache as SIGKILL does: nothing is written any more, and its locks are gone.
func crash(c *Cache) {
	c.mu.Lock()
	files := slices.Collect(maps.Keys(c.files))
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.looking.Wait()
	c.background.Wait()
	for _, f := range files {
		f.mu.Lock()
		if f.stage != nil {
			f.stage.leave()
		}
		f.mu.Unlock()
	}
}

// left returns the one staging file that a directory has, or fails.
func theLeft(t *testing.T, dir string) Left {
	t.Helper()
	all, err := ListLeft(dir)
	if err != nil || len(all) != 1 {
		t.Fatalf("left: %+v, error %v; want one", all, err)
	}
	return all[0]
}

func recoverAll(t *testing.T, c *Cache, cont blob.Container) {
	t.Helper()
	if err := c.Recover(t.Context(), cont, noHooks); err != nil {
		t.Fatal(err)
	}
}
