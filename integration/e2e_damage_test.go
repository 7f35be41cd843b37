package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blobtest"
	"blobmount/integration/crash"
	"blobmount/integration/mounttest"
)

// "Cached data carries checksums, which each mount compares when it reads something for the first time. What does not match
// is fetched again, never read or sent": whatever became of the files of a cache, and in whatever way they are read then.
func TestMountDamagedCache(t *testing.T) {
	rounds := 1
	if mounttest.Long() {
		rounds = 20
	}
	b := newDamageBench(t)
	for range rounds {
		for _, flags := range [][]string{
			{"--passthrough=auto"},
			{"--passthrough=off"},
			{"--read-only", "--open=none"},
			{"--read-only", "--open=files"},
		} {
			b.round(beforeMount, flags)
		}
		b.round(whileMounted, nil)
		b.round(afterUse, nil)
	}
	b.round(beforeChanges, nil)
	b.isWhole()
	if !t.Failed() {
		b.summary()
	}
}

// damageBench is a container whose blobs are cached, and a copy of the cache.
type damageBench struct {
	*world
	service *mounttest.Service
	files   []*cachedFile
	kept    string // the copy
	random  *rand.Rand
	kinds   map[string]int // how many files were damaged in each way
	sure    int            // how many of them the log had to name
}

// cachedFile is a blob, and what the cache has of it.
type cachedFile struct {
	name string
	want []byte
	base string // the path of its cache files, without the extension
	part bool
	have []bool // the grains that the cache has of a part

	// What has become of it in this round.
	kind string // empty: nothing
	sure bool   // who reads all of it must find that
	at   int    // about where
}

// damageSet says how many blobs of which sizes are cached, and which of them in part.
var damageSet = []struct {
	count int
	sizes []int
	part  bool
}{
	// These are one unit, with the checksum in an attribute. The kernel may read those of 256 KiB and more by itself.
	{36, []int{25_000, 25_000, 25_000, 25_000, 300_000, 300_000, 1 << 20}, false},
	{10, []int{1<<20 + 1, 1<<20 + 1, 2 << 20, 2 << 20, 3<<20 - 7, 3<<20 - 7}, false},
	{1, []int{20 << 20}, false},
	{6, []int{3<<20 - 7}, true},
	{1, []int{20 << 20}, true},
}

// cacheGrain is the unit in which the cache records what it has of a larger blob.
const cacheGrain = 64 << 10

func newDamageBench(t *testing.T) *damageBench {
	t.Helper()
	mounttest.NeedFUSE(t)
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	s := mounttest.Embedded(t)
	c := s.NewContainer(t)
	b := &damageBench{
		world: &world{s.NewPoint(t, c), c, t}, service: s, kept: filepath.Join(t.TempDir(), "kept"),
		random: rand.New(rand.NewPCG(seed, 1)), kinds: map[string]int{},
	}
	for _, set := range damageSet {
		for i := range set.count {
			b.files = append(b.files, b.newFile(fmt.Sprintf("file%03d", len(b.files)), set.sizes[i%len(set.sizes)], set.part))
		}
	}
	b.Mount()
	for _, f := range b.files {
		b.fill(f)
	}
	b.Unmount()
	for _, f := range b.files {
		f.look(t)
	}
	command(t, "/", nil, "cp", "-a", b.Cache, b.kept)
	return b
}

func (b *damageBench) newFile(name string, size int, part bool) *cachedFile {
	b.t.Helper()
	f := &cachedFile{name: name, want: make([]byte, size), part: part}
	blobtest.Random(b.random.Uint64())(f.want, 0)
	b.Put(name, f.want)
	sum := sha256.Sum256([]byte(b.Client.URL() + "/" + name + "\x00" + string(b.ETag(name))))
	key := hex.EncodeToString(sum[:16])
	f.base = filepath.Join(b.Cache, "v1", key[:2], key[2:3], key[3:])
	return f
}

// fill brings a blob into the cache, or some of it.
func (b *damageBench) fill(f *cachedFile) {
	b.t.Helper()
	if !f.part {
		b.read(f.name, f.want)
		return
	}
	file := b.open(f.name, os.O_RDONLY)
	for range 2 + len(f.want)>>20/2 {
		must(b.t, f.compare(file, b.random.IntN(len(f.want)), 50_000))
	}
	must(b.t, file.Close())
}

// data returns the path of the file with the content.
func (f *cachedFile) data() string {
	if f.part {
		return f.base + ".part"
	}
	return f.base + ".blob"
}

