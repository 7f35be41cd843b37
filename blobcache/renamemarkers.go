package blobcache

import (
	"context"

	"blobmount/blobcache/blob"
)

// moveMarkers gives the new directory the markers of the old one, and no others.
func (d *dirRename) moveMarkers(ctx context.Context) error {
	h := &d.state.renameHeader
	target := h.Target
	if d.claimed != "" {
		target[1] = d.claimed
	}
	for i, end := range markers {
		if h.Source[i] == "" {
			continue
		}
		src, dst := d.From+end, d.To+end
		p, copied, err := d.copyMarker(ctx, src, dst, h.Source[i], target[i])
		if err != nil {
			return err
		}
		if i == 0 {
			d.marker = p
		}
		err = d.cont.Delete(ctx, src, blob.Condition{IfMatch: copied})
		switch {
		case blob.Is(err, blob.ConditionNotMet):
			d.changed.Add(1)
			d.c.log.Warn("another writer has changed a directory while it was renamed: it stays under the old name too", "from", src, "to", dst)
		case err != nil && !blob.Is(err, blob.NotFound):
			return err
		}
	}
	for i, end := range markers {
		if h.Source[i] != "" || target[i] == "" {
			continue
		}
		// Of the empty directory that is replaced, or the claim.
		err := d.cont.Delete(ctx, d.To+end, blob.Condition{IfMatch: target[i]})
		if err != nil && !blob.Is(err, blob.NotFound) && !blob.Is(err, blob.ConditionNotMet) {
			return err
		}
	}
	if h.Stale == "" {
		return nil
	}
	err := d.cont.Delete(ctx, d.From+"/", blob.Condition{IfMatch: h.Stale})
	if blob.Is(err, blob.NotFound) || blob.Is(err, blob.ConditionNotMet) {
		return nil
	}
	return err
}

// copyMarker copies a marker over another one, or to a free name if there was none: as it is now if it was changed since
// it was looked for, or an empty directory would be nowhere. It returns the one that is there then, without a name if there
// is none, or a blob that is no marker; and the version that was copied, so that the source may be deleted.
func (d *dirRename) copyMarker(ctx context.Context, src, dst string, source, target blob.ETag) (blob.Properties, blob.ETag, error) {
	o := blob.CopyOptions{Source: blob.Condition{IfMatch: source}, Condition: blob.Condition{IfMatch: target}}
	if target == "" {
		o.Condition.IfNoneMatch = blob.Any
	}
	for try := 1; ; try++ {
		_, err := d.cont.Copy(ctx, dst, src, o)
		code := blob.CodeOf(err)
		if err == nil {
			source = o.Source.IfMatch
			break
		}
		if code != blob.Exists && code != blob.ConditionNotMet && code != blob.NotFound {
			return blob.Properties{}, "", err
		}
		// It was copied before, or somebody has changed either end. After days the marker may be another directory's.
		if code != blob.ConditionNotMet || d.late {
			break
		}
		now, perr := d.cont.Properties(ctx, src, blob.Condition{})
		if perr != nil && !blob.Is(perr, blob.NotFound) {
			return blob.Properties{}, "", perr
		}
		if perr != nil || now.Size > 0 {
			break
		}
		if try == sourceTries {
			return blob.Properties{}, "", err
		}
		if now.ETag == o.Source.IfMatch {
			_, perr := d.cont.Properties(ctx, dst, blob.Condition{})
			if perr == nil {
				break
			}
			if !blob.Is(perr, blob.NotFound) {
				return blob.Properties{}, "", perr
			}
			o.Condition = blob.Condition{IfNoneMatch: blob.Any} // the empty directory was removed that this was to replace
		}
		o.Source.IfMatch = now.ETag
	}
	p, err := d.cont.Properties(ctx, dst, blob.Condition{})
	switch {
	case blob.Is(err, blob.NotFound):
		return blob.Properties{}, source, nil
	case err != nil:
		return blob.Properties{}, "", err
	case p.Size > 0:
		d.c.log.Warn("another writer made a blob of the name of a renamed directory", "blob", dst)
		return blob.Properties{}, source, nil
	}
	return p, source, nil
}
