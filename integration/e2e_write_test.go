package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sys/unix"

	"blobmount/integration/mounttest"
)

// With --leases the second writer fails at its open, on another mount as on another host; readers are not affected.
func testLeases(t *testing.T, s *mounttest.Service) {
	a := newWorld(t, s, "--leases", "--blob-cache-timeout=0")
	p := s.NewPoint(t, a.Container)
	p.Mount("--leases", "--blob-cache-timeout=0")
	b := &world{p, a.Container, t}
	old := noise(3 << 20)
	a.Put("file", old)
	for _, name := range []string{"file", "new"} {
		writer := a.open(name, os.O_CREATE|os.O_WRONLY)
		_, err := os.OpenFile(b.path(name), os.O_WRONLY, 0)
		wantErrno(t, name+": open of the second writer", err, syscall.EBUSY)
		_, err = a.Client.NewBlockBlobClient(name).Upload(t.Context(), streaming.NopCloser(bytes.NewReader(nil)), nil)
		if err == nil {
			t.Errorf("%s: another program could write it", name)
		}
		want := bytes.Clone(old)
		if name == "new" {
			want = nil
		}
		b.read(name, want)
		change := noise(1 << 20)
		_, err = writer.Write(change)
		must(t, err)
		b.read(name, want) // nothing is saved yet
		must(t, writer.Close())
		want = append(change, want[min(len(want), len(change)):]...)
		b.read(name, want)

		second := openUnleased(t, b.path(name))
		_, err = second.Write([]byte("second"))
		must(t, err)
		must(t, second.Close())
		copy(want, "second")
		a.read(name, want)
		a.holds(name, want)
	}
}

