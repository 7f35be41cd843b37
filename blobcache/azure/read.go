package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"blobmount/blobcache/blob"
)

// Properties implements blob.Container.
func (c *Container) Properties(ctx context.Context, name string, cond blob.Condition) (blob.Properties, error) {
	const op = "Properties"
	if err := checkName(op, name); err != nil {
		return blob.Properties{}, err
	}
	ctx, _ = withAttempts(ctx, op, name)
	r, err := c.head(ctx, name, cond)
	if err != nil {
		return blob.Properties{}, fail(ctx, op, name, err)
	}
	return c.properties(name, r), nil
}

// properties are those of an answer to head, with the source of a copy.
func (c *Container) properties(name string, r sdkblob.GetPropertiesResponse) blob.Properties {
	p := headProperties(name, r)
	// The source is there from the beginning of a copy, and stays when it fails. It never comes without the status ("Get Blob
	// Properties").
	if value(r.CopyStatus) == sdkblob.CopyStatusTypeSuccess {
		p.CopiedFrom = c.nameIn(text(r.CopySource))
	}
	return p
}

// head is Get Blob Properties. Its error is the SDK's, or a versionError.
func (c *Container) head(ctx context.Context, name string, cond blob.Condition) (sdkblob.GetPropertiesResponse, error) {
	var raw *http.Response
	r, err := c.client.NewBlobClient(name).GetProperties(policy.WithCaptureResponse(ctx, &raw),
		&sdkblob.GetPropertiesOptions{AccessConditions: accessConditions(cond)})
	if err == nil {
		err = checkVersion(raw)
	}
	return r, err
}

// versionError says that an answer to a read is not of the version that was asked for.
type versionError struct{ asked, got string }

func (e *versionError) Error() string {
	if e.got == "" {
		return "the answer has no ETag"
	}
	return fmt.Sprintf("asked for the version %s, the answer has %s, in spite of If-Match", e.asked, e.got)
}

// checkVersion refuses an answer that is of another version than the request has named, or of none. The service compares
// If-Match before it answers ("Specifying conditional headers for Blob service operations"), and names the version of each
// blob that it describes. A cache or a page between does neither: its bytes would be kept as those of the version, and a
// commit over properties without an ETag has no condition. What asks for something else than a blob's content or properties
// has a parameter comp or restype.
func checkVersion(resp *http.Response) error {
	req := resp.Request
	if req == nil || req.Method != http.MethodGet && req.Method != http.MethodHead ||
		resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return nil
	}
	if q := req.URL.Query(); q.Has("comp") || q.Has("restype") {
		return nil
	}
	asked, got := req.Header.Get("If-Match"), resp.Header.Get("ETag")
	if got == "" || asked != "" && asked != string(blob.Any) && etag((*azcore.ETag)(&got)) != blob.ETag(asked) {
		return &versionError{asked, got}
	}
	return nil
}

// nameIn returns the blob of this container that an address names, "" if it is elsewhere.
func (c *Container) nameIn(address string) string {
	u, err := url.Parse(address)
	base, baseErr := url.Parse(c.base)
	if err != nil || baseErr != nil || !strings.EqualFold(u.Host, base.Host) {
		return ""
	}
	name, ok := strings.CutPrefix(u.Path, base.Path+"/")
	if !ok {
		return ""
	}
	return name
}

// ReadAt implements blob.Container. A connection that breaks is replaced while the body is read: the rest is
// asked for under the ETag of what came before, for as long as RetryFor without progress. The body belongs to one
// goroutine; cancelling ctx interrupts it.
func (c *Container) ReadAt(ctx context.Context, name string, offset, count int64, cond blob.Condition) (*blob.Body, error) {
	const op = "ReadAt"
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	if offset < 0 || count <= 0 {
		return nil, &blob.Error{Code: blob.InvalidRange, Op: op, Name: name, Err: fmt.Errorf("%d bytes at %d", count, offset)}
	}
	part, err := c.get(ctx, name, offset, count, cond)
	if err != nil {
		return nil, err
	}
	b := &body{
		c: c, ctx: ctx, name: name, etag: part.properties.ETag,
		stream: part.stream, from: offset, next: offset, end: offset + part.count, size: part.properties.Size,
	}
	return &blob.Body{ReadCloser: b, Properties: part.properties}, nil
}

// part is one answer with a range of a blob.
type part struct {
	stream     io.ReadCloser
	count      int64 // bytes that the stream must have
	properties blob.Properties
	queued     time.Duration // see attempts
}

