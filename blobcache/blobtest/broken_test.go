package blobtest

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// The suite must find a container that breaks any one rule. Each type here is Mem with one rule broken, as an
// adapter could break it; the test says which checks have to notice.

// noETags forgets to send the conditions of writes that replace content.
type noETags struct{ *Mem }

func (c noETags) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	o.Condition = blob.Condition{}
	return c.Mem.Upload(ctx, name, body, size, o)
}

func (c noETags) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	o.Condition = blob.Condition{}
	return c.Mem.CommitBlockList(ctx, name, ids, o)
}

// noReadETags forgets to send the conditions of reads.
type noReadETags struct{ *Mem }

func (c noReadETags) ReadAt(ctx context.Context, name string, offset, count int64, _ blob.Condition) (*blob.Body, error) {
	return c.Mem.ReadAt(ctx, name, offset, count, blob.Condition{})
}

// keepsUncommitted stages the blocks that a commit left out again, as if the service had not discarded them.
type keepsUncommitted struct{ *Mem }

func (c keepsUncommitted) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	staged := c.staged(name)
	w, err := c.Mem.CommitBlockList(ctx, name, ids, o)
	if err == nil {
		for id, content := range staged {
			if !slices.Contains(ids, id) {
				err = c.store.stage(name, id, content)
			}
		}
	}
	return w, err
}

func (c keepsUncommitted) staged(name string) map[string]content {
	c.store.mu.RLock()
	defer c.store.mu.RUnlock()
	return c.store.mu.staged[name]
}

// keepsLeftOut appends the committed blocks that a commit does not name.
type keepsLeftOut struct{ *Mem }

func (c keepsLeftOut) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	if l, err := c.BlockList(ctx, name); err == nil {
		for _, b := range l.Committed {
			if !slices.Contains(ids, b.ID) {
				ids = append(slices.Clip(ids), b.ID)
			}
		}
	}
	return c.Mem.CommitBlockList(ctx, name, ids, o)
}

// firstPage takes the first page for the whole listing.
type firstPage struct{ *Mem }

func (c firstPage) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	page, err := c.Mem.List(ctx, o)
	page.Next = ""
	return page, err
}

// overlappingPages begins each page with the last blob of the page before.
type overlappingPages struct{ *Mem }

func (c overlappingPages) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	marker, last, _ := strings.Cut(o.Marker, " ")
	o.Marker = marker
	page, err := c.Mem.List(ctx, o)
	if last != "" {
		if p, err := c.Properties(ctx, last, blob.Condition{}); err == nil {
			page.Blobs = append([]blob.Properties{p}, page.Blobs...)
		}
	}
	if page.Next != "" && len(page.Blobs) > 0 {
		page.Next += " " + page.Blobs[len(page.Blobs)-1].Name
	}
	return page, err
}

// keepsMetadata merges the new metadata into the old.
type keepsMetadata struct{ *Mem }

func (c keepsMetadata) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	if p, err := c.Properties(ctx, name, blob.Condition{}); err == nil && o.Metadata == nil {
		o.Metadata = p.Metadata
	}
	return c.Mem.Upload(ctx, name, body, size, o)
}

// endsEarly takes a broken stream for the end of the blob.
type endsEarly struct{ *Mem }

func (c endsEarly) ReadAt(ctx context.Context, name string, offset, count int64, cond blob.Condition) (*blob.Body, error) {
	b, err := c.Mem.ReadAt(ctx, name, offset, count, cond)
	if err == nil {
		b.ReadCloser = eofBody{b.ReadCloser}
	}
	return b, err
}

type eofBody struct{ io.ReadCloser }

func (b eofBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

// noSourceConditions forgets the condition on a source, and where its range ends.
type noSourceConditions struct{ *Mem }

func (c noSourceConditions) StageBlockFrom(ctx context.Context, name, id string, src blob.Range) error {
	src.Condition = blob.Condition{}
	src.Size = blob.MaxBlockSize
	return c.Mem.StageBlockFrom(ctx, name, id, src)
}

// otherErrors translates what it does not know to Other.
type otherErrors struct{ *Mem }

func other(err error) error {
	if blob.Is(err, blob.BlockIDLength) {
		return &blob.Error{Code: blob.Other, Err: err}
	}
	return err
}

func (c otherErrors) StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error {
	return other(c.Mem.StageBlock(ctx, name, id, body, size))
}

func (c otherErrors) StageBlockFrom(ctx context.Context, name, id string, src blob.Range) error {
	return other(c.Mem.StageBlockFrom(ctx, name, id, src))
}

// appendsAnywhere forgets to send position and condition.
type appendsAnywhere struct{ *Mem }

func (c appendsAnywhere) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, _ int64, _ blob.Condition) (blob.Written, error) {
	p, err := c.Properties(ctx, name, blob.Condition{})
	if err != nil {
		return blob.Written{}, err
	}
	return c.Mem.AppendBlock(ctx, name, body, size, p.Size, blob.Condition{})
}

// blocksOnly makes block blobs of all.
type blocksOnly struct{ *Mem }

func (c blocksOnly) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	o.Kind = blob.BlockBlob
	return c.Mem.Upload(ctx, name, body, size, o)
}

