package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/blobcache"
	"blobmount/integration/crash"
	"blobmount/integration/mounttest"
)

// "An acknowledged write is never lost": whenever the daemon is killed.
func TestMountKilled(t *testing.T) { testCrashes(t, crashes{}) }

// The same with a cache directory that loses what was not synced.
func TestMountPowerCut(t *testing.T) { testCrashes(t, crashes{powerCut: true}) }

// "With write-back, close returns once the data is durable on the local disk": a mount afterwards saves it. The delay is
// such that kills come before, during and after the upload.
func TestMountKilledWriteBack(t *testing.T) {
	testCrashes(t, crashes{needs: "--write-back", flags: []string{"--write-back=close", "--write-back-delay=100ms"}})
}

// The same for fsync, when later writes do not wait: as on a local file system, what was written first may be found of what
// was not acknowledged.
func TestMountKilledFsyncLocal(t *testing.T) {
	testCrashes(t, crashes{needs: "--write-back", flags: []string{"--write-back=fsync-local", "--write-back-delay=100ms"}, parts: true})
}

// What close has answered for outlasts a power cut too. With fsync-local it would not: there a later write may touch it, as
// on a local file system.
func TestMountPowerCutWriteBack(t *testing.T) {
	testCrashes(t, crashes{needs: "--write-back", flags: []string{"--write-back=close", "--write-back-delay=100ms"}, powerCut: true})
}

// crashes is a series of crashes under a workload.
type crashes struct {
	needs    string   // a word of the help text, without which the test is skipped
	flags    []string // of the mount
	powerCut bool
	parts    bool // what was not acknowledged may be there in part, or as a whole
}

// drainBound is how long a new mount may take to write what the one before it had acknowledged.
const drainBound = 60 * time.Second

func testCrashes(t *testing.T, c crashes) {
	mounttest.NeedFUSE(t)
	needWord(t, c.needs, "--help")
	kills := 10
	if mounttest.Long() {
		kills = 200
	}
	if c.powerCut && !mounttest.Long() {
		kills = 6 // each takes the cache directory off and on
	}
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	b := newCrashBench(t, c, seed)
	for i := range kills {
		b.round(uint64(i))
		if t.Failed() {
			t.Fatalf("after %d kills", i+1)
		}
	}
	b.summary()
}

// crashBench is a mount that is killed again and again.
type crashBench struct {
	*world
	crashes
	link   *crash.Link
	disk   *crash.Disk // nil without power cuts
	ledger *crash.Ledger
	random *rand.Rand
	seed   uint64
	// recover: the program lists what was kept.
	recover bool

	kills, recovered, kept, between int
	conflicts                       map[string]string // by id
}

func newCrashBench(t *testing.T, c crashes, seed uint64) *crashBench {
	t.Helper()
	s := mounttest.Embedded(t)
	link := newLink(t, s)
	container := s.NewContainer(t)
	var disk *crash.Disk
	at := filepath.Join(t.TempDir(), "disk")
	if c.powerCut {
		disk = newDisk(t, at)
	}
	point := s.Via(link.Address()).NewPoint(t, container) // ends before the disk does
	if c.powerCut {
		point.Cache = at
	}
	b := &crashBench{
		world: &world{point, container, t}, crashes: c, link: link, disk: disk, ledger: crash.NewLedger(),
		conflicts: map[string]string{},
		random:    rand.New(rand.NewPCG(seed, 1)), seed: seed,
		recover: strings.Contains(helpText(t, "--help"), "blobmount recover"),
	}
	if b.disk != nil {
		b.AllowError(overtaken) // see awaitRecovery
	}
	if c.parts {
		b.ledger.AllowParts()
	}
	b.mount()
	for _, dir := range b.workload(0).Directories() {
		must(t, os.Mkdir(b.path(dir), 0o755))
	}
	return b
}

// newLink returns a link to a service, until the test ends.
func newLink(t *testing.T, s *mounttest.Service) *crash.Link {
	t.Helper()
	link, err := crash.NewLink(s.Address())
	must(t, err)
	t.Cleanup(link.Close)
	return link
}

// newDisk mounts a disk that can lose what was not synced, until the test ends.
func newDisk(t *testing.T, at string) *crash.Disk {
	t.Helper()
	must(t, os.Mkdir(at, 0o700))
	disk, err := crash.NewDisk(t.TempDir(), at)
	must(t, err)
	t.Cleanup(func() { must(t, disk.Close()) })
	return disk
}

func (b *crashBench) mount() {
	b.t.Helper()
	b.Mount(slices.Concat([]string{"--block-size=256KiB", "--log-level=info"}, b.flags)...)
}

