package blobcache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// grain is the unit in which presence and checksums are recorded. 64 KiB is 16 times the smallest read, so that
// random 4 KiB reads fetch at most 16 times what they ask, and the map of a 10 GiB blob is 800 KiB.
const grain = 64 << 10

// castagnoli is the polynomial for which processors have an instruction.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// key names a version on disk: a hash of everything that tells versions apart.
type key [16]byte

func keyOf(url string, etag blob.ETag) key {
	h := sha256.New()
	h.Write([]byte(url))
	h.Write([]byte{0})
	h.Write([]byte(etag))
	return key(h.Sum(nil)[:16])
}

// path returns the path without its extension. There are 4,096 directories: with 65,536 nearly every file of a small
// cache has a directory of its own, and with an empty inode cache the opens pay for reading that from the disk; with 256
// a cache of ten million files has 40,000 in each, all of which eviction reads to choose one.
func (k key) path(dir string) string {
	x := hex.EncodeToString(k[:])
	return filepath.Join(dir, "v1", x[:2], x[2:3], x[3:])
}

// sum is a checksum of what a version's files say of it, and of the key: so a file of one version is not taken for that of
// another, whatever became of the directories that name them.
func (k key) sum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, k[:])
}

// The extensions of a version's files.
const (
	extBlob = ".blob"
	extPart = ".part"
	extMap  = ".map"
)

// files are the open files of one version. The zero value has none. It is not safe for parallel use.
type files struct {
	data     *os.File
	maps     *os.File // nil for a complete version whose checksums are loaded
	complete bool
	used     time.Time // when it was used last, as of the opening
	ino      uint64    // of data, as of the opening; 0 for a file that was created
}

func (f *files) close() {
	for _, x := range []*os.File{f.data, f.maps} {
		if x != nil {
			_ = x.Close() // nothing that is not also checksummed can be lost
		}
	}
	*f = files{}
}

// presence says which units of a version are on disk, and the checksum of each. A unit is a grain, or the whole
// blob if that is small.
type presence struct {
	unit int64 // bytes
	have bitmap
	sums []uint32
}

// newPresence returns the empty presence of a blob of this size. Blobs of up to small bytes are one unit.
func newPresence(size, small int64) presence {
	p := presence{unit: grain}
	if size <= small {
		p.unit = small
	}
	n := int((size + p.unit - 1) / p.unit)
	p.have = newBitmap(n)
	p.sums = make([]uint32, n)
	return p
}

// single reports whether the blob is one unit whose checksum is kept in an extended attribute.
func (p *presence) single() bool { return p.unit != grain }

// errDamaged says that what the disk has of a version cannot be trusted.
var errDamaged = errors.New("cached files do not belong together")

