package integration

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// "open(O_CREAT) makes the name visible on this mount at once; the blob appears in the service at the first commit.
// O_EXCL asks the service at once."
func testCreate(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	f := w.open("new", os.O_CREATE|os.O_WRONLY)
	if _, err := os.Stat(w.path("new")); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(w.Dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("listed: %v, %v", entries, err)
	}
	if w.Has("new") {
		t.Error("the service has the blob before it was committed")
	}
	must(t, f.Close())
	w.holds("new", nil)

	lock := w.open("lock", os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	w.holds("lock", nil)
	_, err = os.OpenFile(w.path("lock"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	wantErrno(t, "O_EXCL of a name that is there", err, syscall.EEXIST)
	must(t, lock.Close())
	// Made by somebody else after this mount saw that there is none.
	if _, err := os.Stat(w.path("foreign")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	w.Put("foreign", []byte("theirs"))
	_, err = os.OpenFile(w.path("foreign"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	wantErrno(t, "O_EXCL of a name that another host has made", err, syscall.EEXIST)
	w.holds("foreign", []byte("theirs"))

	w.write("data", []byte("before"))
	trunc := w.open("data", os.O_TRUNC|os.O_WRONLY)
	w.read("data", nil)
	w.holds("data", []byte("before")) // not half of a change: the commit replaces all
	_, err = trunc.Write([]byte("after"))
	must(t, err)
	must(t, trunc.Close())
	w.holds("data", []byte("after"))
}

// Two handles with O_APPEND lose nothing of each other.
func testAppend(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	a := w.open("file", os.O_CREATE|os.O_APPEND|os.O_WRONLY)
	b := w.open("file", os.O_APPEND|os.O_WRONLY)
	var want []byte
	for i := range 200 {
		line := noise(1 + i*7)
		f := a
		if i%3 == 0 {
			f = b
		}
		_, err := f.Write(line)
		must(t, err)
		want = append(want, line...)
		if i == 100 {
			must(t, a.Sync())
		}
	}
	must(t, a.Close())
	must(t, b.Close())
	w.holds("file", want)
	w.Remount()
	w.read("file", want)
	c := w.open("file", os.O_APPEND|os.O_WRONLY) // to a version that is not cached
	_, err := c.Write([]byte("end"))
	must(t, err)
	must(t, c.Close())
	w.holds("file", append(want, "end"...))
}

// "unlink of an open file: its handles keep working to the last close", also those that had not read it yet.
func testUnlink(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	large := noise(24 << 20)
	w.Put("large", large)
	f := w.open("large", os.O_RDONLY)
	must(t, os.Remove(w.path("large")))
	if _, err := os.Stat(w.path("large")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat after the unlink: %v", err)
	}
	if w.Has("large") {
		t.Error("the service still has it")
	}
	got, err := io.ReadAll(f)
	must(t, err)
	equal(t, "read after the unlink", got, large)
	var st syscall.Stat_t
	must(t, syscall.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 || st.Size != int64(len(large)) {
		t.Errorf("fstat: %d links, %d bytes", st.Nlink, st.Size)
	}
	must(t, f.Close())

	// A temporary file: made, unlinked, written, read, gone.
	temp := w.open("temp", os.O_CREATE|os.O_RDWR)
	must(t, os.Remove(w.path("temp")))
	text := noise(9 << 20)
	_, err = temp.WriteAt(text, 0)
	must(t, err)
	must(t, temp.Sync())
	got, err = io.ReadAll(io.NewSectionReader(temp, 0, 1<<30))
	must(t, err)
	equal(t, "temporary file", got, text)
	must(t, temp.Close())

	// A name that is used again belongs to the new file.
	w.write("again", []byte("first"))
	first := w.open("again", os.O_RDWR)
	must(t, os.Remove(w.path("again")))
	w.write("again", []byte("second"))
	_, err = first.WriteAt([]byte("FIRST"), 0)
	must(t, err)
	must(t, first.Close())
	w.holds("again", []byte("second"))
	if got, want := w.Blobs(), []string{"again"}; !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
	wantErrno(t, "unlink of nothing", os.Remove(w.path("nothing")), syscall.ENOENT)
}

func testRenameFile(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	large := noise(20 << 20)
	w.write("a", large)
	must(t, os.Mkdir(w.path("dir"), 0o755))
	must(t, os.Rename(w.path("a"), w.path("dir/b")))
	w.read("dir/b", large)
	w.holds("dir/b", large)
	if w.Has("a") {
		t.Error("the old name is still there")
	}
	if _, err := os.Stat(w.path("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of the old name: %v", err)
	}
	// Over a file, from an uncached version.
	w.write("target", []byte("old"))
	w.Remount()
	must(t, os.Rename(w.path("dir/b"), w.path("target")))
	w.read("target", large)
	w.holds("target", large)

	w.write("c", []byte("c"))
	err := unix.Renameat2(unix.AT_FDCWD, w.path("c"), unix.AT_FDCWD, w.path("target"), unix.RENAME_NOREPLACE)
	wantErrno(t, "RENAME_NOREPLACE", err, syscall.EEXIST)
	must(t, unix.Renameat2(unix.AT_FDCWD, w.path("c"), unix.AT_FDCWD, w.path("d"), unix.RENAME_NOREPLACE))
	w.holds("d", []byte("c"))
	err = unix.Renameat2(unix.AT_FDCWD, w.path("d"), unix.AT_FDCWD, w.path("target"), unix.RENAME_EXCHANGE)
	wantErrno(t, "RENAME_EXCHANGE", err, syscall.EINVAL)
	wantErrno(t, "file over a directory", os.Rename(w.path("d"), w.path("dir")), syscall.EEXIST) // os.Rename's own check
	wantErrno(t, "file over a directory", unix.Rename(w.path("d"), w.path("dir")), syscall.EISDIR)
	wantErrno(t, "directory over a file", unix.Rename(w.path("dir"), w.path("d")), syscall.ENOTDIR)
	wantErrno(t, "of nothing", os.Rename(w.path("nothing"), w.path("e")), syscall.ENOENT)
	wantErrno(t, "hard link", os.Link(w.path("d"), w.path("e")), syscall.EPERM)
	must(t, os.Rename(w.path("d"), w.path("d")))
	w.read("d", []byte("c"))
	if got, want := w.Blobs(), []string{"d", "dir", "target"}; !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
}

// Renames of files that are open: the handles stay with their file.
func testRenameOpen(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	old, replacement := noise(24<<20), noise(2<<20)
	w.Put("target", old)
	reader := w.open("target", os.O_RDONLY)
	w.write("new", replacement)
	must(t, os.Rename(w.path("new"), w.path("target")))
	got, err := io.ReadAll(reader)
	must(t, err)
	equal(t, "the replaced file, by the handle that had it open", got, old)
	must(t, reader.Close())
	w.read("target", replacement)
	w.holds("target", replacement)

	// A file that is written to before and after it gets its name, as editors and downloaders do.
	temp := w.open("part", os.O_CREATE|os.O_WRONLY)
	first, second := noise(10<<20), noise(10<<20)
	_, err = temp.Write(first)
	must(t, err)
	must(t, os.Rename(w.path("part"), w.path("whole")))
	_, err = temp.Write(second)
	must(t, err)
	must(t, temp.Close())
	w.holds("whole", append(first, second...))

	// The same for one that the service has already.
	again := w.open("whole", os.O_RDWR)
	_, err = again.WriteAt([]byte("changed"), 5)
	must(t, err)
	must(t, os.Rename(w.path("whole"), w.path("target")))
	_, err = again.WriteAt([]byte("twice"), 20<<20)
	must(t, err)
	must(t, again.Close())
	want := append(append(bytes.Clone(first), second...), "twice"...)
	copy(want[5:], "changed")
	w.holds("target", want)
	w.read("target", want)
	if got, want := w.Blobs(), []string{"target"}; !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
}

func testRenameDirectory(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	for _, dir := range []string{"from", "from/sub", "from/empty", "to", "full"} {
		must(t, os.Mkdir(w.path(dir), 0o755))
	}
	content := map[string][]byte{"a": noise(3 << 20), "sub/b": []byte("b"), "sub/c d%": nil}
	for name, c := range content {
		w.write("from/"+name, c)
	}
	w.write("full/file", []byte("x"))
	must(t, os.Symlink("a", w.path("from/link")))
	must(t, os.Chmod(w.path("from/sub/b"), 0o600))
	open := w.open("from/a", os.O_RDWR)
	_, err := open.WriteAt([]byte("dirty"), 0)
	must(t, err)
	copy(content["a"], "dirty")

	wantErrno(t, "over a directory that is not empty", unix.Rename(w.path("from"), w.path("full")), syscall.ENOTEMPTY)
	wantErrno(t, "into itself", unix.Rename(w.path("from"), w.path("from/sub/x")), syscall.EINVAL)
	must(t, os.Rename(w.path("from"), w.path("moved")))
	must(t, unix.Rename(w.path("moved"), w.path("to"))) // over an empty one
	_, err = open.WriteAt([]byte("later"), 1<<20)
	must(t, err)
	copy(content["a"][1<<20:], "later")
	must(t, open.Close())
	check := func() {
		t.Helper()
		for name, c := range content {
			w.read("to/"+name, c)
			w.holds("to/"+name, c)
		}
		if target, err := os.Readlink(w.path("to/link")); err != nil || target != "a" {
			t.Errorf("link: %q, %v", target, err)
		}
		if info, err := os.Stat(w.path("to/sub/b")); err != nil || info.Mode() != 0o600 {
			t.Errorf("mode: %v, %v", info, err)
		}
		if info, err := os.Stat(w.path("to/empty")); err != nil || !info.IsDir() {
			t.Errorf("empty directory: %v, %v", info, err)
		}
		for _, gone := range []string{"from", "moved"} {
			if _, err := os.Stat(w.path(gone)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", gone, err)
			}
		}
	}
	check()
	w.Remount()
	check()
	want := []string{"full", "full/file", "to", "to/a", "to/empty", "to/link", "to/sub", "to/sub/b", "to/sub/c d%"}
	if got := w.Blobs(); !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
}

// "A directory does not vanish because its last file was removed through this mount."
func testDirectories(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--blob-cache-timeout=0")
	w.Put("implied/sub/file", []byte("x"))
	must(t, os.Remove(w.path("implied/sub/file")))
	for _, dir := range []string{"implied", "implied/sub"} {
		if info, err := os.Stat(w.path(dir)); err != nil || !info.IsDir() {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	wantErrno(t, "rmdir", unix.Rmdir(w.path("implied")), syscall.ENOTEMPTY)
	must(t, unix.Rmdir(w.path("implied/sub")))
	if info, err := os.Stat(w.path("implied")); err != nil || !info.IsDir() {
		t.Errorf("implied: %v, %v", info, err)
	}
	must(t, unix.Rmdir(w.path("implied")))
	// By way of rename too.
	w.Put("other/file", []byte("y"))
	must(t, os.Rename(w.path("other/file"), w.path("file")))
	if info, err := os.Stat(w.path("other")); err != nil || !info.IsDir() {
		t.Errorf("other: %v, %v", info, err)
	}
	wantErrno(t, "mkdir of a name that is there", os.Mkdir(w.path("file"), 0o755), syscall.EEXIST)
	wantErrno(t, "mkdir below a file", os.Mkdir(w.path("file/x"), 0o755), syscall.ENOTDIR)
	wantErrno(t, "mkdir below nothing", os.Mkdir(w.path("nothing/x"), 0o755), syscall.ENOENT)
	wantErrno(t, "rmdir of a file", unix.Rmdir(w.path("file")), syscall.ENOTDIR)
	wantErrno(t, "unlink of a directory", unix.Unlink(w.path("other")), syscall.EISDIR)
	// A file that another host puts into a directory keeps it.
	w.Put("other/theirs", []byte("z"))
	wantErrno(t, "rmdir of a directory that another host uses", unix.Rmdir(w.path("other")), syscall.ENOTEMPTY)
	w.read("other/theirs", []byte("z"))

	// A directory whose entries do not fit into one answer, and which changes while it is read.
	const many = 300
	for i := range many {
		w.Put("many/"+string(rune('a'+i%26))+time.Duration(i).String(), nil)
	}
	d, err := os.Open(w.path("many"))
	must(t, err)
	seen := map[string]bool{}
	for {
		names, err := d.Readdirnames(50)
		for _, name := range names {
			if seen[name] {
				t.Errorf("%q is listed twice", name)
			}
			seen[name] = true
			must(t, os.Remove(w.path("many/"+name)))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
	}
	must(t, d.Close())
	if len(seen) != many {
		t.Errorf("%d names were listed, want %d", len(seen), many)
	}
	must(t, unix.Rmdir(w.path("many")))
	if got, want := w.Blobs(), []string{"file", "other/theirs"}; !slices.Equal(got[:1], want[:1]) || !slices.Contains(got, want[1]) {
		t.Errorf("the service has %q, want %q", got, want)
	}
}

func testSpecial(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	long := string(bytes.Repeat([]byte("t/"), 2000))
	for name, target := range map[string]string{"link": "a b%?#/ü", "long": long, "loop": "loop"} {
		must(t, os.Symlink(target, w.path(name)))
		w.holds(name, []byte(target))
	}
	wantErrno(t, "symlink over a name that is there", os.Symlink("x", w.path("link")), syscall.EEXIST)
	_, err := os.Open(w.path("loop"))
	wantErrno(t, "open of a loop", err, syscall.ELOOP)
	must(t, unix.Mkfifo(w.path("fifo"), 0o640))
	must(t, unix.Mknod(w.path("socket"), unix.S_IFSOCK|0o600, 0))
	wantErrno(t, "device", unix.Mknod(w.path("device"), unix.S_IFCHR|0o600, 0x103), syscall.EPERM)
	check := func() {
		t.Helper()
		if target, err := os.Readlink(w.path("link")); err != nil || target != "a b%?#/ü" {
			t.Errorf("link: %q, %v", target, err)
		}
		if target, err := os.Readlink(w.path("long")); err != nil || target != long {
			t.Errorf("long link: %d bytes, %v", len(target), err)
		}
		for name, mode := range map[string]fs.FileMode{"fifo": fs.ModeNamedPipe | 0o640, "socket": fs.ModeSocket | 0o600, "link": fs.ModeSymlink | 0o777} {
			if info, err := os.Lstat(w.path(name)); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, mode)
			}
		}
	}
	check()
	// Two programs talk through the FIFO.
	go func() {
		if err := os.WriteFile(w.path("fifo"), []byte("through"), 0); err != nil {
			t.Error(err)
		}
	}()
	w.read("fifo", []byte("through"))
	w.Remount()
	check()
	for _, name := range []string{"link", "long", "loop", "fifo", "socket"} {
		must(t, os.Remove(w.path(name)))
	}
	if got := w.Blobs(); len(got) != 0 {
		t.Errorf("the service has %q", got)
	}
}

// "mode, uid, gid, mtime that differ from the mount's defaults are kept in blob metadata."
func testAttributes(t *testing.T, s *mounttest.Service) {
	flags := []string{"--uid=7", "--gid=8", "--file-mode=0640", "--dir-mode=0750"}
	w := newWorld(t, s, flags...)
	w.Put("theirs", []byte("content"))
	w.Put("implied/file", nil)
	w.write("ours", noise(20<<20))
	must(t, os.Mkdir(w.path("dir"), 0o755))
	type attributes struct {
		mode     uint32
		uid, gid uint32
		mtime    time.Time
	}
	get := func(name string) attributes {
		t.Helper()
		var st syscall.Stat_t
		must(t, syscall.Lstat(w.path(name), &st))
		return attributes{st.Mode, st.Uid, st.Gid, time.Unix(st.Mtim.Unix())}
	}
	compare := func(name string, want attributes) {
		t.Helper()
		got := get(name)
		if want.mtime.IsZero() {
			got.mtime = want.mtime
		}
		if got.mode != want.mode || got.uid != want.uid || got.gid != want.gid || !got.mtime.Equal(want.mtime) {
			t.Errorf("%s: %o %d:%d %v, want %o %d:%d %v", name, got.mode, got.uid, got.gid, got.mtime, want.mode, want.uid, want.gid, want.mtime)
		}
	}
	compare("theirs", attributes{syscall.S_IFREG | 0o640, 7, 8, time.Time{}})
	compare("implied", attributes{syscall.S_IFDIR | 0o750, 7, 8, time.Time{}})
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	compare("ours", attributes{syscall.S_IFREG | 0o644, uid, gid, time.Time{}})
	compare("dir", attributes{syscall.S_IFDIR | 0o755, uid, gid, time.Time{}})

	old := time.Date(1999, 12, 31, 23, 59, 59, 123456789, time.UTC)
	for i, name := range []string{"theirs", "ours", "dir", "implied"} {
		must(t, unix.Chmod(w.path(name), uint32(0o700|i|syscall.S_ISVTX)))
		must(t, os.Chown(w.path(name), 100+i, 200+i))
		must(t, os.Chtimes(w.path(name), time.Time{}, old.Add(time.Duration(i)*time.Hour)))
	}
	check := func() {
		t.Helper()
		for i, name := range []string{"theirs", "ours", "dir", "implied"} {
			typ := uint32(syscall.S_IFREG)
			if i >= 2 {
				typ = syscall.S_IFDIR
			}
			compare(name, attributes{typ | 0o700 | uint32(i) | syscall.S_ISVTX, uint32(100 + i), uint32(200 + i), old.Add(time.Duration(i) * time.Hour)})
		}
	}
	check()
	w.Remount(flags...)
	check()
	w.holds("theirs", []byte("content"))

	// With a commit: what is set on an open file goes along, and is what stat shows before and after.
	f := w.open("dirty", os.O_CREATE|os.O_WRONLY)
	_, err := f.Write([]byte("x"))
	must(t, err)
	must(t, f.Chmod(0o751))
	must(t, f.Chown(11, 12))
	must(t, os.Chtimes(w.path("dirty"), time.Time{}, old))
	want := attributes{syscall.S_IFREG | 0o751, 11, 12, old}
	compare("dirty", want)
	must(t, f.Close())
	compare("dirty", want)
	w.Remount(flags...)
	compare("dirty", want)
	// A write is a change, and the time it shows does not move when the file is closed or read anew.
	w.write("dirty", []byte("y"))
	changed := get("dirty")
	if !changed.mtime.After(old) || changed.mode != want.mode || changed.uid != 11 {
		t.Errorf("after a write: %+v", changed)
	}
	w.Remount(flags...)
	compare("dirty", changed)
	if p, err := w.Client.NewBlobClient("dirty").GetProperties(t.Context(), nil); err != nil || p.Metadata["Mtime"] == nil {
		t.Errorf("metadata: %v, %v", p.Metadata, err)
	} else if mtime, err := time.Parse(time.RFC3339Nano, *p.Metadata["Mtime"]); err != nil || !mtime.Equal(changed.mtime) {
		t.Errorf("metadata mtime: %v, %v, want %v", mtime, err, changed.mtime)
	}
	wantErrno(t, "chmod of the container", os.Chmod(w.Dir, 0o700), syscall.EPERM)
}

// mmap(MAP_SHARED) writes reach the service with the close of the file, and with msync.
func testMapping(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	content := noise(9<<20 + 123)
	w.write("file", content)
	w.Remount()
	f := w.open("file", os.O_RDWR)
	mapping, err := mounttest.Map(f, 0, len(content), true)
	must(t, err)
	mapped := make([]byte, len(content))
	must(t, mapping.Read(mapped, 0))
	equal(t, "mapping", mapped, content)
	change := func(off int, what string) {
		t.Helper()
		copy(content[off:], what)
		must(t, mapping.Write([]byte(what), off))
	}
	for off := 0; off < len(content)-100; off += 1 << 20 {
		change(off, "changed")
	}
	must(t, mapping.Sync())
	must(t, f.Sync())
	w.holds("file", content)
	change(100, "after fsync")
	w.read("file", content)
	must(t, mapping.Close())
	must(t, f.Close())
	w.holds("file", content)

	// Written after the close of the descriptor: committed when the mapping ends.
	f = w.open("file", os.O_RDWR)
	mapping, err = mounttest.Map(f, 0, 4096, true)
	must(t, err)
	must(t, f.Close())
	change(200, "after close")
	must(t, mapping.Close())
	w.read("file", content)
	w.Unmount()
	w.holds("file", content)
	w.Mount()
	w.read("file", content)
}

func testHoles(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	f := w.open("sparse", os.O_CREATE|os.O_RDWR)
	want := make([]byte, 40<<20)
	for _, off := range []int{5, 9 << 20, 25<<20 + 17, len(want) - 4} {
		copy(want[off:], "data")
		_, err := f.WriteAt([]byte("data"), int64(off))
		must(t, err)
	}
	w.read("sparse", want)
	must(t, f.Close())
	w.holds("sparse", want)

	must(t, os.Truncate(w.path("sparse"), 10))
	must(t, os.Truncate(w.path("sparse"), 30<<20)) // what was cut off does not come back
	want = append(want[:10:10], make([]byte, 30<<20-10)...)
	w.holds("sparse", want)
	w.Remount()
	w.read("sparse", want)

	f = w.open("sparse", os.O_RDWR)
	must(t, unix.Fallocate(int(f.Fd()), 0, 30<<20, 100))
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, 0, 7))
	wantErrno(t, "collapse", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), syscall.EOPNOTSUPP)
	must(t, f.Close())
	want = append(want, make([]byte, 100)...)
	clear(want[:7])
	w.holds("sparse", want)
}

// "fsync means it: afterwards the bytes are readable from another machine", again and again while a file grows.
func testFsync(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--block-size=1MiB")
	f := w.open("log", os.O_CREATE|os.O_WRONLY)
	var want []byte
	for i := range 12 {
		part := noise(300<<10 + i)
		_, err := f.Write(part)
		must(t, err)
		want = append(want, part...)
		if i%2 == 0 {
			must(t, f.Sync())
		} else {
			must(t, unix.Fdatasync(int(f.Fd())))
		}
		w.holds("log", want)
	}
	must(t, f.Close())
	before := w.ETag("log")
	f = w.open("log", os.O_RDWR) // a close without a write writes nothing
	must(t, f.Sync())
	must(t, f.Close())
	if after := w.ETag("log"); after != before {
		t.Errorf("a close without a write made version %v of %v", after, before)
	}
}
