package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/auth"
	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

func TestRecoverRefuses(t *testing.T) {
	cache := t.TempDir()
	tests := []struct {
		args   []string
		status int
		want   string
	}{
		{nil, exitUsage, "recover takes one of list, save ID PATH"},
		{[]string{"lost"}, exitUsage, "recover takes one of list"},
		{[]string{"list", "X"}, exitUsage, "the form is: blobmount recover list"},
		{[]string{"save", "X"}, exitUsage, "the form is: blobmount recover save ID PATH"},
		{[]string{"retry", ""}, exitUsage, "the form is: blobmount recover retry ID"},
		{[]string{"discard"}, exitUsage, "the form is: blobmount recover discard ID"},
		{[]string{"list", "--yes"}, exitUsage, "--yes means nothing to recover list"},
		{[]string{"retry", "X", "--force"}, exitUsage, "--force means nothing to recover retry"},
		{[]string{"save", "X", "p", "--last-writer-wins"}, exitUsage, "--last-writer-wins means nothing to recover save"},
		{[]string{"discard", "X", "--secret-dir=/s"}, exitUsage, "--secret-dir means nothing to recover discard"},
		{[]string{"list", "--jsn"}, exitUsage, "did you mean --json?"},
		{[]string{"retry", "X", "--account-key=" + planted}, exitUsage, "secrets are not taken as arguments"},
		{[]string{"retry", "X", "--retry-for=1h"}, exitUsage, "--retry-for must be at most 15m"},
		{[]string{"retry", "X", "--anonymous", "--secret-dir=/s"}, exitUsage, "--anonymous uses no credential"},
		{[]string{"list", "--cache-dir="}, exitUsage, "--cache-dir is empty"},
		{[]string{"list", "--cache-dir=" + cache + "/none"}, exitFailure, "cannot read cache directory"},
		{[]string{"save", "ABC", "p", "--cache-dir=" + cache}, exitFailure, "has the id ABC: blobmount recover --cache-dir " + cache + " list"},
		{[]string{"retry", planted, "--cache-dir=" + cache}, exitFailure, "has the id (not shown)"},
		{[]string{"discard", "../../x", "--yes", "--cache-dir=" + cache}, exitFailure, "has the id (not shown)"},
	}
	for _, tt := range tests {
		r := start(t, system{}, nil, append([]string{"blobmount", "recover"}, tt.args...)...)
		if r.status != tt.status || !strings.Contains(r.stderr, tt.want) || strings.Count(r.stderr, "\n") != 1 || strings.Contains(r.stderr, planted) {
			t.Errorf("%q: %+v, want %q", tt.args, r, tt.want)
		}
	}
}

func TestRecoverNothing(t *testing.T) {
	cache := t.TempDir()
	if r := start(t, system{}, nil, "blobmount", "recover", "list", "--cache-dir", cache); r.status != exitOK || r.stdout != "Nothing is left in "+cache+".\n" {
		t.Errorf("%+v", r)
	}
	if r := start(t, system{}, nil, "blobmount", "recover", "--cache-dir", cache, "list", "--json"); r.status != exitOK || r.stdout != "[]\n" {
		t.Errorf("%+v", r)
	}
	// The default directory need not be there: nothing was ever mounted then.
	env := map[string]string{"XDG_CACHE_HOME": cache + "/none"}
	if r := start(t, system{euid: 1000}, env, "blobmount", "recover", "list"); r.status != exitOK || !strings.Contains(r.stdout, cache+"/none/blobmount") {
		t.Errorf("%+v", r)
	}
	if r := start(t, system{}, nil, "blobmount", "recover", "--help"); r.status != exitOK || !strings.Contains(r.stdout, "discard ID") || !strings.Contains(r.stdout, "--last-writer-wins") {
		t.Errorf("%+v", r)
	}
}

