package blobserver

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// getBlob is Get Blob.
func (q *request) getBlob() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	h := q.r.Header
	rangeText := h.Get("x-ms-range")
	if rangeText == "" {
		rangeText = h.Get("Range")
	}
	offset, count, ranged := parseRange(rangeText)
	p, content, err := store.Get(q.blob, offset, count, q.condition(""))
	if err != nil {
		if blob.Is(err, blob.InvalidRange) {
			if p, err := store.Properties(q.blob, blob.Condition{}); err == nil {
				q.w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(p.Size, 10))
			}
		}
		return err
	}
	a := q.w.Header()
	status := http.StatusOK
	setProperties(a, p, store.LeaseState(q.blob))
	if ranged {
		status = http.StatusPartialContent
		a.Set("Content-Range", "bytes "+strconv.FormatInt(offset, 10)+"-"+strconv.FormatInt(offset+content.Len()-1, 10)+
			"/"+strconv.FormatInt(p.Size, 10))
		if md5 := a.Get("Content-MD5"); md5 != "" { // is that of the answer, not of the blob
			a.Del("Content-MD5")
			a.Set("x-ms-blob-content-md5", md5)
		}
		if err := rangeSums(h, a, content); err != nil {
			return err
		}
	}
	a.Set("Content-Length", strconv.FormatInt(content.Len(), 10))
	q.w.WriteHeader(status)
	q.send(content)
	return nil
}

// send writes content in chunks, as they lie in memory.
func (q *request) send(content blobtest.Range) {
	left := q.breakAt(content.Len())
	for chunk := range content.Chunks(q.s.shaper.chunk()) {
		breaks := left >= 0 && int64(len(chunk)) > left
		if breaks {
			chunk = chunk[:left]
		}
		if err := q.s.shaper.wait(q.r.Context(), len(chunk), outward); err != nil {
			panic(http.ErrAbortHandler)
		}
		n, err := q.w.Write(chunk)
		q.s.stats.bytes(0, n)
		if err != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
		if breaks {
			resetAfter(q.w)
		}
		if left >= 0 {
			left -= int64(n)
		}
	}
}

// breakAt returns the number of bytes of an answer's body that go out before the connection breaks, -1 when it does
// not. The last byte is always missing, else nothing broke.
func (q *request) breakAt(size int64) int64 {
	if q.fault == nil || q.fault.Action != Break {
		return -1
	}
	return max(0, min(q.fault.Bytes, size-1))
}

// parseRange reads "bytes=first-last" or "bytes=first-". Anything else is no range, as in HTTP: Azure supports
// neither suffixes nor several ranges ("Specifying the range header for Blob service operations").
func parseRange(text string) (offset, count int64, ok bool) {
	first, last, found := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	offset, err := strconv.ParseInt(first, 10, 64)
	if !found || err != nil || !strings.HasPrefix(text, "bytes=") || offset < 0 {
		return 0, -1, false
	}
	if last == "" {
		return offset, -1, true
	}
	end, err := strconv.ParseInt(last, 10, 64)
	if err != nil || end < offset {
		return 0, -1, false
	}
	return offset, end - offset + 1, true
}

// setProperties sets the headers that go with a blob.
func setProperties(h http.Header, p blob.Properties, lease blobtest.LeaseState) {
	h["ETag"] = []string{string(p.ETag)}
	h.Set("Last-Modified", p.Modified.Format(http.TimeFormat))
	h.Set("x-ms-creation-time", p.Created.Format(http.TimeFormat))
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(p.Size, 10))
	h.Set("x-ms-blob-type", kindNames[p.Kind])
	h.Set("x-ms-server-encrypted", "true")
	h.Set("x-ms-lease-state", string(lease))
	h.Set("x-ms-lease-status", leaseStatus(lease))
	if lease == blobtest.LeaseLeased {
		h.Set("x-ms-lease-duration", "fixed")
	}
	if p.TierInferred {
		h.Set("x-ms-access-tier-inferred", "true")
	}
	if p.TagCount > 0 {
		h.Set("x-ms-tag-count", strconv.Itoa(p.TagCount))
	}
	for name, value := range map[string]string{
		"Content-Type": p.Headers.ContentType, "Content-Encoding": p.Headers.ContentEncoding,
		"Content-Language": p.Headers.ContentLanguage, "Content-Disposition": p.Headers.ContentDisposition,
		"Cache-Control": p.Headers.CacheControl, "x-ms-access-tier": p.Tier,
	} {
		if value != "" {
			h.Set(name, value)
		}
	}
	if len(p.Headers.ContentMD5) > 0 {
		h.Set("Content-MD5", base64.StdEncoding.EncodeToString(p.Headers.ContentMD5))
	}
	for name, value := range p.Metadata {
		h.Set("x-ms-meta-"+name, value)
	}
}

var kindNames = [...]string{blob.BlockBlob: "BlockBlob", blob.AppendBlob: "AppendBlob", blob.PageBlob: "PageBlob"}

// getProperties is Get Blob Properties.
func (q *request) getProperties() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	p, err := store.Properties(q.blob, q.condition(""))
	if err != nil {
		return err
	}
	setProperties(q.w.Header(), p, store.LeaseState(q.blob))
	if p.CopiedFrom != "" {
		// As clients that reach the server by this address have named it.
		source := &url.URL{Scheme: "http", Host: q.r.Host, Path: "/" + q.s.opts.Account + "/" + q.container + "/" + p.CopiedFrom}
		q.w.Header().Set("x-ms-copy-source", source.String())
		q.w.Header().Set("x-ms-copy-status", "success")
	}
	q.w.WriteHeader(http.StatusOK)
	return nil
}

// getBlockList is Get Block List.
func (q *request) getBlockList() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	l, err := store.Blocks(q.blob)
	if err != nil {
		return err
	}
	which := q.query.Get("blocklisttype")
	if which == "" {
		which = "committed"
	}
	var body bytes.Buffer
	body.WriteString(xmlHead + "<BlockList>")
	section := func(name string, blocks []blob.Block) {
		body.WriteString("<" + name + ">")
		for _, b := range blocks {
			body.WriteString("<Block><Name>" + base64.StdEncoding.EncodeToString([]byte(b.ID)) + "</Name><Size>")
			body.WriteString(strconv.FormatInt(b.Size, 10) + "</Size></Block>")
		}
		body.WriteString("</" + name + ">")
	}
	switch which {
	case "committed":
		section("CommittedBlocks", l.Committed)
	case "uncommitted":
		section("UncommittedBlocks", l.Uncommitted)
	case "all":
		section("CommittedBlocks", l.Committed)
		section("UncommittedBlocks", l.Uncommitted)
	default:
		return blobtest.Err("InvalidQueryParameterValue")
	}
	body.WriteString("</BlockList>")
	if l.ETag != "" {
		h := q.w.Header()
		h["ETag"] = []string{string(l.ETag)}
		h.Set("x-ms-blob-content-length", strconv.FormatInt(sizeOf(l.Committed), 10))
		// A blob written by Put Blob has no blocks but a size; and the time is asked for once more, as a block list
		// does not carry it. When the blob changed in between, the answer goes without both.
		if p, err := store.Properties(q.blob, blob.Condition{IfMatch: l.ETag}); err == nil {
			h.Set("x-ms-blob-content-length", strconv.FormatInt(p.Size, 10))
			h.Set("Last-Modified", p.Modified.Format(http.TimeFormat))
		}
	}
	q.answerXML(http.StatusOK, body.Bytes())
	return nil
}

func sizeOf(blocks []blob.Block) int64 {
	var n int64
	for _, b := range blocks {
		n += b.Size
	}
	return n
}
