package mounttest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Bounds. A daemon that has nothing to write ends in milliseconds; these only keep a broken one from hanging the test.
const (
	runBound = 60 * time.Second
	endBound = 60 * time.Second
)

// Point is a mount point with its cache directory, on which a container is mounted, unmounted, and mounted again. It
// belongs to one test, whose end unmounts it.
type Point struct {
	Dir   string // the mount point
	Cache string // the cache directory
	Log   string // the log file of all its mounts

	t         testing.TB
	service   *Service
	container string
	mounted   bool
	known     map[int]bool // daemons that were seen and have not been seen to end
	expected  []string     // parts of messages
	allowed   []string     // parts of messages that need not come
	env       []string
}

// NewPoint makes a mount point for a container, mounted by Mount.
func (s *Service) NewPoint(t testing.TB, c *Container) *Point {
	t.Helper()
	NeedFUSE(t)
	base, err := filepath.EvalSymlinks(t.TempDir()) // as the mount table has it
	if err != nil {
		t.Fatal(err)
	}
	p := &Point{
		Dir: filepath.Join(base, "mnt"), Cache: filepath.Join(base, "cache"), Log: filepath.Join(base, "log"),
		t: t, service: s, container: c.Name, known: map[int]bool{},
	}
	if err := os.Mkdir(p.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

// ExpectError allows lines of level ERROR in the log whose message contains text. At least one must come.
func (p *Point) ExpectError(text string) { p.expected = append(p.expected, text) }

// AllowError allows lines of level ERROR in the log whose message contains text, if they come.
func (p *Point) AllowError(text string) { p.allowed = append(p.allowed, text) }

// Setenv sets a variable in the environment of the runs that follow, as "NAME=value".
func (p *Point) Setenv(variable string) { p.env = append(p.env, variable) }

// Source is what Mount mounts.
func (p *Point) Source() string { return "az://" + p.container }

// Result is the outcome of a run of the program.
type Result struct {
	Status         int
	Stdout, Stderr string
}

// Run runs the program. Nothing of this process's environment reaches it but PATH and HOME.
func (p *Point) Run(args ...string) Result {
	p.t.Helper()
	return p.RunAs(Binary(p.t), args...)
}

// RunAs is Run with another path for the program, such as a symbolic link to it.
func (p *Point) RunAs(program string, args ...string) Result {
	p.t.Helper()
	cmd := exec.Command(program, args...) // not with the test's context: the end of the test unmounts
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"AZURE_STORAGE_CONNECTION_STRING=" + p.service.connection,
		// The race detector makes a process wait a second before it ends.
		"GORACE=atexit_sleep_ms=0",
	}, p.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	timer := time.AfterFunc(runBound, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		p.t.Fatal(err)
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// flags returns the flags of every mount, so that log and cache are where the Point says. They come first: later ones
// win.
func (p *Point) flags() []string {
	return []string{"--cache-dir", p.Cache, "--log-file", p.Log, "--log-format=json"}
}

// Mount mounts the container in the background, with more flags.
func (p *Point) Mount(flags ...string) {
	p.t.Helper()
	args := slices.Concat(p.flags(), flags, []string{p.Source(), p.Dir})
	if r := p.Run(args...); r.Status != 0 || r.Stdout != "" || r.Stderr != "" {
		p.t.Fatalf("mount: %+v", r)
	}
	p.mounted = true
	p.PID() // so that it is known when it ends
}

// Unmount unmounts, and returns when the daemon has ended.
func (p *Point) Unmount() {
	p.t.Helper()
	if r := p.Run("unmount", p.Dir); r.Status != 0 || r.Stdout != "" || r.Stderr != "" {
		p.t.Fatalf("unmount: %+v", r)
	}
	p.Gone()
}

// Remount unmounts and mounts with an empty cache, so that everything read afterwards comes from the service.
func (p *Point) Remount(flags ...string) {
	p.t.Helper()
	p.Unmount()
	p.EmptyCache()
	p.Mount(flags...)
}

// EmptyCache deletes the cache directory. Nothing must be mounted.
func (p *Point) EmptyCache() {
	p.t.Helper()
	if p.mounted {
		p.t.Fatal("the cache is emptied under a mount")
	}
	if err := os.RemoveAll(p.Cache); err != nil {
		p.t.Fatal(err)
	}
}

// Gone fails the test unless nothing is mounted and, within a bound, no daemon is left.
func (p *Point) Gone() {
	p.t.Helper()
	p.mounted = false
	p.AwaitEnd()
	if IsMounted(p.t, p.Dir) {
		p.t.Errorf("%s is still mounted", p.Dir)
	}
}

// AwaitEnd waits for the daemon to end, whether or not it leaves a dead mount.
func (p *Point) AwaitEnd() {
	p.t.Helper()
	for deadline := time.Now().Add(endBound); ; time.Sleep(time.Millisecond) {
		pids := p.daemons()
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Errorf("processes %v have not ended within %v", pids, endBound)
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL) // may have ended just now
			}
			return
		}
	}
}

