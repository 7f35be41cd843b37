// Package blob is the vocabulary of a blob container and the one interface through which everything else
// reaches storage.
//
// It imports the standard library only. The names are the service's own: container, blob, block, ETag, prefix,
// metadata. The rules quoted here come from the REST reference of the Blob service
// (https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api).
package blob

import (
	"context"
	"io"
	"time"
)

// Limits of the service for block blobs (REST page "Understanding block blobs", version 2019-12-12 and later).
const (
	MaxBlocks     = 50_000     // committed blocks in one blob
	MaxBlockSize  = 4000 << 20 // bytes in one block
	MaxUploadSize = 5000 << 20 // bytes in one Put Blob
	MaxAppendSize = 100 << 20  // bytes in one Append Block (version 2022-11-02 and later)
	MaxNameLength = 1024       // characters in a blob name, see NameLength
	MaxSegments   = 254        // parts of a blob name between slashes ("Naming and Referencing ...")
)

// Container is one container of blobs, or a prefix of one (see Sub).
//
// All methods may be called in parallel. All return *Error on failure, except that a cancelled or expired
// context is returned so that errors.Is finds context.Canceled or context.DeadlineExceeded. A method does its own
// retries for failures that are safe to repeat, and returns when it succeeded, when it gave up, or when the
// context is done.
//
// After an error of a method that writes, the write may or may not have happened: a reply can be lost after the
// service acted.
type Container interface {
	// URL returns the blob's address without credentials: scheme, host, container and name. It identifies the
	// blob in the cache, so equal blobs give equal strings in every process. An empty name gives the container's.
	URL(name string) string

	// Properties returns the current properties of a blob.
	// With IfNoneMatch set to the current ETag it fails with NotModified. There is always an ETag: an answer without one
	// fails with Damaged.
	Properties(ctx context.Context, name string, c Condition) (Properties, error)

	// List returns one page of names in the order of their bytes, with properties and metadata.
	// A page may be empty and yet have a Next.
	List(ctx context.Context, o ListOptions) (Page, error)

	// ReadAt returns a stream of exactly count bytes from offset, or fewer when the blob ends before.
	// offset must lie inside the blob, else the error is InvalidRange; count must be positive. The bytes are those of the
	// version that IfMatch names: an answer that is of another one, as of a cache between, fails with Damaged.
	// The stream fails (never ends early with io.EOF) when the connection breaks; it does not resume by itself
	// under another ETag. The caller closes it. Its Properties are those of the version that is read.
	ReadAt(ctx context.Context, name string, offset, count int64, c Condition) (*Body, error)

	// Upload creates or replaces a blob in one request (Put Blob): a block blob, or an empty append blob, see
	// WriteOptions.Kind. The size is that of the body from its start; body is read from offset 0, more than once
	// when the request is repeated. If it is Summed, it fails with Damaged when it does not match.
	Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o WriteOptions) (Written, error)

	// StageBlock stores an uncommitted block (Put Block). The id is the raw, not yet base64-encoded, id, at most 64
	// bytes. All uncommitted blocks of one name have ids of one length: another fails with BlockIDLength. The
	// service discards blocks that are not committed within a week, and those left out at the next CommitBlockList
	// or Upload of the same name. The body may be Summed as that of Upload, and a *FileBody is sent from its file.
	StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error

	// StageBlockFrom stores an uncommitted block out of a range of a committed blob of this container, in the
	// service (Put Block From URL): the bytes do not pass through here. What StageBlock says of ids holds here too.
	// NotFound, and ConditionNotMet, are about the source; a range that does not begin inside it fails with
	// InvalidRange. Unsupported where the service has no such operation: then the caller has to read and stage.
	StageBlockFrom(ctx context.Context, name, id string, src Range) error

	// CommitBlockList makes the blob consist of exactly the named blocks (Put Block List). Each is looked for
	// first among the uncommitted blocks, then among the committed ones. Committed blocks that are not named are
	// gone. An id that is in neither list fails with InvalidBlockList.
	CommitBlockList(ctx context.Context, name string, ids []string, o WriteOptions) (Written, error)

	// BlockList returns the blocks of a blob. A blob written by Upload has no committed blocks.
	// NotFound when there is neither a blob nor an uncommitted block of that name.
	BlockList(ctx context.Context, name string) (BlockList, error)

	// AppendBlock adds size bytes to the end of an append blob that is position bytes long (Append Block), up to
	// MaxAppendSize. ConditionNotMet when it has another length or c does not hold, NotFound when there is no blob,
	// Unsupported when it is of another kind. The body is read as by Upload.
	AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, position int64, c Condition) (Written, error)

	// Copy copies a blob inside the container, in the service, and returns when the copy is complete.
	// Content, headers, metadata, block list, index tags, and a tier that was chosen for the source come along.
	// Tags need the permission to read and write them: a credential without it gets Forbidden for a blob that has
	// some, not a copy without them.
	Copy(ctx context.Context, dst, src string, o CopyOptions) (Written, error)

	// SetMetadata replaces all metadata of a blob. The ETag changes; content, headers, tier and tags do not.
	SetMetadata(ctx context.Context, name string, metadata map[string]string, c Condition) (Written, error)

	// Tags returns the index tags of a blob (Get Blob Tags), nil when there are none. They have no ETag: a change of
	// tags leaves the version as it is.
	Tags(ctx context.Context, name string) (map[string]string, error)

	// Delete deletes a blob, with its snapshots. Without a condition it deletes what is there when it begins, or what that is
	// replaced by; never a blob that another host has made after it, however often it is repeated.
	Delete(ctx context.Context, name string, c Condition) error

	// AcquireLease takes a lease on an existing blob (Lease Blob) for d, whole seconds from MinLease to MaxLease.
	// Until ReleaseLease or a successful Delete, every write, delete and block upload of that blob through this
	// Container carries the lease's id, also when the time is over. While the lease lasts, those of others fail with
	// Leased; reads do not mind. The lease stays with the name when the blob is replaced.
	//
	// The lease is the Container's: two callers of one Container share it, and acquiring what it holds already sets
	// the time anew. Leased when somebody else holds one. After another error the lease may be taken all the same: then
	// AcquireLease finds it as its own, ReleaseLease ends it, and until its end writes fail with Leased. Requests that
	// are under way while a lease is acquired or released may fail with Leased, too.
	AcquireLease(ctx context.Context, name string, d time.Duration) error

	// RenewLease gives a lease that this Container acquired its full time again. Leased when it is not held any
	// more: broken, or run out and the blob was changed or leased by somebody since. From then on writes fail with
	// Leased too, until AcquireLease or ReleaseLease.
	RenewLease(ctx context.Context, name string) error

	// ReleaseLease ends a lease that this Container acquired, so that others need not wait for its time to end.
	// Requests carry no id from then on, also when it fails: with Leased when the lease was not held any more.
	ReleaseLease(ctx context.Context, name string) error
}

