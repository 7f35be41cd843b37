package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"blobmount/auth"
	"blobmount/blobcache/blob"
	"blobmount/cmd/source"
)

// failing is a container whose listing fails, or never answers.
type failing struct {
	blob.Container
	err error
}

func (f failing) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	if f.err == nil {
		<-ctx.Done()
		return blob.Page{}, ctx.Err()
	}
	return blob.Page{}, f.err
}

func TestValidateExplains(t *testing.T) {
	base := auth.Found{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net"}
	withKey, withSAS, withToken, anonymous := base, base, base, base
	withKey.SharedKey, withKey.Origin = new(auth.SharedKey), "account key from environment AZURE_STORAGE_ACCOUNT_KEY"
	withSAS.SAS, withSAS.HasSAS, withSAS.Origin = auth.NewSecret("sig="+planted), true, "SAS token from secret file /s/sas_token"
	withToken.Token, withToken.Origin = fakeToken{}, "identity from azidentity's default chain"
	anonymous.Origin = "anonymous access from --anonymous"

	service := func(c blob.Code, code string, status int) error {
		return &blob.Error{Code: c, Op: "List", ServiceCode: code, Status: status, RequestID: "r"}
	}
	tests := []struct {
		found auth.Found
		err   error
		want  []string
	}{
		{withKey, service(blob.ContainerNotFound, "ContainerNotFound", 404), []string{"there is no container data of https://acct1.blob.core.windows.net (ContainerNotFound)", "create it"}},
		{withKey, service(blob.Unauthenticated, "AuthenticationFailed", 403), []string{"did not accept the account key from environment AZURE_STORAGE_ACCOUNT_KEY", `account "acct1"`, "clock"}},
		{withSAS, service(blob.Unauthenticated, "AuthenticationFailed", 403), []string{"did not accept the SAS token from secret file /s/sas_token", "expired"}},
		{withSAS, service(blob.Forbidden, "AuthorizationPermissionMismatch", 403), []string{"may not list container data", "permissions r and l", "--skip-validation"}},
		{withToken, service(blob.Forbidden, "AuthorizationPermissionMismatch", 403), []string{"role Storage Blob Data Reader"}},
		{withKey, service(blob.Forbidden, "AuthorizationFailure", 403), []string{"firewall"}},
		{anonymous, service(blob.Forbidden, "", 403), []string{"not open to anonymous listing", "instead of --anonymous"}},
		{anonymous, service(blob.Unauthenticated, "NoAuthenticationInformation", 401), []string{"not open to anonymous access"}},
		{withToken, &blob.Error{Code: blob.Unauthenticated, Err: &auth.TokenError{Origin: withToken.Origin, Err: errors.New("many\nlines")}},
			[]string{"no usable credential was found", "--secret-dir", "no token from the identity"}},
		{withToken, &blob.Error{Code: blob.Unauthenticated, Err: &auth.TokenError{Origin: "service principal from x", Rejected: true, Err: errors.New("many\nlines")}},
			[]string{"the identity service refused a token for the service principal from x", "check tenant"}},
		{withKey, &blob.Error{Code: blob.Unavailable, Err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}},
			[]string{"cannot reach acct1.blob.core.windows.net: dial tcp: connection refused", "--endpoint"}},
		{withKey, &blob.Error{Code: blob.Unavailable, Err: &net.DNSError{Name: "acct1", IsNotFound: true}}, []string{"there is no host acct1.blob.core.windows.net", `account name "acct1"`}},
		{withKey, service(blob.Throttled, "ServerBusy", 503), []string{"it answers ServerBusy, status 503"}},
		{withKey, service(blob.Other, "OutOfRangeInput", 400), []string{"cannot list container data", "OutOfRangeInput"}},
	}
	for _, tt := range tests {
		err := validate(t.Context(), failing{err: tt.err}, tt.found, source.Source{Container: "data"})
		if err == nil {
			t.Errorf("%v is not refused", tt.err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("message is %q, want %q", err, want)
			}
		}
		if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), planted) {
			t.Errorf("message has several lines or shows a secret: %q", err)
		}
		if exitStatus(err) != exitFailure || !errors.Is(err, tt.err) {
			t.Errorf("status %d, or the cause is lost: %v", exitStatus(err), err)
		}
	}
}

// "Nothing waits for ever."
func TestValidateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := validate(t.Context(), failing{}, auth.Found{Endpoint: "https://acct1.example"}, source.Source{Container: "data"})
		if err == nil || !strings.Contains(err.Error(), "no answer from acct1.example within 30s") {
			t.Errorf("%v", err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := validate(ctx, failing{}, auth.Found{}, source.Source{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
