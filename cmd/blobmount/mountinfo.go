package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// mountEntry is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	Device     string // major:minor, unique on the machine while the mount lives
	MountPoint string
	Type       string // such as fuse.blobmount
	Source     string
	User       string // user_id of a FUSE mount
}

// parseMountInfo reads the table, in its order: of several mounts at one path the last is on top.
func parseMountInfo(r io.Reader) ([]mountEntry, error) {
	var entries []mountEntry
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // a line holds all options of an overlay mount, which can be many pages
	for s.Scan() {
		// ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG...] - TYPE SOURCE SUPEROPTIONS
		f := strings.Fields(s.Text())
		dash := 6
		for dash < len(f) && f[dash] != "-" {
			dash++
		}
		if len(f) < 10 || dash+3 >= len(f) {
			continue
		}
		e := mountEntry{Device: f[2], MountPoint: unescape(f[4]), Type: f[dash+1], Source: unescape(f[dash+2])}
		for o := range strings.SplitSeq(f[dash+3], ",") {
			if v, ok := strings.CutPrefix(o, "user_id="); ok {
				e.User = v
			}
		}
		entries = append(entries, e)
	}
	return entries, s.Err()
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && strings.Trim(s[i+1:i+4], "01234567") == "" {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountedAt returns the topmost mount at exactly this path. The one of an automounter does not count: it is where
// the automounter expects the real mount.
func (sys system) mountedAt(path string) (mountEntry, bool, error) {
	entries, err := sys.mounts()
	if err != nil {
		return mountEntry{}, false, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].MountPoint == path && entries[i].Type != "autofs" {
			return entries[i], true, nil
		}
	}
	return mountEntry{}, false, nil
}

// mounts returns the mount table.
func (sys system) mounts() ([]mountEntry, error) {
	f, err := os.Open(sys.mountInfo)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountInfo(f)
}

// tableError is that the mount table cannot be read.
func (sys system) tableError(err error) error {
	return fmt.Errorf("cannot read the mount table %s: %w", sys.mountInfo, plain(err))
}

// findMount returns the mount that a user means by a path, and its path in the table.
func (sys system) findMount(path string) (string, mountEntry, error) {
	entry, mounted, err := sys.mountedAt(path)
	if err == nil && !mounted { // perhaps by way of a symbolic link; asked second, because it touches the mount
		path = realPath(path)
		entry, mounted, err = sys.mountedAt(path)
	}
	switch {
	case err != nil:
		return path, entry, sys.tableError(err)
	case !mounted:
		return path, entry, fmt.Errorf("%s is not mounted", path)
	}
	return path, entry, nil
}

// realPath resolves symbolic links as the kernel's mount table does, also when the path itself is a dead mount.
// A path that is not there is returned as it is.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(parent, filepath.Base(path))
	}
	return path
}

// isDead reports whether an error of a system call on a path says that the daemon of a FUSE mount there is gone.
func isDead(err error) bool { return errors.Is(err, syscall.ENOTCONN) }

// plain drops the operation and the path that package os puts before an error.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
