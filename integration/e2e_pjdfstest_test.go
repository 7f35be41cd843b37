package integration

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"blobmount/integration/mounttest"
)

// pjdfstestVariable names a checkout of pjdfstest (https://github.com/pjd/pjdfstest, with a licence of its own and no
// part of this project) in which the program was built: 8,800 checks of what POSIX system calls answer.
const pjdfstestVariable = "BLOBMOUNT_PJDFSTEST"

var updatePOSIX = flag.Bool("update-posix", false, "write the figures of TestMountPjdfstest into POSIX.md")

// The reasons for which a check may fail. All others must pass.
const (
	hardLinks   = "needs hard links"
	deviceNodes = "needs device nodes"
	longPaths   = "has a path of more than 1,024 characters, the most that a blob's name has"
	parentLinks = "counts the subdirectories of a directory in its number of links"
)

// namedReasons are the checks of which neither text nor control says why they fail.
var namedReasons = map[string]map[int]string{
	// Times after a link or mknod that is refused. In the control it has happened and was undone, so that they have changed.
	"link/00.t":   {134: hardLinks, 135: hardLinks, 136: hardLinks, 141: hardLinks, 142: hardLinks, 143: hardLinks, 162: hardLinks, 163: hardLinks, 164: hardLinks},
	"mknod/11.t":  {12: deviceNodes, 13: deviceNodes, 25: deviceNodes, 26: deviceNodes},
	"rename/24.t": {4: parentLinks, 9: parentLinks},
}

// A mount fails no check of pjdfstest but for the reasons above. What needs hard links or device nodes is found by a
// control: the same checks on a local directory with a program that refuses the two.
func TestMountPjdfstest(t *testing.T) {
	source := os.Getenv(pjdfstestVariable)
	if source == "" {
		t.Skipf("%s does not name a built checkout of pjdfstest; POSIX.md has the figures of the last run", pjdfstestVariable)
	}
	mounttest.Binary(t)
	w := newWorld(t, mounttest.Embedded(t), "--allow-other", "-o", "suid")
	must(t, os.Chmod(filepath.Dir(t.TempDir()), 0o755)) // for the checks that are made as other users
	on := runPjdfstest(t, source, w.Dir)
	noLinks := runPjdfstest(t, refusing(t, source, "link"), t.TempDir())
	neither := runPjdfstest(t, refusing(t, source, "link mknod"), t.TempDir())

	reasons := map[string]int{}
	groups := map[string]map[string]int{}
	passed := 0
	for _, file := range slices.Sorted(maps.Keys(on)) {
		for n, c := range on[file] {
			if c.passed {
				passed++
				continue
			}
			reason := namedReasons[file][n]
			switch {
			case reason != "":
			case failed(noLinks, file, n):
				reason = hardLinks
			case failed(neither, file, n):
				reason = deviceNodes
			case longest(c.text) > 1024:
				reason = longPaths
			default:
				t.Errorf("%s: check %d%s", file, n, c.text)
				continue
			}
			reasons[reason]++
			group, _, _ := strings.Cut(file, "/")
			if groups[group] == nil {
				groups[group] = map[string]int{}
			}
			groups[group][reason]++
		}
	}
	t.Logf("%d files, %d checks passed, failed: %v", len(on), passed, reasons)
	if passed < 6000 || reasons[hardLinks] == 0 || reasons[deviceNodes] == 0 {
		t.Error("these are not the figures of a whole run")
	}
	if *updatePOSIX && !t.Failed() {
		commit := strings.TrimSpace(command(t, source, nil, "git", "rev-parse", "HEAD"))
		writePOSIX(t, commit, len(on), passed, groups)
	}
}

// verdict is one line of a test file's answer.
type verdict struct {
	passed bool
	text   string
}

func failed(checks map[string]map[int]verdict, file string, n int) bool {
	c, ok := checks[file][n]
	return ok && !c.passed
}

// longest returns the length of the longest word.
func longest(text string) int {
	most := 0
	for _, word := range strings.Fields(text) {
		most = max(most, len(strings.Trim(word, `',`)))
	}
	return most
}

var (
	checkLine = regexp.MustCompile(`(?m)^(not )?ok (\d+)(.*)$`)
	planLine  = regexp.MustCompile(`(?m)^1\.\.(\d+)$`)
)

// atOnce is how many test files are run at a time: most of their time they sleep, to see times change.
const atOnce = 6

