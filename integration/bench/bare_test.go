package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/blobcache"
	"blobmount/integration/blobserver"
)

// testLab is a lab whose mounts are gone at the end of the test, without the programs.
func testLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{dir: t.TempDir(), scale: 1, log: io.Discard}
	t.Cleanup(func() {
		if err := l.cleanUp(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// A bare mount shows what the directory has, at the first reading and from the page cache, and after it was mounted again.
func TestBare(t *testing.T) {
	needsMounts(t)
	l, dir := testLab(t), t.TempDir()
	// The names take several messages, and the files lie on both sides of what is given with the first open.
	const count = 3000
	files := []file{{Name: "large", Size: 3<<20 + 5}, {Name: "given", Size: blobcache.WholeMax}, {Name: "read", Size: blobcache.WholeMax + 1}, {Name: "empty"}}
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		files = append(files, file{Name: fmt.Sprintf("many/%d", i), Size: int64(i)})
	}
	for i, f := range files {
		content := make([]byte, f.Size)
		blobserver.SyntheticContent(f.Name)(content, 0)
		files[i].Sum = crc32.Checksum(content, castagnoli)
		if err := os.WriteFile(filepath.Join(dir, f.Name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		b, err := l.bare(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range files {
			files[i].Path = filepath.Join(b.dir, f.Name)
		}
		for range 2 {
			if names, err := os.ReadDir(filepath.Join(b.dir, "many")); err != nil || len(names) != count {
				t.Fatalf("%d names, %v", len(names), err)
			}
			if _, r, err := runTasks(t.Context(), nil, task{Op: opFiles, Files: files}); err != nil || r.Reads != int64(len(files)) {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		if err := dropCaches(); err != nil { // the kernel forgets nodes, and is given their content again
			t.Fatal(err)
		}
		if _, _, err := runTasks(t.Context(), nil, task{Op: opFiles, Files: files}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(b.dir, "missing")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a name that is not there: %v", err)
		}
		if err := os.Remove(files[0].Path); err == nil {
			t.Error("a file was removed")
		}
		if err := b.close(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(b.dir); err != nil || len(left) > 0 {
			t.Errorf("after the unmount: %v, %v", left, err)
		}
	}
}

// A bare mount that cannot begin is an error, and leaves nothing behind.
func TestBareFails(t *testing.T) {
	needsMounts(t)
	l := testLab(t)
	if _, err := l.bare(t.Context(), filepath.Join(l.dir, "missing")); err == nil {
		t.Error("a missing directory is no error")
	}
}

// The kernel treats the bare mount as it treats blobmount's: else it would not be blobmount's ceiling.
func TestBareIsMountedAlike(t *testing.T) {
	needsMounts(t)
	t.Chdir("../..")
	l, err := newLab(t.Context(), t.TempDir(), 1, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.remove(); err != nil {
			t.Error(err)
		}
	}()
	s, err := l.service(t.Context(), lan)
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.mount(t.Context(), s.connection, "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.bare(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	connections := t.TempDir() // it is not mounted everywhere
	if err := unix.Mount("fusectl", connections, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	want, got := treatment(t, connections, m.dir), treatment(t, connections, b.dir)
	if err := unix.Unmount(connections, 0); err != nil {
		t.Error(err)
	}
	if want != got {
		t.Errorf("blobmount's mount: %s\nthe bare mount: %s", want, got)
	}
	if !strings.Contains(got, "default_permissions") || !strings.Contains(got, "max_background 128") {
		t.Errorf("not all was found: %s", got)
	}
}

// treatment says what the kernel knows of a FUSE mount. connections is where its own file system of FUSE is mounted.
func treatment(t *testing.T, connections, dir string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range bytes.Lines(mounts) {
		// proc_pid_mountinfo(5): the mount point is the 5th field, its options the 6th, and those of the file system the last.
		if f := strings.Fields(string(line)); f[4] == dir {
			all = append(all, f[5], f[len(f)-1])
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	connection := filepath.Join(connections, fmt.Sprint(unix.Minor(st.Dev)))
	for _, path := range []string{readAheadFile(st.Dev), filepath.Join(connection, "max_background"), filepath.Join(connection, "congestion_threshold")} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		all = append(all, filepath.Base(path), strings.TrimSpace(string(text)))
	}
	return strings.Join(all, " ")
}
