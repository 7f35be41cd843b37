package blobcache

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// logged is a log that may be read while it is written.
type logged struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// lockJournal locks a journal as a process that works with it.
func lockJournal(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatalf("journal is locked: %v", err)
	}
	return f
}

// leaveFile lets a process end that has closed a file, and not sent it. It returns the path of its journal.
func leaveFile(t *testing.T, s *service, cfg Config, name string) string {
	t.Helper()
	c := openCache(t, cfg)
	f := create(t, c, s, name, content(1, 1000))
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := c.stagingPath(f.stage.id, extJournal)
	crash(c)
	return path
}

func otherContainer() blob.Container {
	return blobtest.NewContainer(blobtest.NewStore(blobtest.StoreOptions{}), "https://account.example/other")
}

// TestRecoverBesideOthers: who holds the journal of a staging file just when a mount begins does not keep it from sending
// that: at once after some milliseconds, else when the other lets it go, of which the log tells once.
func TestRecoverBesideOthers(t *testing.T) {
	for _, held := range []time.Duration{0, lockPause / 2, 3 * lockPause, 10 * time.Minute} {
		s, cfg := newService(), writeBackConfig(t.TempDir())
		path := leaveFile(t, s, cfg, "a")
		leaveFile(t, s, cfg, "b")
		var log logged
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		synctest.Test(t, func(t *testing.T) {
			c := openCache(t, cfg)
			other := lockJournal(t, path)
			go func() {
				time.Sleep(held)
				_ = other.Close()
			}()
			if held < lockPause {
				synctest.Wait()
			}
			begun := time.Now()
			recoverAll(t, c, s)
			late := held > time.Second
			told := func() bool { return strings.Count(log.String(), "other processes") == map[bool]int{true: 1}[late] }
			if took := time.Since(begun); took > lockTries*lockPause {
				t.Errorf("held for %v: it took %v", held, took)
			}
			if s.content(t, "b") == nil || (s.content(t, "a") == nil) != late || !told() {
				t.Errorf("held for %v: a was sent %v, log %q", held, s.content(t, "a") != nil, log.String())
			}
			time.Sleep(held + lastRetry)
			synctest.Wait()
			if s.content(t, "a") == nil || !told() {
				t.Errorf("when it is let go after %v: a was sent %v, log %q", held, s.content(t, "a") != nil, log.String())
			}
			theNone(t, cfg.Dir)
			closeCache(t, c)
		})
	}
}

// TestRecoverLooksUntilClose: a mount that ends looks no more at what another process works with, and does not wait for it.
func TestRecoverLooksUntilClose(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	path := leaveFile(t, s, cfg, "a")
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, cfg)
		other := lockJournal(t, path)
		recoverAll(t, c, s)
		begun := time.Now()
		shut(t, c)
		if took := time.Since(begun); took > 0 {
			t.Errorf("the end of the mount took %v", took)
		}
		_ = other.Close()
		time.Sleep(time.Hour) // of the bubble
		if s.content(t, "a") != nil {
			t.Error("sent by a mount that has ended")
		}
	})
	if l := theLeft(t, cfg.Dir); l.State != LeftFinished {
		t.Errorf("left: %+v", l)
	}
}

// TestRecoverForeign: a mount neither asks for the lock of a file of another container, nor looks at its bytes.
func TestRecoverForeign(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	path := leaveFile(t, s, cfg, "a")
	data := strings.TrimSuffix(path, extJournal) + extData
	if err := os.Rename(data, data+"2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(data, 0o700); err != nil { // whoever opens it to write fails
		t.Fatal(err)
	}
	var log logged
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, cfg)
		recoverAll(t, c, otherContainer())
		other := lockJournal(t, path)
		begun := time.Now()
		recoverAll(t, c, otherContainer())
		if took := time.Since(begun); took > 0 || log.String() != "" {
			t.Errorf("it took %v, log %q", took, log.String())
		}
		_ = other.Close()
		closeCache(t, c)
	})
}

