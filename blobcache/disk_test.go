package blobcache

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// cached makes a cache directory that has a blob, as the process before has left it: all of it, or only [0, part).
func cached(t *testing.T, s *service, cfg Config, p blob.Properties, part int64) {
	t.Helper()
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if part == p.Size {
		bring(t, c, s, p)
	} else {
		f := c.OpenFile(s, p, noHooks)
		f.Acquire(false)
		for off := int64(0); off < part; off += grain {
			v := f.version()
			if _, err := v.readSome(t.Context(), make([]byte, 1), off); err != nil { // no read-ahead
				t.Fatal(err)
			}
			v.mu.Lock()
			arriving := v.covering(off)
			if arriving != nil {
				arriving.pins++
			}
			v.mu.Unlock()
			if arriving != nil { // it is stored when it has ended
				if err := arriving.wait(t.Context(), arriving.end+1); err != nil {
					t.Fatal(err)
				}
				arriving.unpin()
			}
			c.unhold(v)
		}
		f.Release(false)
	}
	shut(t, c)
}

// only returns the one file with an extension.
func only(t *testing.T, dir, ext string) string {
	t.Helper()
	found := versionFiles(t, dir, ext)
	if len(found) != 1 {
		t.Fatalf("%d files %s", len(found), ext)
	}
	return found[0]
}

// TestPersistence: what is cached is read by the next process without a request, in whole and in part.
func TestPersistence(t *testing.T) {
	for _, size := range []int64{1, grain, sumMax, sumMax + 1, 3*mib + 5} {
		s := newService()
		cfg := config(t.TempDir())
		p, want := s.put(t, "dir/a b", size, 1)
		part := size
		if size > sumMax {
			part = 4 * grain
		}
		for _, have := range []int64{part, size} {
			cached(t, s, cfg, p, have)
			s.Reset()
			c := openCache(t, cfg)
			if got := c.Cached(s, p); got != have {
				t.Errorf("%d bytes of %d are cached, want %d", got, size, have)
			}
			if c.Has(s, p) != (have == size) {
				t.Errorf("%d bytes of %d are cached, and Has says otherwise", have, size)
			}
			f := c.OpenFile(s, p, noHooks)
			f.Acquire(false)
			if have < size { // through the version, since the File would fetch ahead
				v := f.version()
				buf := make([]byte, have)
				for off := int64(0); off < have; {
					n, err := v.readSome(t.Context(), buf[off:], off)
					if err != nil {
						t.Fatal(err)
					}
					off += int64(n)
				}
				c.unhold(v)
				same(t, buf, want[:have])
			} else {
				expectAll(t, f, want)
			}
			f.Release(false)
			if n := s.Count(""); n > 0 {
				t.Errorf("%d bytes of %d are cached, and still %q", have, size, s.Lines())
			}
			shut(t, c)
		}
	}
}

// edit changes a file through f, and keeps its length unless f does not.
func edit(t *testing.T, path string, f func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0) // keeps the extended attributes
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(f(b)); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

func toDirectory(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 4; return b }
}

