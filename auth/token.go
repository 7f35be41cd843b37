package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// TokenError says that no identity token could be had. It is in the chain of the error of the request that needed
// the token.
type TokenError struct {
	Origin string // as Found.Origin
	// Rejected is true when the identity service refused the very credential that was given. It is false for the
	// default chain, whose last member to fail says little about what the user meant.
	Rejected bool
	Err      error // the cause, several lines long
}

// Error returns one line.
func (e *TokenError) Error() string {
	if e.Rejected {
		return fmt.Sprintf("the identity service refused a token for the %s", e.Origin)
	}
	return fmt.Sprintf("no token from the %s", e.Origin)
}

// Unwrap returns the cause. azcore finds there that trying again is of no use.
func (e *TokenError) Unwrap() error { return e.Err }

// named puts the origin of a token credential into its errors.
type named struct {
	azcore.TokenCredential
	origin string
	chain  bool   // whether it is the default chain
	scope  string // what tokens are asked for, when that is not what the service's client asks for
}

func (n named) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if n.scope != "" {
		o.Scopes = []string{n.scope}
	}
	t, err := n.TokenCredential.GetToken(ctx, o)
	if err == nil {
		return t, nil
	}
	if ctx.Err() != nil {
		return t, err // the caller went away: that says nothing about the credential
	}
	var refused *azidentity.AuthenticationFailedError
	return t, &TokenError{Origin: n.origin, Rejected: !n.chain && errors.As(err, &refused), Err: err}
}