func (b *crashBench) workload(round uint64) *crash.Workload {
	return &crash.Workload{
		Dir: b.Dir, Ledger: b.ledger, Workers: 4, Names: 12, Small: 20 << 10, Large: 1 << 20, Seed: b.seed + round,
	}
}

// round lets the workload run, kills the daemon, mounts again, and judges every file.
func (b *crashBench) round(n uint64) {
	b.t.Helper()
	run := b.workload(n).Start()
	// The moment of the kill is random, and what makes the test: nothing is waited for.
	time.Sleep(50*time.Millisecond + time.Duration(b.random.Int64N(int64(400*time.Millisecond))))
	run.Stop()
	b.Signal(syscall.SIGKILL)
	if err := run.Wait(); err != nil {
		b.t.Errorf("before the kill: %v", err)
	}
	b.kills++
	b.Unmount()
	must(b.t, b.link.AwaitIdle(drainBound))
	if b.disk != nil {
		must(b.t, b.disk.PowerCut(b.random))
	}
	before := b.inService()
	b.countTorn(before)
	unclosed := b.ledger.Unclosed()
	if b.disk == nil {
		b.areKept(unclosed, before)
	}
	b.mount()
	found := b.drained()
	if b.disk == nil {
		b.areListed(unclosed, found)
	}
	for path, f := range found {
		if old := before[path]; f.Exists && (!old.Exists || string(old.Content) != string(f.Content)) {
			b.recovered++
		}
		b.ledger.Settle(path, f)
	}
	b.nothingElse(found)
}

// drained waits until the mount has saved what the one before it had left, and judges every path: on the mount and in
// the service. It returns what both hold.
func (b *crashBench) drained() map[string]crash.Found {
	b.t.Helper()
	b.awaitRecovery()
	mounted, stored := b.onMount(), b.inService()
	problems := append(b.problems("on the mount", mounted), b.problems("in the service", stored)...)
	for path, f := range mounted {
		if s := stored[path]; s.Exists != f.Exists || string(s.Content) != string(f.Content) {
			problems = append(problems, path+": the mount and the service differ")
		}
	}
	if len(problems) > 0 {
		b.t.Fatalf("after kill %d: %s", b.kills, strings.Join(problems, "\n"))
	}
	return mounted
}

// awaitRecovery waits until nothing is left that the mount is to save. What the disk has not forgotten is not damaged.
func (b *crashBench) awaitRecovery() {
	b.t.Helper()
	for deadline := time.Now().Add(drainBound); ; time.Sleep(10 * time.Millisecond) {
		var waiting, wrong []string
		for _, l := range b.left() {
			text := fmt.Sprintf("%s (%s, %s) %s", l.Name, l.ID, l.State, l.Reason)
			switch l.State {
			case blobcache.LeftUnfinished:
			case blobcache.LeftConflict:
				// Each path has one writer. But a journal that was not synced may be an older one after a power cut.
				if b.disk == nil {
					wrong = append(wrong, text)
				} else {
					b.conflicts[l.ID] = text
				}
			case blobcache.LeftInUse, blobcache.LeftFinished:
				waiting = append(waiting, text)
			default:
				if b.disk == nil && !b.justBegun(l.ID) {
					wrong = append(wrong, text)
				}
			}
		}
		if len(wrong) > 0 {
			b.t.Fatalf("after kill %d: %s", b.kills, strings.Join(wrong, "\n"))
		}
		if len(waiting) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("after kill %d these were not saved within %v: %s", b.kills, drainBound, strings.Join(waiting, "\n"))
		}
	}
}

// justBegun reports whether a journal is empty: the process was killed before it had anything to keep.
func (b *crashBench) justBegun(id string) bool {
	b.t.Helper()
	info, err := os.Stat(filepath.Join(b.Cache, "staging", id+".journal"))
	must(b.t, err)
	return info.Size() == 0
}

// left returns what the cache directory has that is not in the service.
func (b *crashBench) left() []blobcache.Left {
	b.t.Helper()
	left, err := blobcache.ListLeft(b.Cache)
	must(b.t, err)
	return left
}

// problems judges all paths.
func (b *crashBench) problems(where string, found map[string]crash.Found) []string {
	var problems []string
	words := map[crash.Verdict]string{crash.Lost: "lost", crash.Torn: "torn"}
	for path, f := range found {
		v, text := b.ledger.Judge(path, f)
		if v == crash.Right {
			v, text = b.ledger.JudgeRename(path, func(p string) crash.Found { return found[p] })
		}
		if v != crash.Right {
			problems = append(problems, words[v]+" "+where+": "+text)
		}
	}
	return problems
}

// countTorn counts what the killed process has left in the service that is neither an old version nor a new one. The
// next mount has to mend it.
func (b *crashBench) countTorn(before map[string]crash.Found) {
	for path, f := range before {
		if v, text := b.ledger.Judge(path, f); v == crash.Torn {
			b.t.Logf("kill %d, before the next mount: torn in the service: %s", b.kills, text)
			b.between++
		}
	}
}

