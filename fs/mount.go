package fs

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// Options say what is mounted and how.
type Options struct {
	// Container is what the mount shows; blob.Sub gives a prefix of one.
	Container blob.Container
	Cache     *blobcache.Cache
	// Source is shown as the file system's name. It has to be the source of fstab, letter by letter, else mount -a
	// mounts a second time.
	Source     string
	ReadOnly   bool
	AllowOther bool
	// UID, GID, FileMode and DirMode (permission bits) are what blobs show that have none of their own.
	UID, GID          uint32
	FileMode, DirMode uint32
	// NoPosixMetadata keeps modes, owners and times out of the metadata of blobs, see Defaults.NoMetadata.
	NoPosixMetadata bool
	// ContentTypes are what new blobs are given by their names, see NewContentTypes.
	ContentTypes ContentTypes
	// Timeout is the blob-cache timeout; negative means to never ask again, 0 to ask each time.
	Timeout time.Duration
	// NamesMemory bounds what is kept of names and attributes, in bytes; 0 means 64 MiB.
	NamesMemory int64
	// Open says how the kernel opens files.
	Open OpenMode
	// Prefetch is how many small files of a directory that is being walked through are fetched ahead at once; 0 turns
	// it off, a negative number means the default.
	Prefetch int
	// NoPassthrough keeps the kernel from reading cached files by itself.
	NoPassthrough bool
	// MountOptions are words for the kernel: noexec, nodev, nosuid, noatime, sync and so on.
	MountOptions []string
	// About is what the mount says of itself in StatusAttr: the fields of its first group.
	About Status
	// Credential is asked for each Status what the credential is by now; nil says nothing. Parallel calls are made.
	Credential func() Credential
	Log        *slog.Logger
}

// Mounted is a file system that is mounted.
type Mounted struct {
	server *fuse.Server
	fs     *fileSystem
	done   chan struct{}
}

const defaultNamesMemory = 64 << 20

// The sizes of the conversation with the kernel.
const (
	// maxRequest is the most that the kernel allows without an administrator's help: 256 pages.
	maxRequest = 1 << 20
	// maxBackground is how many read-ahead and asynchronous requests the kernel has under way. Its default of 12
	// leaves connections idle. Each holds a buffer of maxRequest in go-fuse, so a small budget of memory allows fewer.
	maxBackground = 128
	// readAheadKiB is the kernel's own read-ahead: two requests, so that one is being served while another is on its
	// way. Warm reads through the daemon were 10 % slower with one, and with four or more, which leave the processor's
	// cache. The distance that hides the service's latency is the cache's business.
	readAheadKiB = 2048
)

// mountFlags are the words that mount(2) takes as bits.
var mountFlags = map[string]uintptr{
	"noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
	"nodiratime": unix.MS_NODIRATIME, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC,
	"nodev": unix.MS_NODEV, "nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC,
}

// Mount mounts the file system on a directory, and returns when it answers.
func Mount(mountpoint string, o Options) (*Mounted, error) {
	if o.Open == OpenNone && (!o.ReadOnly || o.Timeout == 0) {
		return nil, errors.New("opens without messages need a read-only mount and a blob-cache timeout that is not 0")
	}
	ctx, cancel := context.WithCancel(context.Background()) // ends with the mount
	f := newFileSystem(ctx, o)
	if o.ReadOnly {
		if err := f.reportLeft(); err != nil {
			cancel()
			return nil, fmt.Errorf("look for renames that an earlier mount has not finished: %w", err)
		}
	} else {
		if err := f.recover(ctx); err != nil {
			cancel()
			return nil, fmt.Errorf("look for files that an earlier mount could not save: %w", err)
		}
	}
	server, err := fuse.NewServer(f, mountpoint, serverOptions(o))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("mount on %s: %w", mountpoint, err)
	}
	m := &Mounted{server: server, fs: f, done: make(chan struct{})}
	f.passthrough.start(server, server.KernelSettings(), o)
	f.pages = server
	go func() {
		server.Serve()
		cancel()
		close(m.done)
	}()
	if err := m.answers(mountpoint); err != nil {
		_ = server.Unmount()
		return nil, fmt.Errorf("mount on %s: %w", mountpoint, err)
	}
	return m, nil
}

