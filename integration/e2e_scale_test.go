package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/integration/blobserver"
	"blobmount/integration/mounttest"
)

// What names cost, with 10 ms added to each request, by the requests that the service counts. The bounds are those of a
// million names; the default is a small part of them, with the bounds scaled.

// pageOf is how many names an answer of List Blobs has at most.
const pageOf = 5000

// pages returns how many answers a listing of n names needs.
func pages(n int) int64 { return int64((n + pageOf - 1) / pageOf) }

// sizeOf chooses between the sizes of a long and a short run.
func sizeOf(long, short int) int {
	if mounttest.Long() {
		return long
	}
	return short
}

// scaled is a mount of a container with synthetic blobs.
type scaled struct {
	*world
	service *blobserver.Server
}

// newScaled serves blobs by rule, and mounts them with an empty cache. The names are known for long enough that a slow
// machine does not ask for them twice.
func newScaled(t *testing.T, sets ...blobserver.Synthetic) *scaled {
	t.Helper()
	mounttest.NeedFUSE(t)
	s := mounttest.EmbeddedWith(t, blobserver.Options{Shape: blobserver.Shape{Latency: 10 * time.Millisecond}})
	c := s.NewContainer(t)
	for _, set := range sets {
		set.Container = c.Name
		must(t, s.Embedded.AddSynthetic(set))
	}
	p := s.NewPoint(t, c)
	p.Mount("--blob-cache-timeout=3600")
	return &scaled{&world{p, c, t}, s.Embedded}
}

// measure does something, which may ask the service that often at most, and logs what it cost.
func (w *scaled) measure(what string, most int64, do func()) {
	w.t.Helper()
	w.service.ResetStats()
	start := time.Now()
	do()
	w.judge(what, most, time.Since(start), w.service.Stats())
}

// judge logs what something cost, and compares it with the bound.
func (w *scaled) judge(what string, most int64, took time.Duration, s blobserver.Stats) {
	w.t.Helper()
	var by []string
	for _, op := range slices.Sorted(maps.Keys(s.Requests)) {
		by = append(by, fmt.Sprintf("%d %s", s.Requests[op], op))
	}
	w.t.Logf("%s: %d requests of at most %d (%s), %.2f s, RSS %d MiB, at most %d MiB so far", what, s.Total(), most,
		strings.Join(by, ", "), took.Seconds(), w.RSS()>>20, w.PeakRSS()>>20)
	if s.Total() > most {
		w.t.Errorf("%s took %d requests, at most %d are allowed", what, s.Total(), most)
	}
}

// bound fails the test if the daemon has used more memory than that. The race detector multiplies memory.
func (w *scaled) bound(most int64) {
	w.t.Helper()
	if rss := w.PeakRSS(); rss > most && !mounttest.Race() {
		w.t.Errorf("the daemon used %d MiB, at most %d are allowed", rss>>20, most>>20)
	}
}

// lines runs a command of the shell with the path of a name as $0, which must print that many lines.
func (w *scaled) lines(name, script string, want int) {
	w.t.Helper()
	out := strings.TrimSpace(command(w.t, "/", nil, "sh", "-c", script+" | wc -l", w.path(name)))
	if n, err := strconv.Atoi(out); err != nil || n != want {
		w.t.Errorf("%s of %q prints %s lines, want %d", script, name, out, want)
	}
}

// nodes returns how many nodes the daemon has.
func (w *scaled) nodes() int {
	w.t.Helper()
	r := w.Run("status", "--json", w.Dir)
	var all []struct {
		Status struct{ Nodes int }
	}
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all) != 1 || all[0].Status.Nodes == 0 {
		w.t.Fatalf("status: %v, %+v", err, r)
	}
	return all[0].Status.Nodes
}

// A directory of very many files: the first name comes early, all of them by one listing, and then each is known.
func TestMountFlatScale(t *testing.T) {
	n := sizeOf(1_000_000, 20_000)
	set := blobserver.Synthetic{Prefix: "flat/", Count: n, Size: 1000, Every: 10}
	w := newScaled(t, set)
	w.first("flat", 3)
	w.measure("ls -U of all", pages(n)+max(10, pages(n)/20), func() { w.lines("flat", `ls -U "$0"`, n) })
	w.measure("ls -U again", 0, func() { w.lines("flat", `ls -U "$0"`, n) })
	w.measure("stat of 10,000 names", 0, func() {
		random := rand.New(rand.NewPCG(1, 2))
		for range 10_000 {
			i := random.IntN(n)
			name := set.Name(i)
			info, err := os.Lstat(w.path(name))
			if err != nil {
				t.Fatal(err)
			}
			mode := fs.FileMode(0o644)
			if set.Every > 0 && i%set.Every == 0 {
				mode = 0o600
			}
			if info.Size() != set.Size || info.Mode() != mode {
				t.Fatalf("%s has %d bytes and mode %v, want %d and %v", name, info.Size(), info.Mode(), set.Size, mode)
			}
			if m := set.Metadata(i); m != nil && info.ModTime().UTC().Format(time.RFC3339Nano) != m["mtime"] {
				t.Fatalf("%s was changed at %v, want %s", name, info.ModTime(), m["mtime"])
			}
		}
	})
	w.measure("stat of names that are not there", 0, func() {
		for i := range 1000 {
			if _, err := os.Lstat(w.path(fmt.Sprintf("flat/%06d-", i))); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("a name that is not there: %v", err)
			}
		}
	})
	w.bound(400 << 20)
}

