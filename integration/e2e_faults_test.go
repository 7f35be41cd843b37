package integration

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blobmount/integration/blobserver"
	"blobmount/integration/mounttest"
)

// A service that refuses, breaks off and loses answers all the time costs time, never bytes.
func TestMountUnreliable(t *testing.T) {
	s := mounttest.Embedded(t)
	server := s.Embedded
	w := newWorld(t, s, "--block-size=256KiB", "--log-level=warn")
	hits := map[string]func() int{}
	add := func(what string, f blobserver.Fault) { hits[what] = server.AddFault(f) }
	// Rare requests are hit by their number, so that each run hits them; these come first, since the first fault acts.
	for _, op := range []string{"PutBlockList", "CopyBlob", "SetBlobMetadata", "DeleteBlob"} {
		add(op+" 1 lost", blobserver.Fault{Op: op, Nth: 1, Action: blobserver.LoseReply})
		add(op+" 4 lost", blobserver.Fault{Op: op, Nth: 4, Action: blobserver.LoseReply})
	}
	add("PutBlob lost", blobserver.Fault{Op: "PutBlob", Name: "filex*", Nth: 1, Action: blobserver.LoseReply})
	add("PutBlob broken", blobserver.Fault{Op: "PutBlob", Name: "filex*", Nth: 3, Action: blobserver.Break, Bytes: 0})
	add("PutBlock broken", blobserver.Fault{Op: "PutBlock", Probability: 0.1, Action: blobserver.Break, Bytes: 100 << 10})
	add("GetBlob broken", blobserver.Fault{Op: "GetBlob", Probability: 0.15, Action: blobserver.Break, Bytes: 30 << 10})
	add("ListBlobs broken", blobserver.Fault{Op: "ListBlobs", Probability: 0.1, Action: blobserver.Break, Bytes: 50})
	add("refused", blobserver.Fault{Probability: 0.08, Status: 503, Code: "ServerBusy"})
	add("failed", blobserver.Fault{Probability: 0.04, Status: 500, Code: "InternalError"})
	content := map[string][]byte{}
	for _, size := range []int{0, 1, 200 << 10, 256 << 10, 3<<20 + 7, 12 << 20} {
		name := "file" + strings.Repeat("x", len(content))
		content[name] = noise(size)
		w.write(name, content[name])
		must(t, os.Chmod(w.path(name), 0o600))
	}
	for i, b := range content {
		if len(b) > 1<<20 {
			f := w.open(i, os.O_RDWR)
			_, err := f.WriteAt([]byte("changed"), 1<<20)
			must(t, err)
			must(t, f.Close())
			copy(b[1<<20:], "changed")
		}
	}
	source := filepath.Join(goSource(t), "container")
	command(t, "/", nil, "cp", "-a", source, w.path("tree"))
	must(t, os.Rename(w.path("tree"), w.path("moved")))
	for range 2 {
		for name := range content {
			must(t, os.Rename(w.path(name), w.path("temporary")))
			must(t, os.Rename(w.path("temporary"), w.path(name)))
		}
	}
	for range 2 {
		w.Unmount()
		w.EmptyCache()
		w.Mount("--block-size=256KiB", "--log-level=warn")
		for name, b := range content {
			w.read(name, b)
			if info, err := os.Stat(w.path(name)); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if out := command(t, "/", nil, "diff", "-r", "--no-dereference", source, w.path("moved")); out != "" {
			t.Error(out)
		}
	}
	sameTree(t, source, w.path("moved"))
	command(t, "/", nil, "rm", "-r", w.path("moved"))
	for what, n := range hits {
		if n() == 0 {
			t.Errorf("%s: no request was hit, so nothing is proven of it", what)
		}
	}
	server.ClearFaults()
	for name, b := range content {
		w.holds(name, b)
	}
	if got := len(w.Blobs()); got != len(content) {
		t.Errorf("the service has %q", w.Blobs())
	}
}

// A lookup of a name in a container that is gone must not look like an empty directory.
func testContainerDeleted(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--blob-cache-timeout=0")
	w.Put("blob", noise(30<<20))
	w.Put("dir/blob", nil)
	f := w.open("blob", os.O_RDONLY)
	written := w.open("written", os.O_CREATE|os.O_WRONLY)
	_, err := io.WriteString(written, "x")
	must(t, err)
	_, err = w.Client.Delete(t.Context(), nil)
	must(t, err)
	_, err = os.ReadDir(w.Dir)
	wantErrno(t, "readdir", err, syscall.EIO)
	_, err = os.Stat(w.path("dir"))
	wantErrno(t, "stat of a directory", err, syscall.EIO)
	_, err = os.Stat(w.path("nothing"))
	wantErrno(t, "stat of nothing", err, syscall.EIO)
	wantErrno(t, "mkdir", os.Mkdir(w.path("new"), 0o755), syscall.EIO)
	_, err = io.ReadAll(f)
	wantErrno(t, "read", err, syscall.EIO)
	wantErrno(t, "fsync", written.Sync(), syscall.EIO)
	// It comes back, and so does the mount.
	_, err = w.Client.Create(t.Context(), nil)
	must(t, err)
	must(t, written.Close())
	w.holds("written", []byte("x"))
	must(t, f.Close())
	if entries, err := os.ReadDir(w.Dir); err != nil || len(entries) != 1 {
		t.Errorf("listed %v, %v", entries, err)
	}
}

// "statfs never touches the network", nor does what is known.
func TestMountAsksNothing(t *testing.T) {
	s := mounttest.Embedded(t)
	w := newWorld(t, s)
	w.write("file", []byte("content"))
	w.Put("dir/a", nil)
	w.Put("dir/b", nil)
	if _, err := os.ReadDir(w.path("dir")); err != nil {
		t.Fatal(err)
	}
	s.Embedded.ResetStats()
	for range 10 {
		var st syscall.Statfs_t
		must(t, syscall.Statfs(w.Dir, &st))
		if st.Bavail*uint64(st.Bsize) < 1<<50 || st.Namelen != 255 || st.Ffree == 0 {
			t.Errorf("statfs: %+v", st)
		}
		w.read("file", []byte("content"))
		for _, name := range []string{"dir/a", "dir/b"} {
			if _, err := os.Stat(w.path(name)); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(w.path("dir/c")); err == nil {
			t.Error("there is a dir/c")
		}
	}
	if n := s.Embedded.Stats(); n.Total() != 0 {
		t.Errorf("requests: %v", n.Requests)
	}
}
