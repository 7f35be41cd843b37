package blobcache

import (
	"cmp"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// A backing file is a cache file that the kernel reads by itself (FUSE passthrough), without a word to us. So it must
// be whole and good before it is shown, and whatever its readers are to see later has to happen in that very file.

// checkNow is the size up to which a complete version that this process has not read yet is checked at open: 64 MiB
// take 40 ms out of the page cache, and 80 ms from a disk of 0.8 GiB a second. A larger one is checked in the
// background, and is shown to the kernel when it is opened the next time.
const checkNow = 64 << 20

// whole returns the data file if it holds all of the version, compared with its checksums; else nil.
func (v *version) whole() *os.File {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.files.complete {
		return nil
	}
	if !v.checked.full() {
		if v.size > checkNow {
			if !v.checking {
				v.checking = true
				v.running.Go(v.check)
			}
			return nil
		}
		if !v.verify(0, v.size) {
			return nil
		}
	}
	return v.files.data
}

// check compares all checksums of a complete version, in small steps so that readers get in between.
func (v *version) check() {
	for off := int64(0); off < v.size && v.ctx.Err() == nil; off += largeSlab {
		v.mu.Lock()
		good := v.files.complete && v.verify(off, min(off+largeSlab, v.size))
		v.mu.Unlock()
		if !good {
			return
		}
	}
}

// Backing returns a file that holds all of the content and that the kernel may read until the File's last Release, or
// nil if there is none. Writes that come while it is shown go into that file, so that its readers see them.
func (f *File) Backing() *os.File {
	f.mu.RLock()
	clean := f.stage == nil && f.limit == f.size && f.limit > 0
	f.mu.RUnlock()
	if !clean {
		return nil
	}
	v := f.version()
	if v == nil {
		return nil
	}
	file := v.whole()
	f.c.unhold(v) // before f.mu, with which a write waits for that
	if file == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.base != v || f.stage != nil { // a write came in between
		return nil
	}
	f.exposed, f.shown = true, inodeOf(file)
	return file
}

// Hide tells that the kernel does not read the backing file any more.
func (f *File) Hide() {
	f.mu.Lock()
	f.exposed = false
	f.mu.Unlock()
}

// inodeOf returns the inode number of an open file, 0 if it cannot be had.
func inodeOf(file *os.File) uint64 {
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

// isFile reports whether a version's data lies in the file with this inode number.
func (v *version) isFile(ino uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.files.data != nil && inodeOf(v.files.data) == ino
}

// takeOver makes the cache file of the base the staging file of its File: a change of a little in a large file then
// leaves all of it in the cache, and readers whom the kernel serves from that file see what is written. It fails with
// Busy if that cannot be: another File or process has the version open, and must go on seeing the old content, or not
// all of it is known to be good. f.mu is held.
func (f *File) takeOver() (*stage, error) {
	v, c := f.base, f.c
	if v.size != f.limit || v.size <= c.small && !f.exposed { // a small file is read sooner than its cache file is taken
		return nil, f.busy()
	}
	if f.exposed && !v.isFile(f.shown) { // somebody else has cached the version before our file became it
		return nil, f.busy()
	}
	if !v.known() || !c.quiet(v) {
		return nil, f.busy()
	}
	s, err := c.journaled(f.header())
	if err != nil {
		return nil, err
	}
	if err := s.journal.span(recHeld, 0, v.size); err != nil || !v.become(s) {
		s.drop()
		return nil, cmp.Or(err, f.busy())
	}
	return s, nil
}

func (f *File) busy() error {
	return &blob.Error{Code: blob.Busy, Op: "Write", Name: f.props.Name}
}

// relock takes the shared lock again: flock(2) gives the old one up before it tries for another, also when it fails then.
// When somebody else was faster, the file is about to change. v.mu is held.
func (v *version) relock() {
	if unix.Flock(int(v.files.data.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		v.retire()
	}
}

// known reports whether the disk has all of the version, and all of it was compared: else it cannot become a staging file.
func (v *version) known() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.files.complete && v.checked.full()
}

// quietWait bounds how long a write waits for replies that are on their way.
const quietWait = time.Second

// quiet waits until no reply reads the cache file of a version any more, and reports whether that came about: bytes that
// are lent, or about to be read, must not change. Its File's mutex is held, so that no new read begins; those of a complete
// version wait for nothing but the kernel's copy.
func (c *Cache) quiet(v *version) bool {
	bound := time.NewTimer(quietWait)
	defer bound.Stop()
	for {
		quieted := v.quieted.next()
		c.mu.Lock()
		reads := v.reads
		c.mu.Unlock()
		if reads == 0 {
			return true
		}
		select {
		case <-quieted:
		case <-bound.C:
			return false
		}
	}
}

// become makes the cache file of a version the data of a staging file, and reports whether it could.
func (v *version) become(s *stage) bool {
	c := v.c
	c.mu.Lock()
	defer c.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.refs != 1 || v.reads > 0 || !v.files.complete || !v.checked.full() {
		return false
	}
	if unix.Flock(int(v.files.data.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		v.relock()
		return false
	}
	// It loses its place in the cache before its first byte changes.
	if os.Rename(v.key.path(c.dir)+extBlob, c.stagingPath(s.id, extData)) != nil {
		// It was evicted by another process: without a name it could not become a version again.
		v.relock()
		return false
	}
	c.space.release(removeFile(v.key.path(c.dir) + extMap)) // of a version that is not there any more
	s.file = v.files.data
	s.valid.add(0, v.size)
	s.count = roundBlock(v.size) // was counted as the version's, and is now the staging file's
	if use, ok := diskUse(s.file); ok {
		s.count = use // without its holes
	}
	v.files.data = nil
	v.files.close()
	v.p = newPresence(v.size, c.small) // who still reads the old version fetches it
	v.checked = newBitmap(v.p.have.n)
	if c.versions[v.key] == v {
		delete(c.versions, v.key)
	}
	return true
}
