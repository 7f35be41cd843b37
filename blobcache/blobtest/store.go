package blobtest

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tidwall/btree"

	"blobmount/blobcache/blob"
)

// StoreOptions change how a Store behaves. The zero value is the service's behaviour.
type StoreOptions struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// EmptyPages makes List answer every page with blobs only after an empty one, as the service may when it
	// crosses a partition boundary ("List Blobs": a marker can come back with zero results).
	EmptyPages bool
	// Hierarchical makes directories objects of their own, see hierarchy.go.
	Hierarchical bool
	// Written is told of every version that is made, in order. It must not call the Store, which is locked meanwhile.
	// nil is nobody.
	Written func(name string, etag blob.ETag, content Range)
}

// Store holds the blobs of one container, in memory. All methods may be called in parallel. Failures are
// *blob.Error with the service's code and status.
type Store struct {
	*blobs
	lease string // see WithLease
}

// blobs are what the views of one Store share.
type blobs struct {
	opts StoreOptions

	mu struct {
		sync.RWMutex
		// blobs is a B-tree because a listing needs to seek (to a marker, and past each folded prefix) in
		// O(log n) between writes at any name; a sorted slice would move up to 16 MB for each new name among a
		// million, and a map has no order. The records are immutable: a change replaces the record, so that a
		// reader needs the lock for the look-up only.
		// One that is deleted hides a blob of a set.
		blobs btree.Map[string, *record]
		// sets have the blobs that are made when they are asked for; what blobs has under a name counts.
		sets []*ruled
		// staged has the uncommitted blocks by blob name.
		staged map[string]map[string]content
		leases map[string]lease // by blob name
		ticks  uint64           // the last ETag given out
	}
}

// record is one version of a blob, immutable once it is in the tree.
type record struct {
	etag     uint64
	modified time.Time
	created  time.Time
	kind     blob.Kind
	tier     string        // empty: not chosen, or not a block blob
	headers  *blob.Headers // nil: only the default content type
	metadata map[string]string
	tags     map[string]string
	content  content
	blocks   []committed // nil when the blob was not written by a block list
	copied   string      // the blob of this store that it was copied from
}

type committed struct {
	id   string
	size int64
}

// defaultContentType is what the service stores when a writer names none ("Put Blob", x-ms-blob-content-type).
const defaultContentType = "application/octet-stream"

// The tiers that matter here: the one that accounts have by default, and the one that cannot be read.
const (
	defaultTier = "Hot"
	archive     = "Archive"
)

// maxUncommitted is the number of blocks that may wait for a commit ("Put Block", remarks).
const maxUncommitted = 100_000

// maxMetadata is the size of all metadata, names and values together ("Set Blob Metadata", remarks).
const maxMetadata = 8 << 10

// NewStore returns an empty container.
func NewStore(o StoreOptions) *Store {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &blobs{opts: o}
	s.mu.staged = map[string]map[string]content{}
	s.mu.leases = map[string]lease{}
	return &Store{blobs: s}
}

// stamp gives a new version its ETag and times. The caller holds mu for writing. ETags look like the service's:
// a count of 100 ns ticks since year 1, moved on when the clock did not.
func (s *Store) stamp(r *record) {
	const ticksTo1970 = 621_355_968_000_000_000
	now := s.opts.Now()
	s.mu.ticks = max(s.mu.ticks+1, uint64(now.UnixNano()/100+ticksTo1970))
	r.etag = s.mu.ticks
	r.modified = now.UTC().Truncate(time.Second) // HTTP dates carry no fractions
	if r.created.IsZero() {
		r.created = r.modified
	}
}

func formatETag(ticks uint64) blob.ETag {
	const digits = "0123456789ABCDEF"
	text := [len(`"0x`) + 16 + 1]byte{len(`"0x`) + 16: '"'}
	i := len(text) - 1
	for ; ticks > 0; ticks >>= 4 { // by hand: a listing makes 5,000
		i--
		text[i] = digits[ticks&15]
	}
	i -= len(`"0x`)
	copy(text[i:], `"0x`)
	return blob.ETag(text[i:])
}

func (r *record) written() blob.Written {
	return blob.Written{ETag: formatETag(r.etag), Modified: r.modified}
}

func (r *record) properties(name string) blob.Properties {
	p := blob.Properties{
		Name: name, ETag: formatETag(r.etag), Size: r.content.size(), Modified: r.modified, Created: r.created,
		Kind: r.kind, Tier: r.tier, Metadata: maps.Clone(r.metadata), TagCount: len(r.tags),
	}
	if r.tier == "" && r.kind == blob.BlockBlob {
		p.Tier, p.TierInferred = defaultTier, true
	}
	if r.headers != nil {
		p.Headers = *r.headers
		p.Headers.ContentMD5 = slices.Clone(p.Headers.ContentMD5)
	} else {
		p.Headers.ContentType = defaultContentType
	}
	return p
}

