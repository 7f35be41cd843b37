package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// A task is what one child process does: read or write files, download or upload blobs, or serve a file system. The parent
// sends it as one line of JSON; the child answers with a line when it is ready to begin, begins when it gets the next line,
// and answers with a result when it has ended. So the time that is measured has no start of processes in it. One that serves
// does so from its answer until its input ends.
type task struct {
	Op    string // one of the operations below
	Files []file
	// Block is the size of one read or write, of one ranged request, or of one uploaded block, in bytes.
	Block int64 `json:",omitempty"`
	// Count is how many random reads each thread makes; their places depend on Seed.
	Count   int    `json:",omitempty"`
	Seed    uint64 `json:",omitempty"`
	Threads int    `json:",omitempty"` // readers, connections, or uploads under way; 0 means 1
	Spans   []span `json:",omitempty"` // what to read of the only file, in order; empty for all of every file
	MMap    bool   `json:",omitempty"` // read by copying out of a mapping
	Out     string `json:",omitempty"` // where download writes
	// Dir is what serve shows, and Mountpoint where.
	Dir        string `json:",omitempty"`
	Mountpoint string `json:",omitempty"`
	// Connection is the connection string of the service that is uploaded to, which is an embedded one.
	Connection string `json:",omitempty"`
	// CheckEvery is after how many bytes read 4 KiB are compared with the content that the name of the blob decides.
	// The smallest value, 1, compares something of every read.
	CheckEvery int64 `json:",omitempty"`
	// Survey makes the result say how often reads failed, instead of ending at the first error.
	Survey bool `json:",omitempty"`
}

// The operations.
const (
	opRead     = "read"     // Files by their spans, or one after the other in blocks
	opRandom   = "random"   // Count blocks at random places of the only file, in each thread
	opFiles    = "files"    // each file whole: open, read, compare its checksum, close
	opDownload = "download" // blobs by URL, into Out
	opWrite    = "write"    // each file new: create, write in blocks, close
	opUpload   = "upload"   // one blob after the other, in blocks, Threads of them under way
	opPut      = "put"      // each blob by one request, Threads of them under way
	opServe    = "serve"    // Dir by a bare file system, see bareFS; it has no Files
)

// file is one thing to read or to write.
type file struct {
	Path string // of a file, or the URL of a blob
	Name string // of the blob, which decides the content
	Size int64
	Sum  uint32 `json:",omitempty"` // CRC-32C of the content, for opFiles
}

// span is a range of a file.
type span struct{ Off, Len int64 }

// result is what a child has done.
type result struct {
	Bytes, Reads int64  // Reads counts files where files are written
	Failed       int64  `json:",omitempty"` // reads, of a survey
	Error        string `json:",omitempty"`
}

// asWorker is the argument that makes this program a child.
const asWorker = "worker"

// work is the child's side.
func work(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	var t task
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &t)
	}
	if err != nil {
		return fmt.Errorf("task: %w", err)
	}
	if t.Op == opServe {
		return t.serve(lines, out)
	}
	run, err := t.prepare()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	if _, err := lines.ReadBytes('\n'); err != nil {
		return fmt.Errorf("waiting to begin: %w", err)
	}
	r, err := run()
	if err != nil {
		r.Error = err.Error()
	}
	return json.NewEncoder(out).Encode(r)
}

// prepare does what is not to be measured, and returns what is.
func (t task) prepare() (func() (result, error), error) {
	t.Threads = max(t.Threads, 1)
	switch {
	case len(t.Files) == 0:
		return nil, errors.New("a task without files")
	case t.Op == opRead:
		return t.read, nil
	case t.Op == opRandom:
		return t.random, nil
	case t.Op == opFiles:
		return t.files, nil
	case t.Op == opDownload:
		return t.download()
	case t.Op == opWrite:
		return t.write, nil
	case t.Op == opUpload:
		return t.upload()
	case t.Op == opPut:
		return t.put()
	}
	return nil, fmt.Errorf("no operation %q", t.Op)
}

// child is the parent's side of one process.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func startChild(ctx context.Context, t task) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, asWorker)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd, stdin, bufio.NewReader(stdout)}
	if err := json.NewEncoder(stdin).Encode(t); err != nil {
		return nil, c.end(err)
	}
	if line, err := c.out.ReadString('\n'); err != nil || line != "ready\n" {
		return nil, c.end(fmt.Errorf("worker did not start: %q, %w", line, err))
	}
	return c, nil
}

// end lets the process end, and returns err or the process's own.
func (c *child) end(err error) error {
	_ = c.stdin.Close()
	return errors.Join(err, c.cmd.Wait())
}

// runTasks runs tasks at the same time, one process each, and returns the time from the first's begin to the last's
// end, and the sums of their results. first, when it is not nil, runs within that time, before the processes.
func runTasks(ctx context.Context, first func() error, tasks ...task) (time.Duration, result, error) {
	children := make([]*child, len(tasks))
	var errs []error
	for i, t := range tasks {
		c, err := startChild(ctx, t)
		if err != nil {
			errs = append(errs, err)
			break
		}
		children[i] = c
	}
	var sum result
	begin := time.Now()
	if first != nil && errs == nil {
		if err := first(); err != nil {
			errs = append(errs, err)
		}
	}
	results := make([]result, len(tasks))
	ends := make([]error, len(tasks))
	if errs == nil {
		var wg sync.WaitGroup
		for i, c := range children {
			wg.Go(func() {
				if _, ends[i] = io.WriteString(c.stdin, "go\n"); ends[i] == nil {
					ends[i] = json.NewDecoder(c.out).Decode(&results[i])
				}
			})
		}
		wg.Wait()
	}
	took := time.Since(begin)
	for i, c := range children {
		if c == nil {
			continue
		}
		if err := c.end(ends[i]); err != nil {
			errs = append(errs, err)
		}
		if results[i].Error != "" {
			errs = append(errs, errors.New(results[i].Error))
		}
		sum.Bytes += results[i].Bytes
		sum.Reads += results[i].Reads
		sum.Failed += results[i].Failed
	}
	if err := context.Cause(ctx); err != nil {
		errs = append(errs, err)
	}
	return took, sum, errors.Join(errs...)
}
