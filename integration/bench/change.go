package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
)

// A small change of a large blob. Whatever the speed, the service must not be sent more than the blocks in which the
// change lies: at most two, since a change can lie across the end of one.
const (
	changedSize   = 1 << 30
	changedLeast  = 8 * uploadBlock // at a small scale too: fewer blocks would say nothing
	change        = 4 << 10
	foreignBlock  = 4 << 20
	changedBlocks = 2
	// listBytes is room for the body of Put Block List: 256 blocks in 110 bytes of XML each, and more.
	listBytes    = 1 << 20
	changedBytes = changedBlocks*uploadBlock + listBytes
)

// changed is a blob, and how it came to the service.
type changed struct {
	name, how string
	put       func(ctx context.Context) error
}

// writeMiddle is the property of small changes.
func writeMiddle(ctx context.Context, l *lab) ([]finding, error) {
	n := max(l.bytes(changedSize), changedLeast)
	set := blobserver.Synthetic{Container: container, Prefix: "source", Count: 1, Size: n}
	s, err := l.service(ctx, lan, set)
	if err != nil {
		return nil, err
	}
	source := set.Name(0)
	var found []finding
	for _, c := range []changed{
		{"mounted", "written through a mount", func(ctx context.Context) error { return l.writeThrough(ctx, s, set, "mounted") }},
		{"blocks", "uploaded by another tool in blocks of 4 MiB", func(ctx context.Context) error { return s.compose(ctx, "blocks", source, n, foreignBlock) }},
		{"whole", "uploaded by one Put Blob", func(ctx context.Context) error { return s.duplicate(ctx, "whole", source) }},
	} {
		if err := c.put(ctx); err != nil {
			return nil, err
		}
		f, err := c.try(ctx, l, s, set)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		found = append(found, f...)
	}
	return found, nil
}

// writeThrough writes a blob with the content of a set's through a mount that ends.
func (l *lab) writeThrough(ctx context.Context, s *service, set blobserver.Synthetic, name string) error {
	m, err := l.mount(ctx, s.connection, "", cacheFor(set))
	if err != nil {
		return err
	}
	f := file{Path: filepath.Join(m.dir, name), Name: set.Name(0), Size: set.Size}
	if _, _, err := runTasks(ctx, nil, task{Op: opWrite, Files: []file{f}, Block: 1 << 20}); err != nil {
		return err
	}
	if err := m.close(); err != nil {
		return err
	}
	return discard(m.cache)
}

// changePlaces are where a blob is changed: within a block, across the end of one, and where no page begins.
func changePlaces(size int64) []int64 {
	end := size / 4 / uploadBlock * uploadBlock // of a block of 4 MiB too
	return []int64{size / 2, end - change/2, size*3/4 + 100}
}

// try changes a blob a few times through a new mount with an empty cache. What one change left must be as easy to
// change again.
func (c changed) try(ctx context.Context, l *lab, s *service, set blobserver.Synthetic) ([]finding, error) {
	m, err := l.mount(ctx, s.connection, "", cacheFor(set))
	if err != nil {
		return nil, err
	}
	places := changePlaces(set.Size)
	var most measure
	for _, off := range places {
		got, err := observed(ctx, s, m, func() (measure, error) { return c.pwrite(m, off) })
		if err != nil {
			return nil, err
		}
		most.worst(got)
	}
	if err := s.compare(ctx, c.name, set.Size, c.content(set, places), around(places, set.Size)...); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("4 KiB changed in a blob of %s, %s: most of %d changes", size(set.Size), c.how, len(places))
	return []finding{
		{
			what + ": uploaded", uploads(most), fmt.Sprintf("%s in %d Put Block", size(changedBytes), changedBlocks),
			most.blocks <= changedBlocks && most.uploaded <= changedBytes,
		},
		{what + ": peak RSS", size(most.rss), size(maxWriteRSS), most.rss <= maxWriteRSS},
	}, m.close()
}

// pwrite makes one change.
func (c changed) pwrite(m *mount, off int64) (measure, error) {
	began := time.Now()
	f, err := os.OpenFile(filepath.Join(m.dir, c.name), os.O_RDWR, 0)
	if err != nil {
		return measure{}, err
	}
	p := make([]byte, change)
	c.news()(p, off)
	if _, err := f.WriteAt(p, off); err != nil {
		_ = f.Close() // the first error counts
		return measure{}, err
	}
	err = f.Close()
	return measure{took: time.Since(began), asked: change, reads: 1}, err
}

// news is the content of the changes.
func (c changed) news() blobtest.Generator { return blobserver.SyntheticContent("change of " + c.name) }

// content returns what the blob must hold after the changes.
func (c changed) content(set blobserver.Synthetic, places []int64) blobtest.Generator {
	old, news := blobserver.SyntheticContent(set.Name(0)), c.news()
	return func(p []byte, at int64) {
		old(p, at)
		for _, off := range places {
			from, to := max(off, at), min(off+change, at+int64(len(p)))
			if from < to {
				news(p[from-at:to-at], from)
			}
		}
	}
}

// around returns the ranges about the changes, and some of the rest.
func around(places []int64, size int64) []span {
	ranges := samples(size)
	for _, off := range places {
		from := max(0, off-change)
		ranges = append(ranges, span{from, min(3*change, size-from)})
	}
	return ranges
}

// worst keeps the larger of each figure.
func (m *measure) worst(n measure) {
	m.took = max(m.took, n.took)
	m.rss = max(m.rss, n.rss)
	m.requests = max(m.requests, n.requests)
	m.blocks = max(m.blocks, n.blocks)
	m.fetched = max(m.fetched, n.fetched)
	m.uploaded = max(m.uploaded, n.uploaded)
}

// uploads says what moved between the daemon and the service.
func uploads(m measure) string {
	return fmt.Sprintf("%s in %d Put Block (%d requests, %s fetched, %v)", size(m.uploaded), m.blocks, m.requests, size(m.fetched), m.took.Round(time.Millisecond))
}
