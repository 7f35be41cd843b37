package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// system is what of the machine the checks look at; tests give their own.
type system struct {
	euid       int
	mountInfo  string // /proc/self/mountinfo
	fuseDevice string // /dev/fuse
	fuseConf   string // /etc/fuse.conf
	findHelper func() (string, error)
}

func realSystem() system {
	return system{
		euid:       os.Geteuid(),
		mountInfo:  "/proc/self/mountinfo",
		fuseDevice: "/dev/fuse",
		fuseConf:   "/etc/fuse.conf",
		findHelper: findFusermount,
	}
}

// findFusermount finds the set-user-ID program that mounts and unmounts for users. mount(8) removes PATH, so the
// places where it is installed are tried too.
func findFusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		for _, dir := range []string{"", "/usr/bin", "/bin", "/usr/local/bin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", exec.ErrNotFound
}

// checkMachine checks everything that a mount needs from this machine, and returns the mount point without
// symbolic links.
func (sys system) checkMachine(c *Config) (mountPoint string, err error) {
	mountPoint, err = sys.checkMountPoint(c.MountPoint, c.NonEmpty)
	if err != nil {
		return "", err
	}
	if err := sys.checkFUSE(); err != nil {
		return "", err
	}
	return mountPoint, sys.checkAllowOther(c.AllowOther)
}

// answerBound is how long a mount that is already there may take to answer. A hung one must not hang us.
const answerBound = 5 * time.Second

func (sys system) checkMountPoint(path string, nonEmpty bool) (string, error) {
	path = realPath(path)
	entry, mounted, err := sys.mountedAt(path)
	if err != nil {
		return "", sys.tableError(err)
	}
	if mounted {
		if err := answersWithin(path, answerBound); isDead(err) {
			return "", fmt.Errorf("mount point %s is a dead mount, left by a daemon that was killed: run blobmount unmount %s", path, path)
		}
		return "", fmt.Errorf("mount point %s is already mounted (%s from %s): unmount it first, or use another directory",
			path, entry.Type, entry.Source)
	}

	info, err := os.Stat(path)
	switch {
	case isDead(err):
		return "", fmt.Errorf("mount point %s lies in a dead mount: unmount that first", path)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("mount point %s does not exist: run mkdir -p %s", path, path)
	case err != nil:
		return "", fmt.Errorf("cannot use mount point %s: %w", path, plain(err))
	case !info.IsDir():
		return "", fmt.Errorf("mount point %s is not a directory: use a directory", path)
	}
	if nonEmpty {
		return path, nil
	}
	d, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot look into mount point %s: %w", path, plain(err))
	}
	defer d.Close()
	if _, err := d.Readdirnames(1); err == nil {
		return "", fmt.Errorf("mount point %s is not empty: use an empty directory, or --nonempty to hide what is in it", path)
	} else if !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("cannot look into mount point %s: %w", path, plain(err))
	}
	return path, nil
}

// answersWithin asks a mount something that its daemon has to answer: attributes may be known to the kernel long
// after the daemon is gone. It gives up after a while with os.ErrDeadlineExceeded. The call itself cannot be
// interrupted: its goroutine ends when the kernel answers.
func answersWithin(path string, d time.Duration) error {
	done := make(chan error, 1)
	go func() {
		var st syscall.Statfs_t
		done <- syscall.Statfs(path, &st)
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return os.ErrDeadlineExceeded
	}
}

func (sys system) checkFUSE() error {
	f, err := os.OpenFile(sys.fuseDevice, os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist: run modprobe fuse, or start the container with --device /dev/fuse --cap-add SYS_ADMIN", sys.fuseDevice)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("the kernel has no FUSE (%s: %w): run modprobe fuse", sys.fuseDevice, plain(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be opened: run chmod 666 %s as root, or start the container with --device /dev/fuse", sys.fuseDevice, sys.fuseDevice)
	default:
		return fmt.Errorf("cannot open %s: %w", sys.fuseDevice, plain(err))
	}
	if sys.euid == 0 {
		return nil
	}
	if _, err := sys.findHelper(); err != nil {
		return errors.New("fusermount3 was not found, and only root can mount without it: install the package fuse3")
	}
	return nil
}

// checkAllowOther looks for the line that fusermount3 wants before it lets a user show a mount to others.
func (sys system) checkAllowOther(allowOther bool) error {
	if !allowOther || sys.euid == 0 {
		return nil
	}
	f, err := os.Open(sys.fuseConf)
	if err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if strings.TrimSpace(s.Text()) == "user_allow_other" {
				return nil
			}
		}
	}
	return fmt.Errorf("--allow-other is only for root unless %s has the line user_allow_other: add it as root, or leave the flag out", sys.fuseConf)
}
