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

	mu     sync.Mutex // guards what is below; directories only
	reader *blobcache.Reader
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

// read calls yield with the entries of an open directory from a position on, as of the last time that reading began at its
// start, and with the position after each.
func (h *handle) read(ctx context.Context, v *view, pos int, yield func(e blobcache.Named, next int) bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reader == nil || pos == 0 {
		p, linked := v.nodes.path(h.node)
		if !linked {
			return nil // removed while it is open: empty
		}
		r, err := v.names.Open(ctx, p)
		if err != nil {
			return err
		}
		h.reader = r
		h.node.setShown(r.Stamp()) // as it is now: what is learned while it is read may not be shown
	}
	return h.reader.Read(ctx, pos, yield)
}
