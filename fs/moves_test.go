package fs

import (
	"context"
	"errors"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

func TestWithin(t *testing.T) {
	for path, want := range map[string]bool{"a/b": true, "a/b/c": true, "a": false, "a/bc": false, "a/": false, "": false} {
		if within(path, "a/b") != want {
			t.Errorf("%q within a/b: want %v", path, want)
		}
	}
}

func fixed(paths ...string) func() ([]string, error) {
	return func() ([]string, error) { return paths, nil }
}

// TestMoves: changes and renames of directories wait for each other where they meet, and nowhere else.
func TestMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m moves
		ctx := t.Context()
		begin := func(what func(context.Context, func() ([]string, error)) (func(), error), paths ...string) chan func() {
			began := make(chan func(), 1)
			go func() {
				end, err := what(ctx, fixed(paths...))
				if err != nil {
					t.Error(err)
				}
				began <- end
			}()
			synctest.Wait()
			return began
		}
		waits := func(what string, began chan func(), want bool) {
			t.Helper()
			synctest.Wait()
			if (len(began) == 0) != want {
				t.Fatalf("%s: waits %v, want %v", what, !want, want)
			}
		}
		change := begin(m.change, "a/x")
		move := begin(m.move, "a", "b")
		waits("a rename for a change below that is under way", move, true)
		second := begin(m.change, "a/y")
		waits("a change that comes later", second, true)
		beside := begin(m.change, "c/x", "ab")
		waits("a change elsewhere", beside, false)
		(<-beside)()
		(<-change)()
		waits("a rename when that has ended", move, false)
		target := begin(m.change, "f", "b/x")
		waits("a change in the target", target, true)
		inner := begin(m.move, "a/d", "e")
		waits("a rename of a directory below", inner, true)
		outer := begin(m.move, "c", "d")
		waits("a rename elsewhere", outer, false)

		settled := make(chan error, 1)
		go func() { settled <- m.settled(ctx, func() string { return "a/x" }) }()
		synctest.Wait()
		if len(settled) != 1 || <-settled != nil {
			t.Fatal("a lookup waits though nothing is being deleted")
		}
		m.leave("a")
		path := "a/x"
		go func() { settled <- m.settled(ctx, func() string { return path }) }()
		synctest.Wait()
		if len(settled) != 0 || m.settled(ctx, func() string { return "a" }) != nil || m.settled(ctx, func() string { return "b/x" }) != nil {
			t.Fatal("not that lookup waits which should")
		}
		(<-move)()
		synctest.Wait()
		if len(settled) != 1 || m.leaving.Load() != 0 {
			t.Fatal("a lookup waits for ever")
		}
		waits("a change after the rename", second, false)
		waits("a change in the target after the rename", target, false)
		waits("a rename below, for the change there", inner, false)
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := m.change(cancelled, fixed("c/x")); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		for _, began := range []chan func(){second, target, inner, outer} {
			(<-began)()
		}
		if len(m.changes)+len(m.moving) > 0 {
			t.Errorf("left: %v, %v", m.changes, m.moving)
		}
	})
}

// holdCopies lets copies to a name wait until release is called.
func (k *kernel) holdCopies(name string) (release func()) {
	wait := make(chan struct{})
	faults := blobtest.NewFaults(k.fs.cont)
	faults.Add(blobtest.Fault{Op: "Copy", Name: name, Wait: wait})
	k.fs.cont = faults
	return func() { close(wait) }
}

// waits reports whether somebody waits.
func waits(m *moves) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended != nil
}

func (k *kernel) rename(dir uint64, from, to string) fuse.Status {
	return k.fs.Rename(nil, &fuse.RenameIn{InHeader: header(dir), Newdir: dir}, from, to)
}