// put replaces the version of name. The caller holds mu for writing and has checked everything. A lease that is over
// ends for good.
func (s *Store) put(name string, r *record) blob.Written {
	s.stamp(r)
	if s.opts.Hierarchical {
		s.makeParents(name)
	}
	if l, ok := s.mu.leases[name]; ok && !l.state(s.opts.Now()).Locked() {
		delete(s.mu.leases, name)
	}
	s.mu.blobs.Set(name, r)
	if s.opts.Written != nil {
		s.opts.Written(name, formatETag(r.etag), Range{r.content, 0, r.content.size()})
	}
	return r.written()
}

// newRecord makes a version out of what a writer gave.
func newRecord(c content, o blob.WriteOptions) (*record, error) {
	r := &record{content: c, kind: o.Kind}
	if err := r.setHeaders(o.Headers); err != nil {
		return nil, err
	}
	var err error
	if r.tier, err = checkTier(o.Kind, o.Tier); err != nil {
		return nil, err
	}
	if r.tags, err = checkTags(o.Tags); err != nil {
		return nil, err
	}
	r.metadata, err = checkMetadata(o.Metadata)
	return r, err
}

// checkTier returns the tier that a writer may choose for a blob: only block blobs have one.
func checkTier(kind blob.Kind, tier string) (string, error) {
	switch tier {
	case "":
		return "", nil
	case defaultTier, "Cool", "Cold", archive:
		if kind == blob.BlockBlob {
			return tier, nil
		}
	}
	return "", Err("InvalidHeaderValue")
}

func (r *record) setHeaders(h blob.Headers) error {
	if n := len(h.ContentMD5); n != 0 && n != 16 {
		return Err("InvalidMd5")
	}
	if h.ContentType == "" {
		h.ContentType = defaultContentType
	}
	r.headers = nil
	if h.ContentType != defaultContentType || h.ContentEncoding != "" || h.ContentLanguage != "" ||
		h.ContentDisposition != "" || h.CacheControl != "" || len(h.ContentMD5) > 0 {
		h.ContentMD5 = slices.Clone(h.ContentMD5)
		r.headers = &h
	}
	return nil
}

// checkMetadata returns metadata as it is stored. Names are C# identifiers without case, values are what an HTTP
// header carries ("Setting and retrieving properties and metadata for Blob service resources").
func checkMetadata(metadata map[string]string) (map[string]string, error) {
	if len(metadata) == 0 {
		return nil, nil
	}
	size := 0
	out := make(map[string]string, len(metadata))
	for name, value := range metadata {
		size += len(name) + len(value)
		lower := strings.ToLower(name)
		if _, twice := out[lower]; twice || !identifier(lower) {
			return nil, Err("InvalidMetadata")
		}
		for i := range len(value) {
			if value[i] < ' ' && value[i] != '\t' || value[i] > '~' {
				return nil, Err("InvalidMetadata")
			}
		}
		out[lower] = strings.Trim(value, " \t") // as every HTTP server does
	}
	if size > maxMetadata {
		return nil, Err("MetadataTooLarge")
	}
	return out, nil
}

func identifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// checkName applies the rules of "Naming and referencing containers, blobs, and metadata".
func checkName(name string) error {
	switch {
	case name == "", blob.NameLength(name) > blob.MaxNameLength, strings.Count(name, "/") >= blob.MaxSegments:
		return Err("InvalidResourceName")
	case !utf8.ValidString(name), strings.ContainsRune(name, 0):
		return Err("InvalidUri")
	}
	return nil
}

// checkRead applies the condition of a read ("Specifying conditional headers for Blob service operations").
func checkRead(r *record, c blob.Condition) error {
	if r == nil {
		return Err("BlobNotFound")
	}
	etag := formatETag(r.etag)
	switch {
	case c.IfNoneMatch == blob.Any:
		return Err("UnsatisfiableCondition")
	case c.IfMatch != "" && c.IfMatch != blob.Any && c.IfMatch != etag:
		return Err("ConditionNotMet")
	case c.IfNoneMatch == etag:
		return notModified()
	}
	return nil
}

// checkWrite applies the condition of a write; r is nil when there is no blob. A write that creates a blob in
// spite of If-None-Match: * fails with BlobAlreadyExists, all others with ConditionNotMet.
func checkWrite(r *record, c blob.Condition) error {
	if r == nil {
		if c.IfMatch != "" {
			return Err("ConditionNotMet")
		}
		return nil
	}
	etag := formatETag(r.etag)
	switch {
	case c.IfNoneMatch == blob.Any:
		return Err("BlobAlreadyExists")
	case c.IfMatch != "" && c.IfMatch != blob.Any && c.IfMatch != etag, c.IfNoneMatch == etag:
		return Err("ConditionNotMet")
	}
	return nil
}

// checkChange applies the condition of a write that needs an existing blob.
func checkChange(r *record, c blob.Condition) error {
	if r == nil {
		return Err("BlobNotFound")
	}
	if c.IfNoneMatch == blob.Any {
		return Err("ConditionNotMet")
	}
	return checkWrite(r, c)
}

