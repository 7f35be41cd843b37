package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blob"
)

// fakeService is a Transporter, so that tests run by the clock of synctest.
type fakeService func(req *http.Request) (*http.Response, error)

func (f fakeService) Do(req *http.Request) (*http.Response, error) { return f(req) }

// answer returns a response whose body must be closed or read.
func answer(status int, header ...string) *http.Response {
	resp := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("body"))}
	for i := 0; i < len(header); i += 2 {
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

// client sends requests through the retrier as Container does, and knows when they were sent.
type client struct {
	throttle *throttle
	options  policy.ClientOptions
	pipeline runtime.Pipeline
	began    time.Time

	mu   sync.Mutex // guards sent
	sent []string
}

func newClient(connections int, log *slog.Logger, do fakeService) *client {
	c := &client{throttle: newThrottle(connections, log), began: time.Now()}
	c.options = policy.ClientOptions{
		Retry: policy.RetryOptions{MaxRetries: -1},
		PerCallPolicies: []policy.Policy{&retrier{retryFor: DefaultRetryFor, log: slog.New(slog.DiscardHandler), throttle: c.throttle,
			access: new(atomic.Pointer[access])}},
		Transport: slotTransport{fakeService(func(req *http.Request) (*http.Response, error) {
			c.mu.Lock()
			c.sent = append(c.sent, fmt.Sprint(req.URL.Path[1:], " ", time.Since(c.began).Round(time.Millisecond)))
			c.mu.Unlock()
			return do(req)
		})},
	}
	c.pipeline = runtime.NewPipeline("test", "v1", runtime.PipelineOptions{}, &c.options)
	return c
}

// get returns the answer to a GET of a name, with its body not yet read, as a download's is.
func (c *client) get(ctx context.Context, name string) (*http.Response, error) {
	ctx, _ = withAttempts(ctx, "Get", name)
	req, err := runtime.NewRequest(ctx, http.MethodGet, "http://service/"+name)
	if err != nil {
		return nil, err
	}
	runtime.SkipBodyDownload(req)
	resp, err := c.pipeline.Do(req)
	return resp, fail(ctx, "Get", name, err)
}

func (c *client) check(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.sent, want) {
		t.Errorf("sent %q, want %q", c.sent, want)
	}
}

func (c *client) used() int {
	c.throttle.mu.Lock()
	defer c.throttle.mu.Unlock()
	return c.throttle.limiter.used
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A slot is held until the body ended, by whichever way. The next in the queue is sent then and not before.
func TestSlotIsHeldByBody(t *testing.T) {
	broken := errors.New("connection reset")
	for what, test := range map[string]struct {
		body io.Reader
		end  func(io.ReadCloser)
	}{
		"closed":          {strings.NewReader("body"), func(b io.ReadCloser) { b.Close() }},
		"read to the end": {strings.NewReader("body"), func(b io.ReadCloser) { io.ReadAll(b) }},
		"broken":          {failingReader{broken}, func(b io.ReadCloser) { b.Read(make([]byte, 1)) }},
		"all of it": {strings.NewReader("body"), func(b io.ReadCloser) {
			io.ReadAll(b)
			b.Close()
			b.Close()
		}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(1, quiet(), func(req *http.Request) (*http.Response, error) {
					resp := answer(200)
					resp.Body = io.NopCloser(test.body)
					return resp, nil
				})
				first, err := c.get(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					if resp, err := c.get(t.Context(), "b"); err != nil {
						t.Error(err)
					} else {
						resp.Body.Close()
					}
				}()
				time.Sleep(time.Second)
				synctest.Wait()
				c.check(t, "a 0s")
				test.end(first.Body)
				synctest.Wait()
				c.check(t, "a 0s", "b 1s")
				if n := c.used(); n != 0 {
					t.Errorf("%d slots in use", n)
				}
			})
		})
	}
}

// One operation is told to wait, all do: no try is sent before, and the one that was told is not the only one.
func TestRetryAfterHoldsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := true
		c := newClient(8, quiet(), func(req *http.Request) (*http.Response, error) {
			if first {
				first = false
				return answer(503, "Retry-After", "5", "x-ms-error-code", "ServerBusy"), nil
			}
			return answer(200), nil
		})
		var done sync.WaitGroup
		for i, name := range []string{"told", "b", "c"} {
			done.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				resp, err := c.get(t.Context(), name)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				resp.Body.Close()
			})
		}
		done.Wait()
		slices.Sort(c.sent)
		c.check(t, "b 5s", "c 5s", "told 0s", "told 5s")
	})
}

