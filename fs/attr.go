package fs

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

// The metadata names in which POSIX attributes are kept, and that of symbolic links. mtime is RFC 3339 with a
// fraction, as rclone reads and writes it; mode is octal, with the type bits for FIFOs and sockets; is_symlink is
// blobfuse2's.
const (
	keyMode    = "mode"
	keyUID     = "uid"
	keyGID     = "gid"
	keyMtime   = "mtime"
	keySymlink = "is_symlink"
)

// Defaults are the attributes of what has none of its own.
type Defaults struct {
	UID, GID          uint32
	FileMode, DirMode uint32 // permission bits
}

// attributes are what POSIX knows of a file beyond its size.
type attributes struct {
	mode     uint32 // permission bits with setuid, setgid and sticky
	typ      uint32 // S_IFREG and so on
	uid, gid uint32
	mtime    time.Time
}

// metadataKind says what a blob with this metadata is.
func metadataKind(m map[string]string) kind {
	if strings.EqualFold(m[keySymlink], "true") {
		return kindSymlink
	}
	if mode, ok := parseMode(m); ok {
		switch mode & syscall.S_IFMT {
		case syscall.S_IFIFO, syscall.S_IFSOCK:
			return kindSpecial
		}
	}
	return kindFile
}

func parseMode(m map[string]string) (uint32, bool) {
	s, ok := m[keyMode]
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 8, 32)
	return uint32(n), err == nil
}

// attributesOf returns the attributes of an entry. Metadata that cannot be read counts as not there: another tool may
// use the same names.
func (d *Defaults) attributesOf(k kind, p *blob.Properties) attributes {
	a := attributes{mode: d.FileMode, typ: syscall.S_IFREG, uid: d.UID, gid: d.GID, mtime: p.Modified}
	switch k {
	case kindDir:
		a.mode, a.typ = d.DirMode, syscall.S_IFDIR
	case kindSymlink:
		a.mode, a.typ = 0o777, syscall.S_IFLNK
	}
	if mode, ok := parseMode(p.Metadata); ok && k != kindSymlink {
		a.mode = mode & 0o7777
		if k == kindSpecial {
			a.typ = mode & syscall.S_IFMT
		}
	}
	if len(p.Metadata) == 0 {
		return a // as for most blobs: what follows would only make three errors, in 0.6 µs
	}
	if n, err := strconv.ParseUint(p.Metadata[keyUID], 10, 32); err == nil {
		a.uid = uint32(n)
	}
	if n, err := strconv.ParseUint(p.Metadata[keyGID], 10, 32); err == nil {
		a.gid = uint32(n)
	}
	if t, err := time.Parse(time.RFC3339Nano, p.Metadata[keyMtime]); err == nil {
		a.mtime = t
	}
	return a
}

// put writes into metadata what differs from the defaults.
func (d *Defaults) put(m map[string]string, k kind, a attributes) {
	mode := d.FileMode
	if k == kindDir {
		mode = d.DirMode
	}
	switch {
	case k == kindSpecial:
		m[keyMode] = strconv.FormatUint(uint64(a.typ|a.mode), 8)
	case k == kindSymlink:
	case a.mode != mode:
		m[keyMode] = "0" + strconv.FormatUint(uint64(a.mode), 8)
	default:
		delete(m, keyMode)
	}
	putID(m, keyUID, a.uid, d.UID)
	putID(m, keyGID, a.gid, d.GID)
}

func putID(m map[string]string, key string, id, def uint32) {
	if id == def {
		delete(m, key)
		return
	}
	m[key] = strconv.FormatUint(uint64(id), 10)
}

// Stamp puts the time of the last change into metadata. Last-Modified, the service's own, has whole seconds only and
// changes with every copy, so a program that compares times before and after close or rename would see a change.
func Stamp(metadata map[string]string, modified time.Time) {
	metadata[keyMtime] = modified.UTC().Format(time.RFC3339Nano)
}

// attr fills in what stat shows of a node.
func (v *view) attr(n *node, out *fuse.Attr) {
	e := n.getEntry()
	size := e.Properties.Size
	var modified time.Time
	if f := n.opened(); f != nil {
		s := f.State()
		e.Properties, size = s.Properties, s.Size
		if s.Dirty {
			modified = s.Modified
		}
	}
	a := v.defaults.attributesOf(n.kind, &e.Properties)
	ctime := e.Properties.Modified
	if !modified.IsZero() {
		a.mtime, ctime = modified, modified
	}
	if n.kind == kindDir {
		n.attrMu.Lock()
		changed := n.changed
		n.attrMu.Unlock()
		if a.mtime.IsZero() {
			a.mtime, ctime = v.started, v.started // a prefix has no time of its own
		}
		if changed.After(ctime) {
			ctime = changed
		}
		if changed.After(a.mtime) {
			a.mtime = changed
		}
		size = 4096
	}
	*out = fuse.Attr{
		Ino: n.ino, Size: uint64(size), Blocks: uint64(size+511) / 512, Blksize: 128 << 10,
		Mode: a.typ | a.mode, Nlink: 1, Owner: fuse.Owner{Uid: a.uid, Gid: a.gid},
	}
	if n.kind == kindDir {
		out.Nlink = 2
	}
	if !v.nodes.isLinked(n) {
		out.Nlink = 0
	}
	out.SetTimes(&a.mtime, &a.mtime, &ctime)
}

