package blobcache

import (
	"context"
	"fmt"
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// Of two hosts that rename a directory to the same name at once, each would take copies of the other for its own, whose
// answers were lost: nothing that the service stores tells them apart. The one that goes back would then delete what the
// other counts on. So before its first copy a rename claims the new name, where only one can: it makes the blob "to/", a
// marker of the kind that other tools write and that is shown nowhere, with an id in its metadata. It is the last that goes.
// A host that has crashed, and will not come back, leaves it. So it counts for an hour, unless it is made anew meanwhile.

const (
	// claimTime is much more than clocks differ: the service refuses requests of a clock that is wrong by a quarter of an hour.
	claimTime    = time.Hour
	claimRefresh = 10 * time.Minute
)

// claimKey is the metadata name that a claim has, with the id of the rename.
const claimKey = "blobmount_rename"

// slashMarker is what a claim replaces, and what comes back when the rename goes back.
type slashMarker struct {
	Metadata map[string]string `json:"metadata,omitempty"`
	Headers  blob.Headers      `json:"headers"`
}

// isClaim reports whether a blob says that its directory is the target of a rename under way, or left from a crash.
func isClaim(p *blob.Properties) bool { return p.Size == 0 && p.Metadata[claimKey] != "" }

// counts reports whether a claim counts.
func (d *dirRename) counts(p *blob.Properties) bool {
	return isClaim(p) && d.c.now().Sub(p.Modified) < claimTime
}

// claimedError returns the error for a directory with such a blob.
func claimedError(dir string) error {
	return fmt.Errorf("%w: the blob %q says so; if that host will not finish it, delete that, or wait for an hour", ErrRenaming, dir+"/")
}

// claim takes the new name for this rename.
func (d *dirRename) claim(ctx context.Context) error { return d.putClaim(ctx, d.state.Target[1]) }

// refreshClaim makes the claim anew if it is time.
func (d *dirRename) refreshClaim(ctx context.Context) error {
	if d.claimed == "" || d.c.now().Sub(d.claimedAt) < claimRefresh {
		return nil
	}
	return d.putClaim(ctx, d.claimed)
}

// putClaim makes the claim in place of a version of the blob, or of none.
func (d *dirRename) putClaim(ctx context.Context, old blob.ETag) error {
	o := blob.WriteOptions{
		Metadata: map[string]string{claimKey: d.state.Claim}, Distinct: true, Condition: blob.Condition{IfMatch: old},
	}
	if old == "" {
		o.Condition.IfNoneMatch = blob.Any
	}
	w, err := d.cont.Upload(ctx, d.To+"/", strings.NewReader(""), 0, o)
	if err == nil {
		d.claimed, d.claimedAt = w.ETag, d.c.now()
		return nil
	}
	if code := blob.CodeOf(err); code == blob.Exists || code == blob.ConditionNotMet {
		return d.holdClaim(ctx) // the answer may have been lost
	}
	return err
}

// holdClaim fails with ErrRenaming if the new name is not claimed by this rename, or not any more.
func (d *dirRename) holdClaim(ctx context.Context) error {
	d.claimed = ""
	p, err := d.cont.Properties(ctx, d.To+"/", blob.Condition{})
	switch {
	case err != nil && !blob.Is(err, blob.NotFound):
		return err
	case err == nil && isClaim(&p) && p.Metadata[claimKey] == d.state.Claim:
		d.claimed, d.claimedAt = p.ETag, p.Modified
		return nil
	case err == nil && isClaim(&p):
		return claimedError(d.To)
	}
	return fmt.Errorf("%w: somebody has taken or removed %q meanwhile", ErrRenaming, d.To)
}

// unclaim leaves the new name as it was.
func (d *dirRename) unclaim(ctx context.Context) error {
	if d.claimed == "" {
		return nil
	}
	cond := blob.Condition{IfMatch: d.claimed}
	var err error
	if old := d.state.Slash; old != nil {
		o := blob.WriteOptions{Metadata: old.Metadata, Headers: old.Headers, Condition: cond}
		_, err = d.cont.Upload(ctx, d.To+"/", strings.NewReader(""), 0, o)
	} else {
		err = d.cont.Delete(ctx, d.To+"/", cond)
	}
	if blob.Is(err, blob.NotFound) || blob.Is(err, blob.ConditionNotMet) {
		return nil // somebody else's by now
	}
	return err
}
