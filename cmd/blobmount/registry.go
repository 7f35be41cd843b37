package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// A daemon holds a lock on a file as long as it lives. The kernel removes a mount before the daemon has written
// everything and ended: who unmounts waits for the lock. It is an flock(2) lock, which no killed process leaves
// behind, and the file is named by the device number of the mount, which is the same in every mount namespace.

// daemonInfo is the content of the file, for people and for messages.
type daemonInfo struct {
	PID        int    `json:"pid"`
	MountPoint string `json:"mount_point"`
	Source     string `json:"source"`
	CacheDir   string `json:"cache_dir"`
	// DrainTimeout is how long the daemon may go on after the unmount, in nanoseconds.
	DrainTimeout time.Duration `json:"drain_timeout"`
	// Left is written when the daemon ends before everything was sent.
	Left *leftover `json:"left,omitempty"`
}

// lockDirs are the places for the files of a user's daemons, in the order tried. They depend on nothing but the
// user, because an unmount may have another environment than the mount had.
func lockDirs(uid int) []string {
	id := strconv.Itoa(uid)
	if uid == 0 {
		return []string{"/run/blobmount", "/tmp/blobmount-0"}
	}
	return []string{filepath.Join("/run/user", id, "blobmount"), "/tmp/blobmount-" + id}
}

// daemonLock is the lock of this process.
type daemonLock struct {
	file *os.File
	info daemonInfo
}

// lockDaemon writes the file for a mount and locks it.
func lockDaemon(dirs []string, uid int, device string, info daemonInfo) (*daemonLock, error) {
	var errs []error
	for _, dir := range dirs {
		if err := ownDir(dir, uid); err != nil {
			errs = append(errs, err)
			continue
		}
		removeStale(dir, device)
		name := filepath.Join(dir, fmt.Sprintf("%s-%d.lock", device, info.PID))
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC|syscall.O_NOFOLLOW, 0o644)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// A process that waits for a daemon of the same number and device may hold the lock for an instant, so
		// this waits too.
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if err := json.NewEncoder(f).Encode(info); err != nil {
			f.Close()
			return nil, err
		}
		return &daemonLock{f, info}, nil
	}
	return nil, errors.Join(errs...)
}

// removeStale removes what daemons left behind that were killed. Their mounts are gone: the number of a device
// belongs to one mount at a time. A daemon that still writes after its unmount holds its lock.
func removeStale(dir, device string) {
	for _, f := range daemons([]string{dir}, device) {
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.Remove(f.Name())
		}
		f.Close()
	}
}

// leave writes what the daemon could not send, for those who wait for its end.
func (l *daemonLock) leave(left leftover) error {
	l.info.Left = &left
	text, err := json.Marshal(l.info)
	if err != nil {
		return err
	}
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err = l.file.WriteAt(text, 0)
	return err
}

// release ends the lock and removes the file.
func (l *daemonLock) release() {
	_ = os.Remove(l.file.Name()) // a file that stays has no lock, and means nothing
	l.file.Close()
}

// ownDir makes a directory that nobody else can write to, or checks that it is one: /tmp is for everybody.
func ownDir(dir string, uid int) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != uid || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only user %d can write to", dir, uid)
	}
	return nil
}

// daemons opens the files of the daemons of a mount. The caller closes them.
func daemons(dirs []string, device string) []*os.File {
	var files []*os.File
	for _, dir := range dirs {
		names, _ := filepath.Glob(filepath.Join(dir, device+"-*.lock")) // the pattern has no error in it
		for _, name := range names {
			// O_NONBLOCK, O_NOFOLLOW: the directory may belong to another user.
			if f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0); err == nil {
				files = append(files, f)
			}
		}
	}
	return files
}

// ofMountPoint leaves the files that name a mount point, and closes the others: a daemon that still writes after its unmount
// may have had the number of the device before. When none names it, as in another mount namespace, all stay.
func ofMountPoint(files []*os.File, path string) []*os.File {
	var named, other []*os.File
	for _, f := range files {
		if readDaemonInfo(f).MountPoint == path {
			named = append(named, f)
		} else {
			other = append(other, f)
		}
	}
	if len(named) == 0 {
		return other
	}
	for _, f := range other {
		f.Close()
	}
	return named
}

// waitForEnd returns when no daemon holds the lock of the file.
func waitForEnd(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// readDaemonInfo returns what a file says; the zero value when it says nothing.
func readDaemonInfo(f *os.File) (info daemonInfo) {
	_ = json.NewDecoder(io.NewSectionReader(f, 0, 64<<10)).Decode(&info)
	return info
}
