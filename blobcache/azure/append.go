package azure

import (
	"cmp"
	"context"
	"errors"
	"io"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/appendblob"
	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"blobmount/blobcache/blob"
)

// createAppend is Upload of an append blob, which begins empty.
func (c *Container) createAppend(ctx context.Context, name string, o blob.WriteOptions) (blob.Written, error) {
	ctx, tries := withAttempts(ctx, "Upload", name)
	r, err := c.client.NewAppendBlobClient(name).Create(ctx, &appendblob.CreateOptions{
		HTTPHeaders:      httpHeaders(o.Headers),
		Metadata:         sdkMetadata(o.Metadata),
		Tags:             o.Tags,
		AccessConditions: c.writeConditions(name, o.Condition),
	})
	if err != nil {
		if w, ok := c.recognise(ctx, tries, o.Condition, err, c.holdsUpload(o, 0, 0)); ok {
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, "Upload", name, o.Condition, err)
	}
	return c.made(name, r.ETag, r.LastModified), nil
}

// AppendBlock implements blob.Container. The position makes a repetition harmless: what was appended by a try whose
// answer was lost is not appended twice.
func (c *Container) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, position int64, cond blob.Condition) (blob.Written, error) {
	const op = "AppendBlock"
	if err := cmp.Or(checkName(op, name), checkSize(op, name, size, blob.MaxAppendSize)); err != nil {
		return blob.Written{}, err
	}
	if size == 0 || position < 0 {
		return blob.Written{}, &blob.Error{Code: blob.Other, Op: op, Name: name, Err: errors.New("a block needs a byte at least, and a position")}
	}
	ctx, tries := withAttempts(ctx, op, name)
	in := &upload{source: body, size: size}
	var r appendblob.AppendBlockResponse
	sum, err := c.protect(ctx, in, func(check sdkblob.TransferValidationType) (err error) {
		r, err = c.client.NewAppendBlobClient(name).AppendBlock(ctx, in, &appendblob.AppendBlockOptions{
			TransactionalValidation:        check,
			AppendPositionAccessConditions: &appendblob.AppendPositionAccessConditions{AppendPosition: &position},
			AccessConditions:               c.writeConditions(name, cond),
		})
		return err
	})
	if err != nil {
		if w, ok := c.recognise(ctx, tries, cond, err, c.holdsAppend(size, position, sum)); ok {
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, op, name, blob.Condition{}, err)
	}
	if err := checkEcho(op, name, r.ContentCRC64, sum); err != nil {
		return blob.Written{}, err
	}
	return c.made(name, r.ETag, r.LastModified), nil
}
