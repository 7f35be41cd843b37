package treemodel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// System is what is compared with a model. Error numbers are results; an error is a failure of the test itself.
type System interface {
	Do(o Op) (Result, error)
	// List returns what is in a directory, in the order of the names, with the attributes of those that are wanted.
	List(path string, wanted func(name string) bool) ([]Entry, error)
	Content(path string) ([]byte, error)
}

// Entry is what is under a name of a directory.
type Entry struct {
	Name, Kind string // as the listing says
	Attr       Attr   // zero if it was not wanted
}

// Tree is the tree below a directory.
type Tree struct {
	Root string
	// Remount unmounts, calls between, and mounts. Nothing is open below Root then. nil only calls between.
	Remount func(emptyCache bool, between func())
	// Put and Delete are what another host does. They may be nil where no such operations are made.
	Put    func(path string, content []byte)
	Delete func(path string)

	handles [Handles]*os.File
}

var _ System = (*Tree)(nil)

func (t *Tree) path(name string) string { return filepath.Join(t.Root, name) }

// result takes the error number out of an error.
func result(err error) (Result, error) {
	var errno syscall.Errno
	switch {
	case err == nil:
		return Result{}, nil
	case errors.As(err, &errno):
		return Result{Errno: errno}, nil
	}
	return Result{}, err
}

// writeFile opens a file, lets f write, and closes it. Links are not followed.
func (t *Tree) writeFile(o Op, flags int, f func(*os.File) error) error {
	h, err := os.OpenFile(t.path(o.Path), os.O_WRONLY|unix.O_NOFOLLOW|flags, fs.FileMode(o.Mode))
	if err != nil {
		return err
	}
	return errors.Join(f(h), h.Close())
}

// Do implements System.
func (t *Tree) Do(o Op) (Result, error) {
	exclusive := 0
	if o.Exclusive {
		exclusive = os.O_EXCL
	}
	at := func(h *os.File) error {
		_, err := h.WriteAt(o.bytes(), o.Off)
		return err
	}
	end := func(h *os.File) error {
		_, err := h.Write(o.bytes())
		return err
	}
	switch o.Do {
	case Create:
		return result(t.writeFile(o, os.O_CREATE|os.O_TRUNC|exclusive, end))
	case Write:
		return result(t.writeFile(o, 0, at))
	case Append:
		return result(t.writeFile(o, os.O_APPEND, end))
	case Truncate:
		return result(os.Truncate(t.path(o.Path), o.Size))
	case Read:
		b, err := t.Content(o.Path)
		if err != nil {
			return result(err)
		}
		return Result{Text: digest(b)}, nil
	case Rename:
		var flags uint
		if o.Exclusive {
			flags = unix.RENAME_NOREPLACE
		}
		return result(retry(func() error {
			return unix.Renameat2(unix.AT_FDCWD, t.path(o.Path), unix.AT_FDCWD, t.path(o.To), flags)
		}))
	case Mkdir:
		return result(os.Mkdir(t.path(o.Path), fs.FileMode(o.Mode)))
	case Rmdir:
		return result(retry(func() error { return unix.Rmdir(t.path(o.Path)) }))
	case Unlink:
		return result(retry(func() error { return unix.Unlink(t.path(o.Path)) }))
	case Symlink:
		return result(os.Symlink(o.To, t.path(o.Path)))
	case Chmod:
		return result(os.Chmod(t.path(o.Path), fs.FileMode(o.Mode)))
	case Utimes:
		changed := time.Unix(o.Time, 0)
		return result(os.Chtimes(t.path(o.Path), changed, changed))
	case Stat:
		a, err := attrAt(unix.AT_FDCWD, t.path(o.Path))
		r, err := result(err)
		r.Attr = a
		return r, err
	case Readdir:
		d, names, err := t.names(o.Path)
		if err == nil {
			err = d.Close()
		}
		r, err := result(err)
		for _, n := range names {
			r.Text += "\n" + n.Name()
		}
		r.Text = strings.TrimPrefix(r.Text, "\n")
		return r, err
	case ForeignPut, ForeignDelete:
		act := func() {
			if o.Do == ForeignPut {
				t.Put(o.Path, o.bytes())
			} else {
				t.Delete(o.Path)
			}
		}
		if o.Exclusive {
			return t.remount(false, act)
		}
		act()
		return Result{}, nil
	case Remount:
		return t.remount(o.Exclusive, func() {})
	}
	return t.handle(o)
}