// The time of a lease ("Lease Blob", x-ms-lease-duration). Leases without end are not for programs that may crash.
const (
	MinLease = 15 * time.Second
	MaxLease = 60 * time.Second
)

// ETag names a version of a blob. It is opaque, and kept as the service sent it, with its quotes.
type ETag string

// Any stands for every ETag: IfNoneMatch: Any means "must not exist", IfMatch: Any means "must exist".
const Any ETag = "*"

// Condition makes a request depend on the current version. The zero value is no condition.
type Condition struct {
	IfMatch     ETag
	IfNoneMatch ETag
}

// Kind is the type of a blob.
type Kind uint8

// The types of blob. The zero value is the common one.
const (
	BlockBlob Kind = iota
	AppendBlob
	PageBlob
)

// Headers are the standard headers that the service stores with a blob and gives back when it is read.
type Headers struct {
	ContentType        string
	ContentEncoding    string
	ContentLanguage    string
	ContentDisposition string
	CacheControl       string
	ContentMD5         []byte // 16 bytes, or nil when the service has none
}

// Properties describe one version of a blob.
type Properties struct {
	Name     string
	ETag     ETag
	Size     int64 // bytes
	Modified time.Time
	Created  time.Time
	Kind     Kind
	Tier     string // "Hot", "Cool", "Cold", "Archive", or empty when the service does not say
	// TierInferred: nobody chose the tier, it is the account's default.
	TierInferred bool
	// TagCount is the number of index tags; their text is asked for by Tags.
	TagCount int
	Headers  Headers
	// Metadata has lower-case names in every answer: HTTP gives header names no case, and azblob lower-cases
	// them in listings.
	Metadata map[string]string
	// VersionID is empty unless the account keeps versions.
	VersionID string
	// CopiedFrom is the name of the blob of this container that Copy made this one from, until its content is replaced.
	// Empty when it was not, or when somebody else copied it from elsewhere, or while the copy has not ended. Only Container.Properties tells it.
	CopiedFrom string
}

