package blobserver

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// request is one request while it is served, in one goroutine.
type request struct {
	s         *Server
	w         http.ResponseWriter
	r         *http.Request
	query     url.Values
	container string // empty: the account
	blob      string // empty: the container
	op        *operation
	fault     *Fault
	id        string
}

// operation is one operation of the REST reference.
type operation struct {
	name string
	// permission has the letters of a SAS of which one is needed.
	permission string
	// reads: public access is enough.
	reads bool
	// answers: a success has a body.
	answers bool
	serve   func(*request) error
	// headers that change the meaning of this operation and are understood, beyond those of every operation.
	headers string
}

// The operations. What a header of the REST reference means that is not listed in headers, and not among those
// that every operation understands or may ignore, is not known here: see checkHeaders.
var (
	conditional  = " if-match if-none-match"
	leased       = " x-ms-lease-id"
	leaseHeaders = leased + " x-ms-lease-action x-ms-lease-duration x-ms-proposed-lease-id x-ms-lease-break-period"
	blobHeaders  = " x-ms-blob-content-type x-ms-blob-content-encoding x-ms-blob-content-language x-ms-blob-content-disposition x-ms-blob-cache-control x-ms-blob-content-md5"
	checksums    = " x-ms-content-crc64"
	copyHeaders  = " x-ms-copy-source x-ms-source-if-match x-ms-source-if-none-match"
	rangeHeaders = " x-ms-range x-ms-range-get-content-md5 x-ms-range-get-content-crc64"

	opGetBlob       = &operation{"GetBlob", "r", true, true, (*request).getBlob, conditional + rangeHeaders}
	opGetProperties = &operation{"GetBlobProperties", "r", true, false, (*request).getProperties, conditional}
	opPutBlob       = &operation{"PutBlob", "cw", false, false, (*request).putBlob, conditional + leased + blobHeaders + checksums + " x-ms-blob-type x-ms-access-tier x-ms-tags x-ms-blob-content-length"}
	opPutBlock      = &operation{"PutBlock", "w", false, false, (*request).putBlock, leased + checksums}
	opPutBlockURL   = &operation{"PutBlockFromURL", "w", false, false, (*request).putBlockFromURL, leased + copyHeaders + " x-ms-source-range x-ms-copy-source-authorization"}
	opPutBlockList  = &operation{"PutBlockList", "cw", false, false, (*request).putBlockList, conditional + leased + blobHeaders + checksums + " x-ms-access-tier x-ms-tags"}
	opGetBlockList  = &operation{"GetBlockList", "r", true, true, (*request).getBlockList, ""}
	opAppendBlock   = &operation{"AppendBlock", "aw", false, false, (*request).appendBlock, conditional + leased + checksums + " x-ms-blob-condition-appendpos x-ms-blob-condition-maxsize"}
	opCopyBlob      = &operation{"CopyBlob", "cw", false, false, (*request).copyBlob, conditional + leased + copyHeaders + " x-ms-requires-sync x-ms-access-tier x-ms-tags"}
	opSetMetadata   = &operation{"SetBlobMetadata", "w", false, false, (*request).setMetadata, conditional + leased}
	opSetProperties = &operation{"SetBlobProperties", "w", false, false, (*request).setProperties, conditional + leased + blobHeaders}
	opSetTier       = &operation{"SetBlobTier", "w", false, false, (*request).setTier, " x-ms-access-tier x-ms-rehydrate-priority"}
	opGetTags       = &operation{"GetBlobTags", "t", false, true, (*request).getTags, ""}
	opSetTags       = &operation{"SetBlobTags", "t", false, false, (*request).setTags, leased + checksums}
	opLeaseBlob     = &operation{"LeaseBlob", "wd", false, false, (*request).leaseBlob, conditional + leaseHeaders}
	opDeleteBlob    = &operation{"DeleteBlob", "d", false, false, (*request).deleteBlob, conditional + leased + " x-ms-delete-snapshots"}
	opRenamePath    = &operation{"RenamePath", "cw", false, false, (*request).renamePath, conditional + leased + " x-ms-rename-source x-ms-source-if-match x-ms-source-if-none-match x-ms-source-lease-id"}
	opDeletePath    = &operation{"DeletePath", "d", false, false, (*request).deletePath, conditional}
	opListBlobs     = &operation{"ListBlobs", "l", true, true, (*request).listBlobs, ""}
	opCreate        = &operation{"CreateContainer", "cw", false, false, (*request).createContainer, ""}
	opContainer     = &operation{"GetContainerProperties", "r", true, false, (*request).getContainer, ""}
	opDeleteC       = &operation{"DeleteContainer", "d", false, false, (*request).deleteContainer, ""}
	opAccount       = &operation{"GetAccountInformation", "rlwdcaxyuptfi", true, false, (*request).getAccount, ""}
	opUnknown       = &operation{"Unknown", "", false, false, func(*request) error { return blobtest.Err("NotImplemented") }, ""}
)

