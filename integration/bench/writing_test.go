package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/integration/blobserver"
)

// The properties of writes are looked at on real mounts, and say what moved. Whether they hold is what they are for.
func TestSmallWrites(t *testing.T) {
	needsMounts(t)
	t.Chdir("../..")
	var out bytes.Buffer
	err := run(t.Context(), []string{"--scale=0.001", "--runs=1", "--workloads=^(write-|copy-in-mount)", "--dir", t.TempDir()}, &out, io.Discard)
	if err != nil && !errors.Is(err, errMissed) {
		t.Fatal(err)
	}
	for _, row := range []string{
		"write 4 MiB in order, one writer, 20 ms a request", "write 4 MiB in order, one writer, `lan`", "close 10 files of 4 KiB",
		"written through a mount: most of 3 changes: uploaded", "in blocks of 4 MiB: most of 3 changes: uploaded",
		"by one Put Blob: most of 3 changes: uploaded", "cp of 10 MiB within the mount: bytes of the file moved",
	} {
		if strings.Count(out.String(), row) != 1 {
			t.Errorf("no row %q", row)
		}
	}
	checkCeiling(t, out.String(), "one writer, `lan`", "a plain file, of the same bare program")
	if strings.Contains(out.String(), "write requests") {
		t.Errorf("more than 50 requests beside those of ten files:\n%s", out.String())
	}
}

