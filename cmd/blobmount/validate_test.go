package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blobmount/auth"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/cmd/source"
)

// questions is a container that answers the questions of a check, or never answers.
type questions struct {
	blob.Container
	list, read, write error
	never             bool
	asked             []string
}

func (q *questions) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	q.asked = append(q.asked, "list "+o.Prefix)
	if q.never {
		<-ctx.Done()
		return blob.Page{}, ctx.Err()
	}
	return blob.Page{}, q.list
}

func (q *questions) Properties(_ context.Context, name string, _ blob.Condition) (blob.Properties, error) {
	q.asked = append(q.asked, "read "+name)
	return blob.Properties{}, q.read
}

func (q *questions) Upload(_ context.Context, name string, _ io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	q.asked = append(q.asked, "write "+name)
	if size != 0 || o.Condition != (blob.Condition{IfMatch: noETag}) {
		panic("the write of a check can leave something behind")
	}
	return blob.Written{ETag: "made"}, q.write
}

func (q *questions) Delete(_ context.Context, name string, c blob.Condition) error {
	q.asked = append(q.asked, "delete "+name+" "+string(c.IfMatch))
	return nil
}

// answer is a failure that the service reported.
func answer(c blob.Code, code string, status int) *blob.Error {
	return &blob.Error{Code: c, Op: "List", ServiceCode: code, Status: status, RequestID: "r", Date: checkTime}
}

var checkTime = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// credentials of each kind.
func foundKey() auth.Found {
	return auth.Found{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net", SharedKey: new(auth.SharedKey),
		Origin: "account key from environment AZURE_STORAGE_ACCOUNT_KEY"}
}

func foundSAS(query string) auth.Found {
	return auth.Found{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net", SAS: auth.NewSecret(query + "&sig=" + planted), HasSAS: true,
		Origin: "SAS token from secret file /s/sas_token"}
}

