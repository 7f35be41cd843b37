package azure

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blob"
)

const testKey = "U0VDUkVUIGtleSBvZiBhIHRlc3Q="

// capture is a transport that keeps the request and answers nothing of use.
type capture struct{ request *http.Request }

func (c *capture) Do(r *http.Request) (*http.Response, error) {
	c.request = r
	return nil, &notSent{}
}

type notSent struct{}

func (*notSent) Error() string { return "not sent" }
func (*notSent) NonRetriable() {}

// Our signature is the SDK's, whatever is in headers and query.
func TestSignsAsTheSDK(t *testing.T) {
	sdk, err := container.NewSharedKeyCredential("account", testKey)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := NewSharedKey("account", testKey)
	if err != nil {
		t.Fatal(err)
	}
	sent := &capture{}
	client, err := container.NewClientWithSharedKeyCredential("http://127.0.0.1:1/account/container", sdk,
		&container.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: sent}})
	if err != nil {
		t.Fatal(err)
	}
	metadata := map[string]*string{}
	for _, name := range []string{"a", "a_b", "a1", "ab", "Aa", "_", "b__c", "b_1", "b1", "B_b", "hdi_isfolder", "mtime", "z"} {
		metadata[name] = new("v " + name)
	}
	ctx := t.Context()
	put := func(name, body string) {
		_, _ = client.NewBlockBlobClient(name).Upload(ctx, nopCloser{strings.NewReader(body)}, &blockblob.UploadOptions{
			Metadata: metadata, Tags: map[string]string{"k": "v w"},
			AccessConditions: accessConditions(blob.Condition{IfMatch: `"0x1"`}),
			HTTPHeaders:      httpHeaders(blob.Headers{ContentType: "text/plain; charset=utf-8", CacheControl: "no-cache"}),
		})
	}
	for what, act := range map[string]func(){
		"upload":            func() { put("dir/a b%+ü", "content") },
		"upload of nothing": func() { put("empty", "") },
		"block with a checksum": func() {
			_, _ = client.NewBlockBlobClient("a").StageBlock(ctx, "aWQ=", nopCloser{strings.NewReader("x")},
				&blockblob.StageBlockOptions{TransactionalValidation: sdkblob.TransferValidationTypeMD5("0123456789abcdef")})
		},
		"head": func() { _, _ = client.NewBlobClient("a").GetProperties(ctx, nil) },
		"list": func() {
			o := &container.ListBlobsFlatOptions{Prefix: new("a&b=c d/ü"), Marker: new("m+/="), Include: container.ListBlobsInclude{Metadata: true, Tags: true}}
			_, _ = client.NewListBlobsFlatPager(o).NextPage(ctx)
		},
		"list hierarchy": func() { _, _ = client.NewListBlobsHierarchyPager("/", nil).NextPage(ctx) },
		"block": func() {
			_, _ = client.NewBlockBlobClient("a").StageBlock(ctx, "aWQ+/w==", nopCloser{strings.NewReader("x")}, nil)
		},
		"block list": func() { _, _ = client.NewBlockBlobClient("a").CommitBlockList(ctx, []string{"aWQ="}, nil) },
		"range": func() {
			_, _ = client.NewBlobClient("a").DownloadStream(ctx, &sdkblob.DownloadStreamOptions{Range: sdkblob.HTTPRange{Offset: 1, Count: 2}})
		},
		"delete": func() { _, _ = client.NewBlobClient("a").Delete(ctx, nil) },
		"copy":   func() { _, _ = client.NewBlobClient("a").StartCopyFromURL(ctx, "http://h/a%20b?sig=x", nil) },
	} {
		sent.request = nil
		act()
		r := sent.request
		if r == nil {
			t.Errorf("%s: no request", what)
			continue
		}
		want := r.Header.Get("Authorization")
		date, err := http.ParseTime(r.Header.Get("x-ms-date"))
		if err != nil || want == "" {
			t.Fatalf("%s: the SDK has not signed: %v", what, err)
		}
		r.Header.Del("Authorization")
		r.Header.Del("x-ms-date")
		ours.sign(r, date)
		if got := r.Header.Get("Authorization"); got != want {
			t.Errorf("%s: signed as %s, the SDK as %s", what, got, want)
		}
	}
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// A credential in none of its forms prints.
func TestCredentialNeverPrints(t *testing.T) {
	key, err := NewSharedKey("account", testKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := base64.StdEncoding.DecodeString(testKey)
	for _, cred := range []Credential{{SharedKey: key}, {SAS: "sig=SECRET"}} {
		var out bytes.Buffer
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "c", cred, "p", &cred)
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "c", cred, "p", &cred)
		text, err := json.Marshal(map[string]any{"c": cred, "p": &cred, "in": struct{ C Credential }{cred}})
		if err != nil || strings.Contains(out.String()+string(text), "SECRET") || strings.Count(out.String()+string(text), "REDACTED") != 7 {
			t.Errorf("%v: %s%s", err, &out, text)
		}
		for _, v := range []any{cred, &cred, Config{Credential: cred}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
				out := fmt.Sprintf(verb, v)
				for _, secret := range []string{testKey, "SECRET", fmt.Sprint(raw), fmt.Sprintf("%#v", raw), fmt.Sprintf("%x", "SECRET")} {
					if strings.Contains(out, secret) {
						t.Errorf("%s of a %T: %s", verb, v, out)
					}
				}
			}
		}
	}
	if _, err := NewSharedKey("account", "SECRET!"); err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("a key that is not base64: %v", err)
	}
}

