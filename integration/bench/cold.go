package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"

	"blobmount/integration/blobserver"
)

// What the reference of the cold workloads does. 32 connections of 60 MiB/s are more than the preset's 300 MiB/s. In
// lan the daemon has 16 requests of 4 MiB under way: its window of 64 MiB.
const (
	bareConnections = 32
	lanConnections  = 16
	bareRange       = 4 << 20
)

// The most memory that a daemon may take in a cold workload, and with --memory=64MiB.
const (
	maxRSS      = 512 << 20
	smallMemory = "--memory=64MiB"
	maxSmallRSS = 160 << 20
)

// cold is a workload with an empty cache: a reference, the mount, and the mount with little memory.
type cold struct {
	name   string
	row    row
	preset preset
	set    blobserver.Synthetic
	// reference returns the bare program's task, without its output.
	reference func(blobs []file, run int) task
	readers   func(files []file, run int) []task
}

// smallRow is the row of the same workload with little memory.
func smallRow(r row) row {
	r.name += ", " + smallMemory
	r.reference = "the same with the default memory"
	r.target, r.maxRSS = 0.50, maxSmallRSS
	return r
}

func (c cold) workload() workload {
	c.row.maxRSS = maxRSS
	return workload{name: c.name, rows: []row{c.row, smallRow(c.row)}, start: c.start}
}

func (c cold) start(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
	s, err := l.service(ctx, c.preset, c.set)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, run int) ([]sample, error) {
		var bare, normal, small measure
		err := alternate(run,
			func() (err error) {
				bare, err = bareDownload(ctx, l, c.reference(s.blobs(c.set), run))
				return err
			},
			func() (err error) { normal, err = c.mounted(ctx, l, s, run); return err },
			func() (err error) { small, err = c.mounted(ctx, l, s, run, smallMemory); return err })
		return []sample{{ref: bare, got: normal}, {ref: normal, got: small}}, err
	}, nil
}

// bareDownload runs the reference.
func bareDownload(ctx context.Context, l *lab, t task) (measure, error) {
	dir, err := l.newDir("bare")
	if err != nil {
		return measure{}, err
	}
	t.Op, t.Out = opDownload, filepath.Join(dir, "out")
	m, err := timed(ctx, t)
	if err != nil {
		return m, err
	}
	return m, discard(t.Out)
}

// mounted reads through a new mount with an empty cache.
func (c cold) mounted(ctx context.Context, l *lab, s *service, run int, flags ...string) (measure, error) {
	m, err := l.mount(ctx, s.connection, "", append(flags, cacheFor(c.set))...)
	if err != nil {
		return measure{}, err
	}
	got, err := observed(ctx, s, m, func() (measure, error) { return timed(ctx, c.readers(m.files(c.set), run)...) })
	if err != nil {
		return got, err
	}
	if err := m.close(); err != nil {
		return got, err
	}
	return got, discard(m.cache)
}

// cacheFor is the flag of a cache that has room for a set: what is measured is not eviction.
func cacheFor(d blobserver.Synthetic) string {
	return fmt.Sprintf("--cache-size=%d", 2*int64(d.Count)*d.Size+1<<30)
}

// observed adds to a measure what the daemon and the service say about it.
func observed(ctx context.Context, s *service, m *mount, side func() (measure, error)) (measure, error) {
	before, err := m.usage()
	if err != nil {
		return measure{}, err
	}
	if err := s.reset(ctx); err != nil {
		return measure{}, err
	}
	got, err := side()
	if err != nil {
		return got, err
	}
	stats, err := s.stats(ctx)
	if err != nil {
		return got, err
	}
	after, err := m.usage()
	got.rss, got.cpu = after.rss, after.cpu-before.cpu
	got.count(stats)
	return got, err
}

// inOrder reads the files each with a reader of its own, from start to end.
func inOrder(files []file, _ int) []task {
	tasks := make([]task, len(files))
	for i := range files {
		tasks[i] = task{Op: opRead, Files: files[i : i+1], Block: 1 << 20, CheckEvery: 1 << 20}
	}
	return tasks
}

func bareWhole(connections int) func([]file, int) task {
	return func(blobs []file, _ int) task { return task{Files: blobs, Block: bareRange, Threads: connections} }
}

func coldLAN(l *lab) workload {
	n := l.bytes(4 << 30)
	return cold{
		name: "cold-lan",
		row: row{
			name:      fmt.Sprintf("cold `lan`, one reader, %s", size(n)),
			reference: fmt.Sprintf("bare program: the same blob in ranges of 4 MiB over %d connections into a file", lanConnections),
			unit:      mibRate, target: 0.60,
		},
		preset: lan, set: blobserver.Synthetic{Container: container, Prefix: "large", Count: 1, Size: n},
		reference: bareWhole(lanConnections), readers: inOrder,
	}.workload()
}

func coldAzure(l *lab) workload {
	n := l.bytes(4 << 30)
	return cold{
		name: "cold-azure",
		row: row{
			name: fmt.Sprintf("cold `azure`, one reader, %s", size(n)), reference: bareProgram,
			unit: mibRate, target: 0.90,
		},
		preset: azure, set: blobserver.Synthetic{Container: container, Prefix: "large", Count: 1, Size: n},
		reference: bareWhole(bareConnections), readers: inOrder,
	}.workload()
}

