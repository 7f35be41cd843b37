package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fakeSystem is a machine on which everything is as it should be, for a user with this id.
func fakeSystem(t *testing.T, euid int) system {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"mountinfo", "fuse", "fuse.conf"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return system{
		euid: euid, mountInfo: filepath.Join(dir, "mountinfo"), fuseDevice: filepath.Join(dir, "fuse"), fuseConf: filepath.Join(dir, "fuse.conf"),
		findHelper: func() (string, error) { return "/bin/true", nil },
	}
}

func addMount(t *testing.T, sys system, path, fsType, source string) {
	t.Helper()
	f, err := os.OpenFile(sys.mountInfo, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "36 35 0:57 / %s rw,noatime shared:1 master:2 - %s %s rw,user_id=1000,group_id=0\n", path, fsType, source)
}

func TestParseMountInfo(t *testing.T) {
	in := `22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
36 35 98:0 /mnt1 /mnt\040two\134x rw,noatime master:1 - ext3 /dev/root rw,errors=continue
40 22 0:57 / /data ro,nosuid - fuse.blobmount az://data/a\040b rw,user_id=1000,group_id=7,allow_other
short line
`
	got, err := parseMountInfo(strings.NewReader(in))
	want := []mountEntry{
		{"0:21", "/proc", "proc", "proc", ""},
		{"98:0", `/mnt two\x`, "ext3", "/dev/root", ""},
		{"0:57", "/data", "fuse.blobmount", "az://data/a b", "1000"},
	}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
	for in, want := range map[string]string{`a\040b`: "a b", `\134040`: `\040`, `a\04`: `a\04`, `a\9990`: `a\9990`, `\`: `\`} {
		if got := unescape(in); got != want {
			t.Errorf("%q gives %q", in, got)
		}
	}
}

// The table of the issue, "Bad input": each with what to do.
func TestCheckMachine(t *testing.T) {
	tests := []struct {
		name   string
		euid   int
		change func(t *testing.T, sys *system, c *Config)
		want   string // empty: all is well
	}{
		{"good", 0, func(*testing.T, *system, *Config) {}, ""},
		{"good for a user", 1000, func(*testing.T, *system, *Config) {}, ""},
		{"not there", 0, func(t *testing.T, _ *system, c *Config) { c.MountPoint += "/not/there" }, "does not exist: run mkdir -p"},
		{"a file", 0, func(t *testing.T, _ *system, c *Config) {
			c.MountPoint += "/file"
			write(t, c.MountPoint, "")
		}, "is not a directory"},
		{"below a file", 0, func(t *testing.T, _ *system, c *Config) {
			c.MountPoint += "/file/x"
			write(t, filepath.Dir(c.MountPoint), "")
		}, "not a directory"},
		{"not empty", 0, func(t *testing.T, _ *system, c *Config) { write(t, c.MountPoint+"/file", "") }, "is not empty: use an empty directory, or --nonempty"},
		{"not empty, and wanted", 0, func(t *testing.T, _ *system, c *Config) {
			write(t, c.MountPoint+"/file", "")
			c.NonEmpty = true
		}, ""},
		{"mounted", 0, func(t *testing.T, sys *system, c *Config) {
			addMount(t, *sys, c.MountPoint, "fuse.blobmount", "az://data")
		},
			"is already mounted (fuse.blobmount from az://data)"},
		{"mounted, and not empty is wanted", 0, func(t *testing.T, sys *system, c *Config) {
			addMount(t, *sys, c.MountPoint, "tmpfs", "tmpfs")
			c.NonEmpty = true
		}, "is already mounted (tmpfs from tmpfs)"},
		{"mounted, by way of a link", 0, func(t *testing.T, sys *system, c *Config) {
			addMount(t, *sys, c.MountPoint, "tmpfs", "tmpfs")
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(c.MountPoint, link); err != nil {
				t.Fatal(err)
			}
			c.MountPoint = link
		}, "is already mounted"},
		{"another path is mounted", 0, func(t *testing.T, sys *system, c *Config) { addMount(t, *sys, c.MountPoint+"2", "tmpfs", "tmpfs") }, ""},
		{"automounter", 0, func(t *testing.T, sys *system, c *Config) { addMount(t, *sys, c.MountPoint, "autofs", "systemd-1") }, ""},
		{"no mount table", 0, func(t *testing.T, sys *system, c *Config) { sys.mountInfo += "x" }, "cannot read the mount table"},
		{"no FUSE device", 0, func(t *testing.T, sys *system, c *Config) { sys.fuseDevice += "x" }, "run modprobe fuse, or start the container with --device /dev/fuse"},
		{"user without helper", 1000, func(t *testing.T, sys *system, c *Config) {
			sys.findHelper = func() (string, error) { return "", os.ErrNotExist }
		}, "install the package fuse3"},
		{"root without helper", 0, func(t *testing.T, sys *system, c *Config) {
			sys.findHelper = func() (string, error) { return "", os.ErrNotExist }
		}, ""},
		{"allow_other by root", 0, func(t *testing.T, sys *system, c *Config) { c.AllowOther = true }, ""},
		{"allow_other by a user", 1000, func(t *testing.T, sys *system, c *Config) { c.AllowOther = true }, "has the line user_allow_other"},
		{"allow_other by a user, commented", 1000, func(t *testing.T, sys *system, c *Config) {
			c.AllowOther = true
			write(t, sys.fuseConf, "#user_allow_other\n")
		}, "has the line user_allow_other"},
		{"allow_other by a user, allowed", 1000, func(t *testing.T, sys *system, c *Config) {
			c.AllowOther = true
			write(t, sys.fuseConf, "# x\n user_allow_other \n")
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys, c := fakeSystem(t, tt.euid), Config{MountPoint: t.TempDir()}
			tt.change(t, &sys, &c)
			got, err := sys.checkMachine(&c)
			if tt.want == "" {
				if err != nil || got == "" {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUnmountRefuses(t *testing.T) {
	sys := fakeSystem(t, 0)
	addMount(t, sys, "/some/tmpfs", "tmpfs", "none")
	for _, tt := range []struct {
		args   []string
		want   string
		status int
	}{
		{nil, "unmount takes one MOUNTPOINT", exitUsage},
		{[]string{"a", "b"}, "unmount takes one MOUNTPOINT", exitUsage},
		{[]string{"--lasy", "a"}, "unknown flag --lasy: did you mean --lazy?", exitUsage},
		{[]string{"--timeout=x", "a"}, "--timeout must be a number of seconds", exitUsage},
		{[]string{"/not/mounted"}, "/not/mounted is not mounted", exitFailure},
		{[]string{"/some/tmpfs"}, "/some/tmpfs is not a blobmount mount but tmpfs from none: use umount", exitFailure},
	} {
		c := unmountCommand{process: process{system: sys}}
		err := c.run(t.Context(), tt.args)
		if err == nil || !strings.Contains(err.Error(), tt.want) || exitStatus(err) != tt.status {
			t.Errorf("%q: error is %v, status %d", tt.args, err, exitStatus(err))
		}
	}
}

func TestDaemonLock(t *testing.T) {
	bad, dir := filepath.Join(t.TempDir(), "bad"), filepath.Join(t.TempDir(), "good")
	if err := errors.Join(os.Mkdir(bad, 0o700), os.Chmod(bad, 0o777)); err != nil {
		t.Fatal(err)
	}
	info := daemonInfo{PID: 42, MountPoint: "/mnt", Source: "az://data"}
	dirs := []string{"/proc/not/there", bad, dir} // neither the first nor the second can be used
	lock, err := lockDaemon(dirs, os.Geteuid(), "0:57", info)
	if err != nil {
		t.Fatal(err)
	}
	files := daemons(dirs, "0:57")
	if len(files) != 1 || readDaemonInfo(files[0]) != info || len(daemons(dirs, "0:5")) != 0 {
		t.Fatalf("%d files", len(files))
	}
	defer files[0].Close()
	if err := syscall.Flock(int(files[0].Fd()), syscall.LOCK_SH|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("the file is not locked: %v", err)
	}
	ended := make(chan error)
	go func() { ended <- waitForEnd(files[0]) }()
	lock.release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(daemons(dirs, "0:57")) != 0 {
		t.Error("the file is still there")
	}
	stale := filepath.Join(dir, "0:57-41.lock")
	write(t, stale, "")
	if lock, err = lockDaemon([]string{dir}, os.Geteuid(), "0:57", info); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a daemon that is gone: %v", err)
	}
	removeStale(dir, "0:57")
	if len(daemons(dirs, "0:57")) != 1 {
		t.Error("a file that is locked was removed")
	}
	lock.release()
	if _, err := lockDaemon([]string{bad}, os.Geteuid(), "0:57", info); err == nil {
		t.Error("a directory that everybody can write to was used")
	}
}

// TestDaemonOfMountPoint: the number of a device is used again while the daemon that had it before still writes.
func TestDaemonOfMountPoint(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "locks")}
	for i, path := range []string{"/before", "/mnt"} {
		lock, err := lockDaemon(dirs, os.Geteuid(), "0:57", daemonInfo{PID: 50 + i, MountPoint: path})
		if err != nil {
			t.Fatal(err)
		}
		defer lock.release()
	}
	for path, want := range map[string]int{"/mnt": 1, "/before": 1, "/seen/elsewhere": 2} {
		files := ofMountPoint(daemons(dirs, "0:57"), path)
		if len(files) != want || want == 1 && readDaemonInfo(files[0]).MountPoint != path {
			t.Errorf("%d daemons for %s, want %d", len(files), path, want)
		}
		for _, f := range files {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestEscapePath(t *testing.T) {
	for in, want := range map[string]string{"/mnt/data": "mnt-data", "/mnt/my-data/": `mnt-my\x2ddata`, "/": "-"} {
		if got := escapePath(in); got != want {
			t.Errorf("%s gives %s", in, got)
		}
	}
	a, b := escapePath("/"+strings.Repeat("a", 300)), escapePath("/"+strings.Repeat("a", 301))
	if len(a) > 250 || a == b {
		t.Errorf("%q %q", a, b)
	}
}
