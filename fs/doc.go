// Package fs is the file system: it translates what the kernel asks into operations on names and files of a
// container, and keeps the table of what the kernel knows.
//
// It stands on go-fuse's fuse.RawFileSystem with a node table of its own, for reasons that ARCHITECTURE.md gives. A
// method of fileSystem finds the node and delegates; what an operation means is in dir.go, rename.go, file.go and
// symlink.go, which know nothing of the transport.
//
// # Nodes
//
// A node stands for one version of a blob at one place, or for a directory. When a lookup finds another ETag under a
// name, the name gets a new node: so the kernel may keep the pages of a node for ever. Our own commit moves the node
// to its new version in place, since the kernel's pages are what was committed.
//
// # Lock order
//
// moves.mu, then node.giving, then node.mu, then table.mu, then node.attrMu. None of them is held over a request to the service. The kernel itself
// holds the directories of a create, unlink, or rename exclusively, so those need no lock of ours.
package fs
