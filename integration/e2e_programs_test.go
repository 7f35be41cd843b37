package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"blobmount/integration/mounttest"
)

// need skips the test where a program is missing. Where CI is set in the environment it fails instead: .ci/run installs
// what the tests need.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// oddTree makes a local tree with what trees of sources do not have: links of all kinds, odd modes and owners, old times,
// names that need quoting, empty files and directories.
func oddTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	long := strings.Repeat("long-", 40)
	for _, d := range []string{"", "empty", "deep/er/and/deeper", "with space & 'quote'", "é/ü", "closed"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for i, f := range []struct {
		name string
		size int
		mode os.FileMode
	}{
		{"empty/.hidden", 0, 0o644}, {"data", 300_000, 0o600}, {"large", 9 << 20, 0o640}, {"deep/er/and/deeper/x", 1, 0o444},
		{"with space & 'quote'/100%", 77, 0o4755}, {"é/ü/ñ", 5, 0o2711}, {"sticky", 10, 0o1644}, {long, 3, 0o007}, {"none", 4, 0},
	} {
		path := filepath.Join(dir, f.name)
		must(t, os.WriteFile(path, noise(f.size), 0o600))
		must(t, os.Chown(path, i*1000, i*77))
		must(t, syscall.Chmod(path, uint32(f.mode))) // os.Chmod has bits of its own for setuid and the like
	}
	for name, target := range map[string]string{
		"to-data": "data", "to-dir": "deep/er", "dangling": "../no/where", "absolute": "/etc/hostname", "deep/up": "../data",
		"loop": "loop", "to-long": strings.Repeat("x/", 500),
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
		must(t, os.Lchown(filepath.Join(dir, name), 12, 34))
	}
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0o500))
	// Times of now would not do: rsync compares seconds, and leaves a link that it has made within the same one.
	command(t, dir, nil, "find", ".", "-exec", "touch", "-h", "-d", "2001-02-03 04:05:06.789", "{}", "+")
	command(t, dir, nil, "find", "closed", "data", "dangling", "fifo", "-exec", "touch", "-h", "-d", "1999-12-31 23:59:59.123456789", "{}", "+")
	command(t, dir, nil, "touch", "-h", "-d", "1970-01-01 00:00:00 UTC", "sticky", "to-dir")
	command(t, dir, nil, "touch", "-d", "2038-02-01 00:00:00.5", "deep", ".")
	return dir
}

// tar unpacks with modes, owners, links and times as they were packed, and finds no difference after a remount.
func testTar(t *testing.T, s *mounttest.Service) {
	need(t, "tar")
	w := newWorld(t, s)
	dir := oddTree(t)
	archive := filepath.Join(t.TempDir(), "a.tar")
	command(t, filepath.Dir(dir), nil, "tar", "--format=posix", "-cf", archive, "tree")
	command(t, w.Dir, nil, "tar", "-xpf", archive)
	w.Remount()
	if out := command(t, w.Dir, nil, "tar", "-df", archive); out != "" {
		t.Error(out)
	}
	sameTree(t, dir, w.path("tree"))
	must(t, os.WriteFile(w.path("tree/data"), []byte("changed"), 0o600))
	if exec.CommandContext(t.Context(), "tar", "-df", archive, "-C", w.Dir).Run() == nil {
		t.Error("tar finds no difference in a file that was changed")
	}
}

// rsync -a of a tree has nothing left to do after a remount.
func testRsync(t *testing.T, s *mounttest.Service) {
	need(t, "rsync")
	w := newWorld(t, s)
	dir := oddTree(t)
	command(t, "/", nil, "rsync", "-a", dir+"/", w.path("copy")+"/")
	w.Remount()
	check := func() string {
		return command(t, "/", nil, "rsync", "-a", "--delete", "--itemize-changes", "--dry-run", "--checksum", dir+"/", w.path("copy")+"/")
	}
	if out := check(); out != "" {
		t.Errorf("rsync would change after a remount:\n%s", out)
	}
	sameTree(t, dir, w.path("copy"))
	must(t, os.Chmod(filepath.Join(dir, "data"), 0o611))
	if out := check(); !strings.HasPrefix(out, ".f...p..... data") {
		t.Errorf("rsync would change %q, want the mode of one file", out)
	}
	command(t, "/", nil, "rsync", "-a", dir+"/", w.path("copy")+"/")
	if out := check(); out != "" {
		t.Errorf("rsync would change after it changed a mode:\n%s", out)
	}
}

