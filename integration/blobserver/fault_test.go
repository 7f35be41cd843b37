package blobserver

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

func TestFaultRefuses(t *testing.T) {
	c := start(t, Options{})
	c.put("/con1/dir/a", "x")
	hits := c.s.AddFault(Fault{Op: "PutBlob", Name: "dir/*", Nth: 2, Code: "ServerBusy", RetryAfter: 3 * time.Second})
	c.put("/con1/dir/a", "1")
	c.put("/con1/other", "2")
	// 8 MiB: the answer must arrive though the server does not want the body.
	a := c.do(503, "ServerBusy", "PUT", "/con1/dir/a", strings.Repeat("x", 8<<20), blockBlob)
	if a.header.Get("Retry-After") != "3" || !strings.Contains(a.body, "<Code>ServerBusy</Code>") {
		t.Errorf("%v %s", a.header, a.body)
	}
	c.put("/con1/dir/b", "4")
	if hits() != 1 {
		t.Errorf("%d hits", hits())
	}
	if got := c.do(200, "", "GET", "/con1/dir/a", "").body; got != "1" {
		t.Errorf("the refused write acted: %q", got)
	}
	c.s.AddFault(Fault{Status: 418, Code: "Teapot"})
	c.do(418, "Teapot", "GET", "/con1/dir/a", "")
	c.s.ClearFaults()
	c.do(200, "", "GET", "/con1/dir/a", "")
}

func TestFaultProbability(t *testing.T) {
	run := func() (n int) {
		c := start(t, Options{Seed: 7})
		c.put("/con1/a", "x")
		c.s.AddFault(Fault{Op: "GetBlobProperties", Probability: 0.3, Code: "InternalError"})
		for range 200 {
			if a, err := c.try("HEAD", "/con1/a", ""); err != nil {
				t.Fatal(err)
			} else if a.status == 500 {
				n++
			}
		}
		return n
	}
	first := run()
	// 60 expected, 6.5 the standard deviation: six of them are 39.
	if first < 21 || first > 99 {
		t.Errorf("%d of 200 with probability 0.3", first)
	}
	if again := run(); again != first {
		t.Errorf("%d, and then %d with the same seed", first, again)
	}
}

func TestFaultLosesReply(t *testing.T) {
	c := start(t, Options{})
	c.s.AddFault(Fault{Op: "PutBlob", Nth: 1, Action: LoseReply})
	if a, err := c.try("PUT", "/con1/a", "acted", blockBlob); err == nil {
		t.Errorf("got the answer %d", a.status)
	}
	if got := c.do(200, "", "GET", "/con1/a", "").body; got != "acted" {
		t.Errorf("%q", got)
	}
}

func TestFaultBreaksAnswers(t *testing.T) {
	c := start(t, Options{})
	body := strings.Repeat("0123456789", 300_000)
	c.put("/con1/a", body)
	for _, at := range []int64{0, 1, 2_000_000, 1 << 40} {
		c.s.ClearFaults()
		c.s.AddFault(Fault{Op: "GetBlob", Action: Break, Bytes: at})
		a, err := c.try("GET", "/con1/a", "")
		if err == nil {
			t.Errorf("broken after %d: no error", at)
		}
		if got := int64(len(a.body)); got > at || !strings.HasPrefix(body, a.body) {
			t.Errorf("broken after %d: %d bytes", at, got)
		}
	}
	c.s.ClearFaults()
	for _, request := range [][2]string{{"GET", "/con1?restype=container&comp=list"}, {"GET", "/con1/a?comp=blocklist"}, {"HEAD", "/con1/a"}, {"DELETE", "/con1/a"}} {
		c.s.AddFault(Fault{Action: Break, Bytes: 10})
		if _, err := c.try(request[0], request[1], ""); err == nil {
			t.Errorf("%v: no error", request)
		}
		c.s.ClearFaults()
	}
	c.do(200, "", "HEAD", "/con1/a", "")
}

func TestFaultBreaksRequests(t *testing.T) {
	c := start(t, Options{})
	for _, at := range []int64{0, 3_000_000, 1 << 40} {
		c.s.AddFault(Fault{Op: "PutBlob", Action: Break, Bytes: at})
		if _, err := c.try("PUT", "/con1/a", strings.Repeat("x", 5_000_000), blockBlob); err == nil {
			t.Errorf("broken after %d: no error", at)
		}
		c.s.ClearFaults()
		c.do(404, "BlobNotFound", "HEAD", "/con1/a", "")
	}
}

func TestFaultStalls(t *testing.T) {
	c := start(t, Options{})
	until := make(chan struct{})
	c.s.AddFault(Fault{Op: "GetBlob", Action: Stall, Until: until})
	c.put("/con1/a", "x")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		r, err := http.NewRequestWithContext(ctx, "GET", c.s.URL()+"/con1/a", nil)
		if err == nil {
			r.Header.Set("Authorization", "Bearer x")
			_, err = c.h.Do(r)
		}
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a stalled request that is cancelled: %v", err)
	}
	close(until)
	c.do(200, "", "GET", "/con1/a", "")
}

func TestLatency(t *testing.T) {
	clock := newFakeClock()
	c := start(t, Options{Clock: clock, Shape: Shape{Latency: 20 * time.Millisecond}})
	c.put("/con1/a", "x")
	c.do(200, "", "HEAD", "/con1/a", "")
	if got := clock.total(); got != 40*time.Millisecond {
		t.Errorf("two requests of 20 ms slept %v", got)
	}
	c.s.SetShape(Shape{Latency: time.Second, Jitter: time.Second})
	c.do(200, "", "HEAD", "/con1/a", "")
	if got := clock.total() - 40*time.Millisecond; got < time.Second || got >= 2*time.Second {
		t.Errorf("1 s and up to 1 s of jitter slept %v", got)
	}
	c.s.SetShape(Shape{})
	before := clock.total()
	c.do(200, "", "HEAD", "/con1/a", "")
	if clock.total() != before {
		t.Error("slept without a shape")
	}
}

func TestBandwidth(t *testing.T) {
	for name, shape := range map[string]Shape{
		"connection": {ConnBandwidth: 1 << 20}, "total": {TotalBandwidth: 1 << 20}, "both": {ConnBandwidth: 1 << 30, TotalBandwidth: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newFakeClock()
			c := start(t, Options{Clock: clock, Shape: shape})
			const size = 3 << 20 // 3 s at 1 MiB/s, less what was let through at first
			if _, err := c.s.Store("con1").PutSynthetic("a", size, blobtest.Random(1), blob.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			between := func(what string, got time.Duration) {
				if got < 3*time.Second-burst || got > 3*time.Second {
					t.Errorf("%s 3 MiB at 1 MiB/s slept %v", what, got)
				}
			}
			c.do(200, "", "GET", "/con1/a", "")
			between("GET of", clock.total())
			before := clock.total()
			c.put("/con1/b", strings.Repeat("x", size))
			between("PUT of", clock.total()-before)
		})
	}
}
