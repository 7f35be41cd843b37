package integration

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// "A blob changed by somebody else is a new version: new opens see it. A handle opened before keeps reading its own
// version from the cache; bytes it needs that are not cached any more fail with ESTALE."
func testTimeoutZero(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--blob-cache-timeout=0")
	const size = 64 << 20
	first, second := noise(size), noise(size-100)
	w.Put("blob", first)
	old := w.open("blob", os.O_RDONLY)
	head := make([]byte, 1000)
	_, err := old.ReadAt(head, 0)
	must(t, err)
	equal(t, "first version", head, first[:1000])

	w.Put("blob", second)
	w.read("blob", second) // at the next open
	if info, err := os.Stat(w.path("blob")); err != nil || info.Size() != size-100 {
		t.Errorf("stat: %v, %v", info, err)
	}
	// Not what the first read has brought, and far beyond what is read ahead of it.
	_, err = old.ReadAt(make([]byte, 1000), size-2000)
	wantErrno(t, "the old version's bytes that are not cached", err, syscall.ESTALE)
	_, err = old.ReadAt(head, 500)
	must(t, err)
	equal(t, "the old version's bytes that are cached", head, first[500:1500])
	// Wherever it is asked: its own bytes or none.
	stale := 0
	for off := 0; off < size; off += 1 << 20 {
		b := make([]byte, 4096)
		if _, err := old.ReadAt(b, int64(off)); err != nil {
			wantErrno(t, "the old version", err, syscall.ESTALE)
			stale++
			continue
		}
		equal(t, "the old version", b, first[off:off+4096])
	}
	if stale == 0 {
		t.Error("all of the old version is to be had: the test proves nothing")
	}
	must(t, old.Close())

	// A write of our own replaces what is there now, not what was there once.
	f := w.open("blob", os.O_RDWR)
	_, err = f.WriteAt([]byte("ours"), 10)
	must(t, err)
	must(t, f.Close())
	copy(second[10:], "ours")
	w.holds("blob", second)

	// Names come and go.
	w.Put("more", nil)
	if entries, err := os.ReadDir(w.Dir); err != nil || len(entries) != 2 {
		t.Errorf("listed %v, %v", entries, err)
	}
	w.Delete("more")
	_, err = os.Stat(w.path("more"))
	wantErrno(t, "a blob that another host has deleted", err, syscall.ENOENT)
	if entries, err := os.ReadDir(w.Dir); err != nil || len(entries) != 1 {
		t.Errorf("listed %v, %v", entries, err)
	}
}

// "none never asks again for the life of the mount."
func testTimeoutNone(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	c.Put("blob", []byte("first"))
	c.Put("dir/name", nil)
	p := s.NewPoint(t, c)
	p.Mount("--blob-cache-timeout=none")
	w := &world{p, c, t}
	w.read("blob", []byte("first"))
	if _, err := os.ReadDir(w.path("dir")); err != nil {
		t.Fatal(err)
	}
	w.Put("blob", []byte("second, longer"))
	w.Put("dir/other", nil)
	w.Delete("dir/name")
	w.read("blob", []byte("first"))
	if entries, err := os.ReadDir(w.path("dir")); err != nil || len(entries) != 1 || entries[0].Name() != "name" {
		t.Errorf("listed %v, %v", entries, err)
	}
	_, err := os.Stat(w.path("dir/other"))
	wantErrno(t, "a name that was not there", err, syscall.ENOENT)
	// What is changed here is seen all the same.
	w.write("dir/mine", []byte("mine"))
	if entries, err := os.ReadDir(w.path("dir")); err != nil || len(entries) != 2 {
		t.Errorf("listed %v, %v", entries, err)
	}
	w.Remount("--blob-cache-timeout=none")
	w.read("blob", []byte("second, longer"))
}

const overtaken = "another writer changed this blob"

// "If somebody else committed in between: the commit fails with ESTALE, and the losing bytes are kept under the cache
// directory."
func testConflict(t *testing.T, s *mounttest.Service) {
	a := newWorld(t, s)
	p := s.NewPoint(t, a.Container)
	p.Mount()
	b := &world{p, a.Container, t}
	for _, size := range []int{1000, 20 << 20} { // by one Put Blob, and by blocks
		base, winning, losing := noise(size), noise(size), noise(size)
		name := "file" + string(rune('0'+len(b.Blobs())))
		a.write(name, base)
		winner, loser := a.open(name, os.O_RDWR), b.open(name, os.O_RDWR)
		_, err := loser.WriteAt(losing, 0)
		must(t, err)
		_, err = winner.WriteAt(winning, 0)
		must(t, err)
		must(t, winner.Close())
		b.ExpectError(overtaken)
		wantErrno(t, "close of the second writer", unix.Fsync(int(loser.Fd())), syscall.ESTALE)
		got := make([]byte, size)
		_, err = loser.ReadAt(got, 0)
		must(t, err)
		equal(t, "the loser's own handle", got, losing)
		wantErrno(t, "close of the second writer", loser.Close(), syscall.ESTALE)
		a.holds(name, winning)
		a.read(name, winning)
		b.read(name, winning) // "the name is theirs from now on"
		kept(t, b, losing)
		// Who opens it now writes upon the winner's version.
		again := b.open(name, os.O_RDWR)
		_, err = again.WriteAt([]byte("again"), 0)
		must(t, err)
		must(t, again.Close())
		copy(winning, "again")
		a.holds(name, winning)
	}
	b.Unmount()
}

// kept checks that some file of the cache directory has exactly these bytes.
func kept(t *testing.T, w *world, want []byte) {
	t.Helper()
	found := false
	err := filepath.WalkDir(filepath.Join(w.Cache, "staging"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		got, err := os.ReadFile(path)
		found = found || string(got) == string(want)
		return err
	})
	if err != nil || !found {
		t.Errorf("the losing bytes are not kept in %s: %v", w.Cache, err)
	}
}

// Two hosts make the same name: the second close fails, and the first one's bytes are whole.
func testConflictNew(t *testing.T, s *mounttest.Service) {
	a := newWorld(t, s)
	p := s.NewPoint(t, a.Container)
	p.Mount()
	b := &world{p, a.Container, t}
	first, second := a.open("new", os.O_CREATE|os.O_WRONLY), b.open("new", os.O_CREATE|os.O_WRONLY)
	_, err := io.WriteString(first, "first")
	must(t, err)
	_, err = io.WriteString(second, "the second one")
	must(t, err)
	must(t, first.Close())
	b.ExpectError(overtaken)
	wantErrno(t, "close of the second writer", second.Close(), syscall.ESTALE)
	a.holds("new", []byte("first"))
	b.read("new", []byte("first"))
	kept(t, b, []byte("the second one"))
	b.Unmount()

	// With O_EXCL the second open fails already. (With the usual blob-cache timeout b may go on for that long to think
	// that the lock is held, never that it is free.)
	b.Mount("--blob-cache-timeout=0")
	lock := a.open("lock", os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	_, err = os.OpenFile(b.path("lock"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	wantErrno(t, "O_EXCL on the second host", err, syscall.EEXIST)
	must(t, lock.Close())
	must(t, os.Remove(a.path("lock")))
	lock, err = os.OpenFile(b.path("lock"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	must(t, err)
	must(t, lock.Close())
}
