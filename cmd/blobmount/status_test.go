package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/fs"
	"blobmount/integration/blobserver"
)

func TestStatusRefuses(t *testing.T) {
	sys := fakeSystem(t, 0)
	other, plain := t.TempDir(), t.TempDir()
	addMount(t, sys, other, "fuse.sshfs", "host:")
	addMount(t, sys, plain, "fuse.blobmount", "az://data") // of which the directory knows nothing
	tests := []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"a", "b"}, exitUsage, "status takes one MOUNTPOINT"},
		{[]string{""}, exitUsage, "status takes one MOUNTPOINT"},
		{[]string{"--jsn"}, exitUsage, "did you mean --json?"},
		{[]string{t.TempDir()}, exitFailure, "is not mounted"},
		{[]string{other}, exitFailure, other + " is not a blobmount mount but fuse.sshfs from host:"},
		{[]string{plain}, exitFailure, "does not tell its status: it is of another version"},
	}
	for _, tt := range tests {
		r := start(t, sys, nil, append([]string{"blobmount", "status"}, tt.args...)...)
		if r.status != tt.status || !strings.Contains(r.stderr, tt.want) || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
			t.Errorf("%q: %+v, want %q", tt.args, r, tt.want)
		}
	}
	// Of several mounts, one that does not answer is listed with the reason.
	r := start(t, sys, nil, "blobmount", "status")
	if r.status != exitOK || !strings.HasPrefix(r.stdout, plain+"\n  ") || !strings.Contains(r.stdout, "of another version") || strings.Contains(r.stdout, "sshfs") {
		t.Errorf("%+v", r)
	}
	if r := start(t, fakeSystem(t, 0), nil, "blobmount", "status"); r.status != exitOK || r.stdout != "There is no blobmount mount on this machine.\n" {
		t.Errorf("%+v", r)
	}
	if r := start(t, fakeSystem(t, 0), nil, "blobmount", "status", "--json"); r.status != exitOK || r.stdout != "[]\n" {
		t.Errorf("%+v", r)
	}
}

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := fs.Status{
		Version: "v1", PID: 7, Source: "az://data", Account: "acct1",
		Credential: fs.Credential{Origin: "SAS token from secret file /s/sas_token", Since: now.Add(-time.Hour), Read: now.Add(-2 * time.Second),
			Expires: new(now.Add(90 * time.Second)), Problem: "the service refuses it"},
		CacheDir: "/c", BlobCacheTimeout: "60", WriteBack: "close", Open: "files", Passthrough: true, Memory: 64 << 20,
		CacheSize: 1 << 30, CacheUsed: 1 << 20, Evicted: 3, Nodes: 12345, Hidden: 2, Names: 5000, Directories: 7, NamesUsed: 1 << 20, NamesMemory: 64 << 20, UnsavedFiles: 103, UnsavedBytes: 5000,
		Unsaved: []fs.Unsaved{
			{Name: "a\tb", Bytes: 10, Since: now.Add(-90 * time.Second), Acked: true, Error: "ServerBusy"},
			{Name: "c", Bytes: 2048, Since: now.Add(-time.Second), Open: true},
			{Name: "d", Bytes: 1, Since: now, Lost: true},
		},
		UnfinishedRenames: 3,
		Renames: []fs.Rename{
			{From: "a b", To: "c", State: "deleting", Blobs: 70, Began: now.Add(-time.Hour), Error: "blob is leased"},
			{From: "d", To: "e", State: "copying", Blobs: 5000, Began: now.Add(-time.Second), Active: true},
		},
	}
	var out bytes.Buffer
	if err := writeStatus(&out, []mountStatus{{MountPoint: "/mnt", Status: &s}, {MountPoint: "/dead", Error: "it is dead"}}, now); err != nil {
		t.Fatal(err)
	}
	want := `/mnt  from az://data
  daemon       process 7, version v1
  account      acct1, by the SAS token from secret file /s/sas_token
  credential   in use since ` + now.Add(-time.Hour).Local().Format(time.DateTime) + `, last read 2s ago, expires in 1m30s
               the service refuses it
  writes       close waits for the local disk, fsync for the service (--write-back)
  opens        files, passthrough on
  names known  60 s
  names        5000 in 7 directories, 1.00MiB of 64.0MiB; 12345 nodes
  cache        1.00MiB of 1.00GiB in /c, 3 evicted
  memory       at most 64.0MiB
  not shown    2 blobs, whose names no path can express
  not saved    103 files, 4.88KiB
    "a\tb"  10B      for 1m30s  closed, on the local disk: ServerBusy
    "c"     2.00KiB  for 1s     open
    "d"     1B       for 0s     changed by another writer
    and 100 more
  Leave it mounted: what is closed is tried again until the service takes it. What remains at an unmount is kept in /c.
  Another writer was faster for some: when they are closed, see blobmount recover --cache-dir /c list
  renames of directories that are not finished: 3
    "a b"  to "c"  for 1h  70 blobs    deleting, nobody works on it: blob is leased
    "d"    to "e"  for 1s  5000 blobs  copying
    and 1 more
  What nobody works on is finished by the next mount of az://data with --cache-dir /c and without --read-only.

/dead
  it is dead
`
	if got := out.String(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	s.UnsavedFiles, s.Renames = 0, s.Renames[1:]
	out.Reset()
	if err := writeStatus(&out, []mountStatus{{MountPoint: "/mnt", Status: &s}}, now); err != nil ||
		!strings.Contains(out.String(), "nothing\n  renames") || !strings.Contains(out.String(), "Leave it mounted: they end by themselves.\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if got := credentialText(s.Credential, now.Add(time.Hour)); !strings.HasSuffix(got, "EXPIRED 58m30s ago") {
		t.Errorf("after the end: %s", got)
	}
}

