package main

import (
	"context"
	"log/slog"
	"os"
	"time"
)

// insist is how soon a second signal must follow the first to mean "now".
const insist = 10 * time.Second

// served is a mount in the tree, as fs.Mount returns it.
type served interface {
	// Wait returns when the mount is gone, whoever unmounted it.
	Wait()
	// Unmount ends the mount unless it is in use.
	Unmount() error
}

// holder keeps a mount until somebody wants it gone.
type holder struct {
	mount  served
	log    *slog.Logger
	detach func() error // takes the mount out of the tree at once, open files stay until they are closed
}

// hold returns when the mount is gone. The first signal unmounts, unless the mount is in use: then everything goes
// on, because a daemon that ends under its users loses what they still write. A second signal soon after the first
// detaches the mount: no path leads to it any more, each file is committed as it is closed, and the mount ends
// with the last of them. The end of ctx does both.
func (h *holder) hold(ctx context.Context, signals <-chan os.Signal) {
	gone := make(chan struct{})
	go func() {
		h.mount.Wait()
		close(gone)
	}()
	var refused time.Time // when the last signal found the mount in use
	done := ctx.Done()
	for {
		select {
		case <-gone:
			return
		case s := <-signals:
			h.log.Info("unmounting", "signal", s.String())
			if !refused.IsZero() && time.Since(refused) <= insist {
				h.now()
			} else if h.unmount("it goes on; send the signal again within 10 s to detach it") {
				refused = time.Time{}
			} else {
				refused = time.Now()
			}
		case <-done:
			done = nil
			if !h.unmount("detaching it") {
				h.now()
			}
		}
	}
}

func (h *holder) unmount(otherwise string) bool {
	err := h.mount.Unmount()
	if err != nil {
		h.log.Warn("the mount cannot be unmounted: "+otherwise, "error", err)
	}
	return err == nil
}

func (h *holder) now() {
	if err := h.detach(); err != nil {
		h.log.Error("the mount cannot be detached", "error", err)
		return
	}
	h.log.Warn("detached; waiting for the last open file to be closed")
}
