package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"

	"blobmount/integration/blobserver"
)

// What a data loader's data set looks like.
const (
	smallFiles     = 20_000
	smallFileSize  = 25_000
	loaderChildren = 4
)

// dataset is a directory of small blobs, and a plain copy of it.
type dataset struct {
	set   blobserver.Synthetic
	sums  []uint32
	plain string
}

// loaders returns the tasks of the loader's processes: each has a part of the files of dir, in an order that is
// different in every epoch.
func (d dataset) loaders(dir string, epoch uint64) []task {
	order := rand.New(rand.NewPCG(epoch, 4)).Perm(d.set.Count)
	tasks := make([]task, loaderChildren)
	for i := range tasks {
		tasks[i].Op = opFiles
	}
	for n, i := range order {
		t := &tasks[n%loaderChildren]
		name := d.set.Name(i)
		t.Files = append(t.Files, file{Path: filepath.Join(dir, name), Name: name, Size: d.set.Size, Sum: d.sums[i]})
	}
	return tasks
}

// epoch lists the directory and reads all files, as a loader does that begins.
func (d dataset) epoch(ctx context.Context, dir string, epoch uint64) (measure, error) {
	list := func() error {
		entries, err := os.ReadDir(filepath.Join(dir, d.set.Prefix))
		if err == nil && len(entries) != d.set.Count {
			err = fmt.Errorf("%d files are listed, not %d", len(entries), d.set.Count)
		}
		return err
	}
	took, r, err := runTasks(ctx, list, d.loaders(dir, epoch)...)
	return measure{took: took, asked: r.Bytes, reads: r.Reads}, err
}

// makeDataset writes the plain copy.
func makeDataset(l *lab) (d dataset, err error) {
	d.set = blobserver.Synthetic{Container: container, Prefix: "train/", Count: l.count(smallFiles), Size: smallFileSize}
	if d.plain, err = l.newDir("plain"); err != nil {
		return d, err
	}
	if err := os.Mkdir(filepath.Join(d.plain, d.set.Prefix), 0o700); err != nil {
		return d, err
	}
	buf := make([]byte, d.set.Size)
	for i := range d.set.Count {
		blobserver.SyntheticContent(d.set.Name(i))(buf, 0)
		d.sums = append(d.sums, crc32.Checksum(buf, castagnoli))
		if err := os.WriteFile(filepath.Join(d.plain, d.set.Name(i)), buf, 0o600); err != nil {
			return d, err
		}
	}
	return d, nil
}

// loader is the data loader's workload: several epochs over a directory of small files.
func loader(l *lab) workload {
	what := fmt.Sprintf("%d files of 25 KB in one directory, 4 processes, shuffled order", l.count(smallFiles))
	first := row{name: "cold `azure`, " + what + ", first epoch", reference: bareProgram, unit: fileRate, target: 0.60, maxRSS: maxRSS}
	return workload{
		name: "loader",
		rows: []row{
			first,
			smallRow(first),
			{name: "the same, second epoch, read-write mount", reference: "plain copy of the files, same reader", unit: fileRate, target: 0.08},
			{name: "the same, second epoch, read-only mount with zero-message opens", reference: "plain copy", unit: fileRate, target: 0.60},
			{name: "an epoch after `drop_caches`, everything in the cache, read-write mount", reference: "plain copy after `drop_caches`", unit: fileRate, target: 0.30},
			{name: "an epoch after a remount, cache kept, read-write mount", reference: "second epoch before it", unit: fileRate, target: 0.90, noData: true,
				ceiling: "bare FUSE, of its own second epoch before its remount"},
		},
		start: func(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
			d, err := makeDataset(l)
			if err != nil {
				return nil, err
			}
			s, err := l.service(ctx, azure, d.set)
			if err != nil {
				return nil, err
			}
			return func(ctx context.Context, run int) ([]sample, error) { return d.run(ctx, l, s, run) }, nil
		},
	}
}

