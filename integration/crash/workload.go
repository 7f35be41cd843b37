package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Workload makes random operations on many files, as several programs at once would. Each worker has a directory of
// its own, so that each path has one writer.
type Workload struct {
	// Dir is the directory under test.
	Dir string
	// Ledger learns of every operation.
	Ledger *Ledger
	// Workers run in parallel, each on Names names of small files and a few large ones.
	Workers, Names int
	// Small and Large bound the sizes of files in bytes.
	Small, Large int64
	// Seed makes the operations of each worker repeatable, not their interleaving.
	Seed uint64
}

// Directories returns the directories of the workers, relative to Dir. They must be there.
func (w *Workload) Directories() []string {
	var dirs []string
	for i := range w.Workers {
		dirs = append(dirs, fmt.Sprintf("w%d", i))
	}
	return dirs
}

// Run is a workload under way.
type Run struct {
	stopping atomic.Bool
	wg       sync.WaitGroup
	workers  []*worker
	mu       sync.Mutex // guards errs
	errs     []error
}

// Start begins the workload.
func (w *Workload) Start() *Run {
	r := &Run{}
	for i, dir := range w.Directories() {
		worker := &worker{w: w, dir: dir, random: rand.New(rand.NewPCG(w.Seed, uint64(i))), open: map[string]*held{}}
		r.workers = append(r.workers, worker)
		r.wg.Go(func() {
			if err := worker.run(r); err != nil {
				r.mu.Lock()
				r.errs = append(r.errs, err)
				r.mu.Unlock()
			}
		})
	}
	return r
}

// Stop says that errors are no failures from now on, and that the workers shall end. It comes before a kill.
func (r *Run) Stop() { r.stopping.Store(true) }

// Wait waits for the workers to end, and returns what failed before Stop. What they left open is closed only now, after
// the kill: a close would commit it.
func (r *Run) Wait() error {
	r.wg.Wait()
	for _, k := range r.workers {
		for _, h := range k.open {
			_ = h.file.Close() // the mount is dead
		}
	}
	return errors.Join(r.errs...)
}

// worker is one goroutine of a workload.
type worker struct {
	w      *Workload
	dir    string // relative
	random *rand.Rand
	open   map[string]*held
}

// held is a file that was written and stays open for a while, neither closed nor synced.
type held struct {
	file  *os.File
	claim *Claim
}

func (k *worker) run(r *Run) error {
	for !r.stopping.Load() {
		if err := k.step(); err != nil {
			if r.stopping.Load() {
				return nil
			}
			return err
		}
	}
	return nil
}

// step makes one operation.
func (k *worker) step() error {
	n := k.random.IntN(100)
	switch {
	case n < 30:
		return k.write(k.name("small"), k.size(k.w.Small), os.O_TRUNC, false)
	case n < 45:
		return k.patch(k.name("small"))
	case n < 52:
		return k.write(k.name("large"), k.w.Large/2+k.size(k.w.Large/2), os.O_TRUNC, true)
	case n < 60:
		return k.patch(k.name("large"))
	case n < 75:
		return k.append(k.name("log"))
	case n < 88:
		return k.replace(k.name("small"))
	case n < 94:
		return k.unlink(k.name("small"))
	default:
		return k.hold(k.name("held"))
	}
}

// name chooses one of the names of a kind. Of the larger kinds there are few.
func (k *worker) name(kind string) string {
	names := k.w.Names
	if kind != "small" {
		names = 3
	}
	return fmt.Sprintf("%s/%s%d", k.dir, kind, k.random.IntN(names))
}

func (k *worker) size(most int64) int64 { return 1 + k.random.Int64N(most) }

func (k *worker) path(name string) string { return filepath.Join(k.w.Dir, name) }

