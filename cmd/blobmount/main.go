// Command blobmount mounts a container of Azure Blob Storage as a directory.
//
// It is also a mount helper: under a name that begins with "mount." it takes the arguments that mount(8) gives to
// /sbin/mount.TYPE. Run it with --help for its flags; exit statuses are those of mount(8).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	p := process{
		args:      os.Args,
		environ:   os.Environ(),
		lookupEnv: os.LookupEnv,
		stdout:    os.Stdout,
		stderr:    os.Stderr,
		system:    realSystem(),
		uid:       os.Getuid(),
		gid:       os.Getgid(),
		hide:      hideArgument,
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	p.signals = signals
	p.ready = inheritedFile(readyEnv, readyFD)
	p.secret = inheritedFile(secretEnv, secretFD)
	p.coreDumps = setCoreDumps
	os.Exit(run(context.Background(), p))
}
