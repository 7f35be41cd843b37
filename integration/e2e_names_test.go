package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// oddNames are names that some layer between a program and the service could get wrong.
var oddNames = []string{
	"a space", " leading space", "trailing space ", "100%", "%41", "%2F", "%zz", "what?", "a?b=c", "a#b", "a+b", "a&b", "a=b",
	`it's "quoted"`, "<tag>", "&amp;", "semi;colon", "a:b", "*", "[x]", "{y}", "~", "$HOME", "a,b", "@", "!", "`", "^", "|",
	"...a", ".hidden", "-flag", "ünïcödé", "日本語", "😀", "e\u0301", "\u00e9", "A", "a", "con", "\u200b", "\u00a0",
	strings.Repeat("n", 255), strings.Repeat("é", 127) + "n", strings.Repeat("%", 255),
	"dir with space/100% sure?/#1", strings.Repeat("x", 255) + "/" + strings.Repeat("y", 255) + "/" + strings.Repeat("z", 255),
}

// A blob that the SDK writes is the file of the same name with the same bytes, and the other way round, whatever the
// name; and the names stay apart.
func testNames(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	content := func(prefix, name string) []byte { return []byte(prefix + name) }
	for _, name := range oddNames {
		w.Put("sdk/"+name, content("sdk/", name))
	}
	must(t, os.Mkdir(w.path("mount"), 0o755))
	for _, name := range oddNames {
		must(t, os.MkdirAll(filepath.Dir(w.path("mount/"+name)), 0o755))
		w.write("mount/"+name, content("mount/", name))
	}
	// Directories are blobs of their own under "mount", and implied under "sdk".
	var names []string
	for _, name := range w.Blobs() {
		if rest, ok := strings.CutPrefix(name, "mount/"); ok && slices.Contains(oddNames, rest) {
			names = append(names, rest)
		}
	}
	if want := slices.Sorted(slices.Values(oddNames)); !slices.Equal(names, want) {
		t.Errorf("the service has %q, want %q", names, want)
	}
	w.Remount()
	for _, name := range oddNames {
		w.read("sdk/"+name, content("sdk/", name))
		w.holds("mount/"+name, content("mount/", name))
		w.read("mount/"+name, content("mount/", name))
	}
	var top []string
	for _, name := range oddNames {
		first, _, _ := strings.Cut(name, "/")
		if !slices.Contains(top, first) {
			top = append(top, first)
		}
	}
	slices.Sort(top)
	for _, dir := range []string{"sdk", "mount"} {
		entries, err := os.ReadDir(w.path(dir))
		must(t, err)
		var listed []string
		for _, e := range entries {
			listed = append(listed, e.Name())
		}
		slices.Sort(listed)
		if !slices.Equal(listed, top) {
			t.Errorf("%s has %q, want %q", dir, listed, top)
		}
	}
	// Rename and delete take the same ways.
	for i, name := range oddNames {
		must(t, os.Rename(w.path("sdk/"+name), w.path(fmt.Sprint("moved", i))))
		w.holds(fmt.Sprint("moved", i), content("sdk/", name))
		must(t, os.Rename(w.path(fmt.Sprint("moved", i)), w.path("sdk/"+name)))
		w.holds("sdk/"+name, content("sdk/", name))
		must(t, os.Remove(w.path("sdk/"+name)))
		if w.Has("sdk/" + name) {
			t.Errorf("%q is still there", name)
		}
	}
}

