package blobcache

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"blobmount/blobcache/blob"
)

// File is one blob opened through the cache: a version to read from and, once it was written to, a staging file
// over it. All methods may be called in parallel. A read sees every write that returned before it.
//
// Who opens a File calls Acquire, and Release for each Acquire. While Release has not said that the File is idle,
// it must be kept and used by all who open the same name.
type File struct {
	c     *Cache
	cont  blob.Container
	hooks Hooks

	commit sync.Mutex // one commit, rename or change of metadata at a time
	lease  lease      // guarded by commit
	only   uint64     // the gen that may be committed, 0 for any; guarded by commit
	// writers is held shared by every write, and exclusively by a commit that could not catch up with them.
	writers sync.RWMutex

	mu    sync.RWMutex // guards what is below
	props blob.Properties
	isNew bool // the service does not have it yet
	// under is the version whose bytes lie under our writes: the blob's own, or that of another blob which this one is a
	// copy of. Bytes of it from limit on are not part of the file.
	under    lower
	limit    int64
	base     *version // under, opened; nil if it was not needed
	size     int64
	modified time.Time
	stage    *stage            // nil as long as nothing was written
	gen      uint64            // counts changes
	saved    uint64            // the gen that the service has
	acked    uint64            // the gen that a close was answered for because it is durable here (write-back)
	tags     map[string]string // index tags, once they are known
	copied   blob.Properties   // of what it is a copy of
	tried    []*attempt        // commits whose outcome is not known, the one under way too; all on this version of the blob
	attempts uint64            // counts them
	detached bool              // it is being deleted, replaced or renamed: nothing may be released
	moving   string            // the name that it is about to have, or empty
	going    bool              // it was about to be deleted or replaced when an earlier process ended
	gone     bool              // unlinked or replaced: there is nothing to commit to
	lost     error             // another writer won: commits fail from now on
	failed   error             // of the last commit, nil when it succeeded
	since    time.Time         // when it became dirty
	later    *time.Timer       // commits it in the background
	wait     time.Duration     // between the last two attempts of that
	left     bool              // Close has left the staging file to the next process: nothing is committed any more
	exposed  bool              // the kernel reads a backing file by itself, until Hide, or users is 0
	shown    uint64            // the inode number of that file
	users    int               // Acquire less Release
	writing  int               // those of them that may write
}

// lower names a version, by its blob in the same container.
type lower struct {
	name string
	etag blob.ETag
	size int64 // bytes
}

// Hooks are what the owner of a File adds to its commits. They must not call methods that change the File.
type Hooks struct {
	// Committed is called after every change that the service took, with the properties as they are now and whether
	// there are later changes.
	Committed func(p blob.Properties, dirty bool)
	// Stamp puts the time at which the content was last changed into the metadata that a commit sends. It may be nil.
	Stamp func(metadata map[string]string, modified time.Time)
	// Lost is called when another writer has won: the name stands for their version from now on. It may be nil.
	Lost func()
	// Idle is called when a File has become idle after its last Release, which had reported that it was not: the commit
	// succeeded in the background, or is given up. It may be nil.
	Idle func(*File)
}

// OpenFile returns a File for a blob that is in the service.
func (c *Cache) OpenFile(cont blob.Container, p blob.Properties, hooks Hooks) *File {
	return &File{c: c, cont: cont, hooks: hooks, props: p, size: p.Size, modified: p.Modified,
		under: lower{p.Name, p.ETag, p.Size}, limit: p.Size}
}

// CreateFile returns a File for a blob that is not in the service. It is dirty from the start. Of the properties the
// name, the headers and the metadata count.
func (c *Cache) CreateFile(cont blob.Container, p blob.Properties, hooks Hooks) *File {
	p.Size = 0
	f := c.OpenFile(cont, p, hooks)
	f.isNew, f.gen, f.modified, f.since = true, 1, c.now(), c.now()
	c.track(f, true)
	return f
}

// Acquire opens the File for reading, and for writing if write.
func (f *File) Acquire(write bool) {
	f.mu.Lock()
	f.users++
	if write {
		f.writing++
	}
	f.mu.Unlock()
}

