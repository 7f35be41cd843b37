package blobcache

import (
	"context"
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
	// writers is held shared by every write, and exclusively by a commit that could not catch up with them.
	writers sync.RWMutex

	mu       sync.RWMutex // guards what is below
	props    blob.Properties
	isNew    bool     // the service does not have it yet
	base     *version // what the blob held before our writes; nil if not opened or not there
	limit    int64    // bytes of base from here on are not part of the file
	size     int64
	modified time.Time
	stage    *stage // nil as long as nothing was written
	gen      uint64 // counts changes
	saved    uint64 // the gen that the service has
	gone     bool   // unlinked or replaced: there is nothing to commit to
	lost     error  // another writer won: commits fail from now on
	retrying bool
	exposed  bool // the kernel reads a backing file by itself, until users is 0
	users    int  // Acquire less Release
	writing  int  // those of them that may write
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
	return &File{c: c, cont: cont, hooks: hooks, props: p, size: p.Size, limit: p.Size, modified: p.Modified}
}

// CreateFile returns a File for a blob that is not in the service. It is dirty from the start. Of the properties the
// name, the headers and the metadata count.
func (c *Cache) CreateFile(cont blob.Container, p blob.Properties, hooks Hooks) *File {
	f := c.OpenFile(cont, p, hooks)
	f.isNew, f.size, f.limit, f.gen, f.modified = true, 0, 0, 1, c.now()
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
	if f.writing == 0 && clean && f.stage != nil {
		f.adopt()
	}
	if f.users > 0 {
		return false
	}
	f.exposed = false
	if !clean {
		if !f.retrying && f.lost == nil {
			f.retrying = true
			go f.retry()
		}
		return f.lost != nil
	}
	f.dropBase()
	return true
}