// keyed answers as a service that accepts one SAS and refuses all others with the given code.
func keyed(t *testing.T, good *atomic.Value, status int, code string) *service {
	return serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Query().Get("sig") != good.Load() {
			refuse(w, r, status, code, "")
			return
		}
		if from := r.Header.Get("x-ms-copy-source"); from != "" && !strings.HasSuffix(from, "?sig="+good.Load().(string)) {
			refuse(w, r, http.StatusForbidden, "CannotVerifyCopySource", "")
			return
		}
		w.Header().Set("x-ms-copy-status", "success")
		w.Header().Set("x-ms-copy-id", "id")
		created(w)
	})
}

// When the service refuses the credential, the source is asked once, and what it gives is used for the next try, with the
// whole body, and for the source of a copy.
func TestRenews(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 300_000)
	for _, refusal := range []struct {
		status int
		code   string
	}{{403, "AuthenticationFailed"}, {403, "AuthorizationFailure"}, {401, "InvalidAuthenticationInfo"}, {403, "AuthorizationPermissionMismatch"}, {403, ""}} {
		var good atomic.Value
		good.Store("new")
		s := keyed(t, &good, refusal.status, refusal.code)
		var c *Container
		var asked atomic.Int64
		c = s.container(t, func(cfg *Config) {
			cfg.Credential.SAS = "sig=old"
			cfg.RetryFor = -1
			cfg.Renew = func(context.Context) bool {
				asked.Add(1)
				if err := c.SetCredential(Credential{SAS: "?sig=new"}); err != nil {
					t.Error(err)
				}
				return false
			}
		})
		if err := c.StageBlock(t.Context(), "a", "id", bytes.NewReader(content), int64(len(content))); err != nil {
			t.Errorf("%+v: %v", refusal, err)
		}
		if asked.Load() != 1 || s.requests() != 2 {
			t.Errorf("%+v: asked %d times, %d requests", refusal, asked.Load(), s.requests())
		}
		_ = c.SetCredential(Credential{SAS: "sig=old"})
		if err := c.StageBlockFrom(t.Context(), "b", "id", blob.Range{Name: "a", Size: 1}); err != nil {
			t.Errorf("%+v: block from another blob: %v", refusal, err)
		}
		if c.URL("a") != s.URL+"/account/container/a" {
			t.Errorf("URL is %s", c.URL("a"))
		}
	}
}

// A source that has nothing new is asked once for each failed operation, and the caller gets the refusal. Failures that
// no credential cures do not ask.
func TestRenewsInVain(t *testing.T) {
	var good atomic.Value
	good.Store("never")
	s := keyed(t, &good, 403, "AuthenticationFailed")
	var asked atomic.Int64
	count := func(cfg *Config) {
		cfg.Credential.SAS = "sig=old"
		cfg.Renew = func(context.Context) bool { asked.Add(1); return false }
	}
	_, err := s.container(t, count).Properties(t.Context(), "a", blob.Condition{})
	if !blob.Is(err, blob.Unauthenticated) || asked.Load() != 1 || s.requests() != 1 {
		t.Errorf("%v, asked %d times, %d requests", err, asked.Load(), s.requests())
	}
	missing := serve(t, func(n int, w http.ResponseWriter, r *http.Request) { refuse(w, r, 404, "BlobNotFound", "") })
	if _, err := missing.container(t, count).Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.NotFound) || asked.Load() != 1 {
		t.Errorf("%v, asked %d times", err, asked.Load())
	}
}

