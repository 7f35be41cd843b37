package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
	"blobmount/integration/crash"
	"blobmount/integration/mounttest"
)

// Two mounts with caches of their own write the same files, as two hosts do. Every write that was acknowledged became
// a version of the blob; every other one got ESTALE, and its bytes are kept. None vanishes.
func TestMountFight(t *testing.T) {
	mounttest.NeedFUSE(t)
	duration := 5 * time.Second
	if mounttest.Long() {
		duration = 60 * time.Second
	}
	var h history
	s := mounttest.EmbeddedWith(t, blobserver.Options{Store: blobtest.StoreOptions{Written: h.written}})
	c := s.NewContainer(t)
	for i := range fightFiles {
		c.Put(fightName(i), []byte("the first content"))
	}
	// One asks the service at every open; the other goes on for a second with the versions that it knows.
	mounts := []*world{fightWorld(t, s, c, "0"), fightWorld(t, s, c, "1")}
	const writers = 3 // on each mount
	fights := make([]fight, len(mounts)*writers)
	locks := make([][fightFiles]sync.Mutex, len(mounts))
	stop := time.Now().Add(duration)
	var wg sync.WaitGroup
	for i := range fights {
		f := &fights[i]
		f.w, f.locks, f.id, f.random = mounts[i/writers], &locks[i/writers], i, rand.New(rand.NewPCG(uint64(i), 5))
		wg.Go(func() {
			for time.Now().Before(stop) {
				f.write()
			}
		})
	}
	wg.Wait()
	var won, lost, bytes int64
	had := h.contents(t)
	for _, w := range mounts {
		w.ExpectError(overtaken)
		w.Unmount()
		kept := stagedFiles(t, w.Cache)
		for _, f := range fights {
			if f.w == w {
				wins, losses := f.judge(t, had, kept)
				won, lost, bytes = won+wins, lost+losses, bytes+f.bytes
			}
		}
	}
	t.Logf("%d writes acknowledged, %d refused and kept, %d MiB", won, lost, bytes>>20)
	if won < 50 || lost < 5 {
		t.Error("too few to prove anything")
	}
}

const fightFiles = 50

func fightName(i int) string { return fmt.Sprintf("file%d", i) }

func fightWorld(t *testing.T, s *mounttest.Service, c *mounttest.Container, timeout string) *world {
	t.Helper()
	p := s.NewPoint(t, c)
	p.Mount("--block-size=64KiB", "--log-level=error", "--blob-cache-timeout="+timeout)
	return &world{p, c, t}
}

// history is every content that each blob ever had. Its methods may be called in parallel.
type history struct {
	mu       sync.Mutex // guards versions
	versions []version
}

type version struct {
	name    string
	content blobtest.Range
}

// written is told by the service of each version.
func (h *history) written(name string, _ blob.ETag, content blobtest.Range) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.versions = append(h.versions, version{name, content})
}

// contents is the sum of each content that each blob ever had.
type contents map[string]map[[sha256.Size]byte]bool

func (h *history) contents(t *testing.T) contents {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	c := contents{}
	for _, v := range h.versions {
		sum := sha256.New()
		_, err := io.Copy(sum, v.content.Reader())
		must(t, err)
		if c[v.name] == nil {
			c[v.name] = map[[sha256.Size]byte]bool{}
		}
		c[v.name][[sha256.Size]byte(sum.Sum(nil))] = true
	}
	return c
}

// had reports whether a blob had this content at some time.
func (c contents) had(name string, content []byte) bool { return c[name][sha256.Sum256(content)] }

// fight is one writer among others.
type fight struct {
	w *world
	// locks keep the writers of one mount from each other, who would write into the same file as on any file system.
	locks  *[fightFiles]sync.Mutex
	id     int
	random *rand.Rand
	tries  []try
	bytes  int64
}

// try is one write and its outcome.
type try struct {
	name    string
	image   crash.Image
	written bool // all bytes were written, whatever close said
	err     error
}

// write replaces the content of one of the files, in one of the ways of programs.
func (f *fight) write() {
	which := f.random.IntN(fightFiles)
	f.locks[which].Lock()
	defer f.locks[which].Unlock()
	t := try{name: fightName(which)}
	size := 1 + f.random.Int64N(8<<10)
	if f.random.IntN(10) == 0 {
		size += 200 << 10 // several blocks
	}
	t.image = crash.NewImage(crash.Stamp{Path: fmt.Sprint("writer ", f.id), Version: len(f.tries)}, size)
	f.bytes += size
	switch f.random.IntN(3) {
	case 0:
		t.written, t.err = f.put(t.name, t.image, os.O_TRUNC, false)
	case 1:
		t.written, t.err = f.put(t.name, t.image, 0, true)
	case 2:
		temporary := fmt.Sprint("temporary", f.id)
		if t.written, t.err = f.put(temporary, t.image, os.O_CREATE|os.O_TRUNC, false); t.err == nil {
			t.err = os.Rename(f.w.path(temporary), f.w.path(t.name))
		}
	}
	f.tries = append(f.tries, t)
}

// put writes a file, and reports whether all bytes were written.
func (f *fight) put(name string, image crash.Image, flags int, sync bool) (written bool, err error) {
	file, err := os.OpenFile(f.w.path(name), os.O_WRONLY|flags, 0o644)
	if err != nil {
		return false, err
	}
	defer file.Close() // a second time, unless something failed
	if _, err := file.WriteAt(image.Bytes(), 0); err != nil {
		return false, err
	}
	if err := file.Truncate(image.Size()); err != nil {
		return false, err
	}
	if sync {
		err = file.Sync()
	}
	return true, errors.Join(err, file.Close())
}

// judge checks what became of each write, given the contents that the cache directory keeps.
func (f *fight) judge(t *testing.T, h contents, kept map[string]bool) (won, lost int64) {
	t.Helper()
	for i, try := range f.tries {
		content := try.image.Bytes()
		if try.err == nil {
			won++
			if !h.had(try.name, content) {
				t.Errorf("writer %d, write %d: acknowledged, and %s never had it", f.id, i, try.name)
			}
			continue
		}
		lost++
		if !errors.Is(try.err, syscall.ESTALE) {
			t.Errorf("writer %d, write %d to %s: %v, want ESTALE", f.id, i, try.name, try.err)
		}
		// What fsync had committed before close failed, or what was written under another name, is not lost either.
		if try.written && !kept[string(content)] && !h.had(try.name, content) && !h.had(fmt.Sprint("temporary", f.id), content) {
			t.Errorf("writer %d, write %d to %s: neither acknowledged nor kept (%v)", f.id, i, try.name, try.err)
		}
	}
	return won, lost
}
