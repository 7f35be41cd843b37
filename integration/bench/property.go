package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/blobserver"
)

// property is something that must hold, whatever the speed.
type property struct {
	name string
	run  func(ctx context.Context, l *lab) ([]finding, error)
}

// finding is what was seen, and what was allowed.
type finding struct {
	what, seen, bound string
	holds             bool
}

// runProperty runs a property and cleans up after it.
func runProperty(ctx context.Context, l *lab, p property) (found []finding, err error) {
	ctx, cancel := context.WithTimeout(ctx, runBound)
	defer cancel()
	defer func() {
		if cleanErr := l.cleanUp(); err == nil {
			err = cleanErr
		}
	}()
	return p.run(ctx, l)
}

// millionFiles is how many versions the cache of the start-up property has.
const millionFiles = 1_000_000

// startUp mounts with a cache of many files: nothing may be read of it.
func startUp(ctx context.Context, l *lab) ([]finding, error) {
	const bound, rss = time.Second, 60 << 20
	set := blobserver.Synthetic{Container: container, Prefix: "file", Count: 100, Size: 100}
	s, err := l.service(ctx, lan, set)
	if err != nil {
		return nil, err
	}
	m, err := l.mount(ctx, s.connection, "")
	if err != nil {
		return nil, err
	}
	if err := m.close(); err != nil { // it has made what a cache directory needs
		return nil, err
	}
	n := l.count(millionFiles)
	if err := fillCache(ctx, m.cache, n); err != nil {
		return nil, err
	}
	if err := dropCaches(); err != nil {
		return nil, err
	}
	if m, err = l.mount(ctx, s.connection, m.cache); err != nil {
		return nil, err
	}
	began := time.Now()
	entries, err := os.ReadDir(m.dir)
	if err != nil || len(entries) != set.Count {
		return nil, fmt.Errorf("%d files, %w", len(entries), err)
	}
	ready := m.ready + time.Since(began)
	u, err := m.usage()
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("a cache of %d files", n)
	return []finding{
		{what + ": the mount answers after", ready.Round(time.Millisecond).String(), "1 s", ready <= bound},
		{what + ": peak RSS", size(u.rss), size(rss), u.rss < rss},
	}, m.close()
}

// fillCache adds versions to a cache directory: small complete ones, at random places of the fan-out as their hashes
// are.
func fillCache(ctx context.Context, cache string, n int) error {
	root := filepath.Join(cache, "v1")
	if _, err := os.Stat(root); err != nil {
		return err
	}
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			var k [16]byte
			for range n / len(errs) {
				if errs[w] = context.Cause(ctx); errs[w] != nil {
					return
				}
				_, _ = rand.Read(k[:]) // never fails
				x := hex.EncodeToString(k[:])
				path := filepath.Join(root, x[:2], x[2:3], x[3:]+".blob")
				err := os.WriteFile(path, k[:], 0o600)
				if errors.Is(err, fs.ErrNotExist) {
					if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
						err = os.WriteFile(path, k[:], 0o600)
					}
				}
				if errs[w] = err; err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// What streams through a small cache.
const (
	streamCache   = 1 << 30
	streamReaders = 8
	streamFiles   = 80
	streamFile    = 256 << 20 // all: 20 GiB; those that are open at once are twice the cache
	streamSlack   = 64 << 20
	minCache      = 64 << 20 // less is refused
	sampleEvery   = 50 * time.Millisecond
)

// eviction streams 20 times the cache's size through it.
func eviction(ctx context.Context, l *lab) ([]finding, error) {
	set := blobserver.Synthetic{Container: container, Prefix: "stream", Count: streamFiles, Size: l.bytes(streamFile)}
	limit := max(l.bytes(streamCache), minCache)
	s, err := l.service(ctx, lan, set)
	if err != nil {
		return nil, err
	}
	m, err := l.mount(ctx, s.connection, "", fmt.Sprintf("--cache-size=%d", limit))
	if err != nil {
		return nil, err
	}
	files := m.files(set)
	tasks := make([]task, streamReaders)
	for i := range tasks {
		tasks[i] = task{Op: opRead, Block: 1 << 20, CheckEvery: 1 << 20, Survey: true}
	}
	for i, f := range files {
		t := &tasks[i%streamReaders]
		t.Files = append(t.Files, f)
	}
	stop := make(chan struct{})
	var most int64
	var walkErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			n, err := onDisk(m.cache)
			if err != nil {
				walkErr = err
				return
			}
			most = max(most, n)
			select {
			case <-stop:
				return
			case <-time.After(sampleEvery):
			}
		}
	})
	_, r, err := runTasks(ctx, nil, tasks...)
	close(stop)
	wg.Wait()
	if err := errors.Join(err, walkErr); err != nil {
		return nil, err
	}
	u, err := m.usage()
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%s through a cache of %s by %d readers", size(int64(set.Count)*set.Size), size(limit), streamReaders)
	return []finding{
		{what + ": files that could not be read", fmt.Sprint(r.Failed), "0", r.Failed == 0},
		{what + ": most bytes in the cache directory", size(most), size(limit + streamSlack), most <= limit+streamSlack},
		{what + ": peak RSS", size(u.rss), size(maxRSS), u.rss <= maxRSS},
	}, m.close()
}

// onDisk returns the disk space that a directory takes, as du(1) counts it. What vanishes meanwhile takes none.
func onDisk(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		n += st.Blocks * 512
		return err
	})
	return n, err
}