// route finds the operation of a request by method, kind of resource and the comp parameter.
func (q *request) route() *operation {
	method, comp := q.r.Method, q.query.Get("comp")
	switch {
	case comp == "properties" && q.query.Get("restype") == "account" && (method == "GET" || method == "HEAD"):
		return opAccount
	case q.container == "":
		return opUnknown
	case q.blob == "" && q.query.Get("restype") == "container":
		switch method + " " + comp {
		case "PUT ":
			return opCreate
		case "GET ", "HEAD ":
			return opContainer
		case "DELETE ":
			return opDeleteC
		case "GET list":
			return opListBlobs
		}
		return opUnknown
	case q.blob == "":
		return opUnknown
	}
	copies := q.r.Header.Get("x-ms-copy-source") != ""
	switch method + " " + comp {
	case "GET ":
		return opGetBlob
	case "HEAD ":
		return opGetProperties
	case "PUT ":
		if q.s.opts.Store.Hierarchical && q.r.Header.Get("x-ms-rename-source") != "" {
			return opRenamePath
		}
		// x-ms-blob-type beside a source is Put Blob From URL, which is not here.
		switch {
		case copies && q.r.Header.Get("x-ms-blob-type") == "":
			return opCopyBlob
		case !copies:
			return opPutBlob
		}
	case "PUT block":
		if copies {
			return opPutBlockURL
		}
		return opPutBlock
	case "PUT blocklist":
		return opPutBlockList
	case "GET blocklist":
		return opGetBlockList
	case "PUT appendblock":
		if !copies {
			return opAppendBlock
		}
	case "PUT metadata":
		return opSetMetadata
	case "PUT properties":
		return opSetProperties
	case "PUT tier":
		return opSetTier
	case "GET tags":
		return opGetTags
	case "PUT tags":
		return opSetTags
	case "PUT lease":
		return opLeaseBlob
	case "DELETE ":
		if q.s.opts.Store.Hierarchical && q.query.Has("recursive") {
			return opDeletePath
		}
		return opDeleteBlob
	}
	return opUnknown
}

// serve answers one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	q := &request{s: s, w: w, r: r, id: requestID()}
	h := w.Header()
	h.Set("x-ms-request-id", q.id)
	if version := r.Header.Get("x-ms-version"); version != "" {
		h.Set("x-ms-version", version) // every version that a client speaks is served the same
	}
	h.Set("Server", "blobmount-blobserver")
	if id := r.Header.Get("x-ms-client-request-id"); id != "" {
		h.Set("x-ms-client-request-id", id)
	}
	err := q.handle()
	s.opts.Log.Debug("request", "op", q.op.name, "container", q.container, "blob", q.blob, "error", err)
	if err != nil {
		q.answerError(err)
	}
}

