package integration

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// refusedByDesign are the tests of posixtest for what a mount does not do: the sentence of SEMANTICS.md that says so,
// and the call that is refused.
var refusedByDesign = map[string]struct {
	promise string
	call    func(dir string) error
	errno   syscall.Errno
}{
	"Link":             {"Hard links: `EPERM`.", link, syscall.EPERM},
	"LinkUnlinkRename": {"Hard links: `EPERM`.", link, syscall.EPERM},
	"Tmpfile":          {"`O_TMPFILE`: `EOPNOTSUPP`", unnamed, syscall.EOPNOTSUPP},
	"XAttrLarge":       {"Names and values in metadata have room for 8,000 bytes together; more is `ENOSPC`.", large, syscall.ENOSPC},
	// It wants two handles of one process to conflict, which fcntl(2) locks never do; go-fuse leaves it out too. Locks of
	// handles (F_OFD_SETLK) do.
	"FcntlFlockLocksFile": {"`flock` and `fcntl` locks hold between programs on one mount, by the kernel.", locked, syscall.EAGAIN},
}

func link(dir string) error {
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		return err
	}
	return os.Link(dir+"/file", dir+"/link")
}

func large(dir string) error {
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		return err
	}
	return unix.Setxattr(dir+"/file", "user.large", make([]byte, 8<<10), 0)
}

func locked(dir string) error {
	a, err := os.Create(dir + "/file")
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Create(dir + "/file")
	if err != nil {
		return err
	}
	defer b.Close()
	if err := unix.FcntlFlock(a.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return err
	}
	return unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
}

func unnamed(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// A mount passes go-fuse's tests of POSIX, but for what SEMANTICS.md refuses. None of them maps a file, so that they can
// run in the process of the service.
func TestMountPosix(t *testing.T) {
	mounttest.Binary(t)
	w := newWorld(t, mounttest.Embedded(t))
	semantics := read(t, "SEMANTICS.md")
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		t.Run(name, func(t *testing.T) {
			dir := w.path(name)
			must(t, os.Mkdir(dir, 0o755))
			if r, ok := refusedByDesign[name]; ok {
				if !strings.Contains(semantics, r.promise) {
					t.Errorf("SEMANTICS.md does not say %q", r.promise)
				}
				if err := r.call(dir); !errors.Is(err, r.errno) {
					t.Errorf("%v, want %v", err, r.errno)
				}
				t.Skip("SEMANTICS.md: " + r.promise)
			}
			if name == "OpenSymlinkRace" && !mounttest.Long() {
				t.Skip("10,000 requests; with " + mounttest.LongVariable)
			}
			t.Cleanup(func() {
				if t.Skipped() {
					t.Error("the test found by itself that this mount cannot do it, and SEMANTICS.md does not say so")
				}
			})
			posixtest.All[name](t, dir)
		})
	}
	for name := range refusedByDesign {
		if posixtest.All[name] == nil {
			t.Errorf("posixtest has no test %s", name)
		}
	}
}
