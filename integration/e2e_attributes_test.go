package integration

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sys/unix"

	"blobmount/integration/blobserver"
	"blobmount/integration/mounttest"
)

// metadata returns what the service has for a blob, with lower-case names.
func (w *world) metadata(name string) map[string]string {
	w.t.Helper()
	p, err := w.Client.NewBlobClient(name).GetProperties(w.t.Context(), nil)
	must(w.t, err)
	m := map[string]string{}
	for k, v := range p.Metadata {
		m[strings.ToLower(k)] = *v
	}
	return m
}

// putWith writes a blob with what else a blob has.
func (w *world) putWith(name string, content []byte, o blockblob.UploadBufferOptions) {
	w.t.Helper()
	_, err := w.Client.NewBlockBlobClient(name).UploadBuffer(w.t.Context(), content, &o)
	must(w.t, err)
}

// xattr returns an extended attribute, and an error if there is none.
func (w *world) xattr(name, attr string) (string, error) {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(w.path(name), attr, buf)
	return string(buf[:max(n, 0)]), err
}

// xattrs returns the names of all extended attributes, sorted.
func (w *world) xattrs(name string) []string {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(w.path(name), buf)
	must(w.t, err)
	names := strings.Split(string(buf[:n]), "\x00")
	names = names[:len(names)-1]
	slices.Sort(names)
	return names
}

