package fs

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A panic of a handler ends the process, by an exit status of its own and one line in the log that says what to do.
func TestFailStop(t *testing.T) {
	const child = "BLOBMOUNT_TEST_FAIL_STOP"
	if os.Getenv(child) != "" {
		handler := serverOptions(Options{Cache: newKernel(t, 0).fs.cache, Log: slog.New(slog.NewJSONHandler(os.Stderr, nil))}).PanicHandler
		defer func() { handler(recover()) }()
		panic("broken invariant")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFailStop$")
	cmd.Env = append(os.Environ(), child+"=1")
	var log bytes.Buffer
	cmd.Stderr = &log
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitDefect {
		t.Errorf("it ended by %v, want status %d", err, exitDefect)
	}
	line := strings.TrimSpace(log.String())
	for _, want := range []string{"broken invariant", "TestFailStop", "mount again"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is missing from the log:\n%s", want, line)
		}
	}
	if strings.Contains(line, "\n") {
		t.Errorf("more than one line:\n%s", line)
	}
}
