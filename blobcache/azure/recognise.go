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
//   - it was made since the operation began, by the service's own clock, and
//   - it is what was sent. A block list has the ids, which writers choose at random, an upload the bytes, both with
//     metadata and headers. What was appended is the end of the blob. SetMetadata has sent nothing but metadata.
//
// Somebody else who wrote the very same in the same seconds cannot be told apart, and need not be: the version
// is what the caller asked for. (For SetMetadata that is so as long as who writes other content in these seconds writes
// other metadata too.) The exception is an empty blob that must not exist before. Programs use such
// blobs as locks between hosts, all writers write the same, and two of them must not both be told that they made
// it. There the refusal stands, unless the metadata tells writers apart (WriteOptions.Distinct): a lock that is reported
// as taken though it is ours is safe, and rare. A copy names its source, and with the source's ETag its content, so that an
// empty one can be recognised too.

// clockSlack is by how much two times of the service may be wrong against each other: both are of whole seconds.
const clockSlack = 2 * time.Second

// holds reports whether a version is what a write would have made.
type holds func(context.Context, blob.Properties) (bool, error)

// recognise returns the version that is there if it is what the refused write, under the condition, would have made.
func (c *Container) recognise(ctx context.Context, tries *attempts, cond blob.Condition, refused error, sent holds) (blob.Written, bool) {
	var answer *azcore.ResponseError
	if !tries.doubtful || !errors.As(refused, &answer) || answer.RawResponse == nil {
		return blob.Written{}, false
	}
	switch code := blob.CodeOf(failWrite(ctx, tries.op, tries.name, cond, refused)); code {
	case blob.Exists, blob.ConditionNotMet, blob.Busy: // Busy: of a copy that has ended since
	default:
		return blob.Written{}, false
	}
	now, err := http.ParseTime(answer.RawResponse.Header.Get("Date"))
	if err != nil {
		return blob.Written{}, false
	}
	p, err := c.Properties(ctx, tries.name, blob.Condition{})
	if err != nil {
		return blob.Written{}, false
	}
	if p.Modified.Before(now.Add(-tries.answered.Sub(tries.began) - clockSlack)) {
		return blob.Written{}, false
	}
	if ours, err := sent(ctx, p); err != nil || !ours {
		return blob.Written{}, false
	}
	c.recent.note(tries.name, p.ETag)
	c.log.Info("recognised a write whose answer was lost", "op", tries.op, "name", tries.name, "etag", p.ETag)
	return blob.Written{ETag: p.ETag, Modified: p.Modified}, true
}

// holdsUpload compares content. The service's own MD5 would spare the download, but it is the writer's when the
// writer gave one, and it says nothing that the bytes do not.
func (c *Container) holdsUpload(o blob.WriteOptions, size int64, sum uint64) holds {
	return func(ctx context.Context, p blob.Properties) (bool, error) {
		if p.Size != size || !sameOptions(p, o) {
			return false, nil
		}
		return c.holdsBytes(ctx, p, 0, size, sum)
	}
}

// holdsAppend compares the end of the blob with what was appended.
func (c *Container) holdsAppend(size, position int64, sum uint64) holds {
	return func(ctx context.Context, p blob.Properties) (bool, error) {
		if p.Kind != blob.AppendBlob || p.Size != position+size {
			return false, nil
		}
		return c.holdsBytes(ctx, p, position, size, sum)
	}
}

// holdsCopy compares the source that the service has noted. It does not note the version; but if the source is still the
// one that was to be copied, a copy that was made meanwhile is of that.
func (c *Container) holdsCopy(src string, cond blob.Condition) holds {
	return func(ctx context.Context, p blob.Properties) (bool, error) {
		if p.CopiedFrom != src || cond.IfMatch == "" || cond.IfMatch == blob.Any {
			return false, nil
		}
		now, err := c.Properties(ctx, src, blob.Condition{IfMatch: cond.IfMatch})
		return err == nil && now.Size == p.Size, err
	}
}

// holdsMetadata compares metadata.
func holdsMetadata(m map[string]string) holds {
	return func(_ context.Context, p blob.Properties) (bool, error) { return sameMetadata(p.Metadata, m), nil }
}

// holdsBytes reports whether the CRC-64 of a range is sum.
func (c *Container) holdsBytes(ctx context.Context, p blob.Properties, offset, size int64, sum uint64) (bool, error) {
	if size == 0 {
		return true, nil
	}
	b, err := c.ReadAt(ctx, p.Name, offset, size, blob.Condition{IfMatch: p.ETag})
	if err != nil {
		return false, err
	}
	defer b.Close()
	h := crc64nvme.New()
	_, err = io.Copy(h, b)
	return err == nil && h.Sum64() == sum, err
}

// holdsBlocks compares block ids.
func (c *Container) holdsBlocks(name string, o blob.WriteOptions, ids []string) holds {
	return func(ctx context.Context, p blob.Properties) (bool, error) {
		if !sameOptions(p, o) {
			return false, nil
		}
		list, err := c.BlockList(ctx, name)
		if err != nil {
			return false, err
		}
		return list.ETag == p.ETag && slices.EqualFunc(list.Committed, ids, func(b blob.Block, id string) bool { return b.ID == id }), nil
	}
}

// sameOptions leaves the tags out: they are no part of a version. It reports false for an empty blob that had to be new
// if others may write the very same.
func sameOptions(p blob.Properties, o blob.WriteOptions) bool {
	if p.Size == 0 && o.Condition.IfNoneMatch == blob.Any && !o.Distinct {
		return false
	}
	return p.Kind == o.Kind && sameMetadata(p.Metadata, o.Metadata) && sameHeaders(p.Headers, o.Headers)
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
