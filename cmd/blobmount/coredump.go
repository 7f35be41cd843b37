package main

import (
	"os"
	"runtime/debug"
	"syscall"
)

// setCoreDumps lets a crash of this process write an image of its memory, which has keys and tokens in it, or keeps it
// from that.
//
// It is a limit of 1 byte, not 0, because the kernel gives dumps that go to a program (kernel.core_pattern with '|', as
// systemd-coredump and apport have it) to it whatever the limit is, unless it is 1 (core(5), fs/coredump.c). The hard limit
// stays, since it means the right to raise the other one again, and not a dump. PR_SET_DUMPABLE is not used: it gives the
// files in /proc/PID to root, so that other users lose /proc/self/fd, by which the cache publishes its files, and nobody
// but root could look at the process with a debugger any more.
func setCoreDumps(allowed bool) {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_CORE, &limit) != nil {
		return // never: the call is right
	}
	if !allowed {
		limit.Cur = min(1, limit.Max)
		_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &limit) // lowering is always allowed
		return
	}
	limit.Cur = limit.Max
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &limit)
	// The Go runtime ends with status 2 after a crash. With this it dies of SIGABRT, which is what dumps are made of.
	if _, set := os.LookupEnv("GOTRACEBACK"); !set {
		debug.SetTraceback("crash")
	}
}