// openFile is os.OpenFile for a regular file of the cache that is there. That asks the poller whether it takes the file,
// which takes no regular file, by five system calls.
func openFile(path string) (*os.File, error) {
	fd, err := openFd(path, unix.O_RDWR)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func openFd(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openFiles opens what the disk has of a version. Without anything it returns no files and no error.
func openFiles(base string, k key, size, small int64) (files, presence, error) {
	p := newPresence(size, small)
	for _, ext := range []string{extBlob, extPart} {
		data, err := openFile(base + ext)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if errors.Is(err, unix.EISDIR) {
			return files{}, p, fmt.Errorf("%w: %w", errDamaged, err)
		}
		if err != nil {
			return files{}, p, err
		}
		// Held as long as the file is open: it keeps a process from evicting the file, or turning it into a staging
		// file (takeOver), while another one reads it or adds to it.
		var st unix.Stat_t
		if unix.Flock(int(data.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil || unix.Fstat(int(data.Fd()), &st) != nil || st.Nlink == 0 {
			_ = data.Close()
			continue
		}
		f := files{data: data, complete: ext == extBlob, used: time.Unix(st.Atim.Unix()), ino: st.Ino}
		err = f.load(base, k, st.Size, size, &p)
		if !f.complete && st.Size == 0 && p.have.ones == 0 {
			f.close() // a process is about to fill it, and perhaps has not made its map yet
			continue
		}
		if err != nil {
			f.close()
			return files{}, newPresence(size, small), fmt.Errorf("%w: %w", errDamaged, err)
		}
		return f, p, nil
	}
	return files{}, p, nil
}

// load reads the map and checks that it and a file of length bytes belong to a blob of this size.
func (f *files) load(base string, k key, length, size int64, p *presence) error {
	if f.complete && length != size || length > size {
		return fmt.Errorf("cached file is %d bytes, the blob %d", length, size)
	}
	if p.single() {
		if !f.complete {
			return errors.New("a small version is never kept in part")
		}
		sum, err := readSum(int(f.data.Fd()), k, size)
		if err != nil {
			return err
		}
		p.have.setAll()
		p.sums[0] = sum
		return nil
	}
	if err := f.loadMap(base, k, size, p); err != nil {
		return err
	}
	if p.have.full() && length != size {
		return fmt.Errorf("cached file is %d bytes, its map says %d", length, size)
	}
	if length == 0 && p.have.ones > 0 {
		return errors.New("cached file is empty, its map is not")
	}
	if f.complete && !p.have.full() {
		return errors.New("map of a complete version has gaps")
	}
	return nil
}

// create makes the files of a version of which nothing is there yet.
func (f *files) create(base string) error {
	var data *os.File
	for try := 0; ; try++ {
		if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
			return err
		}
		var err error
		if data, err = os.OpenFile(base+extPart, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
			break
		}
		// Eviction removes empty directories, and may have removed this one just now.
		if try == 2 || !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := unix.Flock(int(data.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		_ = data.Close()
		return err
	}
	*f = files{data: data}
	return nil
}

// sumsWork reports whether the file system below dir keeps extended attributes; without them every version has a map.
func sumsWork(dir string) bool {
	f, err := os.CreateTemp(dir, "probe")
	if err != nil {
		return false
	}
	defer os.Remove(f.Name())
	defer f.Close()
	return writeSum(f, key{}, 0, 0) == nil
}

// publish gives the filled data file its final name. The name is linked to the very file that was filled:
// another process may have evicted our .part and begun its own under the same name. When another one has published the
// version, surplus is what of the file was counted twice, or is not on the disk any more, in bytes.
func (f *files) publish(base string, k key, size int64, p *presence) (surplus int64, err error) {
	if p.single() {
		if err := writeSum(f.data, k, size, p.sums[0]); err != nil {
			return 0, err
		}
	} else if !sameFile(f.maps, base+extMap) {
		return 0, errReplaced
	}
	if err := f.data.Truncate(size); err != nil {
		return 0, err
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.data.Fd()), unix.AT_FDCWD, base+extBlob,
		unix.AT_SYMLINK_FOLLOW)
	first := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, err
	}
	f.complete = first || sameFile(f.data, base+extBlob)
	if !first && p.single() {
		surplus = roundBlock(size) // each process has reserved the whole, and one file stays
	}
	var ours, named unix.Stat_t
	if unix.Fstat(int(f.data.Fd()), &ours) == nil && unix.Stat(base+extPart, &named) == nil && ours.Ino == named.Ino {
		// A second name for the same bytes costs nothing, but is the only one if another file is the complete version.
		if os.Remove(base+extPart) == nil && !f.complete && !p.single() {
			surplus = ours.Blocks * 512
		}
	}
	return surplus, nil
}

// sameFile reports whether a path names an open file.
func sameFile(f *os.File, path string) bool {
	var ours, named unix.Stat_t
	return unix.Fstat(int(f.Fd()), &ours) == nil && unix.Stat(path, &named) == nil && ours.Ino == named.Ino
}

// removeFiles unlinks a version and returns how many bytes it held. Open files stay readable.
func removeFiles(base string) int64 {
	var freed int64
	for _, ext := range []string{extBlob, extPart, extMap} {
		freed += removeFile(base + ext)
	}
	return freed
}

// removeFile unlinks a file if it is there, and returns how many bytes it held.
func removeFile(path string) (freed int64) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && os.Remove(path) == nil && st.Nlink == 1 {
		freed = st.Blocks * 512
	}
	return freed
}

// removeIdle is removeFiles for a version that no process has open; else it does nothing and returns 0.
func removeIdle(base string) int64 {
	// A staging file may be about to become the version: its map is there first, and locked until then.
	if maps, err := os.Open(base + extMap); err == nil {
		defer maps.Close()
		if unix.Flock(int(maps.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return 0
		}
	}
	for _, ext := range []string{extBlob, extPart} {
		f, err := os.Open(base + ext)
		if err != nil {
			continue
		}
		defer f.Close() // and with it the lock, when the names are gone
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return 0
		}
	}
	return removeFiles(base)
}

// A version of up to sumMax bytes is one unit: it is fetched and kept whole, and its checksum is in an extended
// attribute of the data file. A map file would double the number of files in a cache of small blobs.
//
// The attribute, in little-endian numbers:
//
//	0   8  size of the blob in bytes
//	8   4  CRC-32C of the content
//	12  4  CRC-32C of the first 12 bytes and the key
const (
	sumMax  = 1 << 20
	sumAttr = "user.blobmount"
	sumSize = 16
)

func writeSum(f *os.File, k key, size int64, sum uint32) error {
	var v [sumSize]byte
	binary.LittleEndian.PutUint64(v[:], uint64(size))
	binary.LittleEndian.PutUint32(v[8:], sum)
	binary.LittleEndian.PutUint32(v[12:], k.sum(v[:12]))
	return unix.Fsetxattr(int(f.Fd()), sumAttr, v[:], 0)
}

func readSum(fd int, k key, size int64) (uint32, error) {
	var v [sumSize + 1]byte
	n, err := unix.Fgetxattr(fd, sumAttr, v[:])
	if err != nil {
		return 0, err
	}
	if n != sumSize || int64(binary.LittleEndian.Uint64(v[:])) != size || binary.LittleEndian.Uint32(v[12:]) != k.sum(v[:12]) {
		return 0, errors.New("checksum does not belong to this version")
	}
	return binary.LittleEndian.Uint32(v[8:]), nil
}

// rekey makes what the disk has at base say that it belongs to another key, before it is renamed. What was not good
// before stays so, and what fails is fetched again.
func rekey(base string, from, to key) {
	var v [sumSize + 1]byte
	if n, err := unix.Getxattr(base+extBlob, sumAttr, v[:]); err == nil && n == sumSize && binary.LittleEndian.Uint32(v[12:]) == from.sum(v[:12]) {
		binary.LittleEndian.PutUint32(v[12:], to.sum(v[:12]))
		_ = unix.Setxattr(base+extBlob, sumAttr, v[:sumSize], unix.XATTR_REPLACE)
	}
	rekeyMap(base, from, to)
}
