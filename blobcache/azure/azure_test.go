package azure

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blob"
)

// service is a server whose answers a test writes by hand. It counts requests.
type service struct {
	*httptest.Server
	mu   sync.Mutex // guards seen
	seen []*http.Request
}

func serve(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *service {
	t.Helper()
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r)
		n := len(s.seen)
		s.mu.Unlock()
		w.Header().Set("x-ms-request-id", "request-1")
		answer(n, w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// container returns the adapter over the service.
func (s *service) container(t *testing.T, change func(*Config)) *Container {
	t.Helper()
	cfg := Config{URL: s.URL + "/account/container"}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// refuse answers with an error of the service.
func refuse(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	if code != "" {
		w.Header().Set("x-ms-error-code", code)
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead && status != http.StatusNotModified {
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>%s\nRequestId:x\nTime:y</Message></Error>", code, message)
	}
}

const etag1 = `"0x8D1"`

// created answers a write.
func created(w http.ResponseWriter) {
	w.Header().Set("ETag", etag1)
	w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
	w.WriteHeader(http.StatusCreated)
}

// hangUp breaks the connection without an answer.
func hangUp(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

func TestNew(t *testing.T) {
	key, err := container.NewSharedKeyCredential("account", base64.StdEncoding.EncodeToString([]byte("key")))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Config{
		{},
		{URL: "account/container"},
		{URL: "ftp://host/container"},
		{URL: "https://host"},
		{URL: "https://host/"},
		{URL: "https://host/a/b/c"},
		{URL: "https://host/a//b"},
		{URL: "https://host/container?sig=SECRET"},
		{URL: "https://user:SECRET@host/container"},
		{URL: "https://host/container%zz?sig=SECRET"},
		{URL: "https://host/container", Credential: Credential{SharedKey: key, SAS: "sig=SECRET"}},
		{URL: "https://host/container", Credential: Credential{SAS: "https://host/container?sig=SECRET"}},
	} {
		_, err := New(bad)
		if err == nil {
			t.Errorf("New(%+v) succeeded", bad)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("New(%+v): the error shows the secret: %v", bad, err)
		}
	}
}

func TestURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://Account.Blob.core.windows.net:443/container/":  "https://account.blob.core.windows.net/container",
		"http://127.0.0.1:10000/devstoreaccount1/container":     "http://127.0.0.1:10000/devstoreaccount1/container",
		"https://account.blob.core.windows.net:8443/$root":      "https://account.blob.core.windows.net:8443/$root",
		"HTTP://account.blob.core.usgovcloudapi.net:80/my-data": "http://account.blob.core.usgovcloudapi.net/my-data",
	} {
		c, err := New(Config{URL: in, Credential: Credential{SAS: "?sig=x"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.URL(""); got != want {
			t.Errorf("URL of %s: got %s, want %s", in, got, want)
		}
		if got := c.URL("a b/%2F?#"); got != want+"/a%20b/%252F%3F%23" {
			t.Errorf("URL of a name: got %s", got)
		}
	}
}

// A name arrives at the service byte for byte, in every kind of request.
func TestNamesArrive(t *testing.T) {
	var got string
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		raw, _, _ := strings.Cut(r.RequestURI, "?")
		path, err := url.PathUnescape(raw)
		if err != nil {
			t.Errorf("path %q: %v", raw, err)
		}
		got = strings.TrimPrefix(path, "/account/container/")
		refuse(w, r, http.StatusNotFound, "BlobNotFound", "")
	})
	for _, sas := range []string{"", "sv=2024-11-04&sig=a%2Bb%3D"} {
		c := s.container(t, func(cfg *Config) { cfg.Credential.SAS = sas })
		for _, name := range []string{
			"plain", "a/b", "a b", " a ", "100%", "%41", "%2F", "a?b=c", "#", "a+b", "日本", "a//b", "a/", "/a",
			"..x", ".x", "a.b", "a&b=c;d", "a:b@c$d,e", "\u007f", "~!*'()[]", strings.Repeat("é", 1024),
		} {
			for op, call := range map[string]func() error{
				"Properties": func() error { _, err := c.Properties(t.Context(), name, blob.Condition{}); return err },
				"StageBlock": func() error { return c.StageBlock(t.Context(), name, "id", strings.NewReader("x"), 1) },
			} {
				if err := call(); !blob.Is(err, blob.NotFound) {
					t.Fatalf("%s %q: %v", op, name, err)
				}
				if got != name {
					t.Errorf("%s: sent %q, arrived %q", op, name, got)
				}
			}
		}
	}
}

func TestNamesRefused(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { refuse(w, r, 500, "", "") })
	c := s.container(t, nil)
	for _, name := range []string{"", ".", "..", "a/../b", "./a", "a/.", "trailing.", "dir./x", "...", `back\slash`, "a\x00b", "a\nb", "\xff", strings.Repeat("x", 1025)} {
		if _, err := c.Properties(t.Context(), name, blob.Condition{}); !blob.Is(err, blob.InvalidName) {
			t.Errorf("Properties %q: %v", name, err)
		}
		if _, err := c.Copy(t.Context(), "ok", name, blob.CopyOptions{}); !blob.Is(err, blob.InvalidName) {
			t.Errorf("Copy from %q: %v", name, err)
		}
	}
	if n := s.requests(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

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
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { refuse(w, r, status, code, "") })
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

// The checksum goes along, computed as the service computes it.
func TestChecksumSent(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 40_000) // more than one buffer
	want := binary.LittleEndian.AppendUint64(nil, crc64.Checksum(content, crc64.MakeTable(0x9A6C9329AC4BC9B5)))
	var sums []string
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes arrived: %v", len(got), err)
		}
		sums = append(sums, r.Header.Get("x-ms-content-crc64"))
		created(w)
	})
	c := s.container(t, nil)
	body := bytes.NewReader(append(bytes.Clone(content), "more than size"...))
	if _, err := c.Upload(t.Context(), "a", body, int64(len(content)), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.StageBlock(t.Context(), "a", "id", body, int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for _, got := range sums {
		if got != base64.StdEncoding.EncodeToString(want) {
			t.Errorf("x-ms-content-crc64: %q, want %x", got, want)
		}
	}
	if len(sums) != 2 {
		t.Errorf("%d requests", len(sums))
	}
}

// An endpoint that refuses CRC-64, as Azurite does, gets MD5, from the second upload on at once.
func TestChecksumFallback(t *testing.T) {
	sum := md5.Sum([]byte("content"))
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("x-ms-content-crc64") != "" {
			refuse(w, r, 500, "FeatureNotSupported", "")
			return
		}
		if got, err := io.ReadAll(r.Body); err != nil || string(got) != "content" {
			t.Errorf("request %d: %q, %v", n, got, err)
		}
		if got := r.Header.Get("Content-MD5"); got != base64.StdEncoding.EncodeToString(sum[:]) {
			t.Errorf("request %d: Content-MD5 %q", n, got)
		}
		created(w)
	})
	c := s.container(t, nil)
	for range 2 {
		if err := c.StageBlock(t.Context(), "a", "id", strings.NewReader("content"), 7); err != nil {
			t.Error(err)
		}
	}
	if s.requests() != 3 {
		t.Errorf("%d requests, want 3", s.requests())
	}
}