// Body is the content of a range, streaming in.
type Body struct {
	io.ReadCloser
	// Properties are those of the version that is read; Size is that of the whole blob.
	Properties Properties
}

// ListOptions choose what List returns.
type ListOptions struct {
	Prefix string
	// Delimiter "" lists all blobs below the prefix; "/" lists one level and folds the rest into Prefixes.
	Delimiter string
	// Marker is Page.Next of the page before, or empty.
	Marker string
	// MaxResults bounds blobs and prefixes of the page together; 0 means the service's maximum, 5,000.
	MaxResults int
}

// Page is one page of a listing.
type Page struct {
	Blobs []Properties
	// Prefixes end with the delimiter.
	Prefixes []string
	// Next is the marker of the next page, empty on the last one.
	Next string
}

// WriteOptions go with a write that replaces the blob's content. What is not set is removed by the service.
type WriteOptions struct {
	Condition Condition
	Headers   Headers
	Metadata  map[string]string
	Tier      string // empty: the account's default; only for block blobs
	// Tags are index tags, at most MaxTags ("Set Blob Tags": up to 128 and 256 letters, digits, spaces and
	// + - . / : = _ in a key and a value).
	Tags map[string]string
	// Kind is the type of blob that Upload makes: a block blob, or an append blob, which is created empty. The
	// service takes page blobs and block lists of other kinds for mistakes, and so do all methods here.
	Kind Kind
	// Distinct says that no other write sends the same metadata. By it an empty blob that must be new is known as the
	// caller's own when the answer to the request that made it was lost; others are reported as made by somebody else.
	Distinct bool
}

// MaxTags is the number of index tags that a blob may have ("Set Blob Tags").
const MaxTags = 10

// Range is a part of a committed blob of the same container. It must lie inside the version that is read: a caller
// makes sure of that by the Condition.
type Range struct {
	Name         string
	Offset, Size int64     // bytes; Size must be positive, at most MaxBlockSize
	Condition    Condition // on the source
}

// CopyOptions go with Copy.
type CopyOptions struct {
	// Source is the condition on the source, Condition the one on the destination.
	Source    Condition
	Condition Condition
	// Metadata replaces the source's when it is not empty: the request has no form that means "none".
	Metadata map[string]string
}

// Written says which version a write made.
type Written struct {
	ETag     ETag
	Modified time.Time
	// Doubtful: the answer to SetMetadata was lost, and the version that is there has the metadata that was sent. It
	// is not certain that it has the content of before. Of Copy: the answer was lost, and the version that is there is a
	// copy of the version that was to be copied; another host may have made it at the same time.
	Doubtful bool
}

// Block is one block of a blob.
type Block struct {
	ID   string // raw, not base64
	Size int64  // bytes
}

// BlockList holds the blocks of a blob, the committed ones in the order of the content.
type BlockList struct {
	ETag        ETag // empty when nothing was committed yet
	Committed   []Block
	Uncommitted []Block
}
