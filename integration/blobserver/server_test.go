package blobserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// fakeClock goes on by sleeping only. It counts what was slept.
type fakeClock struct {
	mu    sync.Mutex // guards both
	now   time.Time
	slept time.Duration
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 11, 21, 20, 50, 52, 0, time.UTC)} // when the signatures of auth_test.go were made
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.slept += d
	return ctx.Err()
}

func (c *fakeClock) total() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slept
}

// client speaks plain HTTP to a server with one container, con1.
type client struct {
	t testing.TB
	s *Server
	h *http.Client
}

func start(t testing.TB, o Options) *client {
	t.Helper()
	o.Containers = append(o.Containers, "con1")
	if o.Bearer == nil {
		o.Bearer = func(string) error { return nil }
	}
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8}}
	t.Cleanup(func() {
		h.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &client{t, s, h}
}

// answer is a whole response.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) code() string { return a.header.Get("x-ms-error-code") }

// try sends a request; headers are "Name: value" lines.
func (c *client) try(method, path, body string, headers ...string) (answer, error) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.s.URL()+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer anything")
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		if value == "" {
			r.Header.Del(name)
		} else {
			r.Header.Set(name, value)
		}
	}
	res, err := c.h.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(got)}, err
}

// do sends a request that must get an answer of the status, and the code if it is an error.
func (c *client) do(status int, code, method, path, body string, headers ...string) answer {
	c.t.Helper()
	a, err := c.try(method, path, body, headers...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	if a.status != status || a.code() != code {
		c.t.Fatalf("%s %s: got %d %q, want %d %q\n%s", method, path, a.status, a.code(), status, code, a.body)
	}
	return a
}

const blockBlob = "x-ms-blob-type: BlockBlob"

func (c *client) put(path, body string, headers ...string) string {
	c.t.Helper()
	return c.do(201, "", "PUT", path, body, append(headers, blockBlob)...).header.Get("ETag")
}

func TestRanges(t *testing.T) {
	c := start(t, Options{})
	etag := c.put("/con1/dir/a", "0123456789", "x-ms-blob-content-md5: eB5eJF1pBFnVkGDg/sBlyA==")
	for _, r := range []struct {
		header, body, content string
		status                int
	}{
		{"", "0123456789", "", 200},
		{"x-ms-range: bytes=0-0", "0", "bytes 0-0/10", 206},
		{"Range: bytes=9-9", "9", "bytes 9-9/10", 206},
		{"Range: bytes=8-100", "89", "bytes 8-9/10", 206},
		{"x-ms-range: bytes=3-", "3456789", "bytes 3-9/10", 206},
		{"Range: bytes=-3", "0123456789", "", 200},
		{"Range: bytes=5-4", "0123456789", "", 200},
		{"Range: lines=1-2", "0123456789", "", 200},
	} {
		a := c.do(r.status, "", "GET", "/con1/dir/a", "", "X-Ignore: 1", r.header)
		if a.body != r.body || a.header.Get("Content-Range") != r.content || a.header.Get("ETag") != etag {
			t.Errorf("%s: %q, %v", r.header, a.body, a.header)
		}
		md5 := "Content-MD5"
		if r.status == 206 {
			md5 = "x-ms-blob-content-md5"
		}
		if a.header.Get(md5) != "eB5eJF1pBFnVkGDg/sBlyA==" {
			t.Errorf("%s: no %s in %v", r.header, md5, a.header)
		}
	}
	a := c.do(416, "InvalidRange", "GET", "/con1/dir/a", "", "x-ms-range: bytes=10-11")
	if a.header.Get("Content-Range") != "bytes */10" || !strings.Contains(a.body, "<Code>InvalidRange</Code>") {
		t.Errorf("416: %v %s", a.header, a.body)
	}
	a = c.do(206, "", "GET", "/con1/dir/a", "", "x-ms-range: bytes=0-0", "x-ms-range-get-content-md5: true", "x-ms-range-get-content-crc64: true")
	if a.header.Get("Content-MD5") != "z80ghJXVZe9m59/5+Ydk2g==" || a.header.Get("x-ms-content-crc64") == "" {
		t.Errorf("checksums of a range: %v", a.header)
	}
	a = c.do(200, "", "HEAD", "/con1/dir/a", "")
	if a.header.Get("Content-Length") != "10" || a.header.Get("x-ms-blob-type") != "BlockBlob" {
		t.Errorf("HEAD: %v", a.header)
	}
}

func TestErrors(t *testing.T) {
	c := start(t, Options{})
	etag := c.put("/con1/a", "x")
	other := `"0x1"`
	c.do(404, "BlobNotFound", "GET", "/con1/missing", "")
	if a := c.do(404, "BlobNotFound", "HEAD", "/con1/missing", ""); a.body != "" {
		t.Errorf("HEAD has a body: %q", a.body)
	}
	c.do(404, "ContainerNotFound", "GET", "/none/a", "")
	c.do(404, "ContainerNotFound", "GET", "/none?restype=container&comp=list", "")
	c.do(404, "BlobNotFound", "DELETE", "/con1/missing", "")
	c.do(304, "ConditionNotMet", "GET", "/con1/a", "", "If-None-Match: "+etag)
	c.do(412, "ConditionNotMet", "GET", "/con1/a", "", "If-Match: "+other)
	c.do(412, "ConditionNotMet", "PUT", "/con1/a", "y", blockBlob, "If-Match: "+other)
	c.do(409, "BlobAlreadyExists", "PUT", "/con1/a", "y", blockBlob, "If-None-Match: *")
	c.do(409, "BlobAlreadyExists", "PUT", "/con1/a?comp=blocklist", "<BlockList/>", "If-None-Match: *")
	c.do(400, "InvalidBlockList", "PUT", "/con1/a?comp=blocklist", "<BlockList><Latest>AAAA</Latest></BlockList>")
	c.do(400, "InvalidXmlDocument", "PUT", "/con1/a?comp=blocklist", "<BlockList><Latest>AAAA</Lat")
	c.do(400, "InvalidXmlDocument", "PUT", "/con1/a?comp=blocklist", "<BlockList><Last>AAAA</Last></BlockList>")
	c.do(400, "InvalidXmlDocument", "PUT", "/con1/a?comp=blocklist", "")
	c.do(400, "InvalidQueryParameterValue", "PUT", "/con1/a?comp=block&blockid=!", "x")
	c.do(400, "InvalidMetadata", "PUT", "/con1/a?comp=metadata", "", "x-ms-meta-a-b: v")
	c.do(400, "MissingRequiredHeader", "PUT", "/con1/b", "x")
	c.do(400, "InvalidHeaderValue", "PUT", "/con1/b", "x", "x-ms-blob-type: Other")
	c.do(400, "Md5Mismatch", "PUT", "/con1/b", "x", blockBlob, "Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==")
	c.do(400, "Crc64Mismatch", "PUT", "/con1/b?comp=block&blockid=AAAA", "x", "x-ms-content-crc64: AAAAAAAAAAA=")
	c.do(400, "InvalidMd5", "PUT", "/con1/b", "x", blockBlob, "Content-MD5: AAAA")
	c.do(404, "BlobNotFound", "HEAD", "/con1/b", "")
	c.do(400, "InvalidResourceName", "PUT", "/Bad_Name?restype=container", "")
	c.do(400, "InvalidResourceName", "PUT", "/a--b?restype=container", "")
	c.do(409, "ContainerAlreadyExists", "PUT", "/con1?restype=container", "")
	c.do(400, "UnsupportedHeader", "GET", "/con1/a", "", "x-ms-lease-id: 1")
	c.do(400, "UnsupportedHeader", "GET", "/con1/a", "", "If-Modified-Since: Sat, 21 Nov 2026 20:46:58 GMT")
	c.do(400, "UnsupportedHeader", "PUT", "/con1/a", "x", blockBlob, "x-ms-structured-body: XSM/1.0; properties=crc64")
	c.do(400, "UnsupportedQueryParameter", "GET", "/con1/a?snapshot=1", "")
	c.do(501, "NotImplemented", "PUT", "/con1/a?comp=lease", "", "x-ms-lease-action: change")
	c.do(400, "UnsupportedHeader", "PUT", "/con1/a?comp=lease", "", "x-ms-lease-action: acquire", "x-ms-lease-duration: -1")
	c.do(501, "NotImplemented", "GET", "/?comp=list", "")
	c.put("/con1/cold", "x", "x-ms-access-tier: Archive")
	c.do(409, "BlobArchived", "GET", "/con1/cold", "")
	c.do(200, "", "PUT", "/con1/cold?comp=tier", "", "x-ms-access-tier: Hot")
	c.do(200, "", "GET", "/con1/cold", "")
	if got := c.do(200, "", "GET", "/con1/a", "").body; got != "x" {
		t.Errorf("after refused writes the blob holds %q", got)
	}
}

// The CRC-64 of Azure is not that of any standard: the check value is azblob's for the nine digits.
func TestChecksums(t *testing.T) {
	c := start(t, Options{})
	const md5 = "JfnnlDI7RTiF9RgfG2JNCw=="
	for _, path := range []string{"/con1/a", "/con1/a?comp=block&blockid=AAAA"} {
		a := c.do(201, "", "PUT", path, "123456789", blockBlobFor(path), "Content-MD5: "+md5, "x-ms-content-crc64: "+crcOfDigits)
		if a.header.Get("Content-MD5") != md5 || a.header.Get("x-ms-content-crc64") != crcOfDigits {
			t.Errorf("PUT %s does not say what it verified: %v", path, a.header)
		}
	}
}

// blockBlobFor returns the header that Put Blob needs and Put Block refuses.
func blockBlobFor(path string) string {
	if strings.Contains(path, "comp=block") {
		return "X-Ignore: 1"
	}
	return blockBlob
}

func TestBlocks(t *testing.T) {
	c := start(t, Options{})
	id := func(s string) string { return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))) }
	c.do(201, "", "PUT", "/con1/a?comp=block&blockid="+id("1"), "one")
	c.do(201, "", "PUT", "/con1/a?comp=block&blockid="+id("2"), "two")
	a := c.do(200, "", "GET", "/con1/a?comp=blocklist&blocklisttype=all", "")
	if want := xmlHead + "<BlockList><CommittedBlocks></CommittedBlocks><UncommittedBlocks>" +
		"<Block><Name>MQ==</Name><Size>3</Size></Block><Block><Name>Mg==</Name><Size>3</Size></Block></UncommittedBlocks></BlockList>"; a.body != want {
		t.Errorf("block list %s", a.body)
	}
	if a.header.Get("ETag") != "" {
		t.Errorf("a blob that is not there has the ETag %s", a.header.Get("ETag"))
	}
	c.do(201, "", "PUT", "/con1/a?comp=blocklist", `<?xml version="1.0" encoding="utf-8"?><BlockList><Latest>Mg==</Latest><Latest>MQ==</Latest></BlockList>`)
	c.do(201, "", "PUT", "/con1/a?comp=block&blockid="+id("1"), "ONE")
	c.do(201, "", "PUT", "/con1/a?comp=blocklist",
		"<BlockList>\n <Committed>MQ==</Committed><Uncommitted>MQ==</Uncommitted><Latest>Mg==</Latest>\n</BlockList>", "x-ms-meta-K: v")
	if a = c.do(200, "", "GET", "/con1/a", ""); a.body != "oneONEtwo" || a.header.Get("x-ms-meta-k") != "v" {
		t.Errorf("%q %v", a.body, a.header)
	}
	// A block out of a range of another blob, and of a source that is not the version that was named.
	src := "x-ms-copy-source: " + c.s.URL() + "/con1/a"
	c.do(201, "", "PUT", "/con1/b?comp=block&blockid="+id("x"), "", src, "x-ms-source-range: bytes=1-4", sourceToken)
	c.do(412, "SourceConditionNotMet", "PUT", "/con1/b?comp=block&blockid="+id("y"), "", src, `x-ms-source-if-match: "0x1"`, sourceToken)
	c.do(416, "InvalidRange", "PUT", "/con1/b?comp=block&blockid="+id("y"), "", src, "x-ms-source-range: bytes=9-9", sourceToken)
	c.do(400, "InvalidBlobOrBlock", "PUT", "/con1/b?comp=block&blockid="+id("long"), "", src, sourceToken)
	c.do(201, "", "PUT", "/con1/b?comp=blocklist", "<BlockList><Uncommitted>"+base64.StdEncoding.EncodeToString([]byte("x"))+"</Uncommitted></BlockList>")
	if a = c.do(200, "", "GET", "/con1/b", ""); a.body != "neON" {
		t.Errorf("block from URL holds %q", a.body)
	}
}

