package blobcache

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// What processes leave in the staging directory when they end before all is committed: a later process for the same
// container commits what was finished, and blobmount recover deals with the rest. Nothing is deleted but by a commit or
// by Discard.

// LeftState says what can be done about a staging file.
type LeftState uint8

const (
	// LeftInUse: a process works with it. Nothing else may.
	LeftInUse LeftState = iota
	// LeftFinished: it is to be saved as it is; the next mount of the container does it.
	LeftFinished
	// LeftUnfinished: it was being written when its process ended, and no close or fsync was asked for since the last
	// change. Only somebody who knows the content can say whether it is worth saving.
	LeftUnfinished
	// LeftConflict: another writer has changed the blob.
	LeftConflict
	// LeftDamaged: its bytes are not those that were written, as after a loss of power.
	LeftDamaged
	// LeftUnreadable: its journal cannot be read, at least not by this version of the program.
	LeftUnreadable
)

var leftNames = [...]string{"in use", "finished", "unfinished", "conflict", "damaged", "unreadable"}

func (s LeftState) String() string { return leftNames[s] }

// Left is a staging file.
type Left struct {
	ID        string
	State     LeftState
	Reason    string    // of a conflict, of damage, or why it is unreadable
	Container string    // URL, with the prefix of the mount
	Name      string    // of the blob, relative to that
	Size      int64     // of the file, bytes
	Here      int64     // bytes of it that are in the staging file
	Only      int64     // bytes of it that are in uncommitted blocks of the service, and nowhere else
	Changed   time.Time // when it was written to last
	PID       int       // of the process that made it
}

// left is a staging file that this process has locked.
type left struct {
	Left
	rec     *record
	journal *os.File
	data    *os.File // nil when there is none
}

func (l *left) close() {
	_ = l.journal.Close()
	if l.data != nil {
		_ = l.data.Close()
	}
}

// ListLeft returns the staging files in a cache directory that have something to save, the oldest first.
func ListLeft(dir string) ([]Left, error) {
	ids, err := leftIDs(dir)
	if err != nil {
		return nil, err
	}
	var out []Left
	for _, id := range ids {
		l, err := openLeft(dir, id, false)
		if errors.Is(err, os.ErrNotExist) {
			continue // committed just now
		}
		if err != nil {
			return nil, err
		}
		if l.rec == nil || l.worthSaving() {
			out = append(out, l.Left)
		}
		l.close()
	}
	slices.SortFunc(out, func(a, b Left) int { return cmp.Or(a.Changed.Compare(b.Changed), strings.Compare(a.ID, b.ID)) })
	return out, nil
}

// leftIDs returns the names of all journals.
func leftIDs(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, stagingDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), extJournal); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// errInUse says that another process works with a staging file.
var errInUse = errors.New("a process works with it")

