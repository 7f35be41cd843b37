package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"blobmount/blobcache"
)

// fill works out the defaults that depend on the machine.
func (c *Config) fill(sys system, lookupEnv func(string) (string, bool)) error {
	if c.CacheDir == "" {
		dir, err := defaultCacheDir(sys.euid, lookupEnv)
		if err != nil {
			return err
		}
		c.CacheDir = dir
	}
	if c.CacheSize == 0 {
		free, err := freeSpace(c.CacheDir)
		if err != nil {
			return fmt.Errorf("cannot find out the free space for cache directory %s: %w: use --cache-size", c.CacheDir, plain(err))
		}
		c.CacheSize = sizeValue(defaultCacheSize(free))
	}
	if c.Memory == 0 {
		c.Memory = sizeValue(defaultMemory(memoryLimit(os.DirFS("/"))))
	}
	if c.NamesMemory == 0 {
		c.NamesMemory = c.Memory
	}
	return nil
}

// defaultCacheDir follows the XDG base directory specification for users. os.UserCacheDir is not used: mount(8)
// removes HOME, and a mount by root must find the same cache whoever started it.
func defaultCacheDir(euid int, lookupEnv func(string) (string, bool)) (string, error) {
	if euid == 0 {
		return "/var/cache/blobmount", nil
	}
	if dir, ok := lookupEnv("XDG_CACHE_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "blobmount"), nil
	}
	if dir, ok := lookupEnv("HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, ".cache", "blobmount"), nil
	}
	return "", errors.New("there is no HOME to put the cache in (mount(8) removes it): use --cache-dir DIR")
}

// freeSpace returns the bytes that may still be written to the disk of a directory, which need not exist yet.
func freeSpace(dir string) (int64, error) {
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, syscall.ENOENT) || dir == filepath.Dir(dir) {
			return 0, err
		}
		dir = filepath.Dir(dir)
	}
}

// defaultCacheSize leaves most of the disk to others, because nobody was asked: a fifth of what is free, at most
// 100 GiB, and never less than what the cache can work with.
func defaultCacheSize(free int64) int64 {
	return max(min(free/5, 100<<30), minCacheSize)
}

// defaultMemory is a quarter of the memory there is, at most 192 MiB: enough for 24 blocks of 8 MiB in flight, and
// the whole process stays below 300 MiB.
func defaultMemory(limit int64) int64 {
	return max(min(limit/4, 192<<20), blobcache.MinMemory)
}