// first lists a directory as ls -U | head -1 does, and counts what was asked until the first line.
func (w *scaled) first(name string, most int64) {
	w.t.Helper()
	w.service.ResetStats()
	start := time.Now()
	cmd := exec.CommandContext(w.t.Context(), "/bin/sh", "-c", `cd / && exec ls -U "$0"`, w.path(name))
	out, err := cmd.StdoutPipe()
	must(w.t, err)
	must(w.t, cmd.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	took, stats := time.Since(start), w.service.Stats()
	must(w.t, err)
	_ = out.Close() // as head does; ls is killed by the signal of its next write
	_ = cmd.Wait()
	w.judge("first line of ls -U", most, took, stats)
}

// Walks over trees are served by flat listings, whatever the shape of the tree, and leave everything known.
func TestMountTreeScale(t *testing.T) {
	shapes := []struct {
		name        string
		long, short string
	}{
		{"Wide", "10000x100", "100x50"},
		{"Square", "100x100x100", "20x20x10"},
		{"Deep", "10x10x10x10x10x10", "6x6x6x6x3"},
		{"Chains", "1000x1x1x1x1x1x1x1x10", "50x1x1x1x1x1x1x1x3"},
	}
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			count := shape.short
			if mounttest.Long() {
				count = shape.long
			}
			set, err := blobserver.ParseSynthetic("x/tree/:" + count + ":4096")
			must(t, err)
			w := newScaled(t, set)
			all := set.Total()
			for i, dirs := 0, 1; set.Dirs[i] > 0; i++ {
				dirs *= set.Dirs[i]
				all += dirs
			}
			p := pages(set.Total())
			w.measure("find", p+max(10, p/4), func() { w.lines("tree", `find "$0"`, all+1) })
			w.measure("du -s", 0, func() { command(t, "/", nil, "du", "-s", w.path("tree")) })
			w.measure("find -size", 0, func() { w.lines("tree", `find "$0" -type f -size 4096c`, set.Total()) })
		})
	}
}

// ls -l of a directory asks for each of its names at once.
func TestMountLongListing(t *testing.T) {
	w := newScaled(t, blobserver.Synthetic{Prefix: "dir/", Count: 2000, Size: 10, Every: 3})
	w.measure("ls -l of 2,000 files", 3, func() { w.lines("dir", `ls -l "$0"`, 2001) })
}

// A name that is not there costs two requests, however many others are beside it, and many such names cost a listing.
func TestMountMissingName(t *testing.T) {
	w := newScaled(t, blobserver.Synthetic{Prefix: "dir/", Count: 10_000, Size: 10})
	_, err := os.Lstat(w.path("dir"))
	must(t, err)
	missing := func(i int) {
		if _, err := os.Lstat(w.path(fmt.Sprintf("dir/missing-%d", i))); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a name that is not there: %v", err)
		}
	}
	w.measure("a missing name", 2, func() { missing(0) })
	w.measure("the same again", 0, func() { missing(0) })
	// They go on asking, two requests each, until the listing of two pages has come: how many times depends on the machine.
	w.measure("1,000 missing names", 200, func() {
		for i := range 1000 {
			missing(i)
		}
	})
}

// What the kernel forgets, the daemon forgets.
func TestMountNodesAreForgotten(t *testing.T) {
	n := sizeOf(1_000_000, 20_000)
	w := newScaled(t, blobserver.Synthetic{Prefix: "tree/", Count: 100, Size: 4096, Dirs: [12]int{n / 100}})
	before := w.RSS()
	find := func() { w.lines("tree", `find "$0" -type f -size 4096c`, n) }
	w.measure("find -size", pages(n)+max(10, pages(n)/4), find)
	full, nodes := w.RSS(), w.nodes()
	for try := 0; nodes < n; try++ { // somebody else on this machine dropped the caches
		if try == 3 {
			t.Fatalf("the daemon has %d nodes after all of %d files were asked for", nodes, n)
		}
		w.measure("find -size again", 0, find)
		full, nodes = w.RSS(), w.nodes()
	}
	// The kernel does not let go of all of them at the first word, when others of its caches are large.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EACCES) {
			t.Skip("the caches of the kernel cannot be dropped here: ", err)
		} else if err != nil {
			t.Fatal(err)
		}
		if left := w.nodes(); left < 100 {
			t.Logf("%d nodes, then %d", nodes, left)
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the daemon still has %d nodes of %d", left, nodes)
		}
	}
	if !mounttest.Long() {
		return // less memory than the daemon takes for itself anyway
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		rss := w.RSS()
		if rss < before+(full-before)/2 {
			t.Logf("RSS %d MiB at the start, %d MiB with all nodes, %d MiB without", before>>20, full>>20, rss>>20)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("RSS %d MiB at the start, %d MiB with all nodes, and still %d MiB without", before>>20, full>>20, rss>>20)
		}
	}
}