// newFileSystem returns what answers the kernel. Its work in the background ends with ctx.
func newFileSystem(ctx context.Context, o Options) *fileSystem {
	root, odd := newNode(blobcache.Entry{Dir: true}), newOdd(o.Log)
	v := &view{
		cont: o.Container, prefix: blob.Prefix(o.Container), cache: o.Cache, nodes: newTable(root),
		names:    blobcache.NewNames(ctx, watched{o.Container, odd}, o.Timeout, cmp.Or(o.NamesMemory, defaultNamesMemory)),
		defaults: Defaults{o.UID, o.GID, o.FileMode, o.DirMode, o.NoPosixMetadata}, types: o.ContentTypes, odd: odd,
		timeout: o.Timeout, started: time.Now(), log: o.Log,
	}
	f := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), view: v, readOnly: o.ReadOnly,
		handles: handles{open: map[uint64]*handle{}}, openMode: o.Open, about: o.About, credential: o.Credential,
		readers: readers{v: v, byID: map[*node]*list.Element{}},
	}
	if o.Prefetch < 0 {
		o.Prefetch = defaultPrefetch
	}
	f.prefetch = newPrefetcher(ctx, v, o.Prefetch)
	return f
}

// recoverBound is how long a mount waits for the files that an earlier one left. A name shows what was left when that is
// in the service; what takes longer is sent in the background.
const recoverBound = time.Minute

// recover commits what an earlier process had answered for.
func (v *view) recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverBound)
	defer cancel()
	// Renames first: a file that is committed has to know its name.
	err := v.cache.RecoverRenames(ctx, v.cont, func(ctx context.Context, from, to string) func() {
		v.moves.mu.Lock()
		defer v.moves.mu.Unlock()
		m := &move{from: from, to: to}
		end := v.moves.begin(m)
		for v.moves.busy(m) && v.moves.wait(ctx) == nil { // a rename that another process lets go while this mount lives
		}
		return func() {
			v.forgetDir(from)
			v.forgetDir(to)
			end()
		}
	})
	if err != nil {
		return err
	}
	return v.cache.Recover(ctx, v.cont, blobcache.Hooks{
		Stamp:     v.defaults.stamp,
		Committed: func(p blob.Properties, dirty bool) { v.names.Forget(p.Name) },
	})
}

// reportLeft tells the log what a mount that cannot write leaves as it is.
func (v *view) reportLeft() error {
	left, err := v.cache.LeftRenames(v.cont)
	for _, r := range left {
		v.log.Warn("an earlier mount has not finished the rename of a directory: blobs are under both names until a mount that can write goes on with it",
			"from", r.From, "to", r.To)
	}
	return err
}

func serverOptions(o Options) *fuse.MountOptions {
	so := &fuse.MountOptions{
		Name: "blobmount", FsName: o.Source, AllowOther: o.AllowOther,
		// Root needs no fusermount3, and without it errors keep their numbers.
		DirectMount: os.Geteuid() == 0, DirectMountStrict: os.Geteuid() == 0,
		DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV,
		Options:          []string{"default_permissions"},
		MaxWrite:         maxRequest, MaxBackground: maxBackground,
		// Replies are vectors from memory: splice costs three system calls more and copies all the same.
		DisableSplice: true,
		// A node is one version of a blob, so its pages are right for as long as it lives.
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | // else open(O_TRUNC) would first commit an empty blob
			fuse.CAP_HANDLE_KILLPRIV_V2 | // else the kernel asks for security.capability with every write
			fuse.CAP_DIRECT_IO_ALLOW_MMAP, // for writers beside passthrough readers
		MaxStackDepth: stackDepth(o.Cache.Dir()),
		Logger:        slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
		PanicHandler:  failStop(o.Log),
	}
	words := slices.Clone(o.MountOptions)
	if o.ReadOnly {
		so.DirectMountFlags |= unix.MS_RDONLY
		if os.Geteuid() != 0 {
			words = append(words, "ro")
		}
	}
	for _, w := range words {
		switch bit, ok := mountFlags[w]; {
		case !ok:
			so.Options = append(so.Options, w) // go-fuse turns dev, suid and exec into bits
		case so.DirectMount:
			so.DirectMountFlags |= bit
		default:
			so.Options = append(so.Options, w)
		}
	}
	return so
}

// answers waits until the kernel has an answer from us, and raises its read-ahead.
func (m *Mounted) answers(mountpoint string) error {
	if err := m.server.WaitMount(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); err != nil {
		return err
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(path, []byte(strconv.Itoa(readAheadKiB)), 0); err != nil {
		m.fs.log.Debug("kernel read-ahead stays as it is", "file", path, "error", err)
	}
	return nil
}

// nodeBytes is about what a node takes, in bytes.
const nodeBytes = 1 << 10

// Memory returns about how many bytes of the Go heap are in use for names and nodes.
func (m *Mounted) Memory() int64 {
	return m.fs.names.Memory() + int64(m.fs.nodes.size())*nodeBytes
}

// Wait returns when the file system is unmounted, by whomever.
func (m *Mounted) Wait() { <-m.done }

// Unmount unmounts. It fails with EBUSY while files are open or somebody's working directory is in it.
func (m *Mounted) Unmount() error {
	return m.server.Unmount()
}
