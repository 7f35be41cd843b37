package azure

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"blobmount/blobcache/blob"
)

const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 10 * time.Second
	// maxDamaged bounds the repetitions of an upload that the service found damaged, and of a read whose answer is not of
	// the blob: a bad network gets it right the next time, a body that changes while it is sent, and a proxy that answers
	// from what it has kept, never do.
	maxDamaged = 2
)

// attempts is what one operation remembers of its tries. It travels in the request's context.
type attempts struct {
	op, name string
	began    time.Time
	answered time.Time // when its last try ended
	// doubtful is set when a try failed in a way that leaves open whether the service acted.
	doubtful bool
	// looks: the operation wants to see what is there before a doubtful try is repeated, which ends the request.
	looks   bool
	damaged int
	// queued is how long its tries waited for others to finish, which is no failure and not counted as one.
	queued time.Duration
}

type attemptsKey struct{}

func withAttempts(ctx context.Context, op, name string) (context.Context, *attempts) {
	a := &attempts{op: op, name: name, began: time.Now()}
	return context.WithValue(ctx, attemptsKey{}, a), a
}

// retrier is the pipeline's policy that repeats a request until it succeeds, fails for good, or RetryFor is over.
// Every request of this package is safe to repeat: reads by nature, writes because they say the whole new state.
//
// RetryFor counts tries, the waits between them, and the time that Retry-After holds them back, their own or that of
// others. It does not count the wait for a slot while others are served: with more to do than the service bears, those
// at the end of the queue would fail though everything moves.
type retrier struct {
	retryFor time.Duration
	log      *slog.Logger
	throttle *throttle
	access   *atomic.Pointer[access]
	renew    func(context.Context) (undecided bool) // nil when the credential never changes
}

