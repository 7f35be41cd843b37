package blobcache

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"

	"blobmount/blobcache/blob"
)

// look asks for the markers of both ends, whether the target is empty, and whether all names fit.
func (d *dirRename) look(ctx context.Context) (renameHeader, error) {
	h := renameHeader{
		Version: renameVersion, Container: d.cont.URL(""), PID: os.Getpid(), From: d.From, To: d.To, Began: d.c.now().UTC(),
		Claim: rand.Text(),
	}
	errs := make([]error, 5)
	var wg sync.WaitGroup
	ask := func(i int, name string, etag *blob.ETag) {
		wg.Go(func() {
			p, err := d.cont.Properties(ctx, name, blob.Condition{})
			switch {
			case err == nil && name == d.From+"/" && isClaim(&p):
				if h.Stale = p.ETag; d.counts(&p) {
					errs[i] = claimedError(d.From)
				}
			case err == nil && (IsMarker(&p) || name[len(name)-1] == '/' && p.Size == 0):
				*etag = p.ETag
			case err != nil && !blob.Is(err, blob.NotFound):
				errs[i] = err
			}
		})
	}
	ask(0, d.From, &h.Source[0])
	ask(1, d.To, &h.Target[0])
	ask(2, d.From+"/", &h.Source[1])
	wg.Go(func() { errs[3] = d.lookBelow(ctx, &h) })
	wg.Go(func() { errs[4] = d.checkNames(ctx) })
	wg.Wait()
	return h, cmp.Or(errs...)
}

// lookBelow checks that there is nothing in the target but a marker.
func (d *dirRename) lookBelow(ctx context.Context, h *renameHeader) error {
	o := blob.ListOptions{Prefix: d.To + "/", MaxResults: 2}
	for {
		page, err := d.cont.List(ctx, o)
		if err != nil {
			return err
		}
		for _, b := range page.Blobs {
			if b.Name != o.Prefix || b.Size > 0 {
				return ErrNotEmpty
			}
			if d.counts(&b) {
				return claimedError(d.To)
			}
			if h.Target[1] = b.ETag; !isClaim(&b) {
				h.Slash = &slashMarker{b.Metadata, b.Headers}
			}
		}
		if page.Next == "" {
			return nil
		}
		o.Marker = page.Next
	}
}

// checkNames fails with ErrNameTooLong if a name would become too long. It lists all of them, though copyAll does it once
// more, and only if the new name of the directory is the longer one: what has begun may be half-way when it fails.
func (d *dirRename) checkNames(ctx context.Context) error {
	if blob.NameLength(d.To) <= blob.NameLength(d.From) && strings.Count(d.To, "/") <= strings.Count(d.From, "/") {
		return nil
	}
	for name := range d.Files {
		if err := d.checkLength(name[len(d.From):]); err != nil {
			return err
		}
	}
	o := blob.ListOptions{Prefix: d.From + "/"}
	for {
		page, err := d.cont.List(ctx, o)
		if err != nil {
			return err
		}
		for _, b := range page.Blobs {
			if err := d.checkLength(b.Name[len(d.From):]); err != nil {
				return err
			}
		}
		if page.Next == "" {
			return nil
		}
		o.Marker = page.Next
	}
}

// checkLength checks what would be the whole name of a blob, given by what follows that of the directory.
func (d *dirRename) checkLength(name string) error {
	whole := blob.Prefix(d.cont) + d.To + name
	if blob.NameLength(whole) > blob.MaxNameLength || strings.Count(whole, "/") >= blob.MaxSegments {
		return fmt.Errorf("%w: %q below %q", ErrNameTooLong, name, d.To)
	}
	return nil
}