// npm installs packages, with the links and modes of their programs, and node runs them.
func testNpm(t *testing.T, s *mounttest.Service) {
	need(t, "npm", "node")
	w := newWorld(t, s)
	home := t.TempDir()
	env := []string{"HOME=" + home, "npm_config_cache=" + home, "npm_config_offline=true", "npm_config_audit=false",
		"npm_config_fund=false", "npm_config_update_notifier=false"}
	source := t.TempDir()
	for name, p := range map[string]struct{ more, program string }{
		"small": {"", ""},
		"user": {`, "bin": {"user": "program.js"}, "dependencies": {"small": "^1.0.0"}`,
			"#!/usr/bin/env node\nconsole.log(require('small')(21))\n"},
	} {
		must(t, os.MkdirAll(filepath.Join(source, name, "lib"), 0o755))
		for file, text := range map[string]string{
			"package.json": fmt.Sprintf(`{"name": %q, "version": "1.2.3", "license": "MIT", "main": "lib/index.js"%s}`, name, p.more),
			"lib/index.js": "module.exports = (x) => x * 2\n",
			"program.js":   p.program,
			"README.md":    strings.Repeat("text\n", 1000),
		} {
			must(t, os.WriteFile(filepath.Join(source, name, file), []byte(text), 0o644))
		}
	}
	command(t, source, env, "npm", "pack", "--silent", "./small", "./user")
	must(t, os.Mkdir(w.path("project"), 0o755))
	w.write("project/package.json", []byte(`{"name": "project", "version": "1.0.0", "private": true}`))
	project := w.path("project")
	command(t, project, env, "npm", "install", "--silent", source+"/small-1.2.3.tgz", source+"/user-1.2.3.tgz")
	run := func() {
		t.Helper()
		if out := command(t, project, nil, "./node_modules/.bin/user"); out != "42\n" {
			t.Errorf("the program prints %q", out)
		}
	}
	run()
	w.Remount()
	run()
	if out := command(t, project, env, "npm", "ls", "--parseable", "--all"); strings.Count(out, "\n") != 3 {
		t.Errorf("npm sees %q", out)
	}
}

// sqlite keeps a database in both ways of journalling, with several processes that write, and finds it whole after a
// remount.
func testSqlite(t *testing.T, s *mounttest.Service) {
	need(t, "sqlite3")
	rows := 2000
	if mounttest.Long() {
		rows = 100_000
	}
	modes := []string{"delete", "truncate", "persist", "wal"}
	if s.Embedded == nil {
		modes = modes[3:] // Azurite takes 10 ms for each of the requests
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, s)
			sql := func(text string) string {
				t.Helper()
				return strings.TrimSpace(command(t, w.Dir, nil, "sqlite3", "-bail", "-cmd", ".timeout 60000", "base.db", text))
			}
			if out := sql("PRAGMA journal_mode=" + mode + "; CREATE TABLE t (id INTEGER PRIMARY KEY, who, text); CREATE INDEX i ON t (text);"); out != mode {
				t.Fatalf("journal mode %q", out)
			}
			sql("PRAGMA journal_mode=" + mode + fmt.Sprintf(`; BEGIN; WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x < %d)
				INSERT INTO t (who, text) SELECT 'first', hex(randomblob(50)) FROM n; COMMIT;`, rows))
			sql("BEGIN; DELETE FROM t; ROLLBACK;")
			// Several processes, each with transactions of its own.
			var wg sync.WaitGroup
			for who := range 3 {
				wg.Go(func() {
					for range 3 {
						out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", `cd "$0" && exec sqlite3 -bail -cmd ".timeout 60000" base.db "$1"`, w.Dir,
							fmt.Sprintf("BEGIN IMMEDIATE; INSERT INTO t (who, text) SELECT %d, hex(randomblob(20)) FROM t LIMIT 20; COMMIT;", who)).CombinedOutput()
						if err != nil {
							t.Errorf("%v: %s", err, out)
						}
					}
				})
			}
			wg.Wait()
			check := func() {
				t.Helper()
				want := fmt.Sprintf("ok\n%d\n3", rows+3*3*20)
				if out := sql("PRAGMA integrity_check; SELECT count(*) FROM t; SELECT count(DISTINCT who) FROM t WHERE who <> 'first';"); out != want {
					t.Errorf("the database has %q, want %q", out, want)
				}
			}
			check()
			w.Remount()
			check()
			sql("VACUUM;")
			check()
			if blobs := w.Blobs(); mode != "persist" && len(blobs) != 1 {
				t.Errorf("there is %q, want the database alone", blobs)
			}
		})
	}
}

