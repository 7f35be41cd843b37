package blobserver

import (
	"errors"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// Signatures that azblob v1.8.3 made with the emulators' key for port 10000, at newFakeClock's time. They do not
// depend on the host. The metadata names show the order of signed headers: a_b before a1, though bytes say otherwise.
const (
	version  = "x-ms-version: 2026-12-06"
	date     = "X-Ms-Date: Sat, 21 Nov 2026 20:50:52 GMT"
	blobPath = "/con1/dir%2Fa%20b%25%3F%23%C3%BC"
	listPath = "/con1?comp=list&delimiter=%2F&include=metadata&prefix=dir%2F&restype=container"

	signedPut  = "Authorization: SharedKey devstoreaccount1:pq97rSa0Ax4XizpCIr0vgpVmM+NPdf64IQ2PFa7VKm0="
	signedGet  = "Authorization: SharedKey devstoreaccount1:qKsYijZhiKrUsom3n3GozPV8o6qgtKTPmSdg7Jf/ADo="
	signedList = "Authorization: SharedKey devstoreaccount1:9tI0RA2W3bcc/37Oe8wMOOdZbVxTggxe9Sl78qpWDHg="

	accountSAS   = "se=2030-01-01T00%3A00%3A00Z&sig=eWEE5oBw1TlZOO%2B8GQLu1J9q1TN2GITHnQVsoDPc%2FPU%3D&sp=rl&spr=https%2Chttp&srt=co&ss=b&sv=2026-12-06"
	containerSAS = "se=2030-01-01T00%3A00%3A00Z&sig=2bf6i3WsBg%2FYL1Idu05EgwvQlI84eSIHauhygdolEYg%3D&sp=rwl&sr=c&st=2025-01-01T00%3A00%3A00Z&sv=2026-12-06"
	blobSAS      = "se=2030-01-01T00%3A00%3A00Z&sig=IfnrLJ1mYm1y2OKds02OLl912PKa7jpz1CxDdpQP0ig%3D&sp=r&sr=b&sv=2026-12-06"

	noAuthorization = "Authorization: "

	// crcOfDigits is azblob's CRC-64 of 123456789.
	crcOfDigits = "iJh5CoYUi64="
)

func signedPutHeaders() []string {
	return []string{signedPut, date, version, "Content-Type: application/octet-stream", "If-None-Match: *", blockBlob,
		"x-ms-meta-a_b: 1", "x-ms-meta-a1: 2", "x-ms-meta-aB: 3"}
}

func TestSharedKey(t *testing.T) {
	c := start(t, Options{Clock: newFakeClock()})
	c.do(201, "", "PUT", blobPath, "hello", signedPutHeaders()...)
	if a := c.do(206, "", "GET", blobPath, "", signedGet, date, version, "x-ms-range: bytes=1-3"); a.body != "ell" {
		t.Errorf("%q", a.body)
	}
	c.do(200, "", "GET", listPath, "", signedList, date, version)

	const no = "AuthenticationFailed"
	c.do(403, no, "GET", blobPath, "", signedGet, date, version, "x-ms-range: bytes=1-4")
	c.do(403, no, "GET", blobPath+"x", "", signedGet, date, version, "x-ms-range: bytes=1-3")
	c.do(403, no, "GET", listPath+"&maxresults=1", "", signedList, date, version)
	c.do(403, no, "PUT", blobPath, "hello!", signedPutHeaders()...)
	c.do(403, no, "GET", listPath, "", signedList, version)
	c.do(403, no, "GET", listPath, "", "Authorization: SharedKey other:9tI0RA2W3bcc/37Oe8wMOOdZbVxTggxe9Sl78qpWDHg=", date, version)
	c.do(403, no, "GET", listPath, "", "Authorization: Basic x", date, version)

	key := "b3RoZXI="
	rotated := start(t, Options{Clock: newFakeClock()})
	for _, test := range []struct {
		keys   []string
		status int
		code   string
	}{{[]string{key, DefaultKey}, 200, ""}, {[]string{key}, 403, no}, {[]string{DefaultKey}, 200, ""}, {nil, 403, no}} {
		if err := rotated.s.SetKeys(test.keys...); err != nil {
			t.Fatal(err)
		}
		rotated.do(test.status, test.code, "GET", listPath, "", signedList, date, version)
	}
	if rotated.s.SetKeys("no key") == nil {
		t.Error("a key that is not base64 was taken")
	}
	c = start(t, Options{Clock: newFakeClock(), Account: DefaultAccount, Key: key})
	c.do(403, no, "GET", listPath, "", signedList, date, version)
}

func TestSharedKeyExpires(t *testing.T) {
	clock := newFakeClock()
	c := start(t, Options{Clock: clock})
	clock.now = clock.now.Add(maxClockSkew)
	c.do(200, "", "GET", listPath, "", signedList, date, version)
	clock.now = clock.now.Add(time.Second)
	c.do(403, "AuthenticationFailed", "GET", listPath, "", signedList, date, version)
}

func TestSAS(t *testing.T) {
	clock := newFakeClock()
	c := start(t, Options{Clock: clock, Containers: []string{"con2"}})
	for _, name := range []string{"dir/x y", "other"} {
		if _, err := c.s.Store("con1").Put(name, []byte("x"), blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const list = "restype=container&comp=list&"
	const no, may = "AuthenticationFailed", "AuthorizationPermissionMismatch"
	c.do(200, "", "GET", "/con1/dir/x%20y?"+accountSAS, "", noAuthorization)
	c.do(200, "", "GET", "/con1?"+list+accountSAS, "", noAuthorization)
	c.do(403, may, "PUT", "/con1/a?"+accountSAS, "x", noAuthorization, blockBlob)

	c.do(200, "", "GET", "/con1/other?"+containerSAS, "", noAuthorization)
	c.do(201, "", "PUT", "/con1/a?"+containerSAS, "x", noAuthorization, blockBlob)
	c.do(403, may, "DELETE", "/con1/a?"+containerSAS, "", noAuthorization)
	c.do(403, no, "GET", "/con2?"+list+containerSAS, "", noAuthorization)

	c.do(200, "", "GET", "/con1/dir/x%20y?"+blobSAS, "", noAuthorization)
	c.do(403, no, "GET", "/con1/other?"+blobSAS, "", noAuthorization)
	c.do(403, no, "GET", "/con1/other?"+containerSAS+"x", "", noAuthorization)

	clock.now = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	c.do(403, no, "GET", "/con1/other?"+containerSAS, "", noAuthorization)
	clock.now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	c.do(403, no, "GET", "/con1/other?"+containerSAS, "", noAuthorization)
	c.do(403, no, "GET", "/con1/other?"+accountSAS, "", noAuthorization)
}

func TestAnonymousAndBearer(t *testing.T) {
	c := start(t, Options{})
	c.put("/con1/a", "x")
	c.do(401, "NoAuthenticationInformation", "GET", "/con1/a", "", noAuthorization)
	c.do(403, "AuthenticationFailed", "GET", "/con1/a", "", "Authorization: Bearer ")

	c = start(t, Options{Anonymous: true})
	c.put("/con1/a", "x")
	c.do(200, "", "GET", "/con1/a", "", noAuthorization)
	c.do(200, "", "GET", "/con1?restype=container&comp=list", "", noAuthorization)
	c.do(401, "NoAuthenticationInformation", "PUT", "/con1/a", "y", noAuthorization, blockBlob)

	s, err := Start(Options{Containers: []string{"con1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c = &client{t, s, c.h}
	c.do(403, "AuthenticationFailed", "GET", "/con1/a", "")
}

// What is wrong with a token is said as the service says it, with where to get another one; what an identity may not do
// has no challenge.
func TestBearer(t *testing.T) {
	const authority = "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47"
	c := start(t, Options{Authority: authority, Bearer: func(token string) error {
		switch token {
		case "good":
			return nil
		case "no role":
			return blobtest.Err("AuthorizationPermissionMismatch")
		}
		return errors.New("Lifetime validation failed. The token is <expired>.")
	}})
	const challenge = "Bearer authorization_uri=" + authority + "/oauth2/authorize resource_id=https://storage.azure.com"
	c.do(201, "", "PUT", "/con1/a", "x", "Authorization: Bearer good", blockBlob)
	a := c.do(401, "InvalidAuthenticationInfo", "GET", "/con1/a", "", "Authorization: Bearer old")
	if got := a.header.Get("WWW-Authenticate"); got != challenge {
		t.Errorf("challenge %q, want %q", got, challenge)
	}
	if !strings.Contains(a.body, "<AuthenticationErrorDetail>Lifetime validation failed. The token is &lt;expired&gt;.</AuthenticationErrorDetail>") {
		t.Errorf("%s", a.body)
	}
	a = c.do(401, "NoAuthenticationInformation", "GET", "/con1/a", "", noAuthorization)
	if got := a.header.Get("WWW-Authenticate"); got != challenge {
		t.Errorf("challenge %q, want %q", got, challenge)
	}
	a = c.do(403, "AuthorizationPermissionMismatch", "GET", "/con1/a", "", "Authorization: Bearer no role")
	if got := a.header.Get("WWW-Authenticate"); got != "" {
		t.Errorf("challenge %q of a request that no other token of the same identity would help", got)
	}
	// The token for the source of a block is checked too.
	const stage = "/con1/b?comp=block&blockid=MQ%3D%3D"
	src := "x-ms-copy-source: " + c.s.URL() + "/con1/a"
	c.do(201, "", "PUT", stage, "", "Authorization: Bearer good", src, "x-ms-copy-source-authorization: Bearer good")
	a = c.do(401, "CannotVerifyCopySource", "PUT", stage, "", "Authorization: Bearer good", src, "x-ms-copy-source-authorization: Bearer old")
	if got := a.header.Get("WWW-Authenticate"); got != "" {
		t.Errorf("challenge %q of a request whose own token is good", got)
	}
}
