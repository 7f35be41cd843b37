package blobcache

import (
	"context"
	"fmt"
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// copyAll copies what is listed below the directory, and was not planned yet.
func (d *dirRename) copyAll(ctx context.Context) error {
	type listed struct {
		page blob.Page
		err  error
	}
	// The next page is asked for while one is copied.
	ask := func(marker string) <-chan listed {
		answer := make(chan listed, 1)
		go func() {
			page, err := d.cont.List(ctx, blob.ListOptions{Prefix: d.From + "/", Marker: marker})
			answer <- listed{page, err}
		}()
		return answer
	}
	for next := ask(""); next != nil; {
		l := <-next
		if l.err != nil {
			return l.err
		}
		next = nil
		if l.page.Next != "" {
			next = ask(l.page.Next)
		}
		first, blobs, err := d.plan(l.page.Blobs)
		if err != nil {
			return err
		}
		if len(blobs) > 0 && d.claimed == "" {
			if err := d.claim(ctx); err != nil {
				return err
			}
		}
		if err := d.refreshClaim(ctx); err != nil {
			return err
		}
		if err := d.copyPage(ctx, first, blobs); err != nil {
			return err
		}
	}
	return nil
}

// plan notes what is about to be copied of a page of the listing, and returns it with the number of the first. The marker
// of the directory comes later, and after the end of a process what comes before the last name is planned already: names
// are listed in the order of their bytes.
func (d *dirRename) plan(page []blob.Properties) (first int64, blobs []renamedBlob, err error) {
	blobs = make([]renamedBlob, 0, len(page))
	d.mu.Lock()
	defer d.mu.Unlock()
	var records []byte
	for _, p := range page {
		name := p.Name[len(d.From):]
		if name == "/" || d.late && name <= d.state.last {
			continue
		}
		if d.counts(&p) {
			return 0, nil, claimedError(strings.TrimSuffix(p.Name, "/"))
		}
		if err := d.checkLength(name); err != nil {
			return 0, nil, err // it was made since checkNames has looked
		}
		b, typ := renamedBlob{name: name, etag: p.ETag, size: p.Size, modified: p.Modified}, byte(recPlanned)
		if isClaim(&p) {
			b.stale, b.done, typ = true, true, recStale
		}
		blobs = append(blobs, b)
		records = append(records, d.j.record(typ, planRecord(b))...)
	}
	if len(blobs) == 0 {
		return d.state.planned, nil, nil
	}
	if err := d.j.addRecords(records); err != nil {
		return 0, nil, err
	}
	// On the disk before the first copy: after a loss of power the copies would be of versions that nobody knows, and count
	// for those that are listed anew, and the way back would miss the pages after the one that fails. One sync for 5,000
	// blobs, whose copies take seconds.
	if err := d.sync(); err != nil {
		d.j.size -= int64(len(records)) // nothing of this page is copied
		return 0, nil, err
	}
	first = d.state.planned
	d.state.planned += int64(len(blobs))
	d.state.last = blobs[len(blobs)-1].name
	return first, blobs, nil
}

// copyPage makes the copies that are not noted, of blobs that were planned, and notes them.
func (d *dirRename) copyPage(ctx context.Context, first int64, blobs []renamedBlob) error {
	return inParallel(ctx, len(blobs), func(ctx context.Context, i int) error {
		if blobs[i].done {
			return nil
		}
		b, err := d.copyOne(ctx, blobs[i])
		if err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.copied.Add(1)
		record := byte(recCopied)
		if b.found {
			record = recFound
		}
		return d.j.add(record, copyRecord(first+int64(i), b))
	})
}

// sourceTries is how often the copy of a blob is tried that somebody else replaces meanwhile.
const sourceTries = 5

// copyOne copies a blob, as it is now if it was changed since it was listed. It returns what was copied.
func (d *dirRename) copyOne(ctx context.Context, b renamedBlob) (renamedBlob, error) {
	src, dst := d.From+b.name, d.To+b.name
	for try := 1; ; try++ {
		w, err := d.cont.Copy(ctx, dst, src, blob.CopyOptions{
			Source: blob.Condition{IfMatch: b.etag}, Condition: blob.Condition{IfNoneMatch: blob.Any},
		})
		if err == nil {
			b.copy, b.found = w, w.Doubtful
			return b, nil
		}
		code := blob.CodeOf(err)
		if code != blob.Exists && code != blob.ConditionNotMet && code != blob.NotFound {
			return b, err
		}
		// The directory was empty: what is there is ours if it is of this source, of a try whose answer was lost. It was
		// not there after the try before, so that it is of this version. The source may be another one by now, which must
		// not be deleted: so this is asked before the next version is.
		p, ours, perr := d.isCopy(ctx, b)
		switch {
		case perr != nil:
			return b, perr
		case ours && (try == 1 || code != blob.Exists):
			b.copy, b.found = blob.Written{ETag: p.ETag, Modified: p.Modified}, true
			return b, nil
		case ours: // or an earlier try came late: nobody can tell of which version it is
			return b, fmt.Errorf("%w: %q changes while it is copied: %w", ErrNotEmpty, src, err)
		case code == blob.Exists:
			return b, fmt.Errorf("%w: another writer made %q: %w", ErrNotEmpty, dst, err)
		case try == sourceTries:
			return b, err
		}
		p, err = d.cont.Properties(ctx, src, blob.Condition{})
		if blob.Is(err, blob.NotFound) {
			return b, nil // deleted by somebody else: there is nothing to rename
		}
		if err != nil {
			return b, err
		}
		b.etag, b.size, b.modified = p.ETag, p.Size, p.Modified
	}
}

// copySkew is more than the clocks of the servers of one account differ, whose times are compared.
const copySkew = 10 * time.Second

// isCopy returns what is under the new name of a blob, and whether it is a copy that this rename made. A blob that is not
// there is none. The service does not say of which version a copy is, but a version that was made after it is another one.
func (d *dirRename) isCopy(ctx context.Context, b renamedBlob) (blob.Properties, bool, error) {
	p, err := d.cont.Properties(ctx, d.To+b.name, blob.Condition{})
	if blob.Is(err, blob.NotFound) {
		return p, false, nil
	}
	return p, err == nil && p.CopiedFrom == d.From+b.name && p.Size == b.size && !b.modified.After(p.Modified.Add(copySkew)), err
}