func TestKinds(t *testing.T) {
	c := start(t, Options{})
	c.do(201, "", "PUT", "/con1/log", "", "x-ms-blob-type: AppendBlob")
	c.do(201, "", "PUT", "/con1/log?comp=appendblock", "one,")
	a := c.do(201, "", "PUT", "/con1/log?comp=appendblock", "two", "x-ms-blob-condition-appendpos: 4")
	if a.header.Get("x-ms-blob-append-offset") != "4" {
		t.Errorf("%v", a.header)
	}
	c.do(412, "AppendPositionConditionNotMet", "PUT", "/con1/log?comp=appendblock", "x", "x-ms-blob-condition-appendpos: 4")
	c.do(412, "MaxBlobSizeConditionNotMet", "PUT", "/con1/log?comp=appendblock", "xy", "x-ms-blob-condition-maxsize: 8")
	c.do(400, "InvalidHeaderValue", "PUT", "/con1/log?comp=appendblock", "x", "x-ms-blob-condition-maxsize: -1")
	c.do(400, "InvalidHeaderValue", "PUT", "/con1/log?comp=appendblock", "")
	c.do(413, "RequestBodyTooLarge", "PUT", "/con1/log", "x", "x-ms-blob-type: AppendBlob")
	if a = c.do(200, "", "GET", "/con1/log", ""); a.body != "one,two" || a.header.Get("x-ms-blob-type") != "AppendBlob" {
		t.Errorf("%q %v", a.body, a.header)
	}
	c.do(409, "InvalidBlobType", "PUT", "/con1/log?comp=block&blockid=AAAA", "x")
	c.do(201, "", "PUT", "/con1/disk", "", "x-ms-blob-type: PageBlob", "x-ms-blob-content-length: 1024")
	if a = c.do(200, "", "GET", "/con1/disk", ""); a.body != strings.Repeat("\x00", 1024) {
		t.Errorf("a page blob of %d bytes", len(a.body))
	}
}

