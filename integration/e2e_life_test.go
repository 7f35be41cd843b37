package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blobmount/integration/mounttest"
)

// SIGTERM unmounts. When the mount is in use it goes on, so that nothing that is being written is lost; a second
// signal detaches it, and the last close ends the daemon.
func testTerminate(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--block-size=1MiB")
	w.write("clean", []byte("clean"))
	w.Signal(syscall.SIGTERM)
	w.Gone()
	w.holds("clean", []byte("clean"))

	w.Mount("--block-size=1MiB")
	first, second := noise(3<<20), noise(3<<20)
	f := w.open("dirty", os.O_CREATE|os.O_WRONLY)
	_, err := f.Write(first)
	must(t, err)
	w.Signal(syscall.SIGTERM)
	w.AwaitLog("the mount cannot be unmounted")
	w.write("other", []byte("goes on"))
	_, err = f.Write(second)
	must(t, err)
	w.Signal(syscall.SIGTERM)
	w.AwaitLog("detached")
	if mounttest.IsMounted(t, w.Dir) {
		t.Error("still mounted after the second signal")
	}
	_, err = f.Write([]byte("end"))
	must(t, err)
	must(t, f.Close())
	w.Gone()
	w.holds("dirty", append(append(first, second...), "end"...))
	w.holds("other", []byte("goes on"))
	if left, err := os.ReadDir(filepath.Join(w.Cache, "staging")); err != nil || len(left) != 0 {
		t.Errorf("left in the staging directory: %v, %v", left, err)
	}
}

// A killed daemon leaves a dead mount, which says so, is refused as a mount point, and is removed by unmount. What
// close and fsync had acknowledged is in the service.
func testKill(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--block-size=1MiB")
	content := noise(5<<20 + 1)
	w.write("closed", content)
	synced := w.open("synced", os.O_CREATE|os.O_WRONLY)
	_, err := synced.Write(content)
	must(t, err)
	must(t, synced.Sync())
	_, err = synced.Write([]byte("not acknowledged"))
	must(t, err)
	w.Signal(syscall.SIGKILL)
	w.AwaitEnd()
	_, err = os.ReadDir(w.Dir)
	wantErrno(t, "readdir of a dead mount", err, syscall.ENOTCONN)
	wantErrno(t, "close on a dead mount", synced.Close(), syscall.ENOTCONN)
	args := []string{"--cache-dir", w.Cache, "--log-file", w.Log, w.Source(), w.Dir}
	if r := w.Run(args...); r.Status != 32 || !strings.Contains(r.Stderr, "blobmount unmount "+w.Dir) {
		t.Errorf("mount on a dead mount: %+v", r)
	}
	w.Unmount()
	w.holds("closed", content)
	w.holds("synced", content)
	w.Mount("--block-size=1MiB")
	w.read("closed", content)
	w.read("synced", content)
}

// The same program is the mount helper, under the name mount.blobmount.
func testHelper(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	w.write("file", []byte("content"))
	w.Unmount()
	helper := filepath.Join(t.TempDir(), "mount.blobmount")
	must(t, os.Symlink(mounttest.Binary(t), helper))
	options := "rw,_netdev,nofail,x-systemd.automount,noatime,cache_dir=" + w.Cache + ",log-file=" + w.Log + ",log_format=json"

	if r := w.RunAs(helper, w.Source(), w.Dir, "-f", "-o", options); r != (mounttest.Result{}) || mounttest.IsMounted(t, w.Dir) {
		t.Errorf("-f: %+v, mounted %v", r, mounttest.IsMounted(t, w.Dir))
	}
	if r := w.RunAs(helper, w.Source(), w.Dir, "-o", options+",frobnicate"); r.Status != 1 || !strings.Contains(r.Stderr, "frobnicate") ||
		mounttest.IsMounted(t, w.Dir) {
		t.Errorf("unknown option: %+v", r)
	}
	if r := w.RunAs(helper, w.Source(), w.Dir, "-o", options); r != (mounttest.Result{}) {
		t.Fatalf("helper: %+v", r)
	}
	w.read("file", []byte("content"))
	if pid := w.PID(); pid == 0 {
		t.Error("no daemon")
	}
	if entry := mountEntry(t, w.Dir); !strings.Contains(entry, " - fuse.blobmount "+w.Source()+" ") || !strings.Contains(entry, "noatime") {
		t.Errorf("mount table: %s", entry)
	}
	w.Unmount()

	t.Run("mount(8)", func(t *testing.T) {
		if _, err := os.Stat("/sbin/mount.fuse3"); err != nil || os.Getuid() != 0 {
			t.Skipf("needs root and mount.fuse3 of the package fuse3: %v", err)
		}
		cmd := exec.CommandContext(t.Context(), "mount", "-t", "fuse3", mounttest.Binary(t)+"#"+w.Source(), w.Dir, "-o", "ro,"+options[len("rw,"):])
		cmd.Env = append(os.Environ(), "AZURE_STORAGE_CONNECTION_STRING="+s.ConnectionString())
		if out, err := cmd.CombinedOutput(); err != nil || len(out) != 0 {
			t.Fatalf("mount: %v: %s", err, out)
		}
		w.read("file", []byte("content"))
		wantErrno(t, "write", os.WriteFile(w.path("file"), nil, 0o644), syscall.EROFS)
		if out, err := exec.CommandContext(t.Context(), "umount", w.Dir).CombinedOutput(); err != nil || len(out) != 0 {
			t.Fatalf("umount: %v: %s", err, out)
		}
		w.Gone()
	})
}

// mountEntry returns the line of the mount table.
func mountEntry(t *testing.T, dir string) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return line
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}