// "Extended attributes: user.* are kept in blob metadata within the service's limits."
func testXattrs(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.putWith("theirs", []byte("content"), blockblob.UploadBufferOptions{
		Metadata: map[string]*string{"Project": new("x1"), "mode": new("0640"), "plain": new("text")},
	})
	w.write("file", []byte("first"))
	must(t, os.Mkdir(w.path("dir"), 0o755))
	w.Put("implied/file", nil)
	set := map[string]string{
		"user.plain": "a value", "user.Upper": "B", "user.upper": "b", "user.xdg.origin.url": "https://example.org/?a=b",
		"user.binary": "\x00\xff\n", "user.empty": "", "user.mode": "not the mode", "user.ünï": "ü", "user.spaces": " a  b ",
		"user.base64": "base64:AA==", "user.xattr_a": "x",
	}
	names := slices.Sorted(maps.Keys(set))
	check := func(name string, want map[string]string) {
		t.Helper()
		if got := w.xattrs(name); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Errorf("%s has %q, want %q", name, got, slices.Sorted(maps.Keys(want)))
		}
		for attr, value := range want {
			if got, err := w.xattr(name, attr); err != nil || got != value {
				t.Errorf("%s of %s: %q, %v, want %q", attr, name, got, err, value)
			}
		}
	}
	check("theirs", map[string]string{"user.project": "x1", "user.plain": "text"})
	before := map[string]time.Time{}
	for _, name := range []string{"file", "dir", "implied", "theirs"} {
		info, err := os.Stat(w.path(name))
		must(t, err)
		before[name] = info.ModTime()
		for _, attr := range names {
			must(t, unix.Setxattr(w.path(name), attr, []byte(set[attr]), 0))
		}
	}
	theirs := maps.Clone(set)
	theirs["user.project"] = "x1"
	all := func() {
		t.Helper()
		for name := range before {
			want := set
			if name == "theirs" {
				want = theirs
			}
			check(name, want)
			if info, err := os.Stat(w.path(name)); err != nil || !info.ModTime().Equal(before[name]) {
				t.Errorf("%s was changed at %v, %v, want %v", name, info.ModTime(), err, before[name])
			}
		}
	}
	all()
	w.Remount()
	all()
	if m := w.metadata("theirs"); m["plain"] != "a value" || m["project"] != "x1" || m["xattr_xdg_2eorigin_2eurl"] != "https://example.org/?a=b" || m["mode"] != "0640" {
		t.Errorf("metadata: %v", m)
	}

	// They survive a rewrite, a rename, and a replacement of the content by truncation.
	w.write("theirs", noise(9<<20))
	must(t, os.Rename(w.path("theirs"), w.path("moved")))
	must(t, os.Rename(w.path("moved"), w.path("dir/theirs")))
	check("dir/theirs", theirs)
	w.Remount()
	check("dir/theirs", theirs)

	// With the commit of a file that is dirty, and not before.
	f := w.open("dirty", os.O_CREATE|os.O_RDWR)
	_, err := f.Write([]byte("x"))
	must(t, err)
	must(t, unix.Fsetxattr(int(f.Fd()), "user.a", []byte("1"), 0))
	must(t, unix.Setxattr(w.path("dirty"), "user.b", []byte("2"), 0))
	check("dirty", map[string]string{"user.a": "1", "user.b": "2"})
	if w.Has("dirty") {
		t.Error("setxattr of a dirty file asked the service")
	}
	must(t, f.Close())
	if m := w.metadata("dirty"); m["a"] != "1" || m["b"] != "2" {
		t.Errorf("metadata: %v", m)
	}

	// What setxattr(2) says.
	path := w.path("file")
	wantErrno(t, "XATTR_CREATE", unix.Setxattr(path, "user.plain", nil, unix.XATTR_CREATE), syscall.EEXIST)
	wantErrno(t, "XATTR_REPLACE", unix.Setxattr(path, "user.new", nil, unix.XATTR_REPLACE), syscall.ENODATA)
	must(t, unix.Setxattr(path, "user.new", []byte("1"), unix.XATTR_CREATE))
	must(t, unix.Setxattr(path, "user.new", []byte("2"), unix.XATTR_REPLACE))
	must(t, unix.Removexattr(path, "user.new"))
	wantErrno(t, "removal of nothing", unix.Removexattr(path, "user.new"), syscall.ENODATA)
	_, err = w.xattr("file", "user.new")
	wantErrno(t, "nothing", err, syscall.ENODATA)
	_, err = unix.Getxattr(path, "user.plain", make([]byte, 2))
	wantErrno(t, "a buffer that is too small", err, syscall.ERANGE)
	if n, err := unix.Getxattr(path, "user.plain", nil); err != nil || n != len(set["user.plain"]) {
		t.Errorf("length: %d, %v", n, err)
	}
	check("file", set)
	wantErrno(t, "more than 8 KiB", unix.Setxattr(path, "user.large", noise(8<<10), 0), syscall.ENOSPC)
	must(t, unix.Setxattr(path, "user.large", noise(5<<10), 0))
	wantErrno(t, "more than 8 KiB together", unix.Setxattr(path, "user.large2", noise(2<<10), 0), syscall.ENOSPC)
	must(t, os.Chmod(path, 0o601)) // there is room for what a file system needs
	w.write("file", []byte("and it can be written"))

	for _, name := range []string{"security.capability", "security.selinux", "system.posix_acl_access", "trusted.x", "other.x"} {
		_, err := w.xattr("file", name)
		wantErrno(t, "get "+name, err, syscall.EOPNOTSUPP)
		if name != "security.capability" && name != "system.posix_acl_access" { // the kernel refuses "x" by itself
			wantErrno(t, "set "+name, unix.Setxattr(path, name, []byte("x"), 0), syscall.EOPNOTSUPP)
		}
	}
	for _, attr := range []string{"etag", "url", "tier", "type", "content_md5", "cached", "version_id", "shadowed", "status", "new"} {
		wantErrno(t, "set "+attr, unix.Setxattr(path, "user.blobmount."+attr, []byte("x"), 0), syscall.EPERM)
		wantErrno(t, "remove "+attr, unix.Removexattr(path, "user.blobmount."+attr), syscall.EPERM)
	}
	if tag, err := w.xattr("file", "user.blobmount.etag"); err != nil || tag != string(w.ETag("file")) {
		t.Errorf("etag: %q, %v", tag, err)
	}
	for attr, want := range map[string]string{"type": "block", "url": w.Client.NewBlobClient("file").URL()} {
		if got, err := w.xattr("file", "user.blobmount."+attr); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", attr, got, err, want)
		}
	}
	wantErrno(t, "on the container", unix.Setxattr(w.Dir, "user.x", []byte("x"), 0), syscall.EPERM)
	must(t, os.Symlink("file", w.path("link")))
	wantErrno(t, "on a link", unix.Lsetxattr(w.path("link"), "user.x", []byte("x"), 0), syscall.EPERM)
	if got := w.xattrs("link"); len(got) != 0 {
		t.Errorf("the link has %q", got)
	}

	w.Unmount()
	w.Mount("--read-only")
	check("dir/theirs", theirs)
	wantErrno(t, "on a read-only mount", unix.Setxattr(path, "user.x", []byte("x"), 0), syscall.EROFS)
	wantErrno(t, "removal on a read-only mount", unix.Removexattr(path, "user.plain"), syscall.EROFS)
}

