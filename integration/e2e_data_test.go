package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"blobmount/integration/mounttest"
)

// peakBound is what the daemon may use of memory with the default --memory, in bytes: 192 MiB of data and what the
// program itself needs.
const peakBound = 300 << 20

// A file larger than the daemon's memory, of bytes that no compression or zero detection can help with, is written
// by dd and read back from the service, within the bound of memory.
func testLargeFile(t *testing.T, s *mounttest.Service) {
	size := int64(512 << 20)
	if s.Embedded == nil {
		size = 256 << 20
	}
	if mounttest.Long() {
		size = 2 << 30
	}
	w := newWorld(t, s)
	sum := sha256.New()
	random := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum)
	dd := exec.CommandContext(t.Context(), "dd", "of="+w.path("large"), "bs=1M", "iflag=fullblock", "conv=fsync", "status=none")
	dd.Stdin = random
	if out, err := dd.CombinedOutput(); err != nil {
		t.Fatalf("dd: %v: %s", err, out)
	}
	writing := w.PeakRSS()
	w.Remount()
	got := sha256.New()
	f := w.open("large", os.O_RDONLY)
	n, err := io.Copy(got, f)
	must(t, err)
	must(t, f.Close())
	if n != size || !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Errorf("read %d bytes with checksum %x, written %d with %x", n, got.Sum(nil), size, sum.Sum(nil))
	}
	reading := w.PeakRSS()
	t.Logf("peak of memory: %d MiB writing, %d MiB reading %d MiB", writing>>20, reading>>20, size>>20)
	if mounttest.Race() {
		return // its own memory is several times the program's
	}
	if max(writing, reading) > peakBound {
		t.Errorf("the daemon used %d MiB writing and %d MiB reading, want at most %d", writing>>20, reading>>20, int64(peakBound)>>20)
	}
}

// fio finds each block that it wrote, while it writes and again in the service, in order and at random.
func testFio(t *testing.T, s *mounttest.Service) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed; the scenario Model checks the same with programs of its own")
	}
	w := newWorld(t, s)
	for _, mode := range []string{"write", "randwrite"} {
		for _, block := range []struct {
			size, file string
		}{{"4k", "4m"}, {"1m", "24m"}} {
			t.Run(mode+" "+block.size, func(t *testing.T) {
				run := func(more ...string) {
					t.Helper()
					args := append([]string{
						"fio", "--name=" + mode + block.size, "--directory=" + w.Dir, "--rw=" + mode, "--bs=" + block.size,
						"--size=" + block.file, "--numjobs=4", "--ioengine=psync", "--verify=crc32c", "--verify_fatal=1",
						"--do_verify=1", "--end_fsync=1", "--randseed=7", "--allow_file_create=1", "--output-format=terse",
					}, more...)
					command(t, t.TempDir(), nil, args...)
				}
				run()
				w.Remount()
				run("--verify_only=1", "--invalidate=0")
			})
		}
	}
	// That a wrong byte would be found.
	damaged := fmt.Sprintf("%s%s.0.0", "write", "1m")
	content := w.Get(damaged)
	content[len(content)/2] ^= 1
	w.Unmount()
	w.EmptyCache()
	w.Put(damaged, content)
	w.Mount()
	cmd := exec.CommandContext(t.Context(), "fio", "--name=write1m", "--directory="+w.Dir, "--rw=write", "--bs=1m", "--size=24m",
		"--numjobs=4", "--ioengine=psync", "--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--verify_only=1")
	cmd.Dir = t.TempDir()
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("fio does not find a wrong byte: %s", out)
	}
}