// What would be held back beyond RetryFor fails at once, queued or new, as Throttled; afterwards all is well.
func TestRetryAfterBeyondRetryFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(1, quiet(), func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == "/told" {
				time.Sleep(time.Second)
				return answer(429, "Retry-After", "120"), nil
			}
			return answer(200), nil
		})
		var done sync.WaitGroup
		for _, name := range []string{"told", "queued"} {
			done.Go(func() {
				resp, err := c.get(t.Context(), name)
				if name == "told" && (err != nil || resp.StatusCode != 429) {
					t.Errorf("told: %v, %v", resp, err)
				}
				if name == "queued" && !blob.Is(err, blob.Throttled) {
					t.Errorf("queued: %v", err)
				}
			})
			synctest.Wait()
		}
		done.Wait()
		if _, err := c.get(t.Context(), "new"); !blob.Is(err, blob.Throttled) {
			t.Errorf("new: %v", err)
		}
		if d := time.Since(c.began); d != time.Second {
			t.Errorf("it took %v to say so", d)
		}
		time.Sleep(2 * time.Minute)
		if _, err := c.get(t.Context(), "later"); err != nil {
			t.Error(err)
		}
		c.check(t, "told 0s", "later 2m1s")
	})
}

// The end of the context ends the wait, in the queue and in a hold, and leaves no slot taken.
func TestCancelInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(1, quiet(), func(req *http.Request) (*http.Response, error) {
			return answer(200), nil
		})
		first, err := c.get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.get(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		first.Body.Close()
		if resp, err := c.get(t.Context(), "c"); err != nil {
			t.Error(err)
		} else {
			resp.Body.Close()
		}
		c.check(t, "a 0s", "c 1s")
		if n := c.used(); n != 0 {
			t.Errorf("%d slots in use", n)
		}
	})
}

// The wait for others is not counted in RetryFor: who waited longer than that for a slot is still repeated.
func TestQueueDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		c := newClient(1, quiet(), func(req *http.Request) (*http.Response, error) {
			if tries++; tries == 2 || tries == 3 {
				return nil, errors.New("connection reset")
			}
			return answer(200), nil
		})
		long, err := c.get(t.Context(), "long")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(2*DefaultRetryFor, func() { long.Body.Close() })
		if _, err := c.get(t.Context(), "queued"); err != nil {
			t.Error(err)
		}
		if tries != 4 {
			t.Errorf("%d tries", tries)
		}
	})
}

// A service that never stops refusing: every operation of many ends, with Throttled, and soon. With Retry-After the
// bound is RetryFor; without, it is longer by the tries of the others, which are few and short.
func TestThrottlingEnds(t *testing.T) {
	for _, header := range [][]string{{"Retry-After", "10"}, nil} {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(16, quiet(), func(req *http.Request) (*http.Response, error) {
				time.Sleep(10 * time.Millisecond)
				return answer(503, header...), nil
			})
			var done sync.WaitGroup
			for i := range 500 {
				done.Go(func() {
					resp, err := c.get(t.Context(), strconv.Itoa(i))
					if err == nil {
						resp.Body.Close()
					}
					if err == nil && resp.StatusCode != 503 || err != nil && !blob.Is(err, blob.Throttled) {
						t.Errorf("got %v, %v", resp, err)
					}
				})
			}
			done.Wait()
			if d := time.Since(c.began); d < DefaultRetryFor/2 || d > DefaultRetryFor*3/2 {
				t.Errorf("Retry-After %v: it ended after %v", header, d)
			}
			if c.used() != 0 || len(c.throttle.limiter.queue) != 0 {
				t.Errorf("%d slots in use, %d wait", c.used(), len(c.throttle.limiter.queue))
			}
			t.Logf("Retry-After %v: %d tries in %v", header, len(c.sent), time.Since(c.began))
		})
	}
}

// A service that bears 10 requests at a time and refuses others: few are refused, all succeed, and the log has one line
// when it begins, and one when it is over.
func TestFindsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work = 20 * time.Millisecond
		var mu sync.Mutex // guards what follows
		busy, bears, refusals, served := 0, 10, 0, 0
		var log bytes.Buffer
		c := newClient(64, slog.New(slog.NewTextHandler(&log, nil)), func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if busy >= bears {
				refusals++
				return answer(503, "x-ms-error-code", "ServerBusy"), nil
			}
			busy++
			mu.Unlock()
			time.Sleep(work)
			mu.Lock()
			busy--
			served++
			return answer(200), nil
		})
		run := func(n int) time.Duration {
			began := time.Now()
			names := make(chan int)
			var done sync.WaitGroup
			for range 64 {
				done.Go(func() {
					for i := range names {
						resp, err := c.get(t.Context(), strconv.Itoa(i))
						if err != nil || resp.StatusCode != 200 {
							t.Errorf("got %v, %v", resp, err)
							continue
						}
						resp.Body.Close()
					}
				})
			}
			for i := range n {
				names <- i
			}
			close(names)
			done.Wait()
			return time.Since(began)
		}
		const n = 5000
		d := run(n)
		rate := float64(n) * float64(work) / float64(bears) / float64(d)
		t.Logf("%d requests: %d refusals, %.2f of the rate that the service bears", n, refusals, rate)
		if refusals > n/10 || rate < 0.7 {
			t.Errorf("%d refusals, %.2f of the rate", refusals, rate)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "sending fewer requests") {
			t.Errorf("log: %s", log.String())
		}
		bears = 1000
		run(n)
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "throttles no more") {
			t.Errorf("log: %s", log.String())
		}
		if served != 2*n || c.used() != 0 {
			t.Errorf("%d served, %d slots in use", served, c.used())
		}
	})
}

