package blobcache

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A block that is written out stays in the page cache, as do those near it; what lies Config.Pages behind is let go of once
// it is on the disk.
func TestWriteOut(t *testing.T) {
	var st unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &st); err != nil || st.Type == unix.TMPFS_MAGIC || st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Skip("the directory for tests lies in memory, or on a file system that keeps pages elsewhere")
	}
	const n, blocks = 1 << 20, 5
	file, err := os.Create(filepath.Join(t.TempDir(), "staging"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for range blocks { // at once they would be one folio, which the kernel drops as a whole or not at all
		if _, err := file.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	c := &Cache{pages: 2 * n}
	for i := range int64(blocks - 1) {
		c.writeOut(file, i*n, n)
		c.background.Wait()
	}
	m, err := unix.Mmap(int(file.Fd()), 0, blocks*n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unmap(m)
	for i, want := range []bool{false, false, true, true, true} { // 4 blocks were written out, and 2 of them stay
		if got := resident(m[i*n:(i+1)*n], int64(os.Getpagesize())); got != want {
			t.Errorf("block %d is in the page cache: %v, want %v", i, got, want)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	c.writeOut(file, 0, n) // it was saved meanwhile
	c.background.Wait()
	if !c.writingOut.TryLock() {
		t.Error("nothing is written out any more")
	}
}
