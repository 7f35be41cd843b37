package main

import (
	"context"
	"log/slog"
	"sync"

	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
)

// withHierarchy returns a container with what it can do besides if its account has a hierarchical namespace. Late leaves the
// question to the first operation that needs the answer: who wants no check does not wait for a service that is away.
func withHierarchy(ctx context.Context, c *azure.Container, late bool, log *slog.Logger) blob.Container {
	h := &hierarchy{Container: c, asking: make(chan struct{}, 1), log: log}
	if !late {
		ctx, cancel := context.WithTimeout(ctx, probeRetry)
		defer cancel()
		if err := h.Settle(ctx); err != nil {
			log.Warn("cannot find out yet whether the account has a hierarchical namespace: the first rename or removal of a directory asks again", "error", err)
		}
	}
	return h
}

// hierarchy is a container of an account that may have a hierarchical namespace.
type hierarchy struct {
	*azure.Container
	asking chan struct{} // is full while the service is asked
	log    *slog.Logger

	mu      sync.Mutex // guards what is below; never held over I/O
	settled bool
	renamer blob.Renamer // nil in a flat account
}

var _ blob.LateRenamer = (*hierarchy)(nil)

// Renamer implements blob.LateRenamer.
func (h *hierarchy) Renamer() blob.Renamer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.renamer
}

func (h *hierarchy) isSettled() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.settled
}

// Settle implements blob.LateRenamer. A credential need not have the permission to ask, nor an emulator an answer: then the
// account counts as a flat one.
func (h *hierarchy) Settle(ctx context.Context) error {
	if h.isSettled() {
		return nil
	}
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if h.isSettled() {
		return nil
	}
	found, err := h.Hierarchical(ctx)
	switch {
	case err != nil && (ctx.Err() != nil || blob.Is(err, blob.Unavailable) || blob.Is(err, blob.Throttled) || blob.Is(err, blob.Unauthenticated)):
		return err
	case err != nil:
		h.log.Warn("cannot find out whether the account has a hierarchical namespace: renames of directories are copies, and if it has one, directories cannot be removed",
			"error", err)
	case found != nil:
		h.log.Info("the account has a hierarchical namespace: directories are renamed by the service")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settled = true
	if found != nil {
		h.renamer = found
	}
	return nil
}
