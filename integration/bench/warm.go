package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/blobserver"
)

// warmSize is the size of the file that the warm workloads read.
const warmSize = 2 << 30

// warmFile is a file in the cache, read through the mount, and a plain copy beside the cache.
type warmFile struct {
	m             *mount
	mounted, copy file
	bare          file // the copy, read through a bare file system; zero without one
}

// warmUp makes a mount whose only file is complete in the cache, and the copy.
func warmUp(ctx context.Context, l *lab, flags ...string) (w warmFile, err error) {
	set := blobserver.Synthetic{Container: container, Prefix: "warm", Count: 1, Size: l.bytes(warmSize)}
	s, err := l.service(ctx, lan, set)
	if err != nil {
		return w, err
	}
	if w.m, err = l.mount(ctx, s.connection, "", append(flags, cacheFor(set))...); err != nil {
		return w, err
	}
	w.mounted = w.m.files(set)[0]
	dir, err := l.newDir("plain")
	if err != nil {
		return w, err
	}
	w.copy = w.mounted
	w.copy.Path = filepath.Join(dir, "copy")
	if err := writeCopy(w.copy); err != nil {
		return w, err
	}
	// The first reading fetches, and compares a sample of every MiB with what it must be.
	fill := task{Op: opRead, Files: []file{w.mounted}, Block: 1 << 20, CheckEvery: 1}
	if _, _, err := runTasks(ctx, nil, fill); err != nil {
		return w, err
	}
	if err := s.reset(ctx); err != nil {
		return w, err
	}
	l.later(func() error { // what was to be read from the cache was
		stats, err := s.stats(ctx)
		if err == nil && stats.BytesOut > 0 {
			err = fmt.Errorf("a complete file was fetched again: %d bytes", stats.BytesOut)
		}
		return err
	})
	return w, nil
}

// writeCopy writes a plain file with the content of a synthetic blob.
func writeCopy(f file) error {
	out, err := os.Create(f.Path)
	if err != nil {
		return err
	}
	defer out.Close()
	content := blobserver.SyntheticContent(f.Name)
	buf := make([]byte, min(f.Size, 1<<20))
	for off := int64(0); off < f.Size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), f.Size-off)]
		content(p, off)
		if _, err := out.WriteAt(p, off); err != nil {
			return err
		}
	}
	return out.Close()
}

// warmRounds is how often a run measures either side of what takes less than a second: other work on the machine
// would decide otherwise.
const warmRounds = 4

// compare measures the copy, the file in the mount, and that in the bare one if there is one, in turn, and returns the
// sums of all rounds.
func (w warmFile) compare(run, rounds int, side func(f file) (measure, error)) (s sample, err error) {
	sides := []func() error{
		func() error {
			m, err := side(w.copy)
			s.ref.add(m)
			return err
		},
		func() error {
			before, err := w.m.usage()
			if err != nil {
				return err
			}
			m, err := side(w.mounted)
			if err != nil {
				return err
			}
			after, err := w.m.usage()
			m.rss, m.cpu = after.rss, after.cpu-before.cpu
			s.got.add(m)
			return err
		},
	}
	if w.bare.Path != "" {
		sides = append(sides, func() error {
			m, err := side(w.bare)
			s.bare.add(m)
			return err
		})
	}
	for round := range rounds {
		if err := alternate(run+round, sides...); err != nil {
			return s, err
		}
	}
	if w.bare.Path != "" {
		s.bareRef = s.ref
	}
	return s, nil
}

// warmSequential reads with the kernel's caches empty.
func warmSequential(l *lab) workload {
	return workload{
		name: "warm-sequential",
		rows: []row{{
			name:      fmt.Sprintf("warm, passthrough: sequential 1 MiB, %s file, page cache dropped", size(l.bytes(warmSize))),
			reference: "the same " + sequentialReader() + " on a plain file beside the cache",
			unit:      mibRate, target: 0.90, kernel: true,
		}},
		start: func(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
			w, err := warmUp(ctx, l, "--passthrough=auto")
			if err != nil {
				return nil, err
			}
			return func(ctx context.Context, run int) ([]sample, error) {
				s, err := w.compare(run, 1, func(f file) (measure, error) {
					if err := dropCaches(); err != nil {
						return measure{}, err
					}
					return readSequential(ctx, f)
				})
				return []sample{s}, err
			}, nil
		},
	}
}

// sequentialReader names the program that readSequential uses.
func sequentialReader() string {
	if _, err := exec.LookPath("fio"); err != nil {
		return "reader (fio is not installed)"
	}
	return "fio"
}

