package azure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"blobmount/blobcache/blob"
)

// maxSourceChanges is how often Copy looks again at a source that somebody else replaces meanwhile.
const maxSourceChanges = 5

// Copy implements blob.Container. Inside one account the service completes most copies before it answers; what
// it does not is waited for, as long as it goes on.
//
// Copy Blob takes neither tier nor tags along by itself (Copy Blob From URL could, up to 256 MiB). So the source's
// properties are asked for first, which costs a round trip, and where there is a tier or a tag to carry over, the copy
// is of that very version.
func (c *Container) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	const op = "Copy"
	if err := cmp.Or(checkName(op, dst), checkName(op, src), checkOptions(op, dst, blob.Headers{}, o.Metadata)); err != nil {
		return blob.Written{}, err
	}
	outer := ctx
	ctx, tries := withAttempts(ctx, op, dst)
	// Without the source's version a copy that is there cannot be known as ours, and is made again.
	tries.looks = o.Condition == (blob.Condition{}) && o.Source.IfMatch != "" && o.Source.IfMatch != blob.Any
	asked := o.Condition
	before := c.recent.etag(dst)
	var w blob.Written
	for change := 0; ; {
		options, pinned, err := c.copyOptions(outer, dst, src, o)
		if err != nil {
			return blob.Written{}, fail(ctx, op, dst, err)
		}
		if w, err = c.copyBlob(ctx, tries, dst, src, options, o); err == nil {
			break
		}
		switch {
		case tries.looks && tries.doubtful:
			tries.looks = false
			if o.Condition, w, err = c.destination(outer, tries, dst, src, o.Source, before, err); err != nil {
				return blob.Written{}, err
			}
		case pinned && change < maxSourceChanges && sourceChanged(err):
			change++
		case asked != o.Condition && blob.Is(err, blob.Exists):
			return blob.Written{}, fail(ctx, op, dst, errReplaced) // the caller did not mind that it exists
		default:
			return blob.Written{}, err
		}
		if w.ETag != "" {
			break
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
	ctx, _ = withAttempts(ctx, "Copy", dst) // what becomes of these requests leaves nothing open
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

// destination looks what is there before a copy without a condition is repeated, of which a try may have succeeded: what
// another host has written over it meanwhile is not to be lost. It returns the copy if it is there, else the condition that
// what is there must be what the copy was to replace; before is the version that was made here just before. It fails if
// somebody else has written since the copy began, and with failed when there is no time left.
func (c *Container) destination(ctx context.Context, tries *attempts, dst, src string, source blob.Condition, before blob.ETag, failed error) (blob.Condition, blob.Written, error) {
	no := func(err error) (blob.Condition, blob.Written, error) {
		return blob.Condition{}, blob.Written{}, fail(ctx, tries.op, dst, err)
	}
	wait := backoff(1)
	if ctx.Err() != nil || time.Since(tries.began)-tries.queued+wait > c.retryFor {
		return blob.Condition{}, blob.Written{}, failed
	}
	if err := sleep(ctx, wait); err != nil {
		return no(err)
	}
	ctx, _ = withAttempts(ctx, tries.op, dst)
	p, err := c.head(ctx, dst, blob.Condition{})
	since := time.Since(tries.began)
	if err != nil {
		if blob.Is(fail(ctx, tries.op, dst, err), blob.NotFound) {
			return blob.Condition{IfNoneMatch: blob.Any}, blob.Written{}, nil
		}
		return no(err)
	}
	found := etag(p.ETag)
	if found == before || p.Date != nil && value(p.LastModified).Before(p.Date.Add(-since-clockSlack)) {
		return blob.Condition{IfMatch: found}, blob.Written{}, nil
	}
	if value(p.CopyStatus) == sdkblob.CopyStatusTypePending && c.nameIn(text(p.CopySource)) == src {
		if p, err = c.awaitCopy(ctx, dst, text(p.CopyID)); err != nil {
			return no(err)
		}
	}
	if ours, err := c.holdsCopy(src, source)(ctx, c.properties(dst, p)); err != nil || !ours {
		return no(cmp.Or(err, errReplaced))
	}
	c.log.Info("recognised a write whose answer was lost", "op", tries.op, "name", dst, "etag", p.ETag)
	w := written(p.ETag, p.LastModified)
	w.Doubtful = true
	return blob.Condition{}, w, nil
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
	r, err := c.client.NewBlobClient(dst).StartCopyFromURL(context.WithValue(ctx, copySourceKey{}, copySource{name: src}), c.URL(src), options)
	if err != nil {
		if err := c.settleCopy(ctx, tries, dst, src, failWrite(ctx, op, dst, o.Condition, err)); err != nil {
			return blob.Written{}, fail(ctx, op, dst, err)
		}
		if w, ok := c.recognise(ctx, tries, o.Condition, err, c.holdsCopy(src, o.Source)); ok {
			w.Doubtful = true
			return w, nil
		}
		return blob.Written{}, failWrite(ctx, op, dst, o.Condition, err)
	}
	w, status := written(r.ETag, r.LastModified), value(r.CopyStatus)
	if status == sdkblob.CopyStatusTypePending {
		p, err := c.awaitCopy(ctx, dst, text(r.CopyID))
		if err != nil {
			return blob.Written{}, fail(ctx, op, dst, err)
		}
		w, status = written(p.ETag, p.LastModified), value(p.CopyStatus)
	}
	if status != sdkblob.CopyStatusTypeSuccess {
		return blob.Written{}, &blob.Error{Code: blob.Other, Op: op, Name: dst, Err: fmt.Errorf("the copy ended with status %q", status)}
	}
	c.recent.note(dst, w.ETag)
	return w, nil
}

// settleCopy waits for a copy of the same source that stands in the way of one that was refused: our own of a try whose
// answer was lost, or one that an earlier process has begun. Only a copy that has ended can be known as what was wanted.
func (c *Container) settleCopy(ctx context.Context, tries *attempts, dst, src string, refused error) error {
	switch blob.CodeOf(refused) {
	case blob.Exists, blob.ConditionNotMet, blob.Busy:
	default:
		return nil
	}
	if sourceChanged(refused) && !tries.doubtful {
		return nil // it says nothing about the destination
	}
	ctx, _ = withAttempts(ctx, tries.op, dst)
	p, err := c.head(ctx, dst, blob.Condition{})
	if err != nil || value(p.CopyStatus) != sdkblob.CopyStatusTypePending || c.nameIn(text(p.CopySource)) != src {
		return nil // the refusal stands
	}
	_, err = c.awaitCopy(ctx, dst, text(p.CopyID))
	return err
}

// errCopyStands says that a pending copy does not move. What is there of it stays, and may still be completed: to abort it
// would leave an empty blob under the name.
var errCopyStands = errors.New("the service has begun to copy, and does not go on")

// awaitCopy polls a pending copy until it has ended. The service promises no time for it, and goes on trying for two weeks
// ("Copy Blob"): so it may take any time while x-ms-copy-progress moves, and RetryFor without that. Its error is one for
// fail.
func (c *Container) awaitCopy(ctx context.Context, dst, id string) (sdkblob.GetPropertiesResponse, error) {
	watch := stall{limit: c.retryFor, moved: time.Now()}
	if watch.limit < 0 {
		watch.limit = DefaultRetryFor // to wait is not to try again
	}
	progress := ""
	for poll := 1; ; poll++ {
		wait := backoff(poll)
		if watch.over(time.Now(), wait, progress) {
			return sdkblob.GetPropertiesResponse{}, &unreachableError{errCopyStands}
		}
		if err := sleep(ctx, wait); err != nil {
			return sdkblob.GetPropertiesResponse{}, err
		}
		p, err := c.head(ctx, dst, blob.Condition{})
		switch {
		case err != nil:
			return p, err
		case text(p.CopyID) != id:
			return p, errReplaced
		case value(p.CopyStatus) != sdkblob.CopyStatusTypePending:
			return p, nil
		}
		progress = text(p.CopyProgress)
	}
}

// stall tells when something that takes its time does not move.
type stall struct {
	limit    time.Duration
	progress string
	moved    time.Time
}

// over notes the progress of now, and reports whether there is no point in another wait.
func (s *stall) over(now time.Time, wait time.Duration, progress string) bool {
	if progress != s.progress {
		s.progress, s.moved = progress, now
	}
	return now.Sub(s.moved)+wait > s.limit
}

// errReplaced says that what was being made is not there any more.
var errReplaced = errors.New("the destination was replaced while it was copied to")

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
