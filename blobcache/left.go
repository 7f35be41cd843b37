package blobcache

import (
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
	"time"

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

// left is a staging file that was opened.
type left struct {
	Left
	ctx     context.Context // ends verify
	path    string          // of both files, without an extension
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
		switch l, err := FindLeft(dir, id); {
		case err == nil:
			out = append(out, l)
		case !errors.Is(err, os.ErrNotExist): // else it was committed just now
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Left) int { return cmp.Or(a.Changed.Compare(b.Changed), strings.Compare(a.ID, b.ID)) })
	return out, nil
}

// FindLeft is ListLeft for one staging file. It fails with os.ErrNotExist if that has nothing to save.
func FindLeft(dir, id string) (Left, error) {
	if !isLeftID(id) {
		return Left{}, fmt.Errorf("staging file %q: %w", id, os.ErrNotExist)
	}
	found, err := lookLeft(dir, id, func() {})
	switch {
	case err == nil && (found.rec == nil || found.worthSaving()):
		return found.Left, nil
	case err == nil || errors.Is(err, os.ErrNotExist):
		return Left{}, os.ErrNotExist
	}
	l := Left{ID: id, State: LeftUnreadable, Reason: err.Error()}
	if st, err := os.Lstat(filepath.Join(dir, stagingDir, id+extJournal)); err == nil {
		l.Changed = st.ModTime()
	}
	return l, nil
}

// isLeftID reports whether a name may be one of a staging file.
func isLeftID(id string) bool { return id != "" && !strings.ContainsAny(id, "/.") }

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

