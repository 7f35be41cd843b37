package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/integration/blobserver"
	"blobmount/integration/crash"
	"blobmount/integration/mounttest"
)

// renameBench is a mount with one directory of many files, over a service that takes its time.
type renameBench struct {
	*world
	server *blobserver.Server
	link   *crash.Link
	files  int
	at     string // the name that the directory has, "one" or "two"
}

// renameLatency is that of each request.
const renameLatency = 10 * time.Millisecond

func newRenameBench(t *testing.T) *renameBench {
	t.Helper()
	mounttest.NeedFUSE(t)
	s := mounttest.Embedded(t)
	link := newLink(t, s)
	container := s.NewContainer(t)
	b := &renameBench{world: &world{s.Via(link.Address()).NewPoint(t, container), container, t}, server: s.Embedded, link: link, files: 200, at: "one"}
	if mounttest.Long() {
		b.files = 2000
	}
	for i := range b.files {
		b.Put(b.at+"/"+renamedName(i), renamedContent(i))
	}
	s.Embedded.SetShape(blobserver.Shape{Latency: renameLatency})
	t.Cleanup(func() { s.Embedded.SetShape(blobserver.Shape{}) })
	b.mount()
	return b
}

// renamedName is below an implied directory for every third file.
func renamedName(i int) string {
	if i%3 == 0 {
		return fmt.Sprintf("sub%d/%d", i%7, i)
	}
	return fmt.Sprint(i)
}

func renamedContent(i int) []byte { return []byte(strings.Repeat(fmt.Sprint(i), 100)) }

func (b *renameBench) mount() { b.Mount("--log-level=info") }

// other returns the name that the directory does not have.
func (b *renameBench) other() string {
	if b.at == "one" {
		return "two"
	}
	return "one"
}

// judge checks that each file is in exactly one place, all in the same directory, in the service and on the mount.
func (b *renameBench) judge() {
	b.t.Helper()
	var want []string
	names := b.Blobs()
	for _, at := range []string{"one", "two"} {
		want = want[:0]
		for i := range b.files {
			want = append(want, at+"/"+renamedName(i))
		}
		if slices.Sort(want); slices.Equal(names, want) {
			b.at = at
			for _, i := range []int{0, b.files / 2, b.files - 1} {
				b.holds(at+"/"+renamedName(i), renamedContent(i))
				b.read(at+"/"+renamedName(i), renamedContent(i))
			}
			if _, err := os.Stat(b.path(b.other())); !errors.Is(err, os.ErrNotExist) {
				b.t.Errorf("%s on the mount: %v", b.other(), err)
			}
			return
		}
	}
	b.t.Fatalf("%d blobs, of %d files: %.2000q", len(names), b.files, names)
}

// A directory is renamed by parallel copies and deletions in the service: three requests for each blob, one page of the
// listing for each 5,000, and a few for the directory itself.
func TestMountRenameLarge(t *testing.T) {
	b := newRenameBench(t)
	before := b.server.Stats().Total()
	began := time.Now()
	must(t, os.Rename(b.path("one"), b.path("two")))
	took := time.Since(began)
	requests := b.server.Stats().Total() - before
	t.Logf("%d files at %v a request: %v, %d requests", b.files, renameLatency, took.Round(time.Millisecond), requests)
	if most := int64(3*b.files + 20); requests > most {
		t.Errorf("%d requests, want at most %d", requests, most)
	}
	if mounttest.Long() && took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if b.judge(); b.at != "two" {
		t.Error("nothing was renamed")
	}
}

// "An interrupted rename of a directory is finished by the next mount": whenever the daemon is killed.
func TestMountRenameKilled(t *testing.T) {
	b := newRenameBench(t)
	kills := 4
	if mounttest.Long() {
		kills = 20
	}
	began := time.Now()
	must(t, os.Rename(b.path(b.at), b.path(b.other())))
	whole := time.Since(began)
	b.judge()
	interrupted, forward := 0, 0
	for i := range kills {
		old := b.at
		done := make(chan error)
		go func() { done <- os.Rename(b.path(old), b.path(b.other())) }()
		// The moment of the kill is random, and what makes the test: nothing is waited for.
		time.Sleep(time.Duration((float64(i) + rand.Float64()) / float64(kills) * float64(whole)))
		b.Signal(syscall.SIGKILL)
		err := <-done
		b.Unmount()
		must(t, b.link.AwaitIdle(drainBound))
		left := 0
		for _, name := range b.Blobs() {
			if strings.HasPrefix(name, old+"/") {
				left++
			}
		}
		copies := len(b.Blobs()) - left
		b.mount()
		b.judge()
		t.Logf("kill %d: %v; %d files were under the old name and %d under the new one, now all are under %q", i+1, err, left, copies, b.at)
		if err != nil {
			interrupted++
		} else if b.at == old {
			t.Errorf("kill %d: the rename was answered for, and has not happened", i+1)
		}
		if err != nil && b.at != old {
			forward++
		}
	}
	t.Logf("%d kills, %d in the middle, %d of these finished by the next mount", kills, interrupted, forward)
	if interrupted < kills/2 {
		t.Errorf("only %d of %d kills were in the middle of a rename", interrupted, kills)
	}
}

// A rename of a directory that is under way is in `status`; one that a crash has left is in `recover list`, and in `status` of
// a mount that cannot go on with it, until one does.
func TestMountRenameIsShown(t *testing.T) {
	b := newRenameBench(t)
	b.server.SetShape(blobserver.Shape{Latency: 10 * renameLatency}) // it takes seconds, and status no request
	done := make(chan error)
	go func() { done <- os.Rename(b.path("one"), b.path("two")) }()
	shows := func(what string, want bool, text []string, args ...string) {
		t.Helper()
		r := b.Run(args...)
		for _, x := range text {
			if r.Status != 0 || strings.Contains(r.Stdout, x) != want {
				t.Errorf("%s: %q shown: want %v; status %d, %s%s", what, x, want, r.Status, r.Stdout, r.Stderr)
			}
		}
	}
	list := []string{"recover", "--cache-dir", b.Cache, "list"}
	for deadline := time.Now().Add(drainBound); !strings.Contains(b.Run("status", b.Dir).Stdout, "renames of directories"); {
		if time.Now().After(deadline) {
			t.Fatal("status does not show the rename")
		}
	}
	shows("under way", true, []string{`"one"  to "two"`, "copying", "Leave it mounted: they end by themselves."}, "status", b.Dir)
	shows("under way", true, []string{"copying, in use", "in use: a mount works on it"}, list...)
	b.Signal(syscall.SIGKILL)
	if err := <-done; err == nil {
		t.Error("it was not in the middle")
	}
	b.Unmount()
	b.server.SetShape(blobserver.Shape{})
	shows("left", true, []string{`"one"`, `"two"`, "copying", "the next mount copies the rest"}, list...)
	shows("left", false, []string{"in use", "Nothing is left"}, list...)
	shows("left", true, []string{`"state": "rename copying"`, `"from": "one"`, `"to": "two"`}, append(list, "--json")...)
	b.Mount("--read-only")
	shows("mounted for reading", true, []string{`"one"  to "two"`, "nobody works on it", "and without --read-only."}, "status", b.Dir)
	b.Unmount()
	b.mount()
	if b.judge(); b.at != "two" {
		t.Errorf("all is under %q", b.at)
	}
	shows("finished", false, []string{"renames of directories"}, "status", b.Dir)
	shows("finished", true, []string{"Nothing is left in "}, list...)
}