// The tools that copy extended attributes do.
func testXattrTools(t *testing.T, s *mounttest.Service) {
	for _, tool := range []string{"setfattr", "getfattr", "rsync"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed; the scenario Xattrs makes the same calls", tool)
		}
	}
	w := newWorld(t, s)
	local, archive := t.TempDir(), filepath.Join(t.TempDir(), "archive.tar")
	must(t, os.MkdirAll(filepath.Join(local, "tree/dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(local, "tree/dir/file"), noise(100<<10), 0o640))
	must(t, os.WriteFile(filepath.Join(local, "tree/empty"), nil, 0o600))
	must(t, os.Symlink("dir/file", filepath.Join(local, "tree/link")))
	for name, value := range map[string]string{"user.Text": "value", "user.binary": "0sAP8K", "user.a.b": "0x00"} {
		command(t, local, nil, "setfattr", "-n", name, "-v", value, "tree/dir/file", "tree/dir", "tree/empty")
	}
	dump := func(dir, tree string) string {
		return command(t, dir, nil, "sh", "-c", "cd "+tree+" && find . | sort | xargs getfattr -h -d -m - --absolute-names")
	}
	want := dump(local, "tree")
	copies := []string{"rsync", "cp", "tar", "again"}
	command(t, local, nil, "rsync", "-aX", "tree/", w.path("rsync"))
	command(t, local, nil, "cp", "-a", "tree", w.path("cp"))
	must(t, os.Mkdir(w.path("tar"), 0o755))
	command(t, local, nil, "tar", "--xattrs", "--xattrs-include=*", "-C", "tree", "-cf", archive, ".")
	command(t, local, nil, "tar", "--xattrs", "--xattrs-include=*", "-C", w.path("tar"), "-xf", archive)
	command(t, w.Dir, nil, "cp", "-a", "cp", "again") // within the mount
	w.Remount()
	for _, c := range copies {
		if got := dump(w.Dir, c); got != want {
			t.Errorf("%s: %s\nwant %s", c, got, want)
		}
		if out := command(t, local, nil, "rsync", "-aX", "--itemize-changes", "--dry-run", "--checksum", "tree/", w.path(c)); out != "" {
			t.Errorf("%s: rsync would change %s", c, out)
		}
	}
	// And back.
	command(t, w.Dir, nil, "rsync", "-aX", "rsync/", filepath.Join(local, "back"))
	if got := dump(local, "back"); got != want {
		t.Errorf("back: %s\nwant %s", got, want)
	}
}

// Times before 1970 and after 2038, below a second, of files, directories, links; what is not kept.
func testTimes(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.write("file", []byte("content"))
	w.Put("theirs", []byte("content"))
	w.Put("implied/file", nil)
	must(t, os.Mkdir(w.path("dir"), 0o755))
	must(t, os.Symlink("file", w.path("link")))
	times := []time.Time{
		time.Date(1969, 12, 31, 23, 59, 59, 999999999, time.UTC), time.Date(1901, 1, 1, 0, 0, 0, 1, time.UTC),
		time.Date(2038, 1, 19, 3, 14, 8, 123456789, time.UTC), time.Date(2106, 2, 7, 6, 28, 16, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Unix(0, 0),
	}
	names := []string{"file", "theirs", "implied", "dir", "link"}
	get := func(name string) unix.Stat_t {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Lstat(w.path(name), &st))
		return st
	}
	set := func(name string, access, mtime unix.Timespec) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, w.path(name), []unix.Timespec{access, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}
	check := func(what, name string, want time.Time) {
		t.Helper()
		st := get(name)
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(want) {
			t.Errorf("%s: %s was changed at %v, want %v", what, name, got, want)
		}
		if st.Atim != st.Mtim {
			t.Errorf("%s: %s was read at %v, which is not kept: want the time of the change, %v", what, name, st.Atim, st.Mtim)
		}
	}
	accessed := func(what, name string, want unix.Timespec) {
		t.Helper()
		if st := get(name); st.Atim != want {
			t.Errorf("%s: %s was read at %v, want %v", what, name, st.Atim, want)
		}
	}
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	for i, at := range times {
		ts, err := unix.TimeToTimespec(at)
		must(t, err)
		for _, name := range names {
			must(t, set(name, omit, ts))
			check("set", name, at)
		}
		if i < 3 || mounttest.Long() {
			w.Remount()
			for _, name := range names {
				check("after a remount", name, at)
			}
		}
	}
	w.Remount()
	for _, name := range names {
		check("after a remount", name, times[len(times)-1])
		now := unix.Timespec{Nsec: unix.UTIME_NOW}
		must(t, set(name, now, now))
		accessed("touch", name, get(name).Mtim)
		at, mt := unix.Timespec{Sec: 12345, Nsec: 678}, unix.Timespec{Sec: 1 << 33, Nsec: 9}
		must(t, set(name, at, mt))
		must(t, set(name, omit, omit))
		accessed("what a program has set", name, at)
		must(t, set(name, omit, unix.Timespec{Sec: 1}))
		accessed("after a change of the other time", name, at)
		must(t, set(name, unix.Timespec{Sec: 54321}, omit)) // touch -a
		accessed("touch -a", name, unix.Timespec{Sec: 54321})
	}
	w.Remount()
	for _, name := range names {
		check("after a remount", name, time.Unix(1, 0))
	}
	etag := w.ETag("file")
	must(t, set("file", unix.Timespec{Sec: 12345}, omit))
	if w.ETag("file") != etag {
		t.Error("a change of the access time made a new version")
	}
	wantErrno(t, "a year that RFC 3339 does not have", set("file", omit, unix.Timespec{Sec: 1 << 40}), syscall.EINVAL)

	// A change of other attributes leaves the time of the content alone, of what has none of its own too.
	w.Put("foreign", []byte("x"))
	must(t, os.Mkdir(w.path("marked"), 0o755))
	w.Remount()
	for _, name := range []string{"foreign", "marked", "file"} {
		was := get(name)
		must(t, os.Chmod(w.path(name), 0o711))
		must(t, os.Lchown(w.path(name), 3, 4))
		if st := get(name); st.Mtim != was.Mtim || st.Mode&0o777 != 0o711 || st.Uid != 3 || st.Gid != 4 {
			t.Errorf("%s: %o %d:%d %v, was %v", name, st.Mode, st.Uid, st.Gid, st.Mtim, was.Mtim)
		}
	}
	must(t, os.Lchown(w.path("link"), 5, 6))
	w.Remount()
	if st := get("link"); st.Uid != 5 || st.Gid != 6 || st.Mode != unix.S_IFLNK|0o777 {
		t.Errorf("link: %o %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if st := get("file"); st.Uid != 3 {
		t.Errorf("the link's target belongs to %d", st.Uid)
	}
	if target, err := os.Readlink(w.path("link")); err != nil || target != "file" {
		t.Errorf("%q, %v", target, err)
	}
}

// "--no-posix-metadata: chmod, chown and utimens succeed for values equal to what is shown and fail with EPERM otherwise."
func testNoPosixMetadata(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	p := s.NewPoint(t, c)
	w := &world{p, c, t}
	m := map[string]*string{"mode": new("04711"), "uid": new("12"), "gid": new("13"), "mtime": new("2001-02-03T04:05:06Z"), "project": new("x")}
	w.putWith("theirs", []byte("content"), blockblob.UploadBufferOptions{Metadata: m})
	w.putWith("theirs dir", nil, blockblob.UploadBufferOptions{Metadata: map[string]*string{"hdi_isfolder": new("true"), "mode": new("0700")}})
	flags := []string{"--no-posix-metadata", "--uid=7", "--gid=8", "--file-mode=0640", "--dir-mode=0750"}
	w.Mount(flags...)
	must(t, os.WriteFile(w.path("file"), []byte("x"), 0o600))
	must(t, os.Mkdir(w.path("dir"), 0o700))
	must(t, os.Symlink("file", w.path("link")))
	must(t, unix.Mkfifo(w.path("fifo"), 0o600))
	shown := map[string]uint32{"theirs": unix.S_IFREG | 0o640, "theirs dir": unix.S_IFDIR | 0o750, "file": unix.S_IFREG | 0o640,
		"dir": unix.S_IFDIR | 0o750, "link": unix.S_IFLNK | 0o777, "fifo": unix.S_IFIFO | 0o640}
	check := func() {
		t.Helper()
		for name, mode := range shown {
			var st unix.Stat_t
			must(t, unix.Lstat(w.path(name), &st))
			if st.Mode != mode || st.Uid != 7 || st.Gid != 8 {
				t.Errorf("%s: %o %d:%d, want %o 7:8", name, st.Mode, st.Uid, st.Gid, mode)
			}
			if p, err := w.Client.NewBlobClient(name).GetProperties(t.Context(), nil); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR && p.LastModified.Unix() != st.Mtim.Sec {
				t.Errorf("%s was changed at %d, the service says %v, %v", name, st.Mtim.Sec, p.LastModified, err)
			}
		}
	}
	check()
	w.Remount(flags...)
	check()
	for name, mode := range shown {
		var st unix.Stat_t
		must(t, unix.Lstat(w.path(name), &st))
		times := func(mtime unix.Timespec) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, w.path(name), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}, unix.AT_SYMLINK_NOFOLLOW)
		}
		if name != "link" { // the mode of a link cannot be changed
			must(t, os.Chmod(w.path(name), os.FileMode(mode&0o777)))
			wantErrno(t, "chmod of "+name, os.Chmod(w.path(name), 0o755), syscall.EPERM)
		}
		must(t, os.Lchown(w.path(name), 7, 8))
		wantErrno(t, "chown of "+name, os.Lchown(w.path(name), 9, 8), syscall.EPERM)
		wantErrno(t, "chgrp of "+name, os.Lchown(w.path(name), 7, 9), syscall.EPERM)
		must(t, times(st.Mtim))
		wantErrno(t, "utimens of "+name, times(unix.Timespec{Sec: 1}), syscall.EPERM)
	}
	check()
	before := time.Now().Add(-time.Second)
	command(t, w.Dir, nil, "touch", "touched", "theirs", "dir", "fifo") // now is what the service makes of any change
	for _, name := range []string{"touched", "theirs", "fifo"} {
		if info, err := os.Stat(w.path(name)); err != nil || info.ModTime().Before(before.Truncate(time.Second)) {
			t.Errorf("%s was touched at %v, %v", name, info.ModTime(), err)
		}
	}
	if m := w.metadata("touched"); len(m) != 0 {
		t.Errorf("a new file has the metadata %v", m)
	}
	must(t, unix.Setxattr(w.path("file"), "user.x", []byte("1"), 0))
	if m := w.metadata("file"); !maps.Equal(m, map[string]string{"x": "1"}) {
		t.Errorf("a file has the metadata %v", m)
	}
	// A rewrite keeps what is not ours to say, but not the time of other content.
	w.write("theirs", []byte("new"))
	if got, want := w.metadata("theirs"), map[string]string{"mode": "04711", "uid": "12", "gid": "13", "project": "x"}; !maps.Equal(got, want) {
		t.Errorf("metadata after a rewrite: %v, want %v", got, want)
	}
	check()
	w.Unmount()
	w.Mount()
	if info, err := os.Stat(w.path("theirs")); err != nil || info.Mode() != os.ModeSetuid|0o711 {
		t.Errorf("with metadata: %v, %v", info.Mode(), err)
	}
}

