package fs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// statusOf reads the attribute of a node as a user.
func statusOf(k *kernel, node uint64, uid uint32, size int) (string, fuse.Status) {
	dest := make([]byte, size)
	h := fuse.InHeader{NodeId: node}
	h.Uid = uid
	n, status := k.fs.GetXAttr(nil, &h, StatusAttr, dest)
	return string(dest[:min(int(n), size)]), status
}

func TestStatus(t *testing.T) {
	k := newKernel(t, time.Minute)
	k.fs.about.Source = "az://data"
	file := k.fs.cache.CreateFile(k.fs.cont, blob.Properties{Name: "new"}, blobcache.Hooks{Committed: func(blob.Properties, bool) {}})
	file.Acquire(true)
	if err := file.Write(t.Context(), []byte("12345"), 0); err != nil {
		t.Fatal(err)
	}
	text, code := statusOf(k, fuse.FUSE_ROOT_ID, 0, MaxStatus)
	if code != fuse.OK {
		t.Fatal(code)
	}
	var s Status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if s.Source != "az://data" || s.ReadOnly || s.Open != "auto" || s.Memory != blobcache.MinMemory || s.Nodes != 1 || s.CacheSize != 1<<30 ||
		s.UnsavedFiles != 1 || s.UnsavedBytes != 5 || len(s.Unsaved) != 1 || s.Unsaved[0].Name != "new" || !s.Unsaved[0].Open {
		t.Errorf("%s", text)
	}
	if _, code := statusOf(k, fuse.FUSE_ROOT_ID, 0, 0); code != fuse.ERANGE {
		t.Errorf("without room: %v", code)
	}
	if text, code := statusOf(k, fuse.FUSE_ROOT_ID, uint32(os.Geteuid())+1, MaxStatus); code != fuse.Status(syscall.EACCES) || text != "" {
		t.Errorf("another user gets %q, %v", text, code)
	}
	if names := k.fs.xattrs(k.fs.nodes.root); strings.Contains(names, "status") {
		t.Errorf("it is listed: %q", names)
	}
	file.Release(true)
}

// However many files there are, and however long their names, the answer fits.
func TestStatusFits(t *testing.T) {
	var files []blobcache.Unsaved
	for i := range 250 {
		files = append(files, blobcache.Unsaved{
			Name: fmt.Sprintf("%03d", i) + strings.Repeat("<", 1000), Size: 1000, Since: time.Unix(int64(1000-i), 0),
			Err: errors.New(strings.Repeat("é ", 400)),
		})
	}
	var renames []blobcache.Rename
	for range 12 {
		long := strings.Repeat("<", 1000)
		renames = append(renames, blobcache.Rename{From: long, To: long, Step: blobcache.RenameDeleting, Reason: strings.Repeat("é ", 400)})
	}
	s := Status{}
	s.addRenames(renames)
	if s.UnfinishedRenames != 12 || len(s.Renames) != maxRenames || s.Renames[0].State != "deleting" || len(s.Renames[0].Error) > maxErrorText {
		t.Errorf("%d renames, %d listed, the first %.300v", s.UnfinishedRenames, len(s.Renames), s.Renames[0])
	}
	s.addUnsaved(files)
	if s.UnsavedFiles != 250 || s.UnsavedBytes != 250_000 || len(s.Unsaved) != maxUnsaved || !strings.HasPrefix(s.Unsaved[0].Name, "249") {
		t.Errorf("%d files, %d bytes, %d listed", s.UnsavedFiles, s.UnsavedBytes, len(s.Unsaved))
	}
	if e := s.Unsaved[0].Error; len(e) > maxErrorText || !strings.HasPrefix(e, "é é") {
		t.Errorf("error %q", e)
	}
	text, err := encodeStatus(s)
	if err != nil || len(text) > MaxStatus {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	var got Status
	if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Unsaved) == 0 || got.UnsavedFiles != 250 ||
		len(got.Renames) == 0 || got.UnfinishedRenames != 12 {
		t.Errorf("%d of %d files and %d of %d renames are listed, %v", len(got.Unsaved), got.UnsavedFiles, len(got.Renames), got.UnfinishedRenames, err)
	}
}

// What is too long without any file or rename ends too: the kernel refuses it.
func TestStatusNeverFits(t *testing.T) {
	s := Status{Version: strings.Repeat("v", MaxStatus)}
	s.addUnsaved([]blobcache.Unsaved{{Name: "a"}, {Name: "b"}})
	done := make(chan string, 1)
	go func() {
		text, _ := encodeStatus(s)
		done <- text
	}()
	select {
	case text := <-done:
		var got Status
		if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Unsaved) != 0 || got.UnsavedFiles != 2 {
			t.Errorf("%d bytes with %d of %d files: %v", len(text), len(got.Unsaved), got.UnsavedFiles, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on for ever")
	}
}