// runPjdfstest runs all test files, each in a directory of its own below dir, and returns their checks by number. Those
// that pjdfstest itself expects to fail ("TODO") count as passed.
func runPjdfstest(t *testing.T, source, dir string) map[string]map[int]verdict {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(source, "tests", "*", "*.t"))
	must(t, err)
	if len(files) < 200 {
		t.Fatalf("%s has %d test files", source, len(files))
	}
	var mu sync.Mutex // guards out
	out := map[string]map[int]verdict{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, path := range files {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			checks, err := runTestFile(t.Context(), path, filepath.Join(dir, fmt.Sprint("run", i)))
			name := filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = checks
		})
	}
	wg.Wait()
	return out
}

// runTestFile runs one test file in a new directory, which it removes.
func runTestFile(ctx context.Context, path, dir string) (map[int]verdict, error) {
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil { // whatever the umask
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	text, err := exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$0" && exec sh "$1" 2>/dev/null`, dir, path).Output()
	if err != nil {
		return nil, err
	}
	checks := map[int]verdict{}
	for _, m := range checkLine.FindAllSubmatch(text, -1) {
		n, err := strconv.Atoi(string(m[2]))
		if err != nil {
			return nil, err
		}
		checks[n] = verdict{len(m[1]) == 0 || bytes.Contains(m[3], []byte("# TODO")), string(m[3])}
	}
	plan := planLine.FindSubmatch(text)
	if plan == nil || string(plan[1]) != strconv.Itoa(len(checks)) {
		return checks, fmt.Errorf("%d checks, planned were %q", len(checks), plan)
	}
	return checks, exec.CommandContext(ctx, "rm", "-rf", dir).Run()
}

// refusing returns a directory that is used like a checkout, whose program refuses some calls with EPERM: they are made,
// so that every other error is the kernel's, and undone.
func refusing(t *testing.T, source, calls string) string {
	t.Helper()
	const script = `#!/bin/sh
out=$(%[1]s "$@")
status=$?
while case "$1" in -?) true ;; *) false ;; esac; do shift 2; done
made=
if [ "$out" = 0 ]; then
	case "%[2]s" in *link*) [ "$1" != link ] || made=$3 ;; esac
	case "%[2]s:$1:$3" in *mknod:mknod:[bc]) made=$2 ;; esac
fi
if [ -n "$made" ]; then
	%[1]s unlink "$made" >/dev/null
	echo EPERM
	exit 1
fi
echo "$out"
exit $status
`
	dir := t.TempDir()
	must(t, os.Symlink(filepath.Join(source, "tests"), filepath.Join(dir, "tests")))
	text := fmt.Sprintf(script, filepath.Join(source, "pjdfstest"), calls)
	must(t, os.WriteFile(filepath.Join(dir, "pjdfstest"), []byte(text), 0o755))
	return dir
}

// The lines of POSIX.md between which writePOSIX writes.
const (
	posixBegin = "<!-- figures of TestMountPjdfstest -->\n"
	posixEnd   = "<!-- end -->\n"
)

func writePOSIX(t *testing.T, commit string, files, passed int, groups map[string]map[string]int) {
	t.Helper()
	all := []string{hardLinks, deviceNodes, longPaths, parentLinks}
	var table strings.Builder
	sums := map[string]int{}
	failures := 0
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		fmt.Fprintf(&table, "| %s |", group)
		for _, reason := range all {
			n := groups[group][reason]
			sums[reason] += n
			failures += n
			if n == 0 {
				table.WriteString(" |")
			} else {
				fmt.Fprintf(&table, " %d |", n)
			}
		}
		table.WriteString("\n")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "pjdfstest at commit `%s`: %d files, %d checks, **%d passed, %d failed**. A check that failed\n\n", commit, files, passed+failures, passed, failures)
	fmt.Fprintf(&b, "| Group | %s |\n|---|%s\n", strings.Join(all, " | "), strings.Repeat("---|", len(all)))
	b.WriteString(table.String())
	b.WriteString("| **all** |")
	for _, reason := range all {
		fmt.Fprintf(&b, " **%d** |", sums[reason])
	}
	b.WriteString("\n")

	old, err := os.ReadFile("POSIX.md")
	must(t, err)
	before, rest, ok := strings.Cut(string(old), posixBegin)
	_, after, ok2 := strings.Cut(rest, posixEnd)
	if !ok || !ok2 {
		t.Fatal("POSIX.md has no place for the figures")
	}
	must(t, os.WriteFile("POSIX.md", []byte(before+posixBegin+"\n"+b.String()+"\n"+posixEnd+after), 0o644))
}