func foundToken() auth.Found {
	return auth.Found{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net", Token: fakeToken{}, Origin: "managed identity from --auth=msi"}
}

func foundNothing() auth.Found {
	return auth.Found{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net", Origin: "anonymous access from --anonymous"}
}

// The message tells apart what can be wrong, and says what to do.
func TestValidateExplains(t *testing.T) {
	authentication := answer(blob.Unauthenticated, "AuthenticationFailed", 403)
	permission := answer(blob.Forbidden, "AuthorizationPermissionMismatch", 403)
	skewed := func(by time.Duration) error {
		e := *authentication
		e.Date = checkTime.Add(by)
		return &e
	}
	unreached := func(err error) error { return &blob.Error{Code: blob.Unavailable, Op: "List", Err: err} }
	certificate := func(err error) error { return unreached(&tls.CertificateVerificationError{Err: err}) }
	private := foundKey()
	private.Endpoint = "https://acct1.privatelink.blob.core.windows.net"
	emulator := foundKey()
	emulator.Endpoint = "http://127.0.0.1:10000/acct1"
	rl := foundSAS("sp=rl")
	tests := []struct {
		name  string
		found auth.Found
		err   error
		want  []string
	}{
		{"no container", foundKey(), answer(blob.ContainerNotFound, "ContainerNotFound", 404), []string{"there is no container data of https://acct1.blob.core.windows.net (ContainerNotFound)", "--create-container"}},
		{"container is going", foundKey(), answer(blob.ContainerNotFound, "ContainerBeingDeleted", 409), []string{"is being deleted", "wait"}},
		{"account disabled", foundKey(), answer(blob.ContainerNotFound, "AccountIsDisabled", 403), []string{"account acct1 is disabled"}},

		{"wrong key", foundKey(), authentication, []string{"did not accept the account key from environment AZURE_STORAGE_ACCOUNT_KEY (AuthenticationFailed)", `a key of account "acct1"`}},
		{"clock ahead", foundKey(), skewed(-20 * time.Minute), []string{"the clock of this machine is 20m ahead of that of the service, which takes no more than 15m"}},
		{"clock behind", foundKey(), skewed(24 * time.Hour), []string{"the clock of this machine is 24h behind that of the service"}},
		{"clock that is right enough", foundKey(), skewed(10 * time.Minute), []string{"a key of account"}},
		{"keys are not allowed", foundKey(), answer(blob.Forbidden, "KeyBasedAuthenticationNotPermitted", 403), []string{"does not allow access by keys", "the role Storage Blob Data Reader"}},
		{"firewall", foundKey(), answer(blob.Forbidden, "AuthorizationFailure", 403), []string{"the firewall of the account", "private endpoint"}},
		{"wrong key of an emulator", emulator, answer(blob.Forbidden, "AuthorizationFailure", 403), []string{"the key is wrong"}},

		{"expired SAS", foundSAS("sp=rl&se=2026-05-01T11:59:00Z"), authentication, []string{"did not accept the SAS token from secret file /s/sas_token", "it expired at 2026-05-01T11:59:00Z"}},
		{"SAS expired by the service's clock", foundSAS("sp=rl&se=2026-05-01T13:00:00Z"), skewed(2 * time.Hour), []string{"it expired at 2026-05-01T13:00:00Z"}},
		{"SAS not yet valid", foundSAS("sp=rl&st=2026-05-01T12:10Z"), authentication, []string{"it is not valid before 2026-05-01T12:10Z", "the service has 2026-05-01T12:00:00Z"}},
		{"SAS for a blob", foundSAS("sp=r&sr=b"), authentication, []string{"signed for one blob (sr=b)", "sr=c"}},
		{"SAS by a policy", foundSAS("si=policy&sr=c"), authentication, []string{"stored access policy"}},
		{"SAS by another key", rl, authentication, []string{"the key that signed it may have been replaced"}},
		{"SAS without list", foundSAS("sp=r"), permission, []string{"the SAS token from secret file /s/sas_token lacks the permissions l (sp=r): sign with them"}},
		{"SAS by a policy without list", foundSAS("si=policy"), permission, []string{"may not list container data", "policy needs the permissions rl"}},
		{"SAS for other addresses", foundSAS("sp=rl&sip=10.0.0.1-10.0.0.9"), answer(blob.Forbidden, "AuthorizationSourceIPMismatch", 403), []string{"(sip=10.0.0.1-10.0.0.9)"}},
		{"SAS for https", rl, answer(blob.Forbidden, "AuthorizationProtocolMismatch", 403), []string{"is for https only"}},
		{"SAS for queues", foundSAS("sp=rl&ss=q"), answer(blob.Forbidden, "AuthorizationServiceMismatch", 403), []string{"is not for blobs (ss=q)"}},
		{"SAS for objects", foundSAS("sp=rl&ss=b&srt=o"), answer(blob.Forbidden, "AuthorizationResourceTypeMismatch", 403), []string{"(srt=o)", "c and o"}},
		{"SAS and firewall", rl, answer(blob.Forbidden, "AuthorizationFailure", 403), []string{"the firewall of the account"}},

		{"no role", foundToken(), permission, []string{"the managed identity from --auth=msi may not list container data", "give it the role Storage Blob Data Reader"}},
		{"identity and firewall", foundToken(), answer(blob.Forbidden, "AuthorizationFailure", 403), []string{"the firewall of the account"}},
		{"identity of another tenant", foundToken(), answer(blob.Unauthenticated, "InvalidAuthenticationInfo", 401), []string{"another tenant"}},
		{"no identity", foundToken(), &blob.Error{Code: blob.Unauthenticated, Err: &auth.TokenError{Origin: "identity from azidentity's default chain", Err: errors.New("many\nlines")}},
			[]string{"no usable credential was found", "--secret-dir", "no token from the identity"}},
		{"identity is refused", foundToken(), &blob.Error{Code: blob.Unauthenticated, Err: &auth.TokenError{Origin: "service principal from x", Rejected: true,
			Reason: "invalid_client, AADSTS7000222", Advice: "make a new one", Err: errors.New("many\nlines")}},
			[]string{"the identity service refused a token for the service principal from x (invalid_client, AADSTS7000222): make a new one"}},
		{"file of a token is missing", foundToken(), &blob.Error{Code: blob.Unauthenticated, Err: &auth.TokenError{Origin: "service principal from x", Reason: "there is no file /t"}},
			[]string{"no token from the service principal from x: there is no file /t"}},

		{"anonymous", foundNothing(), answer(blob.Forbidden, "", 403), []string{"not open to anonymous listing", "instead of --anonymous"}},
		{"not public", foundNothing(), answer(blob.Unauthenticated, "NoAuthenticationInformation", 401), []string{"not open to anonymous access"}},

		{"nobody listens", foundKey(), unreached(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}),
			[]string{"cannot reach acct1.blob.core.windows.net: dial tcp: connection refused", "--endpoint"}},
		{"no route", foundKey(), unreached(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.EHOSTUNREACH}), []string{"there is no route to acct1.blob.core.windows.net"}},
		{"no account", foundKey(), unreached(&net.DNSError{Name: "acct1", IsNotFound: true}), []string{"there is no host acct1.blob.core.windows.net", `account name "acct1"`}},
		{"no DNS", foundKey(), unreached(&net.DNSError{Name: "acct1", Err: "server misbehaving", IsTemporary: true}), []string{"cannot look up acct1", "server misbehaving", "resolv.conf"}},
		{"proxy is not there", foundKey(), unreached(&net.OpError{Op: "proxyconnect", Net: "tcp", Err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}}),
			[]string{"cannot reach the proxy for acct1", "connection refused", "NO_PROXY"}},
		{"proxy refuses", foundKey(), unreached(&azure.ProxyError{Proxy: "proxy:3128", Status: 407}), []string{"the proxy proxy:3128 answered 407 Proxy Authentication Required"}},
		{"proxy answers itself", foundKey(), &blob.Error{Status: 407}, []string{"answered with status 407, and not as a blob service does"}},
		{"unknown authority", foundKey(), certificate(x509.UnknownAuthorityError{}), []string{"does not trust", "--ca-file"}},
		{"other name", foundKey(), certificate(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}), []string{"is for another name"}},
		{"private link", private, certificate(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}), []string{"name without privatelink"}},
		{"certificate in the future", foundKey(), certificate(x509.CertificateInvalidError{Reason: x509.Expired}), []string{"is the clock of this machine right? It says 2026-05-01T12:00:00Z"}},
		{"no TLS", foundKey(), unreached(tls.RecordHeaderError{}), []string{"does not speak TLS"}},

		{"throttled", foundKey(), answer(blob.Throttled, "ServerBusy", 503), []string{"the service answers ServerBusy, status 503"}},
		{"something else", foundKey(), answer(blob.Other, "OutOfRangeInput", 400), []string{"cannot list container data", "OutOfRangeInput"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := validation{found: tt.found, src: source.Source{Container: "data"}, readOnly: true, now: func() time.Time { return checkTime }}
			err := v.validate(t.Context(), &questions{list: tt.err})
			if err == nil {
				t.Fatal("not refused")
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
		})
	}
}

