package fs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// request is the context of one request of the kernel. It ends when the caller is interrupted by a signal that it
// should notice. Nothing is started for it until somebody waits on Done.
type request struct {
	context.Context // values and deadline
	interrupted     <-chan struct{}
	pid             uint32

	mu    sync.Mutex // guards what is below
	done  chan struct{}
	ended chan struct{} // closed by end, so that the watcher stops
	err   error
}

func newRequest(cancel <-chan struct{}, pid uint32) *request {
	return &request{Context: context.Background(), interrupted: cancel, pid: pid}
}

// Done implements context.Context.
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		r.done, r.ended = make(chan struct{}), make(chan struct{})
		go r.watch(r.ended)
	}
	return r.done
}

// Err implements context.Context.
func (r *request) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// end releases what Done has started. It is called once, after the operation.
func (r *request) end() {
	r.mu.Lock()
	if r.ended != nil {
		close(r.ended)
	}
	r.mu.Unlock()
}

// recheck is how often a caller that was interrupted by a harmless signal is looked at again: the kernel tells only
// of the first signal.
const recheck = 200 * time.Millisecond

func (r *request) watch(ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-r.interrupted:
	}
	for !mustNotice(r.pid) {
		select {
		case <-ended:
			return
		case <-time.After(recheck):
		}
	}
	r.mu.Lock()
	r.err = context.Canceled
	close(r.done)
	r.mu.Unlock()
}

// harmless are signals that runtimes send to themselves all the time, SIGURG (Go), SIGPROF, SIGVTALRM, SIGCHLD, SIGWINCH,
// and those that stop a process and let it go on: SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT. A program does not expect
// EINTR from open or close because of them. One that is to stop does so when the operation has ended.
const harmless uint64 = 1<<(23-1) | 1<<(27-1) | 1<<(26-1) | 1<<(17-1) | 1<<(28-1) |
	1<<(19-1) | 1<<(20-1) | 1<<(21-1) | 1<<(22-1) | 1<<(18-1)

// harmlessIfCaught are signals that a runtime has for its own threads if it catches them, and that end the process
// otherwise: 32 and 33 (the C library's, nptl(7)) and 34 (SIGRTMIN, by which .NET halts threads for a collection).
const harmlessIfCaught uint64 = 1<<(32-1) | 1<<(33-1) | 1<<(34-1)

// mustNotice reports whether a process has a signal waiting that is neither blocked, ignored, nor harmless, or is gone.
func mustNotice(pid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		// A caller in another pid namespace cannot be looked at: believe the kernel.
		return true
	}
	return noticed(status)
}

// noticed is mustNotice for the text of a /proc/PID/status.
func noticed(status []byte) bool {
	pending, masked, caught, err := signals(status)
	return err != nil || pending&^masked&^harmless&^(caught&harmlessIfCaught) != 0
}

// signals returns the pending signals of a /proc/PID/status, those that are blocked or ignored, and those that are caught.
func signals(status []byte) (pending, masked, caught uint64, err error) {
	found := 0
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		name, value, ok := bytes.Cut(s.Bytes(), []byte(":"))
		if !ok {
			continue
		}
		var to *uint64
		switch string(name) {
		case "SigPnd", "ShdPnd":
			to = &pending
		case "SigBlk", "SigIgn":
			to = &masked
		case "SigCgt":
			to = &caught
		default:
			continue
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil {
			return 0, 0, 0, err
		}
		*to |= n
		found++
	}
	if found != 5 {
		return 0, 0, 0, errors.New("status lacks signal masks")
	}
	return pending, masked, caught, nil
}

var _ context.Context = (*request)(nil)
