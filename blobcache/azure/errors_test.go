package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// The service's codes are translated from the header alone (HEAD has no body) and from the body alone.
func TestErrorTable(t *testing.T) {
	type row struct {
		status int
		code   string
		want   blob.Code
	}
	rows := []row{
		{404, "", blob.NotFound}, {401, "", blob.Unauthenticated}, {403, "", blob.Forbidden}, {412, "", blob.ConditionNotMet},
		{416, "", blob.InvalidRange}, {413, "", blob.TooLarge}, {503, "", blob.Throttled}, {500, "", blob.Unavailable},
		{429, "", blob.Throttled}, {418, "", blob.Other}, {400, "SomethingNew", blob.Other}, {302, "", blob.Other},
		{304, "ConditionNotMet", blob.NotModified}, {404, "CannotVerifyCopySource", blob.NotFound},
		{403, "CannotVerifyCopySource", blob.Forbidden},
	}
	for code, want := range codes {
		rows = append(rows, row{409, string(code), want})
	}
	for _, r := range rows {
		inBody := false
		s := serve(t, func(_ int, w http.ResponseWriter, req *http.Request) {
			if inBody {
				w.WriteHeader(r.status)
				fmt.Fprintf(w, "<Error><Code>%s</Code><Message>m</Message></Error>", r.code)
				return
			}
			refuse(w, req, r.status, r.code, "m")
		})
		c := s.container(t, func(cfg *Config) { cfg.RetryFor = -1 })
		_, err := c.Properties(t.Context(), "a b", blob.Condition{})
		var e *blob.Error
		if !errors.As(err, &e) {
			t.Fatalf("%d %s: %v is no *blob.Error", r.status, r.code, err)
		}
		if e.Code != r.want || e.Status != r.status || e.ServiceCode != r.code || e.RequestID != "request-1" || e.Op != "Properties" || e.Name != "a b" || e.Err == nil {
			t.Errorf("HEAD %d %s: got %+v, want code %q", r.status, r.code, e, r.want)
		}
		if r.status != http.StatusNotModified && r.code != "" {
			inBody = true
			_, err = c.ReadAt(t.Context(), "a b", 0, 1, blob.Condition{})
			if blob.CodeOf(err) != r.want {
				t.Errorf("GET %d %s in the body: got %v, want code %q", r.status, r.code, err, r.want)
			}
		}
	}
}

// A 404 that the service has not sent is no word about a blob: it is repeated, and then a failure to reach the service.
// One that has a code that we know is believed, as is one that the service has sent without.
func TestNotFoundByGateway(t *testing.T) {
	for what, test := range map[string]struct {
		id, code string
		want     blob.Code
	}{
		"gateway":              {"", "", blob.Unavailable},
		"gateway with a code":  {"", "NoSuchHost", blob.Unavailable},
		"service":              {"1", "BlobNotFound", blob.NotFound},
		"service without code": {"1", "", blob.NotFound},
		"id taken away":        {"", "BlobNotFound", blob.NotFound},
	} {
		s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Del("x-ms-request-id")
			if test.id != "" {
				w.Header().Set("x-ms-request-id", test.id)
			}
			refuse(w, r, http.StatusNotFound, test.code, "no such backend")
		})
		c := s.container(t, func(cfg *Config) { cfg.RetryFor = 200 * time.Millisecond })
		for op, call := range map[string]func() error{
			"Properties": func() error { _, err := c.Properties(t.Context(), "a", blob.Condition{}); return err },
			"ReadAt": func() error {
				_, err := c.ReadAt(t.Context(), "a", 0, 1, blob.Condition{IfMatch: etag1})
				return err
			},
			"Delete":    func() error { return c.Delete(t.Context(), "a", blob.Condition{IfMatch: etag1}) },
			"BlockList": func() error { _, err := c.BlockList(t.Context(), "a"); return err },
			"Copy":      func() error { _, err := c.Copy(t.Context(), "b", "a", blob.CopyOptions{}); return err },
		} {
			before := s.requests()
			if err := call(); !blob.Is(err, test.want) {
				t.Errorf("%s, %s: got %v, want %v", what, op, err, test.want)
			}
			if n := s.requests() - before; (n > 1) != (test.want == blob.Unavailable) {
				t.Errorf("%s, %s: %d requests", what, op, n)
			}
		}
	}
}

// A gateway that fails, and then has no way to the service, has deleted nothing.
func TestDeleteNotFoundByGateway(t *testing.T) {
	for _, cond := range []blob.Condition{{}, {IfMatch: etag1}} {
		s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Del("x-ms-request-id")
			if n == 1 {
				http.Error(w, "bad gateway", http.StatusBadGateway)
				return
			}
			http.Error(w, "no such backend", http.StatusNotFound)
		})
		c := s.container(t, func(cfg *Config) { cfg.RetryFor = 300 * time.Millisecond })
		if err := c.Delete(t.Context(), "a", cond); !blob.Is(err, blob.Unavailable) {
			t.Errorf("%+v: got %v, want Unavailable", cond, err)
		}
	}
}

// 404 without a code is about the container when the request is a listing.
func TestListNotFound(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) })
	if _, err := s.container(t, nil).List(t.Context(), blob.ListOptions{}); !blob.Is(err, blob.ContainerNotFound) {
		t.Errorf("List: %v", err)
	}
}

