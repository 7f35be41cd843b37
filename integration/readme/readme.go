// Package readme keeps the parts of README.md that are generated from code as the code has them.
package readme

import (
	"os"
	"strings"
	"testing"
)

// Keep fails the test when the text between two marks of a file is not want, or writes it if update is set. command is
// what a person runs to have it written.
func Keep(t *testing.T, file, begin, end, want, command string, update bool) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks %q and %q", file, begin, end)
	}
	if got == want {
		return
	}
	if !update {
		t.Fatalf("what %s has between %q and %q differs from the code: run %s", file, begin, end, command)
	}
	if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
