package fs

import (
	"context"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// odd names in the log what a container has and a mount cannot show: blobs that no path can express, and blobs that a
// directory of the same name hides. Each name comes once. All methods may be called in parallel.
type odd struct {
	log  *slog.Logger
	seed maphash.Seed

	mu       sync.Mutex // guards what is below
	hidden   told
	shadowed told
}

// told is what was told of one kind, by hashes of the names.
type told struct {
	names map[uint64]struct{}
	lines int
}

// The bounds of what is told of each kind.
const (
	maxToldNames = 1 << 16 // that are told apart: 3 MiB
	maxToldLines = 100
	maxToldBytes = 300 // of a name
)

func newOdd(log *slog.Logger) *odd { return &odd{log: log, seed: maphash.MakeSeed()} }

// isNew reports whether a name is to be told, and whether it is the last one that is.
func (o *odd) isNew(t *told, name string) (isNew, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := maphash.String(o.seed, name)
	if _, ok := t.names[h]; ok || len(t.names) == maxToldNames {
		return false, false
	}
	if t.names == nil {
		t.names = map[uint64]struct{}{}
	}
	t.names[h] = struct{}{}
	if t.lines == maxToldLines {
		return false, false
	}
	t.lines++
	return true, t.lines == maxToldLines
}

func (o *odd) tell(t *told, name, text string) {
	isNew, last := o.isNew(t, name)
	if !isNew {
		return
	}
	o.log.Warn(text, "blob", short(name))
	if last {
		o.log.Warn("more such blobs are not named: blobmount status counts them", "named", maxToldLines)
	}
}

func (o *odd) hides(name string) {
	o.tell(&o.hidden, name, "a blob is not shown: no path can express its name")
}

func (o *odd) shadows(path string) {
	o.tell(&o.shadowed, path, "a blob is not shown: a directory has its name; "+attrPrefix+"shadowed of that says where it is")
}

// countShadowed returns how many directories were seen to hide a blob, maxToldNames at most.
func (o *odd) countShadowed() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(len(o.shadowed.names))
}

// short returns what of a name a line bears. The log quotes it.
func short(name string) string {
	if len(name) > maxToldBytes {
		return strings.ToValidUTF8(name[:maxToldBytes], "") + "..."
	}
	return name
}

// watched is a container whose listings are looked through for names that no path can express.
type watched struct {
	blob.Container
	odd *odd
}

func (w watched) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	page, err := w.Container.List(ctx, o)
	for i := range page.Blobs {
		w.look(page.Blobs[i].Name, len(o.Prefix))
	}
	for _, p := range page.Prefixes {
		w.look(p, len(o.Prefix))
	}
	return page, err
}

// look looks through a name from a directory on. A slash at its end makes it a directory. What lies below a name that
// cannot be shown is told as that name.
func (w watched) look(name string, from int) {
	if from >= len(name) {
		return // the directory's own marker
	}
	for end := from; end < len(name); end++ {
		start := end
		if end = strings.IndexByte(name[start:], '/'); end < 0 {
			end = len(name)
		} else {
			end += start
		}
		if !blobcache.Representable(name[start:end]) {
			w.odd.hides(name[:min(end+1, len(name))])
			return
		}
	}
}
