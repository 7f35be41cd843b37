// Package blobcache keeps versions of blobs on the local disk and in memory, reads ahead, and stages what
// programs write until the service has it.
//
// # Terms
//
// A version is one content of one blob: (container URL, blob name, ETag). Its bytes never change, so cached bytes
// never become wrong, they are only evicted. A grain is the unit in which presence is recorded, 64 KiB. A fetch is
// one ranged request; its bytes are in memory while they arrive and until the budget needs the space. A File is
// one blob opened through the cache: a version to read from and, once it was written to, a staging file over it.
//
// # On disk
//
//	DIR/format                      "blobmount cache 1"
//	DIR/usage                       bytes in use, shared by all processes (a mapped counter)
//	DIR/v1/ab/c/<29 hex>.blob       a complete version at its natural offsets
//	DIR/v1/ab/c/<29 hex>.part       an incomplete one, sparse
//	DIR/v1/ab/c/<29 hex>.map        which grains of it are there, and the CRC-32C of each
//	DIR/staging/<id>.data           a staging file, sparse
//	DIR/staging/<id>.journal        what it holds (see journal), locked by the process that works with it
//	DIR/renames/<id>.journal        the rename of a directory under way (see renamejournal.go), locked in the same way
//
// The directory is its own index: whether a version is cached is answered by opening its path. Nothing is scanned
// when a cache is opened, and several processes may use one directory: bytes are written before the bit that says
// so, completion is published by a link to the very file that was filled, or by a rename of a staging file, and eviction
// only ever unlinks.
//
// # Writing
//
// A write goes into the staging file, then into its journal, and returns. Full blocks are uploaded while the program
// writes. A commit, by a close or fsync, uploads the rest and makes it the content of the blob, under the condition that
// nobody else has changed it; with write-back the local disk is enough for the answer, and the commit follows. A staging
// file is deleted, or becomes the cached version, only when the service has all of it. What a process leaves behind is
// committed by Recover if it was closed or synced, and else waits for somebody to decide (ListLeft, Save, Retry, Discard).
//
// # Lock order
//
// File.commit, then File.writers, then File.mu, then space.mu (making room asks what is open), then Cache.mu, then
// version.mu, then fetch.mu, then residents.mu, then budget.mu and Cache.checkedMu. signal.mu is taken with nothing else.
// No two Files are locked at once. No lock is held over a request to the service, but for File.commit, which orders the
// commits of one file, and File.writers, which a commit takes alone in its third round so that it ends. Hooks are called
// with File.commit held.
package blobcache
