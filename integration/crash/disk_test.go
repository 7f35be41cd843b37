package crash

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

func newDisk(t *testing.T) (*Disk, func(name string) string) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and /dev/fuse: %v", err)
	}
	at := t.TempDir()
	d, err := NewDisk(t.TempDir(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, func(name string) string { return filepath.Join(at, name) }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes a file, and syncs it if asked to.
func write(t *testing.T, path, content string, synced bool) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	must(t, err)
	_, err = f.WriteString(content)
	must(t, err)
	if synced {
		must(t, f.Sync())
	}
	must(t, f.Close())
}

func syncDir(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

// What was synced is there after every power cut; what was not is lost in some of them.
func TestPowerCut(t *testing.T) {
	d, path := newDisk(t)
	random := rand.New(rand.NewPCG(1, 2))
	old, fresh := strings.Repeat("o", 20000), strings.Repeat("n", 30000)
	outcomes := map[string]int{}
	const rounds = 40
	for range rounds {
		must(t, os.MkdirAll(path("dir"), 0o755))
		write(t, path("kept"), old, true)
		write(t, path("changed"), old, true)
		write(t, path("moving"), old, true)
		write(t, path("removed"), old, true)
		must(t, os.RemoveAll(path("dir/moved")))
		syncDir(t, path("dir"))
		syncDir(t, path("."))
		write(t, path("changed"), fresh, false)
		write(t, path("new"), old, true)
		must(t, os.Remove(path("removed")))
		must(t, os.Rename(path("moving"), path("dir/moved")))
		must(t, d.PowerCut(random))

		if b, err := os.ReadFile(path("kept")); err != nil || string(b) != old {
			t.Fatalf("what was synced: %d bytes, %v", len(b), err)
		}
		b, err := os.ReadFile(path("changed"))
		must(t, err)
		switch {
		case string(b) == old:
			outcomes["not changed"]++
		case string(b) == fresh:
			outcomes["changed"]++
		case bytes.ContainsRune(b, 0):
			outcomes["zeros"]++
		default:
			outcomes["cut"]++
		}
		there := func(name, what string) bool {
			_, err := os.Stat(path(name))
			if err == nil {
				outcomes[what]++
			} else {
				outcomes["not "+what]++
			}
			return err == nil
		}
		there("new", "created")
		there("removed", "back")
		if there("moving", "moved back") == there("dir/moved", "moved") {
			t.Fatal("a rename was torn")
		}
		must(t, os.RemoveAll(path("new")))
	}
	for _, what := range []string{"not changed", "changed", "zeros", "cut", "created", "not created", "back", "not back", "moved", "not moved"} {
		if outcomes[what] == 0 {
			t.Errorf("never in %d power cuts: %s (%v)", rounds, what, outcomes)
		}
	}
}

// After Sync nothing is lost.
func TestDiskSync(t *testing.T) {
	d, path := newDisk(t)
	must(t, os.Mkdir(path("dir"), 0o755))
	write(t, path("dir/file"), "content", false)
	must(t, d.Sync())
	for i := range uint64(10) {
		must(t, d.PowerCut(rand.New(rand.NewPCG(i, 0))))
		if b, err := os.ReadFile(path("dir/file")); err != nil || string(b) != "content" {
			t.Fatalf("found %q, %v", b, err)
		}
	}
}

// The disk is one: links, holes, attributes, mappings and locks work as a cache needs them.
func TestDiskWorks(t *testing.T) {
	d, path := newDisk(t)
	write(t, path("file"), "content", false)
	must(t, os.Link(path("file"), path("link")))
	must(t, unix.Setxattr(path("file"), "user.test", []byte("value"), 0))
	syncDir(t, path("."))
	f, err := os.OpenFile(path("link"), os.O_RDWR, 0)
	must(t, err)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	must(t, f.Truncate(8192))
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	mapping, err := mounttest.Map(f, 0, 8192, true)
	must(t, err)
	must(t, mapping.Write([]byte("mapped"), 0))
	must(t, f.Sync())
	must(t, mapping.Close())
	must(t, f.Close())
	must(t, d.PowerCut(rand.New(rand.NewPCG(3, 4))))
	b, err := os.ReadFile(path("file"))
	must(t, err)
	if want := append([]byte("mapped"), make([]byte, 8186)...); !bytes.Equal(b, want) {
		t.Errorf("found %d bytes: %.20q", len(b), b)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(path("link"), "user.test", value); err != nil || string(value[:n]) != "value" {
		t.Errorf("attribute %q, %v", value[:max(0, n)], err)
	}
	var one, other unix.Stat_t
	must(t, unix.Stat(path("file"), &one))
	must(t, unix.Stat(path("link"), &other))
	if one.Ino != other.Ino || one.Nlink != 2 {
		t.Errorf("two names of one file are %d and %d with %d links", one.Ino, other.Ino, one.Nlink)
	}
}
