package crash

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// PowerCut unmounts the disk, loses a random part of what was not synced, and mounts it again. All who used it must
// have ended.
func (d *Disk) PowerCut(random *rand.Rand) error {
	if err := d.unmount(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dir := range d.dirs {
		if n := len(dir.changes); n > 0 {
			dir.sync(random.IntN(n + 1))
		}
	}
	last, err := d.lastStates()
	if err != nil {
		return err
	}
	next := filepath.Join(d.dir, "next")
	r := &rebuild{random: random, last: last, made: map[*object]string{}}
	if err := r.directory(d.root, next); err != nil {
		return fmt.Errorf("power cut: %w", err)
	}
	if err := os.RemoveAll(d.lower()); err != nil {
		return err
	}
	if err := os.Rename(next, d.lower()); err != nil {
		return err
	}
	return d.mount()
}

// Sync keeps everything as it is, as sync(2) does, and the kernel by itself after half a minute.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	last, err := d.lastStates()
	if err != nil {
		return err
	}
	for o, s := range last {
		o.synced = s
	}
	for _, dir := range d.dirs {
		dir.sync(len(dir.changes))
	}
	return nil
}

// lastStates returns what each file was when the power went, synced or not. d.mu is held.
func (d *Disk) lastStates() (map[*object]snapshot, error) {
	last := map[*object]snapshot{}
	err := filepath.WalkDir(d.lower(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		o := d.objectAt(path)
		if o == nil {
			return fmt.Errorf("%s came past the disk", path)
		}
		last[o], err = takeSnapshot(path)
		return err
	})
	return last, err
}

// rebuild makes a directory as it is after a power cut.
type rebuild struct {
	random *rand.Rand
	last   map[*object]snapshot
	made   map[*object]string // where an object is already, for its other names
}

func (r *rebuild) directory(o *object, path string) error {
	if r.made[o] != "" {
		return fmt.Errorf("%s is a directory under two names", path)
	}
	r.made[o] = path
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(o.dir.names)) {
		child, below := o.dir.names[name], filepath.Join(path, name)
		var err error
		switch {
		case child.dir != nil:
			err = r.directory(child, below)
		case r.made[child] != "":
			err = os.Link(r.made[child], below)
		default:
			r.made[child] = below
			err = r.file(child, below)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *rebuild) file(o *object, path string) error {
	last, ok := r.last[o]
	if !ok && o.last != nil {
		last = *o.last
	}
	content := mix(o.synced.content, last.content, r.random)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(path, last.mode); err != nil {
		return err
	}
	attrs := o.synced.attrs
	if r.random.IntN(2) == 0 {
		attrs = last.attrs
	}
	for name, value := range attrs {
		if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}

// pageSize is what the kernel writes back at once.
const pageSize = 4096

// mix returns what may be left of a file that was synced once and written since: each page is the old or the new one,
// pages that are new may be zeros, and the length may be any between the two.
func mix(synced, last []byte, random *rand.Rand) []byte {
	how := random.IntN(4)
	switch how {
	case 0:
		return synced
	case 1:
		return last
	}
	mixed := make([]byte, max(len(synced), len(last)))
	copy(mixed, synced)
	for off := 0; off < len(last); off += pageSize {
		if random.IntN(2) == 0 {
			copy(mixed[off:min(off+pageSize, len(mixed))], last[off:min(off+pageSize, len(last))])
		}
	}
	if how == 2 {
		return mixed[:len(last)]
	}
	least := min(len(synced), len(last))
	return mixed[:least+random.IntN(len(mixed)-least+1)]
}
