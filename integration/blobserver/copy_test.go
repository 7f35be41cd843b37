package blobserver

import (
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

const sourceToken = "x-ms-copy-source-authorization: Bearer anything"

// The source of a block is read by the service like by any client: the signature on the request does not cover it.
func TestBlockSourceAuthorization(t *testing.T) {
	clock := newFakeClock()
	c := start(t, Options{Clock: clock})
	for _, name := range []string{"dir/x y", "other"} {
		if _, err := c.s.Store("con1").Put(name, []byte("x"), blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const stage = "/con1/b?comp=block&blockid=MQ%3D%3D"
	src := "x-ms-copy-source: " + c.s.URL() + "/con1/"
	c.do(401, "CannotVerifyCopySource", "PUT", stage, "", src+"other")
	c.do(201, "", "PUT", stage, "", src+"other", sourceToken)
	c.do(400, "InvalidHeaderValue", "PUT", stage, "", src+"other", "x-ms-copy-source-authorization: Basic eDp5")
	c.do(201, "", "PUT", stage, "", src+"dir/x%20y?"+blobSAS)
	c.do(403, "CannotVerifyCopySource", "PUT", stage, "", src+"other?"+blobSAS)
	c.do(201, "", "PUT", stage, "", src+"other?"+containerSAS)
	clock.now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	c.do(403, "CannotVerifyCopySource", "PUT", stage, "", src+"other?"+containerSAS)

	c = start(t, Options{Anonymous: true})
	c.put("/con1/a", "x")
	c.do(201, "", "PUT", stage, "", "x-ms-copy-source: "+c.s.URL()+"/con1/a")
}

func TestCopy(t *testing.T) {
	c := start(t, Options{Containers: []string{"con2"}})
	c.put("/con1/dir/s%20%25?x=y", "source", "x-ms-meta-a: 1")
	src := "x-ms-copy-source: " + c.s.URL() + "/con1/dir/s%20%25"
	a := c.do(202, "", "PUT", "/con2/d", "", src)
	if a.header.Get("x-ms-copy-status") != "success" || a.header.Get("x-ms-copy-id") == "" {
		t.Errorf("%v", a.header)
	}
	if a = c.do(200, "", "GET", "/con2/d", ""); a.body != "source" || a.header.Get("x-ms-meta-a") != "1" {
		t.Errorf("%q %v", a.body, a.header)
	}
	c.do(202, "", "PUT", "/con2/d", "", src, "x-ms-requires-sync: true", "x-ms-meta-b: 2")
	if a = c.do(200, "", "HEAD", "/con2/d", ""); a.header.Get("x-ms-meta-a") != "" || a.header.Get("x-ms-meta-b") != "2" {
		t.Errorf("%v", a.header)
	}
	c.do(409, "BlobAlreadyExists", "PUT", "/con2/d", "", src, "If-None-Match: *")
	c.do(404, "BlobNotFound", "PUT", "/con2/d", "", src+"x")
	c.do(404, "CannotVerifyCopySource", "PUT", "/con2/d", "", "x-ms-copy-source: http://127.0.0.2:1/"+DefaultAccount+"/con1/a")
}
