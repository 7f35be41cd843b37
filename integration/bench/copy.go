package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"blobmount/integration/blobserver"
)

// A copy within the mount, by cp, which asks the kernel to copy (coreutils since 9.0, copy_file_range(2)).
const (
	copiedSize  = 10 << 30
	copiedSmall = 1 << 30 // at most this at a smaller scale
)

// copyInMount is the property of copies: the service has all bytes already, and none has to move.
func copyInMount(ctx context.Context, l *lab) ([]finding, error) {
	n := l.bytes(copiedSize)
	if l.scale < 1 {
		n = min(n, copiedSmall)
	}
	set := blobserver.Synthetic{Container: container, Prefix: "source", Count: 1, Size: n}
	s, err := l.service(ctx, lan, set)
	if err != nil {
		return nil, err
	}
	// Of blocks, as all blobs above 5000 MiB are.
	if err := s.compose(ctx, "from", set.Name(0), n, uploadBlock); err != nil {
		return nil, err
	}
	m, err := l.mount(ctx, s.connection, "", cacheFor(set))
	if err != nil {
		return nil, err
	}
	got, err := observed(ctx, s, m, func() (measure, error) {
		began := time.Now()
		cp := exec.CommandContext(ctx, "cp", filepath.Join(m.dir, "from"), filepath.Join(m.dir, "to"))
		if out, err := cp.CombinedOutput(); err != nil {
			return measure{}, fmt.Errorf("cp: %w\n%s", err, out)
		}
		return measure{took: time.Since(began), asked: n, reads: 1}, nil
	})
	if err != nil {
		return nil, err
	}
	if err := s.compare(ctx, "to", n, blobserver.SyntheticContent(set.Name(0)), samples(n)...); err != nil {
		return nil, err
	}
	if err := m.close(); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("cp of %s within the mount", size(n))
	return []finding{
		{
			what + ": bytes of the file moved", uploads(got), fmt.Sprintf("none; less than %s of block lists", size(listBytes)),
			got.uploaded < listBytes && got.fetched < listBytes,
		},
		{what + ": peak RSS", size(got.rss), size(maxWriteRSS), got.rss <= maxWriteRSS},
	}, discard(m.cache)
}
