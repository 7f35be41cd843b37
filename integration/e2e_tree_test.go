package integration

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blobmount/integration/mounttest"
)

// command runs another program in a directory of the mount and returns what it printed. A shell goes there and starts
// it: until a child has left for its directory and its program, the thread that made it cannot be stopped for a garbage
// collection, so that the service in this process might not answer what the child waits for.
func command(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", `cd "$0" && exec "$@"`, dir}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// goSource returns the directory of the Go distribution's sources.
func goSource(t *testing.T) string {
	t.Helper()
	return filepath.Join(strings.TrimSpace(command(t, "/", nil, "go", "env", "GOROOT")), "src")
}

// sameTree compares names, kinds, permissions, owners, times of change, sizes and link targets of two trees. The
// bytes are diff's business. It returns how many names it saw.
func sameTree(t *testing.T, want, got string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(want, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		rel, err := filepath.Rel(want, path)
		if err != nil {
			return err
		}
		a, err := os.Lstat(path)
		if err != nil {
			return err
		}
		b, err := os.Lstat(filepath.Join(got, rel))
		if err != nil {
			return err
		}
		as, bs := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
		if a.Mode() != b.Mode() || as.Uid != bs.Uid || as.Gid != bs.Gid {
			t.Errorf("%s: %v %d:%d, want %v %d:%d", rel, b.Mode(), bs.Uid, bs.Gid, a.Mode(), as.Uid, as.Gid)
		}
		if !a.ModTime().Equal(b.ModTime()) {
			t.Errorf("%s: changed at %v, want %v", rel, b.ModTime(), a.ModTime())
		}
		if !a.IsDir() && a.Size() != b.Size() {
			t.Errorf("%s: %d bytes, want %d", rel, b.Size(), a.Size())
		}
		return nil
	})
	must(t, err)
	return n
}

// A tree of sources comes back from the service as it was written, with all that cp -a keeps, and leaves nothing
// behind when it is removed.
func testCopyTree(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	source := goSource(t)
	parts := []string{"net", "encoding", "cmd/go/internal", "crypto/tls", "internal/trace"}
	if s.Embedded == nil {
		parts = parts[:2] // Azurite takes 10 ms for each of the requests
	}
	if mounttest.Long() {
		parts = []string{"."}
	}
	// A few things that sources do not have.
	extra := t.TempDir()
	must(t, os.Symlink("../somewhere/else", filepath.Join(extra, "dangling")))
	must(t, os.Symlink("data", filepath.Join(extra, "link")))
	must(t, os.WriteFile(filepath.Join(extra, "data"), noise(3<<20), 0o751))
	must(t, os.WriteFile(filepath.Join(extra, "empty"), nil, 0o400))
	must(t, os.MkdirAll(filepath.Join(extra, "deep/er/empty"), 0o700))
	must(t, os.Chown(filepath.Join(extra, "empty"), 12, 34))

	pairs := map[string]string{extra: "extra"}
	for _, part := range parts {
		pairs[filepath.Join(source, part)] = filepath.Join("src", part)
	}
	for from, to := range pairs {
		must(t, os.MkdirAll(filepath.Dir(w.path(to)), 0o755))
		command(t, "/", nil, "cp", "-a", "-T", from, w.path(to))
	}
	w.Remount()
	n := 0
	for from, to := range pairs {
		if out := command(t, "/", nil, "diff", "-r", "--no-dereference", from, w.path(to)); out != "" {
			t.Error(out)
		}
		n += sameTree(t, from, w.path(to))
	}
	t.Logf("%d names", n)
	if err := exec.CommandContext(t.Context(), "diff", "-r", filepath.Join(extra, "deep"), w.Dir).Run(); err == nil {
		t.Error("diff finds no difference between different trees")
	}
	command(t, "/", nil, "rm", "-rf", w.path("src"), w.path("extra"))
	if left := w.Blobs(); len(left) > 0 {
		t.Errorf("%d blobs are left: %q", len(left), left[:min(10, len(left))])
	}
}

// The go command works on a module that lies on the mount, and can build into it: its output is a program that runs.
func testGo(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	files := map[string]string{
		"go.mod":        "module example\n\ngo 1.24\n",
		"main.go":       "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example/sum\"\n)\n\nfunc main() { fmt.Println(sum.Of(1, 2, 3)) }\n",
		"sum/sum.go":    "package sum\n\nfunc Of(n ...int) (s int) {\n\tfor _, x := range n {\n\t\ts += x\n\t}\n\treturn s\n}\n",
		"sum/x_test.go": "package sum\n\nimport \"testing\"\n\nfunc TestOf(t *testing.T) {\n\tif Of(2, 3) != 5 {\n\t\tt.Fail()\n\t}\n}\n",
	}
	must(t, os.Mkdir(w.path("sum"), 0o755))
	for name, text := range files {
		w.write(name, []byte(text))
	}
	env := []string{"GOWORK=off", "GOFLAGS=", "GOTOOLCHAIN=local"}
	command(t, w.Dir, env, "go", "vet", "./...")
	command(t, w.Dir, env, "go", "build", "-o", "program", ".")
	if out := command(t, w.Dir, nil, "./program"); out != "6\n" {
		t.Errorf("the program that was built on the mount prints %q", out)
	}
	w.Remount()
	if out := command(t, w.Dir, nil, "./program"); out != "6\n" {
		t.Errorf("after a remount it prints %q", out)
	}
}

// Git keeps a repository on the mount: clone, fsck, gc, commit, and all of that again from the service.
func testGit(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	env := []string{
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=C", "GIT_COMMITTER_EMAIL=c@example.com",
	}
	origin := filepath.Join(t.TempDir(), "origin")
	must(t, os.Mkdir(origin, 0o755))
	git := func(dir string, args ...string) string {
		t.Helper()
		return command(t, dir, env, append([]string{"git"}, args...)...)
	}
	git(origin, "init", "-q", "-b", "main")
	for round := range 5 {
		for i := range 60 {
			dir := filepath.Join(origin, fmt.Sprintf("d%d", i%7))
			must(t, os.MkdirAll(dir, 0o755))
			text := strings.Repeat(fmt.Sprintf("round %d of file %d\n", round, i), 1+i*round)
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), []byte(text), 0o644))
		}
		must(t, os.WriteFile(filepath.Join(origin, "binary"), noise(512<<10), 0o755))
		git(origin, "add", "-A")
		git(origin, "commit", "-q", "-m", fmt.Sprint("round ", round))
	}
	head := git(origin, "rev-parse", "HEAD")

	git("/", "clone", "-q", origin, w.path("clone"))
	clone := w.path("clone")
	git(clone, "fsck", "--full", "--strict")
	git(clone, "gc", "-q", "--prune=now")
	git(clone, "fsck", "--full", "--strict")
	w.write("clone/d1/new", []byte("a line\n"))
	git(clone, "add", "-A")
	git(clone, "commit", "-q", "-m", "on the mount")
	commit := git(clone, "rev-parse", "HEAD")

	w.Remount()
	git(clone, "fsck", "--full", "--strict")
	if out := git(clone, "status", "--porcelain"); out != "" {
		t.Errorf("status after a remount: %s", out)
	}
	if out := git(clone, "log", "--format=%H", "-2"); out != commit+head {
		t.Errorf("log after a remount: %q, want %q", out, commit+head)
	}
	if out := git(clone, "log", "--oneline"); strings.Count(out, "\n") != 6 {
		t.Errorf("log has %q", out)
	}
}