// status returns what status --json says of the mount.
func (w *world) status() fs.Status {
	w.t.Helper()
	cmd := w.program("status", "--json", w.mnt)
	text, err := cmd.Output()
	var all []mountStatus
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) != 1 || all[0].Status == nil || all[0].MountPoint != w.mnt {
		w.t.Fatalf("status: %s, %v", text, err)
	}
	return *all[0].Status
}

// A file that was closed during an outage is named: by status, by recover list, by unmount. The next mount sends it.
func TestOutageWithWriteBack(t *testing.T) {
	w := newWorld(t)
	lock, pid := w.mount("--write-back", "--write-back-delay=0", "--retry-for=0", "--memory=40MiB")
	if s := w.status(); s.PID != pid || s.WriteBack != "close" || s.Source != "az://data" || s.CacheDir != w.cache || s.UnsavedFiles != 0 ||
		s.Memory != 40<<20 || s.BlobCacheTimeout != "60" || !strings.Contains(s.Credential.Origin, "AZURE_STORAGE_CONNECTION_STRING") {
		t.Errorf("%+v", s)
	}
	if _, err := os.ReadDir(w.mnt); err != nil {
		t.Fatal(err)
	}
	w.server.AddFault(blobserver.Fault{Action: blobserver.Refuse, Status: 503, Code: "ServerBusy"})
	if err := os.WriteFile(filepath.Join(w.mnt, "report"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	var s fs.Status
	for s.UnsavedFiles == 0 || s.Unsaved[0].Error == "" { // the test's own bound ends it
		s = w.status()
	}
	u := s.Unsaved[0]
	if s.UnsavedFiles != 1 || s.UnsavedBytes != 7 || u.Name != "report" || u.Bytes != 7 || !u.Acked || u.Open || u.Lost || !strings.Contains(u.Error, "ServerBusy") {
		t.Errorf("%+v", s)
	}
	text, err := w.program("status").Output() // of all mounts of the machine
	if err != nil || !strings.Contains(string(text), w.mnt+"  from az://data\n") || !strings.Contains(string(text), `"report"`) ||
		!strings.Contains(string(text), "Leave it mounted") {
		t.Errorf("%s, %v", text, err)
	}
	if l := w.onlyLeft("in use", "report"); l.ID != u.ID {
		t.Errorf("%+v, and status has %s", l, u.ID)
	}
	w.recover("a mount still works with "+u.ID, "discard", u.ID, "--yes")

	code, message := w.do("unmount", w.mnt)
	want := fmt.Sprintf(`not saved in the service yet: 1 file ("report"); they are kept on the local disk, and the next mount of az://data with --cache-dir %s sends them`, w.cache)
	if code != exitFailure || !strings.Contains(message, want) || strings.Count(message, "\n") != 1 {
		t.Errorf("unmount: %d, %q, want %q", code, message, want)
	}
	w.ended(lock)
	if log := w.log(); !strings.Contains(log, "not saved in the service yet: 1 file") || !strings.Contains(log, "cause=") {
		t.Errorf("%s", log)
	}
	w.onlyLeft("finished", "report")
	w.recover(u.ID+" is not sent, and still kept: ", "retry", u.ID, "--retry-for=0")
	w.onlyLeft("finished", "report")

	w.server.ClearFaults()
	lock, _ = w.mount("--write-back")
	w.holds("report", "content")
	if s := w.status(); s.UnsavedFiles != 0 {
		t.Errorf("%+v", s)
	}
	if err := syscall.Unmount(w.mnt, 0); err != nil {
		t.Fatal(err)
	}
	w.ended(lock)
}
