package fs

import (
	"encoding/hex"
	"strconv"
	"strings"
	"syscall"

	"blobmount/blobcache/blob"
)

// attrPrefix begins the names of the extended attributes that say what the service knows of a blob. They can be read
// only. No other extended attribute is kept.
const attrPrefix = "user.blobmount."

// xattrNames are the names after the prefix.
var xattrNames = []string{"cached", "content_md5", "etag", "tier", "type", "url", "version_id"}

var kindNames = map[blob.Kind]string{blob.BlockBlob: "block", blob.AppendBlob: "append", blob.PageBlob: "page"}

// xattr returns an extended attribute. cached is the number of bytes on the local disk, in decimal.
func (v *view) xattr(n *node, name string) (string, error) {
	short, ours := strings.CutPrefix(name, attrPrefix)
	if !ours {
		if strings.HasPrefix(name, "user.") {
			return "", syscall.ENODATA
		}
		return "", syscall.EOPNOTSUPP
	}
	path, _ := v.nodes.path(n)
	if short == "url" {
		return v.cont.URL(path), nil
	}
	p := n.properties()
	if p.ETag == "" {
		return "", syscall.ENODATA // an implied directory, or a file that the service does not have yet
	}
	value := ""
	switch short {
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

// xattrs returns the names that a node has, each ended by a NUL byte.
func (v *view) xattrs(n *node) string {
	var b strings.Builder
	for _, name := range xattrNames {
		if _, err := v.xattr(n, attrPrefix+name); err == nil {
			b.WriteString(attrPrefix + name + "\x00")
		}
	}
	return b.String()
}
