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

// harmless are signals that runtimes send to themselves all the time: SIGURG (Go), SIGPROF, SIGVTALRM, SIGCHLD,
// SIGWINCH, SIGCONT. A program does not expect EINTR from open or close because of them.
const harmless uint64 = 1<<(23-1) | 1<<(27-1) | 1<<(26-1) | 1<<(17-1) | 1<<(28-1) | 1<<(18-1)

// mustNotice reports whether a process has a signal waiting that is neither blocked, ignored, nor harmless, or is gone.
func mustNotice(pid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		// A caller in another pid namespace cannot be looked at: believe the kernel.
		return true
	}
	pending, masked, err := signals(status)
	return err != nil || pending&^masked&^harmless != 0
}

// signals returns the pending signals of a /proc/PID/status, and those that are blocked or ignored.
func signals(status []byte) (pending, masked uint64, err error) {
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
		default:
			continue
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil {
			return 0, 0, err
		}
		*to |= n
		found++
	}
	if found != 4 {
		return 0, 0, errors.New("status lacks signal masks")
	}
	return pending, masked, nil
}

var _ context.Context = (*request)(nil)
