package fs

import (
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// exitDefect is the exit status of a daemon that found a defect of its own.
const exitDefect = 70 // EX_SOFTWARE of sysexits.h

// failStop ends the daemon when a handler panics. go-fuse would answer EIO and go on, with the locks of that handler held for
// ever, which hangs whoever comes next, and with state that nobody knows, which a commit would make permanent. What was
// written is in staging files, and the next mount sends it, as after any crash.
func failStop(log *slog.Logger) func(any) fuse.Status {
	return func(reason any) fuse.Status {
		log.Error("a defect of blobmount: it ends now, and what is not saved yet is kept in the cache directory; mount again to send it, and report this",
			"panic", fmt.Sprint(reason), "stack", string(debug.Stack()))
		os.Exit(exitDefect)
		return fuse.EIO
	}
}
