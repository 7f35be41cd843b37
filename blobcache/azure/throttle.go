package azure

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
)

// throttle puts the limiter in the way of each try. A try takes a slot before it is signed and sent, and gives it back
// when it has failed, or its answer's body was read to the end or closed. Its methods may be called in parallel.
type throttle struct {
	log *slog.Logger

	mu      sync.Mutex // guards what is below, and what slot and slotBody say
	limiter limiter
	timer   *time.Timer // calls wake
	armed   time.Time   // the end of the hold that timer is set to
}

func newThrottle(maxTries int, log *slog.Logger) *throttle {
	return &throttle{log: log, limiter: newLimiter(maxTries)}
}

// heldError is a try that was not sent, since the service asked to wait for longer than its operation may.
type heldError struct{ hold time.Duration }

func (e *heldError) Error() string {
	return fmt.Sprintf("the service throttles, and asked for no requests in the next %v", e.hold.Round(time.Second))
}

// acquire waits for a slot, in the order of the calls. left is how long Retry-After may hold it back; what would be held
// back for longer gets a heldError at once. It returns how long it waited otherwise.
func (t *throttle) acquire(ctx context.Context, left time.Duration) (*slot, time.Duration, error) {
	t.mu.Lock()
	now := time.Now()
	p := t.limiter.enter(now, left)
	t.arm(now)
	t.mu.Unlock()
	select {
	case <-p.ready: // p does not change any more
	case <-ctx.Done():
		t.mu.Lock()
		t.limiter.leave(time.Now(), p)
		t.mu.Unlock()
		return nil, 0, ctx.Err()
	}
	if p.state == refused {
		return nil, 0, &heldError{p.hold}
	}
	return &slot{throttle: t, pass: p}, p.queued, nil
}

// arm sets the timer to the end of the hold, if somebody waits for it. t.mu is held.
func (t *throttle) arm(now time.Time) {
	until := t.limiter.until
	if len(t.limiter.queue) == 0 || !now.Before(until) || until.Equal(t.armed) {
		return
	}
	t.armed = until
	if t.timer == nil {
		t.timer = time.AfterFunc(until.Sub(now), t.wake)
	} else {
		t.timer.Reset(until.Sub(now))
	}
}

func (t *throttle) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limiter.admit(time.Now())
}

// slot is the right to have one try under way.
type slot struct {
	throttle *throttle
	pass     *pass

	// Guarded by throttle.mu.
	returned bool // the pipeline is through with the try, but for open bodies
	bodies   int  // open; the pipeline may send again within a try, after a challenge
}

// answered notes what came of the try. The slot is given back now, or when the body of the answer has ended.
func (s *slot) answered(resp *http.Response, err error) {
	t := s.throttle
	wait := retryAfter(resp)
	t.mu.Lock()
	now := time.Now()
	became := none
	switch {
	case err != nil:
	case throttles(resp):
		became = t.limiter.throttled(now, s.pass, wait)
	case resp.StatusCode < 500 && resp.StatusCode != http.StatusRequestTimeout:
		became = t.limiter.succeeded(now, s.pass)
	}
	s.returned = true
	s.free()
	t.arm(now)
	limit, most := t.limiter.limit, t.limiter.max
	t.mu.Unlock()
	switch became {
	case fell:
		t.log.Info("the service throttles, sending fewer requests at a time", "limit", limit, "of", most,
			"status", resp.StatusCode, "code", resp.Header.Get("x-ms-error-code"), "retry after", wait)
	case back:
		t.log.Info("the service throttles no more", "limit", limit)
	}
}

// free gives the slot back when nothing of the try is left. throttle.mu is held.
func (s *slot) free() {
	if s.returned && s.bodies == 0 {
		s.throttle.limiter.leave(time.Now(), s.pass)
	}
}

// throttles says whether an answer is the refusal of a service that is asked too much. OperationTimedOut is one of its
// ways to say so ("Scalability and performance targets for Blob storage": 503 Server Busy or 500 Operation Timeout).
func throttles(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	}
	switch bloberror.Code(resp.Header.Get("x-ms-error-code")) {
	case bloberror.ServerBusy, bloberror.OperationTimedOut:
		return true
	}
	return false
}

type slotKey struct{}

// slotTransport ties the body of each answer to the slot of its try.
type slotTransport struct{ policy.Transporter }

// Do implements policy.Transporter.
func (t slotTransport) Do(req *http.Request) (*http.Response, error) {
	resp, err := t.Transporter.Do(req)
	s, ok := req.Context().Value(slotKey{}).(*slot)
	if !ok || err != nil || resp.Body == nil || resp.Body == http.NoBody {
		return resp, err
	}
	s.throttle.mu.Lock()
	s.bodies++
	s.throttle.mu.Unlock()
	resp.Body = &slotBody{ReadCloser: resp.Body, slot: s}
	return resp, nil
}

// slotBody is a body that counts in its slot until its end, an error or Close.
type slotBody struct {
	io.ReadCloser
	slot  *slot
	ended bool // guarded by throttle.mu
}

func (b *slotBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

func (b *slotBody) Close() error {
	defer b.end() // when the connection is free
	return b.ReadCloser.Close()
}

func (b *slotBody) end() {
	t := b.slot.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.ended {
		return
	}
	b.ended = true
	b.slot.bodies--
	b.slot.free()
}