// TestListHoldsNoLock: who lists what is left keeps nobody from it, and tells the truth of what a process takes meanwhile.
func TestListHoldsNoLock(t *testing.T) {
	for what, test := range map[string]struct {
		meanwhile func(t *testing.T, c *Cache, s *service, id string) (end func())
		want      LeftState
		gone      bool
	}{
		"nothing": {
			meanwhile: func(t *testing.T, c *Cache, s *service, id string) func() {
				_ = lockJournal(t, c.stagingPath(id, extJournal)).Close()
				return func() {}
			},
			want: LeftFinished,
		},
		"taken": {
			meanwhile: func(t *testing.T, c *Cache, s *service, id string) func() {
				f := lockJournal(t, c.stagingPath(id, extJournal))
				return func() { _ = f.Close() }
			},
			want: LeftInUse,
		},
		"sent": {
			meanwhile: func(t *testing.T, c *Cache, s *service, id string) func() {
				recoverAll(t, c, s)
				return func() {}
			},
			gone: true,
		},
		"a conflict": {
			meanwhile: func(t *testing.T, c *Cache, s *service, id string) func() {
				s.put(t, "a", 10, 5)
				recoverAll(t, c, s)
				return func() {}
			},
			want: LeftConflict,
		},
		"changed": {
			meanwhile: func(t *testing.T, c *Cache, s *service, id string) func() {
				f, err := c.openLeftFile(id, s, LeftUnreadable)
				if err != nil {
					t.Fatal(err)
				}
				f.Acquire(true)
				put(t, f, []byte("not closed"), 10)
				return f.putBack
			},
			want: LeftInUse,
		},
		"changed and left": {
			meanwhile: func(t *testing.T, c *Cache, s *service, id string) func() {
				f, err := c.openLeftFile(id, s, LeftUnreadable)
				if err != nil {
					t.Fatal(err)
				}
				f.Acquire(true)
				put(t, f, []byte("not closed"), 10)
				f.putBack()
				return func() {}
			},
			want: LeftUnfinished,
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, cfg := newService(), writeBackConfig(t.TempDir())
			id := strings.TrimSuffix(filepath.Base(leaveFile(t, s, cfg, "a")), extJournal)
			c := openCache(t, cfg)
			end := func() {}
			first := true
			l, err := lookLeft(cfg.Dir, id, func() {
				if first {
					end = test.meanwhile(t, c, s, id)
				}
				first = false
			})
			if test.gone != os.IsNotExist(err) || err == nil && l.State != test.want {
				t.Errorf("%v, error %v; want %v", l, err, test.want)
			}
			end()
		})
	}
}

// TestRecoverUnopenable: a staging file that cannot be opened is shown and told of, and hinders no other.
func TestRecoverUnopenable(t *testing.T) {
	for _, ext := range []string{extData, extJournal} {
		s, cfg := newService(), writeBackConfig(t.TempDir())
		path := strings.TrimSuffix(leaveFile(t, s, cfg, "a"), extJournal)
		for _, name := range []string{"b", "c", "d"} {
			leaveFile(t, s, cfg, name)
		}
		if err := os.Remove(path + ext); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path+ext, 0o700); err != nil {
			t.Fatal(err)
		}
		var log logged
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		c := openCache(t, cfg)
		recoverAll(t, c, s)
		for _, name := range []string{"b", "c", "d"} {
			if s.content(t, name) == nil {
				t.Errorf("%s: %s was not sent", ext, name)
			}
		}
		l := theLeft(t, cfg.Dir)
		if l.State != LeftUnreadable || !strings.Contains(l.Reason, "is a directory") || l.Changed.IsZero() {
			t.Errorf("%s: left %+v", ext, l)
		}
		if strings.Count(log.String(), "level=WARN") != 1 {
			t.Errorf("%s: log %q", ext, log.String())
		}
	}
}

// failing is a disk that cannot read what lies behind the first bytes.
type failing struct {
	io.Reader
}

func (f failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = unix.EIO
	}
	return n, err
}

// TestJournalReadFails: a journal that the disk cannot read is neither empty nor shorter than it was: it would be deleted or
// cut off.
func TestJournalReadFails(t *testing.T) {
	s, cfg := newService(), writeBackConfig(t.TempDir())
	whole, err := os.ReadFile(leaveFile(t, s, cfg, "a"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		rec, err := readJournal(failing{bytes.NewReader(whole[:n])})
		if !errors.Is(err, errJournal) || !errors.Is(err, unix.EIO) || errors.Is(err, errEmpty) {
			t.Fatalf("%d bytes: %+v, error %v", n, rec, err)
		}
	}
}