// run makes one comparison for each row of the loader.
func (d dataset) run(ctx context.Context, l *lab, s *service, run int) ([]sample, error) {
	var bare, cold, small, second, zero, dropped, again, plainSecond, plainZero, plainDropped, bareSecond, bareAgain measure
	epoch := uint64(run) * 10
	observe := func(m *mount) (measure, error) {
		epoch++
		return observed(ctx, s, m, func() (measure, error) { return d.epoch(ctx, m.dir, epoch) })
	}
	plain := func() (measure, error) {
		epoch++
		return d.epoch(ctx, d.plain, epoch)
	}
	// Epochs out of the page cache take less than a second, so there are several, of both sides in turn.
	inTurn := func(side func() (measure, error)) (ref, got measure, err error) {
		if _, err := plain(); err != nil { // so that all is in the page cache
			return ref, got, err
		}
		for round := range warmRounds {
			err := alternate(run+round,
				func() error { e, err := plain(); ref.add(e); return err },
				func() error { e, err := side(); got.add(e); return err })
			if err != nil {
				return ref, got, err
			}
		}
		return ref, got, nil
	}
	// The epochs of the mount come after each other, as in a job.
	mounted := func() error {
		m, err := l.mount(ctx, s.connection, "", cacheFor(d.set))
		if err != nil {
			return err
		}
		if cold, err = observe(m); err != nil {
			return err
		}
		if plainSecond, second, err = inTurn(func() (measure, error) { return observe(m) }); err != nil {
			return err
		}
		if err := m.close(); err != nil {
			return err
		}
		if m, err = l.mount(ctx, s.connection, m.cache, cacheFor(d.set)); err != nil {
			return err
		}
		if again, err = observe(m); err != nil {
			return err
		}
		err = alternate(run,
			func() error {
				if err := dropCaches(); err != nil {
					return err
				}
				plainDropped, err = plain()
				return err
			},
			func() error {
				if err := dropCaches(); err != nil {
					return err
				}
				dropped, err = observe(m)
				return err
			})
		if err != nil {
			return err
		}
		if err := m.close(); err != nil {
			return err
		}
		if m, err = l.mount(ctx, s.connection, m.cache, cacheFor(d.set), "--read-only", "--open=none"); err != nil {
			return err
		}
		if _, err := observe(m); err != nil { // brings the files into the page cache
			return err
		}
		if plainZero, zero, err = inTurn(func() (measure, error) { return observe(m) }); err != nil {
			return err
		}
		if err := m.close(); err != nil {
			return err
		}
		return discard(m.cache)
	}
	// The bare mount does what the other does for its row: an epoch that fills the page cache, second ones in turn with the
	// plain copy, and one after it was mounted again.
	bareMounted := func() error {
		b, err := l.bare(ctx, d.plain)
		if err != nil {
			return err
		}
		observe := func() (measure, error) {
			epoch++
			return d.epoch(ctx, b.dir, epoch)
		}
		if _, err := observe(); err != nil {
			return err
		}
		if _, bareSecond, err = inTurn(observe); err != nil {
			return err
		}
		if err := b.close(); err != nil {
			return err
		}
		if b, err = l.bare(ctx, d.plain); err != nil {
			return err
		}
		if bareAgain, err = observe(); err != nil {
			return err
		}
		return b.close()
	}
	err := alternate(run,
		func() (err error) {
			bare, err = bareDownload(ctx, l, task{Files: s.blobs(d.set), Block: bareRange, Threads: bareConnections})
			return err
		},
		mounted,
		bareMounted,
		func() error {
			m, err := l.mount(ctx, s.connection, "", cacheFor(d.set), smallMemory)
			if err != nil {
				return err
			}
			if small, err = observe(m); err != nil {
				return err
			}
			if err := m.close(); err != nil {
				return err
			}
			return discard(m.cache)
		})
	return []sample{
		{ref: bare, got: cold}, {ref: cold, got: small}, {ref: plainSecond, got: second}, {ref: plainZero, got: zero},
		{ref: plainDropped, got: dropped}, {ref: second, got: again, bareRef: bareSecond, bare: bareAgain},
	}, err
}
