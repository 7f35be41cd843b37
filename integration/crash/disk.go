package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Disk is a directory that can lose what was not synced. It is a FUSE file system that passes every operation on to a
// directory below it, and remembers of each file what it was at its last fsync, and of each directory which changes
// came before its last fsync. PowerCut then leaves what a machine without power may leave.
//
// It is as unkind as POSIX allows and kinder than no file system: fsync of a file does not keep its name; names are
// kept by an fsync of their directory. The changes of one directory are lost from the last one on, never from the
// middle; a rename is whole or not at all. What is mapped is synced by msync and fsync only. Names are what os.Create, Mkdir,
// Link, Rename and Remove make; symbolic links and special files are refused.
//
// The contents at the last fsync are kept in memory: it is for small caches.
type Disk struct {
	dir string // below it live, the directory itself
	at  string // where it is mounted

	server *fuse.Server

	mu   sync.Mutex // guards what is below, and keeps names from changing meanwhile
	root *object
	dirs []*directory       // all that ever were
	live map[uint64]*object // by inode number
}

// object is a file or a directory.
type object struct {
	// synced is the file at its last fsync, the zero value before the first one.
	synced snapshot
	// last is the file when its last name was removed.
	last *snapshot
	dir  *directory // nil for a file
}

// snapshot is a file at some time.
type snapshot struct {
	content []byte
	attrs   map[string]string // extended attributes
	mode    os.FileMode
}

// directory is the names that are kept for sure, and the changes since.
type directory struct {
	names   map[string]*object
	changes []change
	kept    int // how many changes were kept before those
}

// change is one change of names in one directory.
type change struct {
	set map[string]*object // nil: removed
	// peer is the other directory of a rename, and with the number of its change that is kept with this one.
	peer *directory
	with int
}

// next is the number of the next change.
func (dir *directory) next() int { return dir.kept + len(dir.changes) }

// sync keeps the next count changes.
func (dir *directory) sync(count int) {
	for range count {
		c := dir.changes[0]
		dir.changes, dir.kept = dir.changes[1:], dir.kept+1
		for name, o := range c.set {
			if dir.names[name] = o; o == nil {
				delete(dir.names, name)
			}
		}
		if c.peer != nil && c.peer.kept <= c.with {
			c.peer.sync(c.with + 1 - c.peer.kept)
		}
	}
}

// NewDisk mounts a disk at a directory. What it holds is below dir, which must be empty.
func NewDisk(dir, at string) (*Disk, error) {
	d := &Disk{dir: dir, at: at}
	if err := os.Mkdir(d.lower(), 0o700); err != nil {
		return nil, err
	}
	return d, d.mount()
}

func (d *Disk) lower() string { return filepath.Join(d.dir, "live") }

// mount takes what is in the directory for synced, and mounts it.
func (d *Disk) mount() error {
	d.live, d.dirs = map[uint64]*object{}, nil
	var err error
	if d.root, err = d.adopt(d.lower()); err != nil {
		return err
	}
	lower, err := fs.NewLoopbackRoot(d.lower())
	if err != nil {
		return err
	}
	second := time.Second
	d.server, err = fs.Mount(d.at, &node{lower.(*fs.LoopbackNode), d}, &fs.Options{
		MountOptions: fuse.MountOptions{FsName: "disk", Name: "disk", DirectMount: true},
		EntryTimeout: &second, AttrTimeout: &second,
	})
	return err
}

// adopt makes the object of a path, and of all below it.
func (d *Disk) adopt(path string) (*object, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	if o := d.live[st.Ino]; o != nil {
		return o, nil // a second name
	}
	o := &object{}
	d.live[st.Ino] = o
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s, err := takeSnapshot(path)
		o.synced = s
		return o, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	o.dir = d.newDirectory()
	for _, e := range entries {
		if o.dir.names[e.Name()], err = d.adopt(filepath.Join(path, e.Name())); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (d *Disk) newDirectory() *directory {
	dir := &directory{names: map[string]*object{}}
	d.dirs = append(d.dirs, dir)
	return dir
}

// Close unmounts. Nothing on the disk must be open.
func (d *Disk) Close() error { return d.unmount() }

// unmountBound is for processes that were killed just now, and let go of their files one by one.
const unmountBound = 10 * time.Second

func (d *Disk) unmount() error {
	for deadline := time.Now().Add(unmountBound); ; time.Sleep(time.Millisecond) {
		err := unix.Unmount(d.at, 0)
		if err == nil {
			d.server.Wait()
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("unmount the disk: %w", err)
		}
	}
}

// takeSnapshot reads a file by a path, which may be that of a descriptor.
func takeSnapshot(path string) (s snapshot, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return s, err
	}
	s.mode = info.Mode().Perm()
	if s.content, err = os.ReadFile(path); err != nil {
		return s, err
	}
	s.attrs, err = readAttrs(path)
	return s, err
}

// readAttrs returns the extended attributes of programs.
func readAttrs(path string) (map[string]string, error) {
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Listxattr(path, names)
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	attrs := map[string]string{}
	for _, name := range splitNames(names[:n]) {
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", name, err)
		}
		attrs[name] = string(value[:n])
	}
	return attrs, nil
}

// objectAt returns the object of a path below the disk, nil if there is none. d.mu is held.
func (d *Disk) objectAt(path string) *object {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return nil
	}
	return d.live[st.Ino]
}

// entered notes a name that was made. d.mu is held.
func (d *Disk) entered(dir, name string) {
	path := filepath.Join(dir, name)
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return
	}
	o := d.live[st.Ino]
	if o == nil {
		o = &object{synced: snapshot{mode: os.FileMode(st.Mode & 0o777)}}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			o.dir = d.newDirectory()
		}
		d.live[st.Ino] = o
	}
	d.note(dir, change{set: map[string]*object{name: o}})
}

// note adds a change to a directory. d.mu is held.
func (d *Disk) note(dir string, c change) {
	if o := d.objectAt(dir); o != nil && o.dir != nil {
		o.dir.changes = append(o.dir.changes, c)
	}
}

// leave keeps what a path has as its last state, if it is the last name of it. The caller removes the name if it can.
// d.mu is held.
func (d *Disk) leave(path string) (undo func(), err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return func() {}, nil // the operation itself says so
	}
	o := d.live[st.Ino]
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if o == nil || !isDir && st.Nlink > 1 {
		return func() {}, nil
	}
	if !isDir {
		s, err := takeSnapshot(path)
		if err != nil {
			return nil, err
		}
		o.last = &s
	}
	delete(d.live, st.Ino) // the number may be used again
	return func() {
		o.last = nil
		d.live[st.Ino] = o
	}, nil
}

// errno returns the number of an error of a system call.
func errno(err error) syscall.Errno {
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	return syscall.EIO
}
