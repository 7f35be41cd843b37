// Package mounttest runs the built program on real FUSE mounts, for end-to-end tests. What it starts it ends with
// the test: mounts, daemons and services; and it fails the test when a daemon does not end or its log has errors
// that the test did not expect.
package mounttest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// The environment variables that choose what is run. The defaults keep the end-to-end tests at a few minutes.
const (
	// RaceVariable builds the program with the race detector, whose reports are then lines of the log that fail the
	// test. It needs a C compiler.
	RaceVariable = "BLOBMOUNT_E2E_RACE"
	// LongVariable lets tests work on as much data as the project promises to prove: all of GOROOT/src, 2 GiB.
	LongVariable = "BLOBMOUNT_E2E_LONG"
)

// Long reports whether the whole amount of data is wanted.
func Long() bool { return os.Getenv(LongVariable) != "" }

// Race reports whether the program is built with the race detector.
func Race() bool { return os.Getenv(RaceVariable) != "" }

var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Binary returns the path of the program, which is built at the first call. Main deletes it.
func Binary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "blobmount-e2e-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "blobmount")
		args := []string{"build", "-o", built.path}
		if Race() {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "blobmount/cmd/blobmount")...).CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build blobmount: %w\n%s", err, bytes.TrimSpace(out))
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// Main is for TestMain: it runs the tests and deletes the program.
func Main(m *testing.M) {
	status := m.Run()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

// NeedFUSE skips the test on a machine without /dev/fuse. Where CI is set in the environment it fails instead: a
// suite that skips what it is for proves nothing.
func NeedFUSE(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}