// get requests a range, and checks that the answer is that very range.
func (c *Container) get(ctx context.Context, name string, offset, count int64, cond blob.Condition) (part, error) {
	const op = "ReadAt"
	ctx, tries := withAttempts(ctx, op, name)
	var raw *http.Response
	r, err := c.client.NewBlobClient(name).DownloadStream(policy.WithCaptureResponse(ctx, &raw), &sdkblob.DownloadStreamOptions{
		Range:            sdkblob.HTTPRange{Offset: offset, Count: count},
		AccessConditions: accessConditions(cond),
	})
	if err != nil {
		return part{}, fail(ctx, op, name, err)
	}
	if r.Body == nil {
		// DownloadStream reports 304 Not Modified as a success without a body.
		return part{}, &blob.Error{Code: blob.NotModified, Op: op, Name: name, ServiceCode: text(r.ErrorCode), Status: 304}
	}
	if err := checkVersion(raw); err != nil {
		r.Body.Close()
		return part{}, fail(ctx, op, name, err)
	}
	first, last, size, ok := parseContentRange(text(r.ContentRange))
	switch {
	case ok && last < first && offset >= size:
		// Azurite answers so where the service answers 416.
		r.Body.Close()
		return part{}, &blob.Error{Code: blob.InvalidRange, Op: op, Name: name, Err: fmt.Errorf("the blob has %d bytes", size)}
	case r.ContentRange == nil && r.ContentLength != nil && offset == 0:
		// 200: a server that ignores the range sends the whole blob. Its beginning is the range.
		size, ok = *r.ContentLength, true
	case !ok || first != offset || last+1 != offset+min(count, size-offset):
		ok = false
	}
	n := min(count, size-offset)
	if !ok || r.ContentLength == nil || *r.ContentLength < n {
		r.Body.Close()
		return part{}, &blob.Error{Code: blob.Damaged, Op: op, Name: name, RequestID: text(r.RequestID),
			Err: fmt.Errorf("asked for %d bytes at %d, the answer has the range %q", count, offset, text(r.ContentRange))}
	}
	p := downloadProperties(name, r)
	p.Size = size
	// DownloadStream tells the tier, and drops the header beside it.
	p.TierInferred = raw.Header.Get("x-ms-access-tier-inferred") == "true"
	return part{r.Body, n, p, tries.queued}, nil
}

// parseContentRange reads "bytes FIRST-LAST/SIZE" (RFC 9110, section 14.4).
func parseContentRange(s string) (first, last, size int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(s, "/")
	a, z, ok3 := strings.Cut(span, "-") // z may be negative, in the range of nothing
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(z, 10, 64)
	size, err3 := strconv.ParseInt(total, 10, 64)
	ok = ok && ok2 && ok3 && errors.Join(err1, err2, err3) == nil && 0 <= first && -1 <= last && last < size
	return first, last, size, ok
}

// body delivers the bytes from next to end of one version.
type body struct {
	c    *Container
	ctx  context.Context
	name string
	etag blob.ETag
	size int64 // of the whole blob

	stream    io.ReadCloser
	next, end int64
	from      int64         // where stream began
	breaks    int           // in a row, without progress between
	broken    time.Time     // when the first of them was
	queued    time.Duration // since then, see attempts
	err       error         // sticky
}

