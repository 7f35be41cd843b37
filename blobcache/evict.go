package blobcache

import (
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Eviction samples: it looks at some versions in random places of the fan-out, and unlinks those that were not
// used for longest. The best of 24 samples is, on average, older than 96 % of all, and nothing has to be kept in
// memory or scanned for it.
const sampleSize = 24

// candidate is a version that may be evicted.
type candidate struct {
	base string // path without extension
	used time.Time
	size int64 // bytes on disk
}

// oldest returns the candidate that was not used for longest. It is nil for no candidates.
func oldest(cs []candidate) *candidate {
	var best *candidate
	for i := range cs {
		if best == nil || cs[i].used.Before(best.used) {
			best = &cs[i]
		}
	}
	return best
}

// evict makes room for n bytes and a little more, so that it need not run for every write. It returns how many bytes it
// has freed.
func (c *Cache) evict(n int64) (freed int64) {
	want := max(n, min(c.space.limit/50, 256<<20))
	// A version may stay though it should go, since another process uses it, or the disk has become read-only: so the
	// tries are bounded.
	stays := map[string]bool{}
	for freed < want && len(stays) < 2*sampleSize {
		o := oldest(slices.DeleteFunc(c.sample(), func(o candidate) bool { return stays[o.base] }))
		if o == nil {
			break
		}
		got := removeIdle(o.base)
		c.space.release(got)
		freed += got
		if got == 0 {
			stays[o.base] = true
			continue
		}
		c.evicted.Add(1)
	}
	return freed
}

// sample returns versions that nobody in this process uses. In a small cache it finds all of them.
func (c *Cache) sample() []candidate {
	var out []candidate
	root := filepath.Join(c.dir, "v1")
	top := shuffled(root)
	for _, a := range top {
		for _, b := range shuffled(filepath.Join(root, a)) {
			dir := filepath.Join(root, a, b)
			names := shuffled(dir)
			if len(names) == 0 {
				_ = os.Remove(dir) // empty: fewer places to look at next time
			}
			for _, name := range names {
				base, ext := strings.TrimSuffix(name, filepath.Ext(name)), filepath.Ext(name)
				switch {
				case c.isOpen(a + b + base):
					continue
				case ext == extBlob || ext == extPart:
				case ext == extMap && mapAlone(filepath.Join(dir, base)):
				default:
					continue
				}
				var st unix.Stat_t
				if unix.Stat(filepath.Join(dir, name), &st) != nil {
					continue
				}
				out = append(out, candidate{filepath.Join(dir, base), time.Unix(st.Atim.Unix()), st.Blocks * 512})
				if len(out) >= sampleSize {
					return out
				}
			}
		}
	}
	return out
}

// mapAlone reports whether a map has no data: somebody removed that by hand, or a process ended in between.
func mapAlone(base string) bool {
	return unix.Access(base+extBlob, unix.F_OK) != nil && unix.Access(base+extPart, unix.F_OK) != nil
}

// shuffled returns the names in a directory in random order, none if it cannot be read.
func shuffled(dir string) []string {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// isOpen reports whether this process uses the version with this key in hexadecimal.
func (c *Cache) isOpen(name string) bool {
	var k key
	if n, err := hex.Decode(k[:], []byte(name)); err != nil || n != len(k) {
		return true // not ours: leave it alone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, open := c.versions[k]
	return open
}
