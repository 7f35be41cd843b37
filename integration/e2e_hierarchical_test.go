package integration

import (
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
	"blobmount/integration/mounttest"
)

// An account with a hierarchical namespace: the service renames files and directories in one step, open files go on under
// their new names, directories are there without a file, and one that is not empty is not removed.
func TestMountHierarchical(t *testing.T) {
	mounttest.NeedFUSE(t)
	t.Run("asked at once", func(t *testing.T) { mountHierarchical(t) })
	t.Run("asked late", func(t *testing.T) { mountHierarchical(t, "--skip-validation") })
}

func mountHierarchical(t *testing.T, flags ...string) {
	s := mounttest.EmbeddedWith(t, blobserver.Options{Store: blobtest.StoreOptions{Hierarchical: true}})
	w := newWorld(t, s, flags...)
	must(t, os.MkdirAll(w.path("from/sub/empty"), 0o755))
	w.write("from/a", []byte("a"))
	w.write("from/sub/b", []byte("b"))
	must(t, os.Symlink("a", w.path("from/link")))
	open := w.open("from/a", os.O_RDWR)
	_, err := open.WriteAt([]byte("A"), 0)
	must(t, err)
	must(t, os.Mkdir(w.path("to"), 0o755))
	must(t, os.Mkdir(w.path("full"), 0o755))
	w.write("full/x", []byte("x"))

	before := s.Embedded.Stats().Requests
	wantErrno(t, "over a directory that is not empty", unix.Rename(w.path("from"), w.path("full")), syscall.ENOTEMPTY)
	must(t, unix.Rename(w.path("from"), w.path("to")))
	after := s.Embedded.Stats().Requests
	if n := after["CopyBlob"] - before["CopyBlob"]; n > 0 || after["RenamePath"] == before["RenamePath"] {
		t.Errorf("%d copies, %d renames by the service", n, after["RenamePath"]-before["RenamePath"])
	}
	_, err = open.WriteAt([]byte("B"), 1)
	must(t, err)
	must(t, open.Close())
	must(t, os.Rename(w.path("to/sub/b"), w.path("to/c")))
	wantErrno(t, "to a name that is taken", unix.Renameat2(unix.AT_FDCWD, w.path("to/c"), unix.AT_FDCWD, w.path("to/a"), unix.RENAME_NOREPLACE), syscall.EEXIST)
	check := func() {
		t.Helper()
		w.read("to/a", []byte("AB"))
		w.read("to/c", []byte("b"))
		if target, err := os.Readlink(w.path("to/link")); err != nil || target != "a" {
			t.Errorf("link: %q, %v", target, err)
		}
		if info, err := os.Stat(w.path("to/sub")); err != nil || !info.IsDir() {
			t.Errorf("directory: %v, %v", info, err)
		}
		if info, err := os.Stat(w.path("to/sub/empty")); err != nil || !info.IsDir() {
			t.Errorf("empty directory: %v, %v", info, err)
		}
		if _, err := os.Stat(w.path("from")); !os.IsNotExist(err) {
			t.Errorf("the old name: %v", err)
		}
	}
	check()
	w.Remount()
	check()
	if got, want := w.Blobs(), []string{"full", "full/x", "to", "to/a", "to/c", "to/link", "to/sub", "to/sub/empty"}; !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
	wantErrno(t, "rmdir of a directory that is not empty", os.Remove(w.path("to/sub")), syscall.ENOTEMPTY)
	must(t, os.Remove(w.path("to/sub/empty")))
	must(t, os.Remove(w.path("to/sub")))
	must(t, os.RemoveAll(w.path("to")))
	if got, want := w.Blobs(), []string{"full", "full/x"}; !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
}
