package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
)

// Exit statuses, as mount(8) defines them.
const (
	exitOK        = 0
	exitUsage     = 1  // the arguments are wrong
	exitInterrupt = 8  // a signal came before the mount was there
	exitFailure   = 32 // the mount or unmount failed
)

// process is what a command has of the outside world, so that tests can run commands in their own process.
type process struct {
	args           []string // with the program's name
	environ        []string // for the background process
	lookupEnv      func(name string) (string, bool)
	stdout, stderr io.Writer
	signals        <-chan os.Signal // SIGTERM and SIGINT
	system         system
	uid, gid       int
	// ready is set in the background process: the pipe to the process that the user started.
	ready *os.File
	// secret is set there too when the source has a SAS: a pipe with it.
	secret *os.File
	// hide takes the query of a URL away from where others can see the arguments of this process. It is nil in tests.
	hide func(argument string)
	// coreDumps lets crashes of the process write its memory to the disk, or keeps them from it. Nil does nothing.
	coreDumps func(allowed bool)
}

// run runs one command and returns its exit status. A failure is one line on standard error; in the background
// process it goes to the process that the user started, which prints it.
func run(ctx context.Context, p process) int {
	err := command(ctx, p)
	status := exitStatus(err)
	if p.ready != nil {
		// When the mount was announced the pipe is closed and nobody listens: the log has the error.
		report(p.ready, status, err)
		return status
	}
	if err != nil {
		fmt.Fprintf(p.stderr, "blobmount: %s\n", oneLine(err.Error()))
	}
	return status
}

func command(ctx context.Context, p process) error {
	if p.coreDumps == nil {
		p.coreDumps = func(bool) {}
	}
	p.coreDumps(false)
	name, args := "blobmount", p.args
	if len(args) > 0 {
		name, args = filepath.Base(args[0]), args[1:]
	}
	if !strings.HasPrefix(name, "mount.") && len(args) > 0 {
		switch args[0] {
		case "unmount", "umount":
			c := unmountCommand{process: p}
			return c.run(ctx, args[1:])
		case "status":
			c := statusCommand{process: p}
			return c.run(ctx, args[1:])
		case "recover":
			c := recoverCommand{process: p}
			return c.run(ctx, args[1:])
		case "version":
			if len(args) > 1 {
				return usagef("version takes no arguments")
			}
			return printVersion(p.stdout)
		}
	}
	m := mountCommand{process: p}
	flags := newFlags(&m.config, p.uid, p.gid)
	parse := parseConfig
	if strings.HasPrefix(name, "mount.") {
		parse = parseHelper
	}
	if err := parse(args, &m.config, flags); err != nil {
		return err
	}
	if err := m.takeSAS(); err != nil {
		return err
	}
	switch {
	case m.config.help:
		_, err := io.WriteString(p.stdout, usage(flags))
		return err
	case m.config.version:
		return printVersion(p.stdout)
	}
	if m.config.CoreDumps {
		p.coreDumps(true)
	}
	return m.run(ctx)
}

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func exitStatus(err error) int {
	var withStatus *statusError
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &withStatus):
		return withStatus.status
	case errors.As(err, &usage):
		return exitUsage
	default:
		return exitFailure
	}
}

// oneLine joins the lines of a text, so that a message stays one line whatever a library put into an error.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version string

// versionText returns the version: the linker's, else that of the module, else the revision of the checkout.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	return "devel-" + revision + dirty
}

func printVersion(w io.Writer) error {
	_, err := fmt.Fprintf(w, "blobmount %s (%s %s/%s)\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
