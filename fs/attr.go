package fs

import (
	"cmp"
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

// reserved are the metadata names that say what a blob is to a file system.
var reserved = []string{keyMode, keyUID, keyGID, keyMtime, keySymlink, blobcache.MarkerKey}

// Defaults are the attributes of what has none of its own.
type Defaults struct {
	UID, GID          uint32
	FileMode, DirMode uint32 // permission bits
	// NoMetadata makes everything show the defaults and the service's times: what metadata says of mode, owner and time
	// is neither read nor written. FIFOs, sockets and links are still what metadata says.
	NoMetadata bool
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
	if len(p.Metadata) == 0 {
		return a // as for most blobs: what follows would only make errors, in 0.6 µs
	}
	mode, hasMode := parseMode(p.Metadata)
	if hasMode && k == kindSpecial {
		a.typ = mode & syscall.S_IFMT
	}
	if d.NoMetadata {
		return a
	}
	if hasMode && k != kindSymlink {
		a.mode = mode & 0o7777
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
	if d.NoMetadata {
		if k == kindSpecial {
			m[keyMode] = strconv.FormatUint(uint64(a.typ|d.FileMode), 8)
		}
		return
	}
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

// stamp is Stamp for what a commit sends. Without metadata the time of an earlier content must not stay, and where other
// tools have left no room for it, content is worth more than its time.
func (d *Defaults) stamp(metadata map[string]string, modified time.Time) {
	if !d.NoMetadata {
		Stamp(metadata, modified)
	}
	if d.NoMetadata || metadataSize(metadata) > maxMetadata {
		delete(metadata, keyMtime)
	}
}

// attr fills in what stat shows of a node. Access times are not kept: unless a program has set one, they show the time of
// the last change.
func (v *view) attr(n *node, out *fuse.Attr) {
	e := n.getEntry()
	if e.Shadowed {
		path, _ := v.nodes.path(n)
		v.odd.shadows(path)
	}
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
		if a.mtime.IsZero() {
			ctime = v.started
		}
		a.mtime = v.dirTime(n, a.mtime)
		if changed := n.changedAt(); changed.After(ctime) {
			ctime = changed
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
	accessed := cmp.Or(n.accessedAt(), a.mtime)
	out.SetTimes(&accessed, &a.mtime, &ctime)
}

// dirTime returns when a directory was last changed, as far as is known: by its marker or by this mount.
func (v *view) dirTime(n *node, marker time.Time) time.Time {
	if marker.IsZero() {
		marker = v.started // a prefix has no time of its own
	}
	if changed := n.changedAt(); changed.After(marker) {
		return changed
	}
	return marker
}

// entryOut fills in the answer to a lookup.
func (v *view) entryOut(n *node, valid time.Duration, out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	v.attr(n, &out.Attr)
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
}

// change is what setattr asks for. What is nil stays.
type change struct {
	mode, uid, gid *uint32
	mtime          *time.Time
	now            bool // mtime is the time of the call, not one that a program chose
	atime          *time.Time
	kill           bool // the privileges that a file gives are to go, see killed
}

// changeOf reads a request of the kernel.
func changeOf(in *fuse.SetAttrIn) change {
	c := change{kill: in.Valid&fuse.FATTR_KILL_SUIDGID != 0, now: in.Valid&fuse.FATTR_MTIME_NOW != 0}
	if mode, ok := in.GetMode(); ok {
		c.mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		c.uid = &uid
	}
	if gid, ok := in.GetGID(); ok {
		c.gid = &gid
	}
	if mtime, ok := in.GetMTime(); ok {
		c.mtime = &mtime
	}
	if atime, ok := in.GetATime(); ok {
		if c.now && in.Valid&fuse.FATTR_ATIME_NOW != 0 {
			atime = time.Time{} // touch: the two are one time
		}
		c.atime = &atime
	}
	return c
}

// isEmpty reports whether there is nothing to change in the service.
func (c *change) isEmpty() bool {
	return c.mode == nil && c.uid == nil && c.gid == nil && c.mtime == nil && !c.kill
}

// apply returns what attributes become.
func (c *change) apply(a attributes) attributes {
	if c.mode != nil {
		a.mode = *c.mode & 0o7777
	}
	if c.kill {
		a.mode = killed(a.mode)
	}
	if c.uid != nil {
		a.uid = *c.uid
	}
	if c.gid != nil {
		a.gid = *c.gid
	}
	if c.mtime != nil {
		a.mtime = *c.mtime
	}
	return a
}

// same reports whether two attributes are what one stat shows.
func (a attributes) same(b attributes) bool {
	equal := a.mtime.Equal(b.mtime)
	a.mtime = b.mtime
	return equal && a == b
}

// setAttributes changes mode, owner or times of a node. Access times stay here.
func (v *view) setAttributes(ctx *request, n *node, in *fuse.SetAttrIn) error {
	c := changeOf(in)
	if err := v.setKept(ctx, n, c); err != nil {
		return err
	}
	if c.atime != nil {
		n.setAccessed(*c.atime)
	}
	return nil
}

// setKept changes mode, owner or time of change of a node, in the service unless the file is dirty: then they go with
// its commit. Without metadata it fails with EPERM unless all is shown already; the time of
// now is what the service gives to any change.
func (v *view) setKept(ctx *request, n *node, c change) error {
	if c.isEmpty() {
		return nil
	}
	if n == v.nodes.root {
		return v.setRootAttributes(c)
	}
	return v.changeMetadata(ctx, n, func(was attributes, m map[string]string) (time.Time, error) {
		now := c.apply(was)
		set := now.mtime // zero: it stays
		if now.mtime.Equal(was.mtime) {
			set = time.Time{}
		}
		if v.defaults.NoMetadata {
			if c.now {
				was.mtime = now.mtime // the service makes it so with every change
			}
			if !now.same(was) {
				return time.Time{}, syscall.EPERM
			}
			return set, nil
		}
		if year := set.UTC().Year(); year < 0 || year > 9999 {
			return time.Time{}, syscall.EINVAL // RFC 3339 has no form for it
		}
		v.defaults.put(m, n.kind, now)
		return set, nil
	})
}

// setRootAttributes refuses what the container has no metadata for; --dir-mode, --uid and --gid say what is shown. A time
// is kept for the life of the mount.
func (v *view) setRootAttributes(c change) error {
	was := v.defaults.attributesOf(kindDir, &blob.Properties{})
	now := c.apply(was)
	if now.mtime = was.mtime; !now.same(was) {
		return syscall.EPERM
	}
	if c.mtime != nil {
		v.nodes.root.touch(*c.mtime)
	}
	return nil
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