// readSequential reads a file with fio, or without it with a reader of our own.
func readSequential(ctx context.Context, f file) (measure, error) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		return timed(ctx, task{Op: opRead, Files: []file{f}, Block: 1 << 20})
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, fio, "--name=read", "--filename="+f.Path, fmt.Sprintf("--size=%d", f.Size), "--rw=read", "--bs=1M",
		"--ioengine=psync", "--readonly", "--allow_file_create=0", "--output-format=json")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return measure{}, fmt.Errorf("fio: %w: %s", err, stderr.String())
	}
	var report struct {
		Jobs []struct {
			Read struct {
				Bytes     int64   `json:"io_bytes"`
				Bandwidth float64 `json:"bw_bytes"`
				Reads     int64   `json:"total_ios"`
			}
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return measure{}, fmt.Errorf("fio: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Read.Bytes != f.Size || report.Jobs[0].Read.Bandwidth == 0 {
		return measure{}, errors.New("fio did not read the whole file")
	}
	r := report.Jobs[0].Read
	return measure{took: time.Duration(float64(r.Bytes) / r.Bandwidth * float64(time.Second)), asked: r.Bytes, reads: r.Reads}, nil
}

// timed runs tasks and returns what they did and how long it took.
func timed(ctx context.Context, tasks ...task) (measure, error) {
	took, r, err := runTasks(ctx, nil, tasks...)
	return measure{took: took, asked: r.Bytes, reads: r.Reads}, err
}

// randomReads is how many random reads each thread makes: half a second from the page cache, ten from the daemon.
const randomReads = 500_000

// warmRandom reads 4 KiB at random from the page cache.
func warmRandom(*lab) workload {
	name := "warm, passthrough: random 4 KiB, page cache warm, %s"
	r := row{reference: "plain file", unit: readRate, target: 0.80, kernel: true}
	one, four := r, r
	one.name, four.name = fmt.Sprintf(name, "1 thread"), fmt.Sprintf(name, "4 threads")
	return warmInPageCache("warm-random", []row{one, four}, func(l *lab, run int) []task {
		t := task{Op: opRandom, Block: 4 << 10, Count: l.count(randomReads), Seed: uint64(run), CheckEvery: 1 << 20}
		t1, t4 := t, t
		t1.Threads, t4.Threads = 1, 4
		return []task{t1, t4}
	})
}

// warmMapped copies out of a mapping.
func warmMapped(*lab) workload {
	r := row{reference: "plain file", unit: mibRate, target: 0.90, kernel: true}
	sequential, random := r, r
	sequential.name = "warm, passthrough: mmap, page cache warm, sequential"
	random.name = "warm, passthrough: mmap, page cache warm, random 4 KiB"
	return warmInPageCache("warm-mmap", []row{sequential, random}, func(l *lab, run int) []task {
		return []task{
			{Op: opRead, MMap: true, Block: 1 << 20, CheckEvery: 1 << 20},
			{Op: opRandom, MMap: true, Block: 4 << 10, Count: l.count(randomReads), Seed: uint64(run), CheckEvery: 1 << 20},
		}
	})
}

// warmInPageCache is a workload with one task for each row, all of whose pages are in the page cache.
func warmInPageCache(name string, rows []row, tasks func(l *lab, run int) []task) workload {
	return workload{name: name, rows: rows, start: func(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
		w, err := warmUp(ctx, l, "--passthrough=auto")
		if err != nil {
			return nil, err
		}
		for _, f := range []file{w.copy, w.mounted} {
			if err := readAll(f.Path); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, run int) ([]sample, error) {
			var samples []sample
			for _, t := range tasks(l, run) {
				s, err := w.compare(run, warmRounds, func(f file) (measure, error) {
					t.Files = []file{f}
					return timed(ctx, t)
				})
				if err != nil {
					return nil, err
				}
				samples = append(samples, s)
			}
			return samples, nil
		}, nil
	}}
}

// warmServed reads through the daemon: the kernel may not read the cache file by itself, and has none of the mounted
// file's pages.
func warmServed(l *lab) workload {
	return workload{
		name: "warm-served",
		rows: []row{{
			name:      fmt.Sprintf("warm without passthrough: sequential 1 MiB, %s, FUSE page cache empty, cache file in the page cache", size(l.bytes(warmSize))),
			reference: "plain file in the page cache", unit: mibRate, target: 0.35, ceiling: "bare FUSE, of the same plain file",
		}},
		start: func(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
			w, err := warmUp(ctx, l, "--passthrough=off")
			if err != nil {
				return nil, err
			}
			if err := readAll(w.copy.Path); err != nil {
				return nil, err
			}
			err = filepath.WalkDir(filepath.Join(w.m.cache, "v1"), func(path string, e os.DirEntry, err error) error {
				if err == nil && e.Type().IsRegular() {
					err = readAll(path)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
			b, err := l.bare(ctx, filepath.Dir(w.copy.Path))
			if err != nil {
				return nil, err
			}
			w.bare = w.copy
			w.bare.Path = filepath.Join(b.dir, filepath.Base(w.copy.Path))
			return func(ctx context.Context, run int) ([]sample, error) {
				s, err := w.compare(run, warmRounds, func(f file) (measure, error) {
					if f != w.copy { // of both mounts, so that neither is measured with more memory in use
						if err := errors.Join(dropPages(w.mounted.Path), dropPages(w.bare.Path)); err != nil {
							return measure{}, err
						}
					}
					return timed(ctx, task{Op: opRead, Files: []file{f}, Block: 1 << 20, CheckEvery: 16 << 20})
				})
				return []sample{s}, err
			}, nil
		},
	}
}

// readAll brings a file into the page cache.
func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return err
}

// dropPages empties the page cache of one file.
func dropPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