// checkReplace applies condition and lease of a write that makes a new version of name, out of old or beside it. The
// caller holds mu.
func (s *Store) checkReplace(name string, old *record, c blob.Condition) error {
	if err := checkWrite(old, c); err != nil {
		return err
	}
	if s.opts.Hierarchical {
		if err := s.checkPath(name); err != nil {
			return err
		}
	}
	return s.checkLease(name)
}

// get returns the version of name, nil when there is none. The caller holds mu.
func (s *Store) get(name string) *record {
	switch r, ok := s.mu.blobs.Get(name); {
	case !ok:
		return s.fromSets(name)
	case r == deleted:
		return nil
	default:
		return r
	}
}

// current returns the version of name, nil when there is none.
func (s *Store) current(name string) *record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.get(name)
}

// Len returns the number of blobs.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.mu.blobs.Len()
	if len(s.mu.sets) == 0 {
		return n
	}
	n = 0
	for w, ok := s.walk(""); ok; ok = w.next() {
		n++
	}
	return n
}

// Properties returns the properties of a blob (Get Blob Properties).
func (s *Store) Properties(name string, c blob.Condition) (blob.Properties, error) {
	if err := checkName(name); err != nil {
		return blob.Properties{}, err
	}
	r := s.current(name)
	if err := checkRead(r, c); err != nil {
		return blob.Properties{}, err
	}
	p := r.properties(name)
	p.CopiedFrom = r.copied
	return p, nil
}

// Get returns a range of a blob (Get Blob). A negative count means to the end, and with offset 0 the whole blob,
// which may be empty; else the offset must lie inside the blob. The range is cut at the blob's end.
func (s *Store) Get(name string, offset, count int64, c blob.Condition) (blob.Properties, Range, error) {
	if err := checkName(name); err != nil {
		return blob.Properties{}, Range{}, err
	}
	r := s.current(name)
	if err := checkRead(r, c); err != nil {
		return blob.Properties{}, Range{}, err
	}
	if r.tier == archive {
		return blob.Properties{}, Range{}, Err("BlobArchived")
	}
	size := r.content.size()
	whole := offset == 0 && count < 0
	if offset < 0 || count == 0 || offset >= size && !whole {
		return blob.Properties{}, Range{}, Err("InvalidRange")
	}
	if count < 0 || count > size-offset {
		count = size - offset
	}
	return r.properties(name), Range{r.content, offset, count}, nil
}

// SetMetadata replaces the metadata of a blob (Set Blob Metadata).
func (s *Store) SetMetadata(name string, metadata map[string]string, c blob.Condition) (blob.Written, error) {
	m, err := checkMetadata(metadata)
	if err != nil {
		return blob.Written{}, err
	}
	return s.change(name, c, func(r *record) error {
		if r.tier == archive {
			return Err("BlobArchived")
		}
		r.metadata = m
		return nil
	})
}

// SetHeaders replaces the standard headers of a blob (Set Blob Properties).
func (s *Store) SetHeaders(name string, h blob.Headers, c blob.Condition) (blob.Written, error) {
	return s.change(name, c, func(r *record) error {
		r.copied = "" // "Get Blob Properties", x-ms-copy-source: until Set Blob Properties, Put Blob or Put Block List
		return r.setHeaders(h)
	})
}

// SetTier moves a blob to another access tier (Set Blob Tier). Unlike every other change it leaves the ETag and
// the time alone. Leaving the archive is done at once.
func (s *Store) SetTier(name, tier string) error {
	return s.amend(name, func(r *record) error {
		if r.kind != blob.BlockBlob {
			return Err("InvalidBlobType")
		}
		if tier == "" {
			return Err("InvalidHeaderValue")
		}
		var err error
		r.tier, err = checkTier(r.kind, tier)
		return err
	})
}

// change makes a new version that differs from the current one by what f does.
func (s *Store) change(name string, c blob.Condition, f func(*record) error) (blob.Written, error) {
	if err := checkName(name); err != nil {
		return blob.Written{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.get(name)
	if err := checkChange(old, c); err != nil {
		return blob.Written{}, err
	}
	if err := s.checkLease(name); err != nil {
		return blob.Written{}, err
	}
	r := *old
	if err := f(&r); err != nil {
		return blob.Written{}, err
	}
	return s.put(name, &r), nil
}

// Delete deletes a blob, its uncommitted blocks and its lease (Delete Blob).
func (s *Store) Delete(name string, c blob.Condition) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.get(name)
	if err := checkChange(old, c); err != nil {
		return err
	}
	if s.opts.Hierarchical && old.isDirectory() {
		return Err("OperationNotSupportedOnDirectory")
	}
	if err := s.checkLease(name); err != nil {
		return err
	}
	if s.fromSets(name) == nil {
		s.mu.blobs.Delete(name)
	} else {
		s.mu.blobs.Set(name, deleted)
	}
	delete(s.mu.staged, name)
	delete(s.mu.leases, name)
	return nil
}