// What the service says it stored is compared with what was sent.
func TestChecksumEcho(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-ms-content-crc64", base64.StdEncoding.EncodeToString(make([]byte, 8)))
		created(w)
	})
	if err := s.container(t, nil).StageBlock(t.Context(), "a", "id", strings.NewReader("x"), 1); !blob.Is(err, blob.Damaged) {
		t.Errorf("got %v", err)
	}
}

// A body that cannot be read is an error at once, and nothing is stored.
func TestBodyFails(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { created(w) })
	c := s.container(t, nil)
	broken := errors.New("disk error")
	for what, body := range map[string]io.ReadSeeker{
		"short":  strings.NewReader("x"),
		"broken": failingReader{broken},
	} {
		_, err := c.Upload(t.Context(), "a", body, 10, blob.WriteOptions{})
		if err == nil || blob.CodeOf(err) != blob.Other {
			t.Errorf("%s: got %v", what, err)
		}
		if what == "broken" && !errors.Is(err, broken) {
			t.Errorf("%v does not wrap the cause", err)
		}
	}
	if n := s.requests(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error)       { return 0, f.err }
func (f failingReader) Seek(int64, int) (int64, error) { return 0, nil }

// What a header cannot carry is refused before it is sent: net/http would fail as if the connection had broken.
func TestHeadersRefused(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { created(w) })
	c := s.container(t, nil)
	for _, o := range []blob.WriteOptions{
		{Metadata: map[string]string{"a-b": "x"}}, {Metadata: map[string]string{"": "x"}}, {Metadata: map[string]string{"1a": "x"}},
		{Metadata: map[string]string{"a": "x\ny"}}, {Metadata: map[string]string{"a": " x"}}, {Metadata: map[string]string{"a": "é"}},
		{Headers: blob.Headers{ContentType: "a\r\nb: c"}},
	} {
		if _, err := c.Upload(t.Context(), "a", strings.NewReader("x"), 1, o); err == nil {
			t.Errorf("Upload with %+v succeeded", o)
		}
	}
	if n := s.requests(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestTooLarge(t *testing.T) {
	c, err := New(Config{URL: "http://127.0.0.1:1/container"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Upload(t.Context(), "a", strings.NewReader(""), blob.MaxUploadSize+1, blob.WriteOptions{})
	if !blob.Is(err, blob.TooLarge) {
		t.Errorf("Upload: %v", err)
	}
	if err := c.StageBlock(t.Context(), "a", "id", strings.NewReader(""), blob.MaxBlockSize+1); !blob.Is(err, blob.TooLarge) {
		t.Errorf("StageBlock: %v", err)
	}
	if _, err := c.CommitBlockList(t.Context(), "a", make([]string, blob.MaxBlocks+1), blob.WriteOptions{}); !blob.Is(err, blob.TooLarge) {
		t.Errorf("CommitBlockList: %v", err)
	}
}

// Copy waits until the copy is complete, and a copy that failed is an error.
func TestCopyPolls(t *testing.T) {
	final := "success"
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag1)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("x-ms-copy-id", "copy-1")
		if r.Method == http.MethodPut {
			if got := r.Header.Get("x-ms-copy-source"); !strings.HasSuffix(got, "/account/container/a%20b?sig=x") {
				t.Errorf("copy source %q", got)
			}
			w.Header().Set("x-ms-copy-status", "pending")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.Header().Set("ETag", `"final"`)
		w.Header().Set("x-ms-copy-status", "pending")
		if n >= 3 {
			w.Header().Set("x-ms-copy-status", final)
		}
	})
	c := s.container(t, func(cfg *Config) { cfg.Credential.SAS = "sig=x" })
	w, err := c.Copy(t.Context(), "dst", "a b", blob.CopyOptions{})
	if err != nil || w.ETag != `"final"` || s.requests() != 3 {
		t.Errorf("got %+v, %v after %d requests", w, err, s.requests())
	}
	final = "failed"
	if _, err := c.Copy(t.Context(), "dst", "a b", blob.CopyOptions{}); err == nil {
		t.Error("a failed copy is reported as success")
	}
}
