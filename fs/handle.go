package fs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// handle is what the kernel holds between open and release.
type handle struct {
	node  *node
	file  *blobcache.File // nil for a directory
	write bool
	// direct: what is written goes past the kernel's pages, and paged says that there may be some; see direct.go.
	direct, paged bool
	// keeps: of a directory whose names the kernel may take from its cache, and put there, see dirCache.
	keeps bool

	mu       sync.Mutex // guards what is below; directories only
	reader   *blobcache.Reader
	tag      uint64 // of the positions of reader
	interest interest
}

// newHandle returns the handle of a file that the kernel is told to use as out says.
func newHandle(n *node, f *blobcache.File, write bool, out *fuse.OpenOut) *handle {
	return &handle{
		node: n, file: f, write: write,
		direct: out.OpenFlags&fuse.FOPEN_DIRECT_IO != 0,
		paged:  out.OpenFlags&fuse.FOPEN_PASSTHROUGH == 0, // else all have the backing file, and the kernel its pages only
	}
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

// read calls add with the entries of an open directory from a position on, ".", ".." first, and with the position after each,
// until it returns false: those of the time at which reading began at its start.
func (h *handle) read(ctx context.Context, v *view, from uint64, add func(e blobcache.Named, next uint64) bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reader == nil || from == 0 {
		if err := h.begin(ctx, v); err != nil {
			return err
		}
	}
	tag := h.tag << tagShift
	index := from & indexMask
	for ; index < 2; index++ {
		if !add(blobcache.Named{Name: ".."[:index+1], Entry: blobcache.Entry{Dir: true}}, tag|(index+1)) {
			return nil
		}
	}
	if h.reader == nil {
		return nil
	}
	return h.reader.Read(ctx, int(index)-2, func(e blobcache.Named, next int) bool { return add(e, tag|uint64(next+2)) })
}

// begin begins to read a directory. One that was removed while it is open is empty.
func (h *handle) begin(ctx context.Context, v *view) error {
	h.reader = nil
	p, linked := v.nodes.path(h.node)
	if !linked {
		return nil
	}
	r, err := v.names.Open(ctx, p)
	if err != nil {
		return err
	}
	h.reader = r
	if h.keeps {
		h.tag = h.node.beginDir(r.Stamp())
	}
	return nil
}
