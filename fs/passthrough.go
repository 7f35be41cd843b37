package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blobmount/blobcache"
)

// passthrough lets the kernel read cached files by itself. The rules are the kernel's (fs/fuse/iomode.c, Linux 6.9 and
// later): all handles of an inode are of one mode, and all passthrough handles of an inode have the same backing file.
// So the mode is chosen when the kernel has no handle of a node, and kept until it has released the last one:
//
//   - Through the cache: the first handle may write, or there is no complete and checked cache file, or it is small.
//   - Passthrough: readers have the backing file. A writer that comes now gets a handle that names the backing file as
//     well, but with direct I/O, so that its reads and writes come to us; its writes go into the backing file itself.
//     A mapping does not heed direct I/O (fuse_file_mmap in fs/fuse/file.c): what a program stores in one would go to
//     the backing file, and nobody would hear of it, not even of msync. So who may map for writing, O_RDWR, waits until
//     the last reader has closed the file, and is refused if that takes too long.
type passthrough struct {
	registrar registrar
	log       *slog.Logger
	on        atomic.Bool
}

// registrar is what go-fuse's Server offers.
type registrar interface {
	RegisterBackingFd(*fuse.BackingMap) (int32, syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
}

var _ registrar = (*fuse.Server)(nil)

// passthroughMin is the size from which it pays: registering a backing file costs 15 to 30 µs, a read through us
// 15 µs.
const passthroughMin = 256 << 10

// start turns passthrough on if the kernel has it and we may use it.
func (p *passthrough) start(r registrar, kernel *fuse.InitIn, o Options) {
	p.registrar, p.log = r, o.Log
	switch {
	case o.NoPassthrough:
		p.log.Info("passthrough is off", "reason", "asked for")
	case kernel.Flags64()&fuse.CAP_PASSTHROUGH == 0:
		p.log.Info("passthrough is off", "reason", "the kernel does not have it, Linux 6.9 does")
	case !hasSysAdmin():
		p.log.Info("passthrough is off", "reason", "it needs CAP_SYS_ADMIN")
	default:
		p.on.Store(true)
		p.log.Info("passthrough is on", "from-bytes", passthroughMin)
	}
}

// mappable counts a handle that may be mapped for writing, before it is opened, and returns its flags: it is through the
// cache. It waits for readers that have the backing file, since the kernel tells late of a close, and fails with EBUSY if
// they stay.
func (p *passthrough) mappable(ctx context.Context, n *node) (flags uint32, err error) {
	ctx, cancel := context.WithTimeout(ctx, mappableWait)
	defer cancel()
	for {
		n.mu.Lock()
		if n.backing == 0 {
			n.handles++
			flags = n.cachedFlags(syscall.O_RDWR)
			n.mu.Unlock()
			return flags, nil
		}
		if n.closed == nil {
			n.closed = make(chan struct{})
		}
		closed := n.closed
		n.mu.Unlock()
		select {
		case <-closed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return 0, errMapped
			}
			return 0, ctx.Err()
		}
	}
}

// mappableWait is how long an open for reading and writing waits for readers.
const mappableWait = 2 * time.Second

var errMapped = fmt.Errorf("%w: readers, or a writer that came beside them, have it from the kernel (passthrough), and a mapping "+
	"of this open would write past the mount; open it when they have closed it, open it for writing only, or mount with "+
	"--passthrough=off", syscall.EBUSY)

// enter counts a handle that is opened for reading or for writing (O_RDONLY, O_WRONLY, and O_RDWR if it is new), and
// returns its flags and backing file.
func (p *passthrough) enter(n *node, f *blobcache.File, access uint32) (flags uint32, backing int32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.handles == 0 && access == syscall.O_RDONLY && p.on.Load() && f.State().Size >= passthroughMin {
		n.backing = p.register(f)
	}
	n.handles++
	switch {
	case n.backing == 0:
		return n.cachedFlags(access), 0
	case access != syscall.O_RDONLY:
		return fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO, n.backing
	}
	return fuse.FOPEN_PASSTHROUGH, n.backing
}

// register shows the kernel the file's backing file. It returns 0 if that cannot be.
func (p *passthrough) register(f *blobcache.File) int32 {
	file := f.Backing()
	if file == nil {
		return 0
	}
	id, errno := p.registrar.RegisterBackingFd(&fuse.BackingMap{Fd: int32(file.Fd())})
	if errno == 0 {
		return id
	}
	// Other files may still work, unless the cause lies with the file system or with us.
	p.log.Warn("cache file cannot be used for passthrough, reading through the daemon", "blob", f.Name(), "error", errno)
	if errno == syscall.EPERM || errno == syscall.ELOOP || errno == syscall.EOPNOTSUPP {
		p.on.Store(false)
	}
	return 0
}

// leave takes enter back.
func (p *passthrough) leave(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handles--
	if n.handles > 0 {
		return
	}
	n.mappable = false
	if n.backing == 0 {
		return
	}
	if errno := p.registrar.UnregisterBackingFd(n.backing); errno != 0 {
		p.log.Warn("backing file cannot be unregistered, its disk space is held until the unmount", "error", errno)
	}
	n.backing = 0
	if n.file != nil {
		n.file.Hide()
	}
	if n.closed != nil {
		close(n.closed)
		n.closed = nil
	}
}

func hasSysAdmin() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	return unix.Capget(&h, &d[0]) == nil && d[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// stackDepth returns how deep a backing file in dir may lie: 2 on overlayfs, which is one file system above another.
// That forbids an overlay above the mount, so it is not the default.
func stackDepth(dir string) int {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return 2
	}
	return 1
}