// One request for a key. Other credentials are asked for more only where they do not say it themselves, and nothing is
// left behind.
func TestValidateAsks(t *testing.T) {
	met := answer(blob.ConditionNotMet, "ConditionNotMet", 412)
	forbidden := answer(blob.Forbidden, "AuthorizationPermissionMismatch", 403)
	missing := answer(blob.NotFound, "BlobNotFound", 404)
	list, read, write := "list p/", "read p/.blobmount-check", "write p/.blobmount-check"
	tests := []struct {
		name     string
		found    auth.Found
		readOnly bool
		q        questions
		asked    []string
		want     string
	}{
		{"key", foundKey(), false, questions{}, []string{list}, ""},
		{"SAS", foundSAS("sp=rwdl"), false, questions{}, []string{list}, ""},
		{"SAS to read", foundSAS("sp=rl"), true, questions{}, []string{list}, ""},
		{"SAS to read, mounted to write", foundSAS("sp=rcl"), false, questions{}, []string{list}, "lacks the permissions wd (sp=rcl): sign with them, or use --read-only"},
		{"SAS without read", foundSAS("sp=l"), true, questions{}, []string{list}, "lacks the permissions r (sp=l): sign with them"},
		{"policy", foundSAS("si=p"), false, questions{read: missing, write: met}, []string{list, read, write}, ""},
		{"policy without read", foundSAS("si=p"), true, questions{read: forbidden}, []string{list, read}, "may not read container data"},
		{"policy without write", foundSAS("si=p"), false, questions{read: missing, write: forbidden}, []string{list, read, write}, "may not write to container data"},
		{"identity", foundToken(), false, questions{write: met}, []string{list, write}, ""},
		{"identity to read", foundToken(), true, questions{}, []string{list}, ""},
		{"identity without write", foundToken(), false, questions{write: forbidden}, []string{list, write}, "may not write to container data of https://acct1.blob.core.windows.net (AuthorizationPermissionMismatch): give it the role Storage Blob Data Contributor"},
		{"write that fails for the moment", foundToken(), false, questions{write: answer(blob.Throttled, "ServerBusy", 503)}, []string{list, write}, ""},
		{"service without conditions", foundToken(), false, questions{}, []string{list, write, "delete p/.blobmount-check made"}, ""},
		{"anonymous to read", foundNothing(), true, questions{}, []string{list}, ""},
		{"anonymous", foundNothing(), false, questions{}, nil, "anonymous access can only read: add --read-only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := validation{found: tt.found, src: source.Source{Container: "data", Prefix: "p/"}, readOnly: tt.readOnly, now: time.Now}
			err := v.validate(t.Context(), &tt.q)
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), planted)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if !slices.Equal(tt.q.asked, tt.asked) {
				t.Errorf("asked %q, want %q", tt.q.asked, tt.asked)
			}
		})
	}
}

// "Nothing waits for ever."
func TestValidateIsBounded(t *testing.T) {
	found := foundKey()
	synctest.Test(t, func(t *testing.T) {
		v := validation{found: found, src: source.Source{Container: "data"}, now: time.Now}
		err := v.validate(t.Context(), &questions{never: true})
		if err == nil || !strings.Contains(err.Error(), "no answer from acct1.blob.core.windows.net within 30s") {
			t.Errorf("%v", err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := validation{found: found, now: time.Now}
	if err := v.validate(ctx, &questions{never: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
