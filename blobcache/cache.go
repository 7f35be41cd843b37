package blobcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// Config says how much a cache may use. All sizes are bytes.
type Config struct {
	// Dir is made if it is not there. It may be shared by any number of processes on this machine.
	Dir string
	// Size bounds the disk space of cached data. Staged data counts, but is never refused because of it.
	Size int64
	// Memory bounds all buffers; at least MinMemory.
	Memory int64
	// BlockSize is the size of the blocks that large files are uploaded in.
	BlockSize int64
	// Pages is how much of a file that is written in order, and is already in the service, stays in the kernel's page cache;
	// the rest is on the disk. 0 leaves that to the kernel.
	Pages int64
	// Connections bounds the requests for data that are under way at once, up and down separately. 0 means 64.
	Connections int
	// WriteBack says when a close is answered. With it, what was closed is sent after Delay.
	WriteBack WriteBack
	Delay     time.Duration
	// LastWriterWins commits without a condition: what another writer has made of a blob meanwhile is replaced.
	LastWriterWins bool
	// ConvertAppend lets writes that are no appends replace an append blob by a block blob.
	ConvertAppend bool
	// Leases lets File.Lease take leases.
	Leases bool
	Log    *slog.Logger
}

// The least that a cache can work with: a fetch and an upload of one block at a time, for a few readers.
const (
	MinMemory    = 32 << 20
	MinBlockSize = 64 << 10
)

// Cache is an open cache directory. All methods may be called in parallel.
type Cache struct {
	dir       string
	staging   string // the part of it for staging files
	log       *slog.Logger
	blockSize int64
	small     int64 // blobs of up to this many bytes are one unit
	whole     int64 // blobs of up to this many bytes are fetched at once
	putMax    int64 // files of up to this many bytes are sent by one Put Blob
	window    int64 // read-ahead, bytes
	pages     int64 // see Config.Pages
	piece     int64 // largest ranged request, bytes
	now       func() time.Time

	writeBack      WriteBack
	delay          time.Duration
	lastWriterWins bool
	convertAppend  bool
	leases         bool

	ctx    context.Context // ends at Close
	cancel context.CancelFunc

	budget    budget
	residents residents
	latency   latency
	space     *space
	downloads semaphore
	uploads   semaphore
	evicted   atomic.Int64
	// inBackground bounds the commits after a close was answered.
	inBackground semaphore
	retries      atomic.Int64 // calls of RetryNow
	sent         signal       // a block has been uploaded, or could not be
	noBlockCopy  atomic.Bool  // the service cannot make a block out of another blob's bytes
	// background counts the uploads ahead of a commit, and what else goes on by itself, for Close.
	background sync.WaitGroup
	// look ends when Close begins. looking counts those that look again, until then, at what other processes work with.
	look       context.Context
	stopLook   context.CancelFunc
	looking    sync.WaitGroup
	writingOut sync.Mutex // held while a block is written out; guards nothing

	mu       sync.Mutex            // guards what is below
	versions map[key]*version      // open ones
	moves    map[key]*moves        // changes of a name or an ETag by our own doing that are under way
	files    map[*File]struct{}    // dirty ones
	stagers  map[*File]struct{}    // those with a staging file
	renames  map[string]*dirRename // of directories, that are not finished, by the paths of their journals
	spares   []spare
	closed   bool

	checkedMu sync.Mutex     // guards checked
	checked   map[key]uint64 // complete versions whose checksums were compared, and their inode numbers
}