// Release ends what Acquire began. It reports whether the File is idle: nobody has it open and the service has
// all that was written. What is not committed then is tried again until it is.
func (f *File) Release(write bool) bool {
	f.mu.Lock()
	f.users--
	if write {
		f.writing--
	}
	f.mu.Unlock()
	return f.Settle()
}

// Settle turns a clean staging file into the cached version when nobody can write to it any more, and drops what
// an idle File does not need. It reports whether the File is idle.
func (f *File) Settle() bool {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	clean := f.gen == f.saved || f.gone
	if f.writing == 0 && clean {
		if f.stage != nil {
			f.settleStage()
		}
		if f.lease.name != "" {
			f.c.background.Go(f.endLease)
		}
	}
	if !clean && f.writing == 0 && f.lost == nil {
		f.commitLater(firstRetry)
	}
	if f.users > 0 {
		return false
	}
	f.exposed = false
	if !clean {
		if f.lost == nil {
			return false
		}
		f.c.track(f, false)
		if f.stage != nil {
			f.stage.leave() // for blobmount recover
			f.setStage(nil)
		}
	}
	f.dropBase()
	return true
}

// settleStage makes the clean staging file the cached version, or puts what it holds there. f.mu is held.
func (f *File) settleStage() {
	st := f.stage
	if f.users > 0 && (f.gone || f.exposed && f.size == 0) {
		return // nameless and still read; or an empty version, which has no file, and the kernel's readers see what comes next
	}
	f.setStage(nil)
	if f.gone || f.size == 0 {
		st.discard()
		return
	}
	if !st.valid.covers(0, f.size) {
		f.openBase()
		f.keep(st)
		st.discard()
		return
	}
	k := keyOf(f.cont.URL(f.props.Name), f.props.ETag)
	if err := f.c.adopt(k, st, f.size); err != nil {
		f.c.log.Warn("written data cannot be kept in the cache, it will be fetched when it is read",
			"blob", f.props.Name, "error", err)
		st.discard()
	}
	f.dropBase()
	f.under, f.limit = lower{f.props.Name, f.props.ETag, f.size}, f.size
	if f.exposed && f.users > 0 {
		// Readers of the backing file remain: hold the version, so that no other process takes it over.
		f.openBase()
	}
}

// keepMost bounds how many bytes of a staging file that holds only a part of the version are copied into the cache,
// which takes 40 ms from and to the page cache.
const keepMost = 64 << 20

// keep copies the whole grains that the staging file holds into the cached version. What it cannot copy is fetched when
// it is read. f.mu is held.
func (f *File) keep(st *stage) {
	v := f.base
	if v == nil || st.valid.total() > keepMost || v.p.single() {
		return
	}
	buf := make([]byte, largeSlab)
	for _, x := range st.valid {
		for off := (x.off + grain - 1) / grain * grain; off < x.end; {
			end := min(off+largeSlab, x.end)
			if end != f.size {
				end = end / grain * grain
			}
			if end <= off {
				break
			}
			part := buf[:end-off]
			if st.readAt(part, off) != nil || !v.store(part, off) {
				return
			}
			off = end
		}
	}
}

func (f *File) dropBase() {
	if f.base != nil {
		f.c.release(f.base)
		f.base = nil
	}
}

// Name returns the blob's name.
func (f *File) Name() string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.props.Name
}

// State is what a File looks like now.
type State struct {
	Properties blob.Properties // of the version in the service, or to be made; the metadata must not be changed
	Size       int64           // bytes, with what is not committed yet
	Modified   time.Time       // of the last write, when dirty
	New        bool            // the service does not have it yet
	Dirty      bool            // the service does not have all of it
}

// State returns what the File looks like now.
func (f *File) State() State {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.state()
}

// state is State with f.mu held.
func (f *File) state() State { return State{f.props, f.size, f.modified, f.isNew, f.dirty()} }

// dirty reports whether there is something to commit. f.mu is held.
func (f *File) dirty() bool { return f.gen != f.saved && !f.gone }

// rlock takes f.mu for reading, with the base opened if there is one.
func (f *File) rlock() {
	for f.mu.RLock(); f.base == nil && f.needsBase(); f.mu.RLock() {
		f.mu.RUnlock()
		f.mu.Lock()
		f.openBase()
		f.mu.Unlock()
	}
}

func (f *File) isGone() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.gone
}

