package blobcache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The map of a version: a header, the presence bitmap, the checksums. All numbers are little-endian.
//
//	0   8  magic "blobmap1"
//	8   8  size of the blob in bytes
//	16  4  CRC-32C of the first 16 bytes and the key
//	20  4  reserved, zero
//	24     bitmap, one bit a grain, padded to 4 bytes
//	..     CRC-32C of each grain, 4 bytes each, valid where the bit is set
//
// All processes that fill a version share its map. Each adds what it has stored, and takes over what it finds there, under
// a lock (flock) on the map that is held for some system calls: one that wrote its own bits over those of others would
// make a complete version one with gaps, which is fetched again. Files that were removed are not added to.
const (
	mapMagic  = "blobmap1"
	mapHeader = 24
)

func bitmapBytes(n int) int { return (n + 31) / 32 * 4 }

// mapSize returns the length of the map file of n units in bytes.
func mapSize(n int) int64 { return int64(mapHeader + bitmapBytes(n) + 4*n) }

func mapHead(k key, size int64) []byte {
	head := make([]byte, mapHeader)
	copy(head, mapMagic)
	binary.LittleEndian.PutUint64(head[8:], uint64(size))
	binary.LittleEndian.PutUint32(head[16:], k.sum(head[:16]))
	return head
}

func isMapHead(head []byte, k key, size int64) bool {
	return string(head[:8]) == mapMagic && int64(binary.LittleEndian.Uint64(head[8:])) == size &&
		binary.LittleEndian.Uint32(head[16:]) == k.sum(head[:16])
}

// errReplaced says that the open files of a version are not those that the directory names any more: another process has
// removed them since they were damaged, or has made another file the complete version.
var errReplaced = errors.New("cached files were replaced by another process")

// loadMap opens and reads the map. It takes no lock: checksums are written before their bits, and are read after them.
func (f *files) loadMap(base string, k key, size int64, p *presence) error {
	maps, err := openFile(base + extMap)
	if err != nil {
		return err
	}
	f.maps = maps
	raw := make([]byte, mapSize(p.have.n))
	if _, err := io.ReadFull(io.NewSectionReader(maps, 0, int64(len(raw))), raw); err != nil {
		return err
	}
	if !isMapHead(raw, k, size) {
		return errors.New("map does not belong to this version")
	}
	p.have.load(raw[mapHeader:])
	for i := range p.sums {
		p.sums[i] = binary.LittleEndian.Uint32(raw[mapHeader+bitmapBytes(p.have.n)+4*i:])
	}
	return nil
}

