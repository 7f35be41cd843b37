package fs

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"blobmount/blobcache/blob"
)

// userPrefix begins the names of the extended attributes that programs may set. They are metadata, see metadataName.
const userPrefix = "user."

// attrPrefix begins the names of those that say what the service and the cache know of a blob. They can only be read, and
// are in no list: programs that copy what is listed would try to set them on the copy, and fail.
const attrPrefix = userPrefix + "blobmount."

// maxXattrs is how many bytes names and values in metadata may have together, but for those of reserved, for which 192
// bytes are left: a blob whose metadata was full could not even be written to. The service takes 8 KiB in all.
const maxXattrs = maxMetadata - 192

var kindNames = map[blob.Kind]string{blob.BlockBlob: "block", blob.AppendBlob: "append", blob.PageBlob: "page"}

// hasXattrs reports whether a node may have extended attributes of programs. The kernel refuses them for others than files
// and directories (xattr(7)), and the root of a mount has no metadata of this kind.
func (v *view) hasXattrs(n *node) bool {
	return n.kind == kindFile || n.kind == kindDir && n != v.nodes.root
}

// metadata returns the metadata of a node as this mount sees it. It must not be changed.
func (n *node) metadata() map[string]string {
	if f := n.opened(); f != nil {
		return f.State().Properties.Metadata
	}
	return n.properties().Metadata
}

// xattr returns an extended attribute.
//
// The kernel asks for security.capability before each write and each start of a program when it is told that there is
// none (ENODATA), and not when it is told that there is no such kind.
func (v *view) xattr(ctx context.Context, n *node, name string) (string, error) {
	if short, ours := strings.CutPrefix(name, attrPrefix); ours {
		return v.described(ctx, n, short)
	}
	short, user := strings.CutPrefix(name, userPrefix)
	if !user {
		return "", syscall.EOPNOTSUPP
	}
	if value, ok := n.metadata()[metadataName(short)]; ok && v.hasXattrs(n) {
		return xattrValue(value), nil
	}
	return "", syscall.ENODATA
}

// described returns what the service and the cache know of a blob. cached is the number of bytes on the local disk.
func (v *view) described(ctx context.Context, n *node, name string) (string, error) {
	path, _ := v.nodes.path(n)
	switch name {
	case "url":
		return v.cont.URL(path), nil
	case "shadowed":
		return v.shadowed(ctx, n, path)
	}
	p := n.properties()
	if p.ETag == "" {
		return "", syscall.ENODATA // an implied directory, or a file that the service does not have yet
	}
	value := ""
	switch name {
	case "etag":
		value = string(p.ETag)
	case "tier":
		value = p.Tier
	case "type":
		value = kindNames[p.Kind]
	case "content_md5":
		value = hex.EncodeToString(p.Headers.ContentMD5)
	case "version_id":
		value = p.VersionID
	case "cached":
		if n.kind == kindFile {
			value = strconv.FormatInt(v.cache.Cached(v.cont, p), 10)
		}
	}
	if value == "" {
		return "", syscall.ENODATA
	}
	return value, nil
}

// shadowed describes, as JSON, the blob that a directory hides. Its content can be larger than an attribute, 64 KiB, so
// the attribute says where it is.
func (v *view) shadowed(ctx context.Context, n *node, path string) (string, error) {
	if !n.getEntry().Shadowed {
		return "", syscall.ENODATA
	}
	p, err := v.cont.Properties(ctx, path, blob.Condition{})
	if blob.Is(err, blob.NotFound) {
		return "", syscall.ENODATA // it was there when the directory was looked up
	}
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(struct {
		URL      string    `json:"url"`
		Size     int64     `json:"size"` // bytes
		ETag     blob.ETag `json:"etag"`
		Modified time.Time `json:"modified"`
	}{v.cont.URL(path), p.Size, p.ETag, p.Modified})
	return string(text), err
}

// xattrs returns the names of a node's extended attributes, each ended by a NUL byte.
func (v *view) xattrs(n *node) string {
	if !v.hasXattrs(n) {
		return ""
	}
	var b strings.Builder
	for _, name := range xattrNames(n.metadata()) {
		b.WriteString(userPrefix + name + "\x00")
	}
	return b.String()
}

// xattrNames returns the names, after "user.", of the extended attributes in metadata.
func xattrNames(m map[string]string) []string {
	var names []string
	for key := range m {
		if name, ok := xattrName(key); ok && !isDescription(userPrefix+name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// isDescription reports whether an attribute is one of ours, which only we give.
func isDescription(name string) bool { return strings.HasPrefix(name, attrPrefix) }

// setXattr sets an extended attribute. flags are those of setxattr(2).
func (v *view) setXattr(ctx context.Context, n *node, name, value string, flags uint32) error {
	return v.changeXattr(ctx, n, name, func(m map[string]string, short string) error {
		return putXattr(m, short, value, flags)
	})
}

// removeXattr removes an extended attribute.
func (v *view) removeXattr(ctx context.Context, n *node, name string) error {
	return v.changeXattr(ctx, n, name, func(m map[string]string, short string) error {
		key := metadataName(short)
		if _, ok := m[key]; !ok {
			return syscall.ENODATA
		}
		delete(m, key)
		return nil
	})
}

// putXattr puts the extended attribute user.NAME into metadata.
func putXattr(m map[string]string, name, value string, flags uint32) error {
	key, kept := metadataName(name), metadataValue(value)
	switch old, ok := m[key]; {
	case ok && flags&unix.XATTR_CREATE != 0:
		return syscall.EEXIST
	case !ok && flags&unix.XATTR_REPLACE != 0:
		return syscall.ENODATA
	case ok && xattrValue(old) == value:
		return nil
	}
	size := len(key) + len(kept)
	for k, other := range m {
		if k != key && !slices.Contains(reserved, k) {
			size += len(k) + len(other)
		}
	}
	if size > maxXattrs {
		return syscall.ENOSPC
	}
	m[key] = kept
	return nil
}

// changeXattr lets act change metadata for the extended attribute user.SHORT.
func (v *view) changeXattr(ctx context.Context, n *node, name string, act func(m map[string]string, short string) error) error {
	short, user := strings.CutPrefix(name, userPrefix)
	switch {
	case !user:
		return syscall.EOPNOTSUPP
	case isDescription(name), !v.hasXattrs(n):
		return syscall.EPERM
	case short == "":
		return syscall.EINVAL
	}
	return v.changeMetadata(ctx, n, func(_ attributes, m map[string]string) (time.Time, error) {
		return time.Time{}, act(m, short)
	})
}