// openLeft opens a staging file and locks it. It fails with errInUse while a process works with it, and with os.ErrNotExist
// when there is nothing to do. ctx ends the comparison of checksums: what is returned then is worth nothing.
func openLeft(ctx context.Context, dir, id string) (*left, error) {
	l, err := openJournalOf(ctx, dir, id)
	if err != nil {
		return nil, err
	}
	locked := lock(l.journal)
	named, err := hasName(l.journal, l.path+extJournal)
	switch {
	case err != nil:
	case !locked || !named: // its process has just removed or replaced it: that is asked for again
		if err = errInUse; l.saysNothing() {
			err = os.ErrNotExist // it is kept for the next staging file
		}
	default:
		if err = l.read(false); errors.Is(err, errEmpty) {
			_ = os.Remove(l.path + extJournal)
			err = os.ErrNotExist
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// looks is how often a staging file is judged that changes meanwhile. Who changes it works with it.
const looks = 3

// lookLeft judges a staging file for somebody who does nothing with it: without a lock, so that a mount which begins
// meanwhile finds it free. What a process has changed meanwhile is judged anew. It returns it closed, and fails with
// os.ErrNotExist when there is nothing to save. judged is called after each judgement.
func lookLeft(dir, id string, judged func()) (*left, error) {
	for n := 1; ; n++ {
		l, err := openJournalOf(context.Background(), dir, id)
		if err != nil {
			return nil, err
		}
		before, err := l.journal.Stat()
		used := n >= looks || inUse(l.journal)
		if err == nil {
			err = l.read(used)
		}
		if errors.Is(err, errEmpty) {
			err = os.ErrNotExist
		}
		judged()
		still := false
		if err == nil {
			still, err = l.is(before, used)
		}
		l.close()
		if err != nil || still {
			return l, err
		}
	}
}

// is reports whether what was read of a journal still holds: what a process makes of its staging file stands there.
func (l *left) is(before os.FileInfo, used bool) (bool, error) {
	now, err := l.journal.Stat()
	if err != nil {
		return false, err
	}
	named, err := hasName(l.journal, l.path+extJournal)
	if err != nil || used {
		return named, err
	}
	return named && !inUse(l.journal) && now.Size() == before.Size() && now.ModTime().Equal(before.ModTime()), nil
}

// openJournalOf opens the journal of a staging file.
func openJournalOf(ctx context.Context, dir, id string) (*left, error) {
	path := filepath.Join(dir, stagingDir, id)
	journal, err := os.OpenFile(path+extJournal, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &left{Left: Left{ID: id}, ctx: ctx, path: path, journal: journal}, nil
}

// saysNothing reports whether the journal is empty.
func (l *left) saysNothing() bool {
	_, err := containerOf(l.journal)
	return errors.Is(err, errEmpty)
}

// read reads the journal and finds out the state. It fails with errEmpty when the journal says nothing.
func (l *left) read(used bool) error {
	rec, bad := readJournal(io.NewSectionReader(l.journal, 0, 1<<62))
	if errors.Is(bad, errEmpty) {
		return bad
	}
	data, err := os.OpenFile(l.path+extData, os.O_RDWR, 0)
	if err == nil {
		l.data = data
	}
	l.judge(rec, bad, used)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !used {
		l.State, l.Reason = LeftUnreadable, err.Error()
	}
	return nil
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
	rec.here = rec.Boot != "" && !restarted
	l.rec = rec
	l.Container, l.Name, l.PID = rec.Container, rec.Base.Name, rec.PID
	l.Size, l.Here, l.Only = rec.Size, rec.valid.total(), rec.released.total()
	switch {
	case used:
		l.State = LeftInUse
	case len(rec.lost) > 0 && rec.kept == "":
		l.State, l.Reason = LeftDamaged, lostReason(rec.lost.total())
	case l.bodiless():
		l.State, l.Reason = LeftDamaged, errNoData.Error()
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

// errNoData says that there are no bytes to what a journal says.
var errNoData = errors.New("the file with the bytes is missing")

// bodiless reports whether the bytes are missing, and something is to be saved. What would be read instead is zeros.
func (l *left) bodiless() bool { return l.data == nil && len(l.rec.valid) > 0 && l.worthSaving() }

// lostReason says why there is nothing to read where a block of the service was the only place of some bytes.
func lostReason(n int64) string {
	return fmt.Sprintf("%d bytes are lost: they were only in blocks that the service has dropped", n)
}

// worthSaving reports whether the service lacks something.
func (l *left) worthSaving() bool { return l.rec.dirty && !l.rec.gone }

// verify compares the checksums of what was finished.
func (l *left) verify() error {
	// Blocks that were committed before the last changes have only the checksums of their uploads.
	for lacks, i := l.rec.lacks(), 0; len(lacks) > 0 && l.data != nil && i < len(l.rec.tallies); i++ {
		if x := l.rec.tallies[i]; lacks.overlaps(x.off, x.end) && x.matches(l.data) {
			l.rec.proven.add(x.off, x.end)
		}
	}
	if len(l.rec.lacks()) > 0 {
		return errors.New("bytes have no checksum that matches them")
	}
	scratch := unitBuffers.Get().(*[sumMax]byte)
	defer unitBuffers.Put(scratch)
	for _, s := range l.rec.sums {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if s.end-s.off > sumMax {
			return fmt.Errorf("bytes %d to %d have no checksum", s.off, s.end)
		}
		buf := scratch[:s.end-s.off]
		if _, err := io.ReadFull(blob.NewFileBody(l.data, s.off, int64(len(buf))), buf); err != nil {
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
	if !isLeftID(id) {
		return nil, fmt.Errorf("%q is not an id: blobmount recover list shows them", id)
	}
	var l *left
	var err error
	soon([]string{id}, func(ids []string) []string {
		if l, err = openLeft(context.Background(), dir, id); errors.Is(err, errInUse) {
			return ids
		}
		return nil
	})
	switch {
	case errors.Is(err, errInUse):
		return nil, fmt.Errorf("a mount still works with %s: it saves it by itself, or unmount first", id)
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("there is no %s in %s: blobmount recover list shows what there is", id, filepath.Join(dir, stagingDir))
	}
	return l, err
}
