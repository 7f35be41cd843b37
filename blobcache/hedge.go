package blobcache

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"blobmount/blobcache/blob"
)

// A request that waits for its first byte much longer than its like is asked a second time, and the first answer is
// taken: one slow server out of many would otherwise hold up a reader that needs every block.

// latency knows how long requests have waited for their first byte lately. All methods may be called in parallel.
type latency struct {
	mu      sync.Mutex // guards what is below
	samples [128]time.Duration
	n       int // samples seen
	hedges  int // of those, requests that were asked a second time
}

const (
	// hedgeAfter is how many samples are needed to know what is slow.
	hedgeAfter = 32
	// hedgeShare bounds the second requests to one in so many: when everything is slow, asking twice makes it worse.
	hedgeShare = 20
	// hedgeMin, under which a second request costs more than the wait.
	hedgeMin = 5 * time.Millisecond
)

// add notes one wait.
func (l *latency) add(d time.Duration) {
	l.mu.Lock()
	l.samples[l.n%len(l.samples)] = d
	l.n++
	l.mu.Unlock()
}

// delay returns after which wait a request should be asked again: twice what 95 of 100 take. It reports false when too
// little is known, or too many are asked twice already.
func (l *latency) delay() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n < hedgeAfter || l.hedges*hedgeShare > l.n {
		return 0, false
	}
	s := slices.Clone(l.samples[:min(l.n, len(l.samples))])
	slices.Sort(s)
	return max(hedgeMin, 2*s[len(s)*95/100]), true
}

// hedged notes a second request.
func (l *latency) hedged() {
	l.mu.Lock()
	l.hedges++
	l.mu.Unlock()
}

// answer is what one of the two requests brought.
type answer struct {
	which int
	body  *blob.Body
	err   error
}

// readAt asks for a range under the source's ETag, a second time if the first byte is late. The body is the caller's to
// close.
func (c *Cache) readAt(ctx context.Context, src source, off, count int64) (*blob.Body, error) {
	begun := time.Now()
	answers := make(chan answer, 2) // never blocks a request that lost
	var cancel [2]context.CancelFunc
	ask := func(i int) {
		var each context.Context
		each, cancel[i] = context.WithCancel(ctx)
		go func() {
			body, err := src.cont.ReadAt(each, src.name, off, count, blob.Condition{IfMatch: src.etag})
			answers <- answer{i, body, err}
		}()
	}
	ask(0)
	under := 1 // requests under way
	var late <-chan time.Time
	if d, ok := c.latency.delay(); ok {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	var first error
	for {
		select {
		case <-late:
			late = nil
			c.latency.hedged()
			ask(1)
			under++
		case a := <-answers:
			under--
			if a.err != nil {
				cancel[a.which]()
				if first == nil {
					first = a.err
				}
				if under == 0 {
					return nil, first
				}
				continue // the other one may still bring it
			}
			c.latency.add(time.Since(begun))
			if under > 0 {
				cancel[1-a.which]()
				go func() {
					if loser := <-answers; loser.err == nil {
						_ = loser.body.Close() // nobody wants its bytes
					}
				}()
			}
			a.body.ReadCloser = cancelling{a.body.ReadCloser, cancel[a.which]}
			return a.body, nil
		}
	}
}

// cancelling ends a request's context when its body is closed, not before.
type cancelling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c cancelling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
