package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/blobserver"
)

// preset is how slow the service is.
type preset struct {
	name  string
	shape blobserver.Shape
}

// The presets. azure is slow enough for the network to be the limit and not this machine's processors, which both
// ends share: first bytes as of a storage account in the same region, and a rate that a small machine is given.
var (
	lan   = preset{name: "lan"}
	azure = preset{"azure", blobserver.Shape{
		Latency: 10 * time.Millisecond, Jitter: 4 * time.Millisecond, ConnBandwidth: 60 << 20, TotalBandwidth: 300 << 20,
	}}
)

// container has all blobs.
const container = "data"

// lab is where the workloads run: a scratch directory with the two programs in it, and what is to be cleaned up. It is
// not safe for parallel use.
type lab struct {
	dir   string
	scale float64
	log   io.Writer // what is going on, for the one who waits
	clean []func() error
	dirs  int
}

// newLab builds the programs into a new directory below parent.
func newLab(ctx context.Context, parent string, scale float64, log io.Writer) (*lab, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot find the module: run this in its directory: %w", err)
	}
	dir, err := os.MkdirTemp(parent, "blobmount-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, scale: scale, log: log}
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/blobmount", "./integration/cmd/blobserver")
	build.Dir = strings.TrimSpace(string(root))
	if out, err := build.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("go build: %w\n%s", err, out), l.remove())
	}
	return l, nil
}

// remove ends what still runs, and removes the scratch directory.
func (l *lab) remove() error { return errors.Join(l.cleanUp(), os.RemoveAll(l.dir)) }

// later adds something to do at the end of the workload, last first.
func (l *lab) later(f func() error) { l.clean = append(l.clean, f) }

func (l *lab) cleanUp() error {
	var errs []error
	for len(l.clean) > 0 {
		f := l.clean[len(l.clean)-1]
		l.clean = l.clean[:len(l.clean)-1]
		if err := f(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// bytes returns a size at the lab's scale, in whole MiB.
func (l *lab) bytes(n int64) int64 { return max(int64(float64(n)*l.scale)>>20, 4) << 20 }

// count returns a number of things at the lab's scale.
func (l *lab) count(n int) int { return max(int(math.Round(float64(n)*l.scale)), 8) }

// newDir makes a directory that is removed at the end of the workload.
func (l *lab) newDir(name string) (string, error) {
	l.dirs++
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%d", name, l.dirs))
	l.later(func() error { return discard(dir) })
	return dir, os.Mkdir(dir, 0o700)
}

// discard removes what a measurement wrote, and waits until nothing is left to write: the next one must not pay for it.
// Many files stay until the end: an ext4 without a journal passes over inodes that were deleted in the last minute one by
// one (recently_deleted in fs/ext4/ialloc.c), which made each new file cost 100 µs more after 20,000 were deleted.
func discard(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if few(p) {
			errs = append(errs, os.RemoveAll(p))
		}
	}
	unix.Sync()
	return errors.Join(errs...)
}

// few reports whether there are at most 1,000 files below a path.
func few(path string) bool {
	n := 0
	_ = filepath.WalkDir(path, func(string, os.DirEntry, error) error { // what is not there counts for nothing
		if n++; n > 1000 {
			return filepath.SkipAll
		}
		return nil
	})
	return n <= 1000
}

// dropCaches empties the kernel's caches of pages, names and inodes.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// service is a running blobserver.
type service struct {
	connection string
	url        string // of the account
	admin      string
	sets       []blobserver.Synthetic
}

func (l *lab) service(ctx context.Context, p preset, sets ...blobserver.Synthetic) (*service, error) {
	args := []string{"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--anonymous", "--container", container,
		"--latency", p.shape.Latency.String(), "--jitter", p.shape.Jitter.String(),
		"--conn-bandwidth", strconv.FormatInt(p.shape.ConnBandwidth, 10), "--total-bandwidth", strconv.FormatInt(p.shape.TotalBandwidth, 10)}
	for _, s := range sets {
		args = append(args, "--synthetic", s.String())
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.dir, "blobserver"), args...)
	cmd.Stderr = l.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l.later(func() error {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return ignoreEnd(ctx, "blobserver", cmd.Wait())
	})
	s := &service{sets: sets}
	lines := bufio.NewScanner(out)
	if lines.Scan() {
		s.connection = lines.Text()
		_, url, _ := strings.Cut(s.connection, "BlobEndpoint=")
		s.url = strings.TrimSuffix(url, ";")
	}
	if lines.Scan() {
		s.admin = lines.Text()
	}
	if s.admin == "" {
		return nil, errors.New("blobserver did not start")
	}
	return s, nil
}

// ignoreEnd drops the error of a process that was ended because everything is.
func ignoreEnd(ctx context.Context, what string, err error) error {
	if err == nil || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// blobs returns the files of a set as blobs to download.
func (s *service) blobs(d blobserver.Synthetic) []file {
	files := make([]file, d.Count)
	for i := range files {
		files[i] = file{Path: s.url + "/" + d.Container + "/" + d.Name(i), Name: d.Name(i), Size: d.Size}
	}
	return files
}

func (s *service) reset(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.admin+"/-/reset", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func (s *service) stats(ctx context.Context) (stats blobserver.Stats, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.admin+"/-/stats", nil)
	if err != nil {
		return stats, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return stats, err
	}
	defer res.Body.Close()
	return stats, json.NewDecoder(res.Body).Decode(&stats)
}