// startService starts a service as the workloads use it, in this process.
func startService(t *testing.T) (*service, *blobserver.Server) {
	t.Helper()
	server, err := blobserver.Start(blobserver.Options{Anonymous: true, Containers: []string{container}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return &service{connection: server.ConnectionString(), url: server.URL()}, server
}

// A writer writes what its file's name decides, in order, over what was there.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	files := []file{{Path: filepath.Join(dir, "a"), Name: "a", Size: 10_000}, {Path: filepath.Join(dir, "b"), Name: "b"}}
	if err := os.WriteFile(files[0].Path, make([]byte, 20_000), 0o600); err != nil {
		t.Fatal(err)
	}
	_, r, err := runTasks(t.Context(), nil, task{Op: opWrite, Files: files, Block: 4 << 10})
	if want := (result{Bytes: 10_000, Reads: 2}); err != nil || r != want {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, f := range files {
		want := make([]byte, f.Size)
		blobserver.SyntheticContent(f.Name)(want, 0)
		if got, err := os.ReadFile(f.Path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has other content, %v", f.Name, err)
		}
	}
	files[1].Path = filepath.Join(dir, "missing", "b")
	if _, _, err := runTasks(t.Context(), nil, task{Op: opWrite, Files: files, Block: 4 << 10}); err == nil {
		t.Error("a directory that is missing is no error")
	}
}

// The references upload what the names decide, and verify finds it and deletes it.
func TestUpload(t *testing.T) {
	s, server := startService(t)
	set := blobserver.Synthetic{Container: container, Prefix: "up/", Count: 20, Size: 3<<20 + 100}
	for op, want := range map[string]map[string]int64{
		opUpload: {"PutBlock": 80, "PutBlockList": 20},
		opPut:    {"PutBlob": 20},
	} {
		server.ResetStats()
		x := task{Op: op, Connection: s.connection, Files: s.blobs(set), Block: 1 << 20, Threads: 3}
		if _, r, err := runTasks(t.Context(), nil, x); err != nil || r.Bytes != 20*set.Size || r.Reads != 20 {
			t.Fatalf("%s: %+v, %v", op, r, err)
		}
		var m measure
		m.count(server.Stats())
		if m.requests != m.writes || m.blocks != want["PutBlock"] || m.writes != want["PutBlob"]+want["PutBlock"]+want["PutBlockList"] || m.uploaded < 20*set.Size {
			t.Errorf("%s: %+v", op, m)
		}
		if err := (writing{size: set.Size}).verify(t.Context(), s, x.Files); err != nil {
			t.Errorf("%s: %v", op, err)
		}
		if n := server.Store(container).Len(); n != 0 {
			t.Errorf("%s: %d blobs are left", op, n)
		}
	}
	if err := (writing{}).verify(t.Context(), s, s.blobs(set)); err == nil {
		t.Error("blobs that are not there are no error")
	}
}

// Reading changes nothing, and is not counted as writing.
func TestCountWrites(t *testing.T) {
	s, server := startService(t)
	if err := s.compare(t.Context(), "missing", 1, nil, span{0, 1}); err == nil {
		t.Error("a missing blob is no error")
	}
	var m measure
	m.count(server.Stats())
	if m.requests != 1 || m.writes != 0 || !m.counted {
		t.Errorf("%+v", m)
	}
}

// Blobs as other tools make them: out of blocks with long ids, and without any.
func TestForeignBlobs(t *testing.T) {
	s, server := startService(t)
	set := blobserver.Synthetic{Container: container, Prefix: "source", Count: 1, Size: 10<<20 + 1}
	if err := server.AddSynthetic(set); err != nil {
		t.Fatal(err)
	}
	name := set.Name(0)
	if err := errors.Join(s.compose(t.Context(), "blocks", name, set.Size, foreignBlock), s.duplicate(t.Context(), "whole", name)); err != nil {
		t.Fatal(err)
	}
	for copied, want := range map[string]int{"blocks": 3, "whole": 0} {
		if err := s.compare(t.Context(), copied, set.Size, blobserver.SyntheticContent(name), samples(set.Size)...); err != nil {
			t.Error(err)
		}
		list, err := server.Store(container).Blocks(copied)
		if err != nil || len(list.Committed) != want || want > 0 && len(list.Committed[0].ID) != 48 {
			t.Errorf("%s: %+v, %v", copied, list, err)
		}
	}
}

// One of the changes lies across the end of a block, whatever the scale, and none leaves the blob.
func TestChangePlaces(t *testing.T) {
	for _, n := range []int64{changedLeast, 102 << 20, changedSize} {
		across := 0
		for _, off := range changePlaces(n) {
			if off < 0 || off+change > n {
				t.Errorf("%d of %d", off, n)
			}
			if off/uploadBlock != (off+change-1)/uploadBlock {
				across++
			}
		}
		if across != 1 {
			t.Errorf("a blob of %d: %d changes across the end of a block", n, across)
		}
	}
}

// A change that did not arrive, arrived elsewhere, or spoiled its neighbours is found.
func TestCompareFindsWrongChanges(t *testing.T) {
	s, server := startService(t)
	set := blobserver.Synthetic{Container: container, Prefix: "source", Count: 1, Size: 1 << 20}
	c, places := changed{name: "changed"}, []int64{100 << 10, 500<<10 - 7}
	put := func(spoil func(p []byte)) error {
		body := make([]byte, set.Size)
		c.content(set, places)(body, 0)
		spoil(body)
		if _, err := server.Store(container).Put(c.name, body, blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		return s.compare(context.Background(), c.name, set.Size, c.content(set, places), around(places, set.Size)...)
	}
	if err := put(func([]byte) {}); err != nil {
		t.Error(err)
	}
	old := make([]byte, set.Size)
	blobserver.SyntheticContent(set.Name(0))(old, 0)
	for what, spoil := range map[string]func(p []byte){
		"unchanged":           func(p []byte) { copy(p, old) },
		"one is missing":      func(p []byte) { copy(p[places[1]:][:change], old[places[1]:]) },
		"a neighbour":         func(p []byte) { p[places[1]+change]++ },
		"the neighbour below": func(p []byte) { p[places[0]-1]++ },
		"the end":             func(p []byte) { p[len(p)-1]++ },
	} {
		if err := put(spoil); err == nil || !strings.Contains(err.Error(), "wrong bytes") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.compare(t.Context(), c.name, set.Size+1, c.content(set, places), span{0, 1}); err == nil {
		t.Error("another size is no error")
	}
}
