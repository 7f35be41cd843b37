package blobserver

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// createContainer is Create Container.
func (q *request) createContainer() error {
	if err := q.s.CreateContainer(q.container); err != nil {
		return err
	}
	c, err := q.s.container(q.container)
	if err != nil {
		return err
	}
	q.answerWritten(http.StatusCreated, blob.Written{ETag: c.etag, Modified: c.modified})
	return nil
}

// getContainer is Get Container Properties.
func (q *request) getContainer() error {
	c, err := q.s.container(q.container)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("x-ms-lease-state", "available")
	h.Set("x-ms-lease-status", "unlocked")
	h.Set("x-ms-has-immutability-policy", "false")
	h.Set("x-ms-has-legal-hold", "false")
	if q.s.opts.Anonymous {
		h.Set("x-ms-blob-public-access", "container")
	}
	q.answerWritten(http.StatusOK, blob.Written{ETag: c.etag, Modified: c.modified})
	return nil
}

// deleteContainer is Delete Container. The name can be used again at once; the service holds it for 30 seconds.
func (q *request) deleteContainer() error {
	if err := q.s.deleteContainer(q.container); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// getAccount is Get Account Information.
func (q *request) getAccount() error {
	h := q.w.Header()
	h.Set("x-ms-sku-name", "Standard_RAGRS")
	h.Set("x-ms-account-kind", "StorageV2")
	h.Set("x-ms-is-hns-enabled", "false")
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusOK)
	return nil
}

// nothingMore are the values of include that ask for what no container here has, so they add nothing.
var nothingMore = []string{
	"", "metadata", "snapshots", "versions", "deleted", "deletedwithversions", "copy", "immutabilitypolicy", "legalhold",
}

// listBlobs is List Blobs.
func (q *request) listBlobs() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	o := blob.ListOptions{Prefix: q.query.Get("prefix"), Delimiter: q.query.Get("delimiter"), Marker: q.query.Get("marker")}
	if text := q.query.Get("maxresults"); text != "" {
		if o.MaxResults, err = strconv.Atoi(text); err != nil || o.MaxResults <= 0 {
			return blobtest.Err("OutOfRangeQueryParameterValue")
		}
	}
	include := strings.Split(q.query.Get("include"), ",")
	for _, what := range include {
		if !slices.Contains(nothingMore, what) {
			return blobtest.Err("UnsupportedQueryParameter")
		}
	}
	page, err := store.List(o)
	if err != nil {
		return err
	}
	// 700 bytes are a blob without metadata; the buffer grows when there is more.
	body := bytes.NewBuffer(make([]byte, 0, 1024+700*len(page.Blobs)+200*len(page.Prefixes)))
	body.WriteString(xmlHead + `<EnumerationResults ServiceEndpoint="`)
	escape(body, q.s.url+"/")
	body.WriteString(`" ContainerName="`)
	escape(body, q.container)
	body.WriteString(`">`)
	element(body, "Prefix", o.Prefix)
	element(body, "Marker", o.Marker)
	if o.MaxResults > 0 {
		element(body, "MaxResults", strconv.Itoa(o.MaxResults))
	}
	element(body, "Delimiter", o.Delimiter)
	body.WriteString("<Blobs>")
	metadata := slices.Contains(include, "metadata")
	for _, p := range page.Blobs {
		listedBlob(body, p, store.LeaseState(p.Name), metadata)
	}
	for _, prefix := range page.Prefixes {
		body.WriteString("<BlobPrefix>")
		nameElement(body, prefix)
		body.WriteString("</BlobPrefix>")
	}
	body.WriteString("</Blobs><NextMarker>")
	escape(body, page.Next)
	body.WriteString("</NextMarker></EnumerationResults>")
	q.answerXML(http.StatusOK, body)
	return nil
}

// element writes an element unless it would be empty.
func element(b *bytes.Buffer, name, text string) {
	if text == "" {
		return
	}
	b.WriteString("<" + name + ">")
	escape(b, text)
	b.WriteString("</" + name + ">")
}

// nameElement writes a name, percent-encoded when XML cannot carry it ("List Blobs", Encoded).
func nameElement(b *bytes.Buffer, name string) {
	if !strings.ContainsFunc(name, notXML) {
		element(b, "Name", name)
		return
	}
	b.WriteString(`<Name Encoded="true">`)
	// A plus sign is written as %2B, and a space as %20: readers differ in what a plain plus means to them.
	escape(b, strings.ReplaceAll(url.QueryEscape(name), "+", "%20"))
	b.WriteString("</Name>")
}

// notXML reports characters outside of the production Char of XML 1.0, and those that a parser changes: a carriage
// return is read as a line feed.
func notXML(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' || r == 0xFFFE || r == 0xFFFF
}

func listedBlob(b *bytes.Buffer, p blob.Properties, lease blobtest.LeaseState, metadata bool) {
	b.WriteString("<Blob>")
	nameElement(b, p.Name)
	b.WriteString("<Properties>")
	element(b, "Creation-Time", p.Created.Format(http.TimeFormat))
	element(b, "Last-Modified", p.Modified.Format(http.TimeFormat))
	element(b, "Etag", strings.Trim(string(p.ETag), `"`)) // the service leaves the quotes out here
	element(b, "Content-Length", strconv.FormatInt(p.Size, 10))
	element(b, "Content-Type", p.Headers.ContentType)
	element(b, "Content-Encoding", p.Headers.ContentEncoding)
	element(b, "Content-Language", p.Headers.ContentLanguage)
	if len(p.Headers.ContentMD5) > 0 {
		element(b, "Content-MD5", base64.StdEncoding.EncodeToString(p.Headers.ContentMD5))
	}
	element(b, "Cache-Control", p.Headers.CacheControl)
	element(b, "Content-Disposition", p.Headers.ContentDisposition)
	element(b, "BlobType", kindNames[p.Kind])
	element(b, "AccessTier", p.Tier)
	if p.TierInferred {
		element(b, "AccessTierInferred", "true")
	}
	element(b, "LeaseStatus", leaseStatus(lease))
	element(b, "LeaseState", string(lease))
	element(b, "ServerEncrypted", "true")
	if p.TagCount > 0 {
		element(b, "TagCount", strconv.Itoa(p.TagCount))
	}
	b.WriteString("</Properties>")
	if metadata {
		b.WriteString("<Metadata>")
		for name, value := range p.Metadata {
			b.WriteString("<" + name + ">")
			escape(b, value)
			b.WriteString("</" + name + ">")
		}
		b.WriteString("</Metadata>")
	}
	b.WriteString("</Blob>")
}
