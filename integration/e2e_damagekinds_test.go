package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What a disk, a loss of power or somebody makes of the files of a cached version.

// damageKind is a way to damage a cached file.
type damageKind struct {
	name string
	of   func(f *cachedFile) bool // which files it can happen to; nil: all
	// with: other must be an undamaged file of the same size, and in part too if f is. both: it is damaged too.
	with, both bool
	// do sets sure and at of the file.
	do func(f, other *cachedFile, random *rand.Rand) error
}

func ofMapped(f *cachedFile) bool { return !f.single() }
func ofSingle(f *cachedFile) bool { return f.single() }
func ofPart(f *cachedFile) bool   { return f.part }

var damageKinds = []damageKind{
	{name: "a bit of the data", do: func(f, _ *cachedFile, random *rand.Rand) error {
		return f.alter(random, func(at int) (int, func([]byte)) {
			return 1, func(b []byte) { b[0] ^= 1 << random.IntN(8) }
		})
	}},
	{name: "a page of zeros", do: func(f, _ *cachedFile, random *rand.Rand) error {
		return f.alter(random, func(at int) (int, func([]byte)) {
			return min(4096, len(f.want)-at), func(b []byte) { clear(b) }
		})
	}},
	{name: "zeros to the end", do: func(f, _ *cachedFile, random *rand.Rand) error {
		return f.shorten(random, func(file *os.File, size, length int64) error {
			return errors.Join(file.Truncate(size), file.Truncate(length))
		})
	}},
	{name: "data cut", do: func(f, _ *cachedFile, random *rand.Rand) error {
		return f.shorten(random, func(file *os.File, size, _ int64) error { return file.Truncate(size) })
	}},
	{name: "data one byte short", do: func(f, _ *cachedFile, _ *rand.Rand) error {
		return f.cutTo(f.data(), func(length int64) int64 { return length - 1 })
	}},
	{name: "data empty", do: func(f, _ *cachedFile, _ *rand.Rand) error {
		return f.cutTo(f.data(), func(int64) int64 { return 0 })
	}},
	{name: "data too long", do: func(f, _ *cachedFile, random *rand.Rand) error {
		f.sure, f.at = true, len(f.want)-1
		return os.Truncate(f.data(), int64(len(f.want)+1+random.IntN(100_000)))
	}},
	{name: "no data", do: func(f, _ *cachedFile, _ *rand.Rand) error {
		return os.Remove(f.data()) // there is nothing to say of it: it is not cached
	}},
	{name: "a directory for the data", do: func(f, _ *cachedFile, _ *rand.Rand) error { return f.toDirectory(f.data()) }},
	{name: "another's content", with: true, do: func(f, other *cachedFile, _ *rand.Rand) error {
		content, err := os.ReadFile(other.data())
		if err != nil {
			return err
		}
		f.sure = true
		return overwrite(f.data(), content)
	}},
	{name: "data exchanged", with: true, both: true, do: func(f, other *cachedFile, _ *rand.Rand) error {
		return f.exchange(other, f.data(), other.data())
	}},
	{name: "maps exchanged", of: ofMapped, with: true, both: true, do: func(f, other *cachedFile, _ *rand.Rand) error {
		return f.exchange(other, f.maps(), other.maps())
	}},
	{name: "data and maps exchanged", of: ofMapped, with: true, both: true, do: func(f, other *cachedFile, _ *rand.Rand) error {
		return errors.Join(f.exchange(other, f.maps(), other.maps()), f.exchange(other, f.data(), other.data()))
	}},
	{name: "a part called whole", of: ofPart, do: func(f, _ *cachedFile, _ *rand.Rand) error {
		f.sure = true
		return errors.Join(os.Truncate(f.data(), int64(len(f.want))), os.Rename(f.data(), f.base+".blob"))
	}},
	{name: "a bit of the map", of: ofMapped, do: func(f, _ *cachedFile, random *rand.Rand) error {
		raw, err := os.ReadFile(f.maps())
		if err != nil {
			return err
		}
		i := random.IntN(len(raw))
		bit := random.IntN(8)
		raw[i] ^= 1 << bit
		f.sure = f.mapMatters(i, bit)
		return overwrite(f.maps(), raw)
	}},
	{name: "map cut", of: ofMapped, do: func(f, _ *cachedFile, random *rand.Rand) error {
		f.sure = true
		return f.cutTo(f.maps(), random.Int64N)
	}},
	{name: "map of zeros", of: ofMapped, do: func(f, _ *cachedFile, _ *rand.Rand) error {
		f.sure = true
		return f.zero(f.maps(), func(int64) int64 { return 0 })
	}},
	{name: "zeros to the end of the map", of: ofMapped, do: func(f, _ *cachedFile, random *rand.Rand) error {
		f.sure = !f.part
		return f.zero(f.maps(), random.Int64N)
	}},
	{name: "no map", of: ofMapped, do: func(f, _ *cachedFile, _ *rand.Rand) error {
		f.sure = true
		return os.Remove(f.maps())
	}},
	{name: "a directory for the map", of: ofMapped, do: func(f, _ *cachedFile, _ *rand.Rand) error { return f.toDirectory(f.maps()) }},
	{name: "a bit of the attribute", of: ofSingle, do: func(f, _ *cachedFile, random *rand.Rand) error {
		v := make([]byte, 100)
		n, err := unix.Getxattr(f.data(), cacheAttribute, v)
		if err != nil {
			return err
		}
		v[random.IntN(n)] ^= 1 << random.IntN(8)
		f.sure = true
		return unix.Setxattr(f.data(), cacheAttribute, v[:n], 0)
	}},
	{name: "no attribute", of: ofSingle, do: func(f, _ *cachedFile, _ *rand.Rand) error {
		f.sure = true
		return unix.Removexattr(f.data(), cacheAttribute)
	}},
}