func TestRecoverTable(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	var out bytes.Buffer
	err := writeLeft(&out, []blobcache.Left{
		{ID: "AA", State: blobcache.LeftFinished, Container: "https://a.example/data", Name: "dir/x y", Size: 5 << 20, Changed: at},
		{ID: "BBB", State: blobcache.LeftConflict, Reason: "another\nwriter", Container: "https://a.example/data/pre/", Name: "z", Size: 12, Changed: at},
		{ID: "C", State: blobcache.LeftUnreadable, Reason: "no header", Changed: at},
	})
	want := `ID   STATE       SIZE     CHANGED              BLOB                              REASON
AA   finished    5.00MiB  2026-01-02 03:04:05  https://a.example/data/dir/x%20y  -
BBB  conflict    12B      2026-01-02 03:04:05  https://a.example/data/pre/z      another writer
C    unreadable  0B       2026-01-02 03:04:05  -                                 no header

`
	for _, s := range []blobcache.LeftState{blobcache.LeftFinished, blobcache.LeftConflict, blobcache.LeftUnreadable} {
		for _, a := range adviceOn {
			if a.state == s {
				want += s.String() + ": " + a.text + "\n"
			}
		}
	}
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
	// Each state says what to do.
	for s := blobcache.LeftInUse; s <= blobcache.LeftUnreadable; s++ {
		out.Reset()
		if err := writeLeft(&out, []blobcache.Left{{ID: "A", State: s}}); err != nil || !strings.Contains(out.String(), "\n"+s.String()+": ") {
			t.Errorf("%v: %v, %s", s, err, out.String())
		}
	}
}

