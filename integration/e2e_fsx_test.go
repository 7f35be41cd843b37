package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"blobmount/integration/blobserver"
	"blobmount/integration/mounttest"
)

// fsxVariable names a program that is called like fsx of xfstests (ltp/fsx.c, which has a licence of its own and is
// no part of this project): random reads, writes, mapped reads and writes, truncates, holes, copies and reopens of one
// file, each compared with what it must be.
const fsxVariable = "BLOBMOUNT_FSX"

// fsx finds no difference on a mount whose service refuses, breaks off and loses answers.
func TestMountFsx(t *testing.T) {
	program := os.Getenv(fsxVariable)
	if program == "" {
		t.Skipf("%s does not name an fsx program; the scenario Model checks the same with operations of its own", fsxVariable)
	}
	operations := 2000
	if mounttest.Long() {
		operations = 100_000
	}
	seed := 1 + rand.IntN(1_000_000)
	for _, c := range []struct {
		name       string
		operations int
		args       []string
	}{
		{"Open", operations, nil},                                                         // one handle from the start to the end
		{"Reopen", operations, []string{"-c", "20"}},                                      // closed and opened after one in 20 operations: small commits
		{"Large", operations / 10, []string{"-l", "5000000", "-o", "400000", "-c", "50"}}, // many blocks
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newFaultyWorld(t)
			args := append([]string{"-N", fmt.Sprint(c.operations), "-S", fmt.Sprint(seed), "-P", t.TempDir()}, c.args...)
			out, err := exec.CommandContext(t.Context(), program, append(args, w.path("file"))...).CombinedOutput()
			if err != nil {
				t.Fatalf("fsx %q: %v\n%s", args, err, tail(out, 4000))
			}
			content, err := os.ReadFile(w.path("file"))
			must(t, err)
			w.faults.clear()
			w.holds("file", content)
		})
	}
}

// fio finds each block that it wrote on such a mount, also after a remount with an empty cache.
func TestMountFioFaulty(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed; TestMountUnreliable checks the same with files of its own")
	}
	size := "4m"
	if mounttest.Long() {
		size = "64m"
	}
	w := newFaultyWorld(t)
	run := func(more ...string) {
		t.Helper()
		args := append([]string{"fio", "--name=faulty", "--directory=" + w.Dir, "--rw=randrw", "--bsrange=512-128k", "--bs_unaligned",
			"--size=" + size, "--numjobs=2", "--ioengine=psync", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
			"--fsync=64", "--end_fsync=1", "--randseed=11", "--output-format=terse"}, more...)
		command(t, t.TempDir(), nil, args...)
	}
	run()
	w.remount()
	run("--verify_only=1", "--invalidate=0")
	w.faults.clear()
}

// faultyWorld is a world whose service is unreliable.
type faultyWorld struct {
	*world
	faults *faults
}

// faults are those of an unreliable service.
type faults struct {
	t      *testing.T
	server *blobserver.Server
	hits   map[string]func() int
}

func newFaultyWorld(t *testing.T) *faultyWorld {
	t.Helper()
	s := mounttest.Embedded(t)
	w := &faultyWorld{newWorld(t, s, faultyFlags...), &faults{t: t, server: s.Embedded, hits: map[string]func() int{}}}
	add := func(what string, nth int, f blobserver.Fault) {
		random := s.Embedded.AddFault(f)
		f.Nth = nth // so that each run is hit at least once
		fixed := s.Embedded.AddFault(f)
		w.faults.hits[what] = func() int { return random() + fixed() }
	}
	add("refused", 20, blobserver.Fault{Probability: 0.03, Status: 503, Code: "ServerBusy"})
	add("broken", 30, blobserver.Fault{Probability: 0.01, Action: blobserver.Break, Bytes: 10_000})
	add("lost", 40, blobserver.Fault{Probability: 0.01, Action: blobserver.LoseReply})
	return w
}

var faultyFlags = []string{"--block-size=64KiB", "--log-level=warn"}

// remount mounts with an empty cache.
func (w *faultyWorld) remount() {
	w.t.Helper()
	w.Remount(faultyFlags...)
}

// clear ends the faults, and fails the test if there were none.
func (f *faults) clear() {
	f.t.Helper()
	for name, hits := range f.hits {
		if hits() == 0 {
			f.t.Errorf("no request was %s: nothing is proven of it", name)
		}
	}
	f.server.ClearFaults()
}

// tail returns the end of a text.
func tail(text []byte, most int) []byte { return text[max(0, len(text)-most):] }