// lockMap opens the map at base, makes it if need be, and locks it until it is closed or unlocked.
func lockMap(base string) (*os.File, error) {
	for {
		maps, err := os.OpenFile(base+extMap, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = cmp.Or(lockFile(maps, unix.LOCK_EX), unix.Fstat(int(maps.Fd()), &st))
		if err == nil && st.Nlink > 0 {
			return maps, nil
		}
		_ = maps.Close()
		if err != nil {
			return nil, err
		}
		// It was removed before we had the lock.
	}
}

func lockFile(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// createMap opens the map of the version whose data file is open, makes it if need be, and takes over into p what others
// have noted there. Grown is by how many bytes on the disk the version has grown, also when it fails.
func (f *files) createMap(base string, k key, size int64, p *presence) (grown int64, err error) {
	if f.maps, err = lockMap(base); err != nil {
		return 0, err
	}
	defer lockFile(f.maps, unix.LOCK_UN)
	return f.beginMap(base, k, size, p)
}

// beginMap is createMap for a map that is open and locked. The whole length is reserved, so that later writes are in
// place.
func (f *files) beginMap(base string, k key, size int64, p *presence) (grown int64, err error) {
	var data, before, named unix.Stat_t
	if err := cmp.Or(unix.Fstat(int(f.data.Fd()), &data), unix.Fstat(int(f.maps.Fd()), &before)); err != nil {
		return 0, err
	}
	if unix.Stat(base+extBlob, &named) == nil && named.Ino != data.Ino {
		// Somebody has completed the version since we looked. Our file is of no use.
		if sameFile(f.data, base+extPart) && os.Remove(base+extPart) == nil {
			grown = -data.Blocks * 512
		}
		return grown, errReplaced
	}
	if data.Nlink == 0 {
		return 0, errReplaced
	}
	head := make([]byte, mapHeader)
	if n, _ := f.maps.ReadAt(head, 0); n == mapHeader && before.Size == mapSize(p.have.n) && isMapHead(head, k, size) {
		there, err := f.others(p)
		if err != nil {
			return 0, err
		}
		// Bytes are written before their bits: bits without any bytes are of a file that was removed without its map.
		if data.Size > 0 || there.ones == 0 {
			return 0, f.takeOver(p, there)
		}
	}
	if err := cmp.Or(f.maps.Truncate(0), f.maps.Truncate(mapSize(p.have.n))); err != nil {
		return 0, err
	}
	if _, err := f.maps.WriteAt(mapHead(k, size), 0); err != nil {
		return 0, err
	}
	return f.grownSince(&before), nil
}

// saveMap adds grains [from, to) of a version of this size, and what p has beside them in the same bytes of the bitmap: the
// checksums and then the bits. When others have added grains that p lacks, it gets them. Had are the bytes of [from, to)
// that somebody had added before, grown those by which the map has grown on the disk.
func (f *files) saveMap(p *presence, size int64, from, to int) (had, grown int64, err error) {
	if err := lockFile(f.maps, unix.LOCK_EX); err != nil {
		return 0, 0, err
	}
	defer lockFile(f.maps, unix.LOCK_UN)
	var data, before unix.Stat_t
	if err := cmp.Or(unix.Fstat(int(f.data.Fd()), &data), unix.Fstat(int(f.maps.Fd()), &before)); err != nil {
		return 0, 0, err
	}
	if data.Nlink == 0 || before.Nlink == 0 {
		return 0, 0, errReplaced
	}
	had, err = f.addToMap(p, size, from, to)
	return had, f.grownSince(&before), err
}

// addToMap is the middle of saveMap. The map is locked.
func (f *files) addToMap(p *presence, size int64, from, to int) (had int64, err error) {
	first, last := from/8, (to-1)/8
	bits := make([]byte, last-first+1)
	if _, err := f.maps.ReadAt(bits, int64(mapHeader+first)); err != nil && err != io.EOF {
		return 0, err
	}
	for i := from; i < to; i++ {
		if bits[i/8-first]&(1<<(i%8)) != 0 {
			had += roundBlock(min(p.unit, size-int64(i)*p.unit))
		}
	}
	more := false
	for i := range bits {
		more = more || bits[i]&^p.have.byteAt(first+i) != 0
		bits[i] |= p.have.byteAt(first + i)
	}
	if more { // others are at work: what they have need not be fetched
		there, err := f.others(p)
		if err := cmp.Or(err, f.takeOver(p, there)); err != nil {
			return had, err
		}
	}
	sums := make([]byte, 4*(to-from))
	for i := from; i < to; i++ {
		binary.LittleEndian.PutUint32(sums[4*(i-from):], p.sums[i])
	}
	if _, err := f.maps.WriteAt(sums, int64(mapHeader+bitmapBytes(p.have.n)+4*from)); err != nil {
		return had, err
	}
	_, err = f.maps.WriteAt(bits, int64(mapHeader+first))
	return had, err
}

// others returns the grains that the map has and p lacks. The map is locked.
func (f *files) others(p *presence) (bitmap, error) {
	there := newBitmap(p.have.n)
	raw := make([]byte, bitmapBytes(p.have.n))
	if _, err := f.maps.ReadAt(raw, mapHeader); err != nil && err != io.EOF {
		return there, err
	}
	there.load(raw)
	there.remove(&p.have)
	return there, nil
}

// takeOver adds grains that the map has to p, with their checksums. The map is locked.
func (f *files) takeOver(p *presence, there bitmap) error {
	for from := there.nextSet(0, there.n); from < there.n; {
		to := there.nextClear(from, there.n)
		sums := make([]byte, 4*(to-from))
		if _, err := f.maps.ReadAt(sums, int64(mapHeader+bitmapBytes(there.n)+4*from)); err != nil {
			return err
		}
		for i := from; i < to; i++ {
			p.sums[i] = binary.LittleEndian.Uint32(sums[4*(i-from):])
			p.have.set(i)
		}
		from = there.nextSet(to, there.n)
	}
	return nil
}

// grownSince returns by how many bytes on the disk the map has grown: it is sparse, and that of a large blob of which
// little was read stays so.
func (f *files) grownSince(before *unix.Stat_t) int64 {
	var now unix.Stat_t
	if unix.Fstat(int(f.maps.Fd()), &now) != nil {
		return 0
	}
	return (now.Blocks - before.Blocks) * 512
}

// rekeyMap is rekey for the map.
func rekeyMap(base string, from, to key) {
	maps, err := openFile(base + extMap)
	if err != nil {
		return
	}
	defer maps.Close()
	var head [20]byte
	if _, err := maps.ReadAt(head[:], 0); err == nil && binary.LittleEndian.Uint32(head[16:]) == from.sum(head[:16]) {
		binary.LittleEndian.PutUint32(head[16:], to.sum(head[:16]))
		_, _ = maps.WriteAt(head[16:], 16)
	}
}
