package blobserver

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Clock is the time that a Server lives in. Sleep returns the context's error when it is done first.
type Clock interface {
	Now() time.Time
	Sleep(ctx context.Context, d time.Duration) error
}

type machineClock struct{}

func (machineClock) Now() time.Time { return time.Now() }

func (machineClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shape slows a Server down. The zero value does not.
type Shape struct {
	// Latency passes between a request's headers and the moment it acts, plus a random part of Jitter, evenly
	// distributed.
	Latency, Jitter time.Duration
	// ConnBandwidth bounds each connection, TotalBandwidth all of them together, in bytes a second, bodies only,
	// each direction by itself; 0 is no bound.
	ConnBandwidth, TotalBandwidth int64
}

// SetShape changes the shape for the requests and chunks from now on.
func (s *Server) SetShape(shape Shape) {
	s.shaper.mu.Lock()
	defer s.shaper.mu.Unlock()
	s.shaper.mu.shape = shape
}

// Chunks of bodies: unshaped, 1 MiB keeps the calls few and lets a large write fill the socket; shaped, 16 KiB makes
// a stream of 1 MiB/s move 64 times a second.
const (
	freeChunk   = 1 << 20
	shapedChunk = 16 << 10
)

// burst is how far a connection that was idle may run ahead of its rate.
const burst = 20 * time.Millisecond

type shaper struct {
	clock Clock
	total connLimits
	mu    struct {
		sync.Mutex
		shape Shape
		rand  *rand.Rand
	}
}

// connLimits are the two directions of a connection, or of the whole server.
type connLimits struct{ in, out bucket }

type connKey struct{}

// bucket is a token bucket kept as the time at which all that was let through is paid for.
type bucket struct {
	mu   sync.Mutex // guards paid
	paid time.Time
}

// take lets n bytes through and returns how long to wait before they may go.
func (b *bucket) take(now time.Time, n int, rate int64) time.Duration {
	if rate <= 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if earliest := now.Add(-burst); b.paid.Before(earliest) {
		b.paid = earliest
	}
	b.paid = b.paid.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return max(0, b.paid.Sub(now))
}

func (s *shaper) init(clock Clock, seed uint64) {
	s.clock = clock
	s.mu.rand = rand.New(rand.NewPCG(seed, 1))
}

// first waits for the latency of a request.
func (s *shaper) first(ctx context.Context) error {
	s.mu.Lock()
	d := s.mu.shape.Latency
	if s.mu.shape.Jitter > 0 {
		d += time.Duration(s.mu.rand.Int64N(int64(s.mu.shape.Jitter)))
	}
	s.mu.Unlock()
	if d <= 0 {
		return nil
	}
	return s.clock.Sleep(ctx, d)
}

// chunk returns the size in which bodies move now.
func (s *shaper) chunk() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.shape.ConnBandwidth > 0 || s.mu.shape.TotalBandwidth > 0 {
		return shapedChunk
	}
	return freeChunk
}

// wait lets n bytes through in one direction.
func (s *shaper) wait(ctx context.Context, n int, direction func(*connLimits) *bucket) error {
	s.mu.Lock()
	shape := s.mu.shape
	s.mu.Unlock()
	if shape.ConnBandwidth <= 0 && shape.TotalBandwidth <= 0 {
		return nil
	}
	now := s.clock.Now()
	d := direction(&s.total).take(now, n, shape.TotalBandwidth)
	if conn, ok := ctx.Value(connKey{}).(*connLimits); ok {
		d = max(d, direction(conn).take(now, n, shape.ConnBandwidth))
	}
	if d <= 0 {
		return nil
	}
	return s.clock.Sleep(ctx, d)
}

func outward(c *connLimits) *bucket { return &c.out }
func inward(c *connLimits) *bucket  { return &c.in }