// TestDamage: whatever happens to the files of a cached version, a wrong byte is never read, no read fails, and what
// was lost is fetched again.
func TestDamage(t *testing.T) {
	const small, large = 100*kib + 7, mib + 200*kib + 7
	const headerSum, bits = 16, mapHeader
	data := func(f func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			for _, ext := range []string{extBlob, extPart} {
				for _, path := range versionFiles(t, dir, ext) {
					edit(t, path, f)
				}
			}
		}
	}
	maps := func(f func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) { edit(t, only(t, dir, extMap), f) }
	}
	header := func(change func(b []byte)) func(*testing.T, string) { // with a good checksum
		return func(t *testing.T, dir string) {
			path := only(t, dir, extMap)
			edit(t, path, func(b []byte) []byte {
				change(b)
				binary.LittleEndian.PutUint32(b[16:], keyAt(t, path).sum(b[:16]))
				return b
			})
		}
	}
	xattr := func(f func(t *testing.T, path string)) func(*testing.T, string) {
		return func(t *testing.T, dir string) { f(t, only(t, dir, extBlob)) }
	}
	set := func(change func(v []byte) []byte) func(*testing.T, string) {
		return xattr(func(t *testing.T, path string) {
			v := make([]byte, 64)
			n, err := unix.Getxattr(path, sumAttr, v)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Setxattr(path, sumAttr, change(v[:n]), 0); err != nil {
				t.Fatal(err)
			}
		})
	}
	tail := func(b []byte) []byte { clear(b[len(b)/2:]); return b }
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	for _, tc := range []struct {
		name   string
		size   int64
		part   int64 // bytes that are cached; 0: all
		damage func(t *testing.T, dir string)
	}{
		{"small, first bit", small, 0, data(flip(0))},
		{"small, last bit", small, 0, data(flip(small - 1))},
		{"small, zeros after a power cut", small, 0, data(tail)},
		{"small, all zeros", small, 0, data(func(b []byte) []byte { clear(b); return b })},
		{"small, one byte short", small, 0, data(cut(1))},
		{"small, empty", small, 0, data(cut(small))},
		{"small, one byte more", small, 0, data(func(b []byte) []byte { return append(b, 0) })},
		{"small, no checksum", small, 0, xattr(func(t *testing.T, path string) {
			if err := unix.Removexattr(path, sumAttr); err != nil {
				t.Fatal(err)
			}
		})},
		{"small, bit in the checksum", small, 0, set(flip(8))},
		{"small, bit in the checksum's size", small, 0, set(flip(0))},
		{"small, short checksum", small, 0, set(cut(1))},
		{"small, left in part", small, 0, xattr(func(t *testing.T, path string) {
			if err := os.Rename(path, strings.TrimSuffix(path, extBlob)+extPart); err != nil {
				t.Fatal(err)
			}
		})},
		{"large, first bit", large, 0, data(flip(0))},
		{"large, bit in the middle", large, 0, data(flip(mib - 100))},
		{"large, last bit", large, 0, data(flip(large - 1))},
		{"large, zeros after a power cut", large, 0, data(tail)},
		{"large, all zeros and the map full", large, 0, data(func(b []byte) []byte { clear(b); return b })},
		{"large, one byte short", large, 0, data(cut(1))},
		{"large, half", large, 0, data(cut(mib))},
		{"large, empty", large, 0, data(cut(large))},
		{"large, no map", large, 0, func(t *testing.T, dir string) {
			if err := os.Remove(only(t, dir, extMap)); err != nil {
				t.Fatal(err)
			}
		}},
		{"large, empty map", large, 0, maps(func([]byte) []byte { return nil })},
		{"large, short map", large, 0, maps(cut(1))},
		{"large, zero map", large, 0, maps(func(b []byte) []byte { clear(b); return b })},
		{"large, zeros in the map after a power cut", large, 0, maps(tail)},
		{"large, bit in the map's magic", large, 0, maps(flip(0))},
		{"large, bit in the map's size", large, 0, maps(flip(8))},
		{"large, bit in the map's checksum", large, 0, maps(flip(headerSum))},
		{"large, bit in the bitmap", large, 0, maps(flip(bits))},
		{"large, bit in a grain's checksum", large, 0, maps(flip(bits + 8 + 1))},
		{"large, map of another size", large, 0, header(func(b []byte) { binary.LittleEndian.PutUint64(b[8:], large+1) })},
		{"large, map of another kind", large, 0, header(func(b []byte) { b[7]++ })},
		{"part, bit in the data", large, 4 * grain, data(flip(2*grain + 1))},
		{"part, data short", large, 4 * grain, data(cut(1))},
		{"part, data empty", large, 4 * grain, data(cut(4 * grain))},
		{"part, too long", large, 4 * grain, data(func(b []byte) []byte { return make([]byte, large+1) })},
		{"part, map says more", large, 4 * grain, maps(func(b []byte) []byte { b[bits], b[bits+1] = 0xff, 0xff; return b })},
		{"part, map says all", large, 4 * grain, maps(func(b []byte) []byte {
			for i := range bitmapBytes((large + grain - 1) / grain) {
				b[bits+i] = 0xff
			}
			return b
		})},
		{"part, no map", large, 4 * grain, func(t *testing.T, dir string) {
			if err := os.Remove(only(t, dir, extMap)); err != nil {
				t.Fatal(err)
			}
		}},
		{"part, called whole", large, 4 * grain, func(t *testing.T, dir string) {
			path := only(t, dir, extPart)
			if err := os.Truncate(path, large); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path, strings.TrimSuffix(path, extPart)+extBlob); err != nil {
				t.Fatal(err)
			}
		}},
		{"small, a directory in its place", small, 0, xattr(func(t *testing.T, path string) { toDirectory(t, path) })},
		{"large, a directory in its place", large, 0, func(t *testing.T, dir string) { toDirectory(t, only(t, dir, extBlob)) }},
		{"large, a directory for the map", large, 0, func(t *testing.T, dir string) { toDirectory(t, only(t, dir, extMap)) }},
		{"part, a directory in its place", large, 4 * grain, func(t *testing.T, dir string) { toDirectory(t, only(t, dir, extPart)) }},
		{"no data", large, 0, func(t *testing.T, dir string) {
			if err := os.Remove(only(t, dir, extBlob)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			cfg := config(t.TempDir())
			p, want := s.put(t, "a", tc.size, 1)
			part := tc.part
			if part == 0 {
				part = tc.size
			}
			cached(t, s, cfg, p, part)
			tc.damage(t, cfg.Dir)
			s.Reset()
			c := openCache(t, cfg)
			f := openBlob(t, c, s, p)
			expectAll(t, f, want)
			if s.Count("ReadAt") == 0 {
				t.Error("nothing was fetched: the damage did none")
			}
			// All is well afterwards, for this process and the next.
			bring(t, c, s, p)
			s.Reset()
			expectAll(t, f, want)
			next := openCache(t, cfg)
			expectAll(t, openBlob(t, next, s, p), want)
			if n := s.Count(""); n > 0 {
				t.Errorf("after it was fetched again: %q", s.Lines())
			}
		})
	}
}

