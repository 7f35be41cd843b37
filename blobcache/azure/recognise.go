package azure

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/minio/crc64nvme"

	"blobmount/blobcache/blob"
)

// A conditional write whose first answer was lost is refused when it is repeated: by then the blob exists, or
// has the ETag that the lost answer named. Nothing that the service stores names the request that made a version
// (x-ms-client-request-id goes to its log only), and a mark of ours in the metadata would show in every blob. So
// the version that is there is taken for ours when
//
//   - a try failed in a way that leaves open whether the service acted (a refusal of the first try is final),
//   - it was made since the operation began, by the service's own clock,
//   - metadata and headers are what was sent, and
//   - the content is: for a block list the ids, which writers choose at random; for an upload the bytes.
//
// Somebody else who wrote the very same in the same seconds cannot be told apart, and need not be: the version
// is what the caller asked for. The exception is an empty blob that must not exist before. Programs use such
// blobs as locks between hosts, all writers write the same, and two of them must not both be told that they made
// it. There the refusal stands: a lock that is reported as taken though it is ours is safe, and rare.

// recognise returns the version that is there if it is what the refused write would have made.
func (c *Container) recognise(ctx context.Context, tries *attempts, o blob.WriteOptions, refused error,
	holds func(context.Context, blob.Properties) (bool, error)) (blob.Written, bool) {

	var answer *azcore.ResponseError
	if !tries.doubtful || o.Condition == (blob.Condition{}) || !errors.As(refused, &answer) || answer.RawResponse == nil {
		return blob.Written{}, false
	}
	switch code := blob.CodeOf(failWrite(ctx, tries.op, tries.name, o.Condition, refused)); code {
	case blob.Exists, blob.ConditionNotMet:
	default:
		return blob.Written{}, false
	}
	now, err := http.ParseTime(answer.RawResponse.Header.Get("Date"))
	if err != nil {
		return blob.Written{}, false
	}
	p, err := c.Properties(ctx, tries.name, blob.Condition{})
	if err != nil || p.Size == 0 && o.Condition.IfNoneMatch == blob.Any {
		return blob.Written{}, false
	}
	// Both times are of whole seconds.
	if p.Modified.Before(now.Add(-time.Since(tries.began) - 2*time.Second)) {
		return blob.Written{}, false
	}
	if !sameMetadata(p.Metadata, o.Metadata) || !sameHeaders(p.Headers, o.Headers) {
		return blob.Written{}, false
	}
	if ours, err := holds(ctx, p); err != nil || !ours {
		return blob.Written{}, false
	}
	c.log.Info("recognised a write whose answer was lost", "op", tries.op, "name", tries.name, "etag", p.ETag)
	return blob.Written{ETag: p.ETag, Modified: p.Modified}, true
}

// holdsUpload compares content. The service's own MD5 would spare the download, but it is the writer's when the
// writer gave one, and it says nothing that the bytes do not.
func (c *Container) holdsUpload(name string, size int64, sum uint64) func(context.Context, blob.Properties) (bool, error) {
	return func(ctx context.Context, p blob.Properties) (bool, error) {
		if p.Size != size || size == 0 {
			return p.Size == size, nil
		}
		b, err := c.ReadAt(ctx, name, 0, size, blob.Condition{IfMatch: p.ETag})
		if err != nil {
			return false, err
		}
		defer b.Close()
		h := crc64nvme.New()
		_, err = io.Copy(h, b)
		return err == nil && h.Sum64() == sum, err
	}
}

// holdsBlocks compares block ids.
func (c *Container) holdsBlocks(name string, ids []string) func(context.Context, blob.Properties) (bool, error) {
	return func(ctx context.Context, p blob.Properties) (bool, error) {
		list, err := c.BlockList(ctx, name)
		if err != nil {
			return false, err
		}
		return list.ETag == p.ETag && slices.EqualFunc(list.Committed, ids, func(b blob.Block, id string) bool { return b.ID == id }), nil
	}
}

func sameMetadata(got, sent map[string]string) bool {
	lower := make(map[string]string, len(sent))
	for k, v := range sent {
		lower[strings.ToLower(k)] = v
	}
	return maps.Equal(got, lower)
}

// sameHeaders ignores what the service fills in by itself: a content type and an MD5 where the writer gave none.
func sameHeaders(got, sent blob.Headers) bool {
	if sent.ContentType == "" {
		sent.ContentType = got.ContentType
	}
	if len(sent.ContentMD5) == 0 {
		sent.ContentMD5 = got.ContentMD5
	}
	return got.ContentType == sent.ContentType && slices.Equal(got.ContentMD5, sent.ContentMD5) &&
		got.ContentEncoding == sent.ContentEncoding && got.ContentLanguage == sent.ContentLanguage &&
		got.ContentDisposition == sent.ContentDisposition && got.CacheControl == sent.CacheControl
}
