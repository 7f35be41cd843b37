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
	disableCoreDumps()
	os.Exit(run(context.Background(), p))
}

// disableCoreDumps keeps keys and tokens out of crash dumps. A limit of 1 byte, not 0, because the kernel gives
// dumps that go to a program (kernel.core_pattern with '|') to it whatever the limit is, unless it is 1
// (core(5), fs/coredump.c). PR_SET_DUMPABLE is not used: it takes /proc/self/fd away from users other than root,
// by which the cache publishes its files.
func disableCoreDumps() {
	// It can only fail where the hard limit is already 0: then there are no dumps to files.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1, Max: 1})
}