// "Must not exist" that fails is Exists, whichever of its two codes the service uses. A source that changed is not.
func TestExists(t *testing.T) {
	code, status := "", 0
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // Copy looks at its source
			w.Header().Set("ETag", etag1)
			return
		}
		refuse(w, r, status, code, "")
	})
	c := s.container(t, nil)
	for _, test := range []struct {
		status int
		code   string
		c      blob.Condition
		want   blob.Code
	}{
		{409, "BlobAlreadyExists", blob.Condition{IfNoneMatch: blob.Any}, blob.Exists},
		{412, "ConditionNotMet", blob.Condition{IfNoneMatch: blob.Any}, blob.Exists},
		{412, "TargetConditionNotMet", blob.Condition{IfNoneMatch: blob.Any}, blob.Exists},
		{412, "ConditionNotMet", blob.Condition{IfMatch: etag1}, blob.ConditionNotMet},
		{412, "ConditionNotMet", blob.Condition{IfNoneMatch: etag1}, blob.ConditionNotMet},
		{412, "SourceConditionNotMet", blob.Condition{IfNoneMatch: blob.Any}, blob.ConditionNotMet},
		{304, "ConditionNotMet", blob.Condition{IfNoneMatch: blob.Any}, blob.ConditionNotMet}, // Azurite, of a source
	} {
		code, status = test.code, test.status
		o := blob.WriteOptions{Condition: test.c}
		if _, err := c.Upload(t.Context(), "a", strings.NewReader("x"), 1, o); !blob.Is(err, test.want) {
			t.Errorf("Upload %+v: %v", test, err)
		}
		if _, err := c.CommitBlockList(t.Context(), "a", []string{"1"}, o); !blob.Is(err, test.want) {
			t.Errorf("CommitBlockList %+v: %v", test, err)
		}
		if _, err := c.Copy(t.Context(), "a", "b", blob.CopyOptions{Condition: test.c}); !blob.Is(err, test.want) {
			t.Errorf("Copy %+v: %v", test, err)
		}
	}
}

// No error shows a secret, at any depth of its chain.
func TestErrorsShowNoSecret(t *testing.T) {
	const sas = "?sv=2024-11-04&se=2099-01-01&sig=SECRET%2Babc%3D"
	quoting := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		status, code := 403, "AuthenticationFailed"
		if strings.HasSuffix(r.URL.Path, "/other") {
			status, code = 400, "InvalidHeaderValue"
		}
		refuse(w, r, status, code, "Signature did not match: "+strings.ReplaceAll(r.URL.RawQuery, "&", "&amp;")+" Authorization: SharedKey account:SECRET")
	})
	errs := map[string]error{}
	collect := func(what string, c *Container, name string) {
		_, err := c.ReadAt(t.Context(), name, 0, 1, blob.Condition{})
		errs[what+", read"] = err
		_, err = c.Copy(t.Context(), name, "source", blob.CopyOptions{})
		errs[what+", copy"] = err
		_, err = c.List(t.Context(), blob.ListOptions{})
		errs[what+", list"] = err
	}
	withSAS := func(cfg *Config) { cfg.Credential.SAS = sas; cfg.RetryFor = -1 }
	collect("quoted by the service", quoting.container(t, withSAS), "a")
	collect("quoted in another error", quoting.container(t, withSAS), "other")
	collect("named by the proxy", quoting.container(t, func(cfg *Config) {
		withSAS(cfg)
		cfg.Transport.Proxy = func(r *http.Request) (*url.URL, error) {
			return nil, &url.Error{Op: "proxy", URL: r.URL.String(), Err: errors.New("refused")}
		}
	}), "a")
	dead := serve(t, nil)
	c := dead.container(t, withSAS)
	dead.Close()
	collect("no server", c, "a")
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	c, err := New(Config{URL: secure.URL + "/container", RetryFor: -1, Credential: Credential{Token: failingToken{}},
		Transport: TransportConfig{RootCAs: secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	collect("no token", c, "a")
	if err := errs["no token, read"]; !blob.Is(err, blob.Unauthenticated) {
		t.Errorf("no token: got %v, want Unauthenticated", err)
	}
	for what, err := range errs {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		for ; err != nil; err = errors.Unwrap(err) {
			if s := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(s, "SECRET") {
				t.Errorf("%s: %T shows the secret: %s", what, err, s)
			}
		}
	}
}

type failingToken struct{}

func (failingToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{}, errors.New("POST https://login/token?client_secret=SECRET failed")
}

// A cancelled context is found by errors.Is; a time limit of the transport never passes for one.
func TestContext(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { <-release })
	defer close(release)
	c := s.container(t, func(cfg *Config) { cfg.RetryFor = -1; cfg.Transport.StallTimeout = 50 * time.Millisecond })
	_, err := c.Properties(t.Context(), "a", blob.Condition{})
	if !blob.Is(err, blob.Unavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		t.Errorf("stalled: %v", err)
	}
	c = s.container(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = c.Properties(ctx, "a", blob.Condition{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
}

// A dead server is reported as such and not repeated for ever.
func TestUnreachable(t *testing.T) {
	s := serve(t, nil)
	c := s.container(t, func(cfg *Config) { cfg.RetryFor = 300 * time.Millisecond })
	s.Close()
	if _, err := c.Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Unavailable) {
		t.Errorf("got %v", err)
	}
}

// A certificate that does not verify is final.
func TestCertificate(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it reports the refused handshake
	s.StartTLS()
	defer s.Close()
	c, err := New(Config{URL: s.URL + "/container"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	if _, err := c.Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Unavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(began); d > DefaultRetryFor/2 {
		t.Errorf("took %v: it was repeated", d)
	}
}

// The embedded service and the adapter agree on what each of the service's codes means.
func TestCodesAgree(t *testing.T) {
	known := 0
	for service, code := range codes {
		if blobtest.Message(string(service)) == "" {
			continue // the embedded service does not send it
		}
		known++
		if got := blobtest.Err(string(service)).Code; got != code {
			t.Errorf("%s: blobtest says %q, azure %q", service, got, code)
		}
	}
	if known < 15 {
		t.Errorf("%d codes compared", known)
	}
}
