package blobcache

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a version has on disk: opening it, comparing checksums, storing what arrived, and giving up what is not good.

// load opens what the disk has. v.mu is held, or nobody else knows v yet.
func (v *version) load() {
	base := v.key.path(v.c.dir)
	f, p, err := openFiles(base, v.key, v.size, v.c.small)
	if errors.Is(err, errDamaged) {
		v.c.log.Warn("cached data is damaged and will be fetched again", "blob", v.src.name, "error", err)
		v.c.space.release(removeFiles(base))
	} else if err != nil {
		v.c.log.Warn("cached data cannot be opened, reading without the cache", "file", base, "error", err)
		v.diskless = true
	}
	if f.data != nil && !f.complete && p.have.full() {
		// Its process ended before it could give it its name, or several have filled it together. If that fails it is read as
		// it is.
		surplus, _ := f.publish(base, v.key, v.size, &p)
		v.c.space.change(-surplus)
	}
	v.files, v.p, v.touched = f, p, f.used
	v.checked = newBitmap(p.have.n)
	if f.complete && v.c.wasChecked(v.key, f.ino) {
		v.checked.setAll()
	}
}

// unread reports whether [off, end) is the whole of a small blob that is on disk and was not read by this process yet.
// v.mu is held.
func (v *version) unread(off, end int64) bool {
	return v.p.single() && off == 0 && end == v.size && v.p.have.full() && !v.checked.full()
}

// readChecked reads the whole of a small blob into buf, and compares its checksum there: a second reading only for that
// would double the cost of the first. v.mu is held.
func (v *version) readChecked(buf []byte) bool {
	if _, err := v.files.data.ReadAt(buf, 0); err != nil || crc32.Checksum(buf, castagnoli) != v.p.sums[0] {
		v.damaged(0, err)
		return false
	}
	v.checked.set(0)
	v.c.setChecked(v.key, v.files.data)
	return true
}

// unitBuffers are for reading a unit only to compare its checksum. There are as many as goroutines do that at once.
var unitBuffers = sync.Pool{New: func() any { return new([sumMax]byte) }}

// errSum says that bytes were read, and are not what was stored.
var errSum = errors.New("the checksum does not match")

// damaged forgets what is on disk, because the bytes at off cannot be read (err) or are not what was stored. v.mu is held.
func (v *version) damaged(off int64, err error) {
	err = cmp.Or(err, errSum)
	v.c.log.Warn("cached data is damaged and will be fetched again", "blob", v.src.name, "offset", off, "error", err)
	v.forget()
}

// onDisk reports whether [off, end) is on disk and good. v.mu is held, and may be let go in between.
func (v *version) onDisk(off, end int64) bool {
	first, last := int(off/v.p.unit), int((end-1)/v.p.unit)+1
	if v.p.have.nextClear(first, last) < last {
		return false
	}
	return v.verify(off, end)
}

// verify compares the checksums of those units of [off, end) that this process has not read yet. A unit that is
// not what was stored is forgotten, and false returned. v.mu is held.
func (v *version) verify(off, end int64) bool {
	first, last := int(off/v.p.unit), int((end-1)/v.p.unit)+1
	next := v.checked.nextClear(first, last)
	if next >= last {
		return true
	}
	scratch := unitBuffers.Get().(*[sumMax]byte)
	defer unitBuffers.Put(scratch)
	for i := next; i < last; i = v.checked.nextClear(i+1, last) {
		from := int64(i) * v.p.unit
		buf := (*scratch)[:min(v.p.unit, v.size-from)]
		if _, err := v.files.data.ReadAt(buf, from); err != nil || crc32.Checksum(buf, castagnoli) != v.p.sums[i] {
			v.damaged(from, err)
			return false
		}
		v.checked.set(i)
	}
	if v.files.complete && v.checked.full() {
		v.c.setChecked(v.key, v.files.data)
	}
	return true
}

// forget gives up everything that the disk has of the version. The files are only unlinked: who reads them goes
// on reading. v.mu is held.
func (v *version) forget() {
	v.c.space.release(removeFiles(v.key.path(v.c.dir)))
	v.retire()
}

// retire goes on without the files that are open. Readers may be about to read the old descriptor: it is closed with the
// version, not now. v.mu is held.
func (v *version) retire() {
	v.retired = append(v.retired, v.files)
	v.files = files{}
	v.p = newPresence(v.size, v.c.small)
	v.checked = newBitmap(v.p.have.n)
}