// While nobody can say whether the credential that is there now is good, the operation waits for it, within RetryFor; then
// the caller gets the refusal.
func TestRenewsLater(t *testing.T) {
	for _, decided := range []int64{4, 1 << 62} {
		synctest.Test(t, func(t *testing.T) {
			var c *Container
			var asked int64
			k := &tokens{fail: func(n int64) error { return &notSent{} }} // the identity service refuses
			c, err := New(Config{URL: "https://127.0.0.1:1/account/container", Credential: Credential{Token: k}, RetryFor: 30 * time.Second,
				Renew: func(context.Context) bool {
					if asked++; asked == decided {
						return false
					}
					return true
				}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			began := time.Now()
			_, err = c.Properties(t.Context(), "a", blob.Condition{})
			if spent := time.Since(began); !blob.Is(err, blob.Unauthenticated) || spent > 30*time.Second ||
				decided == 4 && asked != 4 || decided != 4 && spent < 15*time.Second {
				t.Errorf("%v after %v, asked %d times", err, spent, asked)
			}
		})
	}
	var good atomic.Value
	good.Store("new")
	s := keyed(t, &good, 403, "AuthenticationFailed")
	var c *Container
	asked := 0
	c = s.container(t, func(cfg *Config) {
		cfg.Credential.SAS = "sig=old"
		cfg.Renew = func(context.Context) bool {
			if asked++; asked == 3 {
				_ = c.SetCredential(Credential{SAS: "sig=new"})
			}
			return asked < 3
		}
	})
	if err := c.StageBlock(t.Context(), "a", "id", strings.NewReader("x"), 1); err != nil || asked != 3 || s.requests() != 4 {
		t.Errorf("%v, asked %d times, %d requests", err, asked, s.requests())
	}
}

// One that gives a new credential each time, none of them good, is not asked for ever.
func TestRenewsAreBounded(t *testing.T) {
	var good atomic.Value
	good.Store("never")
	s := keyed(t, &good, 403, "AuthenticationFailed")
	var c *Container
	n := 0
	c = s.container(t, func(cfg *Config) {
		cfg.Renew = func(context.Context) bool {
			n++
			_ = c.SetCredential(Credential{SAS: fmt.Sprintf("sig=bad%d", n)})
			return false
		}
	})
	if _, err := c.Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Unauthenticated) || s.requests() != 1+maxRenewals {
		t.Errorf("%v after %d requests", err, s.requests())
	}
}

// A replaced credential is used by the next try of an operation that is being repeated for another reason.
func TestNextTryTakesNewCredential(t *testing.T) {
	var c *Container
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			_ = c.SetCredential(Credential{SAS: "sig=new"})
			refuse(w, r, 503, "ServerBusy", "")
			return
		}
		if r.URL.Query().Get("sig") != "new" {
			refuse(w, r, 403, "AuthenticationFailed", "")
			return
		}
		w.Header().Set("ETag", etag1)
	})
	c = s.container(t, func(cfg *Config) { cfg.Credential.SAS = "sig=old" })
	if _, err := c.Properties(t.Context(), "a", blob.Condition{}); err != nil || s.requests() != 2 {
		t.Errorf("%v after %d requests", err, s.requests())
	}
}

// TryCredential uses the given credential once, asks nobody for another one, and changes nothing.
func TestTryCredential(t *testing.T) {
	var good atomic.Value
	good.Store("good")
	s := keyed(t, &good, 403, "AuthenticationFailed")
	c := s.container(t, func(cfg *Config) {
		cfg.Credential.SAS = "sig=good"
		cfg.Renew = func(context.Context) bool { t.Error("asked for another one"); return false }
	})
	if err := c.TryCredential(t.Context(), Credential{SAS: "sig=bad"}, "p/"); !blob.Is(err, blob.Unauthenticated) || s.requests() != 1 {
		t.Errorf("%v after %d requests", err, s.requests())
	}
	if err := c.TryCredential(t.Context(), Credential{SAS: "sig=#"}, ""); err == nil || strings.Contains(err.Error(), "sig=#") {
		t.Errorf("malformed: %v", err)
	}
	if err := c.StageBlock(t.Context(), "a", "id", strings.NewReader("x"), 1); err != nil {
		t.Errorf("the credential in use is another one now: %v", err)
	}
}

