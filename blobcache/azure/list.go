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

// page asks for one page. The SDK's pagers are used to make the request: the contract's marker goes through the caller,
// and the answer is read by pageReader.
func (c *Container) page(ctx context.Context, o blob.ListOptions) (page blob.Page, err error) {
	ctx = context.WithValue(ctx, pageKey{}, &page)
	include := container.ListBlobsInclude{Metadata: true}
	prefix, marker := optional(o.Prefix), optional(o.Marker)
	var limit *int32
	if o.MaxResults > 0 {
		limit = new(int32(min(o.MaxResults, maxResults)))
	}
	if o.Delimiter == "" {
		_, err = c.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
			Include: include, Prefix: prefix, Marker: marker, MaxResults: limit,
			ResponseFormat: container.StorageResponseFormatXML,
		}).NextPage(ctx)
	} else {
		_, err = c.client.NewListBlobsHierarchyPager(o.Delimiter, &container.ListBlobsHierarchyOptions{
			Include: include, Prefix: prefix, Marker: marker, MaxResults: limit,
			ResponseFormat: container.StorageResponseFormatXML,
		}).NextPage(ctx)
	}
	return page, err
}

// maxResults is the service's own bound ("List Blobs", maxresults).
const maxResults = 5000

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
