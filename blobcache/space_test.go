package blobcache

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// onDisk returns the bytes that the versions and the staging files in a cache directory take, and how many files they
// are.
func onDisk(t testing.TB, dir string) (bytes int64, count int) {
	t.Helper()
	for _, sub := range []string{"v1", "staging"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Name() == "lock" {
				return err
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				return err
			}
			bytes += st.Blocks * 512
			count++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return bytes, count
}

// versionFiles returns the paths of the files in a cache directory that have an extension.
func versionFiles(t testing.TB, dir, ext string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "v1", "*", "*", "*"+ext))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// checkUsage compares the shared counter with the disk. An extended attribute may take a block of its own.
func checkUsage(t testing.TB, c *Cache) {
	t.Helper()
	c.background.Wait() // while blocks are being written out, the disk says less than they take, see diskUse
	disk, count := onDisk(t, c.dir)
	if got := c.space.inUse(); got < disk-int64(count)*4*kib || got > disk+int64(count)*4*kib {
		t.Errorf("%d bytes are counted, %d files take %d", got, count, disk)
	}
}

// TestUsage: what is counted is what the disk holds, whatever happens to a file. A counter that drifts up makes the
// cache useless in the end, one that drifts down lets it grow beyond its bound.
func TestUsage(t *testing.T) {
	write := func(t *testing.T, c *Cache, s *service, name string, change func(f *File)) {
		t.Helper()
		f := c.CreateFile(s, blob.Properties{Name: name}, noHooks)
		f.Acquire(true)
		change(f)
		if err := f.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.Release(true)
	}
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, c *Cache, s *service)
	}{
		{"fetched", func(t *testing.T, c *Cache, s *service) {
			for i, size := range []int64{1, 5000, 700 * kib, 3*mib + 1} {
				p, _ := s.put(t, fmt.Sprint(i), size, 1)
				bring(t, c, s, p)
			}
		}},
		{"written", func(t *testing.T, c *Cache, s *service) {
			for i, size := range []int64{1, 5000, 100 * kib, 1300 * kib} {
				write(t, c, s, fmt.Sprint(i), func(f *File) {
					if err := f.Write(t.Context(), content(2, size), 0); err != nil {
						t.Fatal(err)
					}
				})
			}
		}},
		{"many small changes", func(t *testing.T, c *Cache, s *service) {
			write(t, c, s, "big", func(f *File) {
				if err := f.Write(t.Context(), content(3, mib), 0); err != nil {
					t.Fatal(err)
				}
			})
			write(t, c, s, "a", func(f *File) {
				for range 500 {
					if err := f.Write(t.Context(), []byte("x"), 0); err != nil {
						t.Fatal(err)
					}
					if err := f.Truncate(t.Context(), 0); err != nil {
						t.Fatal(err)
					}
				}
			})
		}},
		{"truncated while staged", func(t *testing.T, c *Cache, s *service) {
			f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
			f.Acquire(true)
			put(t, f, content(7, mib), 0)
			checkUsage(t, c)
			if err := f.Truncate(t.Context(), 100*kib); err != nil {
				t.Fatal(err)
			}
			checkUsage(t, c)
			if _, err := f.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.Gone()
			f.Release(true)
		}},
		{"sparse", func(t *testing.T, c *Cache, s *service) {
			write(t, c, s, "a", func(f *File) {
				if err := f.Truncate(t.Context(), 4*mib); err != nil {
					t.Fatal(err)
				}
				if err := f.Write(t.Context(), []byte("x"), 2*mib); err != nil {
					t.Fatal(err)
				}
			})
		}},
		{"deleted while open", func(t *testing.T, c *Cache, s *service) {
			write(t, c, s, "a", func(f *File) {
				if err := f.Write(t.Context(), content(4, mib), 0); err != nil {
					t.Fatal(err)
				}
				if _, err := f.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.Gone()
			})
		}},
		{"damaged", func(t *testing.T, c *Cache, s *service) {
			p, want := s.put(t, "a", 100*kib, 5)
			for range 3 {
				f := c.OpenFile(s, p, noHooks)
				f.Acquire(false)
				expectAll(t, f, want)
				f.Release(false)
				bring(t, c, s, p)
				for _, path := range versionFiles(t, c.dir, extBlob) {
					if err := os.Truncate(path, p.Size+1); err != nil {
						t.Fatal(err)
					}
				}
			}
			bring(t, c, s, p)
		}},
		{"changed in its cache file", func(t *testing.T, c *Cache, s *service) {
			// Something to drift away from: the counter does not fall below zero.
			p, _ := s.put(t, "more", 9*mib, 1)
			bring(t, c, s, p)
			for name, fill := range map[string]func(f *File) error{
				"whole":  func(f *File) error { return f.Write(t.Context(), content(3, 2*mib), 0) },
				"sparse": func(f *File) error { return f.Truncate(t.Context(), 8*mib) },
			} {
				write(t, c, s, name, func(f *File) {
					if err := fill(f); err != nil {
						t.Fatal(err)
					}
				})
				for i := range 5 {
					f := c.OpenFile(s, s.properties(t, name), noHooks)
					f.Acquire(true)
					put(t, f, []byte{byte(i)}, 100)
					if f.base != nil {
						t.Fatal("the cache file was not taken over")
					}
					if err := f.Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
					f.Release(true)
				}
			}
		}},
		{"written and fetched at once", func(t *testing.T, c *Cache, s *service) {
			f := c.CreateFile(s, blob.Properties{Name: "a"}, noHooks)
			f.Acquire(true)
			put(t, f, content(3, 2*mib), 0)
			if err := f.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			bring(t, openCache(t, config(c.dir)), s, s.properties(t, "a"))
			f.Release(true)
		}},
		{"little of a large blob", func(t *testing.T, c *Cache, s *service) {
			if _, err := s.store.PutSynthetic("a", 10<<30, blobtest.Random(1), blob.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			v := openVersion(c, s, s.properties(t, "a"))
			readGrain(t, v, 80_000)
			c.release(v)
		}},
		{"a map alone", func(t *testing.T, c *Cache, s *service) {
			p, _ := s.put(t, "a", 2*mib, 1)
			bring(t, c, s, p)
			c.space.release(removeFile(only(t, c.dir, extBlob)))
		}},
		{"fetched in part", func(t *testing.T, c *Cache, s *service) {
			p, want := s.put(t, "a", 3*mib, 6)
			f := c.OpenFile(s, p, noHooks)
			f.Acquire(false)
			expect(t, f, mib, want[mib:mib+4096])
			f.Release(false)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := openCache(t, config(t.TempDir()))
			tc.do(t, c, newService())
			checkUsage(t, c)
			c.evict(1 << 40)
			if n := len(versionFiles(t, c.dir, "*")); n > 0 {
				t.Errorf("%d files survived eviction", n)
			}
			if n := c.space.inUse(); n != 0 {
				t.Errorf("%d bytes are counted for an empty cache", n)
			}
		})
	}
}

// TestEvictionOfWhatStays: a file that cannot be removed, as on a disk that has become read-only, must not keep
// eviction, and with it all readers, busy for ever.
func TestEvictionOfWhatStays(t *testing.T) {
	s := newService()
	cfg := config(t.TempDir())
	cfg.Size = 128 * kib
	c := openCache(t, cfg)
	// The kernel does not let root be refused; a directory that is not empty cannot be unlinked by anybody.
	stuck := keyOf("stuck", "").path(c.dir) + extBlob
	if err := os.MkdirAll(filepath.Join(stuck, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		p, want := s.put(t, fmt.Sprint(i), 100*kib, uint64(i))
		expectAll(t, openBlob(t, c, s, p), want)
	}
}
