package blobcache

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blobmount/blobcache/blob"
)

// slowContainer answers each ReadAt after its own delay, or fails it.
type slowContainer struct {
	blob.Container
	delays []time.Duration
	errs   []error
	asked  atomic.Int32
}

func (s *slowContainer) ReadAt(ctx context.Context, name string, off, count int64, c blob.Condition) (*blob.Body, error) {
	i := s.asked.Add(1) - 1
	select {
	case <-time.After(s.delays[i]):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.errs != nil && s.errs[i] != nil {
		return nil, s.errs[i]
	}
	return &blob.Body{ReadCloser: io.NopCloser(strings.NewReader(string('a' + i)))}, nil
}

func TestHedging(t *testing.T) {
	boom := errors.New("boom")
	for _, x := range []struct {
		name   string
		known  int // samples of 10 ms before
		delays []time.Duration
		errs   []error
		want   string // the body, "" for an error
		after  time.Duration
		asked  int
	}{
		{"in time", 100, []time.Duration{15 * time.Millisecond}, nil, "a", 15 * time.Millisecond, 1},
		{"late, the second is faster", 100, []time.Duration{time.Second, 10 * time.Millisecond}, nil, "b", 30 * time.Millisecond, 2},
		{"late, the first is faster all the same", 100, []time.Duration{25 * time.Millisecond, time.Second}, nil, "a", 25 * time.Millisecond, 2},
		{"too little is known", 10, []time.Duration{time.Second}, nil, "a", time.Second, 1},
		{"the second fails", 100, []time.Duration{time.Second, time.Millisecond}, []error{nil, boom}, "a", time.Second, 2},
		{"both fail", 100, []time.Duration{time.Second, time.Millisecond}, []error{boom, boom}, "", time.Second, 2},
		{"fails in time", 100, []time.Duration{time.Millisecond}, []error{boom}, "", time.Millisecond, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &Cache{}
				for range x.known {
					c.latency.add(10 * time.Millisecond)
				}
				s := &slowContainer{delays: x.delays, errs: x.errs}
				begun := time.Now()
				body, err := c.readAt(t.Context(), source{cont: s, name: "x"}, 0, 1)
				if took := time.Since(begun); took != x.after {
					t.Errorf("answered after %v, want %v", took, x.after)
				}
				if x.want == "" {
					if !errors.Is(err, boom) {
						t.Errorf("error %v, want %v", err, boom)
					}
				} else if err != nil {
					t.Fatal(err)
				} else if got, _ := io.ReadAll(body); string(got) != x.want {
					t.Errorf("body %q, want %q", got, x.want)
				} else if err := body.Close(); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				if int(s.asked.Load()) != x.asked {
					t.Errorf("asked %d times, want %d", s.asked.Load(), x.asked)
				}
			})
		})
	}
}

// When everything is slow, asking twice would make it worse.
func TestHedgingIsBounded(t *testing.T) {
	var l latency
	for range 1000 {
		l.add(time.Millisecond)
		if _, ok := l.delay(); ok {
			l.hedged()
		}
	}
	if share := float64(l.hedges) / float64(l.n); share > 0.06 || share < 0.04 {
		t.Errorf("%.2f of the requests were asked twice, want 0.05", share)
	}
}