func (f *cachedFile) maps() string { return f.base + ".map" }

// single reports whether the cache has no map of it, but an attribute.
func (f *cachedFile) single() bool { return len(f.want) <= 1<<20 }

// look learns which grains the cache has.
func (f *cachedFile) look(t *testing.T) {
	t.Helper()
	_, err := os.Stat(f.data())
	must(t, err)
	if !f.part {
		return
	}
	raw, err := os.ReadFile(f.maps())
	must(t, err)
	f.have = make([]bool, (len(f.want)+cacheGrain-1)/cacheGrain)
	for i := range f.have {
		f.have[i] = raw[24+i/8]>>(i%8)&1 == 1
	}
	if !slices.Contains(f.have, true) || !slices.Contains(f.have, false) {
		t.Fatalf("%s is not cached in part: %v", f.name, f.have)
	}
}

// has reports whether the cache has any of the bytes [from, to).
func (f *cachedFile) has(from, to int) bool {
	to = min(to, len(f.want))
	if from >= to {
		return false
	}
	return !f.part || slices.Contains(f.have[from/cacheGrain:(to-1)/cacheGrain+1], true)
}

// compare reads n bytes at off, fewer at the end, and compares them.
func (f *cachedFile) compare(r io.ReaderAt, off, n int) error {
	off = max(off, 0)
	got := make([]byte, min(n, len(f.want)-off))
	if _, err := r.ReadAt(got, int64(off)); err != nil {
		return fmt.Errorf("%s: %d bytes at %d: %w", f.name, len(got), off, err)
	}
	return f.is(got, off)
}

func (f *cachedFile) is(got []byte, off int) error {
	want := f.want[off:][:len(got)]
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	return wrongBytes(fmt.Sprintf("%s: wrong from byte %d on: %x, want %x", f.name, off+at, got[at:min(at+8, len(got))], want[at:min(at+8, len(got))]))
}

// wrongBytes is the error that is always one.
type wrongBytes string

func (w wrongBytes) Error() string { return string(w) }

// moment is when the cache is damaged.
type moment int

const (
	beforeMount moment = iota
	whileMounted
	// beforeChanges is as beforeMount, and the files are changed before they are read: no damage may reach the service.
	beforeChanges
	// afterUse is while a mount has the cache in use that has compared it already. What that reads is not promised to be
	// right; what the next one reads is.
	afterUse
)

// round damages the cache, reads all files through a mount with these flags, and looks into its log.
func (b *damageBench) round(when moment, flags []string) {
	b.t.Helper()
	must(b.t, os.RemoveAll(b.Cache))
	command(b.t, "/", nil, "cp", "-a", b.kept, b.Cache)
	if when == afterUse {
		b.Mount(flags...)
		for _, f := range b.files {
			if !f.part {
				b.read(f.name, f.want)
			}
		}
		b.damage()
		b.Unmount()
	}
	before := len(b.LogLines())
	if when == beforeMount || when == beforeChanges {
		b.damage()
		b.damageUsage()
	}
	b.Mount(flags...)
	switch when {
	case whileMounted:
		b.damage()
	case beforeChanges:
		for _, f := range b.files {
			b.change(f)
		}
	}
	b.readAll(b.random.Uint64())
	b.Unmount()
	named := damageNamed(b.t, b.LogLines()[before:])
	for _, f := range b.files {
		switch n := named[f.name]; {
		case f.kind == "" && n > 0:
			b.t.Errorf("%s was not damaged, and the log says so", f.name)
		case f.sure && n != 1 && when != beforeChanges: // a change reads no more than it needs
			b.t.Errorf("%s (%d bytes, in part: %v): %s: %d lines of the log, want 1", f.name, len(f.want), f.part, f.kind, n)
		case n > 1:
			b.t.Errorf("%s: %s: %d lines of the log", f.name, f.kind, n)
		}
		if f.sure {
			b.sure++
		}
	}
	if b.t.Failed() {
		b.t.Fatalf("with %q", flags)
	}
}

// change changes a file a little, and looks into the service.
func (b *damageBench) change(f *cachedFile) {
	b.t.Helper()
	file := b.open(f.name, os.O_RDWR)
	switch at := b.random.IntN(len(f.want)); b.random.IntN(3) {
	case 0:
		n := copy(f.want[at:], "changed")
		_, err := file.WriteAt(f.want[at:at+n], int64(at))
		must(b.t, err)
	case 1:
		_, err := file.WriteAt([]byte("added"), int64(len(f.want)))
		must(b.t, err)
		f.want = append(f.want, "added"...)
	default:
		f.want = f.want[:at+1]
		must(b.t, file.Truncate(int64(at+1)))
	}
	must(b.t, file.Close())
	f.part = false // what was cached is of another version
	b.holds(f.name, f.want)
}