func (t *Tree) remount(emptyCache bool, between func()) (Result, error) {
	if err := t.Close(); err != nil {
		return result(err)
	}
	if t.Remount == nil {
		between()
	} else {
		t.Remount(emptyCache, between)
	}
	return Result{}, nil
}

// retry makes a system call until no signal interrupts it: the Go runtime sends itself some.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func (t *Tree) handle(o Op) (Result, error) {
	h := t.handles[o.Handle]
	switch o.Do {
	case Open:
		if h != nil {
			t.handles[o.Handle] = nil
			if err := h.Close(); err != nil {
				return result(err)
			}
		}
		flags := os.O_RDWR | unix.O_NOFOLLOW
		if o.Mode != 0 {
			flags |= os.O_CREATE
		}
		h, err := os.OpenFile(t.path(o.Path), flags, fs.FileMode(o.Mode))
		if err == nil {
			t.handles[o.Handle] = h
		}
		return result(err)
	case WriteHandle:
		_, err := h.WriteAt(o.bytes(), o.Off)
		return result(err)
	case TruncateHandle:
		return result(h.Truncate(o.Size))
	case ReadHandle:
		info, err := h.Stat()
		if err != nil {
			return result(err)
		}
		b, err := io.ReadAll(io.NewSectionReader(h, 0, info.Size()+1))
		if err != nil {
			return result(err)
		}
		return Result{Text: digest(b)}, nil
	case SyncHandle:
		return result(h.Sync())
	case CloseHandle:
		t.handles[o.Handle] = nil
		return result(h.Close())
	}
	panic("treemodel: there is no operation " + o.Do.String())
}

// Close closes all handles.
func (t *Tree) Close() (err error) {
	for i, h := range t.handles {
		if h != nil {
			err = errors.Join(err, h.Close())
			t.handles[i] = nil
		}
	}
	return err
}

// names opens a directory and lists it.
func (t *Tree) names(path string) (*os.File, []fs.DirEntry, error) {
	d, err := os.OpenFile(t.path(path), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil, err
	}
	names, err := d.ReadDir(-1)
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	slices.SortFunc(names, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return d, names, nil
}

// List implements System. The names are asked for in the open directory: by their paths, each name above them would be
// looked up again for each of them.
func (t *Tree) List(path string, wanted func(name string) bool) ([]Entry, error) {
	d, names, err := t.names(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var entries []Entry
	for _, n := range names {
		e := Entry{Name: n.Name(), Kind: kindName(n.Type())}
		if wanted(e.Name) {
			if e.Attr, err = attrAt(int(d.Fd()), e.Name); err != nil {
				return nil, fmt.Errorf("%q in %q: %w", e.Name, path, err)
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func kindName(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "link"
	}
	return m.Type().String()
}

// attrAt is lstat and readlink of a name in a directory.
func attrAt(dir int, name string) (Attr, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return Attr{}, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Attr{Kind: "directory", Mode: st.Mode & 0o7777}, nil
	case unix.S_IFREG:
		return Attr{Kind: "file", Mode: st.Mode & 0o7777, Size: st.Size, Time: st.Mtim.Sec}, nil
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		var n int
		err := retry(func() (err error) {
			n, err = unix.Readlinkat(dir, name, buf)
			return err
		})
		return Attr{Kind: "link", Target: string(buf[:max(n, 0)])}, err
	}
	return Attr{Kind: fmt.Sprintf("file of type %#o", st.Mode&unix.S_IFMT)}, nil
}

// Content implements System.
func (t *Tree) Content(path string) ([]byte, error) {
	h, err := os.OpenFile(t.path(path), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(h)
	return b, errors.Join(err, h.Close())
}