// PID returns the process number of the daemon.
func (p *Point) PID() int {
	p.t.Helper()
	pids := p.daemons()
	if len(pids) != 1 {
		p.t.Fatalf("there are %d daemons: %v", len(pids), pids)
	}
	return pids[0]
}

// daemons returns the processes that run the program and name the mount point in their arguments, and those of them
// that were seen before and have not ended.
func (p *Point) daemons() []int {
	p.t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		p.t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p.isDaemon(pid) {
			p.known[pid] = true
		} else if p.known[pid] && hasEnded(pid) {
			delete(p.known, pid)
		}
		if p.known[pid] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isDaemon reports whether a process runs the program for this mount point. Processes end while we look: an error
// means that this one is not running any more.
func (p *Point) isDaemon(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || exe != Binary(p.t) {
		return false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && slices.Contains(strings.Split(string(args), "\x00"), p.Dir)
}

// hasEnded reports whether all threads of a process have let go of its files. One that is being killed has no program
// any more, but the kernel goes on taking requests for its mount until then.
func hasEnded(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern has no error in it
	for _, thread := range threads {
		stat, readErr := os.ReadFile(thread)
		if readErr != nil {
			continue // ended just now
		}
		// ID (COMMAND) STATE ...: zombies (Z) and the dead (X) have nothing.
		after := stat[bytes.LastIndexByte(stat, ')')+1:]
		if len(after) > 1 && after[1] != 'Z' && after[1] != 'X' {
			return false
		}
	}
	return err == nil
}

// RSS returns the physical memory that the daemon uses, in bytes.
func (p *Point) RSS() int64 {
	p.t.Helper()
	return p.memory("VmRSS")
}

// PeakRSS returns the most physical memory that the daemon has used so far, in bytes.
func (p *Point) PeakRSS() int64 {
	p.t.Helper()
	return p.memory("VmHWM")
}

// memory returns a line of the daemon's status, in bytes.
func (p *Point) memory(name string) int64 {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, name+": %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	p.t.Fatalf("no %s in %s", name, status)
	return 0
}

// Signal sends a signal to the daemon.
func (p *Point) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(p.PID(), s); err != nil {
		p.t.Fatal(err)
	}
}

// Line is one line of the log.
type Line struct {
	Level   string `json:"level"`
	Message string `json:"msg"`
	Text    string `json:"-"` // all of it
}

// LogLines returns the log of all mounts so far. A line that is not JSON, such as that of a crash or of the race
// detector, has the level ERROR.
func (p *Point) LogLines() []Line {
	p.t.Helper()
	text, err := os.ReadFile(p.Log)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		p.t.Fatal(err)
	}
	var lines []Line
	for s := range strings.Lines(string(text)) {
		s = strings.TrimSuffix(s, "\n")
		l := Line{Text: s}
		if json.Unmarshal([]byte(s), &l) != nil {
			l = Line{Level: "ERROR", Text: s}
		}
		lines = append(lines, l)
	}
	return lines
}

// AwaitLog waits for a line of the log whose message contains text.
func (p *Point) AwaitLog(text string) {
	p.t.Helper()
	for deadline := time.Now().Add(endBound); ; time.Sleep(time.Millisecond) {
		for _, l := range p.LogLines() {
			if strings.Contains(l.Message, text) {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the log has no line with %q", text)
		}
	}
}

// end unmounts what the test left mounted, and judges the log.
func (p *Point) end() {
	if p.mounted {
		if r := p.Run("unmount", p.Dir); r.Status != 0 {
			p.t.Errorf("unmount at the end of the test: %+v", r)
		}
	}
	for IsMounted(p.t, p.Dir) { // of a test that failed
		if err := syscall.Unmount(p.Dir, syscall.MNT_DETACH); err != nil {
			p.t.Error(err)
			break
		}
	}
	p.AwaitEnd()
	seen := map[string]bool{}
	for _, l := range p.LogLines() {
		if l.Level != "ERROR" || slices.ContainsFunc(p.allowed, func(text string) bool { return strings.Contains(l.Message, text) }) {
			continue
		}
		known := slices.IndexFunc(p.expected, func(text string) bool { return strings.Contains(l.Message, text) })
		if known < 0 {
			p.t.Errorf("in the log: %s", l.Text)
			continue
		}
		seen[p.expected[known]] = true
	}
	for _, text := range p.expected {
		if !seen[text] {
			p.t.Errorf("no line of level ERROR with %q in the log", text)
		}
	}
	if p.t.Failed() {
		lines := p.LogLines()
		for _, l := range lines[max(0, len(lines)-40):] {
			p.t.Log(l.Text)
		}
	}
}

// IsMounted reports whether anything is mounted on exactly this directory.
func IsMounted(t testing.TB, dir string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	// The kernel writes space, tab, newline and backslash in octal.
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == escaped {
			return true
		}
	}
	return false
}