func (b *crashBench) onMount() map[string]crash.Found {
	b.t.Helper()
	found := map[string]crash.Found{}
	for _, path := range b.ledger.Paths() {
		content, err := os.ReadFile(b.path(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.t.Fatalf("after kill %d: %v", b.kills, err)
		}
		found[path] = crash.Found{Exists: err == nil, Content: content}
	}
	return found
}

func (b *crashBench) inService() map[string]crash.Found {
	b.t.Helper()
	names := b.Blobs()
	found := map[string]crash.Found{}
	for _, path := range b.ledger.Paths() {
		f := crash.Found{}
		if _, f.Exists = slices.BinarySearch(names, path); f.Exists {
			f.Content = b.Get(path)
		}
		found[path] = f
	}
	return found
}

// nothingElse checks that the service has no names that nobody made.
func (b *crashBench) nothingElse(found map[string]crash.Found) {
	b.t.Helper()
	dirs := b.workload(0).Directories()
	for _, name := range b.Blobs() {
		if _, ok := found[name]; !ok && !slices.Contains(dirs, name) {
			b.t.Errorf("nobody made the blob %q", name)
		}
	}
}

// areKept checks that the bytes of writers that had neither closed nor synced are in the cache directory. Nothing is
// mounted.
func (b *crashBench) areKept(unclosed map[string]crash.Image, before map[string]crash.Found) {
	b.t.Helper()
	left, staged := b.left(), stagedFiles(b.t, b.Cache)
	for path, image := range unclosed {
		if b.parts && image.Is(before[path].Content) { // sent since an earlier state was closed
			continue
		}
		known := slices.ContainsFunc(left, func(l blobcache.Left) bool {
			return l.Name == path && (l.State == blobcache.LeftUnfinished || b.parts && l.State == blobcache.LeftFinished) && l.Size == image.Size()
		})
		if !known || !staged[string(image.Bytes())] {
			b.t.Errorf("%s was written and not closed: it is not kept in the cache directory: %+v", path, left)
			continue
		}
		b.kept++
	}
}

// stagedFiles returns the contents of all files of a cache directory that are no cached versions.
func stagedFiles(t *testing.T, cache string) map[string]bool {
	t.Helper()
	contents := map[string]bool{}
	err := filepath.WalkDir(cache, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path == filepath.Join(cache, "v1") {
			return fs.SkipDir
		}
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		contents[string(content)] = true
		return err
	})
	must(t, err)
	return contents
}

// areListed checks that files whose writers had neither closed nor synced were not committed, and that the program lists
// them, if it lists anything.
func (b *crashBench) areListed(unclosed map[string]crash.Image, found map[string]crash.Found) {
	b.t.Helper()
	var list string
	if b.recover {
		r := b.Run("recover", "--cache-dir", b.Cache, "list")
		if list = r.Stdout; r.Status != 0 {
			b.t.Fatalf("recover list: %+v", r)
		}
	}
	for path, image := range unclosed {
		if image.Is(found[path].Content) {
			if b.parts {
				continue
			}
			b.t.Errorf("%s was committed, though its writer had neither closed nor synced it", path)
		}
		if b.recover && !strings.Contains(list, path) {
			b.t.Errorf("%s was written and not closed: recover list does not name it:\n%s", path, list)
		}
	}
}

// summary prints what was proven, and fails the test if that is nothing.
func (b *crashBench) summary() {
	b.t.Helper()
	operations, bytes := b.ledger.Acknowledged()
	files := len(b.ledger.Paths())
	// A path that is lost or torn has ended the test before.
	b.t.Logf("%d kills, %d files, %d acknowledged operations, %d MiB, 0 lost, 0 torn, %d recovered, %d kept, %d own commits taken for conflicts, %d torn until the next mount",
		b.kills, files, operations, bytes>>20, b.recovered, b.kept, len(b.conflicts), b.between)
	if files < 20 || operations < 20*b.kills {
		b.t.Errorf("%d files and %d operations prove little", files, operations)
	}
	if b.disk == nil && b.kept == 0 {
		b.t.Error("no file was open at any kill: nothing is proven of those")
	}
}

// needWord skips the test while a help text of the program does not have a word.
func needWord(t *testing.T, word string, command ...string) {
	t.Helper()
	if !strings.Contains(helpText(t, command...), word) {
		t.Skipf("blobmount %s does not name %s", strings.Join(command, " "), word)
	}
}

// helpText returns what the program prints.
func helpText(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, "/", nil, append([]string{mounttest.Binary(t)}, args...)...)
}
