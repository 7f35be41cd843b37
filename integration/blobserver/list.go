package blobserver

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

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
	l := q.s.listings.take()
	defer q.s.listings.put(l)
	l.text(xmlHead + `<EnumerationResults ServiceEndpoint="`)
	l.escape(q.s.url + "/")
	l.text(`" ContainerName="`)
	l.escape(q.container)
	l.text(`">`)
	l.element("Prefix", o.Prefix)
	l.element("Marker", o.Marker)
	if o.MaxResults > 0 {
		l.element("MaxResults", strconv.Itoa(o.MaxResults))
	}
	l.element("Delimiter", o.Delimiter)
	l.text("<Blobs>")
	metadata := slices.Contains(include, "metadata")
	for i := range page.Blobs {
		p := &page.Blobs[i]
		l.blob(p, store.LeaseState(p.Name), metadata)
	}
	for _, prefix := range page.Prefixes {
		l.text("<BlobPrefix>")
		l.name(prefix)
		l.text("</BlobPrefix>")
	}
	l.text("</Blobs><NextMarker>")
	l.escape(page.Next)
	l.text("</NextMarker></EnumerationResults>")
	q.answerXML(http.StatusOK, l.buf)
	return nil
}

// listings keeps the buffers of pages, up to 4 MiB each: making them anew cost more than filling them. A sync.Pool is
// emptied by each garbage collection, and here is one every few pages.
type listings chan *listing

const keptListings = 4

func (c listings) take() *listing {
	select {
	case l := <-c:
		return l
	default:
		return new(listing)
	}
}

func (c listings) put(l *listing) {
	l.buf = l.buf[:0]
	select {
	case c <- l:
	default:
	}
}

// listing writes a page. Everything is appended to one buffer: the page of a million blobs is on the way of every test
// of them, 200 times.
type listing struct {
	buf      []byte
	lastTime time.Time // the one that was written last, and how: most blobs of a page share it
	lastText []byte
}

func (l *listing) text(s string) { l.buf = append(l.buf, s...) }

// element writes an element unless it would be empty.
func (l *listing) element(name, text string) {
	if text == "" {
		return
	}
	l.open(name)
	l.escape(text)
	l.close(name)
}

func (l *listing) open(name string) {
	l.buf = append(append(append(l.buf, '<'), name...), '>')
}

func (l *listing) close(name string) {
	l.buf = append(append(append(l.buf, "</"...), name...), '>')
}

// escape writes text as XML carries it.
func (l *listing) escape(text string) {
	for i := range len(text) {
		if special[text[i]] {
			b := bytes.NewBuffer(l.buf)
			escape(b, text)
			l.buf = b.Bytes()
			return
		}
	}
	l.text(text) // most names, and all numbers and times
}

// special has the bytes of text that escape may change, those of letters beyond ASCII among them.
var special = func() (s [256]bool) {
	for c := range s {
		s[c] = c < ' ' || c >= 0x7F || strings.IndexByte(`<>&"'`, byte(c)) >= 0
	}
	return s
}()

func (l *listing) time(name string, t time.Time) {
	if l.lastText == nil || !t.Equal(l.lastTime) {
		l.lastTime, l.lastText = t, t.AppendFormat(l.lastText[:0], http.TimeFormat)
	}
	l.open(name)
	l.buf = append(l.buf, l.lastText...)
	l.close(name)
}

// name writes a name, percent-encoded when XML cannot carry it ("List Blobs", Encoded).
func (l *listing) name(name string) {
	if carried(name) {
		l.element("Name", name)
		return
	}
	l.text(`<Name Encoded="true">`)
	// A plus sign is written as %2B, and a space as %20: readers differ in what a plain plus means to them.
	l.escape(strings.ReplaceAll(url.QueryEscape(name), "+", "%20"))
	l.text("</Name>")
}

// carried reports whether XML 1.0 can carry a name (its production Char), and no parser changes it: a carriage return
// is read as a line feed.
func carried(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < ' ' && c != '\t' && c != '\n' || c >= utf8.RuneSelf {
			return !strings.ContainsFunc(name, notXML)
		}
	}
	return true
}

func notXML(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' || r == 0xFFFE || r == 0xFFFF
}

func (l *listing) blob(p *blob.Properties, lease blobtest.LeaseState, metadata bool) {
	l.text("<Blob>")
	l.name(p.Name)
	l.text("<Properties>")
	l.time("Creation-Time", p.Created)
	l.time("Last-Modified", p.Modified)
	l.element("Etag", strings.Trim(string(p.ETag), `"`)) // the service leaves the quotes out here
	l.open("Content-Length")
	l.buf = strconv.AppendInt(l.buf, p.Size, 10)
	l.close("Content-Length")
	l.element("Content-Type", p.Headers.ContentType)
	l.element("Content-Encoding", p.Headers.ContentEncoding)
	l.element("Content-Language", p.Headers.ContentLanguage)
	if len(p.Headers.ContentMD5) > 0 {
		l.element("Content-MD5", base64.StdEncoding.EncodeToString(p.Headers.ContentMD5))
	}
	l.element("Cache-Control", p.Headers.CacheControl)
	l.element("Content-Disposition", p.Headers.ContentDisposition)
	l.element("BlobType", kindNames[p.Kind])
	l.element("AccessTier", p.Tier)
	if p.TierInferred {
		l.text("<AccessTierInferred>true</AccessTierInferred>")
	}
	l.element("LeaseStatus", leaseStatus(lease))
	l.element("LeaseState", string(lease))
	l.text("<ServerEncrypted>true</ServerEncrypted>")
	if p.TagCount > 0 {
		l.element("TagCount", strconv.Itoa(p.TagCount))
	}
	l.text("</Properties>")
	if metadata {
		l.text("<Metadata>")
		for name, value := range p.Metadata {
			l.open(name)
			l.escape(value)
			l.close(name)
		}
		l.text("</Metadata>")
	}
	l.text("</Blob>")
}