// keyAt returns the key that the path of a version's file stands for.
func keyAt(t *testing.T, path string) (k key) {
	t.Helper()
	parts := strings.Split(strings.TrimSuffix(path, filepath.Ext(path)), "/")
	if n, err := hex.Decode(k[:], []byte(strings.Join(parts[len(parts)-3:], ""))); err != nil || n != len(k) {
		t.Fatalf("%s: %d bytes of a key, %v", path, n, err)
	}
	return k
}

// TestDamageExchanged: files that have got the names of those of another version are not taken for that.
func TestDamageExchanged(t *testing.T) {
	for _, tc := range []struct {
		name       string
		size, part int64
		exts       []string
	}{
		{"small", 100*kib + 7, 100*kib + 7, []string{extBlob}},
		{"large, the data", 2 * mib, 2 * mib, []string{extBlob}},
		{"large, the map", 2 * mib, 2 * mib, []string{extMap}},
		{"large", 2 * mib, 2 * mib, []string{extBlob, extMap}},
		{"part", 2 * mib, mib, []string{extPart, extMap}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			cfg := config(t.TempDir())
			a, wantA := s.put(t, "a", tc.size, 1)
			b, wantB := s.put(t, "b", tc.size, 2)
			cached(t, s, cfg, a, tc.part)
			cached(t, s, cfg, b, tc.part)
			for _, ext := range tc.exts {
				of := func(p blob.Properties) string { return keyOf(s.URL(p.Name), p.ETag).path(cfg.Dir) + ext }
				if err := unix.Renameat2(unix.AT_FDCWD, of(a), unix.AT_FDCWD, of(b), unix.RENAME_EXCHANGE); err != nil {
					t.Fatal(err)
				}
			}
			s.Reset()
			c := openCache(t, cfg)
			expectAll(t, openBlob(t, c, s, a), wantA)
			expectAll(t, openBlob(t, c, s, b), wantB)
			if s.Count("ReadAt") == 0 {
				t.Error("nothing was fetched: the damage did none")
			}
		})
	}
}