// Open opens a cache directory. Its error is one line that says what to change.
func Open(cfg Config) (*Cache, error) {
	if cfg.Memory < MinMemory {
		return nil, fmt.Errorf("memory of %d bytes is too little: give at least %d", cfg.Memory, int64(MinMemory))
	}
	if cfg.BlockSize < MinBlockSize || cfg.BlockSize > blob.MaxBlockSize || cfg.BlockSize%grain != 0 {
		return nil, fmt.Errorf("block size of %d bytes: give a multiple of %d from %d to %d",
			cfg.BlockSize, grain, int64(MinBlockSize), int64(blob.MaxBlockSize))
	}
	if cfg.Size <= 0 {
		return nil, fmt.Errorf("cache size of %d bytes: give a positive size", cfg.Size)
	}
	if err := checkDir(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.Connections == 0 {
		cfg.Connections = 64
	}
	c := &Cache{
		dir: cfg.Dir, log: cfg.Log, blockSize: cfg.BlockSize, now: time.Now,
		versions: map[key]*version{}, moves: map[key]*moves{}, checked: map[key]uint64{}, files: map[*File]struct{}{}, renames: map[string]*dirRename{},
		stagers:   map[*File]struct{}{},
		downloads: make(semaphore, cfg.Connections), uploads: make(semaphore, cfg.Connections),
		inBackground: make(semaphore, cfg.Connections),
		writeBack:    cfg.WriteBack, delay: cfg.Delay, lastWriterWins: cfg.LastWriterWins, convertAppend: cfg.ConvertAppend, leases: cfg.Leases,
		// A whole request of 4 MiB at 60 MiB a second takes 67 ms, so 10 ms until its first byte cost 13 %; more
		// would only make the pipeline coarser.
		piece: 4 << 20, whole: sumMax,
		// Half of the memory for one reader leaves room for a second one to start.
		window: min(64<<20, cfg.Memory/2),
		// A Put Blob is sent out of memory.
		putMax: min(cfg.BlockSize, cfg.Memory/4),
		pages:  cmp.Or(cfg.Pages, math.MaxInt64),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.look, c.stopLook = context.WithCancel(c.ctx)
	c.budget.limit = cfg.Memory
	c.budget.reclaim = c.residents.reclaim
	c.residents.list.Init()
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "v1"), 0o700); err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	if sumsWork(cfg.Dir) {
		c.small = sumMax
	}
	var err error
	if c.space, err = openSpace(cfg.Dir, cfg.Size, cfg.Log); err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	c.space.evict, c.space.measure = c.evict, c.measure
	c.staging = filepath.Join(cfg.Dir, stagingDir)
	if err := makeDurable(c.staging); err != nil {
		c.space.close()
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	if c.space.restarted() || c.space.implausible() {
		c.background.Go(c.space.countInBackground)
	}
	return c, nil
}

// Dir returns the cache directory.
func (c *Cache) Dir() string { return c.dir }

// Leases reports whether files that are open for writing are leased.
func (c *Cache) Leases() bool { return c.leases }

// Memory returns the bound of all buffers in bytes.
func (c *Cache) Memory() int64 { return c.budget.limit }

// Close commits what is dirty, within the bound of ctx, and closes the cache. Its error says what could not be
// committed; those bytes stay in the staging directory.
func (c *Cache) Close(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.stopLook()
	c.looking.Wait() // what they have taken over is among the files now
	c.mu.Lock()
	open := maps.Clone(c.files)
	maps.Copy(open, c.stagers)
	dirty := slices.Collect(maps.Keys(open))
	c.mu.Unlock()
	errs := make([]error, len(dirty))
	var wg sync.WaitGroup
	slots := make(semaphore, cap(c.uploads))
	for i, f := range dirty {
		if slots.acquire(context.WithoutCancel(ctx)) != nil {
			break
		}
		wg.Go(func() {
			defer slots.release()
			errs[i] = f.saveLast(ctx)
		})
	}
	wg.Wait()
	c.cancel()
	c.background.Wait()
	c.dropSpares()
	c.budget.close()
	return errors.Join(errs...)
}

// saveLast commits a file when nobody can write to it any more.
func (f *File) saveLast(ctx context.Context) error {
	err := f.Commit(ctx)
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost != nil {
		f.c.track(f, false)
	}
	switch {
	case f.stage == nil && (err == nil || f.lost != nil):
		return nil
	case err == nil && f.gone:
		f.stage.discard()
		f.setStage(nil)
		return nil
	case err == nil && !f.dirty(): // the last Release may be on its way
		f.settleStage()
		return nil
	}
	id := "none: it is empty"
	if f.stage != nil {
		id = f.stage.id
		f.stage.leave()
		f.setStage(nil)
		f.left = true
	}
	if f.lost != nil {
		return nil // it is kept, as the log has said
	}
	return fmt.Errorf("%q is not saved in the service, its bytes are kept under the id %s: %w", f.props.Name, id, err)
}

// open returns the version, shared with everybody who has it open. release ends the use.
func (c *Cache) open(src source, size int64) *version {
	k := keyOf(src.cont.URL(src.name), src.etag)
	c.mu.Lock()
	for c.versions[k] != nil {
		v := c.versions[k]
		if v.inUse() {
			v.refs++
			c.mu.Unlock()
			return v
		}
		c.mu.Unlock()
		<-v.ended // what it still stores would be stored and counted twice
		c.mu.Lock()
	}
	v := c.newVersion(k, src, size)
	c.versions[k] = v
	v.mu.Lock() // whoever finds it now waits until it is loaded
	c.mu.Unlock()
	v.load()
	v.mu.Unlock()
	return v
}

func (c *Cache) release(v *version) { c.leave(v, &v.refs) }

// hold lets a read use an open version, whoever releases that; unhold ends it.
func (c *Cache) hold(v *version) {
	c.mu.Lock()
	v.reads++
	c.mu.Unlock()
}

func (c *Cache) unhold(v *version) { c.leave(v, &v.reads) }

func (c *Cache) leave(v *version, count *int) {
	c.mu.Lock()
	*count--
	last, quiet := !v.inUse(), v.reads == 0
	c.mu.Unlock()
	if quiet {
		v.quieted.signal()
	}
	if !last {
		return
	}
	v.closed()
	c.mu.Lock()
	if c.versions[v.key] == v {
		delete(c.versions, v.key)
	}
	c.mu.Unlock()
	close(v.ended)
}

// Moving tells that a blob is about to get another name or ETag by our own doing. Reads of the old one that fail from
// now on wait for the outcome: the caller calls Moved if it succeeds, and then what Moving returned in any case.
func (c *Cache) Moving(cont blob.Container, name string, etag blob.ETag) (over func()) {
	k := keyOf(cont.URL(name), etag)
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.moves[k]
	if m == nil {
		m = &moves{over: make(chan struct{})}
		c.moves[k] = m
	}
	m.count++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if m.count--; m.count == 0 {
			delete(c.moves, k)
			close(m.over)
		}
	}
}

