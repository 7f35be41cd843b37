package azure

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

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
	key, err := NewSharedKey("account", base64.StdEncoding.EncodeToString([]byte("key")))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Config{
		{},
		{URL: "account/container"},
		{URL: "ftp://host/container"},
		{URL: "https://host"},
		{URL: "https://host/a", Transport: TransportConfig{MaxConnections: -1}},
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
			"..x", ".x", "a.b", "a&b=c;d", "a:b@c$d,e", "~!*'()[]", strings.Repeat("é", 1024),
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
		if n >= 4 { // after the look at the source, the copy, and a look at its progress
			w.Header().Set("x-ms-copy-status", final)
		}
	})
	c := s.container(t, func(cfg *Config) { cfg.Credential.SAS = "sig=x" })
	w, err := c.Copy(t.Context(), "dst", "a b", blob.CopyOptions{})
	if err != nil || w.ETag != `"final"` || s.requests() != 4 {
		t.Errorf("got %+v, %v after %d requests", w, err, s.requests())
	}
	final = "failed"
	if _, err := c.Copy(t.Context(), "dst", "a b", blob.CopyOptions{}); err == nil {
		t.Error("a failed copy is reported as success")
	}
}
