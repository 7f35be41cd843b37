package azure

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"blobmount/blobcache/blob"
)

// Upload implements blob.Container.
func (c *Container) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	const op = "Upload"
	if err := cmp.Or(checkName(op, name), checkOptions(op, name, o.Headers, o.Metadata), checkSize(op, name, size, blob.MaxUploadSize)); err != nil {
		return blob.Written{}, err
	}
	switch {
	case o.Kind == blob.BlockBlob:
	case o.Kind == blob.AppendBlob && size == 0 && o.Tier == "":
		return c.createAppend(ctx, name, o)
	default:
		return blob.Written{}, &blob.Error{Code: blob.Unsupported, Op: op, Name: name,
			Err: errors.New("only block blobs, and append blobs without content and tier, can be uploaded")}
	}
	ctx, tries := withAttempts(ctx, op, name)
	in := &upload{source: body, size: size}
	var r blockblob.UploadResponse
	sum, err := c.protect(ctx, in, func(check sdkblob.TransferValidationType) (err error) {
		r, err = c.client.NewBlockBlobClient(name).Upload(ctx, in, &blockblob.UploadOptions{
			HTTPHeaders:             httpHeaders(o.Headers),
			Metadata:                sdkMetadata(o.Metadata),
			Tier:                    tier(o.Tier),
			Tags:                    o.Tags,
			AccessConditions:        c.writeConditions(name, o.Condition),
			TransactionalValidation: check,
		})
		return err
	})
	if err != nil {
		if w, ok := c.recognise(ctx, tries, o.Condition, err, c.holdsUpload(o, size, sum)); ok {
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, op, name, o.Condition, err)
	}
	if err := checkEcho(op, name, r.ContentCRC64, sum); err != nil {
		return blob.Written{}, err
	}
	return c.made(name, r.ETag, r.LastModified), nil
}

// StageBlock implements blob.Container.
func (c *Container) StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error {
	const op = "StageBlock"
	if err := cmp.Or(checkName(op, name), checkSize(op, name, size, blob.MaxBlockSize)); err != nil {
		return err
	}
	ctx, _ = withAttempts(withFileBody(ctx, body), op, name)
	in := &upload{source: body, size: size}
	var r blockblob.StageBlockResponse
	sum, err := c.protect(ctx, in, func(check sdkblob.TransferValidationType) (err error) {
		r, err = c.client.NewBlockBlobClient(name).StageBlock(ctx, encodeID(id), in, &blockblob.StageBlockOptions{
			TransactionalValidation: check, LeaseAccessConditions: c.leaseCondition(name),
		})
		return err
	})
	if err != nil {
		return fail(ctx, op, name, err)
	}
	return checkEcho(op, name, r.ContentCRC64, sum)
}

// CommitBlockList implements blob.Container.
func (c *Container) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	const op = "CommitBlockList"
	if err := cmp.Or(checkName(op, name), checkOptions(op, name, o.Headers, o.Metadata)); err != nil {
		return blob.Written{}, err
	}
	if o.Kind != blob.BlockBlob {
		return blob.Written{}, &blob.Error{Code: blob.Unsupported, Op: op, Name: name, Err: errors.New("only block blobs consist of blocks")}
	}
	if len(ids) > blob.MaxBlocks {
		return blob.Written{}, &blob.Error{Code: blob.TooLarge, Op: op, Name: name, Err: fmt.Errorf("%d blocks, the service takes %d", len(ids), blob.MaxBlocks)}
	}
	ctx, tries := withAttempts(ctx, op, name)
	encoded := make([]string, len(ids))
	for i, id := range ids {
		encoded[i] = encodeID(id)
	}
	// The SDK names every block as Latest: uncommitted first, then committed, as the contract says.
	r, err := c.client.NewBlockBlobClient(name).CommitBlockList(ctx, encoded, &blockblob.CommitBlockListOptions{
		HTTPHeaders:      httpHeaders(o.Headers),
		Metadata:         sdkMetadata(o.Metadata),
		Tier:             tier(o.Tier),
		Tags:             o.Tags,
		AccessConditions: c.writeConditions(name, o.Condition),
	})
	if err != nil {
		if w, ok := c.recognise(ctx, tries, o.Condition, err, c.holdsBlocks(name, o, ids)); ok {
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, op, name, o.Condition, err)
	}
	return c.made(name, r.ETag, r.LastModified), nil
}

// SetMetadata implements blob.Container.
func (c *Container) SetMetadata(ctx context.Context, name string, m map[string]string, cond blob.Condition) (blob.Written, error) {
	const op = "SetMetadata"
	if err := cmp.Or(checkName(op, name), checkOptions(op, name, blob.Headers{}, m)); err != nil {
		return blob.Written{}, err
	}
	ctx, tries := withAttempts(ctx, op, name)
	r, err := c.client.NewBlobClient(name).SetMetadata(ctx, sdkMetadata(m), &sdkblob.SetMetadataOptions{AccessConditions: c.writeConditions(name, cond)})
	if err != nil {
		if w, ok := c.recognise(ctx, tries, cond, err, holdsMetadata(m)); ok {
			w.Doubtful = true
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, op, name, blob.Condition{}, err)
	}
	return c.made(name, r.ETag, r.LastModified), nil
}