// openLeft opens a staging file, and locks it if lock; then it fails with errInUse when somebody else has.
func openLeft(dir, id string, lock bool) (*left, error) {
	path := filepath.Join(dir, stagingDir, id)
	journal, err := os.OpenFile(path+extJournal, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	l := &left{Left: Left{ID: id}, journal: journal}
	used := unix.Flock(int(journal.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
	rec, bad := readJournal(io.NewSectionReader(journal, 0, 1<<62))
	if errors.Is(bad, errEmpty) {
		if lock && !used {
			_ = os.Remove(path + extJournal)
		}
		l.close()
		return nil, os.ErrNotExist
	}
	if used && lock {
		l.close()
		return nil, errInUse
	}
	var ours, named unix.Stat_t
	err = cmp.Or(unix.Fstat(int(journal.Fd()), &ours), unix.Stat(path+extJournal, &named))
	if err == nil && ours.Ino != named.Ino {
		err = os.ErrNotExist
	}
	if err != nil { // its process has ended or replaced it before we had the lock
		l.close()
		return nil, err
	}
	if l.data, err = os.OpenFile(path+extData, os.O_RDWR, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.close()
		return nil, err
	}
	l.judge(rec, bad, used)
	return l, nil
}

// judge finds out the state.
func (l *left) judge(rec *record, err error, used bool) {
	if st, err := l.journal.Stat(); err == nil {
		l.Changed = st.ModTime()
	}
	if err != nil {
		if l.State, l.Reason = LeftUnreadable, err.Error(); used {
			l.State = LeftInUse
		}
		return
	}
	restarted := rec.Boot != bootID()
	if restarted && rec.stands && rec.stable != nil {
		// What was written after the last sync may be lost in part.
		length, salt := rec.length, rec.salt
		rec = rec.stable
		rec.length, rec.salt = length, salt
	}
	l.rec = rec
	l.Container, l.Name, l.PID = rec.Container, rec.Base.Name, rec.PID
	l.Size, l.Here, l.Only = rec.Size, rec.valid.total(), rec.released.total()
	switch {
	case used:
		l.State = LeftInUse
	case rec.kept != "":
		l.State, l.Reason = LeftConflict, rec.kept
	case !rec.finished:
		l.State = LeftUnfinished
		if restarted {
			l.Reason = "the machine was restarted since: its last bytes may be missing"
		}
	default:
		l.State = LeftFinished
		if err := l.verify(); err != nil {
			l.State, l.Reason = LeftDamaged, err.Error()
		}
	}
}

// worthSaving reports whether the service lacks something.
func (l *left) worthSaving() bool { return l.rec.dirty && !l.rec.gone }

// verify compares the checksums of what was finished.
func (l *left) verify() error {
	if l.data == nil && len(l.rec.sums) > 0 {
		return errors.New("the file with the bytes is missing")
	}
	if l.rec.lacks() {
		return errors.New("bytes have no checksum")
	}
	scratch := unitBuffers.Get().(*[sumMax]byte)
	defer unitBuffers.Put(scratch)
	for _, s := range l.rec.sums {
		if s.end-s.off > sumMax {
			return fmt.Errorf("bytes %d to %d have no checksum", s.off, s.end)
		}
		buf := scratch[:s.end-s.off]
		if _, err := (paddedReader{l.data}).ReadAt(buf, s.off); err != nil {
			return err
		}
		if crc32.Checksum(buf, castagnoli) != s.crc {
			return fmt.Errorf("bytes %d to %d are not what was written", s.off, s.end)
		}
	}
	return nil
}

// remove deletes a staging file.
func (l *left) remove(dir string) error {
	path := filepath.Join(dir, stagingDir, l.ID)
	if err := os.Remove(path + extData); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Remove(path + extJournal)
}

// Discard deletes a staging file, and with it what only that has. A file that a process works with is left alone.
func Discard(dir, id string) error {
	l, err := findLeft(dir, id)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.remove(dir); err != nil {
		return err
	}
	if s, err := openSpace(dir, 0, slog.New(slog.DiscardHandler)); err == nil { // else the next recount sees it
		s.release(l.Here)
		s.close()
	}
	return nil
}

// findLeft locks the staging file that somebody has named. Its error says what to do.
func findLeft(dir, id string) (*left, error) {
	if id == "" || strings.ContainsAny(id, "/.") {
		return nil, fmt.Errorf("%q is not an id: blobmount recover list shows them", id)
	}
	l, err := openLeft(dir, id, true)
	switch {
	case errors.Is(err, errInUse):
		return nil, fmt.Errorf("a mount still works with %s: it saves it by itself, or unmount first", id)
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("there is no %s in %s: blobmount recover list shows what there is", id, filepath.Join(dir, stagingDir))
	}
	return l, err
}

// file returns a File for a staging file, which must have a record. It is dirty, nobody has it open, and it owns l.
func (c *Cache) file(l *left, cont blob.Container, hooks Hooks) (*File, error) {
	rec := l.rec
	if l.data == nil {
		var err error
		if l.data, err = os.OpenFile(c.stagingPath(l.ID, extData), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return nil, err
		}
	}
	if err := l.journal.Truncate(rec.length); err != nil { // what is cut off must not be taken for a record
		return nil, err
	}
	d, b := rec.Details, rec.Base
	f := &File{c: c, cont: cont, hooks: hooks, isNew: b.New, size: rec.Size, modified: d.Modified,
		under: lower{b.From, b.FromETag, b.FromSize}, limit: b.Limit, gen: 2, saved: 1, since: l.Changed}
	f.props = blob.Properties{Name: b.Name, ETag: b.ETag, Kind: b.Kind, Size: b.FromSize, Headers: d.Headers,
		Metadata: d.Metadata, Tier: d.Tier, TierInferred: d.Tier == "", TagCount: d.TagCount}
	if rec.finished {
		f.acked = f.gen
	}
	st := c.stageOf(l.ID)
	st.file, st.journal = l.data, &journal{file: l.journal, size: rec.length, salt: rec.salt}
	st.changed = rec.changed
	st.valid, st.released = rec.trusted()
	st.durable.Store(true)                  // as far as this process knows
	st.count = roundBlock(st.valid.total()) // the process that staged it has counted it
	st.left = rec.staged
	st.layout = layout{first: rec.BlockSize, every: rec.Every}
	f.setStage(st)
	if f.limit == 0 && rec.BlockSize > 0 {
		if err := f.layOut(st.layout, nil); err != nil {
			return nil, err
		}
	}
	c.track(f, true)
	return f, nil
}

// recoverAtOnce is how many files are committed at once when a mount begins.
const recoverAtOnce = 8

// Recover commits what earlier processes have left finished for a container, and tells the log of what has to wait for
// somebody. It returns when all is done or ctx ends; what is not committed then is tried again in the background.
func (c *Cache) Recover(ctx context.Context, cont blob.Container, hooks Hooks) error {
	ids, err := leftIDs(c.dir)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	slots := make(semaphore, recoverAtOnce)
	for _, id := range ids {
		l, err := openLeft(c.dir, id, true)
		if errors.Is(err, errInUse) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		do := c.mayRecover(l, cont)
		if !do {
			if l.State != LeftUnfinished || !l.rec.named || l.Container != cont.URL("") {
				l.close()
				continue
			}
		}
		f, err := c.file(l, cont, hooks)
		if err != nil {
			l.close()
			return err
		}
		if !do {
			f.recoverName(ctx)
			continue
		}
		if slots.acquire(context.WithoutCancel(ctx)) != nil {
			break
		}
		wg.Go(func() {
			defer slots.release()
			f.recover(ctx, l.rec.going)
		})
	}
	wg.Wait()
	return nil
}

// mayRecover decides what becomes of a staging file, and reports whether it is to be committed.
func (c *Cache) mayRecover(l *left, cont blob.Container) bool {
	if l.rec == nil {
		c.log.Warn("a journal cannot be read and is left alone", "id", l.ID, "dir", c.staging, "error", l.Reason)
		return false
	}
	if l.Container != cont.URL("") {
		return false
	}
	if !l.worthSaving() {
		if err := l.remove(c.dir); err != nil {
			c.log.Warn("a staging file that is not needed any more cannot be deleted", "id", l.ID, "error", err)
		}
		c.space.release(roundBlock(l.Here))
		return false
	}
	if l.State != LeftFinished {
		c.log.Warn("a file that was not saved needs your decision: see blobmount recover --cache-dir "+c.dir+" list",
			"id", l.ID, "state", l.State.String(), "blob", l.Name, "bytes", l.Size, "reason", l.Reason)
		return false
	}
	return true
}

// wentAway reports whether a blob that was about to be deleted or replaced when its process ended is not there any more.
func (f *File) wentAway(ctx context.Context) bool {
	f.mu.RLock()
	p, isNew := f.props, f.isNew
	f.mu.RUnlock()
	now, err := f.cont.Properties(ctx, p.Name, blob.Condition{})
	switch {
	case blob.Is(err, blob.NotFound):
		if isNew {
			return false // nothing has replaced it
		}
	case err != nil || !isNew && now.ETag == p.ETag:
		return false
	}
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	f.c.track(f, false)
	return true
}

// recover commits a file that an earlier process has left.
func (f *File) recover(ctx context.Context, going bool) {
	name := f.Name()
	if going && f.wentAway(ctx) {
		f.Settle()
		return
	}
	err := f.Commit(ctx)
	f.mu.RLock()
	lost := f.lost != nil
	f.mu.RUnlock()
	switch {
	case err == nil:
		f.c.log.Info("saved what an earlier mount had left", "blob", name, "bytes", f.State().Size)
	case !lost:
		f.c.log.Warn("what an earlier mount had left is not saved yet, trying again", "blob", name, "error", err)
	}
	f.Settle() // tries again if need be
}

// recoverName makes the empty file that a close was answered for, of one that was written to since and not closed. What
// was written is kept.
func (f *File) recoverName(ctx context.Context) {
	defer f.putBack()
	f.mu.RLock()
	o := f.options()
	f.mu.RUnlock()
	o.Condition = blob.Condition{IfNoneMatch: blob.Any} // whoever wins otherwise: an empty file replaces nothing
	w, err := f.cont.Upload(ctx, f.props.Name, bytes.NewReader(nil), 0, o)
	if blob.Is(err, blob.Exists) {
		return // saved before
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.isNew, f.props.ETag = false, w.ETag
		err = f.noteBase(false)
	}
	if err != nil {
		f.c.log.Warn("an empty file that an earlier mount had left is not saved, the next mount tries again", "blob", f.props.Name, "error", err)
	}
}

// Save writes the content of a staging file to w. Bytes that were not written are those of the version that the file was
// made from: they come from the cache or else from cont. Nothing changes.
func (c *Cache) Save(ctx context.Context, id string, cont blob.Container, w io.Writer) error {
	f, err := c.openLeftFile(id, cont, LeftUnreadable)
	if err != nil {
		return err
	}
	defer f.putBack()
	if n := f.stage.released.total(); n > 0 {
		return fmt.Errorf("%d bytes of %s are only in blocks of the service that are not committed: commit it with blobmount recover retry %s", n, id, id)
	}
	buf := make([]byte, largeSlab)
	for off := int64(0); off < f.size; {
		d, err := f.Read(ctx, buf, off)
		if err != nil {
			return fmt.Errorf("bytes from %d on of the version that the file was made from cannot be had: %w", off, err)
		}
		for _, b := range d.Bytes {
			if _, err := w.Write(b); err != nil {
				d.Done()
				return err
			}
		}
		off += int64(d.Len())
		d.Done()
	}
	return nil
}

// Retry commits a staging file, whatever its state but LeftDamaged, as long as the blob is what it was made from; with
// LastWriterWins in the Config, whatever the blob is.
func (c *Cache) Retry(ctx context.Context, id string, cont blob.Container, hooks Hooks) error {
	f, err := c.openLeftFile(id, cont, LeftDamaged)
	if err != nil {
		return err
	}
	f.hooks = hooks
	if err := f.Commit(ctx); err != nil {
		f.putBack()
		return err
	}
	f.Settle()
	return nil
}

// openLeftFile returns a File for a staging file that somebody has named, unless it is in a state that is refused.
func (c *Cache) openLeftFile(id string, cont blob.Container, refused LeftState) (*File, error) {
	l, err := findLeft(c.dir, id)
	if err != nil {
		return nil, err
	}
	if l.rec == nil || l.State == refused {
		l.close()
		return nil, fmt.Errorf("%s is %s: %s", id, l.State, l.Reason)
	}
	f, err := c.file(l, cont, Hooks{Committed: func(blob.Properties, bool) {}})
	if err != nil {
		l.close()
		return nil, err
	}
	return f, nil
}

// putBack leaves a staging file to others again.
func (f *File) putBack() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.c.track(f, false)
	f.dropBase()
	if f.stage != nil {
		f.stage.leave()
		f.setStage(nil)
	}
	f.saved = f.gen
}