// TestChangesWaitForRename: what is opened for reading while a directory is renamed goes on under its new name, what is
// made, opened for writing or removed there waits, and acts under the new name.
func TestChangesWaitForRename(t *testing.T) {
	k := newKernel(t, -1)
	for _, name := range []string{"d/read", "d/written", "d/removed", "d/z"} {
		k.put(name, name)
	}
	d := k.lookup(fuse.FUSE_ROOT_ID, "d")
	read, written := k.lookup(d, "read"), k.lookup(d, "written")
	release := k.holdCopies("e/z")
	renamed := make(chan fuse.Status)
	go func() { renamed <- k.rename(fuse.FUSE_ROOT_ID, "d", "e") }()
	for k.trace.Count("Copy") < 3 { // all but the one that waits
		runtime.Gosched()
	}
	readFh, s := k.open(read, syscall.O_RDONLY)
	if s != fuse.OK {
		t.Fatal(s)
	}
	type opened struct {
		id, fh uint64
		s      fuse.Status
	}
	writing, creating, unlinking := make(chan opened), make(chan opened), make(chan fuse.Status)
	go func() {
		fh, s := k.open(written, syscall.O_WRONLY)
		writing <- opened{written, fh, s}
	}()
	go func() {
		h := header(d)
		unlinking <- k.fs.Unlink(nil, &h, "removed")
	}()
	go func() {
		in := fuse.CreateIn{InHeader: header(d), Flags: syscall.O_WRONLY | syscall.O_CREAT, Mode: 0o644}
		var out fuse.CreateOut
		s := k.fs.Create(nil, &in, "new", &out)
		creating <- opened{out.NodeId, out.Fh, s}
	}()
	for !waits(&k.fs.moves) { // at least one waits; the others come sooner or later
		runtime.Gosched()
	}
	release()
	if s := <-renamed; s != fuse.OK {
		t.Fatal(s)
	}
	w, n := <-writing, <-creating
	if s := <-unlinking; s != fuse.OK || w.s != fuse.OK || n.s != fuse.OK {
		t.Fatal(s, w.s, n.s)
	}
	for _, o := range []opened{w, n} {
		if s := k.write(o.id, o.fh, 0, []byte("late")); s != fuse.OK {
			t.Error(s)
		}
		if s := k.close(o.id, o.fh); s != fuse.OK {
			t.Errorf("close: %v", s)
		}
	}
	if s := k.close(read, readFh); s != fuse.OK {
		t.Error(s)
	}
	for name, want := range map[string]string{
		"e/read": "d/read", "e/written": "lateitten", "e/new": "late", "e/z": "d/z", "e/removed": "",
		"d/read": "", "d/written": "", "d/new": "", "d/z": "", "d/removed": "",
	} {
		if got := k.get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// What was opened for reading can be opened for writing now, and its close finds its blob.
	fh, s := k.open(read, syscall.O_WRONLY)
	if s != fuse.OK || k.write(read, fh, 0, []byte("R")) != fuse.OK || k.close(read, fh) != fuse.OK {
		t.Error("not writable")
	}
	if got := k.get("e/read"); got != "R/read" {
		t.Errorf("got %q", got)
	}
	if k.lookup(fuse.FUSE_ROOT_ID, "d") != 0 || k.lookup(fuse.FUSE_ROOT_ID, "e") != d {
		t.Error("the names are not those of after the rename")
	}
}

// TestRenameDirErrors: what a program gets, and what is where then.
func TestRenameDirErrors(t *testing.T) {
	k := newKernel(t, -1)
	k.put("d/x", "1")
	k.put("full/x", "2")
	k.put("file", "3")
	empty, s := k.mkdir(fuse.FUSE_ROOT_ID, "empty")
	if s != fuse.OK {
		t.Fatal(s)
	}
	d := k.lookup(fuse.FUSE_ROOT_ID, "d")
	id, fh, s := k.create(empty, "new", 0) // the service does not have it
	if s != fuse.OK {
		t.Fatal(s)
	}
	for to, want := range map[string]syscall.Errno{"full": syscall.ENOTEMPTY, "empty": syscall.ENOTEMPTY, "file": syscall.ENOTDIR} {
		if s := k.rename(fuse.FUSE_ROOT_ID, "d", to); s != fuse.Status(want) {
			t.Errorf("to %s: %v, want %v", to, s, want)
		}
	}
	if s := k.fs.Rename(nil, &fuse.RenameIn{InHeader: header(fuse.FUSE_ROOT_ID), Newdir: d}, "d", "below"); s != fuse.EINVAL {
		t.Errorf("into itself: %v", s)
	}
	if s := k.close(id, fh); s != fuse.OK {
		t.Error(s)
	}

	faults := blobtest.NewFaults(k.fs.cont)
	k.fs.cont = faults
	faults.Add(blobtest.Fault{Op: "Delete", Name: "d/x", Err: &blob.Error{Code: blob.Leased}})
	if s := k.rename(fuse.FUSE_ROOT_ID, "d", "e"); s != fuse.Status(syscall.EBUSY) {
		t.Errorf("with a source that cannot be deleted: %v", s)
	}
	if k.get("d/x") != "1" || k.get("e/x") != "1" {
		t.Error("a file is lost")
	}
	if e := k.lookup(fuse.FUSE_ROOT_ID, "e"); e == 0 || k.lookup(e, "x") == 0 {
		t.Error("not under the new name")
	}
	if old := k.lookup(fuse.FUSE_ROOT_ID, "d"); old == 0 || old == d {
		t.Error("what is left is not under the old name")
	}
	faults.Clear()
	if err := k.fs.recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if k.get("d/x") != "" || k.get("e/x") != "1" || k.lookup(fuse.FUSE_ROOT_ID, "d") != 0 {
		t.Error("not finished")
	}
}

// TestListDuringRename: while names are being deleted by a rename, a listing that is known from before gives no attributes:
// an open of such a node would be of a version that is gone.
func TestListDuringRename(t *testing.T) {
	k := newKernel(t, -1)
	k.put("d/x", "1")
	d := k.lookup(fuse.FUSE_ROOT_ID, "d")
	shown := func() bool {
		var out fuse.OpenOut
		if s := k.fs.OpenDir(nil, &fuse.OpenIn{InHeader: header(d)}, &out); s != fuse.OK {
			t.Fatal(s)
		}
		defer k.fs.ReleaseDir(&fuse.ReleaseIn{InHeader: header(d), Fh: out.Fh})
		list := fuse.NewDirEntryList(make([]byte, 4096), 0)
		if s := k.fs.ReadDirPlus(nil, &fuse.ReadIn{InHeader: header(d), Fh: out.Fh, Size: 4096}, list); s != fuse.OK {
			t.Fatal(s)
		}
		return k.fs.nodes.at(k.nodes[d], "x") != nil
	}
	end, err := k.fs.moves.move(t.Context(), fixed("d", "e"))
	if err != nil {
		t.Fatal(err)
	}
	k.fs.moves.leave("d")
	if shown() {
		t.Error("there is a node for a name that is being deleted")
	}
	end()
	if !shown() {
		t.Error("no node after the rename")
	}
}
