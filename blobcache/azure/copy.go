package azure

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"blobmount/blobcache/blob"
)

// maxSourceChanges is how often Copy looks again at a source that somebody else replaces meanwhile.
const maxSourceChanges = 5

// Copy implements blob.Container. Inside one account the service completes most copies before it answers; what
// it does not is waited for, until ctx is done.
//
// Copy Blob takes neither tier nor tags along by itself (Copy Blob From URL could, up to 256 MiB). So the source's
// properties are asked for first, which costs a round trip, and where there is a tier or a tag to carry over, the copy
// is of that very version.
func (c *Container) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	const op = "Copy"
	if err := cmp.Or(checkName(op, dst), checkName(op, src), checkOptions(op, dst, blob.Headers{}, o.Metadata)); err != nil {
		return blob.Written{}, err
	}
	ctx, tries := withAttempts(ctx, op, dst)
	var w blob.Written
	for change := 0; ; change++ {
		options, pinned, err := c.copyOptions(ctx, dst, src, o)
		if err != nil {
			return blob.Written{}, fail(ctx, op, dst, err)
		}
		if w, err = c.copyBlob(ctx, tries, dst, src, options, o); err == nil {
			break
		}
		if !pinned || change == maxSourceChanges || !sourceChanged(err) {
			return blob.Written{}, err
		}
	}
	if o.Metadata != nil && len(o.Metadata) == 0 {
		// Copy Blob takes "no metadata" for "the source's".
		return c.SetMetadata(ctx, dst, nil, blob.Condition{IfMatch: w.ETag})
	}
	return w, nil
}

// copyOptions returns what the request says, and whether it names the source's version though the caller did not.
func (c *Container) copyOptions(ctx context.Context, dst, src string, o blob.CopyOptions) (options *sdkblob.StartCopyFromURLOptions, pinned bool, err error) {
	r, err := c.head(ctx, src, blob.Condition{})
	if err != nil {
		return nil, false, err
	}
	p := headProperties(src, r)
	options = &sdkblob.StartCopyFromURLOptions{Metadata: sdkMetadata(o.Metadata), AccessConditions: c.writeConditions(dst, o.Condition)}
	// An archived blob cannot be copied, and says so. Other kinds of blob have no tier that could be chosen.
	if p.Kind == blob.BlockBlob && !p.TierInferred && p.Tier != string(sdkblob.AccessTierArchive) {
		options.Tier = tier(p.Tier)
	}
	if p.TagCount > 0 {
		if options.BlobTags, err = c.tags(ctx, src); err != nil {
			return nil, false, err
		}
	}
	if o.Source == (blob.Condition{}) && (options.Tier != nil || options.BlobTags != nil) {
		o.Source.IfMatch, pinned = p.ETag, true
	}
	options.SourceModifiedAccessConditions = sourceConditions(o.Source)
	return options, pinned, nil
}

// sourceChanged reports a failed condition on the source.
func sourceChanged(err error) bool {
	e, ok := errors.AsType[*blob.Error](err)
	return ok && e.Code == blob.ConditionNotMet &&
		(e.ServiceCode == string(bloberror.SourceConditionNotMet) || e.ServiceCode == string(bloberror.CannotVerifyCopySource))
}

// copyBlob copies, and waits until the copy is complete; o is what options were made from.
func (c *Container) copyBlob(ctx context.Context, tries *attempts, dst, src string, options *sdkblob.StartCopyFromURLOptions, o blob.CopyOptions) (blob.Written, error) {
	const op = "Copy"
	client := c.client.NewBlobClient(dst)
	r, err := client.StartCopyFromURL(context.WithValue(ctx, copySourceKey{}, copySource{name: src}), c.URL(src), options)
	if err != nil {
		if w, ok := c.recognise(ctx, tries, o.Condition, err, c.holdsCopy(src, o.Source)); ok {
			w.Doubtful = true
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, op, dst, o.Condition, err)
	}
	w, status, id := written(r.ETag, r.LastModified), value(r.CopyStatus), text(r.CopyID)
	for poll := 1; status == sdkblob.CopyStatusTypePending; poll++ {
		if err := sleep(ctx, backoff(poll)); err != nil {
			return blob.Written{}, fail(ctx, op, dst, err)
		}
		p, err := c.head(ctx, dst, blob.Condition{})
		if err != nil {
			return blob.Written{}, fail(ctx, op, dst, err)
		}
		if text(p.CopyID) != id {
			return blob.Written{}, &blob.Error{Code: blob.ConditionNotMet, Op: op, Name: dst, Err: errors.New("the destination was replaced while it was copied to")}
		}
		w, status = written(p.ETag, p.LastModified), value(p.CopyStatus)
	}
	if status != sdkblob.CopyStatusTypeSuccess {
		return blob.Written{}, &blob.Error{Code: blob.Other, Op: op, Name: dst, Err: fmt.Errorf("the copy ended with status %q", status)}
	}
	return w, nil
}

// StageBlockFrom implements blob.Container.
func (c *Container) StageBlockFrom(ctx context.Context, name, id string, src blob.Range) error {
	const op = "StageBlockFrom"
	if err := cmp.Or(checkName(op, name), checkName(op, src.Name), checkSize(op, name, src.Size, blob.MaxBlockSize)); err != nil {
		return err
	}
	if src.Offset < 0 || src.Size == 0 {
		return &blob.Error{Code: blob.InvalidRange, Op: op, Name: name, Err: fmt.Errorf("%d bytes at %d of %q", src.Size, src.Offset, src.Name)}
	}
	ctx, _ = withAttempts(ctx, op, name)
	from := context.WithValue(ctx, copySourceKey{}, copySource{name: src.Name, asClient: true})
	_, err := c.client.NewBlockBlobClient(name).StageBlockFromURL(from, encodeID(id), c.URL(src.Name), &blockblob.StageBlockFromURLOptions{
		Range:                          sdkblob.HTTPRange{Offset: src.Offset, Count: src.Size},
		SourceModifiedAccessConditions: sourceConditions(src.Condition),
		LeaseAccessConditions:          c.leaseCondition(name),
	})
	return failWrite(ctx, op, name, blob.Condition{}, err)
}