func (q *request) handle() error {
	q.op = opUnknown
	err := q.parse()
	if err == nil {
		q.op = q.route()
	}
	q.s.stats.request(q.op.name)
	if err != nil {
		return err
	}
	name := q.blob
	if q.op == opListBlobs {
		name = q.query.Get("prefix")
	}
	q.fault = q.s.faults.choose(q.op.name, name)
	if err := q.s.shaper.first(q.r.Context()); err != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
	if err := q.s.authorize(q); err != nil {
		return err
	}
	if q.fault != nil {
		switch q.fault.Action {
		case Refuse:
			e := blobtest.Err(q.fault.Code)
			if q.fault.Status != 0 {
				e.Status, e.ServiceCode = q.fault.Status, q.fault.Code
			}
			if q.fault.RetryAfter > 0 {
				q.w.Header().Set("Retry-After", strconv.Itoa(int(q.fault.RetryAfter/time.Second)))
			}
			return e
		case LoseReply:
			q.w = &lostReply{ResponseWriter: q.w, header: http.Header{}}
			defer reset(q.w.(*lostReply).ResponseWriter)
		case Stall:
			select {
			case <-q.fault.Until:
			case <-q.r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		case Break:
			if q.r.ContentLength <= 0 && !q.op.answers {
				reset(q.w)
			} // else where the body moves
		}
	}
	if err := q.checkHeaders(); err != nil {
		return err
	}
	return q.op.serve(q)
}

// lostReply takes the answer that the client does not get.
type lostReply struct {
	http.ResponseWriter
	header http.Header
}

func (l *lostReply) Header() http.Header         { return l.header }
func (l *lostReply) Write(p []byte) (int, error) { return len(p), nil }
func (l *lostReply) WriteHeader(int)             {}

// parse takes the address apart: /ACCOUNT/CONTAINER/BLOB.
func (q *request) parse() error {
	var err error
	if q.query, err = url.ParseQuery(q.r.URL.RawQuery); err != nil {
		return blobtest.Err("InvalidQueryParameterValue")
	}
	path, ok := strings.CutPrefix(q.r.URL.Path, "/"+q.s.opts.Account)
	if !ok || path != "" && path[0] != '/' {
		return blobtest.Err("ResourceNotFound")
	}
	q.container, q.blob, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return nil
}

// harmless headers say nothing about what a request does.
const harmless = " x-ms-version x-ms-date x-ms-client-request-id x-ms-return-client-request-id"

// checkHeaders refuses what is asked for by headers and parameters that this service does not know. The Blob
// service would do it; here it would be dropped silently.
func (q *request) checkHeaders() error {
	known := harmless + q.op.headers + " "
	for name := range q.r.Header {
		name = strings.ToLower(name)
		switch {
		case strings.HasPrefix(name, "x-ms-meta-"):
		case strings.HasPrefix(name, "x-ms-"), strings.HasPrefix(name, "if-"):
			if !strings.Contains(known, " "+name+" ") {
				return blobtest.Err("UnsupportedHeader")
			}
		}
	}
	for _, name := range []string{"snapshot", "versionid", "deletetype", "startFrom"} {
		if q.query.Get(name) != "" {
			return blobtest.Err("UnsupportedQueryParameter")
		}
	}
	return nil
}

// condition returns the condition of the headers with the prefix, "" or "x-ms-source-".
func (q *request) condition(prefix string) blob.Condition {
	return blob.Condition{
		IfMatch:     blob.ETag(q.r.Header.Get(prefix + "if-match")),
		IfNoneMatch: blob.ETag(q.r.Header.Get(prefix + "if-none-match")),
	}
}

// metadata returns the metadata headers, nil when there are none.
func (q *request) metadata() map[string]string {
	var m map[string]string
	for name, values := range q.r.Header {
		if key, ok := strings.CutPrefix(strings.ToLower(name), "x-ms-meta-"); ok {
			if m == nil {
				m = map[string]string{}
			}
			m[key] = strings.Join(values, ",")
		}
	}
	return m
}

// maxDrained is how much of a refused request's body is read for the answer to arrive: more than the blocks in use.
const maxDrained = 256 << 20

// answerError answers with an error: x-ms-error-code, and the XML of "Status and error codes" where a body may be.
func (q *request) answerError(err error) {
	var e *blob.Error
	if !errors.As(err, &e) || e.Status == 0 {
		e = blobtest.Err("InternalError")
	}
	q.s.stats.failure(e.ServiceCode)
	h := q.w.Header()
	h.Set("x-ms-error-code", e.ServiceCode)
	if e.ServiceCode == "NoAuthenticationInformation" || e.ServiceCode == "InvalidAuthenticationInfo" {
		q.s.challenge(h)
	}
	// The body is taken from the connection, else the client may find it reset before it reads the answer.
	_, _ = io.CopyN(io.Discard, q.r.Body, maxDrained) // an error: the client has gone
	if q.r.Method == http.MethodHead || e.Status == http.StatusNotModified {
		q.w.WriteHeader(e.Status)
		return
	}
	var body bytes.Buffer
	body.WriteString(xmlHead + "<Error><Code>")
	escape(&body, e.ServiceCode)
	body.WriteString("</Code><Message>")
	escape(&body, fmt.Sprintf("%s\nRequestId:%s\nTime:%s", blobtest.Message(e.ServiceCode), q.id, q.s.opts.Clock.Now().UTC().Format(time.RFC3339Nano)))
	body.WriteString("</Message>")
	if e.ServiceCode == "InvalidAuthenticationInfo" && e.Err != nil {
		body.WriteString("<AuthenticationErrorDetail>")
		escape(&body, e.Err.Error())
		body.WriteString("</AuthenticationErrorDetail>")
	}
	body.WriteString("</Error>")
	q.answerXML(e.Status, body.Bytes())
}

const xmlHead = `<?xml version="1.0" encoding="utf-8"?>`

func (q *request) answerXML(status int, body []byte) {
	h := q.w.Header()
	h.Set("Content-Type", "application/xml")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	q.w.WriteHeader(status)
	if status == http.StatusOK {
		if at := q.breakAt(int64(len(body))); at >= 0 {
			_, _ = q.w.Write(body[:at])
			resetAfter(q.w)
		}
	}
	_, _ = q.w.Write(body) // an error: the client has gone
}

// escape writes text as XML carries it.
func escape(b *bytes.Buffer, text string) {
	_ = xml.EscapeText(b, []byte(text)) // a bytes.Buffer does not fail
}

// answerWritten answers a write.
func (q *request) answerWritten(status int, w blob.Written) {
	h := q.w.Header()
	h["ETag"] = []string{string(w.ETag)}
	h.Set("Last-Modified", w.Modified.Format(http.TimeFormat))
	h.Set("x-ms-request-server-encrypted", "true")
	h.Set("Content-Length", "0")
	q.w.WriteHeader(status)
}

// store returns the blobs of the request's container, for the holder of the lease that the request names.
func (q *request) store() (*blobtest.Store, error) {
	c, err := q.s.container(q.container)
	if err != nil {
		return nil, err
	}
	if id := q.r.Header.Get("x-ms-lease-id"); id != "" {
		return c.store.WithLease(strings.ToLower(id)), nil
	}
	return c.store, nil
}

// body reads the request's body into a buffer of exactly its size.
func (q *request) body(limit int64) ([]byte, error) {
	size := q.r.ContentLength
	switch {
	case size < 0:
		return nil, blobtest.Err("MissingContentLengthHeader")
	case size > limit:
		return nil, blobtest.Err("RequestBodyTooLarge")
	}
	buf := make([]byte, size)
	stop := int64(-1)
	if q.fault != nil && q.fault.Action == Break {
		stop = min(q.fault.Bytes, size)
	}
	for at := int64(0); at < size || at == stop; {
		if at == stop {
			reset(q.w)
		}
		end := min(at+int64(q.s.shaper.chunk()), size)
		if stop >= 0 {
			end = min(end, stop)
		}
		n, err := io.ReadFull(q.r.Body, buf[at:end])
		q.s.stats.bytes(n, 0)
		if err != nil {
			panic(http.ErrAbortHandler) // the client has gone: nobody to answer
		}
		if err := q.s.shaper.wait(q.r.Context(), n, inward); err != nil {
			panic(http.ErrAbortHandler)
		}
		at = end
	}
	return buf, checkSums(q.r.Header, q.w.Header(), buf)
}