// needsBase reports whether the staging file lacks bytes that the base has. f.mu is held.
func (f *File) needsBase() bool {
	return f.limit > 0 && (f.stage == nil || !f.stage.valid.covers(0, f.limit))
}

// openBase opens the base if there is one. f.mu is held.
func (f *File) openBase() {
	if f.base == nil && f.limit > 0 {
		f.base = f.c.open(source{f.cont, f.under.name, f.under.etag}, f.under.size)
	}
}

// version returns the base, opened, for a use that the caller ends by Cache.unhold; nil when there is none.
func (f *File) version() *version {
	f.rlock()
	defer f.mu.RUnlock()
	if f.base != nil {
		f.c.hold(f.base)
	}
	return f.base
}

// errReleased says that bytes were asked for which only the service has, in blocks that are not committed.
var errReleased = errors.New("bytes are in blocks that are not committed")

// Read returns the bytes [off, off+len(buf)), fewer at the end of the file. They lie in buf or in memory that is
// lent until Data.Done, which must be called. When it fails no byte is returned.
func (f *File) Read(ctx context.Context, buf []byte, off int64) (Data, error) {
	for {
		f.rlock()
		v := f.base
		if v != nil { // held, since it stops being the base when the file is committed or emptied
			f.c.hold(v)
		}
		d, err := f.readOver(ctx, v, buf, off)
		if v != nil {
			f.c.unhold(v)
		}
		if errors.Is(err, errReleased) && f.isGone() {
			return Data{}, &blob.Error{Code: blob.NotFound, Op: "Read", Name: f.Name(), Err: err}
		}
		if errors.Is(err, errReleased) {
			// They can be read once they are committed, as after an fsync.
			if err := f.Commit(ctx); err != nil {
				return Data{}, err
			}
			continue
		}
		if !blob.Is(err, blob.ConditionNotMet) {
			return d, err
		}
		// Our own commit replaces the blob that the base stands for, after it has staged all of it.
		f.mu.RLock()
		current := f.base == v
		f.mu.RUnlock()
		if current {
			return Data{}, err
		}
	}
}

// readOver reads from the staging file, and what that lacks from v, which is the base. f.mu is held for reading, and
// let go.
func (f *File) readOver(ctx context.Context, v *version, buf []byte, off int64) (Data, error) {
	if f.stage == nil {
		size := min(f.size, f.limit)
		f.mu.RUnlock()
		if off >= size {
			return Data{}, nil
		}
		return v.read(ctx, buf[:min(int64(len(buf)), size-off)], off, toKernel)
	}
	if off >= f.size {
		f.mu.RUnlock()
		return Data{}, nil
	}
	buf = buf[:min(int64(len(buf)), f.size-off)]
	end := off + int64(len(buf))
	st, limit := f.stage, f.limit
	if st.released.overlaps(off, end) {
		f.mu.RUnlock()
		return Data{}, errReleased
	}
	// What is staged is read under the lock, the rest after it: the base does not change.
	var missing []extent
	for pos := off; pos < end; {
		to, valid := st.valid.run(pos, end)
		part := buf[pos-off : to-off]
		if valid {
			if err := st.readAt(part, pos); err != nil {
				f.mu.RUnlock()
				return Data{}, err
			}
		} else {
			if pos < limit {
				missing = append(missing, extent{pos, min(to, limit)})
			}
			clear(part)
		}
		pos = to
	}
	f.mu.RUnlock()
	for _, x := range missing {
		if err := v.readFull(ctx, buf[x.off-off:x.end-off], x.off, toReply); err != nil {
			return Data{}, err
		}
	}
	return Data{Bytes: [][]byte{buf}}, nil
}

// Metadata returns a copy of the metadata.
func (f *File) Metadata() map[string]string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	m := maps.Clone(f.props.Metadata)
	if m == nil {
		m = map[string]string{}
	}
	return m
}

// setStage notes the staging file, nil for none, so that Close finds it. f.mu is held.
func (f *File) setStage(st *stage) {
	f.stage = st
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if st != nil {
		f.c.stagers[f] = struct{}{}
	} else {
		delete(f.c.stagers, f)
	}
}

// track keeps a dirty file known to the cache, so that Close can commit it.
func (c *Cache) track(f *File, dirty bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if dirty {
		c.files[f] = struct{}{}
	} else {
		delete(c.files, f)
	}
}
