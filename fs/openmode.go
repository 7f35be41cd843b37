package fs

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// OpenMode says how the kernel opens files.
type OpenMode uint8

const (
	// OpenAuto chooses at the first open: OpenNone for a read-only mount of mostly small blobs, else OpenFiles.
	OpenAuto OpenMode = iota
	// OpenFiles: each open and close is a message. Large cached files are read by passthrough.
	OpenFiles
	// OpenNone: no messages for open and close, for the whole mount. The kernel keeps pages by itself, which is right
	// because a node is one version; a new version is seen at lookup, when the blob-cache timeout is over. It needs a
	// read-only mount and a timeout that is not zero, and excludes passthrough.
	OpenNone
)

var openModeNames = [...]string{"auto", "files", "none"}

func (m OpenMode) String() string { return openModeNames[m] }

// opener decides once for a mount whether there are open messages.
type opener struct {
	once sync.Once
	none bool // after once
	// mode is what was decided, an OpenMode, for those who must not decide it; OpenAuto before once.
	mode atomic.Uint32
}

// silent reports whether opens and closes go without messages. The first call decides.
func (fs *fileSystem) silent(first *node) bool {
	fs.opener.once.Do(func() {
		switch fs.openMode {
		case OpenNone:
			fs.opener.none = true
		case OpenAuto:
			small, all := fs.names.Sizes(passthroughMin)
			if all == 0 { // nothing was listed: judge by what is opened
				all = 1
				if first.properties().Size < passthroughMin {
					small = 1
				}
			}
			fs.opener.none = fs.readOnly && fs.timeout != 0 && 2*small > all
		}
		mode := OpenFiles
		if fs.opener.none {
			mode = OpenNone
		}
		fs.opener.mode.Store(uint32(mode))
		fs.log.Info("how files are opened", "without-messages", fs.opener.none)
	})
	return fs.opener.none
}

// readers keeps the files open that are read without having been opened, as far as it has places: reads come one by one,
// and each would otherwise open the cache file anew. Its methods may be called in parallel.
type readers struct {
	v *view

	mu    sync.Mutex // guards what is below
	order list.List  // of *reader, the one that was used last in front
	byID  map[*node]*list.Element
}

type reader struct {
	n *node
	f *blobcache.File
}

// maxReaders bounds the descriptors that are kept, of 1,024 that a process usually may have.
const maxReaders = 256

// get returns a node's file, opened for one use: the caller calls release of view. first says whether the node was not
// among the readers.
func (r *readers) get(n *node) (f *blobcache.File, first bool) {
	f = r.v.acquire(n, false)
	r.mu.Lock()
	if e := r.byID[n]; e != nil {
		r.order.MoveToFront(e)
		r.mu.Unlock()
		return f, false
	}
	r.byID[n] = r.order.PushFront(&reader{n, r.v.acquire(n, false)})
	var oldest *reader
	if r.order.Len() > maxReaders {
		oldest = r.take(r.order.Back())
	}
	r.mu.Unlock()
	r.close(oldest)
	return f, true
}

// drop closes the file of a node that the kernel has forgotten.
func (r *readers) drop(n *node) {
	r.mu.Lock()
	var x *reader
	if e := r.byID[n]; e != nil {
		x = r.take(e)
	}
	r.mu.Unlock()
	r.close(x)
}

// take removes a reader. r.mu is held.
func (r *readers) take(e *list.Element) *reader {
	x := r.order.Remove(e).(*reader)
	delete(r.byID, x.n)
	return x
}

func (r *readers) close(x *reader) {
	if x != nil {
		r.v.release(x.n, x.f, false)
	}
}

// readSilent answers a read that no open came before.
func (fs *fileSystem) readSilent(ctx *request, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := fs.nodes.get(in.NodeId)
	f, first := fs.readers.get(n)
	defer fs.release(n, f, false)
	if first {
		fs.prefetch.opened(n, false)
	}
	d, err := f.Read(ctx, buf, int64(in.Offset))
	if err != nil {
		return nil, fs.status("read", n, "", err)
	}
	return &lent{d}, fuse.OK
}