// What throttling is: by status, and by the service's code.
func TestThrottles(t *testing.T) {
	for _, test := range []struct {
		status int
		code   string
		want   bool
	}{
		{503, "ServerBusy", true}, {503, "", true}, {429, "", true}, {500, "OperationTimedOut", true},
		{500, "InternalError", false}, {502, "", false}, {504, "", false}, {404, "BlobNotFound", false}, {200, "", false},
	} {
		if got := throttles(answer(test.status, "x-ms-error-code", test.code)); got != test.want {
			t.Errorf("%d %s: %t", test.status, test.code, got)
		}
	}
}

// Over real connections each kind of answer gives its slot back: with two slots, one that is not would be missed.
func TestSlotsComeBack(t *testing.T) {
	content := strings.Repeat("x", 100_000)
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag1)
		switch name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]; {
		case name == "gone":
			refuse(w, r, 404, "BlobNotFound", "")
		case name == "same":
			refuse(w, r, 304, "ConditionNotMet", "")
		case name == "lost" && n%2 == 1:
			hangUp(w)
		case r.Method == http.MethodPut:
			io.Copy(io.Discard, r.Body)
			created(w)
		case r.Method == http.MethodHead:
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		default:
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, content)
		}
	})
	c := s.container(t, func(cfg *Config) { cfg.Transport.MaxConnections = 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	read := func(name string, n int64) error {
		b, err := c.ReadAt(ctx, name, 0, int64(len(content)), blob.Condition{})
		if err != nil {
			return err
		}
		defer b.Close()
		_, err = io.CopyN(io.Discard, b, n)
		return err
	}
	for range 5 {
		for what, err := range map[string]error{
			"read":           read("a", int64(len(content))),
			"read in part":   read("a", 10),
			"read, lost":     read("lost", 10),
			"upload":         c.StageBlock(ctx, "a", "id", strings.NewReader(content), int64(len(content))),
			"body too short": c.StageBlock(ctx, "a", "id", strings.NewReader("x"), 10),
			"not there":      read("gone", 1),
			"not modified":   read("same", 1),
		} {
			wrong := err != nil
			switch what {
			case "not there":
				wrong = !blob.Is(err, blob.NotFound)
			case "not modified":
				wrong = !blob.Is(err, blob.NotModified)
			case "body too short":
				wrong = err == nil || ctx.Err() != nil
			}
			if wrong {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if _, err := c.Properties(ctx, "a", blob.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

// A broken download gives its slot to others, and the wait for the next one is not counted in RetryFor either: after
// it, the download may break again.
func TestQueueDoesNotCountInResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		fake := newClient(1, quiet(), func(req *http.Request) (*http.Response, error) {
			resp := answer(206, "ETag", etag1, "Content-Range", "bytes 0-3/4", "Content-Length", "4")
			resp.ContentLength = 4
			if strings.HasSuffix(req.URL.Path, "/a") {
				if tries++; tries <= 2 {
					resp.Body = io.NopCloser(failingReader{errors.New("connection reset")})
				}
			}
			return resp, nil
		})
		sdk, err := container.NewClientWithNoCredential("http://service/container", &container.ClientOptions{ClientOptions: fake.options})
		if err != nil {
			t.Fatal(err)
		}
		c := &Container{client: sdk, retryFor: DefaultRetryFor, log: quiet()}
		b, err := c.ReadAt(t.Context(), "a", 0, 4, blob.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		go func() {
			long, err := c.ReadAt(t.Context(), "long", 0, 4, blob.Condition{})
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(2 * DefaultRetryFor)
			long.Close()
		}()
		synctest.Wait()
		if got, err := io.ReadAll(b); err != nil || string(got) != "body" {
			t.Errorf("got %q, %v", got, err)
		}
		if d := time.Since(fake.began); d < 2*DefaultRetryFor || tries != 3 {
			t.Errorf("%d tries in %v", tries, d)
		}
	})
}
