package blobcache

import (
	"context"

	"blobmount/blobcache/blob"
)

// takeBack deletes the copies. One whose source is not there any more stays: it may be the only one.
func (d *dirRename) takeBack(ctx context.Context) error {
	err := d.pages(func(_ int64, blobs []renamedBlob) error {
		return inParallel(ctx, len(blobs), func(ctx context.Context, i int) error { return d.takeOneBack(ctx, blobs[i]) })
	})
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
	case b.done && etag == "":
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
