package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"blobmount/integration/blobserver"
)

// What a daemon does by default, and so the references: blocks of 8 MiB, 16 of them under way for one file.
const (
	uploadBlock  = 8 << 20
	uploadsAhead = 16
)

// largeFile is a file whose blob does not stay in the service's memory.
const largeFile = 1 << 20

// The most memory that a daemon may take to write one large file.
const maxWriteRSS = 300 << 20

// writing is a workload that writes new files: by a bare program, and through a mount with an empty cache.
type writing struct {
	name    string
	row     row
	preset  preset
	files   int
	size    int64 // of each
	bare    task  // without its files
	writers int   // processes
	block   int64 // of a write
}

func (w writing) workload() workload {
	return workload{name: w.name, rows: []row{w.row}, start: w.start}
}

// set names what one side writes in a run. Every side of every run has names of its own: all files are new.
func (w writing) set(side string, run int) blobserver.Synthetic {
	return blobserver.Synthetic{Container: container, Prefix: fmt.Sprintf("%s%d/", side, run), Count: w.files, Size: w.size}
}

func (w writing) start(ctx context.Context, l *lab) (func(context.Context, int) ([]sample, error), error) {
	s, err := l.service(ctx, w.preset)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, run int) ([]sample, error) {
		var x sample
		sides := []func() error{
			func() (err error) { x.ref, err = w.upload(ctx, s, w.set("bare", run)); return err },
			func() (err error) { x.got, err = w.mounted(ctx, l, s, w.set("mounted", run)); return err },
		}
		if w.row.ceiling != "" {
			sides = append(sides, func() (err error) { x.bare, err = w.local(ctx, l, w.set("local", run)); return err })
		}
		err := alternate(run, sides...)
		x.bareRef = x.ref
		return []sample{x}, err
	}, nil
}

// upload runs the reference.
func (w writing) upload(ctx context.Context, s *service, set blobserver.Synthetic) (measure, error) {
	t := w.bare
	t.Files, t.Connection = s.blobs(set), s.connection
	m, err := timed(ctx, t)
	if err != nil {
		return m, err
	}
	return m, w.verify(ctx, s, t.Files)
}

// mounted writes through a new mount, into a directory that was just made.
func (w writing) mounted(ctx context.Context, l *lab, s *service, set blobserver.Synthetic) (measure, error) {
	m, err := l.mount(ctx, s.connection, "", cacheFor(set))
	if err != nil {
		return measure{}, err
	}
	if err := os.Mkdir(filepath.Join(m.dir, set.Prefix), 0o700); err != nil {
		return measure{}, err
	}
	got, err := observed(ctx, s, m, func() (measure, error) { return timed(ctx, w.tasks(m.files(set))...) })
	if err != nil {
		return got, err
	}
	if err := w.verify(ctx, s, s.blobs(set)); err != nil {
		return got, err
	}
	if err := m.close(); err != nil {
		return got, err
	}
	return got, discard(m.cache)
}

// local writes plain files to the disk on which the mount has its cache, and sends nothing.
func (w writing) local(ctx context.Context, l *lab, set blobserver.Synthetic) (measure, error) {
	dir, err := l.newDir("plain")
	if err != nil {
		return measure{}, err
	}
	if err := os.Mkdir(filepath.Join(dir, set.Prefix), 0o700); err != nil {
		return measure{}, err
	}
	files := make([]file, set.Count)
	for i := range files {
		files[i] = file{Path: filepath.Join(dir, set.Name(i)), Name: set.Name(i), Size: set.Size}
	}
	m, err := timed(ctx, w.tasks(files)...)
	if err != nil {
		return m, err
	}
	return m, discard(dir)
}

// tasks deals the files out to the writers.
func (w writing) tasks(files []file) []task {
	tasks := make([]task, min(w.writers, len(files)))
	for i := range tasks {
		tasks[i] = task{Op: opWrite, Block: w.block}
	}
	for i, f := range files {
		t := &tasks[i%len(tasks)]
		t.Files = append(t.Files, f)
	}
	return tasks
}

// verify looks at some of what was written, which the service must have when the last close has returned. Then large
// blobs are deleted, for the service's memory. Small ones take little of it, and a request each.
func (w writing) verify(ctx context.Context, s *service, files []file) error {
	const some = 50
	for i := 0; i < len(files); i += max(1, len(files)/some) {
		f := files[i]
		if err := s.compare(ctx, f.Name, f.Size, blobserver.SyntheticContent(f.Name), samples(f.Size)...); err != nil {
			return err
		}
	}
	if w.size < largeFile {
		return nil
	}
	return s.delete(ctx, files)
}

// one is a workload of one file, written in order.
func one(l *lab, name string, p preset, where string, target float64, ceiling string) workload {
	n := l.bytes(4 << 30)
	return writing{
		name: name,
		row: row{
			name:      fmt.Sprintf("write %s in order, one writer, %s", size(n), where),
			reference: fmt.Sprintf("bare program: azblob's UploadStream, blocks of %s, %d under way", size(uploadBlock), uploadsAhead),
			unit:      mibRate, target: target, maxRSS: maxWriteRSS, ceiling: ceiling,
		},
		preset: p, files: 1, size: n, writers: 1, block: 1 << 20,
		bare: task{Op: opUpload, Block: uploadBlock, Threads: uploadsAhead},
	}.workload()
}

func writeSequential(l *lab) workload {
	const where = "20 ms a request, 60 MiB/s over one connection, 300 MiB/s over all"
	shape := blobserver.Shape{Latency: 20 * time.Millisecond, ConnBandwidth: 60 << 20, TotalBandwidth: 300 << 20}
	return one(l, "write-sequential", preset{"far", shape}, where, 0.90, "")
}

func writeLAN(l *lab) workload {
	return one(l, "write-lan", lan, "`lan`", 0.50, "a plain file, of the same bare program")
}

// Small files: what may be asked beyond one request for each is for their directory.
const (
	writtenFiles = 10_000
	writtenSize  = 4 << 10
	smallWriters = 16
	extraWrites  = 50
)

func writeSmall(l *lab) workload {
	n := l.count(writtenFiles)
	return writing{
		name: "write-small",
		row: row{
			name:      fmt.Sprintf("create, write and close %d files of 4 KiB in one directory, %d processes, 10 ms a request", n, smallWriters),
			reference: fmt.Sprintf("bare program: one Put Blob for each, %d under way", smallWriters),
			unit:      fileRate, target: 0.85, maxWrites: int64(n) + extraWrites,
		},
		preset: preset{"10 ms", blobserver.Shape{Latency: 10 * time.Millisecond}},
		files:  n, size: writtenSize, writers: smallWriters, block: writtenSize,
		bare: task{Op: opPut, Threads: smallWriters},
	}.workload()
}