func TestProperties(t *testing.T) {
	c := start(t, Options{})
	first := c.put("/con1/a", "x", "x-ms-blob-content-type: text/plain", "x-ms-blob-cache-control: no-cache", "x-ms-meta-a: 1")
	second := c.do(200, "", "PUT", "/con1/a?comp=properties", "", "x-ms-blob-content-type: text/csv", "If-Match: "+first).header.Get("ETag")
	a := c.do(200, "", "HEAD", "/con1/a", "")
	if a.header.Get("Content-Type") != "text/csv" || a.header.Get("Cache-Control") != "" || a.header.Get("x-ms-meta-a") != "1" ||
		first == second || a.header.Get("ETag") != second {
		t.Errorf("%v", a.header)
	}
	c.do(412, "ConditionNotMet", "PUT", "/con1/a?comp=metadata", "", "If-Match: "+first)
	c.do(200, "", "PUT", "/con1/a?comp=metadata", "", "x-ms-meta-b: 2")
	if a = c.do(200, "", "HEAD", "/con1/a", ""); a.header.Get("x-ms-meta-a") != "" || a.header.Get("x-ms-meta-b") != "2" {
		t.Errorf("%v", a.header)
	}
	c.do(202, "", "DELETE", "/con1/a", "", "x-ms-delete-snapshots: only")
	c.do(202, "", "DELETE", "/con1/a", "", "x-ms-delete-snapshots: include")
	c.do(404, "BlobNotFound", "HEAD", "/con1/a", "")
}

