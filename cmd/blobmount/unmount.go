package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// umountNoFollow is UMOUNT_NOFOLLOW of umount2(2), which package syscall does not have.
const umountNoFollow = 0x8

// The special values of unmountCommand.timeout.
const (
	forEver secondsValue = -1 // as secondsValue has it
	byMount secondsValue = -2 // not given: what the mount says, and graceTime
)

// graceTime is for what a daemon does beside sending: closing connections and files.
const graceTime = 30 * time.Second

// unmountCommand is `blobmount unmount`.
type unmountCommand struct {
	process
	lazy, help bool
	timeout    secondsValue
}

const unmountUsage = `blobmount unmount [flags] MOUNTPOINT

Unmounts, and returns when the daemon has sent everything and ended. It also removes a dead mount, whose daemon
was killed. Exit status: 0 done; 1 the arguments are wrong; 32 not unmounted, or the daemon did not end, or it
ended before everything was sent (--drain-timeout of the mount): then the message names what is left.

`

func (c *unmountCommand) run(ctx context.Context, args []string) error {
	f := pflag.NewFlagSet("unmount", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	c.timeout = byMount
	f.BoolVarP(&c.lazy, "lazy", "l", false, "take the mount away from its path at once, and leave open files to their users; does not wait")
	f.Var(&c.timeout, "timeout", "how long to wait for the daemon to end once the mount is gone; or none (default: the mount's --drain-timeout and 30 s)")
	f.Lookup("timeout").DefValue = ""
	f.BoolVarP(&c.help, "help", "h", false, "show this text")
	if err := f.Parse(args); err != nil {
		return &usageError{flagError(err, f)}
	}
	if c.help {
		_, err := fmt.Fprint(c.stdout, unmountUsage+f.FlagUsagesWrapped(110))
		return err
	}
	if f.NArg() != 1 || f.Arg(0) == "" {
		return usagef("unmount takes one MOUNTPOINT: blobmount unmount [--lazy] MOUNTPOINT")
	}
	path, err := filepath.Abs(f.Arg(0))
	if err != nil {
		return usagef("the working directory is not there any more: use an absolute path")
	}
	return c.unmount(ctx, path)
}

func (c *unmountCommand) unmount(ctx context.Context, path string) error {
	path, entry, err := c.system.findMount(path)
	switch {
	case err != nil:
		return err
	case entry.Type != "fuse."+fsType:
		return fmt.Errorf("%s is not a blobmount mount but %s from %s: use umount", path, entry.Type, entry.Source)
	}

	// Before the mount goes: a number of a device is used again afterwards.
	owner, err := strconv.Atoi(entry.User)
	if err != nil {
		owner = c.system.euid
	}
	waitFor := ofMountPoint(daemons(lockDirs(owner), entry.Device), path)
	defer func() {
		for _, f := range waitFor {
			f.Close()
		}
	}()
	if err := c.system.detach(path, c.lazy); err != nil {
		return err
	}
	if c.lazy {
		return nil
	}
	for _, f := range waitFor {
		if err := c.wait(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for one daemon to end.
func (c *unmountCommand) wait(ctx context.Context, f *os.File) error {
	info := readDaemonInfo(f)
	if c.timeout != forEver {
		bound := time.Duration(c.timeout)
		if c.timeout == byMount {
			bound = info.DrainTimeout + graceTime
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	done := make(chan error, 1)
	go func() { done <- waitForEnd(f) }()
	select {
	case err := <-done:
		_ = os.Remove(f.Name()) // left by a daemon that was killed; others remove it themselves
		if info := readDaemonInfo(f); err == nil && info.Left != nil {
			return errors.New("unmounted, but " + info.Left.text(info.Source, info.CacheDir))
		}
		return err
	case s := <-c.signals:
		return &statusError{exitInterrupt, fmt.Errorf("unmounted, but %v came before the daemon (process %d) had ended", s, info.PID)}
	case <-ctx.Done():
		return fmt.Errorf("unmounted, but the daemon (process %d) has not ended: it is still writing, or the mount is in use in another "+
			"mount namespace: see its log", info.PID)
	}
}

// detach unmounts a path: root by umount2(2), others by fusermount3. A lazy one takes the mount out of the tree at
// once, and the kernel ends it when nobody uses it any more. The error is EBUSY when the mount is in use.
func (sys system) detach(path string, lazy bool) error {
	if sys.euid == 0 {
		flags := umountNoFollow
		if lazy {
			flags |= syscall.MNT_DETACH
		}
		switch err := syscall.Unmount(path, flags); {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EBUSY):
			return fmt.Errorf("%s is in use (%w): end the programs that use it (fuser -vm %s lists them), or use --lazy", path, err, path)
		case errors.Is(err, syscall.EPERM):
			return fmt.Errorf("cannot unmount %s: %w: a container needs --cap-add SYS_ADMIN", path, err)
		default:
			return fmt.Errorf("cannot unmount %s: %w", path, err)
		}
	}
	helper, err := sys.findHelper()
	if err != nil {
		return errors.New("fusermount3 was not found, and only root can unmount without it: install the package fuse3")
	}
	args := []string{"-u", path}
	if lazy {
		args = []string{"-u", "-z", path}
	}
	cmd := exec.Command(helper, args...)
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		// It does not tell in its exit status why it failed.
		text := oneLine(out.String())
		if text == "" {
			text = err.Error()
		}
		return fmt.Errorf("cannot unmount %s (%s): when it is in use, end the programs that use it (fuser -vm %s lists them), or use --lazy",
			path, text, path)
	}
	return nil
}
