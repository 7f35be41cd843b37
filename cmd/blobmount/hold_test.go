package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fakeMount refuses to be unmounted as long as it is in use.
type fakeMount struct {
	gone     chan struct{}
	busy     bool
	unmounts int
}

func (m *fakeMount) Wait() { <-m.gone }

func (m *fakeMount) Unmount() error {
	m.unmounts++
	if m.busy {
		return syscall.EBUSY
	}
	close(m.gone)
	return nil
}

func TestHold(t *testing.T) {
	tests := []struct {
		name     string
		busy     bool
		act      func(m *fakeMount, signals chan<- os.Signal, cancel func())
		detached int
		unmounts int
	}{
		{"umount(8) by somebody", false, func(m *fakeMount, _ chan<- os.Signal, _ func()) { close(m.gone) }, 0, 0},
		{"signal", false, func(_ *fakeMount, s chan<- os.Signal, _ func()) { s <- syscall.SIGTERM }, 0, 1},
		{"signal twice while in use", true, func(_ *fakeMount, s chan<- os.Signal, _ func()) {
			s <- syscall.SIGINT
			time.Sleep(insist)
			s <- syscall.SIGTERM
		}, 1, 1},
		{"second signal too late, third in time", true, func(_ *fakeMount, s chan<- os.Signal, _ func()) {
			s <- syscall.SIGTERM
			time.Sleep(insist + time.Second)
			s <- syscall.SIGTERM
			time.Sleep(insist - time.Second)
			s <- syscall.SIGTERM
		}, 1, 2},
		{"in use, then not", true, func(m *fakeMount, s chan<- os.Signal, _ func()) {
			s <- syscall.SIGTERM
			synctest.Wait()
			m.busy = false
			time.Sleep(time.Minute)
			s <- syscall.SIGTERM
		}, 0, 2},
		{"end of context", false, func(_ *fakeMount, _ chan<- os.Signal, cancel func()) { cancel() }, 0, 1},
		{"end of context while in use", true, func(_ *fakeMount, _ chan<- os.Signal, cancel func()) { cancel() }, 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &fakeMount{gone: make(chan struct{}), busy: tt.busy}
				detached := 0
				h := holder{mount: m, log: slog.New(slog.DiscardHandler), detach: func() error {
					detached++
					close(m.gone) // the last user has closed its file
					return nil
				}}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				signals := make(chan os.Signal)
				returned := make(chan struct{})
				go func() {
					h.hold(ctx, signals)
					close(returned)
				}()
				synctest.Wait()
				tt.act(m, signals, cancel)
				<-returned
				if detached != tt.detached || m.unmounts != tt.unmounts {
					t.Errorf("detached %d times, unmounted %d times", detached, m.unmounts)
				}
			})
		})
	}
}

func TestLateWriter(t *testing.T) {
	var w lateWriter
	var out bytes.Buffer
	c := Config{LogLevel: wordValue{word: "warn"}, LogFormat: wordValue{word: "json"}}
	log := newLogger(&c, &w)
	log.Warn("before")
	log.Info("not shown")
	if err := w.to(&out); err != nil {
		t.Fatal(err)
	}
	log.Error("after")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"msg":"before"`) || !strings.Contains(lines[1], `"msg":"after"`) {
		t.Errorf("%q", lines)
	}
}