// A refusal of the identity service counts as one of the credential.
func TestRenewsForTokens(t *testing.T) {
	refusedToken := &credentialError{&notSent{}}
	if !rejected(nil, refusedToken) || rejected(nil, &credentialError{errors.New("no route")}) || rejected(nil, &notSent{}) {
		t.Error("only what the identity service refuses for good is a refused credential")
	}
}

// tokens gives another token each time, which says that it holds for an hour, unless fail has an error.
type tokens struct {
	given atomic.Int64
	fail  func(n int64) error
}

func (k *tokens) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	n := k.given.Add(1)
	if k.fail != nil {
		if err := k.fail(n); err != nil {
			return azcore.AccessToken{}, err
		}
	}
	return azcore.AccessToken{Token: fmt.Sprint("token", n), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// secure serves https, and takes one token.
func secure(t *testing.T, good *atomic.Value, k *tokens) *Container {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method == http.MethodPut && len(body) != 300_000 {
			t.Errorf("body of %d bytes, %v", len(body), err)
		}
		if r.Header.Get("Authorization") != good.Load() {
			w.Header().Set("WWW-Authenticate", "Bearer authorization_uri=https://login.microsoftonline.com/x/oauth2/authorize resource_id=https://storage.azure.com")
			refuse(w, r, http.StatusUnauthorized, "InvalidAuthenticationInfo", "")
			return
		}
		if r.Method == http.MethodPut {
			created(w)
			return
		}
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Last-Modified", "Sat, 21 Nov 2026 20:50:52 GMT")
		_, _ = io.WriteString(w, "content")
	}))
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c, err := New(Config{URL: s.URL + "/account/container", Credential: Credential{Token: k}, RetryFor: time.Minute,
		Transport: TransportConfig{RootCAs: roots, MaxConnections: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// A token that the service does not take any more is replaced before anybody sees an error, with the whole body, and
// without a connection that stays in use: there is only one.
func TestTokenEndsEarly(t *testing.T) {
	var good atomic.Value
	good.Store("Bearer token1")
	k := &tokens{}
	c := secure(t, &good, k)
	for n := int64(1); n <= 3; n++ {
		good.Store(fmt.Sprint("Bearer token", n))
		if err := c.StageBlock(t.Context(), "a", "id", bytes.NewReader(make([]byte, 300_000)), 300_000); err != nil {
			t.Fatalf("with token %d: %v", n, err)
		}
		if k.given.Load() != n {
			t.Errorf("%d tokens were asked for, want %d", k.given.Load(), n)
		}
	}
	for n := int64(4); n <= 5; n++ {
		good.Store(fmt.Sprint("Bearer token", n))
		r, err := c.ReadAt(t.Context(), "a", 0, 7, blob.Condition{})
		if err != nil {
			t.Fatalf("with token %d: %v", n, err)
		}
		if text, err := io.ReadAll(r); err != nil || string(text) != "content" {
			t.Errorf("%q, %v", text, err)
		}
		r.Close()
	}
	good.Store("none")
	before := k.given.Load()
	if _, err := c.Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Unauthenticated) || k.given.Load() != before+1 {
		t.Errorf("%v after %d more tokens, want Unauthenticated after 1", err, k.given.Load()-before)
	}
}

// passing is a failure of a credential that says that it may pass, and that a request must not be repeated, as azcore
// says of all of them.
type passing struct{ notSent }

func (*passing) Temporary() bool { return true }

// While tokens cannot be had, requests wait for them like for the service; then they are Unavailable, not refused.
func TestTokenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &tokens{fail: func(int64) error { return &passing{} }}
		c, err := New(Config{URL: "https://127.0.0.1:1/account/container", Credential: Credential{Token: k}, RetryFor: 30 * time.Second,
			Renew: func(context.Context) bool { t.Error("another credential was asked for"); return false }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		_, err = c.Properties(t.Context(), "a", blob.Condition{})
		if !blob.Is(err, blob.Unavailable) {
			t.Errorf("got %v, want Unavailable", err)
		}
		if k.given.Load() < 5 || time.Since(began) < 15*time.Second || time.Since(began) > 30*time.Second {
			t.Errorf("%d requests for tokens in %v, want some in almost 30 seconds", k.given.Load(), time.Since(began))
		}
	})
	var good atomic.Value
	good.Store("Bearer token3")
	c := secure(t, &good, &tokens{fail: func(n int64) error {
		if n < 3 {
			return &passing{}
		}
		return nil
	}})
	if err := c.StageBlock(t.Context(), "a", "id", bytes.NewReader(make([]byte, 300_000)), 300_000); err != nil {
		t.Error(err)
	}
}