// "kept through content rewrites, together with all foreign metadata, content type, content encoding, cache control, tags
// and access tier of the blob"
func testKeptProperties(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	headers := sdkblob.HTTPHeaders{
		BlobContentType: new("text/csv"), BlobContentEncoding: new("x-test"), BlobContentLanguage: new("de"),
		BlobContentDisposition: new("inline"), BlobCacheControl: new("max-age=5"),
	}
	tags := map[string]string{"team": "a b", "stage": "raw"}
	tier := sdkblob.AccessTierCool
	for i, size := range []int{100, 9 << 20} {
		name := fmt.Sprint("blob", i)
		w.putWith(name, noise(size), blockblob.UploadBufferOptions{
			HTTPHeaders: &headers, Tags: tags, AccessTier: &tier, Metadata: map[string]*string{"project": new("x"), "other": new("y")},
		})
		check := func(what, name string) {
			t.Helper()
			p, err := w.Client.NewBlobClient(name).GetProperties(t.Context(), nil)
			must(t, err)
			got := sdkblob.HTTPHeaders{
				BlobContentType: p.ContentType, BlobContentEncoding: p.ContentEncoding, BlobContentLanguage: p.ContentLanguage,
				BlobContentDisposition: p.ContentDisposition, BlobCacheControl: p.CacheControl,
			}
			if !reflect.DeepEqual(got, headers) {
				t.Errorf("%s: %s has other headers: %q %q %q %q %q", what, name, deref(p.ContentType), deref(p.ContentEncoding), deref(p.ContentLanguage),
					deref(p.ContentDisposition), deref(p.CacheControl))
			}
			if deref(p.AccessTier) != string(tier) {
				t.Errorf("%s: %s has the tier %q", what, name, deref(p.AccessTier))
			}
			m := w.metadata(name)
			if m["project"] != "x" || m["other"] != "y" {
				t.Errorf("%s: %s has the metadata %v", what, name, m)
			}
			answer, err := w.Client.NewBlobClient(name).GetTags(t.Context(), nil)
			must(t, err)
			gotTags := map[string]string{}
			for _, tag := range answer.BlobTagSet {
				gotTags[*tag.Key] = *tag.Value
			}
			if !maps.Equal(gotTags, tags) {
				t.Errorf("%s: %s has the tags %v", what, name, gotTags)
			}
		}
		check("at first", name)
		must(t, os.Chmod(w.path(name), 0o600))
		must(t, unix.Setxattr(w.path(name), "user.a", []byte("b"), 0))
		check("after chmod and setxattr", name)
		f := w.open(name, os.O_RDWR)
		_, err := f.WriteAt([]byte("changed"), 50)
		must(t, err)
		must(t, f.Close())
		check("after a change", name)
		must(t, os.WriteFile(w.path(name), noise(200), 0))
		check("after a rewrite", name)
		must(t, os.Rename(w.path(name), w.path(name+".moved")))
		check("after a rename", name+".moved")
		if info, err := os.Stat(w.path(name + ".moved")); err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}

// A new blob has the content type that its name says; one that is there keeps its own, also under another name.
func testContentTypes(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--content-type=.Mine=application/x-mine", "-o", "content_type=.txt=")
	w.Put("theirs.json", []byte("{}")) // as the SDK does without a type
	kind := func(name string) string {
		t.Helper()
		p, err := w.Client.NewBlobClient(name).GetProperties(t.Context(), nil)
		must(t, err)
		return deref(p.ContentType)
	}
	want := map[string]string{
		"a.json": "application/json", "large.PNG": "image/png", "a.mine": "application/x-mine", "a.txt": "application/octet-stream",
		"unknown": "application/octet-stream", "exclusive.csv": "text/csv",
	}
	for name := range want {
		if name == "exclusive.csv" {
			f := w.open(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY)
			if got := kind(name); got != want[name] {
				t.Errorf("%s, empty: %q", name, got)
			}
			must(t, f.Close())
		}
		size := 10
		if name == "large.PNG" {
			size = 9 << 20
		}
		w.write(name, noise(size))
		if got := kind(name); got != want[name] {
			t.Errorf("%s: %q, want %q", name, got, want[name])
		}
	}
	must(t, os.Rename(w.path("a.json"), w.path("b.csv")))
	w.write("b.csv", noise(20))
	if got := kind("b.csv"); got != "application/json" {
		t.Errorf("after a rename and a rewrite: %q", got)
	}
	w.write("theirs.json", []byte("{}\n"))
	if got := kind("theirs.json"); got != "application/octet-stream" {
		t.Errorf("a blob of another tool has %q after a rewrite", got)
	}
	must(t, os.Mkdir(w.path("dir.json"), 0o755))
	must(t, os.Symlink("a", w.path("link.json")))
	for _, name := range []string{"dir.json", "link.json"} {
		if got := kind(name); got != "application/octet-stream" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Locks hold between the open files and the processes of a mount; that of a closed file is gone.
func testLocks(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.write("lock", []byte("0123456789"))
	a, b := w.open("lock", os.O_RDWR), w.open("lock", os.O_RDWR)
	flock := func(f *os.File, how int) error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) }
	must(t, flock(a, unix.LOCK_EX))
	wantErrno(t, "flock by another open file", flock(b, unix.LOCK_SH), syscall.EWOULDBLOCK)
	if out := command(t, w.Dir, nil, "sh", "-c", "flock -n lock true; echo $?"); out != "1\n" {
		t.Errorf("flock by another process: %q", out)
	}
	must(t, flock(a, unix.LOCK_UN))
	must(t, flock(b, unix.LOCK_SH))
	must(t, flock(a, unix.LOCK_SH))
	wantErrno(t, "exclusive beside shared", flock(a, unix.LOCK_EX), syscall.EWOULDBLOCK)

	// fcntl(2), of byte ranges and of the open file, so that one process can hold both ends.
	lock := func(f *os.File, kind int16, start, n int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: n})
	}
	must(t, lock(a, unix.F_WRLCK, 0, 5))
	must(t, lock(b, unix.F_WRLCK, 5, 5))
	wantErrno(t, "fcntl of a locked range", lock(b, unix.F_RDLCK, 4, 1), syscall.EAGAIN)
	probe := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 1} // of the process: an open file's counts for it too
	must(t, unix.FcntlFlock(b.Fd(), unix.F_GETLK, &probe))
	if probe.Type != unix.F_WRLCK || probe.Start != 0 || probe.Len != 5 {
		t.Errorf("F_GETLK: %+v", probe)
	}
	must(t, a.Close())
	must(t, lock(b, unix.F_WRLCK, 0, 5))
	must(t, flock(b, unix.LOCK_EX))
	must(t, b.Close())
	if out := command(t, w.Dir, nil, "sh", "-c", "flock -n lock true; echo $?"); out != "0\n" {
		t.Errorf("flock after all are closed: %q", out)
	}
}