// blockList returns the SDK's error.
func (c *Container) blockList(ctx context.Context, name string) (blob.BlockList, error) {
	r, err := c.client.NewBlockBlobClient(name).GetBlockList(ctx, blockblob.BlockListTypeAll, nil)
	if err != nil {
		return blob.BlockList{}, err
	}
	var list blob.BlockList
	if list.Committed, err = blocks(r.CommittedBlocks); err != nil {
		return blob.BlockList{}, err
	}
	if list.Uncommitted, err = blocks(r.UncommittedBlocks); err != nil {
		return blob.BlockList{}, err
	}
	list.ETag = etag(r.ETag)
	return list, nil
}

func blocks(in []*blockblob.Block) ([]blob.Block, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]blob.Block, len(in))
	for i, b := range in {
		id, err := base64.StdEncoding.DecodeString(text(b.Name))
		if err != nil {
			return nil, fmt.Errorf("block id %q is not base64", text(b.Name))
		}
		out[i] = blob.Block{ID: string(id), Size: value(b.Size)}
	}
	return out, nil
}

func encodeID(id string) string { return base64.StdEncoding.EncodeToString([]byte(id)) }

// made is written for a version of a name, and remembers it.
func (c *Container) made(name string, e *azcore.ETag, modified *time.Time) blob.Written {
	w := written(e, modified)
	c.recent.note(name, w.ETag)
	return w
}

func written(e *azcore.ETag, modified *time.Time) blob.Written {
	return blob.Written{ETag: etag(e), Modified: value(modified)}
}

// upload is the body of a request: the first size bytes of the source. It is not for parallel use; the pipeline
// sees to that (see gate).
type upload struct {
	source io.ReadSeeker
	size   int64
	pos    int64
	placed bool // the source stands at pos
}

var _ io.ReadSeekCloser = (*upload)(nil)

func (u *upload) Read(p []byte) (int, error) {
	if u.pos >= u.size {
		return 0, io.EOF
	}
	if !u.placed {
		if _, err := u.source.Seek(u.pos, io.SeekStart); err != nil {
			return 0, &bodyError{err}
		}
		u.placed = true
	}
	n, err := u.source.Read(p[:min(int64(len(p)), u.size-u.pos)])
	u.pos += int64(n)
	switch {
	case err == nil || n > 0: // an error comes again with the next read
		return n, nil
	case err == io.EOF:
		return 0, &bodyError{fmt.Errorf("it ends after %d of %d bytes", u.pos, u.size)}
	default:
		return 0, &bodyError{err}
	}
}

func (u *upload) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += u.pos
	case io.SeekEnd:
		offset += u.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	u.pos, u.placed = offset, false
	return offset, nil
}

// Close does nothing: the source is the caller's.
func (u *upload) Close() error { return nil }

func checkSize(op, name string, size, limit int64) error {
	if size > limit {
		return &blob.Error{Code: blob.TooLarge, Op: op, Name: name, Err: fmt.Errorf("%d bytes, the service takes %d", size, limit)}
	}
	if size < 0 {
		return &blob.Error{Code: blob.Other, Op: op, Name: name, Err: fmt.Errorf("size %d", size)}
	}
	return nil
}

// checkOptions refuses what a HTTP header cannot carry, or would carry changed: such a request fails on the way
// out, looks like a broken connection, and would be repeated. The rules for metadata are those of "Setting and
// retrieving properties and metadata for Blob service resources".
func checkOptions(op, name string, h blob.Headers, m map[string]string) error {
	refuse := func(format string, args ...any) error {
		return &blob.Error{Code: blob.Other, Op: op, Name: name, Err: fmt.Errorf(format, args...)}
	}
	for k, v := range m {
		if !identifier(k) {
			return refuse("metadata name %q is no identifier of ASCII letters, digits and _", k)
		}
		if !headerValue(v) {
			return refuse("the value of metadata %q cannot be a HTTP header: printable ASCII without space at the ends", k)
		}
	}
	for _, v := range []string{h.ContentType, h.ContentEncoding, h.ContentLanguage, h.ContentDisposition, h.CacheControl} {
		if !headerValue(v) {
			return refuse("header value %q: must be printable ASCII without space at the ends", v)
		}
	}
	return nil
}

func identifier(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if s[i] != '_' && (c < 'a' || c > 'z') && (i == 0 || s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return s != ""
}

func headerValue(s string) bool {
	for i := range len(s) {
		if s[i] != '\t' && (s[i] < ' ' || s[i] > '~') {
			return false
		}
	}
	return s == strings.Trim(s, " \t")
}

func httpHeaders(h blob.Headers) *sdkblob.HTTPHeaders {
	return &sdkblob.HTTPHeaders{
		BlobContentType:        optional(h.ContentType),
		BlobContentEncoding:    optional(h.ContentEncoding),
		BlobContentLanguage:    optional(h.ContentLanguage),
		BlobContentDisposition: optional(h.ContentDisposition),
		BlobCacheControl:       optional(h.CacheControl),
		BlobContentMD5:         h.ContentMD5,
	}
}

func sdkMetadata(m map[string]string) map[string]*string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]*string, len(m))
	for k, v := range m {
		out[k] = &v
	}
	return out
}

func tier(s string) *sdkblob.AccessTier {
	if s == "" {
		return nil
	}
	return new(sdkblob.AccessTier(s))
}
