package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyEnv tells the background process the descriptor of its pipe to the process that the user started.
const readyEnv = "_BLOBMOUNT_READY_FD"

// readyFD is that descriptor: the first one after the standard three.
const readyFD = 3

// secretEnv and secretFD are the same for the pipe with the SAS of the source.
const (
	secretEnv = "_BLOBMOUNT_SECRET_FD"
	secretFD  = 4
)

// outcome is what the background process writes to the pipe, once.
type outcome struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

// inheritedFile returns the pipe that a background process was given, by the variable that tells of it; nil in others.
func inheritedFile(env string, fd int) *os.File {
	if os.Getenv(env) == "" {
		return nil
	}
	// Neither is for the programs that this process starts, such as fusermount3.
	os.Unsetenv(env)
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), env)
}

// report tells the outcome. It does nothing when it was told already.
func report(pipe *os.File, status int, err error) {
	o := outcome{Status: status}
	if err != nil {
		o.Error = oneLine(err.Error())
	}
	_ = json.NewEncoder(pipe).Encode(o) // fails when closed, or when the other process was killed
	pipe.Close()
}

// spawn starts this program again in the background, with the same arguments and environment, and returns when
// the mount can be used or has failed.
//
// The new process stays in the session and process group of this one: the kernel takes a daemon of another group
// for a visitor of the automounter that started it, and would wait for the mount that it is about to make.
// So it ignores SIGHUP instead.
func (m *mountCommand) spawn(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program to start it in the background: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// What a shell left open (a lock, a pipe of make) must not stay open as long as the mount lives.
	// Before Linux 5.11 there is no such call, and such descriptors are passed on.
	_ = unix.CloseRange(readyFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)

	env := slices.DeleteFunc(slices.Clone(m.environ), func(s string) bool {
		return strings.HasPrefix(s, readyEnv+"=") || strings.HasPrefix(s, secretEnv+"=")
	})
	cmd := &exec.Cmd{
		Path: exe, Args: m.args, Env: append(env, fmt.Sprintf("%s=%d", readyEnv, readyFD)),
		// Standard error stays until the mount is there, for a crash before that.
		Stdin: null, Stdout: null, Stderr: m.stderr,
		ExtraFiles: []*os.File{w},
	}
	if m.config.Source.HasSAS {
		secret, err := pipeWith(m.config.Source.SAS.Reveal())
		if err != nil {
			w.Close()
			return err
		}
		defer secret.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, secret)
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", secretEnv, secretFD))
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the background process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	told := make(chan struct{})
	defer close(told)
	go func() {
		for {
			select {
			case s := <-m.signals: // of a terminal both processes get it, of kill(1) only this one
				_ = cmd.Process.Signal(s)
			case <-told:
				return
			}
		}
	}()

	var o outcome
	if err := json.NewDecoder(io.LimitReader(r, 64<<10)).Decode(&o); err != nil {
		werr := cmd.Wait()
		if werr == nil {
			werr = errors.New("without saying why")
		}
		return fmt.Errorf("the background process ended before the mount was there: %w", werr)
	}
	if o.Status == exitOK {
		return cmd.Process.Release()
	}
	_ = cmd.Wait() // its outcome is known
	return &statusError{o.Status, errors.New(o.Error)}
}

// becomeDaemon lets go of what the process that the user started has open: working directory and terminal.
func becomeDaemon() error {
	signal.Ignore(syscall.SIGHUP)
	return os.Chdir("/")
}

// detachStderr makes a crash of the daemon write to its log, and frees the terminal or pipe of the process that
// the user started.
func detachStderr(log *os.File) error {
	return syscall.Dup3(int(log.Fd()), int(os.Stderr.Fd()), 0)
}
