package azure

import (
	"slices"
	"time"
)

// limiter decides when a try may be sent, so that a service that throttles is asked less, by all operations together
// and not only by those that were refused. It is a state machine without a clock, a lock or I/O of its own: throttle
// has these.
//
// The limit of tries under way is halved by a refusal, and raised by one for every limit's worth of successes (additive
// increase, multiplicative decrease, as TCP does: it finds the rate that the service bears, and shares it fairly with
// other clients that do the same). Retry-After holds back every new try until then.
type limiter struct {
	max   int // the limit of a service that does not throttle
	limit int // minLimit to max, or max if that is less
	used  int // tries under way; more than limit for a while after a cut
	good  int // successes since the limit changed
	cuts  int // how often the limit was cut

	queue []*pass // in the order of arrival

	// No try is granted before until. The hold began at from; past is how long the earlier ones were in all.
	from, until time.Time
	past        time.Duration
}

const (
	// minLimit lets the service be asked while one try waits for its answer.
	minLimit = 2
	// maxHold bounds Retry-After. The service asks for seconds. A longer time is rather that of a proxy's error page,
	// or a date by a clock that is not ours, and would stop the whole container: then it is asked again after this.
	maxHold = 10 * time.Minute
)

// pass is one try's way through the limiter.
type pass struct {
	ready chan struct{} // closed when state is no longer waiting
	state passState

	entered time.Time
	bound   time.Duration // refused when limiter.held would exceed it
	held    time.Duration // limiter.held at entered
	cuts    int           // limiter.cuts when granted

	// queued is how long a granted pass waited for others to finish, without the time that Retry-After held it back.
	queued time.Duration
	// hold is how long a refused pass would have had to wait for the end of the hold.
	hold time.Duration
}

type passState uint8

const (
	waiting passState = iota
	granted
	refused // held back by Retry-After for longer than it may wait
	gone
)

// change is what became of the limit.
type change uint8

const (
	none change = iota
	fell        // below max for the first time since it was there
	back        // at max again
)

func newLimiter(maxTries int) limiter { return limiter{max: maxTries, limit: maxTries} }

// enter asks for a try. left is how long Retry-After may hold it back; waiting for a place has no bound.
func (l *limiter) enter(now time.Time, left time.Duration) *pass {
	held := l.heldBack(now)
	p := &pass{ready: make(chan struct{}), entered: now, held: held, bound: held + left}
	l.queue = append(l.queue, p)
	l.refuse(now)
	l.admit(now)
	return p
}

// leave gives up a pass in whatever state: a waiting one leaves the queue, a granted one gives its place to the next.
func (l *limiter) leave(now time.Time, p *pass) {
	switch p.state {
	case waiting:
		l.queue = slices.DeleteFunc(l.queue, func(q *pass) bool { return q == p })
	case granted:
		l.used--
	}
	p.state = gone
	l.admit(now)
}

// throttled notes that the service refused a granted try, and how long it asked to wait (0: it did not say). The
// refusals of tries that were sent before a cut are those that led to it, and do not cut again: one cut per round trip,
// and per hold.
func (l *limiter) throttled(now time.Time, p *pass, retryAfter time.Duration) change {
	if until := now.Add(min(retryAfter, maxHold)); retryAfter > 0 && until.After(l.until) {
		if !now.Before(l.until) {
			l.past = l.heldBack(now)
			l.from = now
		}
		l.until = until
		l.refuse(now)
	}
	if p.cuts != l.cuts {
		return none
	}
	before := l.limit
	l.limit = max(l.limit/2, min(minLimit, l.max))
	l.cuts++
	l.good = 0
	if before == l.max && l.limit < l.max {
		return fell
	}
	return none
}

// succeeded notes that the service answered a granted try. What was sent before a cut says nothing about the limit.
func (l *limiter) succeeded(now time.Time, p *pass) change {
	if l.limit == l.max || p.cuts != l.cuts {
		return none
	}
	if l.good++; l.good < l.limit {
		return none
	}
	l.good = 0
	l.limit++
	l.admit(now)
	if l.limit == l.max {
		return back
	}
	return none
}

// admit grants what may go now. It must be called when a hold is over; everything else calls it by itself.
func (l *limiter) admit(now time.Time) {
	for len(l.queue) > 0 && l.used < l.limit && !now.Before(l.until) {
		p := l.queue[0]
		l.queue = slices.Delete(l.queue, 0, 1)
		l.used++
		p.cuts = l.cuts
		p.queued = now.Sub(p.entered) - (l.heldBack(now) - p.held)
		p.state = granted
		close(p.ready)
	}
}

// refuse ends the wait of those whom the hold keeps for longer than they may wait.
func (l *limiter) refuse(now time.Time) {
	if !now.Before(l.until) {
		return
	}
	end := l.heldBack(l.until)
	l.queue = slices.DeleteFunc(l.queue, func(p *pass) bool {
		if end <= p.bound {
			return false
		}
		p.hold = l.until.Sub(now)
		p.state = refused
		close(p.ready)
		return true
	})
}

// heldBack is how long there were holds up to now.
func (l *limiter) heldBack(now time.Time) time.Duration {
	if now.After(l.until) {
		now = l.until
	}
	return l.past + now.Sub(l.from)
}