// entryOut fills in the answer to a lookup.
func (v *view) entryOut(n *node, valid time.Duration, out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	v.attr(n, &out.Attr)
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
}

// setAttributes changes mode, owner or times of a node, in the service unless the file is dirty: then they go with
// its commit.
func (v *view) setAttributes(ctx *request, n *node, in *fuse.SetAttrIn) error {
	mode, hasMode := in.GetMode()
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	mtime, hasMtime := in.GetMTime()
	kill := in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	if !hasMode && !hasUID && !hasGID && !hasMtime && !kill {
		return nil // access times are not kept
	}
	if n.kind == kindDir {
		return v.setDirAttributes(ctx, n, in)
	}
	f := v.acquire(n, false)
	defer v.release(n, f, false)
	s := f.State()
	a := v.defaults.attributesOf(n.kind, &s.Properties)
	was, before := a, a.mtime
	if s.Dirty {
		before = s.Modified
	}
	if hasMode {
		a.mode = mode & 0o7777
	}
	if kill {
		a.mode = killed(a.mode)
	}
	if hasUID {
		a.uid = uid
	}
	if hasGID {
		a.gid = gid
	}
	m := f.Metadata()
	v.defaults.put(m, n.kind, a)
	if hasMtime && !mtime.Equal(before) {
		Stamp(m, mtime)
		f.SetModified(mtime)
	} else if a == was {
		return nil
	}
	err := f.SetMetadata(ctx, m)
	v.forgetChanged(n, err)
	return err
}

// forgetChanged lets the next lookup ask the service when a condition has failed: somebody changed the blob, or the
// answer to our own change was lost. The program gets ESTALE for a file that it has open; when it gave a name, the
// kernel looks that up and tries again by itself.
func (v *view) forgetChanged(n *node, err error) {
	if !blob.Is(err, blob.ConditionNotMet) && !blob.Is(err, blob.Exists) {
		return
	}
	if p, linked := v.nodes.path(n); linked {
		v.names.Forget(p)
	}
}

// killed takes away setuid, and setgid where the group may execute, as every change by somebody without privilege does.
// The kernel leaves that to us (FUSE_HANDLE_KILLPRIV_V2), and so need not ask before each write.
func killed(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

// setDirAttributes keeps them in the directory's marker, which is made if there is none.
func (v *view) setDirAttributes(ctx *request, n *node, in *fuse.SetAttrIn) error {
	e := n.getEntry()
	a := v.defaults.attributesOf(kindDir, &e.Properties)
	was := a
	if mode, ok := in.GetMode(); ok {
		a.mode = mode & 0o7777
	}
	if uid, ok := in.GetUID(); ok {
		a.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		a.gid = gid
	}
	mtime, hasMtime := in.GetMTime()
	if n == v.nodes.root {
		if a != was {
			return syscall.EPERM // the container itself has no metadata of this kind; --dir-mode, --uid, --gid set it
		}
		if hasMtime {
			n.touch(mtime)
		}
		return nil
	}
	if a == was && !hasMtime {
		return nil
	}
	path, linked := v.nodes.path(n)
	if !linked {
		return syscall.ENOENT
	}
	m := map[string]string{}
	for k, val := range e.Properties.Metadata {
		m[k] = val
	}
	m[blobcache.MarkerKey] = "true"
	v.defaults.put(m, kindDir, a)
	if hasMtime {
		Stamp(m, mtime)
	}
	p := blob.Properties{Name: path, Metadata: m}
	var w blob.Written
	var err error
	if e.Marker {
		w, err = v.cont.SetMetadata(ctx, path, m, blob.Condition{IfMatch: e.Properties.ETag})
	} else {
		w, err = v.upload(ctx, path, "", m, blob.Condition{IfNoneMatch: blob.Any})
	}
	if err != nil {
		v.forgetChanged(n, err)
		return err
	}
	p.ETag, p.Modified = w.ETag, w.Modified
	e = blobcache.Entry{Dir: true, Marker: true, Properties: p}
	v.names.Set(path, e)
	n.setEntry(e)
	if hasMtime {
		n.touch(time.Time{})
	}
	return nil
}
