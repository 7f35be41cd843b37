package fs

import (
	"context"
	"sync"

	"blobmount/blobcache"
)

// handle is what the kernel holds between open and release.
type handle struct {
	node  *node
	file  *blobcache.File // nil for a directory
	write bool

	mu      sync.Mutex // guards what is below; directories only
	entries []blobcache.Named
	listed  bool
}

// handles gives handles their numbers. All methods may be called in parallel.
type handles struct {
	mu   sync.RWMutex // guards what is below
	last uint64
	open map[uint64]*handle
}

func (t *handles) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.open[t.last] = h
	return t.last
}

func (t *handles) get(id uint64) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.open[id]
}

func (t *handles) remove(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[id]
	delete(t.open, id)
	return h
}

// listing returns the entries of an open directory as of the last time that reading began at its start.
func (h *handle) listing(ctx context.Context, v *view, restart bool) ([]blobcache.Named, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.listed || restart {
		entries, err := v.list(ctx, h.node)
		if err != nil {
			return nil, err
		}
		h.entries, h.listed = entries, true
	}
	return h.entries, nil
}
