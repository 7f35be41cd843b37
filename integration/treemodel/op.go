// Package treemodel compares a file system with a model of one in memory: random operations are made on both, and
// after each of them what the model says must be what the file system shows. A sequence that fails is made shorter
// while it still fails, and printed as a Go test case.
//
// The model (Model) knows nothing but POSIX and two rules of a container: directories may be implied by what is in them,
// and other hosts may put and delete blobs. It is proved itself: on a directory of the local file system it must agree,
// and file systems that are wrong on purpose must be found (the tests of this package).
package treemodel

import (
	"fmt"
	"strings"
)

// Kind is what an operation does.
type Kind int

// The operations. Unless they say otherwise they do what the system call of their name does. Operations on a handle that
// is not open, and those of other hosts on what this one has open or on what would not be a tree, are left out.
const (
	// Create writes a whole file, which may be there, and closes it. Exclusive: it must not be there (O_EXCL).
	Create Kind = iota
	// Write writes into a file that is there, and closes it.
	Write
	Append
	Truncate
	Read
	Rename // Exclusive: RENAME_NOREPLACE
	Mkdir
	Rmdir
	Unlink
	Symlink
	Chmod
	Utimes
	Stat // lstat
	Readdir
	// Open opens a file for reading and writing as a handle, which is closed first if it is open. It makes the file if
	// Mode is not 0.
	Open
	WriteHandle
	TruncateHandle
	ReadHandle
	SyncHandle
	CloseHandle
	// Remount closes all handles, and mounts anew. Exclusive: with an empty cache.
	Remount
	// ForeignPut and ForeignDelete are what another host does, past the mount. Exclusive: while this one has not mounted,
	// after it has closed all handles.
	ForeignPut
	ForeignDelete
	kinds
)

var kindNames = [...]string{
	"Create", "Write", "Append", "Truncate", "Read", "Rename", "Mkdir", "Rmdir", "Unlink", "Symlink", "Chmod", "Utimes",
	"Stat", "Readdir", "Open", "WriteHandle", "TruncateHandle", "ReadHandle", "SyncHandle", "CloseHandle", "Remount",
	"ForeignPut", "ForeignDelete",
}

func (k Kind) String() string { return kindNames[k] }

// Op is one operation. It can be made in any state of a tree, so that a sequence from which others were dropped is still
// one.
type Op struct {
	Do        Kind
	Path      string // relative to the root of the tree, without a slash at either end
	To        string // the other path of a Rename, the target of a Symlink
	Handle    int    // from 0 to Handles-1
	Off, Size int64  // bytes
	Seed      uint64 // of the bytes that are written
	Mode      uint32 // permission bits
	Time      int64  // seconds since 1970, of Utimes
	Exclusive bool
}

// Handles is how many there can be at a time.
const Handles = 3

// GoString writes an Op as an element of a []treemodel.Op.
func (o Op) GoString() string {
	var b strings.Builder
	fmt.Fprintf(&b, "{Do: treemodel.%v", o.Do)
	text := func(name, s string) {
		if s != "" {
			fmt.Fprintf(&b, ", %s: %q", name, s)
		}
	}
	number := func(name string, n int64) {
		if n != 0 {
			fmt.Fprintf(&b, ", %s: %d", name, n)
		}
	}
	text("Path", o.Path)
	text("To", o.To)
	number("Handle", int64(o.Handle))
	number("Off", o.Off)
	number("Size", o.Size)
	if o.Seed != 0 {
		fmt.Fprintf(&b, ", Seed: %d", o.Seed)
	}
	if o.Mode != 0 {
		fmt.Fprintf(&b, ", Mode: 0o%o", o.Mode)
	}
	number("Time", o.Time)
	if o.Exclusive {
		b.WriteString(", Exclusive: true")
	}
	b.WriteByte('}')
	return b.String()
}

// TestCase writes a sequence as a test case in Go; run is the call that makes it, up to the sequence.
func TestCase(name, run string, ops []Op) string {
	var b strings.Builder
	fmt.Fprintf(&b, "func %s(t *testing.T) {\n\t%s[]treemodel.Op{\n", name, run)
	for _, o := range ops {
		fmt.Fprintf(&b, "\t\t%#v,\n", o)
	}
	b.WriteString("\t})\n}\n")
	return b.String()
}

// bytes returns what an operation writes.
func (o Op) bytes() []byte {
	b := make([]byte, o.Size)
	x := o.Seed*0x9E3779B97F4A7C15 | 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return b
}