// damageNamed counts the lines that name a blob whose cached data is damaged.
func damageNamed(t *testing.T, lines []mounttest.Line) map[string]int {
	t.Helper()
	named := map[string]int{}
	for _, l := range lines {
		if l.Message != "cached data is damaged and will be fetched again" {
			continue
		}
		var line struct{ Blob string }
		must(t, json.Unmarshal([]byte(l.Text), &line))
		named[line.Blob]++
	}
	return named
}

// readAll reads all files, four at once, each first in a way that chance has chosen. Of most parts that is what the
// cache does not have, for all of them before anything else: so that they become complete and are closed while nobody has
// looked at what the cache had.
func (b *damageBench) readAll(seed uint64) {
	b.t.Helper()
	for _, f := range b.files {
		if f.part && b.random.IntN(4) > 0 {
			must(b.t, b.readGaps(f))
		}
	}
	next := make(chan int)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := range next {
				f := b.files[i]
				if err := b.readFile(f, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
					b.t.Errorf("%q: %v", f.kind, err)
				}
			}
		})
	}
	for _, i := range b.random.Perm(len(b.files)) {
		next <- i
	}
	close(next)
	readers.Wait()
}

// readFile reads a file in several ways, each by a handle of its own and past the pages that the kernel has.
func (b *damageBench) readFile(f *cachedFile, random *rand.Rand) error {
	ways := []func(*cachedFile, *os.File, *rand.Rand) error{
		(*cachedFile).readInOrder, (*cachedFile).readAtRandom, (*cachedFile).readMapped, (*cachedFile).readAround,
	}
	random.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
	if !f.single() {
		ways = ways[:2] // there is no time for all; at least one of them reads all of the file
	}
	for _, way := range ways {
		if err := b.opened(f, func(file *os.File) error { return way(f, file, random) }); err != nil {
			return err
		}
	}
	return nil
}

// opened opens a file, and lets the kernel forget its pages afterwards.
func (b *damageBench) opened(f *cachedFile, use func(*os.File) error) error {
	file, err := os.Open(b.path(f.name))
	if err != nil {
		return err
	}
	return errors.Join(use(file), unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED), file.Close())
}

func (f *cachedFile) readInOrder(file *os.File, _ *rand.Rand) error {
	got, err := io.ReadAll(file)
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if len(got) != len(f.want) {
		return fmt.Errorf("%s: %d bytes, want %d", f.name, len(got), len(f.want))
	}
	return f.is(got, 0)
}

// readAtRandom reads all of it in pieces, in random order.
func (f *cachedFile) readAtRandom(file *os.File, random *rand.Rand) error {
	piece := 4096 + random.IntN(200_000)
	for _, i := range random.Perm((len(f.want) + piece - 1) / piece) {
		if err := f.compare(file, i*piece, piece); err != nil {
			return err
		}
	}
	return nil
}

func (f *cachedFile) readMapped(file *os.File, random *rand.Rand) error {
	m, err := mounttest.Map(file, 0, len(f.want), false)
	if err != nil {
		return err
	}
	got := make([]byte, len(f.want))
	const piece = 1 << 20
	for _, i := range random.Perm((len(got) + piece - 1) / piece) {
		if err := m.Read(got[i*piece:min(len(got), (i+1)*piece)], i*piece); err != nil {
			return errors.Join(err, m.Close())
		}
	}
	return errors.Join(f.is(got, 0), m.Close())
}

// readAround reads a little about the damaged place.
func (f *cachedFile) readAround(file *os.File, _ *rand.Rand) error {
	at := min(f.at, len(f.want)-1)
	return errors.Join(f.compare(file, at, 1), f.compare(file, at&^4095, 4096), f.compare(file, at-100_000, 200_000))
}

// readGaps reads what the cache does not have of a part.
func (b *damageBench) readGaps(f *cachedFile) error {
	return b.opened(f, func(file *os.File) error {
		if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_RANDOM); err != nil { // else the kernel reads beyond the gaps
			return err
		}
		for i, have := range f.have {
			if have {
				continue
			}
			if err := f.compare(file, i*cacheGrain, cacheGrain); err != nil {
				return err
			}
		}
		return nil
	})
}

