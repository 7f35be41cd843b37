package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"blobmount/fs"
)

// statusCommand is `blobmount status`.
type statusCommand struct {
	process
	json, help bool
}

const statusUsage = `blobmount status [--json] [MOUNTPOINT]

Shows what a mount does, and which files are not saved in the service yet; without MOUNTPOINT, all mounts of
this machine. Only root and the user who mounted may ask. Exit status: 0 shown, also when files are not saved; 1 the
arguments are wrong; 32 there is no such mount, or it does not answer.

`

// mountStatus is an element of `status --json`. One of Status and Error is there.
type mountStatus struct {
	MountPoint string     `json:"mount_point"`
	Status     *fs.Status `json:"status,omitempty"`
	Error      string     `json:"error,omitempty"`
}

func (c *statusCommand) run(_ context.Context, args []string) error {
	f := pflag.NewFlagSet("status", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	f.BoolVar(&c.json, "json", false, "as JSON: a list of mounts, sizes in bytes")
	f.BoolVarP(&c.help, "help", "h", false, "show this text")
	if err := f.Parse(args); err != nil {
		return &usageError{flagError(err, f)}
	}
	if c.help {
		_, err := fmt.Fprint(c.stdout, statusUsage+f.FlagUsagesWrapped(110))
		return err
	}
	var all []mountStatus
	var err error
	switch {
	case f.NArg() == 0:
		all, err = c.everything()
	case f.NArg() == 1 && f.Arg(0) != "":
		all, err = c.one(f.Arg(0))
	default:
		return usagef("status takes one MOUNTPOINT, or none for all: blobmount status [--json] [MOUNTPOINT]")
	}
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.stdout, all)
	}
	return writeStatus(c.stdout, all, time.Now())
}

// one asks the mount at a path. That it does not answer is an error.
func (c *statusCommand) one(path string) ([]mountStatus, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, usagef("the working directory is not there any more: use an absolute path")
	}
	path, entry, err := c.system.findMount(path)
	if err != nil {
		return nil, err
	}
	if entry.Type != "fuse."+fsType {
		return nil, fmt.Errorf("%s is not a blobmount mount but %s from %s", path, entry.Type, entry.Source)
	}
	s, err := readStatus(path)
	if err != nil {
		return nil, err
	}
	return []mountStatus{{MountPoint: path, Status: &s}}, nil
}

// everything asks all mounts of the mount table. One that does not answer is listed with the reason.
func (c *statusCommand) everything() ([]mountStatus, error) {
	entries, err := c.system.mounts()
	if err != nil {
		return nil, c.system.tableError(err)
	}
	all := []mountStatus{}
	for _, e := range entries {
		if e.Type != "fuse."+fsType {
			continue
		}
		m := mountStatus{MountPoint: e.MountPoint}
		if s, err := readStatus(e.MountPoint); err != nil {
			m.Error = oneLine(err.Error())
		} else {
			m.Status = &s
		}
		all = append(all, m)
	}
	return all, nil
}

// readStatus asks the daemon of a mount. One that hangs must not hang us: the call cannot be interrupted, so its
// goroutine ends when the kernel answers.
func readStatus(path string) (fs.Status, error) {
	type answer struct {
		text []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		buf := make([]byte, fs.MaxStatus)
		n, err := unix.Getxattr(path, fs.StatusAttr, buf)
		done <- answer{buf[:max(n, 0)], err}
	}()
	timer := time.NewTimer(answerBound)
	defer timer.Stop()
	var a answer
	select {
	case a = <-done:
	case <-timer.C:
		a.err = os.ErrDeadlineExceeded
	}
	var s fs.Status
	switch {
	case isDead(a.err):
		return s, fmt.Errorf("%s is a dead mount, left by a daemon that was killed: run blobmount unmount %s", path, path)
	case errors.Is(a.err, os.ErrDeadlineExceeded):
		return s, fmt.Errorf("%s does not answer within %v: see the log of its daemon", path, answerBound)
	case errors.Is(a.err, unix.EACCES), errors.Is(a.err, unix.EPERM):
		return s, fmt.Errorf("only root and the user who mounted %s may see its status", path)
	case errors.Is(a.err, unix.ENODATA), errors.Is(a.err, unix.EOPNOTSUPP):
		return s, fmt.Errorf("the daemon of %s does not tell its status: it is of another version of blobmount", path)
	case a.err != nil:
		return s, fmt.Errorf("cannot ask the daemon of %s: %w", path, a.err)
	}
	if err := json.Unmarshal(a.text, &s); err != nil {
		return s, fmt.Errorf("the daemon of %s tells its status in a form that this version of blobmount cannot read: %w", path, err)
	}
	return s, nil
}
