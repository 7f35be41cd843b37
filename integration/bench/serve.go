package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The bare file system is served by a process of its own: one that reads a mount which it serves itself may wait for
// itself for ever.

// serve shows Dir at Mountpoint until in ends, and says that it is ready as other tasks do.
func (t task) serve(in io.Reader, out io.Writer) (err error) {
	// A signal from the terminal goes to the parent too, which unmounts when nobody reads any more.
	signal.Ignore(os.Interrupt, unix.SIGHUP)
	b, err := newBareFS(t.Dir)
	if err != nil {
		return err
	}
	// As serverOptions of package fs has them.
	server, err := fuse.NewServer(b, t.Mountpoint, &fuse.MountOptions{
		Name: b.String(), FsName: b.String(),
		DirectMount: true, DirectMountStrict: true, DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV,
		Options:  []string{"default_permissions"},
		MaxWrite: 1 << 20, MaxBackground: 128,
		DisableSplice: true, ExplicitDataCacheControl: true,
	})
	if err != nil {
		return fmt.Errorf("mount on %s: %w", t.Mountpoint, err)
	}
	ended := make(chan struct{})
	go func() {
		server.Serve()
		close(ended)
	}()
	defer func() {
		if unmountErr := server.Unmount(); unmountErr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", t.Mountpoint, unmountErr))
			return
		}
		<-ended
	}()
	if err := server.WaitMount(); err != nil {
		return err
	}
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// bareMount is a bare file system that is mounted.
type bareMount struct {
	dir    string // the mount point
	child  *child
	closed bool
}

// bareReadAhead is the kernel's read-ahead in KiB, readAheadKiB of package fs.
const bareReadAhead = 2048

// bare mounts a bare file system that shows a directory.
func (l *lab) bare(ctx context.Context, plain string) (*bareMount, error) {
	top, err := l.newDir("bare")
	if err != nil {
		return nil, err
	}
	b := &bareMount{dir: filepath.Join(top, "mnt")}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, err
	}
	// Before top is removed with all that is in it: what is still mounted fails here.
	l.later(func() error { return os.Remove(b.dir) })
	// Not to be killed when everything ends: then it could not unmount.
	b.child, err = startChild(context.WithoutCancel(ctx), task{Op: opServe, Dir: plain, Mountpoint: b.dir})
	if err != nil {
		_ = unix.Unmount(b.dir, unix.MNT_DETACH) // of one that crashed, as in close
		return nil, err
	}
	l.later(b.close)
	return b, b.readAhead()
}

// readAhead raises the kernel's read-ahead as blobmount does, which goes without where it may not.
func (b *bareMount) readAhead() error {
	var st unix.Stat_t
	if err := unix.Stat(b.dir, &st); err != nil {
		return err
	}
	err := os.WriteFile(readAheadFile(st.Dev), fmt.Append(nil, bareReadAhead), 0)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// readAheadFile has the kernel's read-ahead of a mount, in KiB.
func readAheadFile(dev uint64) string {
	return fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(dev), unix.Minor(dev))
}

// close unmounts and waits for the process. Calling it again does nothing.
func (b *bareMount) close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	kill := time.AfterFunc(endBound, func() { _ = b.child.cmd.Process.Kill() })
	defer kill.Stop()
	if err := b.child.end(nil); err != nil {
		_ = unix.Unmount(b.dir, unix.MNT_DETACH) // of one that crashed: the directory can be removed then
		return fmt.Errorf("bare FUSE: %w", err)
	}
	return nil
}