// isWhole checks that the cache is mended: nothing is found in it any more, and what was read once more is read from it. (A
// mount that finds damage may drop bytes that are just arriving from the disk, though not from memory.)
func (b *damageBench) isWhole() {
	b.t.Helper()
	before := len(b.LogLines())
	for range 2 {
		b.Mount()
		b.service.Embedded.ResetStats()
		for _, f := range b.files {
			b.read(f.name, f.want)
		}
		b.Unmount()
	}
	if s := b.service.Embedded.Stats(); s.BytesOut > 0 {
		b.t.Errorf("%d bytes were fetched that the cache should have: %v", s.BytesOut, s.Requests)
	}
	if named := damageNamed(b.t, b.LogLines()[before:]); len(named) > 0 {
		b.t.Errorf("still damaged: %v", named)
	}
}

// What a loss of power leaves of a cache that was being filled is right, or is fetched again.
func TestMountPowerCutCache(t *testing.T) {
	mounttest.NeedFUSE(t)
	cuts := 3
	if mounttest.Long() {
		cuts = 100
	}
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	s := mounttest.Embedded(t)
	c := s.NewContainer(t)
	at := filepath.Join(t.TempDir(), "disk")
	disk := newDisk(t, at)
	b := &damageBench{world: &world{s.NewPoint(t, c), c, t}, service: s, random: rand.New(rand.NewPCG(seed, 1))} // ends before the disk does
	b.Cache = at
	for i, size := range slices.Concat(slices.Repeat([]int{25_000}, 40), slices.Repeat([]int{1<<20 + 100_000}, 8), []int{6 << 20}) {
		b.files = append(b.files, b.newFile(fmt.Sprintf("file%03d", i), size, false))
	}
	named, cut := 0, 0
	for ; cut < cuts || named == 0 && cut < 10*cuts; cut++ { // by chance nothing may be damaged, and all kept or lost
		must(t, os.RemoveAll(filepath.Join(at, "v1")))
		b.Mount()
		b.readAndKill(disk)
		b.Unmount()
		must(t, disk.PowerCut(b.random))
		b.Mount()
		b.readAll(b.random.Uint64())
		b.Unmount()
		if t.Failed() {
			return
		}
		named = 0
		for _, n := range damageNamed(t, b.LogLines()) {
			named += n
		}
	}
	t.Logf("%d cuts, %d files were damaged, 0 wrong bytes", cut, named)
	if named == 0 {
		t.Error("nothing was damaged, so nothing is proven")
	}
}

// readAndKill reads files until a random moment, at which the daemon is killed. The disk may have kept what was there some
// time before, as the kernel does by itself.
func (b *damageBench) readAndKill(disk *crash.Disk) {
	b.t.Helper()
	var stopping atomic.Bool
	var readers sync.WaitGroup
	for range 3 {
		random := rand.New(rand.NewPCG(b.random.Uint64(), 1))
		readers.Go(func() {
			for !stopping.Load() {
				f := b.files[random.IntN(len(b.files))]
				err := b.readFile(f, random)
				if wrong := new(wrongBytes); errors.As(err, wrong) || err != nil && !stopping.Load() {
					b.t.Error(err)
					return
				}
			}
		})
	}
	// The moments are random, and what makes the test: nothing is waited for.
	time.Sleep(time.Duration(b.random.Int64N(int64(150 * time.Millisecond))))
	if b.random.IntN(2) == 0 {
		must(b.t, disk.Sync())
	}
	time.Sleep(time.Duration(b.random.Int64N(int64(150 * time.Millisecond))))
	stopping.Store(true)
	b.Signal(syscall.SIGKILL)
	readers.Wait()
}

// summary prints what was proven, and fails the test if that is nothing.
func (b *damageBench) summary() {
	b.t.Helper()
	var kinds []string
	damages := 0
	for _, k := range damageKinds {
		kinds = append(kinds, fmt.Sprintf("%s %d", k.name, b.kinds[k.name]))
		damages += b.kinds[k.name]
		if b.kinds[k.name] == 0 {
			b.t.Errorf("nothing was damaged by: %s", k.name)
		}
	}
	b.t.Logf("%d damages, 0 wrong bytes, %d named in the log (%s)", damages, b.sure, strings.Join(kinds, ", "))
	if damages < 200 {
		b.t.Errorf("%d damages prove little", damages)
	}
}