func (r *retrier) Do(req *policy.Request) (*http.Response, error) {
	ctx := req.Raw().Context()
	a, ok := ctx.Value(attemptsKey{}).(*attempts)
	if !ok {
		a = &attempts{op: req.Raw().Method, began: time.Now()}
	}
	began, before := time.Now(), a.queued
	spent := func() time.Duration { return time.Since(began) - (a.queued - before) }
	given, fixed := ctx.Value(accessKey{}).(*access) // by TryCredential
	for try, renewals := 1, 0; ; try++ {
		if err := req.RewindBody(); err != nil {
			return nil, err
		}
		slot, queued, err := r.throttle.acquire(ctx, r.retryFor-spent())
		if err != nil {
			return nil, err
		}
		a.queued += queued
		used := given
		if !fixed {
			used = r.access.Load()
		}
		resp, err := req.Clone(context.WithValue(context.WithValue(ctx, slotKey{}, slot), accessKey{}, used)).Next()
		slot.answered(resp, err)
		a.answered = time.Now()
		if fixed {
			return resp, err
		}
		undecided := false
		if renewals < maxRenewals && rejected(resp, err) {
			var renewed bool
			if renewed, undecided = r.renewed(ctx, used, resp); renewed {
				renewals++
				r.report(ctx, a, try, 0, resp, err)
				drop(resp)
				continue
			}
		}
		if !undecided && !a.mayRepeat(resp, err) {
			return resp, err
		}
		if ctx.Err() != nil {
			drop(resp)
			return nil, ctx.Err()
		}
		wait := max(backoff(try), retryAfter(resp))
		if a.looks && a.doubtful || spent()+wait > r.retryFor {
			if err != nil && !undecided {
				err = &unreachableError{err}
			}
			return resp, err
		}
		r.report(ctx, a, try, wait, resp, err)
		drop(resp)
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// maxRenewals bounds how often one operation is tried again since the credential has changed. Two, since the one that is
// used next may be replaced at that very moment.
const maxRenewals = 2

// rejected reports whether a try failed in a way that another credential may cure.
func rejected(resp *http.Response, err error) bool {
	if err != nil {
		var token *credentialError
		var final interface{ NonRetriable() }
		return errors.As(err, &token) && !token.temporary() && errors.As(err, &final)
	}
	code := bloberror.Code(resp.Header.Get("x-ms-error-code"))
	meaning, known := codes[code]
	if !known { // CannotVerifyCopySource has the status of reading the source
		meaning = statuses[resp.StatusCode]
	}
	return resp.StatusCode >= 400 && (meaning == blob.Unauthenticated || meaning == blob.Forbidden)
}

// renewed waits until the source of the credential was read again, and reports whether there is another one than the one
// that was refused, or undecided, that there may be one later.
func (r *retrier) renewed(ctx context.Context, refused *access, resp *http.Response) (renewed, undecided bool) {
	if r.access.Load() != refused {
		return true, false
	}
	if r.renew == nil {
		return false, false
	}
	if resp != nil {
		// A body that nobody has read keeps its slot, and renew needs one.
		_, _ = runtime.Payload(resp)
	}
	undecided = r.renew(ctx)
	return r.access.Load() != refused, undecided
}

// mayRepeat judges one try, and notes what it leaves open.
func (a *attempts) mayRepeat(resp *http.Response, err error) bool {
	if err != nil {
		var token *credentialError
		if errors.As(err, &token) && token.temporary() {
			return true // azcore takes every failure to get a token for a final one
		}
		var final interface{ NonRetriable() }
		var cert *tls.CertificateVerificationError
		if errors.As(err, &final) || errors.As(err, &cert) {
			return false
		}
		var dial *net.OpError
		sent := !errors.As(err, &token) && (!errors.As(err, &dial) || dial.Op != "dial")
		a.doubtful = a.doubtful || sent
		return true
	}
	if checkVersion(resp) != nil {
		a.damaged++
		return a.damaged <= maxDamaged
	}
	code := bloberror.Code(resp.Header.Get("x-ms-error-code"))
	switch resp.StatusCode {
	case http.StatusTooManyRequests:
		return true
	case http.StatusServiceUnavailable:
		// The service's own refusal happens before it acts; a proxy between may have lost an answer.
		a.doubtful = a.doubtful || code != bloberror.ServerBusy
		return true
	case http.StatusInternalServerError:
		if code == featureNotSupported {
			return false
		}
		a.doubtful = true
		return true
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		a.doubtful = true
		return true
	}
	if _, known := codes[code]; !known && notOfService(resp.StatusCode, resp.Header) {
		a.doubtful = true // nobody knows what has become of the request behind it
		return true
	}
	if code == bloberror.MD5Mismatch || code == bloberror.CRC64Mismatch {
		a.damaged++
		return a.damaged <= maxDamaged
	}
	return false
}

// report logs a repetition. Throttled ones are many, and throttle says when they begin and end.
func (r *retrier) report(ctx context.Context, a *attempts, try int, wait time.Duration, resp *http.Response, err error) {
	level := slog.LevelInfo
	if err == nil && throttles(resp) {
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{slog.String("op", a.op), slog.String("name", a.name), slog.Int("try", try), slog.Duration("wait", wait)}
	if err != nil {
		attrs = append(attrs, slog.Any("error", safe(err)))
	} else {
		attrs = append(attrs, slog.Int("status", resp.StatusCode), slog.String("code", resp.Header.Get("x-ms-error-code")))
	}
	r.log.LogAttrs(ctx, level, "repeating a request", attrs...)
}

// backoff returns the time to wait after the try-th failure in a row: it doubles from firstDelay to maxDelay,
// and is spread over its upper half so that requests that failed together do not return together.
func backoff(try int) time.Duration {
	d := maxDelay
	if try < 8 {
		d = min(firstDelay<<(try-1), maxDelay)
	}
	return d/2 + rand.N(d/2)
}

// retryAfter returns the wait that the service asks for, 0 for none. The service sends seconds; the header may
// also hold a date.
func retryAfter(resp *http.Response) time.Duration {
	if resp == nil {
		return 0
	}
	v := resp.Header.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s >= 0 && s < 1<<31 {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

func drop(resp *http.Response) {
	if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