// adopt makes the staging file the cached version. f.mu is held.
func (f *File) adopt() {
	st := f.stage
	if f.gone && f.users > 0 {
		return // nameless, and still read
	}
	f.stage = nil
	if f.gone || f.size == 0 {
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
	f.limit = f.size
	if f.exposed && f.users > 0 {
		// Readers of the backing file remain: hold the version, so that no other process takes it over.
		f.base = f.c.open(source{f.cont, f.props.Name, f.props.ETag}, f.size)
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
	return State{f.props, f.size, f.modified, f.isNew, f.gen != f.saved && !f.gone}
}

// rlock takes f.mu for reading, with the base opened if there is one.
func (f *File) rlock() {
	for f.mu.RLock(); f.base == nil && f.limit > 0; f.mu.RLock() {
		f.mu.RUnlock()
		f.mu.Lock()
		f.openBase()
		f.mu.Unlock()
	}
}

// openBase opens the base if there is one. f.mu is held.
func (f *File) openBase() {
	if f.base == nil && f.limit > 0 {
		f.base = f.c.open(source{f.cont, f.props.Name, f.props.ETag}, f.props.Size)
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
		return v.read(ctx, buf[:min(int64(len(buf)), size-off)], off, true)
	}
	if off >= f.size {
		f.mu.RUnlock()
		return Data{}, nil
	}
	buf = buf[:min(int64(len(buf)), f.size-off)]
	end := off + int64(len(buf))
	st, limit := f.stage, f.limit
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
		if err := v.readFull(ctx, buf[x.off-off:x.end-off], x.off); err != nil {
			return Data{}, err
		}
	}
	return Data{Bytes: [][]byte{buf}}, nil
}

// Write puts p at off. It never waits for the service. On an error nothing of p counts as written.
func (f *File) Write(p []byte, off int64) error {
	f.writers.RLock()
	defer f.writers.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	end := off + int64(len(p))
	if err := f.prepare(end); err != nil {
		return err
	}
	if err := f.stage.writeAt(p, off); err != nil {
		return err
	}
	f.size = max(f.size, end)
	f.changed(off, end)
	f.stageAhead(off, end)
	return nil
}

// prepare makes sure that there is a staging file and that a file of this size can be committed. f.mu is held.
func (f *File) prepare(size int64) error {
	if f.lost != nil {
		return f.lost // it could never be committed: say so before more is written
	}
	if size > f.c.blockSize*blob.MaxBlocks {
		return &blob.Error{Code: blob.TooLarge, Op: "Write", Name: f.props.Name}
	}
	if f.stage != nil {
		return nil
	}
	// The base must be open before the first write: the blob's name and ETag change with the commit.
	f.openBase()
	st, err := f.newStage()
	if err != nil {
		return err
	}
	f.stage = st
	return nil
}

func (f *File) newStage() (*stage, error) {
	if !f.exposed || f.base == nil {
		return f.c.newStage()
	}
	st, err := f.takeOver()
	if err == nil {
		f.dropBase()
		f.limit = 0 // the staging file has it all
	}
	return st, err
}

// changed notes a change of [off, end). f.mu is held.
func (f *File) changed(off, end int64) {
	if f.gen == f.saved {
		f.c.track(f, true)
	}
	f.gen++
	f.modified = f.c.now()
	for i := off / f.c.blockSize; i*f.c.blockSize < end; i++ {
		f.stage.block(i).gen = f.gen
	}
}

// Truncate sets the size in bytes. What is added reads as zeros.
func (f *File) Truncate(size int64) error {
	f.writers.RLock()
	defer f.writers.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if size == f.size {
		return nil
	}
	if err := f.prepare(size); err != nil {
		return err
	}
	old := f.size
	if size < old {
		if err := f.stage.truncate(size); err != nil {
			return err
		}
		f.limit = min(f.limit, size)
		if size == 0 {
			f.dropBase()
		}
	} else if f.exposed {
		// The kernel reads the staging file by itself: its end is the file's.
		if err := f.stage.file.Truncate(size); err != nil {
			return err
		}
	}
	f.size = size
	// The blocks in which the old and the new end lie have other contents or lengths now.
	from := min(old, size)
	if from > 0 {
		from--
	}
	f.changed(from, max(min(old, size)+1, size))
	return nil
}

// Zero makes [off, off+n) read as zeros, as far as it lies within the file.
func (f *File) Zero(off, n int64) error {
	f.writers.RLock()
	defer f.writers.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	end := min(off+n, f.size)
	if off >= end {
		return nil
	}
	if err := f.prepare(f.size); err != nil {
		return err
	}
	if err := f.stage.zero(off, end); err != nil {
		return err
	}
	f.changed(off, end)
	return nil
}

// SetModified sets the time of the last change, which the next commit sends. A clean file becomes dirty by it only
// through SetMetadata.
func (f *File) SetModified(t time.Time) {
	f.mu.Lock()
	f.modified = t
	f.mu.Unlock()
}

// SetMetadata replaces the metadata. A dirty file takes it along with its commit; otherwise it is sent at once.
func (f *File) SetMetadata(ctx context.Context, metadata map[string]string) error {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.Lock()
	if f.gen != f.saved || f.gone {
		f.props.Metadata = metadata
		f.gen++
		f.mu.Unlock()
		return nil
	}
	f.mu.Unlock()
	return f.sendMetadata(ctx, metadata)
}

// sendMetadata replaces the metadata in the service. f.commit is held.
func (f *File) sendMetadata(ctx context.Context, metadata map[string]string) error {
	f.mu.RLock()
	p, gen, only := f.props, f.gen, f.stage == nil
	f.mu.RUnlock()
	defer f.c.Moving(f.cont, p.Name, p.ETag)()
	w, err := f.cont.SetMetadata(ctx, p.Name, metadata, blob.Condition{IfMatch: p.ETag})
	if err != nil {
		return err
	}
	f.c.Moved(f.cont, p.Name, p.ETag, p.Name, w.ETag)
	f.mu.Lock()
	f.props.Metadata, f.props.ETag, f.props.Modified = metadata, w.ETag, w.Modified
	if only && f.gen == gen {
		f.saved = gen
	}
	p = f.props
	dirty := f.gen != f.saved
	f.mu.Unlock()
	if !dirty {
		f.c.track(f, false)
	}
	f.hooks.Committed(p, dirty)
	return nil
}

// Rename gives a File whose blob is not in the service yet another name. For one that is, copy the blob and call
// Renamed. It reports whether it could.
func (f *File) Rename(name string) bool {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.isNew {
		return false
	}
	f.props.Name = name
	if f.stage != nil {
		f.stage.restage() // blocks belong to the name they were staged under
	}
	return true
}

// Renamed tells that the blob is now under another name and ETag, with the same bytes.
func (f *File) Renamed(name string, w blob.Written) {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.props.Name, f.props.ETag, f.props.Modified = name, w.ETag, w.Modified
	if f.stage != nil {
		f.stage.restage()
	}
}

// Detach prepares for the deletion or replacement of the blob: what is not cached is fetched, so that those who have
// the File open go on reading, and nothing is committed any more. It reports whether the service never had the blob.
// When the deletion fails, Attach takes it back; when it succeeds, Settle gives up what nobody needs.
func (f *File) Detach(ctx context.Context) (isNew bool, err error) {
	f.mu.RLock()
	users, whole := f.users, f.limit > 0
	f.mu.RUnlock()
	if users > 0 && whole {
		if v := f.version(); v != nil {
			err := v.fill(ctx)
			f.c.unhold(v)
			if err != nil {
				return false, err
			}
		}
	}
	f.commit.Lock() // a commit under way would bring the blob back
	defer f.commit.Unlock()
	f.mu.Lock()
	f.gone = true
	isNew = f.isNew
	f.mu.Unlock()
	f.c.track(f, false)
	return isNew, nil
}

// Attach takes Detach back.
func (f *File) Attach() {
	f.mu.Lock()
	f.gone = false
	dirty := f.gen != f.saved
	f.mu.Unlock()
	if dirty {
		f.c.track(f, true)
	}
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

// stagingPath returns where the bytes are that are not committed, for messages.
func (f *File) stagingPath() string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.stage == nil {
		return "memory (it is empty)"
	}
	return f.stage.path
}