// exclusiveMakers make a name that must not be there yet.
var exclusiveMakers = map[string]func(path string) error{
	"open": func(path string) error {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			err = f.Close()
		}
		return err
	},
	"mkdir":   func(path string) error { return unix.Mkdir(path, 0o755) },
	"symlink": func(path string) error { return unix.Symlink("owner", path) },
	"mkfifo":  func(path string) error { return unix.Mkfifo(path, 0o600) },
}

// "O_EXCL asks the service at once, so lock files work between hosts": of two mounts that race for a name exactly one
// makes it, whatever makes it.
func testExclusive(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	other := s.NewPoint(t, w.Container)
	other.Mount()
	rounds := 5
	if mounttest.Long() {
		rounds = 200
	}
	for what, act := range exclusiveMakers {
		for i := range rounds {
			name := fmt.Sprint(what, i)
			results := make(chan error, 4)
			for j := range cap(results) {
				dir := []string{w.Dir, other.Dir}[j%2]
				go func() { results <- act(filepath.Join(dir, name)) }()
			}
			won := 0
			for range cap(results) {
				switch err := <-results; {
				case err == nil:
					won++
				case !errors.Is(err, syscall.EEXIST):
					t.Errorf("%s: %v", name, err)
				}
			}
			if won != 1 {
				t.Errorf("%s: %d have made it", name, won)
			}
		}
	}
}

// What is made by a request whose answer was lost is made: it does not exist already.
func TestMountLostReply(t *testing.T) {
	s := mounttest.Embedded(t)
	w := newWorld(t, s)
	for what, act := range exclusiveMakers {
		hits := s.Embedded.AddFault(blobserver.Fault{Op: "PutBlob", Name: what, Nth: 1, Action: blobserver.LoseReply})
		if err := act(w.path(what)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if hits() != 1 {
			t.Errorf("%s: %d answers were lost", what, hits())
		}
		wantErrno(t, what+" again", act(w.path(what)), syscall.EEXIST)
	}
}
