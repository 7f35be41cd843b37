package blobcache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// newRenameJournal returns a journal of two pages, and where its records end.
func newRenameJournal(t *testing.T) (whole []byte, ends []int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x"+extJournal)
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	add := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.size)
	}
	h := renameHeader{Version: renameVersion, Container: "https://account.example/container", From: "a b", To: "ü"}
	h.Source[0], h.Target[1] = `"1"`, `"2"`
	add(j.begin(h))
	blobs := testBlobs()
	add(j.add(recPlanned, planRecord(blobs[0])))
	add(j.add(recPlanned, planRecord(blobs[1])))
	add(j.add(recCopied, copyRecord(1, blobs[1])))
	add(j.add(recCopied, copyRecord(0, blobs[0])))
	add(j.add(recStale, planRecord(blobs[2])))
	add(j.add(recPlanned, planRecord(blobs[3])))
	add(j.add(recCopied, copyRecord(3, blobs[3])))
	add(j.add(recForward, nil))
	add(j.number(recDeleted, 2))
	if whole, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return whole, ends
}

func testBlobs() []renamedBlob {
	made := time.Unix(1000, 0).UTC()
	return []renamedBlob{
		{name: "/x", etag: `"3"`, size: 10, done: true, copy: blob.Written{ETag: `"5"`, Modified: made}},
		{name: "/y/ü", etag: `"4"`, size: 0, done: true, copy: blob.Written{Modified: made}}, // it is gone
		{name: "/y/ü/", etag: `"8"`, done: true, stale: true},
		{name: "/z", etag: `"6"`, size: 1 << 40, done: true, copy: blob.Written{ETag: `"7"`, Modified: made}},
	}
}

// readTestRename returns what a journal says, with its pages as text.
func readTestRename(b []byte) (*renameState, []string, error) {
	var pages []string
	s, err := readRename(bytes.NewReader(b), func(first int64, blobs []renamedBlob) error {
		pages = append(pages, fmt.Sprintf("%d %+v", first, blobs))
		return nil
	})
	return s, pages, err
}

// TestRenameJournal reads back what was written, page by page.
func TestRenameJournal(t *testing.T) {
	whole, _ := newRenameJournal(t)
	s, pages, err := readTestRename(whole)
	if err != nil {
		t.Fatal(err)
	}
	blobs := testBlobs()
	if want := []string{fmt.Sprintf("0 %+v", blobs[:2]), fmt.Sprintf("2 %+v", blobs[2:])}; !slices.Equal(pages, want) {
		t.Errorf("got  %q\nwant %q", pages, want)
	}
	if s.From != "a b" || s.To != "ü" || s.phase != renameForward || s.planned != 4 || s.last != "/z" || s.deleted != 2 ||
		s.Source != [2]blob.ETag{`"1"`, ""} || s.Target != [2]blob.ETag{"", `"2"`} || s.length != int64(len(whole)) {
		t.Errorf("got %+v", s)
	}
}

// TestRenameJournalCut cuts and damages the journal of a rename at every byte: it says what the whole records before that
// say, or nothing.
func TestRenameJournalCut(t *testing.T) {
	whole, ends := newRenameJournal(t)
	type said struct {
		state renameState
		pages []string
	}
	var wants []said
	for _, end := range ends {
		s, pages, err := readTestRename(whole[:end])
		if err != nil {
			t.Fatal(err)
		}
		wants = append(wants, said{*s, pages})
	}
	check := func(at int, b []byte) {
		t.Helper()
		n := 0
		for n < len(ends) && ends[n] <= int64(at) {
			n++
		}
		s, pages, err := readTestRename(b)
		if n == 0 {
			if !errors.Is(err, errJournal) {
				t.Fatalf("damage at %d: error %v", at, err)
			}
			return
		}
		if err != nil || !reflect.DeepEqual(said{*s, pages}, wants[n-1]) {
			t.Fatalf("damage at %d: got %+v, %q, error %v\nwant %+v", at, s, pages, err, wants[n-1])
		}
	}
	for at := range whole {
		check(at, whole[:at])
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x40
		check(at, damaged)
	}
}

// TestRenameJournalRefused: what another version has written, or what makes no sense, is refused and not guessed at.
func TestRenameJournalRefused(t *testing.T) {
	j := &journal{salt: 1}
	for what, records := range map[string][][]byte{
		"another version":          {j.record(recRename, []byte(`{"version":2}`))},
		"no header":                {j.record(recForward, nil)},
		"two headers":              {j.record(recRename, []byte(`{"version":1}`)), j.record(recRename, []byte(`{"version":1}`))},
		"unknown record":           {j.record(recRename, []byte(`{"version":1}`)), j.record('?', nil)},
		"copy without a plan":      {j.record(recRename, []byte(`{"version":1}`)), j.record(recCopied, copyRecord(0, renamedBlob{}))},
		"a record that is short":   {j.record(recRename, []byte(`{"version":1}`)), j.record(recPlanned, []byte{1})},
		"a record that is longer":  {j.record(recRename, []byte(`{"version":1}`)), j.record(recForward, []byte{1})},
		"a header that is no JSON": {j.record(recRename, []byte(`{`))},
	} {
		m := renameReader{}
		var err error
		for _, r := range records {
			if err == nil {
				err = m.take(r[8], r[9:])
			}
		}
		if !errors.Is(err, errJournal) {
			t.Errorf("%s: error %v", what, err)
		}
	}
}
