package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/integration/blobserver"
)

// What was closed and is still waiting for its delay is sent by the unmount.
func TestUnmountDrains(t *testing.T) {
	w := newWorld(t)
	lock, _ := w.mount("--write-back", "--write-back-delay=1h")
	want := map[string]string{}
	for i := range 30 { // the first is empty
		name := fmt.Sprintf("file%d", i)
		want[name] = strings.Repeat(name, i)
		if err := os.WriteFile(filepath.Join(w.mnt, name), []byte(want[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.store.Len(); n != 0 {
		t.Errorf("%d files are in the service before their delay", n)
	}
	if code, message := w.do("unmount", w.mnt); code != exitOK || message != "" {
		t.Errorf("unmount: %d, %q", code, message)
	}
	w.ended(lock)
	for name, content := range want {
		if content != "" {
			w.holds(name, content)
		} else if p, err := w.store.Properties(name, blob.Condition{}); err != nil || p.Size != 0 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestLeftover(t *testing.T) {
	l := leftover{Waiting: 12, Names: []string{"a", "b\n"}, Kept: 2}
	want := `not saved in the service yet: 12 files ("a", "b\n", and 10 more); they are kept on the local disk, and the next mount of az://data ` +
		`with --cache-dir /c sends them; changed by another writer meanwhile: 2 files; yours are kept: see blobmount recover --cache-dir /c list`
	if got := l.text("az://data", "/c"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// An unmount does not wait for a service that does not answer, beyond --drain-timeout.
func TestDrainTimeout(t *testing.T) {
	w := newWorld(t)
	lock, _ := w.mount("--write-back", "--write-back-delay=1h", "--drain-timeout=200ms")
	if err := os.WriteFile(filepath.Join(w.mnt, "report"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	never := make(chan struct{})
	defer close(never)
	w.server.AddFault(blobserver.Fault{Action: blobserver.Stall, Until: never})
	if code, message := w.do("unmount", "--timeout=none", w.mnt); code != exitFailure || !strings.Contains(message, `1 file ("report")`) {
		t.Errorf("unmount: %d, %q", code, message)
	}
	w.ended(lock)
	w.onlyLeft("finished", "report")
}

// A conflict that only the drain finds was told to no program: the unmount tells it.
func TestDrainFindsConflict(t *testing.T) {
	w := newWorld(t)
	w.put("report", "old")
	lock, _ := w.mount("--write-back", "--write-back-delay=1h")
	if err := os.WriteFile(filepath.Join(w.mnt, "report"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.put("report", "theirs")
	code, message := w.do("unmount", w.mnt)
	if want := "changed by another writer meanwhile: 1 file; yours are kept: see blobmount recover"; code != exitFailure || !strings.Contains(message, want) || strings.Contains(message, "not saved") {
		t.Errorf("unmount: %d, %q, want %q", code, message, want)
	}
	w.ended(lock)
	w.holds("report", "theirs")
	l := w.onlyLeft("conflict", "report")
	if got := w.recover("", "save", l.ID, "-"); got != "mine" {
		t.Errorf("kept is %q", got)
	}
}

func TestLastWriterWins(t *testing.T) {
	w := newWorld(t)
	w.put("report", "old")
	lock, _ := w.mount("--last-writer-wins")
	f, err := os.OpenFile(filepath.Join(w.mnt, "report"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("mine"); err != nil {
		t.Error(err)
	}
	w.put("report", "theirs")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	w.holds("report", "mine")
	if err := syscall.Unmount(w.mnt, 0); err != nil {
		t.Fatal(err)
	}
	w.ended(lock)
}

func TestConvertAppendBlobs(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		flags []string
		want  string
		errno error
	}{
		{nil, "0123456789", syscall.EPERM},
		{[]string{"--convert-append-blobs"}, "01x3456789", nil},
	} {
		w.putAppend("log", "0123456789")
		lock, _ := w.mount(tt.flags...)
		f, err := os.OpenFile(filepath.Join(w.mnt, "log"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("x"), 2)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if !errors.Is(err, tt.errno) {
			t.Errorf("%v: %v, want %v", tt.flags, err, tt.errno)
		}
		w.holds("log", tt.want)
		if code, message := w.do("unmount", w.mnt); code != exitOK {
			t.Errorf("%v: unmount: %d, %q", tt.flags, code, message)
		}
		w.ended(lock)
	}
}
