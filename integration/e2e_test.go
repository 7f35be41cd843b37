package integration

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"blobmount/integration/mounttest"
)

func TestMain(m *testing.M) { mounttest.Main(m) }

// scenarios are run by the built program on a real mount, over each service.
var scenarios = []struct {
	name string
	run  func(t *testing.T, s *mounttest.Service)
}{
	{"CopyTree", testCopyTree},
	{"Go", testGo},
	{"Git", testGit},
	{"Tar", testTar},
	{"Rsync", testRsync},
	{"Npm", testNpm},
	{"Sqlite", testSqlite},
	{"Save", testSave},
	{"LinkTree", testLinkTree},
	{"LargeFile", testLargeFile},
	{"Fio", testFio},
	{"Model", testModel},
	{"ParallelWriters", testParallelWriters},
	{"Names", testNames},
	{"RefusedNames", testRefusedNames},
	{"ForeignLayout", testForeignLayout},
	{"Create", testCreate},
	{"Append", testAppend},
	{"Unlink", testUnlink},
	{"RenameFile", testRenameFile},
	{"RenameOpen", testRenameOpen},
	{"RenameDirectory", testRenameDirectory},
	{"Directories", testDirectories},
	{"Special", testSpecial},
	{"Attributes", testAttributes},
	{"Times", testTimes},
	{"NoPosixMetadata", testNoPosixMetadata},
	{"KeptProperties", testKeptProperties},
	{"ContentTypes", testContentTypes},
	{"Xattrs", testXattrs},
	{"XattrTools", testXattrTools},
	{"Locks", testLocks},
	{"Exclusive", testExclusive},
	{"Mapping", testMapping},
	{"Holes", testHoles},
	{"Fsync", testFsync},
	{"Leases", testLeases},
	{"SeekHoles", testSeekHoles},
	{"CopyInMount", testCopyInMount},
	{"ChangeInTheMiddle", testChangeInTheMiddle},
	{"AppendTwoHandles", testAppendTwoHandles},
	{"AppendBlob", testAppendBlob},
	{"ConvertAppendBlob", testConvertAppendBlob},
	{"LargerThanCache", testLargerThanCache},
	{"CachedWrites", testCachedWrites},
	{"WrittenBesideReaders", testWrittenBesideReaders},
	{"WrittenBesideMapping", testWrittenBesideMapping},
	{"CachedEmptied", testCachedEmptied},
	{"EmptiedLog", testEmptiedLog},
	{"Synchronous", testSynchronous},
	{"CachedWritesKilled", testCachedWritesKilled},
	{"CachedSmall", testCachedSmall},
	{"CachedMapped", testCachedMapped},
	{"ReadOnly", testReadOnly},
	{"TimeoutZero", testTimeoutZero},
	{"TimeoutNone", testTimeoutNone},
	{"Conflict", testConflict},
	{"ConflictNew", testConflictNew},
	{"ContainerDeleted", testContainerDeleted},
	{"Terminate", testTerminate},
	{"Kill", testKill},
	{"Helper", testHelper},
	{"BadInput", testBadInput},
	{"Signatures", testSignatures},
	{"SourceSAS", testSourceSAS},
	{"Datastore", testDatastore},
	{"CredentialNames", testCredentialNames},
	{"CreateContainer", testCreateContainer},
}

func TestMountEmbedded(t *testing.T) { runScenarios(t, mounttest.Embedded) }

func TestMountAzurite(t *testing.T) { runScenarios(t, mounttest.Azurite) }

func runScenarios(t *testing.T, start func(testing.TB) *mounttest.Service) {
	mounttest.NeedFUSE(t)
	mounttest.Binary(t)
	s := start(t)
	for _, c := range scenarios {
		t.Run(c.name, func(t *testing.T) { c.run(t, s) })
	}
}

// world is a container and a mount of it.
type world struct {
	*mounttest.Point
	*mounttest.Container
	t *testing.T
}

// newWorld makes an empty container and mounts it.
func newWorld(t *testing.T, s *mounttest.Service, flags ...string) *world {
	t.Helper()
	c := s.NewContainer(t)
	p := s.NewPoint(t, c)
	p.Mount(flags...)
	return &world{p, c, t}
}

// path returns the path of a name on the mount.
func (w *world) path(name string) string { return filepath.Join(w.Dir, name) }

// write writes a whole file through the mount.
func (w *world) write(name string, content []byte) {
	w.t.Helper()
	must(w.t, os.WriteFile(w.path(name), content, 0o644))
}

// read compares a file on the mount with what it must be.
func (w *world) read(name string, want []byte) {
	w.t.Helper()
	got, err := os.ReadFile(w.path(name))
	must(w.t, err)
	equal(w.t, name, got, want)
}

// holds compares a blob in the service with what it must be.
func (w *world) holds(name string, want []byte) {
	w.t.Helper()
	equal(w.t, "blob "+name, w.Get(name), want)
}

// open opens a file on the mount until the test ends.
func (w *world) open(name string, flags int) *os.File {
	w.t.Helper()
	f, err := os.OpenFile(w.path(name), flags, 0o644)
	must(w.t, err)
	w.t.Cleanup(func() { _ = f.Close() }) // of a test that failed; else it is closed
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErrno checks the error number of a system call that must fail.
func wantErrno(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	var got syscall.Errno
	if !errors.As(err, &got) || got != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// equal compares bytes, and says where they differ first instead of printing them.
func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: %d bytes, want %d; they differ from byte %d on: %x, want %x", what, len(got), len(want), at,
		got[at:min(len(got), at+16)], want[at:min(len(want), at+16)])
}

// noise returns n random bytes.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}