// Editors save in ways that must never leave a file that is not whole: a new file that is renamed over the old one, or the
// old one put aside and written anew. Who reads meanwhile sees one of both; mode and owner stay as the editor sets them.
func testSave(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	text := func(version int) []byte { return []byte(strings.Repeat(fmt.Sprintf("version %d\n", version), 2000)) }
	save := func(name string, flags int, content []byte) {
		t.Helper()
		f, err := os.OpenFile(w.path(name), flags, 0o600)
		must(t, err)
		_, err = f.Write(content)
		must(t, err)
		must(t, f.Chmod(0o640))
		must(t, f.Chown(5, 6))
		must(t, f.Sync())
		must(t, f.Close())
	}
	const fresh = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	save("file", fresh, text(0))
	done, failed := make(chan struct{}), make(chan error, 1)
	go func() { // a reader
		defer close(failed)
		for {
			select {
			case <-done:
				return
			default:
			}
			got, err := os.ReadFile(w.path("file"))
			if err != nil {
				failed <- err
				return
			}
			if len(got) != len(text(0)) || strings.Count(string(got), string(got[:10])) != 2000 {
				failed <- fmt.Errorf("a reader got %d bytes that are no version", len(got))
				return
			}
		}
	}()
	for version := 1; version <= 5; version++ {
		save(".file.tmp", fresh, text(version))
		must(t, os.Rename(w.path(".file.tmp"), w.path("file")))
		w.holds("file", text(version))
	}
	close(done)
	if err := <-failed; err != nil {
		t.Error(err)
	}
	// As vim does with 'backup': a swap file, the old file under another name, a new one in its place.
	for version := 6; version <= 8; version++ {
		swap, err := os.OpenFile(w.path(".file.swp"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		must(t, err)
		_, err = swap.WriteAt(noise(4096), 0)
		must(t, err)
		must(t, swap.Sync())
		must(t, os.Rename(w.path("file"), w.path("file~")))
		save("file", fresh, text(version))
		w.holds("file", text(version))
		w.holds("file~", text(version-1))
		must(t, swap.Close())
		must(t, os.Remove(w.path(".file.swp")))
		must(t, os.Remove(w.path("file~")))
	}
	command(t, w.Dir, nil, "sed", "-i", "s/version 8/version 9/", "file")
	w.Remount()
	w.read("file", text(9))
	var st syscall.Stat_t
	must(t, syscall.Stat(w.path("file"), &st))
	if st.Mode != syscall.S_IFREG|0o640 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if blobs := w.Blobs(); len(blobs) != 1 {
		t.Errorf("there is %q, want one file", blobs)
	}
}

// A tree like that of a Python virtual environment works: chains of links to programs, a link to a directory, scripts that
// name an interpreter in the tree.
func testLinkTree(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	for _, dir := range []string{"venv/bin", "venv/lib/python3.99/site-packages/pip", "venv/include"} {
		must(t, os.MkdirAll(w.path(dir), 0o755))
	}
	must(t, os.Symlink("/bin/sh", w.path("venv/bin/python3.99"))) // any interpreter will do
	must(t, os.Symlink("python3.99", w.path("venv/bin/python3")))
	must(t, os.Symlink("python3", w.path("venv/bin/python")))
	must(t, os.Symlink("lib", w.path("venv/lib64")))
	w.write("venv/lib64/python3.99/site-packages/pip/main", []byte("echo through a link\n"))
	script := fmt.Sprintf("#!%s\n. %s\n", w.path("venv/bin/python"), w.path("venv/lib64/python3.99/site-packages/pip/main"))
	must(t, os.WriteFile(w.path("venv/bin/pip"), []byte(script), 0o755))
	past := time.Unix(1_000_000_000, 5000)
	stamps := []syscall.Timespec{syscall.NsecToTimespec(past.UnixNano()), syscall.NsecToTimespec(past.UnixNano())}
	must(t, syscall.UtimesNano(w.path("venv/bin/pip"), stamps))
	check := func() {
		t.Helper()
		if out := command(t, w.path("venv/lib64/python3.99"), nil, w.path("venv/bin/pip")); out != "through a link\n" {
			t.Errorf("the script prints %q", out)
		}
		got, err := filepath.EvalSymlinks(w.path("venv/bin/python"))
		must(t, err)
		want, err := filepath.EvalSymlinks("/bin/sh")
		must(t, err)
		if got != want {
			t.Errorf("the chain of links leads to %s, want %s", got, want)
		}
		info, err := os.Stat(w.path("venv/bin/pip"))
		must(t, err)
		if !info.ModTime().Equal(past) {
			t.Errorf("changed at %v, want %v", info.ModTime(), past)
		}
	}
	check()
	w.Remount()
	check()
	must(t, os.Rename(w.path("venv"), w.path("moved")))
	if target, err := os.Readlink(w.path("moved/bin/python")); err != nil || target != "python3" {
		t.Errorf("after a rename the link leads to %q, %v", target, err)
	}
	must(t, os.RemoveAll(w.path("moved")))
	if blobs := w.Blobs(); len(blobs) > 0 {
		t.Errorf("%q are left", blobs)
	}
}