// pread fills buf from the cache file. On failure the version goes on without the disk, and false is returned.
func (v *version) pread(data *os.File, buf []byte, off int64) bool {
	_, err := data.ReadAt(buf, off)
	if err == nil {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.c.log.Warn("cache file cannot be read, fetching again", "blob", v.src.name, "offset", off, "error", err)
	v.forget()
	v.diskless = true
	return false
}

// store writes bytes that arrived to the disk and marks them as present; whole units only. It reports whether they
// are there.
func (v *version) store(b []byte, off int64) bool {
	v.mu.Lock()
	skip, there, unit := v.diskless, v.files.complete, v.p.unit
	v.mu.Unlock()
	if skip || there {
		return there
	}
	sums := make([]uint32, 0, len(b)/grain+1)
	for rest := b; len(rest) > 0; {
		n := min(int64(len(rest)), unit)
		sums = append(sums, crc32.Checksum(rest[:n], castagnoli))
		rest = rest[n:]
	}
	// Making room may evict, and eviction takes Cache.mu, so v.mu is not held.
	if !v.c.space.reserve(int64(len(b))) {
		return false
	}
	defer v.c.space.arrived(int64(len(b)))
	v.mu.Lock()
	err := v.ready(v.key.path(v.c.dir))
	data := v.files.data
	v.mu.Unlock()
	if err == nil {
		// In turn: the kernel lets one writer at a time into a file, and the others would spin on a processor meanwhile.
		// Of a cold stream without delays that was an eighth of all processor time.
		v.storing.Lock()
		_, err = data.WriteAt(b, off)
		v.storing.Unlock()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.c.space.release(int64(len(b)))
	}
	if err == nil && v.files.data != data { // forgotten in the meantime
		v.c.space.release(int64(len(b)))
		return false
	}
	first := int(off / v.p.unit)
	if err == nil {
		for i, s := range sums {
			v.p.sums[first+i] = s
			v.p.have.set(first + i)
			v.checked.set(first + i)
		}
		if !v.p.single() {
			var had, grown int64
			if had, grown, err = v.files.saveMap(&v.p, v.size, first, first+len(sums)); errors.Is(err, errReplaced) {
				had = roundBlock(int64(len(b))) // they are in a file that goes when it is closed
			}
			v.c.space.change(grown - had) // another process has reserved and counted what the map had
		}
	}
	if err == nil && v.p.have.full() {
		// The key may be another one since the mutex was let go, and what an earlier process has stored may not have been
		// compared yet.
		var surplus int64
		if surplus, err = v.files.publish(v.key.path(v.c.dir), v.key, v.size, &v.p); err == nil && v.checked.full() {
			v.c.setChecked(v.key, v.files.data)
		}
		v.c.space.change(-surplus)
	}
	if errors.Is(err, errReplaced) {
		v.retire()
		v.load()
		return v.files.complete
	}
	if err != nil {
		v.c.log.Warn("cache file cannot be written, reading goes on without it", "blob", v.src.name, "error", err)
		v.forget() // gives back what the file holds
		v.diskless = true
		return false
	}
	return true
}

// ready creates the version's files if there are none yet. v.mu is held.
func (v *version) ready(base string) error {
	if v.files.data != nil {
		return nil
	}
	if err := v.files.create(base); err != nil {
		return err
	}
	if v.p.single() {
		return nil
	}
	grown, err := v.files.createMap(base, v.key, v.size, &v.p)
	v.c.space.change(grown)
	return err
}

// touchEvery is how exact the times are by which eviction chooses. Each note dirties an inode on the disk.
const touchEvery = 5 * time.Minute

// touch notes the use for eviction. v.mu is held.
func (v *version) touch() {
	if v.files.data == nil {
		return
	}
	now := v.c.now()
	if now.Sub(v.touched) < touchEvery {
		return
	}
	v.touched = now
	touchFd(int(v.files.data.Fd()), now)
}

// touchFd sets the access time of a cache file by hand: most disks are mounted with relatime. It goes by descriptor, since
// the file changes its name when it is complete. A failure only makes the version look older than it is.
func touchFd(fd int, now time.Time) {
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{
		unix.NsecToTimespec(now.UnixNano()), {Nsec: unix.UTIME_OMIT}}, 0)
}
