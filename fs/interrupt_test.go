package fs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSignals(t *testing.T) {
	status := func(pending, shared, blocked, ignored string) string {
		return fmt.Sprintf("Name:\tSigPnd: 7\nSigQ:\t0/1\nSigPnd:\t%s\nShdPnd:\t%s\nSigBlk:\t%s\nSigIgn:\t%s\nSigCgt:\tffffffffffffffff\n",
			pending, shared, blocked, ignored)
	}
	for _, c := range []struct {
		text            string
		pending, masked uint64
		ok              bool
	}{
		{status("0000000000000000", "0000000000000000", "0000000000000000", "0000000000000000"), 0, 0, true},
		{status("0000000000000001", "0000000000004000", "0000000000000002", "0000000000001000"), 0x4001, 0x1002, true},
		{status("8000000000000000", "0", "0", "0"), 1 << 63, 0, true},
		{status("xyz", "0", "0", "0"), 0, 0, false},
		{status("10000000000000000", "0", "0", "0"), 0, 0, false},
		{strings.Replace(status("1", "0", "0", "0"), "SigIgn", "SigOther", 1), 0, 0, false},
		{"", 0, 0, false},
	} {
		pending, masked, caught, err := signals([]byte(c.text))
		if pending != c.pending || masked != c.masked || (err == nil) != c.ok || c.ok != (caught == math.MaxUint64) {
			t.Errorf("%q: %#x, %#x, %#x, %v", c.text, pending, masked, caught, err)
		}
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := signals(own); err != nil {
		t.Errorf("the status of this process: %v", err)
	}
}

func TestHarmless(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGURG, syscall.SIGPROF, syscall.SIGVTALRM, syscall.SIGCHLD, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU} {
		if harmless&(1<<(s-1)) == 0 {
			t.Errorf("%v is not harmless", s)
		}
	}
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGHUP, syscall.SIGALRM, syscall.SIGUSR1} {
		if harmless&(1<<(s-1)) != 0 {
			t.Errorf("%v is harmless", s)
		}
	}
}

// A waiting SIGPROF is nothing to a process, a waiting SIGTERM is. Signals to a stopped process wait.
func TestMustNotice(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	}()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("not stopped: %v, %v", status, err)
	}
	for _, c := range []struct {
		signal syscall.Signal
		want   bool
	}{{syscall.SIGPROF, false}, {syscall.SIGVTALRM, false}, {syscall.SIGTSTP, false}, {syscall.Signal(34), true}, {syscall.SIGTERM, true}} {
		if err := syscall.Kill(pid, c.signal); err != nil {
			t.Fatal(err)
		}
		if got := mustNotice(uint32(pid)); got != c.want {
			t.Errorf("with %v waiting: %v", c.signal, got)
		}
	}
}

// A signal by which a runtime halts its own threads is nothing to a process that catches it: others it ends.
func TestMustNoticeCaught(t *testing.T) {
	status := func(caught string) []byte {
		return []byte("SigPnd:\t0000000200000000\nShdPnd:\t0\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t" + caught + "\n")
	}
	if !noticed(status("0")) || noticed(status("0000000200000000")) {
		t.Error("SIGRTMIN is judged the other way round")
	}
}

// A request ends for a caller that has gone; for one that only was disturbed it goes on, and starts nothing unless
// somebody waits.
func TestRequest(t *testing.T) {
	interrupted := make(chan struct{})
	close(interrupted)
	gone := newRequest(interrupted, 1<<22+1) // above the largest process number of Linux
	select {
	case <-gone.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("a request of a process that is gone does not end")
	}
	if !errors.Is(gone.Err(), context.Canceled) {
		t.Errorf("its error is %v", gone.Err())
	}
	gone.end()

	disturbed := newRequest(interrupted, uint32(os.Getpid())) // no signal is waiting for us
	done := disturbed.Done()
	select {
	case <-done:
		t.Error("a request ends although no signal is waiting")
	case <-time.After(2 * recheck):
	}
	if disturbed.Err() != nil {
		t.Errorf("its error is %v", disturbed.Err())
	}
	disturbed.end()

	quiet := newRequest(make(chan struct{}), 1)
	if quiet.Err() != nil || quiet.done != nil {
		t.Error("a request that nobody waits for has started something")
	}
	quiet.end()
}