// cacheAttribute is the extended attribute with size and checksum of a cached file of one unit.
const cacheAttribute = "user.blobmount"

// damage damages nine of ten files.
func (b *damageBench) damage() {
	b.t.Helper()
	for _, f := range b.files {
		f.kind, f.sure, f.at = "", false, 0
	}
	for _, i := range b.random.Perm(len(b.files))[len(b.files)/10:] {
		f := b.files[i]
		if f.kind != "" {
			continue // with another one
		}
		other := b.other(f)
		k := b.kindFor(f, other)
		if err := k.do(f, other, b.random); err != nil {
			b.t.Fatalf("%s: %s: %v", f.name, k.name, err)
		}
		f.kind = k.name
		b.kinds[k.name]++
		if k.both {
			other.kind = k.name
			b.kinds[k.name]++
		}
	}
}

// damageUsage damages the count of what the cache holds, as a loss of power does.
func (b *damageBench) damageUsage() {
	b.t.Helper()
	usage := filepath.Join(b.Cache, "usage")
	must(b.t, []func() error{
		func() error { return nil },
		func() error { return os.Remove(usage) },
		func() error { return os.Truncate(usage, 0) },
		func() error { return overwrite(usage, make([]byte, 8)) },
	}[b.random.IntN(4)]())
}

// kindFor returns one of the kinds that fit and came least often.
func (b *damageBench) kindFor(f, other *cachedFile) (least damageKind) {
	for _, i := range b.random.Perm(len(damageKinds)) {
		k := damageKinds[i]
		if k.of != nil && !k.of(f) || k.with && other == nil {
			continue
		}
		if least.do == nil || b.kinds[k.name] < b.kinds[least.name] {
			least = k
		}
	}
	return least
}

// other returns an undamaged file like this one, nil if there is none.
func (b *damageBench) other(f *cachedFile) *cachedFile {
	for _, i := range b.random.Perm(len(b.files)) {
		if o := b.files[i]; o != f && o.kind == "" && len(o.want) == len(f.want) && o.part == f.part {
			return o
		}
	}
	return nil
}

// alter changes some bytes of the data at a random place that the cache has. change says how many, and changes them.
func (f *cachedFile) alter(random *rand.Rand, change func(at int) (int, func([]byte))) error {
	at := random.IntN(len(f.want))
	for !f.has(at, at+1) {
		at = random.IntN(len(f.want))
	}
	f.sure, f.at = true, at
	file, err := os.OpenFile(f.data(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	n, apply := change(at)
	b := make([]byte, n)
	// A part may end before that: then the page was no more than what is there.
	n, _ = file.ReadAt(b, int64(at))
	apply(b[:n])
	_, err = file.WriteAt(b[:n], int64(at))
	return errors.Join(err, file.Close())
}

// shorten takes away what lies behind a random place of the data.
func (f *cachedFile) shorten(random *rand.Rand, take func(file *os.File, size, length int64) error) error {
	file, err := os.OpenFile(f.data(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := random.Int64N(info.Size())
	f.sure, f.at = f.has(int(size), len(f.want)), int(size)
	return errors.Join(take(file, size, info.Size()), file.Close())
}

// cutTo cuts a file.
func (f *cachedFile) cutTo(path string, to func(length int64) int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	size := to(info.Size())
	if path == f.data() {
		f.sure, f.at = f.has(int(size), len(f.want)), int(size)
	}
	return os.Truncate(path, size)
}

// zero fills the rest of a file with zeros.
func (f *cachedFile) zero(path string, from func(length int64) int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Truncate(path, from(info.Size())), os.Truncate(path, info.Size()))
}

func (f *cachedFile) toDirectory(path string) error {
	f.sure = true
	return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
}

// exchange gives each of two files the name of the other.
func (f *cachedFile) exchange(other *cachedFile, a, b string) error {
	f.sure, other.sure = true, true
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// mapMatters reports whether a bit of the map must be found when it is wrong: not a reserved one, and of a part none of
// what it says of bytes that the cache does not have, or makes the cache forget.
func (f *cachedFile) mapMatters(i, bit int) bool {
	grains := (len(f.want) + cacheGrain - 1) / cacheGrain
	bitmap, sums := 24, 24+(grains+31)/32*4
	switch {
	case i < 20:
		return true
	case i < bitmap:
		return false
	case i < sums:
		return !f.part && 8*(i-bitmap)+bit < grains
	default:
		return f.has((i-sums)/4*cacheGrain, (i-sums)/4*cacheGrain+1)
	}
}

// overwrite replaces the content of a file that is there.
func overwrite(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("overwrite: %w", err)
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}