// Read implements io.Reader. io.EOF comes after the last byte of the range and not before.
func (b *body) Read(p []byte) (int, error) {
	for {
		switch {
		case b.err != nil:
			return 0, b.err
		case b.next == b.end:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		n, err := b.stream.Read(p[:min(int64(len(p)), b.end-b.next)])
		if n > 0 {
			b.next += int64(n)
			return n, nil // an error comes again with the next read
		}
		switch {
		case err == nil:
			return 0, nil
		case err == io.EOF:
			// The answer was complete, yet shorter than it said.
			b.err = b.fail(blob.Damaged, fmt.Errorf("the body ended %d bytes early", b.end-b.next))
		default:
			b.err = b.resume(err)
		}
	}
}

// resumeGrain is what a connection has to bring before it breaks, in bytes, for the time without progress to begin anew: the
// unit in which reads are made. With a byte for each connection a download of 4 MiB would take four million requests, and
// never fail.
const resumeGrain = 64 << 10

// resume replaces the broken stream.
func (b *body) resume(cause error) error {
	if b.ctx.Err() != nil {
		return fail(b.ctx, "ReadAt", b.name, cause)
	}
	if b.next-b.from >= resumeGrain {
		b.breaks = 0
	}
	b.from = b.next
	if b.breaks == 0 {
		b.broken, b.queued = time.Now(), 0
	}
	b.breaks++
	wait := backoff(b.breaks)
	if time.Since(b.broken)-b.queued+wait > b.c.retryFor {
		return fail(b.ctx, "ReadAt", b.name, &unreachableError{cause})
	}
	b.c.log.Info("resuming a broken download", "name", b.name, "offset", b.next, "error", safe(cause))
	b.stream.Close()
	if err := sleep(b.ctx, wait); err != nil {
		return fail(b.ctx, "ReadAt", b.name, err)
	}
	part, err := b.c.get(b.ctx, b.name, b.next, b.end-b.next, blob.Condition{IfMatch: b.etag})
	if err != nil {
		return err
	}
	b.stream = part.stream
	b.queued += part.queued
	if part.properties.ETag != b.etag || part.properties.Size != b.size || part.count != b.end-b.next {
		return b.fail(blob.Damaged, errors.New("the rest is of another version, in spite of If-Match"))
	}
	return nil
}

func (b *body) fail(code blob.Code, err error) error {
	return &blob.Error{Code: code, Op: "ReadAt", Name: b.name, Err: err}
}

// Close implements io.Closer. What was not read is not waited for.
func (b *body) Close() error {
	if b.err == nil {
		b.err = b.fail(blob.Other, errors.New("the body is closed"))
	}
	return b.stream.Close()
}

// BlockList implements blob.Container.
func (c *Container) BlockList(ctx context.Context, name string) (blob.BlockList, error) {
	const op = "BlockList"
	if err := checkName(op, name); err != nil {
		return blob.BlockList{}, err
	}
	ctx, _ = withAttempts(ctx, op, name)
	list, err := c.blockList(ctx, name)
	return list, fail(ctx, op, name, err)
}

// Tags implements blob.Container.
func (c *Container) Tags(ctx context.Context, name string) (map[string]string, error) {
	const op = "Tags"
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	ctx, _ = withAttempts(ctx, op, name)
	tags, err := c.tags(ctx, name)
	return tags, fail(ctx, op, name, err)
}

// tags returns the SDK's error.
func (c *Container) tags(ctx context.Context, name string) (map[string]string, error) {
	r, err := c.client.NewBlobClient(name).GetTags(ctx, nil)
	if err != nil || len(r.BlobTagSet) == 0 {
		return nil, err
	}
	tags := make(map[string]string, len(r.BlobTagSet))
	for _, tag := range r.BlobTagSet {
		tags[text(tag.Key)] = text(tag.Value)
	}
	return tags, nil
}

func headProperties(name string, r sdkblob.GetPropertiesResponse) blob.Properties {
	return blob.Properties{
		Name:         name,
		ETag:         etag(r.ETag),
		Size:         value(r.ContentLength),
		Modified:     value(r.LastModified),
		Created:      value(r.CreationTime),
		Kind:         kind(r.BlobType),
		Tier:         text(r.AccessTier),
		VersionID:    text(r.VersionID),
		Metadata:     metadata(r.Metadata),
		TierInferred: value(r.AccessTierInferred),
		TagCount:     int(value(r.TagCount)),
		Headers: blob.Headers{
			ContentType:        text(r.ContentType),
			ContentEncoding:    text(r.ContentEncoding),
			ContentLanguage:    text(r.ContentLanguage),
			ContentDisposition: text(r.ContentDisposition),
			CacheControl:       text(r.CacheControl),
			ContentMD5:         r.ContentMD5,
		},
	}
}

// downloadProperties leaves Size and TierInferred to the caller: the response has the size of the range.
func downloadProperties(name string, r sdkblob.DownloadStreamResponse) blob.Properties {
	sum := r.BlobContentMD5 // of the whole blob, in answers with a range
	if sum == nil && r.ContentRange == nil {
		sum = r.ContentMD5
	}
	return blob.Properties{
		Name:      name,
		ETag:      etag(r.ETag),
		Modified:  value(r.LastModified),
		Created:   value(r.CreationTime),
		Kind:      kind(r.BlobType),
		Tier:      text(r.AccessTier),
		VersionID: text(r.VersionID),
		Metadata:  metadata(r.Metadata),
		TagCount:  int(value(r.TagCount)),
		Headers: blob.Headers{
			ContentType:        text(r.ContentType),
			ContentEncoding:    text(r.ContentEncoding),
			ContentLanguage:    text(r.ContentLanguage),
			ContentDisposition: text(r.ContentDisposition),
			CacheControl:       text(r.CacheControl),
			ContentMD5:         sum,
		},
	}
}

// text and value give the zero value for what the service did not say.
func text[T ~string](p *T) string {
	return string(value(p))
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// etag returns an ETag with its quotes. Headers have them, listings of the service do not.
func etag(e *azcore.ETag) blob.ETag {
	if e == nil || *e == "" {
		return ""
	}
	if s := string(*e); !strings.HasPrefix(s, `"`) && !strings.HasPrefix(s, "W/") {
		return blob.ETag(`"` + s + `"`)
	}
	return blob.ETag(*e)
}

func kind(t *sdkblob.BlobType) blob.Kind {
	switch value(t) {
	case sdkblob.BlobTypeAppendBlob:
		return blob.AppendBlob
	case sdkblob.BlobTypePageBlob:
		return blob.PageBlob
	}
	return blob.BlockBlob
}

// metadata returns names in lower case: net/http writes header names its own way ("Hdi_isfolder").
func metadata(m map[string]*string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[strings.ToLower(k)] = value(v)
	}
	return out
}
