package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
)

// Overwriting a blob while it is read. Each version has a size of its own, so that a program sees by fstat which one
// it opened, and is large enough to come in several requests.
const (
	overwriteTries    = 1000
	overwriteSize     = 3 << 20
	overwriteParallel = 50
	overwriteTimeout  = time.Second
	// overwriteSlack is for the requests that find out, and for a busy machine.
	overwriteSlack = 500 * time.Millisecond
)

// A blob's version n has the content of generation n.
func generation(blobNumber, n int) blobtest.Generator {
	return blobtest.Random(uint64(blobNumber)<<32 | uint64(n))
}
func generationSize(n int) int64 { return overwriteSize + int64(n)*4096 + int64(n%7) }

// overwriter counts what happened in one mount.
type overwriter struct {
	store *blobtest.Store
	dir   string
	// Counted in parallel.
	mixed, late, stale, handles atomic.Int64
}

// overwrite is the property of versions.
func overwrite(ctx context.Context, l *lab) ([]finding, error) {
	s, err := blobserver.Start(blobserver.Options{
		Containers: []string{container}, Shape: blobserver.Shape{Latency: time.Millisecond, Jitter: 2 * time.Millisecond},
	})
	if err != nil {
		return nil, err
	}
	l.later(s.Close)
	tries := l.count(overwriteTries)
	var found []finding
	for _, c := range []struct {
		flags    []string
		parallel int
		timeout  time.Duration
	}{
		{[]string{"--blob-cache-timeout=0"}, 1, 0},
		{[]string{"--blob-cache-timeout=1"}, overwriteParallel, overwriteTimeout},
		{[]string{"--blob-cache-timeout=1", "--read-only", "--open=none"}, overwriteParallel, overwriteTimeout},
	} {
		o := &overwriter{store: s.Store(container)}
		for b := range c.parallel {
			if err := o.put(b, 0); err != nil {
				return nil, err
			}
		}
		m, err := l.mount(ctx, s.ConnectionString(), "", c.flags...)
		if err != nil {
			return nil, err
		}
		o.dir = m.dir
		errs := make([]error, c.parallel)
		var wg sync.WaitGroup
		for b := range c.parallel {
			wg.Go(func() {
				for n := 1; n <= max(tries/c.parallel, 1) && errs[b] == nil; n++ {
					errs[b] = o.try(ctx, b, n, c.timeout)
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		what := fmt.Sprintf("%d overwrites while reading, %v", max(tries/c.parallel, 1)*c.parallel, c.flags)
		found = append(found,
			finding{what + ": handles with bytes of two versions", fmt.Sprintf("%d of %d (%d ended by ESTALE)", o.mixed.Load(), o.handles.Load(), o.stale.Load()), "0", o.mixed.Load() == 0},
			finding{what + ": opens after the timeout that saw the old version", fmt.Sprint(o.late.Load()), "0", o.late.Load() == 0})
		if err := m.close(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func blobName(b int) string { return fmt.Sprintf("blob%03d", b) }

func (o *overwriter) put(b, n int) error {
	_, err := o.store.PutSynthetic(blobName(b), generationSize(n), generation(b, n), blob.WriteOptions{})
	return err
}

// try replaces version n-1 of a blob by version n while it is read, and opens it again when the timeout has passed.
func (o *overwriter) try(ctx context.Context, b, n int, timeout time.Duration) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(b), uint64(n)))
	written := make(chan error, 1)
	delay := time.Duration(rnd.Int64N(int64(12 * time.Millisecond)))
	go func() {
		time.Sleep(delay) // the moment of the change is what is tried out
		written <- o.put(b, n)
	}()
	if _, err := o.readOnce(b, rnd); err != nil {
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if timeout > 0 {
		time.Sleep(timeout + overwriteSlack)
	}
	saw, err := o.readOnce(b, rnd)
	if err == nil && saw != n {
		o.late.Add(1)
	}
	return err
}

// readOnce opens a blob, reads it in one of several ways, and returns the version that fstat named.
func (o *overwriter) readOnce(b int, rnd *rand.Rand) (version int, err error) {
	f, err := os.Open(filepath.Join(o.dir, blobName(b)))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	o.handles.Add(1)
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	version = int(st.Size()-overwriteSize) / 4096
	if generationSize(version) != st.Size() {
		return 0, fmt.Errorf("%s has a size of no version: %d", blobName(b), st.Size())
	}
	content := generation(b, version)
	buf, want := make([]byte, 256<<10), make([]byte, 256<<10)
	random := rnd.IntN(2) == 0
	block := int64(4<<10) << rnd.IntN(7)
	for i := int64(0); i*block < st.Size(); i++ {
		off := i * block
		if random {
			if i == 16 {
				break
			}
			off = rnd.Int64N(st.Size()/block) * block
		}
		length := min(block, st.Size()-off)
		got, err := f.ReadAt(buf[:length], off)
		switch {
		case errors.Is(err, unix.ESTALE): // the promise: an error, never another version's bytes
			o.stale.Add(1)
			return version, nil
		case err != nil:
			return 0, err
		}
		content(want[:got], off)
		if !bytes.Equal(want[:got], buf[:got]) {
			o.mixed.Add(1)
			return version, nil
		}
	}
	return version, nil
}
