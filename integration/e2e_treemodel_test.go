package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"blobmount/integration/mounttest"
	"blobmount/integration/treemodel"
)

// seedVariable repeats a run of TestMountTreeModel that has failed.
const seedVariable = "BLOBMOUNT_E2E_SEED"

// The ways to mount for the random operations. Blocks are small, so that a file has a few.
var (
	// What another host does is seen at once.
	treeFresh = []string{"--block-size=64KiB", "--blob-cache-timeout=0"}
	// It is seen after a remount, and the other host works while there is no mount.
	treeKept = []string{"--block-size=64KiB", "--blob-cache-timeout=none"}
)

// Random operations on a whole tree leave what they leave in memory, after each step: names, kinds, sizes, modes, times,
// targets and contents, also when files are open under names that change, another host puts and deletes blobs, and the
// mount comes and goes. What fails is printed as a test case, to be pasted below.
func TestMountTreeModel(t *testing.T) {
	mounttest.NeedFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("the model is that of root")
	}
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("%s=%d", seedVariable, seed)
	fresh, kept := 1000, 4000
	if mounttest.Long() {
		fresh, kept = 30_000, 70_000
	}
	for _, c := range []struct {
		name, variable string
		flags          []string
		unmounted      bool
		operations     int
		every          int // each attribute costs requests where nothing is kept
	}{
		{"Fresh", "treeFresh", treeFresh, false, fresh, 8},
		{"Kept", "treeKept", treeKept, true, kept, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTreeWorld(t, c.flags)
			g := &treemodel.Generator{
				Random: rand.New(rand.NewPCG(seed, 11)), Foreign: true, Remounts: true, Unmounted: c.unmounted,
			}
			tree := w.tree()
			r := &treemodel.Runner{System: tree, Model: treemodel.NewModel(umask()), Every: c.every}
			err := error(nil)
			start := time.Now()
			for len(r.Done) < c.operations && err == nil {
				err = r.Step(g.Next(r.Model))
			}
			if err == nil {
				err = r.Finish()
			}
			must(t, tree.Close())
			var f *treemodel.Failure
			if errors.As(err, &f) {
				t.Error(f)
				t.Logf("as a test case:\n%s", w.shrink(f.Ops, c.variable))
				return
			}
			must(t, err)
			t.Logf("%d operations in %.1f s, %d requests", len(r.Done), time.Since(start).Seconds(), w.service.Embedded.Stats().Total())
		})
	}
}

// treeWorld is a mount with directories in which sequences of operations begin.
type treeWorld struct {
	*world
	service *mounttest.Service
	flags   []string
	trees   int
}

func newTreeWorld(t *testing.T, flags []string) *treeWorld {
	t.Helper()
	s := mounttest.Embedded(t)
	return &treeWorld{world: newWorld(t, s, flags...), service: s, flags: flags}
}

// tree returns a new empty directory.
func (w *treeWorld) tree() *treemodel.Tree {
	w.t.Helper()
	w.trees++
	name := fmt.Sprintf("tree %d", w.trees)
	must(w.t, os.Mkdir(w.path(name), 0o755))
	return &treemodel.Tree{
		Root: w.path(name),
		Remount: func(emptyCache bool, between func()) {
			w.Unmount()
			if emptyCache {
				w.EmptyCache()
			}
			between()
			w.Mount(w.flags...)
		},
		Put:    func(path string, content []byte) { w.Put(name+"/"+path, content) },
		Delete: func(path string) { w.Delete(name + "/" + path) },
	}
}

func umask() uint32 {
	old := syscall.Umask(0)
	syscall.Umask(old)
	return uint32(old)
}

// replay makes a sequence in a new directory.
func (w *treeWorld) replay(ops []treemodel.Op) error {
	w.t.Helper()
	tree := w.tree()
	err := treemodel.Replay(tree, treemodel.NewModel(umask()), ops)
	return errors.Join(err, tree.Close())
}

// shrink makes a sequence that fails shorter, and returns it as a test case.
func (w *treeWorld) shrink(ops []treemodel.Op, variable string) string {
	w.t.Helper()
	bound := time.Minute
	if mounttest.Long() {
		bound = 10 * time.Minute
	}
	failures := 0
	fails := func(ops []treemodel.Op) bool {
		if w.replay(ops) == nil {
			return false
		}
		failures++
		return true
	}
	ops = treemodel.Shrink(ops, time.Now().Add(bound), fails)
	if failures == 0 {
		w.t.Log("it did not fail again in another directory of the same mount: this is all of it")
	}
	return treemodel.TestCase("TestMountTreeCaseX", "treeCase(t, "+variable+", ", ops)
}

// treeCase makes a sequence that has failed once.
func treeCase(t *testing.T, flags []string, ops []treemodel.Op) {
	t.Helper()
	mounttest.NeedFUSE(t)
	if err := newTreeWorld(t, flags).replay(ops); err != nil {
		t.Error(err)
	}
}

// A file that is open stays itself while directories above it are renamed, its name is given to another, and an implied
// directory keeps its name when its last blob goes.
func TestMountTreeCaseOpen(t *testing.T) {
	treeCase(t, treeFresh, []treemodel.Op{
		{Do: treemodel.ForeignPut, Path: "a/b/c", Size: 70_000, Seed: 1},
		{Do: treemodel.Open, Path: "a/b/c"},
		{Do: treemodel.WriteHandle, Off: 66_000, Size: 10, Seed: 2},
		{Do: treemodel.Rename, Path: "a", To: "d e"},
		{Do: treemodel.WriteHandle, Off: 90_000, Size: 10, Seed: 3},
		{Do: treemodel.Rename, Path: "d e/b/c", To: "c"},
		{Do: treemodel.Create, Path: "d e/b/c", Mode: 0o600},
		{Do: treemodel.Rename, Path: "d e/b/c", To: "c", Exclusive: true},
		{Do: treemodel.Rename, Path: "d e/b/c", To: "c"},
		{Do: treemodel.ReadHandle},
		{Do: treemodel.WriteHandle, Size: 10, Seed: 4},
		{Do: treemodel.ReadHandle},
		{Do: treemodel.Remount, Exclusive: true},
		{Do: treemodel.Rmdir, Path: "d e/b"},
	})
}