// "A name the service would alter or refuse is refused with EINVAL, not stored under another name", at the call that
// makes the name; in a directory that was listed too, in which a lookup needs no request.
func testRefusedNames(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.write("file", []byte("content"))
	must(t, os.Mkdir(w.path("dir"), 0o755))
	refused := []string{"dot.", "dots...", `back\slash`, "tab\there", "line\nbreak", "\x01", "\x1f", "\x7f", "\u0081", "\ue000"}
	for _, listed := range []bool{false, true} {
		if listed {
			if _, err := os.ReadDir(w.Dir); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range refused {
			path := w.path(name)
			f, err := os.Create(path)
			if err == nil {
				err = f.Close()
				t.Errorf("create %q succeeds, close says %v", name, err)
			} else {
				wantErrno(t, fmt.Sprintf("create %q", name), err, syscall.EINVAL)
			}
			_, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			wantErrno(t, fmt.Sprintf("create %q exclusively", name), err, syscall.EINVAL)
			wantErrno(t, fmt.Sprintf("mkdir %q", name), os.Mkdir(path, 0o755), syscall.EINVAL)
			wantErrno(t, fmt.Sprintf("symlink %q", name), os.Symlink("x", path), syscall.EINVAL)
			wantErrno(t, fmt.Sprintf("rename to %q", name), os.Rename(w.path("file"), path), syscall.EINVAL)
			wantErrno(t, fmt.Sprintf("rename directory to %q", name), os.Rename(w.path("dir"), path), syscall.EINVAL)
		}
	}
	_, err := os.Create(w.path(strings.Repeat("n", 256)))
	wantErrno(t, "a name of 256 bytes", err, syscall.ENAMETOOLONG)
	long := w.Dir
	for range 4 {
		long = filepath.Join(long, strings.Repeat("d", 255))
		must(t, os.Mkdir(long, 0o755))
	}
	_, err = os.Create(filepath.Join(long, "x")) // the service takes 1,024 characters
	wantErrno(t, "a path of 1025 characters", err, syscall.ENAMETOOLONG)
	for range 4 {
		must(t, os.Remove(long))
		long = filepath.Dir(long)
	}
	w.Remount()
	if got, want := w.Blobs(), []string{"dir", "file"}; !slices.Equal(got, want) {
		t.Errorf("the service has %q, want %q", got, want)
	}
	w.read("file", []byte("content"))
}

// What other tools leave in a container is shown as far as a path can express it: implied directories, markers of both
// kinds, a blob beside a directory of its name.
func testForeignLayout(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.Put("implied/deep/file", []byte("1"))
	w.Put("slash/", nil)
	w.Put("both", []byte("hidden"))
	w.Put("both/file", []byte("2"))
	w.Put("with//empty", []byte("3"))
	w.Put("plain", nil)
	var seen []string
	err := filepath.WalkDir(w.Dir, func(path string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(w.Dir, path)
		seen = append(seen, fmt.Sprintf("%s %v", rel, e.IsDir()))
		return err
	})
	must(t, err)
	want := []string{". true", "both true", "both/file false", "implied true", "implied/deep true", "implied/deep/file false",
		"plain false", "slash true", "with true"}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
	// The hidden blob is where the attribute says, and the directory cannot have a marker.
	var hidden struct {
		URL  string
		Size int
		ETag string
	}
	text, err := w.xattr("both", "user.blobmount.shadowed")
	must(t, err)
	if err := json.Unmarshal([]byte(text), &hidden); err != nil || hidden.URL != w.Client.NewBlobClient("both").URL() ||
		hidden.Size != len("hidden") || hidden.ETag != string(w.ETag("both")) {
		t.Errorf("shadowed: %s, %v", text, err)
	}
	_, err = w.xattr("implied", "user.blobmount.shadowed")
	wantErrno(t, "shadowed of a directory that hides nothing", err, syscall.ENODATA)
	wantErrno(t, "chmod of a directory that hides a blob", os.Chmod(w.path("both"), 0o700), syscall.EPERM)
	must(t, os.Remove(w.path("slash")))
	wantErrno(t, "rmdir of a directory with a name that cannot be shown", os.Remove(w.path("with")), syscall.ENOTEMPTY)
	must(t, os.Remove(w.path("both/file"))) // with the last file the directory goes, and the blob is seen
	if w.Has("slash/") || !w.Has("with//empty") || string(w.Get("both")) != "hidden" {
		t.Errorf("the service has %q", w.Blobs())
	}
	w.Remount()
	w.read("both", []byte("hidden"))
}

// entries reads names from an open directory by calls of getdents(2) with a buffer that has room for few, until there are
// at least so many or no more.
func entries(t *testing.T, dir *os.File, atLeast int) (names []string) {
	t.Helper()
	buf := make([]byte, 1024)
	for len(names) < atLeast {
		n, err := unix.ReadDirent(int(dir.Fd()), buf)
		must(t, err)
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	return names
}

// The kernel keeps a directory's names, and has one place for them: while two programs read the directory, and another host
// changes it in between, that never has some of one listing and some of another, nor the older one for the newer.
func TestMountDirectoryCache(t *testing.T) {
	mounttest.NeedFUSE(t)
	s := mounttest.Embedded(t)
	c := s.NewContainer(t)
	w := &world{s.NewPoint(t, c), c, t}
	const files = 300
	var before []string
	for i := range files {
		before = append(before, fmt.Sprintf("f%03d", i))
		w.Put("dir/"+before[i], nil)
	}
	after := append([]string{"a"}, before[1:]...)
	w.Put("dir/a", nil)
	const timeout = 2 * time.Second
	w.Mount("--blob-cache-timeout=2")
	open := func() *os.File {
		f := w.open("dir", os.O_RDONLY)
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	check := func(what string, got, want []string) {
		t.Helper()
		slices.Sort(got)
		if !slices.Equal(got, want) {
			i := 0
			for i < min(len(got), len(want)) && got[i] == want[i] {
				i++
			}
			t.Errorf("%s: %d names, want %d; from the %d-th on %q, want %q",
				what, len(got), len(want), i, got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
		}
	}
	for what, secondReads := range map[string]int{"half-way": files / 2, "whole": 2 * files} {
		w.Put("dir/"+before[0], nil)
		w.Delete("dir/a")
		time.Sleep(timeout) // what is known of names is over
		first, second := open(), open()
		got := entries(t, first, 20)
		w.Delete("dir/" + before[0])
		w.Put("dir/a", nil)
		time.Sleep(timeout)
		other := entries(t, second, secondReads)
		check("the first, which began before the change, "+what, append(got, entries(t, first, 2*files)...), before)
		// Within the timeout, so that nobody has to ask.
		names, err := os.ReadDir(w.path("dir"))
		must(t, err)
		var third []string
		for _, e := range names {
			third = append(third, e.Name())
		}
		check("the second, "+what, append(other, entries(t, second, 2*files)...), after)
		check("a third, "+what, third, after)
		_, err = second.Seek(0, 0)
		must(t, err)
		check("the second once more, "+what, entries(t, second, 2*files), after)
		must(t, first.Close())
		must(t, second.Close())
	}
}