func TestContainers(t *testing.T) {
	c := start(t, Options{})
	c.do(201, "", "PUT", "/con2?restype=container", "")
	c.put("/con2/a", "x")
	c.do(200, "", "GET", "/con2?restype=container", "")
	c.do(202, "", "DELETE", "/con2?restype=container", "")
	c.do(404, "ContainerNotFound", "GET", "/con2?restype=container", "")
	c.do(404, "ContainerNotFound", "GET", "/con2/a", "")
	if a := c.do(200, "", "GET", "/?restype=account&comp=properties", ""); a.header.Get("x-ms-account-kind") != "StorageV2" {
		t.Errorf("%v", a.header)
	}
	if c.s.Store("con2") != nil || c.s.Store("con1") == nil {
		t.Error("Store does not follow the containers")
	}
}

// results is what a client reads out of a listing.
type results struct {
	Blobs []struct {
		Name struct {
			Encoded bool   `xml:"Encoded,attr"`
			Text    string `xml:",chardata"`
		}
		Properties struct {
			Length int64  `xml:"Content-Length"`
			ETag   string `xml:"Etag"`
		}
		Metadata struct {
			K string `xml:"k"`
		}
	} `xml:"Blobs>Blob"`
	Prefixes []string `xml:"Blobs>BlobPrefix>Name"`
	Next     string   `xml:"NextMarker"`
}

func (c *client) list(query string) results {
	c.t.Helper()
	a := c.do(200, "", "GET", "/con1?restype=container&comp=list&include=metadata&"+query, "")
	var r results
	if err := xml.Unmarshal([]byte(a.body), &r); err != nil {
		c.t.Fatalf("%v in %s", err, a.body)
	}
	return r
}