// openUnleased opens a file for writing that another mount has closed: the lease is given back when the kernel says that
// the last handle is gone, which it does after close has returned.
func openUnleased(t *testing.T, path string) *os.File {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			return f
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// lseek finds the holes of a file that is being written, and none in one that is saved.
func testSeekHoles(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	f := w.open("sparse", os.O_CREATE|os.O_RDWR)
	want := make([]byte, 30<<20)
	for _, off := range []int{1 << 20, 20 << 20} {
		copy(want[off:], noise(64<<10))
		_, err := f.WriteAt(want[off:off+64<<10], int64(off))
		must(t, err)
	}
	must(t, f.Truncate(int64(len(want))))
	check := func(what string, f *os.File, whence int, from, to int64) {
		t.Helper()
		got, err := unix.Seek(int(f.Fd()), from, whence)
		if to < 0 {
			wantErrno(t, fmt.Sprint(what, " from ", from), err, syscall.ENXIO)
		} else if err != nil || got != to {
			t.Errorf("%s from %d: %d, %v, want %d", what, from, got, err, to)
		}
	}
	check("data", f, unix.SEEK_DATA, 0, 1<<20)
	check("data", f, unix.SEEK_DATA, 1<<20+5, 1<<20+5)
	check("data", f, unix.SEEK_DATA, 1<<20+64<<10, 20<<20)
	check("data", f, unix.SEEK_DATA, 21<<20, -1)
	check("hole", f, unix.SEEK_HOLE, 0, 0)
	check("hole", f, unix.SEEK_HOLE, 1<<20, 1<<20+64<<10)
	check("hole", f, unix.SEEK_HOLE, 20<<20+1, 20<<20+64<<10)
	check("hole", f, unix.SEEK_HOLE, 30<<20, -1)
	must(t, f.Close())
	w.holds("sparse", want)
	w.Remount()
	f = w.open("sparse", os.O_RDONLY)
	check("saved data", f, unix.SEEK_DATA, 5<<20, 5<<20)
	check("saved hole", f, unix.SEEK_HOLE, 0, 30<<20)
	check("saved data", f, unix.SEEK_DATA, 30<<20, -1)
	must(t, f.Close())
	w.read("sparse", want)
}

// A copy within the mount moves no bytes through this machine; what is changed in the copy is not changed in the source.
func testCopyInMount(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	from := noise(20 << 20)
	w.Put("from", from)
	moved := w.counted(s, func() { command(t, "/", nil, "cp", w.path("from"), w.path("to")) })
	if moved.in != 0 || moved.out != 0 || moved.requests["PutBlock"] != 0 || moved.requests["GetBlob"] != 0 {
		t.Errorf("cp moved %+v", moved)
	}
	w.holds("to", from)
	w.read("to", from)

	to := bytes.Clone(from)
	copy(to[11<<20:], "changed")
	f := w.open("to", os.O_WRONLY)
	_, err := f.WriteAt([]byte("changed"), 11<<20)
	must(t, err)
	must(t, f.Close())
	w.holds("to", to)
	w.holds("from", from)

	// Half by the service; the rest is at another offset, so it is read and written, and so is what overwrites both.
	source, parts := w.open("from", os.O_RDONLY), w.open("parts", os.O_CREATE|os.O_RDWR)
	for _, c := range []struct{ from, to, n int64 }{{0, 0, 10 << 20}, {15 << 20, 10 << 20, 5 << 20}, {0, 9<<20 + 5, 2 << 20}} {
		copyRange(t, source, parts, c.from, c.to, c.n)
	}
	want := append(bytes.Clone(from[:10<<20]), from[15<<20:]...)
	copy(want[9<<20+5:], from[:2<<20])
	must(t, source.Close())
	must(t, parts.Close())
	w.holds("parts", want)
	w.Remount()
	w.read("to", to)
	w.read("parts", want)
	w.read("from", from)
}

// copyRange copies by copy_file_range(2), which may copy less than it was asked for.
func copyRange(t *testing.T, from, to *os.File, fromOff, toOff, n int64) {
	t.Helper()
	for end := fromOff + n; fromOff < end; { // the kernel moves both offsets
		did, err := unix.CopyFileRange(int(from.Fd()), &fromOff, int(to.Fd()), &toOff, int(end-fromOff), 0)
		must(t, err)
		if did == 0 {
			t.Fatalf("the source ends at %d", fromOff)
		}
	}
}

// traffic is what passed between the mount and the service.
type traffic struct {
	requests map[string]int64
	in, out  int64 // bytes of blobs and blocks to and from the service
}

// counted returns what passed while do ran. Azurite does not count: it is nothing then.
func (w *world) counted(s *mounttest.Service, do func()) traffic {
	if s.Embedded == nil {
		do()
		return traffic{}
	}
	s.Embedded.ResetStats()
	do()
	got := s.Embedded.Stats()
	return traffic{got.Requests, got.BytesIn, got.BytesOut}
}

// A change in the middle of a blob of another tool sends the blocks that it touches, and uses the others again.
func testChangeInTheMiddle(t *testing.T, s *mounttest.Service) {
	const block, lists = 4 << 20, 64 << 10 // lists: the most that block lists take here
	w := newWorld(t, s, "--block-size=4MiB")
	want := noise(10 * block)
	w.putBlocks("file", want, block)
	before := w.blocks("file")
	change := noise(4 << 10)
	copy(want[5*block+1000:], change)
	f := w.open("file", os.O_WRONLY)
	moved := w.counted(s, func() {
		_, err := f.WriteAt(change, 5*block+1000)
		must(t, err)
		must(t, f.Close())
	})
	if moved.in > block+lists || moved.out > block+lists || moved.requests["PutBlockFromURL"] != 0 {
		t.Errorf("more than one block moved: %+v", moved)
	}
	w.holds("file", want)
	after := w.blocks("file")
	if len(before) != 10 || len(after) != 10 || before[5] == after[5] {
		t.Fatalf("blocks %q, before %q", after, before)
	}
	before[5] = after[5]
	if !slices.Equal(before, after) {
		t.Errorf("blocks %q, want %q", after, before)
	}
	w.read("file", want)
	w.Remount()
	w.read("file", want)
}

// putBlocks makes a blob of blocks of one size, by another program.
func (w *world) putBlocks(name string, content []byte, size int) {
	w.t.Helper()
	client := w.Client.NewBlockBlobClient(name)
	var ids []string
	for b := range slices.Chunk(content, size) {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "theirs-%08d", len(ids)))
		_, err := client.StageBlock(context.Background(), id, streaming.NopCloser(bytes.NewReader(b)), nil)
		must(w.t, err)
		ids = append(ids, id)
	}
	_, err := client.CommitBlockList(context.Background(), ids, nil)
	must(w.t, err)
}

// blocks returns the ids of the committed blocks of a blob.
func (w *world) blocks(name string) []string {
	w.t.Helper()
	list, err := w.Client.NewBlockBlobClient(name).GetBlockList(context.Background(), blockblob.BlockListTypeCommitted, nil)
	must(w.t, err)
	ids := make([]string, 0, len(list.CommittedBlocks))
	for _, b := range list.CommittedBlocks {
		ids = append(ids, *b.Name)
	}
	return ids
}

// Two programs append whole records to one file at the same time: each record is there whole, once, in its writer's order.
func testAppendTwoHandles(t *testing.T, s *mounttest.Service) {
	const records, recordSize = 1000, 500 // of each writer
	w := newWorld(t, s, "--block-size=64KiB")
	handles := []*os.File{
		w.open("log", os.O_CREATE|os.O_APPEND|os.O_WRONLY),
		w.open("log", os.O_APPEND|os.O_WRONLY),
	}
	for i := range records { // in step, so that they do not come one after the other
		errs := make([]error, len(handles))
		var wg sync.WaitGroup
		for who, f := range handles {
			wg.Go(func() { _, errs[who] = f.Write(record(who, i, recordSize)) })
		}
		wg.Wait()
		must(t, errors.Join(errs...))
	}
	for _, f := range handles {
		must(t, f.Close())
	}
	got := w.Get("log")
	if len(got) != len(handles)*records*recordSize {
		t.Fatalf("%d bytes", len(got))
	}
	next := make([]int, len(handles))
	for r := range slices.Chunk(got, recordSize) {
		who := int(r[0]) % len(next)
		if !bytes.Equal(r, record(who, next[who], recordSize)) {
			t.Fatalf("record %d of writer %d is %x", next[who], who, r[:16])
		}
		next[who]++
	}
	w.Remount()
	w.read("log", got)
}

