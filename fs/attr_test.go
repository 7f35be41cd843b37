package fs

import (
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
)

func TestAttributesOf(t *testing.T) {
	d := &Defaults{UID: 5, GID: 6, FileMode: 0o640, DirMode: 0o750}
	modified := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	stamped := time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, c := range []struct {
		name string
		kind kind
		m    map[string]string
		want attributes
	}{
		{"file", kindFile, nil, attributes{0o640, syscall.S_IFREG, 5, 6, modified}},
		{"directory", kindDir, nil, attributes{0o750, syscall.S_IFDIR, 5, 6, modified}},
		{"link", kindSymlink, map[string]string{"mode": "0600"}, attributes{0o777, syscall.S_IFLNK, 5, 6, modified}},
		{"all", kindFile, map[string]string{"mode": "04755", "uid": "7", "gid": "8", "mtime": "2020-01-02T03:04:05.000000678Z"},
			attributes{0o4755, syscall.S_IFREG, 7, 8, stamped}},
		{"with the type, as others write it", kindFile, map[string]string{"mode": "0100600"}, attributes{0o600, syscall.S_IFREG, 5, 6, modified}},
		{"fifo", kindSpecial, map[string]string{"mode": "010644"}, attributes{0o644, syscall.S_IFIFO, 5, 6, modified}},
		{"of other tools, in other forms", kindFile, map[string]string{"mode": "rw-r--r--", "uid": "root", "gid": "-1", "mtime": "yesterday"},
			attributes{0o640, syscall.S_IFREG, 5, 6, modified}},
		{"too large", kindFile, map[string]string{"mode": "77777777777777", "uid": "4294967296"}, attributes{0o640, syscall.S_IFREG, 5, 6, modified}},
		{"with an offset", kindFile, map[string]string{"mtime": "2020-01-02T04:04:05.000000678+01:00"}, attributes{0o640, syscall.S_IFREG, 5, 6, stamped}},
	} {
		got := d.attributesOf(c.kind, &blob.Properties{Modified: modified, Metadata: c.m})
		if !got.mtime.Equal(c.want.mtime) {
			t.Errorf("%s: changed at %v, want %v", c.name, got.mtime, c.want.mtime)
		}
		got.mtime = c.want.mtime
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// What is put into metadata is what is found there again, under other defaults too, and defaults leave nothing.
func TestPutAttributes(t *testing.T) {
	d := &Defaults{UID: 5, GID: 6, FileMode: 0o640, DirMode: 0o750}
	for _, k := range []kind{kindFile, kindDir, kindSpecial} {
		for _, a := range []attributes{{mode: 0o640, uid: 5, gid: 6}, {mode: 0o750, uid: 5, gid: 6}, {mode: 0o6711, uid: 0, gid: 1<<32 - 2}, {mode: 0, uid: 9, gid: 6}} {
			a.typ = map[kind]uint32{kindFile: syscall.S_IFREG, kindDir: syscall.S_IFDIR, kindSpecial: syscall.S_IFSOCK}[k]
			m := map[string]string{"other": "stays", "mode": "0123", "uid": "99"}
			d.put(m, k, a)
			if got := d.attributesOf(k, &blob.Properties{Metadata: m}); got != a {
				t.Errorf("kind %d: put %+v, found %+v in %v", k, a, got, m)
			}
			if m["other"] != "stays" {
				t.Error("what belongs to others was lost")
			}
			if k == kindSpecial && metadataKind(m) != kindSpecial {
				t.Errorf("not known as special: %v", m)
			}
		}
	}
	m := map[string]string{"mode": "0600", "uid": "1", "gid": "1"}
	d.put(m, kindFile, attributes{mode: 0o640, uid: 5, gid: 6})
	if len(m) != 0 {
		t.Errorf("the defaults are in the metadata: %v", m)
	}
	Stamp(m, time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("", 3600)))
	if want := map[string]string{"mtime": "2026-01-02T02:04:05.0000006Z"}; !maps.Equal(m, want) {
		t.Errorf("stamped %v, want %v", m, want)
	}
}

func TestKinds(t *testing.T) {
	for _, c := range []struct {
		e    blobcache.Entry
		want kind
	}{
		{blobcache.Entry{}, kindFile},
		{blobcache.Entry{Dir: true}, kindDir},
		{blobcache.Entry{Properties: blob.Properties{Metadata: map[string]string{"is_symlink": "True"}}}, kindSymlink},
		{blobcache.Entry{Properties: blob.Properties{Metadata: map[string]string{"is_symlink": "false"}}}, kindFile},
		{blobcache.Entry{Properties: blob.Properties{Metadata: map[string]string{"mode": "010600"}}}, kindSpecial},
		{blobcache.Entry{Properties: blob.Properties{Metadata: map[string]string{"mode": "0140600"}}}, kindSpecial},
		{blobcache.Entry{Properties: blob.Properties{Metadata: map[string]string{"mode": "0100600"}}}, kindFile},
	} {
		if got := kindOf(c.e); got != c.want {
			t.Errorf("%+v: kind %d, want %d", c.e, got, c.want)
		}
	}
}

// A blob whose metadata other tools have filled can be written to: its time gives way. Other changes say so at once.
func TestFullMetadata(t *testing.T) {
	k := newKernel(t, time.Hour)
	full := map[string]string{"theirs": strings.Repeat("x", maxMetadata-len("theirs"))}
	if _, err := k.store.Put("file", []byte("old"), blob.WriteOptions{Metadata: full}); err != nil {
		t.Fatal(err)
	}
	id := k.lookup(fuse.FUSE_ROOT_ID, "file")
	fh, s := k.open(id, syscall.O_RDWR)
	if s != fuse.OK || k.write(id, fh, 0, []byte("new")) != fuse.OK {
		t.Fatal("open or write failed")
	}
	chmod := func() fuse.Status {
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(id), Valid: fuse.FATTR_MODE, Mode: 0o600}}
		return k.fs.SetAttr(nil, &in, new(fuse.AttrOut))
	}
	if s := chmod(); s != fuse.Status(syscall.ENOSPC) {
		t.Errorf("chmod of a dirty file: %v", s)
	}
	if s := k.close(id, fh); s != fuse.OK {
		t.Errorf("close: %v", s)
	}
	if s := chmod(); s != fuse.Status(syscall.ENOSPC) {
		t.Errorf("chmod: %v", s)
	}
	p, err := k.store.Properties("file", blob.Condition{})
	if err != nil || !maps.Equal(p.Metadata, full) || k.get("file") != "new" {
		t.Errorf("the service has %d names in the metadata and %q, %v", len(p.Metadata), k.get("file"), err)
	}
	h := header(id)
	if s := k.fs.RemoveXAttr(nil, &h, "user.theirs"); s != fuse.OK {
		t.Errorf("removal: %v", s)
	}
	if s := chmod(); s != fuse.OK {
		t.Errorf("chmod with room: %v", s)
	}
}
