package azure

import (
	"context"
	"errors"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blob"
)

// List implements blob.Container.
func (c *Container) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	const op = "List"
	if !utf8.ValidString(o.Prefix) {
		return blob.Page{}, &blob.Error{Code: blob.InvalidName, Op: op, Name: o.Prefix, Err: errors.New("prefix is not UTF-8")}
	}
	ctx, _ = withAttempts(ctx, op, o.Prefix)
	page, err := c.page(ctx, o)
	if err == nil {
		return page, nil
	}
	err = fail(ctx, op, o.Prefix, err)
	// A listing names no blob: 404 without an error code that we know is about the container.
	if e, ok := errors.AsType[*blob.Error](err); ok && e.Code == blob.NotFound {
		e.Code = blob.ContainerNotFound
	}
	return blob.Page{}, err
}

// page asks for one page. The SDK's pagers are used for their first page only, since the contract's marker goes
// through the caller.
func (c *Container) page(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	include := container.ListBlobsInclude{Metadata: true}
	prefix, marker := optional(o.Prefix), optional(o.Marker)
	var limit *int32
	if o.MaxResults > 0 {
		limit = new(int32(min(o.MaxResults, maxResults)))
	}
	if o.Delimiter == "" {
		r, err := c.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
			Include: include, Prefix: prefix, Marker: marker, MaxResults: limit,
			ResponseFormat: container.StorageResponseFormatXML,
		}).NextPage(ctx)
		if err != nil || r.Segment == nil {
			return blob.Page{}, err
		}
		return blob.Page{Blobs: items(r.Segment.BlobItems), Next: text(r.NextMarker)}, nil
	}
	r, err := c.client.NewListBlobsHierarchyPager(o.Delimiter, &container.ListBlobsHierarchyOptions{
		Include: include, Prefix: prefix, Marker: marker, MaxResults: limit,
		ResponseFormat: container.StorageResponseFormatXML,
	}).NextPage(ctx)
	if err != nil || r.Segment == nil {
		return blob.Page{}, err
	}
	page := blob.Page{Blobs: items(r.Segment.BlobItems), Next: text(r.NextMarker)}
	for _, p := range r.Segment.BlobPrefixes {
		page.Prefixes = append(page.Prefixes, text(p.Name))
	}
	return page, nil
}

// maxResults is the service's own bound ("List Blobs", maxresults).
const maxResults = 5000

func items(in []*container.BlobItem) []blob.Properties {
	if len(in) == 0 {
		return nil
	}
	out := make([]blob.Properties, 0, len(in))
	for _, i := range in {
		p := value(i.Properties)
		out = append(out, blob.Properties{
			Name:         text(i.Name),
			ETag:         etag(p.ETag),
			Size:         value(p.ContentLength),
			Modified:     value(p.LastModified),
			Created:      value(p.CreationTime),
			Kind:         kind(p.BlobType),
			Tier:         text(p.AccessTier),
			VersionID:    text(i.VersionID),
			Metadata:     metadata(i.Metadata),
			TierInferred: value(p.AccessTierInferred),
			TagCount:     int(value(p.TagCount)),
			Headers: blob.Headers{
				ContentType:        text(p.ContentType),
				ContentEncoding:    text(p.ContentEncoding),
				ContentLanguage:    text(p.ContentLanguage),
				ContentDisposition: text(p.ContentDisposition),
				CacheControl:       text(p.CacheControl),
				ContentMD5:         p.ContentMD5,
			},
		})
	}
	return out
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
