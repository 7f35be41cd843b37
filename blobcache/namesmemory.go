package blobcache

// MinNamesMemory is the least bound of memory for names, in bytes: a few pages of a listing.
const MinNamesMemory = 4 << 20

// grow counts memory that is used from now on. Who holds n.mu and has done what it wanted calls shrink.
func (n *Names) grow(bytes int64) { n.used += bytes }

// shrink forgets the directories that were not used for longest until the rest fits. Of the one that was used last it gives
// up the beginning of the listing first: when a directory does not fit, what is being read of it is kept. n.mu is held.
func (n *Names) shrink() {
	for tries := n.recent.Len(); n.used > n.limit && tries > 0; tries-- {
		d := n.recent.Back().Value.(*dirNames)
		if tries == 1 && d.listing != nil {
			for n.used > n.limit {
				freed := d.listing.trim()
				if freed == 0 {
					break
				}
				n.used -= freed
			}
			if n.used <= n.limit || len(d.over) == 0 {
				return
			}
		}
		n.release(d)
	}
}

// release forgets a directory, but not what the service does not have yet. n.mu is held.
func (n *Names) release(d *dirNames) {
	n.seq++
	n.drop(d.path)
	// The rest gets a new place: answers that are on their way know the old one, and so are not kept.
	for name, k := range d.over {
		if k.Pending {
			n.set(n.dir(d.path), name, k)
		}
	}
}

// Memory returns the bytes of memory that names take, as estimated.
func (n *Names) Memory() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.used
}

// NamesStatistics say what is known of names.
type NamesStatistics struct {
	Directories int   // of which something is known
	Names       int64 // in them; one that was changed here may count twice
	Bytes       int64 // of memory, as estimated
	Limit       int64 // bytes
}

// Statistics returns what is known, in a time that grows with the number of directories.
func (n *Names) Statistics() NamesStatistics {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := NamesStatistics{Directories: len(n.dirs), Bytes: n.used, Limit: n.limit}
	for _, d := range n.dirs {
		s.Names += int64(len(d.over))
		if d.listing != nil {
			s.Names += int64(d.listing.count)
		}
	}
	return s
}
