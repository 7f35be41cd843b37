package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// TokenError says that no identity token could be had. It is in the chain of the error of the request that needed
// the token.
type TokenError struct {
	Origin string // as Found.Origin
	// Rejected is true when the identity service refused the very credential that was given. It is false for the
	// default chain, whose last member to fail says little about what the user meant.
	Rejected bool
	// Reason is one line: the codes of a refusal, or why nothing was answered. It is empty when several credentials were
	// tried, each with a reason of its own.
	Reason string
	// Advice is what to do about a refusal; empty if it is none.
	Advice string
	Err    error // the cause, several lines long

	temporary bool
}

// Error returns one line.
func (e *TokenError) Error() string {
	switch {
	case e.Rejected:
		return fmt.Sprintf("the identity service refused a token for the %s (%s)", e.Origin, e.Reason)
	case e.Reason != "":
		return fmt.Sprintf("no token from the %s: %s", e.Origin, e.Reason)
	}
	return fmt.Sprintf("no token from the %s", e.Origin)
}

// Unwrap returns the cause. azcore finds there that trying again is of no use, even when Temporary says otherwise.
func (e *TokenError) Unwrap() error { return e.Err }

// Temporary reports whether the same credential may get a token soon: the identity service was not reached, or failed.
func (e *TokenError) Temporary() bool { return e.temporary }

// named puts the origin of a token credential into its errors.
type named struct {
	azcore.TokenCredential
	origin string
	chain  bool // whether it is the default chain
	// settled is true when a member of the chain has given a token, and is the only one that is asked from then on.
	settled *atomic.Bool
	scope   string // what tokens are asked for, when that is not what the service's client asks for
}

func (n named) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if n.scope != "" {
		o.Scopes = []string{n.scope}
	}
	tried := &attempt{}
	t, err := n.TokenCredential.GetToken(context.WithValue(ctx, attemptKey{}, tried), o)
	if err == nil {
		if n.chain {
			n.settled.Store(true)
		}
		return t, nil
	}
	if ctx.Err() != nil {
		return t, err // the caller went away: that says nothing about the credential
	}
	e := &TokenError{Origin: n.origin, Err: err}
	if n.chain && !n.settled.Load() {
		return t, e
	}
	refused := refusalOf(err)
	switch {
	case tried.err != nil:
		e.Reason = oneLine(tried.err)
		var cert *tls.CertificateVerificationError
		e.temporary = tried.sent && !errors.As(tried.err, &cert)
	case refused.status != 0 && passes(refused.status):
		e.Reason, e.temporary = fmt.Sprintf("the identity service answers %s", refused), true
	case refused.status != 0:
		e.Rejected, e.Reason, e.Advice = true, refused.String(), refused.advice()
	default:
		// What azidentity says by itself, such as that the Azure CLI is not installed. Nothing else is repeated.
		if final := interface{ NonRetriable() }(nil); errors.As(err, &final) {
			e.Reason = oneLine(err)
		}
	}
	return t, e
}

// attempt is why the last step towards a token failed, which azidentity keeps as a text only. It belongs to one call of
// GetToken, whose steps follow each other, and travels in its context.
type attempt struct {
	err  error // nil when there was an answer
	sent bool  // whether it is about a request
}

type attemptKey struct{}

// failed notes a failure before a request.
func failed(ctx context.Context, err error) error {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok && err != nil {
		*a = attempt{err: err}
	}
	return err
}

// observer is the policy that notes how each try of a request ended.
type observer struct{}

func (observer) Do(r *policy.Request) (*http.Response, error) {
	resp, err := r.Next()
	if a, ok := r.Raw().Context().Value(attemptKey{}).(*attempt); ok {
		*a = attempt{err: err, sent: true}
	}
	return resp, err
}

// oneLine returns the innermost reason why a connection failed, else the text of the error, in one line.
func oneLine(err error) string {
	if op := new(net.OpError); errors.As(err, &op) {
		err = op
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}
