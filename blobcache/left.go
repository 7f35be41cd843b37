package blobcache

import (
	"cmp"
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