func TestListPages(t *testing.T) {
	c := start(t, Options{})
	for i := range 10 {
		c.put(fmt.Sprintf("/con1/dir%d/%d", i%2, i), "x", "x-ms-meta-k: <v&>")
	}
	c.put("/con1/top", "xyz")
	var got []string
	pages := 0
	for marker := ""; pages == 0 || marker != ""; pages++ {
		r := c.list("maxresults=3&marker=" + url.QueryEscape(marker))
		for _, b := range r.Blobs {
			got = append(got, b.Name.Text)
			if want := map[bool]string{true: "<v&>"}[b.Name.Text != "top"]; b.Metadata.K != want {
				t.Errorf("metadata of %s: %q", b.Name.Text, b.Metadata.K)
			}
		}
		marker = r.Next
	}
	want := []string{"dir0/0", "dir0/2", "dir0/4", "dir0/6", "dir0/8", "dir1/1", "dir1/3", "dir1/5", "dir1/7", "dir1/9", "top"}
	if !slices.Equal(got, want) || pages != 4 {
		t.Errorf("%d pages: %q", pages, got)
	}
	r := c.list("delimiter=%2F")
	if len(r.Blobs) != 1 || r.Blobs[0].Properties.Length != 3 || !slices.Equal(r.Prefixes, []string{"dir0/", "dir1/"}) {
		t.Errorf("%+v", r)
	}
	if etag := r.Blobs[0].Properties.ETag; !strings.HasPrefix(etag, "0x") {
		t.Errorf("listed ETag %s: the service has no quotes here", etag)
	}
	c.do(400, "OutOfRangeQueryParameterValue", "GET", "/con1?restype=container&comp=list&maxresults=0", "")
	c.do(400, "InvalidQueryParameterValue", "GET", "/con1?restype=container&comp=list&marker=x", "")
	c.do(400, "UnsupportedQueryParameter", "GET", "/con1?restype=container&comp=list&include=tags", "")
}

// Names that XML cannot carry travel percent-encoded and marked as such; all others as they are.
func TestListEncodesNames(t *testing.T) {
	c := start(t, Options{})
	for name, encoded := range map[string]bool{
		"a\uffffb+c d": true, "bell\x07": true, "line\r": true, "tab\t+ %20": false, "<&>\"'": false, "\U0001F600": false,
	} {
		if _, err := c.s.Store("con1").Put(name, nil, blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		r := c.list("")
		if len(r.Blobs) != 1 || r.Blobs[0].Name.Encoded != encoded {
			t.Fatalf("%q: %+v", name, r)
		}
		got := r.Blobs[0].Name.Text
		if encoded {
			for _, decode := range []func(string) (string, error){url.QueryUnescape, url.PathUnescape} {
				if text, err := decode(got); err != nil || text != name {
					t.Errorf("%q was sent as %q", name, got)
				}
			}
		} else if got != name {
			t.Errorf("%q arrives as %q", name, got)
		}
		if err := c.s.Store("con1").Delete(name, blob.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStats(t *testing.T) {
	c := start(t, Options{})
	c.put("/con1/a", "0123456789")
	c.do(206, "", "GET", "/con1/a", "", "x-ms-range: bytes=2-4")
	c.do(404, "BlobNotFound", "GET", "/con1/b", "")
	got := c.s.Stats()
	if got.Requests["PutBlob"] != 1 || got.Requests["GetBlob"] != 2 || got.Total() != 3 || got.BytesIn != 10 ||
		got.BytesOut != 3 || got.Codes["BlobNotFound"] != 1 {
		t.Errorf("%+v", got)
	}
	c.s.ResetStats()
	if got := c.s.Stats(); got.Total() != 0 || got.BytesIn != 0 || len(got.Codes) != 0 {
		t.Errorf("after ResetStats: %+v", got)
	}
}

func TestRefusesOtherAddresses(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "example.com:0", "[::]:0", "127.0.0.1"} {
		if s, err := Start(Options{Listen: listen}); err == nil {
			t.Errorf("listens on %s", listen)
			_ = s.Close()
		}
	}
}

// Content must be the same for synthetic blobs larger than any buffer, and through many chunks.
func TestSyntheticRange(t *testing.T) {
	c := start(t, Options{})
	const size, offset, count = 10 << 30, 5<<30 + 3, 3<<20 + 1
	if _, err := c.s.Store("con1").PutSynthetic("big", size, blobtest.Random(9), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, count)
	blobtest.Random(9)(want, offset)
	a := c.do(206, "", "GET", "/con1/big", "", fmt.Sprintf("x-ms-range: bytes=%d-%d", int64(offset), int64(offset+count-1)))
	if !bytes.Equal([]byte(a.body), want) {
		t.Error("wrong bytes")
	}
}
