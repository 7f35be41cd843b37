package blobcache

import (
	"context"
	"errors"

	"blobmount/blobcache/blob"
)

// takeBack deletes the copies. One whose source is not there any more stays: it may be the only one. So does one whose
// answer was lost, if the new name is not claimed any more: it may be another host's.
func (d *dirRename) takeBack(ctx context.Context) error {
	err := d.holdClaim(ctx)
	switch {
	case err == nil:
	case !errors.Is(err, ErrRenaming):
		return d.postponed("copies remain under the new name, and all is under the old one", err)
	case d.copied.Load() > 0:
		d.c.log.Warn("the new name of a directory that cannot be renamed was taken or removed meanwhile: "+
			"copies stay there of which it is not certain whose they are", "from", d.From, "to", d.To)
	}
	err = d.pages(func(_ int64, blobs []renamedBlob) error {
		return inParallel(ctx, len(blobs), func(ctx context.Context, i int) error { return d.takeOneBack(ctx, blobs[i]) })
	})
	if err == nil {
		err = d.unclaim(ctx)
	}
	if err != nil {
		return d.postponed("copies remain under the new name, and all is under the old one", err)
	}
	d.end()
	d.c.log.Warn("directory was not renamed: all is under the old name", "from", d.From, "to", d.To)
	return nil
}

func (d *dirRename) takeOneBack(ctx context.Context, b renamedBlob) error {
	etag := b.copy.ETag
	switch {
	case b.done && etag == "", d.claimed == "" && (!b.done || b.found):
		return nil
	case !b.done: // its answer may have been lost
		p, ours, err := d.isCopy(ctx, b)
		if err != nil {
			return err
		}
		if !ours {
			if p.ETag != "" {
				d.c.log.Warn("a blob under the new name was not made by the rename, and stays", "blob", d.To+b.name)
			}
			return nil
		}
		etag = p.ETag
	}
	if _, err := d.cont.Properties(ctx, d.From+b.name, blob.Condition{}); err != nil {
		if !blob.Is(err, blob.NotFound) {
			return err
		}
		d.c.log.Warn("copy stays under the new name: the source of a rename that failed is not there any more",
			"blob", d.To+b.name)
		return nil
	}
	err := d.cont.Delete(ctx, d.To+b.name, blob.Condition{IfMatch: etag})
	if blob.Is(err, blob.NotFound) || blob.Is(err, blob.ConditionNotMet) {
		return nil // deleted, or changed by somebody else, whose it is now
	}
	return err
}
