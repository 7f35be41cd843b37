package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
)

// world is a service, a cache directory and a mount point for one test.
type world struct {
	t          *testing.T
	server     *blobserver.Server
	store      *blobtest.Store
	connection string
	mnt, cache string
}

// newWorld skips the test on a machine without FUSE.
func newWorld(t *testing.T) *world {
	t.Helper()
	if err := realSystem().checkFUSE(); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and FUSE: %v", err)
	}
	s, err := blobserver.Start(blobserver.Options{Listen: "127.0.0.1:0", Containers: []string{"data"}})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, server: s, store: s.Store("data"), connection: s.ConnectionString(), mnt: t.TempDir(), cache: filepath.Join(t.TempDir(), "cache")}
	t.Cleanup(func() {
		_ = syscall.Unmount(w.mnt, syscall.MNT_DETACH) // only of a test that failed
		s.Close()
	})
	return w
}

// put makes a blob as another writer would.
func (w *world) put(name, content string) {
	w.t.Helper()
	c := blobtest.NewContainer(w.store, "https://other.example/data")
	if _, err := c.Upload(w.t.Context(), name, strings.NewReader(content), int64(len(content)), blob.WriteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// putAppend makes an append blob.
func (w *world) putAppend(name, content string) {
	w.t.Helper()
	c := blobtest.NewContainer(w.store, "https://other.example/data")
	_, err := c.Upload(w.t.Context(), name, strings.NewReader(""), 0, blob.WriteOptions{Kind: blob.AppendBlob})
	if err == nil {
		_, err = c.AppendBlock(w.t.Context(), name, strings.NewReader(content), int64(len(content)), 0, blob.Condition{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// holds checks a blob in the service.
func (w *world) holds(name, want string) {
	w.t.Helper()
	_, r, err := w.store.Get(name, 0, int64(len(want))+1, blob.Condition{})
	if err != nil {
		w.t.Errorf("%s: %v", name, err)
		return
	}
	if got, err := io.ReadAll(r.Reader()); string(got) != want || err != nil {
		w.t.Errorf("%s in the service has %d bytes, not the %d of what was written, or others: %v", name, len(got), len(want), err)
	}
}

// program is blobmount as a process of its own.
func (w *world) program(args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	// The race detector makes a process wait a second before it ends.
	cmd.Env = append(os.Environ(), asBlobmount+"=1", "GORACE=atexit_sleep_ms=0", "AZURE_STORAGE_CONNECTION_STRING="+w.connection)
	return cmd
}

// do runs blobmount and returns its exit status and standard error.
func (w *world) do(args ...string) (int, string) {
	w.t.Helper()
	cmd := w.program(args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs // not a file: the run ends only when the background process has let go of it
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		w.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), errs.String()
}

// mount mounts in the background, and returns the lock file of the daemon.
func (w *world) mount(args ...string) (lock *os.File, pid int) {
	w.t.Helper()
	status, text := w.do(append(args, "--cache-dir", w.cache, "az://data", w.mnt)...)
	if status != exitOK || text != "" {
		w.t.Fatalf("mount: status %d, %q", status, text)
	}
	entry, mounted, err := realSystem().mountedAt(w.mnt)
	if err != nil || !mounted || entry.Type != "fuse.blobmount" || entry.Source != "az://data" {
		w.t.Fatalf("after the mount: %+v, %v", entry, err)
	}
	// A daemon that still writes after its unmount, of whatever runs beside this test, may have had this device before.
	locks := ofMountPoint(daemons(lockDirs(0), entry.Device), w.mnt)
	if len(locks) != 1 {
		w.t.Fatalf("there are %d lock files", len(locks))
	}
	w.t.Cleanup(func() { locks[0].Close() })
	return locks[0], readDaemonInfo(locks[0]).PID
}

// ended waits for the daemon, and checks that it left nothing.
func (w *world) ended(lock *os.File) {
	w.t.Helper()
	if err := waitForEnd(lock); err != nil {
		w.t.Fatal(err)
	}
	if _, mounted, err := realSystem().mountedAt(w.mnt); mounted || err != nil {
		w.t.Errorf("still mounted, or %v", err)
	}
	if _, err := os.Stat(lock.Name()); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("lock file: %v", err)
	}
}

func (w *world) log() string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.cache, "log", escapePath(w.mnt)+".log"))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// "By default it goes to the background and exits 0 only after the mount answers"; unmount returns when the daemon
// has ended; no output of either has the key.
func TestMountAndUnmount(t *testing.T) {
	w := newWorld(t)
	lock, pid := w.mount("--log-level=debug")
	if err := os.WriteFile(filepath.Join(w.mnt, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err := w.store.Properties("file", blob.Condition{}); err != nil || p.Size != 7 {
		t.Errorf("in the service: %+v, %v", p, err)
	}
	if status, text := w.do("--cache-dir", w.cache, "az://data", w.mnt); status != exitFailure || !strings.Contains(text, "already mounted (fuse.blobmount from az://data)") {
		t.Errorf("second mount: status %d, %q", status, text)
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil || cwd != "/" {
		t.Errorf("working directory of the daemon is %q, %v", cwd, err)
	}
	if out, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid)); err != nil || !strings.HasSuffix(out, ".log") {
		t.Errorf("standard error of the daemon is %q, %v", out, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(string(limits), "Max core file size        1 ") {
		t.Errorf("limits of the daemon: %s, %v", limits, err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}

	if status, text := w.do("unmount", w.mnt); status != exitOK || text != "" {
		t.Fatalf("unmount: status %d, %q", status, text)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("unmount returned before the daemon had ended: %v", err)
	}
	w.ended(lock)
	_, key, _ := strings.Cut(w.connection, "AccountKey=")
	key, _, _ = strings.Cut(key, ";")
	if text := w.log() + string(cmdline); len(key) < 40 || strings.Contains(text, key) || !strings.Contains(text, "environment AZURE_STORAGE_CONNECTION_STRING") {
		t.Errorf("key %q in, or origin not in: %s", key, text)
	}
}

func TestBusy(t *testing.T) {
	w := newWorld(t)
	lock, pid := w.mount()
	f, err := os.Create(filepath.Join(w.mnt, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if status, text := w.do("unmount", w.mnt); status != exitFailure || !strings.Contains(text, "is in use") || strings.Count(text, "\n") != 1 {
		t.Errorf("unmount in use: status %d, %q", status, text)
	}
	if status, text := w.do("unmount", "--lazy", w.mnt); status != exitOK || text != "" {
		t.Errorf("lazy unmount: status %d, %q", status, text)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the daemon has left a file that is open: %v", err)
	}
	// What is written after the lazy unmount is committed by the close.
	if _, err := f.WriteString("late"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	w.ended(lock)
	if p, err := w.store.Properties("file", blob.Condition{}); err != nil || p.Size != 4 {
		t.Errorf("in the service: %+v, %v", p, err)
	}
}

func TestSignalAndUmount(t *testing.T) {
	w := newWorld(t)
	for name, end := range map[string]func(pid int) error{
		"SIGTERM":   func(pid int) error { return syscall.Kill(pid, syscall.SIGTERM) },
		"SIGINT":    func(pid int) error { return syscall.Kill(pid, syscall.SIGINT) },
		"umount(8)": func(int) error { return syscall.Unmount(w.mnt, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			lock, pid := w.mount()
			if err := syscall.Kill(pid, syscall.SIGHUP); err != nil { // ignored: it comes when a terminal is closed
				t.Fatal(err)
			}
			if _, err := os.ReadDir(w.mnt); err != nil {
				t.Error(err)
			}
			if err := end(pid); err != nil {
				t.Fatal(err)
			}
			w.ended(lock)
		})
	}
}

// A dead mount is recognised at once, although the kernel still knows its attributes, and can be removed.
func TestDeadMount(t *testing.T) {
	w := newWorld(t)
	lock, pid := w.mount()
	if _, err := os.Stat(w.mnt); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitForEnd(lock); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	status, text := w.do("--cache-dir", w.cache, "az://data", w.mnt)
	if status != exitFailure || !strings.Contains(text, "is a dead mount") || !strings.Contains(text, "run blobmount unmount "+w.mnt) {
		t.Errorf("mount: status %d, %q", status, text)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(w.mnt, link); err != nil {
		t.Fatal(err)
	}
	if status, text := w.do("unmount", link); status != exitOK || text != "" {
		t.Errorf("unmount: status %d, %q", status, text)
	}
	w.ended(lock)
}

// A whole mount inside this process: what a test of another package can do too.
func TestInProcess(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, logs := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, process{
			args:      []string{"blobmount", "-f", "-r", "--log-format=json", "--cache-dir=" + w.cache, "az://data", w.mnt},
			lookupEnv: func(n string) (string, bool) { return w.connection, n == "AZURE_STORAGE_CONNECTION_STRING" },
			stdout:    io.Discard, stderr: logs, system: realSystem(),
		})
		logs.Close()
	}()
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), `"msg":"mounted"`) {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("the mount did not come: %s", seen.String())
		}
		seen.Write(buf[:n])
	}
	go io.Copy(io.Discard, r)
	if err := os.WriteFile(filepath.Join(w.mnt, "file"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to a read-only mount: %v", err)
	}
	cancel()
	if status := <-done; status != exitOK {
		t.Errorf("status %d", status)
	}
}

// What a shell left open (here: a pipe) is not kept open by the daemon, nor is standard output.
func TestNothingInherited(t *testing.T) {
	w := newWorld(t)
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := w.program("--cache-dir", w.cache, "az://data", w.mnt)
	cmd.Stdout, cmd.ExtraFiles = wr, []*os.File{wr, wr}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	wr.Close()
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil { // only to fail, not to hang
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 { // ends when nobody has it open
		t.Errorf("%q, %v", b, err)
	}
	if status, text := w.do("unmount", w.mnt); status != exitOK {
		t.Errorf("unmount: %d, %q", status, text)
	}
}

// unmount does not take a mount that is gone for a daemon that has written everything: a stopped one has not ended.
func TestUnmountWaitsForTheDaemon(t *testing.T) {
	w := newWorld(t)
	lock, pid := w.mount()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	status, text := w.do("unmount", "--timeout=0.1", w.mnt)
	if want := fmt.Sprintf("the daemon (process %d) has not ended", pid); status != exitFailure || !strings.Contains(text, want) {
		t.Errorf("status %d, %q, want %q", status, text, want)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.ended(lock)
}