// record returns the bytes of one record, of which every one tells whose it is.
func record(who, i, size int) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint16([]byte{byte(who), 'r'}, uint16(i)), size/4)
}

// An append blob grows by appends and stays one; other changes are refused.
func testAppendBlob(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s)
	want := w.putAppend("log", noise(100<<10))
	f := w.open("log", os.O_APPEND|os.O_RDWR)
	for _, size := range []int{10, 5 << 20, 1} { // the second is more than one piece
		b := noise(size)
		_, err := f.Write(b)
		must(t, err)
		want = append(want, b...)
		must(t, f.Sync())
		w.holds("log", want)
	}
	must(t, f.Close())
	f = w.open("log", os.O_WRONLY)
	_, err := f.WriteAt([]byte("x"), 50)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	wantErrno(t, "write in the middle", err, syscall.EPERM)
	wantErrno(t, "truncate", os.Truncate(w.path("log"), 10), syscall.EPERM)
	w.isKind("log", blob.BlobTypeAppendBlob)
	w.Remount()
	w.read("log", want)
	w.holds("log", want)
}

// --convert-append-blobs makes a block blob of an append blob, when it is changed by anything but an append.
func testConvertAppendBlob(t *testing.T, s *mounttest.Service) {
	w := newWorld(t, s, "--convert-append-blobs")
	want := w.putAppend("log", noise(3<<20))
	f := w.open("log", os.O_APPEND|os.O_WRONLY)
	_, err := f.Write([]byte("appended"))
	must(t, err)
	must(t, f.Close())
	want = append(want, "appended"...)
	w.holds("log", want)
	w.isKind("log", blob.BlobTypeAppendBlob)
	f = w.open("log", os.O_WRONLY)
	_, err = f.WriteAt([]byte("changed"), 1<<20)
	must(t, err)
	must(t, f.Close())
	copy(want[1<<20:], "changed")
	w.holds("log", want)
	w.isKind("log", blob.BlobTypeBlockBlob)
	w.Remount()
	w.read("log", want)
}

// putAppend makes an append blob, by another program, and returns its content.
func (w *world) putAppend(name string, content []byte) []byte {
	w.t.Helper()
	client := w.Client.NewAppendBlobClient(name)
	_, err := client.Create(context.Background(), nil)
	must(w.t, err)
	_, err = client.AppendBlock(context.Background(), streaming.NopCloser(bytes.NewReader(content)), nil)
	must(w.t, err)
	return content
}

// isKind checks the kind of a blob.
func (w *world) isKind(name string, want blob.BlobType) {
	w.t.Helper()
	p, err := w.Client.NewBlobClient(name).GetProperties(context.Background(), nil)
	must(w.t, err)
	if *p.BlobType != want {
		w.t.Errorf("%s is a %s, want %s", name, *p.BlobType, want)
	}
}

// A file that is written in order may be larger than the cache: what the service holds is given up on the disk.
func testLargerThanCache(t *testing.T, s *mounttest.Service) {
	const size, piece, cacheSize = 200 << 20, 1 << 20, 64 << 20
	// A write waits a second at most, so the cache may grow while the service is slow; by this at most.
	const slack = 64 << 20
	w := newWorld(t, s, "--cache-size=64MiB")
	sum, random := sha256.New(), rand.NewChaCha8([32]byte{2})
	f := w.open("large", os.O_CREATE|os.O_WRONLY)
	b := make([]byte, piece)
	var most int64
	for range size / piece {
		random.Read(b) // never fails
		sum.Write(b)
		_, err := f.Write(b)
		must(t, err)
		most = max(most, diskUse(t, w.Cache))
	}
	must(t, f.Close())
	t.Logf("the cache directory took %d MiB at most", most>>20)
	if most > cacheSize+slack {
		t.Errorf("the cache directory took %d MiB", most>>20)
	}
	if most < piece {
		t.Error("nothing was staged, so nothing is proven")
	}
	got := sha256.New()
	f = w.open("large", os.O_RDONLY)
	n, err := io.Copy(got, f)
	must(t, err)
	must(t, f.Close())
	if n != size || !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Errorf("read %d bytes with checksum %x, written %d with %x", n, got.Sum(nil), size, sum.Sum(nil))
	}
}

// diskUse returns the bytes of disk that the files below a directory take. Files may come and go meanwhile.
func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				sum += info.Sys().(*syscall.Stat_t).Blocks * 512 // by stat(2) always of 512 bytes
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	must(t, err)
	return sum
}