const bareProgram = "bare program with 32 connections"

func coldFour(l *lab) workload {
	n := l.bytes(1 << 30)
	return cold{
		name: "cold-four",
		row: row{
			name: fmt.Sprintf("cold `azure`, four readers of four files, %s each", size(n)), reference: bareProgram,
			unit: mibRate, target: 0.90,
		},
		preset: azure, set: blobserver.Synthetic{Container: container, Prefix: "large", Count: 4, Size: n},
		reference: bareWhole(bareConnections), readers: inOrder,
	}.workload()
}

// randomCold is how many reads the cold random workload makes: about 12 ms each.
const randomCold = 1000

func coldRandom(l *lab) workload {
	n := l.bytes(10 << 30)
	at := func(run int) []span {
		rnd := rand.New(rand.NewPCG(uint64(run), 1))
		spans := make([]span, l.count(randomCold))
		for i := range spans {
			spans[i] = span{rnd.Int64N(n>>12) << 12, 4 << 10}
		}
		return spans
	}
	return cold{
		name: "cold-random",
		row: row{
			name: fmt.Sprintf("cold `azure`, %d random reads of 4 KiB over %s, 1 thread", l.count(randomCold), size(n)), reference: "one bare ranged GET per read",
			unit: readRate, target: 0.80, maxFetched: 20,
		},
		preset: azure, set: blobserver.Synthetic{Container: container, Prefix: "large", Count: 1, Size: n},
		reference: func(blobs []file, run int) task {
			return task{Files: blobs, Spans: at(run), Block: 4 << 10, Threads: 1}
		},
		readers: func(files []file, run int) []task {
			return []task{{Op: opRead, Files: files, Spans: at(run), CheckEvery: 1}}
		},
	}.workload()
}

// coldChunks is a tenth of the 10,000 chunks that the workload is known with: those are 125 GB, seven minutes for the bare
// program. With fewer chunks fewer of them meet bytes that are already there, so this is the harder case.
func coldChunks(l *lab) workload { return chunks(l, "cold-chunks", 1_000) }

// allColdChunks is all 10,000.
func allColdChunks(l *lab) workload {
	w := chunks(l, "cold-chunks-full", 10_000)
	w.byName = true
	return w
}

func chunks(l *lab, name string, count int) workload {
	n := l.bytes(10 << 30)
	at := func(run int) []span {
		rnd := rand.New(rand.NewPCG(uint64(run), 2))
		spans := make([]span, l.count(count))
		for i := range spans {
			length := min(25_000+rnd.Int64N(25_000_000-25_000+1), n)
			spans[i] = span{rnd.Int64N(n - length + 1), length}
		}
		return spans
	}
	return cold{
		name: name,
		row: row{
			name: fmt.Sprintf("cold `azure`, %d chunks of 25 KB to 25 MB at random places of %s, one after the other", l.count(count), size(n)), reference: bareProgram,
			unit: mibRate, target: 0.80,
		},
		preset: azure, set: blobserver.Synthetic{Container: container, Prefix: "large", Count: 1, Size: n},
		reference: func(blobs []file, run int) task {
			return task{Files: blobs, Spans: at(run), Block: bareRange, Threads: bareConnections}
		},
		readers: func(files []file, run int) []task {
			return []task{{Op: opRead, Files: files, Spans: at(run), CheckEvery: 1}}
		},
	}.workload()
}

// tensors are the places that a program reads of a safetensors file: the length of the header, the header, and the
// tensors in the order of the file, of 4 KiB to 64 MiB.
func tensors(n int64) []span {
	const header = 100 << 10
	spans := []span{{0, 8}, {8, min(header, n-8)}}
	rnd := rand.New(rand.NewPCG(3, 3))
	for at := spans[1].Off + spans[1].Len; at < n; {
		length := min(4<<10<<rnd.IntN(15), n-at)
		spans = append(spans, span{at, length})
		at += length
	}
	return spans
}

func coldTensors(l *lab) workload {
	n := l.bytes(2 << 30)
	set := blobserver.Synthetic{Container: container, Prefix: "model", Count: 1, Size: n}
	r := row{
		name: fmt.Sprintf("mmap of a %s file, safetensors-like access, cold `azure`", size(n)), reference: "read of the same file, cold",
		unit: mibRate, target: 0.80, maxRSS: maxRSS,
	}
	mapped := cold{preset: azure, set: set, readers: func(files []file, _ int) []task {
		return []task{{Op: opRead, Files: files, Spans: tensors(n), MMap: true, CheckEvery: 1}}
	}}
	read := cold{preset: azure, set: set, readers: func(files []file, _ int) []task {
		return []task{{Op: opRead, Files: files, Spans: tensors(n), CheckEvery: 1}}
	}}
	return workload{name: "cold-mmap", rows: []row{r, smallRow(r)}, start: func(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
		s, err := l.service(ctx, azure, set)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, run int) ([]sample, error) {
			var ref, normal, small measure
			err := alternate(run,
				func() (err error) { ref, err = read.mounted(ctx, l, s, run); return err },
				func() (err error) { normal, err = mapped.mounted(ctx, l, s, run); return err },
				func() (err error) { small, err = mapped.mounted(ctx, l, s, run, smallMemory); return err })
			return []sample{{ref: ref, got: normal}, {ref: normal, got: small}}, err
		}, nil
	}}
}