func TestRecoverRenames(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	var out bytes.Buffer
	err := writeLeftRenames(&out, []blobcache.Rename{
		{Step: blobcache.RenameCopying, InUse: true, Container: "https://a.example/data", From: "a", To: "b", Blobs: 3, Began: at, Journal: "/c/renames/A.journal"},
		{Step: blobcache.RenameDeleting, Container: "https://a.example/data/pre/", From: "x y", To: "d/z", Blobs: 5000, Began: at, Journal: "/c/renames/B.journal"},
		{Step: blobcache.RenameUnreadable, Reason: "no header", Began: at, Journal: "/c/renames/C.journal"},
	})
	want := `Renames of directories that are not finished:
STATE            BEGUN                BLOBS  CONTAINER                    FROM   TO     JOURNAL
copying, in use  2026-01-02 03:04:05  3      https://a.example/data       "a"    "b"    /c/renames/A.journal
deleting         2026-01-02 03:04:05  5000   https://a.example/data/pre/  "x y"  "d/z"  /c/renames/B.journal
unreadable       2026-01-02 03:04:05  0      -                            -      -      /c/renames/C.journal

in use: a mount works on it, and finishes it by itself
deleting: all is under the new name, and some is under the old one too: the next mount deletes that
unreadable: its journal is damaged, or of another version of blobmount: use that version, or compare both names and delete the journal
The next mount is one of the container with this cache directory and without --read-only.
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
	// Each step says what to do.
	for s := blobcache.RenameCopying; s <= blobcache.RenameUnreadable; s++ {
		out.Reset()
		if err := writeLeftRenames(&out, []blobcache.Rename{{Step: s}}); err != nil || !strings.Contains(out.String(), "\n"+s.String()+": ") {
			t.Errorf("%v: %v, %s", s, err, out.String())
		}
	}
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 1023: "1023B", 1024: "1.00KiB", 10 << 10: "10.0KiB", 999 << 10: "999KiB", 1<<20 - 1: "1.00MiB", 100 << 30: "100GiB", 1 << 62: "4096PiB",
	} {
		if got := humanSize(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

// The URL in a journal leads back to the endpoint, the container and the prefix that were mounted.
func TestLocate(t *testing.T) {
	const key = "c2VjcmV0"
	account := map[string]string{"AZURE_STORAGE_ACCOUNT_NAME": "acct1", "AZURE_STORAGE_ACCOUNT_KEY": key}
	keyOnly := map[string]string{"AZURE_STORAGE_ACCOUNT_KEY": key}
	emulator := map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"}
	inDocker := map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "AccountName=devstoreaccount1;AccountKey=" + key + ";BlobEndpoint=http://azurite:10000/devstoreaccount1"}
	tests := []struct {
		of                string
		env               map[string]string
		o                 auth.Options
		endpoint          string
		container, prefix string
		refused           string
	}{
		{of: "https://acct1.blob.core.windows.net/data", env: account, endpoint: "https://acct1.blob.core.windows.net", container: "data"},
		{of: "https://acct1.blob.core.windows.net/data", env: keyOnly, endpoint: "https://acct1.blob.core.windows.net", container: "data"},
		{of: "https://acct1.blob.core.windows.net/data/a/b%20c%3F/", env: account, endpoint: "https://acct1.blob.core.windows.net", container: "data", prefix: "a/b c?/"},
		{of: "https://acct1.blob.core.usgovcloudapi.net/data", env: account, endpoint: "https://acct1.blob.core.usgovcloudapi.net", container: "data"},
		{of: "http://127.0.0.1:10000/devstoreaccount1/data/p/", env: emulator, endpoint: "http://127.0.0.1:10000/devstoreaccount1", container: "data", prefix: "p/"},
		{of: "http://127.0.0.1:4711/devstoreaccount1/data", env: emulator, endpoint: "http://127.0.0.1:4711/devstoreaccount1", container: "data"},
		{of: "http://azurite:10000/devstoreaccount1/data/p/", env: inDocker, endpoint: "http://azurite:10000/devstoreaccount1", container: "data", prefix: "p/"},
		{of: "https://blobs.example.com/data/p/", env: account, o: auth.Options{Endpoint: "https://blobs.example.com"}, endpoint: "https://blobs.example.com", container: "data", prefix: "p/"},
		{of: "https://acct1.blob.core.windows.net/data", env: account, o: auth.Options{Endpoint: "https://acct1.blob.core.windows.net"}, endpoint: "https://acct1.blob.core.windows.net", container: "data"},

		{of: "https://blobs.example.com/data", env: account, refused: "give the --endpoint"},
		{of: "http://azurite.example.com:10000/devstoreaccount1/data", env: emulator, refused: "give the --endpoint"},
		{of: "https://acct1.blob.core.windows.net/data", env: account, o: auth.Options{Account: "other"}, refused: `--account-name says "other"`},
		{of: "https://acct2.blob.core.windows.net/data", env: account, refused: "acct2"},
		{of: "https://acct2.blob.core.windows.net/data", env: account, o: auth.Options{Endpoint: "https://acct1.blob.core.windows.net"}, refused: "the file belongs to https://acct2"},
	}
	for _, tt := range tests {
		tt.o.LookupEnv = func(n string) (string, bool) { v, ok := tt.env[n]; return v, ok }
		got, err := locate(tt.of, tt.o)
		if tt.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tt.refused) || strings.Contains(err.Error(), key) {
				t.Errorf("%s: %+v, %v, want %q", tt.of, got, err, tt.refused)
			}
			continue
		}
		if err != nil || got.found.Endpoint != tt.endpoint || got.container != tt.container || got.prefix != tt.prefix {
			t.Errorf("%s: %+v, %v", tt.of, got, err)
		}
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	content := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	check := func(what, want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		names, derr := os.ReadDir(dir)
		if string(got) != want || err != nil && want != "" || derr != nil || len(names) > 1 {
			t.Errorf("%s: %q, %v; the directory has %v", what, got, err, names)
		}
	}
	if err := writeFile(path, false, func(w io.Writer) error { _ = content("half")(w); return errors.New("broken") }); err == nil || !strings.Contains(err.Error(), "nothing is written") {
		t.Error(err)
	}
	check("failed", "")
	if err := writeFile(path, false, content("one")); err != nil {
		t.Error(err)
	}
	check("new", "one")
	if err := writeFile(path, false, content("two")); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Error(err)
	}
	check("not replaced", "one")
	// Somebody makes it while it is written.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	err := writeFile(path, false, func(io.Writer) error { return os.WriteFile(path, []byte("theirs"), 0o600) })
	if err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Error(err)
	}
	check("made meanwhile", "theirs")
	if err := writeFile(path, true, content("three")); err != nil {
		t.Error(err)
	}
	check("replaced", "three")
	if err := writeFile(dir, true, content("x")); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Error(err)
	}
	if err := writeFile(filepath.Join(dir, "no", "file"), false, content("x")); err == nil || !strings.Contains(err.Error(), "cannot write to") {
		t.Error(err)
	}
}

// recover runs blobmount recover, and returns standard output. It must succeed, unless refused is part of its message.
func (w *world) recover(refused string, args ...string) string {
	w.t.Helper()
	cmd := w.program(append([]string{"recover", "--cache-dir", w.cache}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	status, want := cmd.ProcessState.ExitCode(), exitOK
	if refused != "" {
		want = exitFailure
	}
	if status != want || !strings.Contains(errs.String(), refused) || (refused == "") != (errs.Len() == 0) || strings.Count(errs.String(), "\n") > 1 {
		w.t.Fatalf("recover %q: status %d, %q, want %q", args, status, errs.String(), refused)
	}
	return out.String()
}

// left returns what recover list --json has.
func (w *world) left() []leftJSON {
	w.t.Helper()
	var all []leftJSON
	if err := json.Unmarshal([]byte(w.recover("", "list", "--json")), &all); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// onlyLeft returns the one file that is left, which must be in this state.
func (w *world) onlyLeft(state, name string) leftJSON {
	w.t.Helper()
	all := w.left()
	if len(all) != 1 || all[0].State != state || all[0].Name != name {
		w.t.Fatalf("left are %+v, want one %s, %s", all, name, state)
	}
	return all[0]
}

// lose writes mine to a file that another writer changes to theirs in the meantime.
func (w *world) lose(name, mine, theirs string) {
	w.t.Helper()
	w.put(name, "the version that both have opened")
	f, err := os.OpenFile(filepath.Join(w.mnt, name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := f.WriteString(mine); err != nil {
		w.t.Error(err)
	}
	w.put(name, theirs)
	if err := f.Close(); !errors.Is(err, syscall.ESTALE) {
		w.t.Fatalf("close after another writer: %v", err)
	}
}

// What another writer has overtaken is listed, saved, sent in the end, or discarded, while the mount goes on.
func TestRecoverConflict(t *testing.T) {
	w := newWorld(t)
	lock, _ := w.mount("--blob-cache-timeout=0")
	w.lose("report", "mine", "theirs")
	l := w.onlyLeft("conflict", "report")
	if l.Size != 4 || !strings.Contains(l.Reason, "another writer changed the blob") || !strings.HasSuffix(l.URL, "/data/report") {
		t.Errorf("%+v", l)
	}
	if table := w.recover("", "list"); !strings.Contains(table, l.ID+"  conflict") || !strings.Contains(table, "--last-writer-wins") {
		t.Errorf("%s", table)
	}

	path := filepath.Join(t.TempDir(), "saved")
	w.recover("", "save", l.ID, path)
	if got, err := os.ReadFile(path); err != nil || string(got) != "mine" {
		t.Errorf("saved is %q, %v", got, err)
	}
	w.recover("is there already", "save", l.ID, path)
	w.recover("", "save", l.ID, path, "--force")
	if got := w.recover("", "save", l.ID, "-"); got != "mine" {
		t.Errorf("on standard output: %q", got)
	}
	w.recover("another writer has changed", "retry", l.ID)
	w.holds("report", "theirs")
	w.recover("", "retry", l.ID, "--last-writer-wins")
	w.holds("report", "mine")
	if p, err := w.store.Properties("report", blob.Condition{}); err != nil || p.Metadata["mtime"] == "" {
		t.Errorf("sent without the time of the last write: %+v, %v", p, err)
	}
	if all := w.left(); len(all) != 0 {
		t.Errorf("still left: %+v", all)
	}

	w.lose("other", "mine too", "theirs too")
	l = w.onlyLeft("conflict", "other")
	w.recover("give --yes to delete them", "discard", l.ID)
	w.onlyLeft("conflict", "other")
	w.recover("", "discard", l.ID, "--yes")
	if all := w.left(); len(all) != 0 {
		t.Errorf("still left: %+v", all)
	}
	w.holds("other", "theirs too")
	if status, text := w.do("unmount", w.mnt); status != exitOK || text != "" {
		t.Errorf("unmount: %d, %q", status, text)
	}
	w.ended(lock)
}

// A file that was open when its daemon was killed is kept: all of it can be saved and sent.
func TestRecoverUnfinished(t *testing.T) {
	w := newWorld(t)
	w.put("old", strings.Repeat("0123456789", 1000))
	lock, pid := w.mount("--block-size=1MiB")
	want := map[string][]byte{}
	var open []*os.File
	for name, mode := range map[string]int{"new": os.O_CREATE | os.O_WRONLY, "old": os.O_WRONLY} {
		f, err := os.OpenFile(filepath.Join(w.mnt, name), mode, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // of a test that failed
		open = append(open, f)
		part := bytes.Repeat([]byte(name+"!"), 700_000)
		if name == "old" { // some of it stays as it was
			part = []byte("changed")
			want[name] = []byte(strings.Repeat("0123456789", 1000))
			copy(want[name][5000:], part)
		} else {
			want[name] = append(make([]byte, 5000), part...)
		}
		if _, err := f.WriteAt(part, 5000); err != nil {
			t.Fatal(err)
		}
	}
	// No program may be started before: its copies of the files are closed as it begins, which commits them.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitForEnd(lock); err != nil {
		t.Fatal(err)
	}
	_ = syscall.Flock(int(lock.Fd()), syscall.LOCK_UN)
	for _, f := range open {
		if err := f.Close(); err == nil {
			t.Error("close succeeds after the kill")
		}
	}
	if status, text := w.do("unmount", w.mnt); status != exitOK || text != "" {
		t.Fatalf("unmount: %d, %q", status, text)
	}

	all := w.left()
	if len(all) != len(want) {
		t.Fatalf("%+v", all)
	}
	for _, l := range all {
		if l.State != "unfinished" || l.Size != int64(len(want[l.Name])) || l.PID != pid {
			t.Errorf("%+v", l)
		}
		path := filepath.Join(t.TempDir(), "saved")
		w.recover("", "save", l.ID, path)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want[l.Name]) {
			t.Errorf("%s was not saved byte by byte: %d bytes, %v", l.Name, len(got), err)
		}
		w.recover("", "retry", l.ID)
		w.holds(l.Name, string(want[l.Name]))
	}
	if all := w.left(); len(all) != 0 {
		t.Errorf("still left: %+v", all)
	}
}

// Without a credential the bytes that are here can be saved, and nothing is sent.
func TestRecoverWithoutCredential(t *testing.T) {
	w := newWorld(t)
	lock, _ := w.mount("--blob-cache-timeout=0")
	w.lose("report", "mine", "theirs")
	l := w.onlyLeft("conflict", "report")
	w.connection = ""
	if got := w.recover("", "save", l.ID, "-"); got != "mine" {
		t.Errorf("%q", got)
	}
	w.recover("no account key, SAS token or connection string was found", "retry", l.ID)
	w.onlyLeft("conflict", "report")
	if err := syscall.Unmount(w.mnt, 0); err != nil {
		t.Fatal(err)
	}
	w.ended(lock)
}

// What was saved and may not be what was written is a warning, one line for each reason.
func TestSaveWarns(t *testing.T) {
	for _, tc := range []struct {
		left     blobcache.Left
		unproven int64
		want     []string // in each line
	}{
		{blobcache.Left{ID: "X", State: blobcache.LeftFinished}, 0, nil},
		{blobcache.Left{ID: "X", State: blobcache.LeftFinished}, 70, []string{"nothing proves 70 of the saved bytes"}},
		{blobcache.Left{ID: "X", State: blobcache.LeftDamaged, Reason: "bytes 0 to 9"}, 0, []string{"is damaged: bytes 0 to 9"}},
		{blobcache.Left{ID: "X", State: blobcache.LeftDamaged, Reason: "bytes 0 to 9"}, 5, []string{"is damaged", "nothing proves 5"}},
	} {
		var errs bytes.Buffer
		c := &recoverCommand{process: process{stderr: &errs}, cacheDir: "/cache"}
		c.warn(tc.left, tc.unproven)
		lines := strings.SplitAfter(errs.String(), "\n")
		if len(lines) != len(tc.want)+1 {
			t.Fatalf("%+v, %d: %q, want %d lines", tc.left, tc.unproven, lines, len(tc.want))
		}
		for i, want := range tc.want {
			if !strings.HasPrefix(lines[i], "blobmount: warning: ") || !strings.Contains(lines[i], want) {
				t.Errorf("%+v, %d: %q, want %q", tc.left, tc.unproven, lines[i], want)
			}
		}
	}
}
