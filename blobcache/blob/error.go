package blob

import (
	"errors"
	"strings"
	"time"
)

// Code classes what went wrong, as far as a caller can act on it. It is the adapter's translation of the
// service's error code; the code itself is in Error.ServiceCode.
type Code uint8

// The classes of failure.
const (
	// Other is any failure that no other code names.
	Other Code = iota
	// NotFound: there is no blob of that name.
	NotFound
	// ContainerNotFound: the container or the account is not there, or is being deleted.
	ContainerNotFound
	// Exists: the write was to create a blob (IfNoneMatch: Any), and there is one.
	Exists
	// ConditionNotMet: the current version is not the one that the request named.
	ConditionNotMet
	// NotModified: a read with IfNoneMatch found that very version.
	NotModified
	// InvalidBlockList: a named block is not there (any more).
	InvalidBlockList
	// BlockIDLength: there are uncommitted blocks of that name, perhaps another program's, whose ids have another
	// length. BlockList tells which; ids of that length are taken, and the next CommitBlockList or Upload of the name
	// discards them.
	BlockIDLength
	// InvalidRange: the read began at or after the end.
	InvalidRange
	// InvalidName: the service does not take this name.
	InvalidName
	// Unauthenticated: the credential is wrong, expired or missing.
	Unauthenticated
	// Forbidden: the credential is good but may not do this.
	Forbidden
	// Archived: the blob is in the archive tier, and must be rehydrated before it can be read.
	Archived
	// Immutable: a policy or a legal hold forbids the change.
	Immutable
	// Leased: somebody else holds a lease on the blob, or the lease that was acquired here is held no more.
	Leased
	// TooLarge: the body, or the number of blocks, is beyond the service's limits.
	TooLarge
	// Throttled: the service asked for fewer requests, and all retries are used up.
	Throttled
	// Unavailable: the service could not be reached or failed, and all retries are used up.
	Unavailable
	// Damaged: the bytes that arrived are not the bytes that were sent (length or checksum).
	Damaged
	// Busy: somebody uses the blob in a way that does not allow this now.
	Busy
	// NotEmpty: there is something in the directory.
	NotEmpty
	// Unsupported: this kind of blob or account cannot do this.
	Unsupported
)

var codeNames = [...]string{
	Other:             "request failed",
	NotFound:          "blob not found",
	ContainerNotFound: "container not found",
	Exists:            "blob already exists",
	ConditionNotMet:   "blob was changed by somebody else",
	NotModified:       "blob is not modified",
	InvalidBlockList:  "block list names a block that is not there",
	BlockIDLength:     "uncommitted blocks of this blob have ids of another length",
	InvalidRange:      "range lies outside the blob",
	InvalidName:       "name is not valid for a blob",
	Unauthenticated:   "credential was not accepted",
	Forbidden:         "not permitted for this credential",
	Archived:          "blob is in the archive tier and must be rehydrated first",
	Immutable:         "blob is protected by an immutability policy or legal hold",
	Leased:            "blob is leased by somebody else, or the lease was lost",
	TooLarge:          "too large for the service",
	Throttled:         "service is throttling",
	Unavailable:       "service is not reachable",
	Damaged:           "data was damaged on its way",
	Busy:              "in use by somebody else",
	NotEmpty:          "directory is not empty",
	Unsupported:       "operation is not supported for this blob",
}

// String returns a phrase for messages.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return codeNames[Other]
}

// Error is the failure of one operation on a Container.
type Error struct {
	Code Code
	Op   string // the Container method, such as "StageBlock"
	Name string // the blob, or the prefix of a listing
	// ServiceCode is what the service called it (x-ms-error-code), Status the HTTP status, RequestID the
	// x-ms-request-id that Azure support asks for; each may be empty.
	ServiceCode string
	Status      int
	RequestID   string
	// Date is the time of the service when it answered, zero when there was no answer.
	Date time.Time
	Err  error // the cause, may be nil
}

// Error returns one line without credentials.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Name != "" {
		b.WriteString(" \"")
		b.WriteString(e.Name)
		b.WriteString("\"")
	}
	b.WriteString(": ")
	b.WriteString(e.Code.String())
	if e.ServiceCode != "" {
		b.WriteString(" (")
		b.WriteString(e.ServiceCode)
		b.WriteString(")")
	}
	if e.RequestID != "" {
		b.WriteString(" [request ")
		b.WriteString(e.RequestID)
		b.WriteString("]")
	}
	if e.Err != nil && e.ServiceCode == "" {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first *Error in err's chain, Other when there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Other
}

// Is reports whether err carries the code.
func Is(err error, c Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == c
}
