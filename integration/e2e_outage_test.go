package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blobmount/integration/crash"
	"blobmount/integration/mounttest"
)

// A service that cannot be reached for a while costs time: cp notices nothing.
func TestMountOutage(t *testing.T) {
	outage, files := 3*time.Second, 200
	if mounttest.Long() {
		outage, files = time.Minute, 2000
	}
	o := newOutage(t, files)
	o.copyThrough(outage)
	if o.message != "" {
		t.Errorf("cp: %s", o.message)
	}
	if wrong := o.judge(); wrong > 0 {
		t.Errorf("%d files are not in the service", wrong)
	}
}

// When it cannot be reached for longer than requests are repeated, cp says of which files it does not know that they
// are in the service. All others are; and those that it could not close, since they are staged, come when the service
// is back.
func TestMountOutageTooLong(t *testing.T) {
	needWord(t, "--retry-for", "--help")
	o := newOutage(t, 200, "--retry-for=1s")
	o.copyThrough(4 * time.Second)
	closing := o.complaints("failed to close")
	if o.message == "" {
		t.Error("cp noticed nothing of an outage that was longer than --retry-for, so nothing is proven")
	}
	t.Logf("cp complained of %d of %d files, of %d when it closed them; %d are not in the service yet",
		len(o.complaints("")), len(o.files), len(closing), o.judge())
	for _, path := range closing {
		o.await(path)
	}
}

// outage is a tree of files that is copied to a mount while the service cannot be reached.
type outage struct {
	*world
	service *mounttest.Service
	link    *crash.Link
	source  string
	files   map[string][]byte // by path in the tree
	message string            // what cp wrote to standard error
}

func newOutage(t *testing.T, files int, flags ...string) *outage {
	t.Helper()
	mounttest.NeedFUSE(t)
	s := mounttest.Embedded(t)
	link := newLink(t, s)
	c := s.NewContainer(t)
	p := s.Via(link.Address()).NewPoint(t, c)
	o := &outage{
		world: &world{p, c, t}, service: s, link: link,
		source: filepath.Join(t.TempDir(), "tree"), files: map[string][]byte{},
	}
	random := rand.New(rand.NewPCG(9, 9))
	for i := range files {
		path := fmt.Sprintf("tree/dir%d/file%d", i%10, i)
		size := random.Int64N(40 << 10)
		if i%50 == 0 {
			size += 3 << 20 // several blocks
		}
		o.files[path] = crash.NewImage(crash.Stamp{Path: path}, size).Bytes()
		local := filepath.Join(filepath.Dir(o.source), path)
		must(t, os.MkdirAll(filepath.Dir(local), 0o755))
		must(t, os.WriteFile(local, o.files[path], 0o644))
	}
	p.Mount(append([]string{"--block-size=1MiB", "--log-level=warn"}, flags...)...)
	return o
}

// copyThrough copies the tree. When a quarter of the files is there, the service goes away for a while.
func (o *outage) copyThrough(outage time.Duration) {
	o.t.Helper()
	cp := exec.CommandContext(o.t.Context(), "cp", "-r", o.source, o.Dir)
	cp.Env = append(os.Environ(), "LC_ALL=C")
	var stderr strings.Builder
	cp.Stderr = &stderr
	must(o.t, cp.Start())
	o.awaitCommits(len(o.files) / 4)
	o.link.Cut()
	before := o.service.Embedded.Stats().Total()
	time.Sleep(outage) // what the test is about; nothing is waited for
	if n := o.service.Embedded.Stats().Total() - before; n > 16 {
		o.t.Errorf("%d requests came through", n) // beyond those that were under way
	}
	must(o.t, o.link.Mend())
	err := cp.Wait()
	o.message = stderr.String()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		o.t.Fatal(err)
	}
	if (err == nil) != (o.message == "") {
		o.t.Errorf("cp ended with %v and said %q", err, o.message)
	}
}

// awaitCommits waits until a number of files was committed.
func (o *outage) awaitCommits(n int) {
	o.t.Helper()
	for deadline := time.Now().Add(drainBound); ; time.Sleep(time.Millisecond) {
		stats := o.service.Embedded.Stats().Requests
		if int(stats["PutBlob"]+stats["PutBlockList"]) >= n {
			return
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("%d files were not copied within %v: %v", n, drainBound, stats)
		}
	}
}

// complaints returns the files of which cp said something with these words.
func (o *outage) complaints(words string) (paths []string) {
	for path := range o.files {
		for line := range strings.Lines(o.message) {
			if strings.Contains(line, words) && strings.Contains(line, "'"+o.path(path)+"'") {
				paths = append(paths, path)
				break
			}
		}
	}
	return paths
}

// has reports whether the service has a file.
func (o *outage) has(path string) bool {
	return o.Has(path) && string(o.Get(path)) == string(o.files[path])
}

// await waits until the service has a file.
func (o *outage) await(path string) {
	o.t.Helper()
	for deadline := time.Now().Add(drainBound); !o.has(path); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatalf("%s was staged when close failed, and has not come to the service within %v", path, drainBound)
		}
	}
}

// judge compares each file with its blob, and returns how many are not there. For those of which cp said nothing that
// is an error.
func (o *outage) judge() (wrong int) {
	o.t.Helper()
	for path := range o.files {
		if o.has(path) {
			continue
		}
		wrong++
		if !strings.Contains(o.message, "'"+o.path(path)+"'") {
			o.t.Errorf("cp succeeded in copying %s, and it is not in the service", path)
		}
	}
	return wrong
}