// moves are the changes of one version's name or ETag that are under way. Whoever opens the version meanwhile has to know
// of them too.
type moves struct {
	count int           // guarded by Cache.mu
	over  chan struct{} // closed when count is 0 again
}

// moved waits for the moves of what a read that failed was about.
func (c *Cache) moved(ctx context.Context, src source) {
	c.mu.Lock()
	m := c.moves[keyOf(src.cont.URL(src.name), src.etag)]
	c.mu.Unlock()
	if m == nil {
		return
	}
	select {
	case <-m.over:
	case <-ctx.Done():
	}
}

// Moved tells that a blob's content now goes by another name or ETag, as after a server-side copy or a change of
// metadata. What is cached follows.
func (c *Cache) Moved(cont blob.Container, oldName string, oldETag blob.ETag, newName string, newETag blob.ETag) {
	oldKey, newKey := keyOf(cont.URL(oldName), oldETag), keyOf(cont.URL(newName), newETag)
	oldBase, newBase := oldKey.path(c.dir), newKey.path(c.dir)
	c.mu.Lock()
	v := c.versions[oldKey]
	if v != nil {
		v.mu.Lock()
	}
	rekey(oldBase, oldKey, newKey)
	for _, ext := range []string{extMap, extPart, extBlob} {
		if err := os.Rename(oldBase+ext, newBase+ext); errors.Is(err, os.ErrNotExist) {
			if unix.Access(oldBase+ext, unix.F_OK) != nil {
				continue // nothing cached under that extension
			}
			// The directory is missing, not the file.
			if os.MkdirAll(filepath.Dir(newBase), 0o700) == nil {
				_ = os.Rename(oldBase+ext, newBase+ext) // else it is fetched again
			}
		}
	}
	if v != nil {
		delete(c.versions, oldKey)
		v.key, v.src = newKey, source{cont, newName, newETag}
		if c.versions[newKey] == nil {
			c.versions[newKey] = v
		}
		v.mu.Unlock()
	}
	c.mu.Unlock()
	c.checkedMu.Lock()
	if ino, ok := c.checked[oldKey]; ok {
		c.checked[newKey] = ino
		delete(c.checked, oldKey)
	}
	c.checkedMu.Unlock()
}

// maxChecked bounds the memory of checked versions: 24 bytes each, 3 MiB with the map's own.
const maxChecked = 1 << 16

// setChecked remembers that a complete version was found good, so that it is not read twice for its checksums.
func (c *Cache) setChecked(k key, f *os.File) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return
	}
	c.checkedMu.Lock()
	defer c.checkedMu.Unlock()
	if len(c.checked) >= maxChecked {
		for other := range c.checked { // any one
			delete(c.checked, other)
			break
		}
	}
	c.checked[k] = st.Ino
}

// wasChecked reports whether setChecked was told of the file with this inode number.
func (c *Cache) wasChecked(k key, ino uint64) bool {
	c.checkedMu.Lock()
	defer c.checkedMu.Unlock()
	checked, ok := c.checked[k]
	return ok && checked == ino
}

// SmallSize is the size in bytes up to which a blob is fetched whole by one request.
const SmallSize = sumMax

// Prefetch brings a blob into the cache, and returns when it is there.
func (c *Cache) Prefetch(ctx context.Context, cont blob.Container, p blob.Properties) error {
	v := c.open(source{cont, p.Name, p.ETag}, p.Size)
	defer c.release(v)
	return v.bring(ctx)
}

// Has reports whether all of a blob is on disk. It is cheaper than opening it: one system call.
func (c *Cache) Has(cont blob.Container, p blob.Properties) bool {
	k := keyOf(cont.URL(p.Name), p.ETag)
	return unix.Access(k.path(c.dir)+extBlob, unix.F_OK) == nil
}

// Cached returns how many bytes of a version are on the local disk.
func (c *Cache) Cached(cont blob.Container, p blob.Properties) int64 {
	v := c.open(source{cont, p.Name, p.ETag}, p.Size)
	defer c.release(v)
	v.mu.Lock()
	defer v.mu.Unlock()
	return min(int64(v.p.have.ones)*v.p.unit, v.size)
}