// write writes a whole file and closes it. With synced it is synced in the middle.
func (k *worker) write(name string, size int64, flags int, synced bool) error {
	stamp := k.w.Ledger.Next(name)
	image := NewImage(stamp, size)
	first := image
	if synced {
		first = image.Cut(size / 2)
	}
	claim := k.w.Ledger.Begin(name, first)
	f, err := os.OpenFile(k.path(name), os.O_CREATE|os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	defer f.Close() // a second time, unless something failed
	if err := k.put(f, first, 0, first.Size()); err != nil {
		return err
	}
	if synced {
		if err := k.sync(f, claim); err != nil {
			return err
		}
		claim = k.w.Ledger.BeginInPlace(name, image)
		if err := k.put(f, image, first.Size(), size); err != nil {
			return err
		}
	}
	return k.close(f, claim)
}

// put writes [off, end) of an image, in pieces as programs write.
func (k *worker) put(f *os.File, image Image, off, end int64) error {
	b := image.Bytes()
	for off < end {
		n := min(end-off, 4096<<k.random.IntN(6)) // up to 128 KiB
		if _, err := f.WriteAt(b[off:off+n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (k *worker) sync(f *os.File, claim *Claim) error {
	claim.Closing()
	if err := f.Sync(); err != nil {
		return err
	}
	claim.Acknowledge()
	return nil
}

func (k *worker) close(f *os.File, claim *Claim) error {
	claim.Closing()
	if err := f.Close(); err != nil {
		return err
	}
	claim.Acknowledge()
	return nil
}

// patch changes a part of a file in place.
func (k *worker) patch(name string) error {
	image, exists := k.w.Ledger.Current(name)
	if !exists || image.Size() == 0 {
		return k.write(name, k.size(k.w.Small), os.O_TRUNC, false)
	}
	off := k.random.Int64N(image.Size())
	size := k.size(min(k.w.Small, image.Size()-off))
	image = image.Patch(k.w.Ledger.Next(name), off, size)
	claim := k.w.Ledger.BeginInPlace(name, image)
	f, err := os.OpenFile(k.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := k.put(f, image, off, off+size); err != nil {
		return err
	}
	return k.close(f, claim)
}

// maxLog ends the growth of a file that is appended to.
const maxLog = 256 << 10

// append appends some records, each of which is synced.
func (k *worker) append(name string) error {
	if image, _ := k.w.Ledger.Current(name); image.Size() > maxLog {
		return k.unlink(name)
	}
	f, err := os.OpenFile(k.path(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 1 + k.random.IntN(5) {
		image, _ := k.w.Ledger.Current(name)
		old := image.Size()
		image = image.Patch(k.w.Ledger.Next(name), old, k.size(k.w.Small))
		claim := k.w.Ledger.BeginAppend(name, image)
		if _, err := f.Write(image.Bytes()[old:]); err != nil {
			return err
		}
		if err := k.sync(f, claim); err != nil {
			return err
		}
	}
	return f.Close()
}

// replace writes a file under another name and renames it over the old one, as editors and databases do.
func (k *worker) replace(name string) error {
	temporary := k.dir + "/temporary"
	if err := k.write(temporary, k.size(k.w.Small), os.O_TRUNC, false); err != nil {
		return err
	}
	claim := k.w.Ledger.BeginRename(temporary, name)
	if err := os.Rename(k.path(temporary), k.path(name)); err != nil {
		return err
	}
	claim.Acknowledge()
	return nil
}

func (k *worker) unlink(name string) error {
	if _, exists := k.w.Ledger.Current(name); !exists {
		return nil
	}
	claim := k.w.Ledger.BeginUnlink(name)
	if err := os.Remove(k.path(name)); err != nil {
		return err
	}
	claim.Acknowledge()
	return nil
}

// hold writes a file and leaves it open, or closes one that was left open.
func (k *worker) hold(name string) error {
	if h := k.open[name]; h != nil {
		delete(k.open, name)
		return k.close(h.file, h.claim)
	}
	image := NewImage(k.w.Ledger.Next(name), k.size(k.w.Large))
	claim := k.w.Ledger.Begin(name, image)
	f, err := os.OpenFile(k.path(name), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := k.put(f, image, 0, image.Size()); err != nil {
		_ = f.Close()
		return err
	}
	claim.Written()
	k.open[name] = &held{f, claim}
	return nil
}
