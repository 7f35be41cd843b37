package blobserver

import (
	"testing"
	"time"
)

const (
	leaseA = "x-ms-lease-id: 00000000-0000-0000-0000-00000000000a"
	leaseB = "x-ms-lease-id: 00000000-0000-0000-0000-00000000000b"
)

func acquire(id string) []string {
	return []string{"x-ms-lease-action: acquire", "x-ms-lease-duration: 15", "x-ms-proposed-" + id[len("x-ms-"):]}
}

// "Lease Blob", outcomes of lease operations, and of use attempts, by lease state.
func TestLease(t *testing.T) {
	clock := newFakeClock()
	c := start(t, Options{Clock: clock})
	const lease = "/con1/a?comp=lease"
	c.do(404, "BlobNotFound", "PUT", lease, "", acquire(leaseA)...)
	etag := c.put("/con1/a", "x")
	state := func(want, status string) {
		t.Helper()
		a := c.do(200, "", "HEAD", "/con1/a", "")
		if a.header.Get("x-ms-lease-state") != want || a.header.Get("x-ms-lease-status") != status || a.header.Get("ETag") != etag {
			t.Fatalf("want %s and %s: %v", want, status, a.header)
		}
	}
	state("available", "unlocked")
	c.do(412, "LeaseNotPresentWithBlobOperation", "PUT", "/con1/a?comp=metadata", "", leaseA)
	if a := c.do(201, "", "PUT", lease, "", acquire(leaseA)...); "x-ms-lease-id: "+a.header.Get("x-ms-lease-id") != leaseA {
		t.Errorf("%v", a.header)
	}
	state("leased", "locked")
	c.do(201, "", "PUT", lease, "", acquire(leaseA)...)
	c.do(409, "LeaseAlreadyPresent", "PUT", lease, "", acquire(leaseB)...)
	c.do(409, "LeaseIdMismatchWithLeaseOperation", "PUT", lease, "", "x-ms-lease-action: renew", leaseB)
	c.do(412, "LeaseIdMissing", "PUT", "/con1/a?comp=metadata", "")
	c.do(412, "LeaseIdMismatchWithBlobOperation", "PUT", "/con1/a?comp=metadata", "", leaseB)
	c.do(200, "", "GET", "/con1/a", "")

	// Expired: renewed as long as nobody changed the blob.
	clock.now = clock.now.Add(15 * time.Second)
	state("expired", "unlocked")
	c.do(412, "LeaseLost", "PUT", "/con1/a?comp=metadata", "", leaseA)
	c.do(200, "", "PUT", lease, "", "x-ms-lease-action: renew", leaseA)
	state("leased", "locked")
	clock.now = clock.now.Add(15 * time.Second)
	etag = c.do(200, "", "PUT", "/con1/a?comp=metadata", "").header.Get("ETag")
	c.do(409, "LeaseIdMismatchWithLeaseOperation", "PUT", lease, "", "x-ms-lease-action: renew", leaseA)

	// Broken: at once, or after a while in which it still protects.
	c.do(201, "", "PUT", lease, "", acquire(leaseB)...)
	if a := c.do(202, "", "PUT", lease, "", "x-ms-lease-action: break", "x-ms-lease-break-period: 5"); a.header.Get("x-ms-lease-time") != "5" {
		t.Errorf("%v", a.header)
	}
	state("breaking", "locked")
	c.do(409, "LeaseIsBreakingAndCannotBeAcquired", "PUT", lease, "", acquire(leaseB)...)
	c.do(409, "LeaseIsBrokenAndCannotBeRenewed", "PUT", lease, "", "x-ms-lease-action: renew", leaseB)
	c.do(412, "LeaseIdMissing", "DELETE", "/con1/a", "")
	clock.now = clock.now.Add(5 * time.Second)
	state("broken", "unlocked")
	c.do(201, "", "PUT", lease, "", acquire(leaseA)...)
	c.do(409, "LeaseIdMismatchWithLeaseOperation", "PUT", lease, "", "x-ms-lease-action: release", leaseB)
	c.do(200, "", "PUT", lease, "", "x-ms-lease-action: release", leaseA)
	state("available", "unlocked")
	c.do(409, "LeaseNotPresentWithLeaseOperation", "PUT", lease, "", "x-ms-lease-action: break")

	c.do(201, "", "PUT", lease, "", acquire(leaseA)...)
	c.do(202, "", "DELETE", "/con1/a", "", leaseA)
	etag = c.put("/con1/a", "new")
	state("available", "unlocked")
}

func TestTags(t *testing.T) {
	c := start(t, Options{})
	etag := c.put("/con1/a", "x", "x-ms-tags: project=blob%20mount&a=%2B")
	a := c.do(200, "", "HEAD", "/con1/a", "")
	if a.header.Get("x-ms-tag-count") != "2" || a.header.Get("x-ms-access-tier-inferred") != "true" {
		t.Errorf("%v", a.header)
	}
	if a = c.do(200, "", "GET", "/con1/a?comp=tags", ""); a.body != xmlHead+"<Tags><TagSet><Tag><Key>a</Key><Value>+</Value></Tag>"+
		"<Tag><Key>project</Key><Value>blob mount</Value></Tag></TagSet></Tags>" {
		t.Errorf("%s", a.body)
	}
	c.do(204, "", "PUT", "/con1/a?comp=tags", "<Tags><TagSet><Tag><Key>k</Key><Value></Value></Tag></TagSet></Tags>")
	if a = c.do(200, "", "HEAD", "/con1/a", ""); a.header.Get("x-ms-tag-count") != "1" || a.header.Get("ETag") != etag {
		t.Errorf("%v", a.header)
	}
	c.do(400, "InvalidTag", "PUT", "/con1/a?comp=tags", "<Tags><TagSet><Tag><Key>k*</Key><Value>v</Value></Tag></TagSet></Tags>")
	c.do(400, "InvalidTag", "PUT", "/con1/a", "x", blockBlob, "x-ms-tags: a=1&a=2")
	c.do(400, "TagsTooLarge", "PUT", "/con1/a", "x", blockBlob, "x-ms-tags: a=&b=&c=&d=&e=&f=&g=&h=&i=&j=&k=")
	c.do(404, "BlobNotFound", "GET", "/con1/none?comp=tags", "")

	// Copy Blob takes tier and tags as it is told.
	src := "x-ms-copy-source: " + c.s.URL() + "/con1/a"
	c.do(202, "", "PUT", "/con1/b", "", src)
	if a = c.do(200, "", "HEAD", "/con1/b", ""); a.header.Get("x-ms-tag-count") != "" || a.header.Get("x-ms-access-tier-inferred") != "true" {
		t.Errorf("%v", a.header)
	}
	c.do(202, "", "PUT", "/con1/b", "", src, "x-ms-tags: k=v", "x-ms-access-tier: Cool")
	a = c.do(200, "", "HEAD", "/con1/b", "")
	if a.header.Get("x-ms-tag-count") != "1" || a.header.Get("x-ms-access-tier") != "Cool" || a.header.Get("x-ms-access-tier-inferred") != "" {
		t.Errorf("%v", a.header)
	}
}
