package auth

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// pollEvery is how often the sources are read when nothing tells of a change: file systems of other machines and
	// overlays send no events, and neither does a link that leads out of the directory. Only the secret directory is
	// watched, in which a change is most likely to be urgent.
	pollEvery = 2 * time.Second
	// settle is how long a directory has to be quiet before it is read: several files are seldom written in one moment.
	settle = 100 * time.Millisecond
)

// watch returns a watcher of a directory, since what is replaced there are names: Kubernetes renames a new link over
// ..data, Docker and Vault write or rename files. It returns nil when the machine has no more watches to give; then
// there is the poll.
func watch(dir string) *fsnotify.Watcher {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil
	}
	_ = w.Add(dir) // again with each poll
	return w
}

// Run reads the sources when they change, and every two seconds in any case, until ctx is done. It is to run once; no
// credential is tried after it.
func (w *Watcher) Run(ctx context.Context) {
	defer w.end()
	var changed <-chan fsnotify.Event // nil without a watch
	var failed <-chan error
	var dir *fsnotify.Watcher
	if w.cfg.SecretDir != "" {
		dir = watch(w.cfg.SecretDir)
	}
	if dir != nil {
		defer dir.Close()
		changed, failed = dir.Events, dir.Errors
	}
	poll := time.NewTicker(w.every)
	defer poll.Stop()
	quiet := time.NewTimer(0) // a change since the sources were read first
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-changed:
			if ev.Op != fsnotify.Chmod {
				quiet.Reset(settle)
			}
			continue
		case <-failed: // too many events: some were lost
			quiet.Reset(settle)
			continue
		case <-quiet.C:
		case <-poll.C:
			if dir != nil {
				_ = dir.Add(w.cfg.SecretDir) // it may be another one now, of that name
			}
		}
		w.poll(ctx)
	}
}