// TestDamageCompleted: a process that fetches what an earlier one had not does not take what that one had for good.
func TestDamageCompleted(t *testing.T) {
	const size, part = mib + 200*kib + 7, 4 * grain
	s := newService()
	cfg := config(t.TempDir())
	p, want := s.put(t, "a", size, 1)
	cached(t, s, cfg, p, part)
	edit(t, only(t, cfg.Dir, extPart), flip(2*grain+1))
	c := openCache(t, cfg)
	f := c.OpenFile(s, p, noHooks)
	f.Acquire(false)
	expect(t, f, part, want[part:])
	f.Release(false)
	bring(t, c, s, p)
	only(t, cfg.Dir, extBlob)
	expectAll(t, openBlob(t, c, s, p), want)
}

// TestDamageShownToTheKernel: a backing file is compared with its checksums before the kernel reads it by itself.
func TestDamageShownToTheKernel(t *testing.T) {
	for _, size := range []int64{1000, 2 * mib} {
		s := newService()
		cfg := config(t.TempDir())
		p, want := s.put(t, "a", size, 1)
		cached(t, s, cfg, p, size)
		f := openBlob(t, openCache(t, cfg), s, p)
		file := f.Backing()
		if file == nil {
			t.Fatal("a good version has no backing file")
		}
		got, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)

		edit(t, only(t, cfg.Dir, extBlob), flip(int(size/2)))
		f = openBlob(t, openCache(t, cfg), s, p)
		if f.Backing() != nil {
			t.Errorf("a damaged version of %d bytes is shown to the kernel", size)
		}
		expectAll(t, f, want)
	}
}

// TestOpenRefuses: a cache directory that cannot be used is refused in one line that says what to do, and left alone.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	future := filepath.Join(dir, "future")
	if err := os.Mkdir(future, 0o700); err != nil {
		t.Fatal(err)
	}
	format := filepath.Join(future, "format")
	if err := os.WriteFile(format, []byte("blobmount cache 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*Config)
	}{
		{"relative path", func(c *Config) { c.Dir = "cache" }},
		{"a file", func(c *Config) { c.Dir = file }},
		{"below a file", func(c *Config) { c.Dir = filepath.Join(file, "x") }},
		{"others may write", func(c *Config) { c.Dir = open }},
		{"another format", func(c *Config) { c.Dir = future }},
		{"no size", func(c *Config) { c.Size = 0 }},
		{"little memory", func(c *Config) { c.Memory = MinMemory - 1 }},
		{"tiny blocks", func(c *Config) { c.BlockSize = MinBlockSize / 2 }},
		{"odd blocks", func(c *Config) { c.BlockSize = MinBlockSize + 1 }},
		{"huge blocks", func(c *Config) { c.BlockSize = blob.MaxBlockSize + grain }},
	} {
		cfg := config(filepath.Join(dir, "good"))
		tc.change(&cfg)
		c, err := Open(cfg)
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
			closeCache(t, c)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %q", tc.name, err)
		}
	}
	if b, err := os.ReadFile(format); err != nil || !bytes.Equal(b, []byte("blobmount cache 2\n")) {
		t.Errorf("the unknown format became %q, error %v", b, err)
	}
	if left, err := os.ReadDir(future); err != nil || len(left) != 1 {
		t.Errorf("%d files in a directory of an unknown format, error %v", len(left), err)
	}
}