// noTags copies as the service does when it is not told about tags and tier, and writes none.
type noTags struct{ *Mem }

func (c noTags) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	o.Tags = nil
	return c.Mem.Upload(ctx, name, body, size, o)
}

func (c noTags) Copy(_ context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	return c.store.CopyFrom(c.store, dst, src, CopyOptions{CopyOptions: o})
}

// keepsTags keeps the tags of the version before.
type keepsTags struct{ *Mem }

func (c keepsTags) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	if tags, err := c.Tags(ctx, name); err == nil && o.Tags == nil {
		o.Tags = tags
	}
	return c.Mem.Upload(ctx, name, body, size, o)
}

// noLeases only says that it leases.
type noLeases struct{ *Mem }

func (c noLeases) AcquireLease(context.Context, string, time.Duration) error { return nil }
func (c noLeases) RenewLease(context.Context, string) error                  { return nil }
func (c noLeases) ReleaseLease(context.Context, string) error                { return nil }

// oneLease gives every host the same lease ids.
func oneLease(m *Mem) *Mem {
	m.leases = sameLeases
	return m
}

var sameLeases = blob.NewLeases()

func TestSuiteFindsBrokenContainers(t *testing.T) {
	for name, broken := range map[string]struct {
		wrap func(*Mem) blob.Container
		want []string // checks that must fail
	}{
		"conditions of writes": {
			func(m *Mem) blob.Container { return noETags{m} },
			[]string{
				"Upload/IfMatch", "Upload/IfMatchMissing", "Upload/IfNoneMatch", "Upload/IfNoneMatchAny",
				"CommitBlockList/IfMatch", "CommitBlockList/IfNoneMatchAny", "CommitBlockList/RefusedKeepsBlocks",
				"SetMetadata/MakesVersion", "Parallel/UploadCreateOnce", "Parallel/UploadReplaceOnce",
			},
		},
		"conditions of reads": {
			func(m *Mem) blob.Container { return noReadETags{m} },
			[]string{"ReadAt/IfMatch", "ReadAt/IfNoneMatch"},
		},
		"uncommitted blocks": {
			func(m *Mem) blob.Container { return keepsUncommitted{m} },
			[]string{"CommitBlockList/Discards"},
		},
		"blocks left out": {
			func(m *Mem) blob.Container { return keepsLeftOut{m} },
			[]string{"CommitBlockList/LeftOut"},
		},
		"first page only": {
			func(m *Mem) blob.Container { return firstPage{m} },
			[]string{"List/Paging", "List/PageCount", "List/ChangesBetweenPages"},
		},
		"overlapping pages": {
			func(m *Mem) blob.Container { return overlappingPages{m} },
			[]string{"List/Paging", "List/ChangesBetweenPages"},
		},
		"metadata": {
			func(m *Mem) blob.Container { return keepsMetadata{m} },
			[]string{"Upload/ReplaceRemovesTheRest"},
		},
		"conditions on sources, and their ranges": {
			func(m *Mem) blob.Container { return noSourceConditions{m} },
			[]string{"StageBlockFrom/Condition", "StageBlockFrom/Range"},
		},
		"lengths of ids": {
			func(m *Mem) blob.Container { return otherErrors{m} },
			[]string{"StageBlock/IDLength", "StageBlockFrom/IDLength"},
		},
		"append position": {
			func(m *Mem) blob.Container { return appendsAnywhere{m} },
			[]string{"AppendBlock/Position", "AppendBlock/Condition"},
		},
		"kind of blob": {
			func(m *Mem) blob.Container { return blocksOnly{m} },
			[]string{"AppendBlock/Position", "Upload/Kind"},
		},
		"tags and tier": {
			func(m *Mem) blob.Container { return noTags{m} },
			[]string{"Upload/Tags", "Copy/Tags", "Copy/Tier"},
		},
		"tags that stay": {
			func(m *Mem) blob.Container { return keepsTags{m} },
			[]string{"Upload/Tags"},
		},
		"leases": {
			func(m *Mem) blob.Container { return noLeases{m} },
			[]string{
				"Lease/Upload", "Lease/CommitBlockList", "Lease/StageBlock", "Lease/StageBlockFrom", "Lease/Copy", "Lease/SetMetadata",
				"Lease/AppendBlock", "Lease/Delete", "Lease/Acquire", "Lease/Release", "Lease/Expires", "Lease/RenewedAfterItsEnd",
			},
		},
		"leases shared by all hosts": {
			func(m *Mem) blob.Container { return oneLease(m) },
			[]string{"Lease/Upload", "Lease/Acquire"},
		},
		"broken streams": {
			func(m *Mem) blob.Container { return endsEarly{m} },
			[]string{"Context/CancelledBody"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			failed := map[string]bool{}
			for _, check := range Checks() {
				failed[check.Name] = check.Run(t.Context(), subject(StoreOptions{}, broken.wrap)) != nil
			}
			for _, want := range broken.want {
				if found, known := failed[want]; !known {
					t.Errorf("there is no check %s", want)
				} else if !found {
					t.Errorf("%s passes", want)
				}
			}
		})
	}
}

func TestCheckNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Checks() {
		if seen[c.Name] {
			t.Errorf("two checks %s", c.Name)
		}
		seen[c.Name] = true
	}
}
