package fs

import (
	"cmp"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache"
)

// StatusAttr is the extended attribute of the root of a mount that holds a Status as JSON. Only root and the user of the
// daemon may read it, since it has names of files that the permissions of directories may keep from others. It is in no
// list of attributes: copying tools copy what is listed.
const StatusAttr = attrPrefix + "status"

// MaxStatus is the most that the kernel passes on of an extended attribute, in bytes (XATTR_SIZE_MAX, linux/limits.h).
const MaxStatus = 64 << 10

// Status is what a mount does. The first group is what Options.About says; the rest is filled in when it is asked for.
type Status struct {
	Version          string `json:"version"`
	PID              int    `json:"pid"`
	Source           string `json:"source"`
	Account          string `json:"account"`
	CacheDir         string `json:"cache_dir"`
	BlobCacheTimeout string `json:"blob_cache_timeout"` // seconds, or none
	WriteBack        string `json:"write_back"`         // off, close or fsync-local

	Credential // as Options.Credential says

	ReadOnly    bool   `json:"read_only"`
	Open        string `json:"open"`         // auto as long as nothing was opened, then files or none
	Passthrough bool   `json:"passthrough"`  // the kernel reads cached files by itself
	Memory      int64  `json:"memory"`       // bytes, the bound of all buffers
	CacheSize   int64  `json:"cache_size"`   // bytes, the bound of cached data
	CacheUsed   int64  `json:"cache_used"`   // bytes, of all mounts that use the cache directory
	Evicted     int64  `json:"evicted"`      // versions that this mount removed from the cache to make room
	Nodes       int    `json:"nodes"`        // files and directories that the kernel knows, or that are open or not saved
	Names       int64  `json:"names"`        // names of which something is known
	Directories int    `json:"directories"`  // directories of which something is known
	NamesUsed   int64  `json:"names_used"`   // bytes of memory for them
	NamesMemory int64  `json:"names_memory"` // bytes, the bound of that
	Hidden      int64  `json:"hidden"`       // blobs that the last listings left out: no path can express their names
	Shadowed    int64  `json:"shadowed"`     // directories that were seen to hide a blob of their name, up to 65,536

	UnsavedFiles int       `json:"unsaved_files"` // files that the service does not have all of
	UnsavedBytes int64     `json:"unsaved_bytes"` // their sizes
	Unsaved      []Unsaved `json:"unsaved"`       // the oldest of them, at most 100

	UnfinishedRenames int      `json:"unfinished_renames"` // of directories, that are under way or were left
	Renames           []Rename `json:"renames"`            // the oldest of them, at most 10
}

// Rename is the rename of a directory that is not finished.
type Rename struct {
	From   string    `json:"from"` // relative to the mount
	To     string    `json:"to"`
	State  string    `json:"state"` // copying, deleting (the old names), or going back
	Blobs  int64     `json:"blobs"` // to rename, as far as they were listed
	Began  time.Time `json:"began"`
	Active bool      `json:"active"`          // this mount works on it; else the next one goes on
	Error  string    `json:"error,omitempty"` // why it does not
}

// Credential is what there is to say of the credential in use. It has no secret.
type Credential struct {
	Origin  string     `json:"credential"`                   // what it is and where it came from
	Since   time.Time  `json:"credential_since"`             // when it came into use
	Read    time.Time  `json:"credential_read"`              // when it was looked for last
	Expires *time.Time `json:"credential_expires,omitempty"` // of a SAS that says so
	Problem string     `json:"credential_problem,omitempty"` // what is wrong with it, or with what is to replace it
}

// Unsaved is a file that the service does not have all of.
type Unsaved struct {
	Name  string    `json:"name"` // relative to the mount
	ID    string    `json:"id"`   // of its staging file, as in blobmount recover; empty when it has none
	Bytes int64     `json:"bytes"`
	Since time.Time `json:"since"`
	Open  bool      `json:"open"`            // somebody may be writing to it
	Acked bool      `json:"acked"`           // a close was answered for it: it is durable on the local disk
	Lost  bool      `json:"lost"`            // another writer was faster: it is kept for blobmount recover
	Error string    `json:"error,omitempty"` // of the last attempt
}

// The bounds of what a Status lists.
const (
	maxUnsaved   = 100
	maxRenames   = 10
	maxErrorText = 300 // bytes
)

// getStatus answers for StatusAttr.
func (fs *fileSystem) getStatus(h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if h.Uid != 0 && h.Uid != uint32(os.Geteuid()) {
		return 0, fuse.Status(syscall.EACCES)
	}
	text, err := encodeStatus(fs.report())
	if err != nil {
		return 0, fs.status("getxattr", fs.nodes.root, "", err)
	}
	return sized(text, dest)
}

// report collects the Status. It waits for nothing but locks that are never held over a request.
func (fs *fileSystem) report() Status {
	s := fs.about
	if fs.credential != nil {
		s.Credential = fs.credential()
	}
	s.ReadOnly, s.Passthrough = fs.readOnly, fs.passthrough.on.Load()
	s.Open = OpenMode(fs.opener.mode.Load()).String()
	s.Memory = fs.cache.Memory()
	c := fs.cache.Statistics()
	s.CacheSize, s.CacheUsed, s.Evicted = c.Limit, c.Bytes, c.Evicted
	s.Nodes, s.Hidden = fs.nodes.size(), fs.names.Hidden()
	s.Shadowed = fs.odd.countShadowed()
	names := fs.names.Statistics()
	s.Names, s.Directories, s.NamesUsed, s.NamesMemory = names.Names, names.Directories, names.Bytes, names.Limit
	s.addUnsaved(fs.cache.Unsaved())
	s.addRenames(fs.cache.Renames(fs.cont))
	return s
}

// addRenames counts the renames, and lists the oldest.
func (s *Status) addRenames(all []blobcache.Rename) {
	s.UnfinishedRenames, s.Renames = len(all), []Rename{}
	for _, r := range all[:min(len(all), maxRenames)] {
		s.Renames = append(s.Renames, Rename{r.From, r.To, r.Step.String(), r.Blobs, r.Began, r.InUse, shortText(r.Reason)})
	}
}

// shortText makes one line of an error.
func shortText(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "")
}

// addUnsaved counts the files, and lists the oldest.
func (s *Status) addUnsaved(files []blobcache.Unsaved) {
	slices.SortFunc(files, func(a, b blobcache.Unsaved) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Name, b.Name))
	})
	s.UnsavedFiles, s.Unsaved = len(files), []Unsaved{}
	for _, f := range files {
		s.UnsavedBytes += f.Size
		if len(s.Unsaved) == maxUnsaved {
			continue
		}
		u := Unsaved{Name: f.Name, ID: f.ID, Bytes: f.Size, Since: f.Since, Open: f.Open, Acked: f.Acked, Lost: f.Lost}
		if f.Err != nil {
			u.Error = shortText(f.Err.Error())
		}
		s.Unsaved = append(s.Unsaved, u)
	}
}

// encodeStatus writes a Status in MaxStatus bytes at most: the names of 100 files can be longer than that, and those of 10
// directories. What is too long without any file is returned as it is, and whoever asked has no room for it (ERANGE).
func encodeStatus(s Status) (string, error) {
	for {
		text, err := json.Marshal(s)
		switch {
		case err != nil || len(text) <= MaxStatus:
			return string(text), err
		case len(s.Renames) > 2: // two take 25 KiB at most
			s.Renames = s.Renames[:2]
		case len(s.Unsaved) > 0:
			s.Unsaved = s.Unsaved[:len(s.Unsaved)/2]
		default:
			return string(text), nil
		}
	}
}
