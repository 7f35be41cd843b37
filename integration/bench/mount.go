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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/integration/blobserver"
)

// mount is a running daemon.
type mount struct {
	dir   string // the mount point
	cache string
	log   string        // file with the daemon's warnings
	ready time.Duration // from the start of the process until the mount answered
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has
	err   error         // of its end, readable after ended
}

// Bounds of waiting for another process, which has no event to wait for.
const (
	startBound = 20 * time.Second
	endBound   = 30 * time.Second
	pollEvery  = time.Millisecond
)

// mount mounts the container of a service with a cache directory of its own, or a given one.
func (l *lab) mount(ctx context.Context, connection, cache string, flags ...string) (*mount, error) {
	var err error
	if cache == "" {
		if cache, err = l.newDir("cache"); err != nil {
			return nil, err
		}
	}
	top, err := l.newDir("mount")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(top, "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	// Before top is removed with all that is in it: what is still mounted fails here.
	l.later(func() error { return os.Remove(dir) })
	var before unix.Stat_t
	if err := unix.Stat(dir, &before); err != nil {
		return nil, err
	}
	args := append([]string{"--foreground", "--log-level=warn", "--cache-dir", cache}, flags...)
	m := &mount{dir: dir, cache: cache, log: filepath.Join(top, "log"), ended: make(chan struct{})}
	m.cmd = exec.Command(filepath.Join(l.dir, "blobmount"), append(args, "az://"+container, dir)...)
	m.cmd.Env = append(os.Environ(), "AZURE_STORAGE_CONNECTION_STRING="+connection)
	log, err := os.Create(m.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m.cmd.Stderr = log
	begin := time.Now()
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.ended)
	}()
	l.later(m.close)
	for time.Since(begin) < startBound {
		var now unix.Stat_t
		if err := unix.Stat(dir, &now); err == nil && now.Dev != before.Dev {
			m.ready = time.Since(begin)
			return m, nil
		}
		select {
		case <-m.ended:
			return nil, m.failed("ended", m.err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pollEvery):
		}
	}
	return nil, m.failed("did not mount", fmt.Errorf("waited %v", startBound))
}

// failed returns an error with the end of the daemon's log.
func (m *mount) failed(what string, err error) error {
	text, _ := os.ReadFile(m.log) // without it the error is still true
	text = bytes.TrimSpace(text)
	text = text[max(0, len(text)-2000):]
	return fmt.Errorf("blobmount %s %s: %w\n%s", strings.Join(m.cmd.Args[1:], " "), what, err, text)
}

// close unmounts and waits for the daemon. Calling it again does nothing.
func (m *mount) close() error {
	select {
	case <-m.ended:
		_ = unix.Unmount(m.dir, unix.MNT_DETACH) // only of a daemon that crashed
		return nil
	default:
	}
	_ = m.cmd.Process.Signal(unix.SIGTERM) // fails when it ends just now
	select {
	case <-m.ended:
		if m.err != nil {
			return m.failed("ended", m.err)
		}
		return nil
	case <-time.After(endBound):
		_ = m.cmd.Process.Kill()
		_ = unix.Unmount(m.dir, unix.MNT_DETACH) // the directory can be removed then
		<-m.ended
		return m.failed("did not end", fmt.Errorf("killed %v after SIGTERM", endBound))
	}
}

// files returns the files of a set below the mount.
func (m *mount) files(d blobserver.Synthetic) []file {
	files := make([]file, d.Count)
	for i := range files {
		files[i] = file{Path: filepath.Join(m.dir, d.Name(i)), Name: d.Name(i), Size: d.Size}
	}
	return files
}

// usage is what the daemon has used since its start.
type usage struct {
	rss int64         // peak, bytes
	cpu time.Duration // user and system
}

func (m *mount) usage() (u usage, err error) {
	proc := filepath.Join("/proc", strconv.Itoa(m.cmd.Process.Pid))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return u, err
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	fields := strings.Fields(string(rest))
	if len(fields) < 2 || fields[1] != "kB" {
		return u, errors.New("no VmHWM of the daemon")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return u, err
	}
	u.rss = kib << 10
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	// proc_pid_stat(5): after the name in parentheses, utime and stime are the 12th and 13th field.
	fields = strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return u, errors.New("unknown form of /proc/PID/stat")
	}
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every architecture that Go has
	}
	return u, nil
}
