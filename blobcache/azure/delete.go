package azure

import (
	"context"
	"sync"
	"time"

	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"blobmount/blobcache/blob"
)

// A deletion without a condition must not be repeated blindly when its answer was lost: what is there by then may be
// another host's, as the lock that it has made the moment after ours was gone. So it is looked at first. What was made
// since the deletion began, by the service's own clock, is not what was to be deleted, which is gone then. What is older
// is deleted under its ETag.
//
// The service's times are of whole seconds, and programs delete what they have made a moment ago. So the adapter remembers
// what it has made itself in the last seconds. What another host has made in the two seconds before a deletion, and a
// deletion that did not happen has left, is taken for newer.

// Delete implements blob.Container.
func (c *Container) Delete(ctx context.Context, name string, cond blob.Condition) error {
	const op = "Delete"
	if err := checkName(op, name); err != nil {
		return err
	}
	ctx, tries := withAttempts(ctx, op, name)
	tries.looks = cond == (blob.Condition{})
	mine := c.recent.etag(name)
	err := c.delete(ctx, name, cond)
	if err != nil && tries.looks && tries.doubtful {
		err = c.deleteAgain(ctx, tries, name, mine, err)
	}
	if tries.doubtful && blob.Is(err, blob.NotFound) {
		err = nil // an earlier try deleted it, and its answer was lost
	}
	if err == nil {
		c.leases.Forget(name)
	}
	return err
}

func (c *Container) delete(ctx context.Context, name string, cond blob.Condition) error {
	_, err := c.client.NewBlobClient(name).Delete(ctx, &sdkblob.DeleteOptions{
		DeleteSnapshots:  new(sdkblob.DeleteSnapshotsOptionTypeInclude),
		AccessConditions: c.writeConditions(name, cond),
	})
	return failWrite(ctx, "Delete", name, blob.Condition{}, err)
}

// deleteAgain repeats a deletion without a condition, of which a try may have succeeded; mine is the version that was made
// here just before. It returns failed when there is no time left.
func (c *Container) deleteAgain(ctx context.Context, tries *attempts, name string, mine blob.ETag, failed error) error {
	tries.looks = false
	for round := 1; ; round++ {
		wait := backoff(round)
		if ctx.Err() != nil || time.Since(tries.began)-tries.queued+wait > c.retryFor {
			return failed
		}
		if err := sleep(ctx, wait); err != nil {
			return fail(ctx, tries.op, name, err)
		}
		p, err := c.head(ctx, name, blob.Condition{})
		if err != nil {
			return fail(ctx, tries.op, name, err) // NotFound: it is gone
		}
		found := etag(p.ETag)
		if p.Date == nil {
			return failed // nothing tells when it was made
		}
		made := p.CreationTime // stays when a blob is replaced
		if made == nil {
			made = p.LastModified
		}
		if found != mine && made != nil && !made.Before(p.Date.Add(-time.Since(tries.began)-clockSlack)) {
			c.log.Info("recognised a deletion whose answer was lost: there is a newer blob", "name", name, "etag", found)
			return nil
		}
		if err := c.delete(ctx, name, blob.Condition{IfMatch: found}); !blob.Is(err, blob.ConditionNotMet) {
			return err
		}
		// It was replaced, or deleted and made anew, just now.
	}
}

// recent remembers which versions were made here lately. Its methods may be called in parallel.
type recent struct {
	mu          sync.Mutex // guards what is below
	turned      time.Time
	now, before map[string]blob.ETag // by name
}

// recentFor is for how long at least a version is remembered: more than clockSlack, with a second for the rounding. A
// thousand new blobs a second take 2 MB.
const recentFor = 5 * time.Second

// turn forgets what is too old. mu is held.
func (r *recent) turn() {
	now := time.Now()
	switch since := now.Sub(r.turned); {
	case since < recentFor:
		return
	case since < 2*recentFor:
		r.before = r.now
	default:
		r.before = nil
	}
	r.now, r.turned = map[string]blob.ETag{}, now
}

func (r *recent) note(name string, e blob.ETag) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn()
	r.now[name] = e
}

// etag returns the version that was made last under a name, "" if it is not known.
func (r *recent) etag(name string) blob.ETag {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn()
	if e, ok := r.now[name]; ok {
		return e
	}
	return r.before[name]
}
