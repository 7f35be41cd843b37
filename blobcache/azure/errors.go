package azure

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"blobmount/blobcache/blob"
)

// codes translates the service's error codes
// (https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and common-rest-api-error-codes).
// What is not here is judged by the HTTP status.
var codes = map[bloberror.Code]blob.Code{
	bloberror.BlobNotFound:              blob.NotFound,
	pathNotFound:                        blob.NotFound,
	sourcePathNotFound:                  blob.NotFound,
	renameDestinationParentPathNotFound: blob.NotFound,

	bloberror.AccountIsDisabled:     blob.ContainerNotFound,
	bloberror.ContainerBeingDeleted: blob.ContainerNotFound,
	bloberror.ContainerDisabled:     blob.ContainerNotFound,
	bloberror.ContainerNotFound:     blob.ContainerNotFound,
	// What an anonymous request gets from a container that is not public. It says nothing about the blob.
	bloberror.ResourceNotFound: blob.ContainerNotFound,

	bloberror.BlobAlreadyExists:     blob.Exists,
	bloberror.ResourceAlreadyExists: blob.Exists,
	pathAlreadyExists:               blob.Exists,

	directoryNotEmpty:   blob.NotEmpty,
	directoryIsNotEmpty: blob.NotEmpty,

	bloberror.AppendPositionConditionNotMet: blob.ConditionNotMet,
	bloberror.ConditionNotMet:               blob.ConditionNotMet,
	bloberror.MaxBlobSizeConditionNotMet:    blob.ConditionNotMet,
	bloberror.SourceConditionNotMet:         blob.ConditionNotMet,
	bloberror.TargetConditionNotMet:         blob.ConditionNotMet,

	bloberror.InvalidBlockList: blob.InvalidBlockList,
	// Put Block sends it for an id of another length, and for nothing else that this package could ask for.
	bloberror.InvalidBlobOrBlock: blob.BlockIDLength,
	bloberror.InvalidRange:       blob.InvalidRange,

	bloberror.InvalidResourceName:     blob.InvalidName,
	bloberror.InvalidURI:              blob.InvalidName,
	bloberror.RequestURLFailedToParse: blob.InvalidName,

	bloberror.AuthenticationFailed:        blob.Unauthenticated,
	bloberror.InvalidAuthenticationInfo:   blob.Unauthenticated,
	bloberror.NoAuthenticationInformation: blob.Unauthenticated,
	publicAccessNotPermitted:              blob.Unauthenticated,

	bloberror.AuthorizationFailure:              blob.Forbidden,
	bloberror.AuthorizationPermissionMismatch:   blob.Forbidden,
	bloberror.AuthorizationProtocolMismatch:     blob.Forbidden,
	bloberror.AuthorizationResourceTypeMismatch: blob.Forbidden,
	bloberror.AuthorizationServiceMismatch:      blob.Forbidden,
	bloberror.AuthorizationSourceIPMismatch:     blob.Forbidden,
	bloberror.InsufficientAccountPermissions:    blob.Forbidden,
	bloberror.UnauthorizedBlobOverwrite:         blob.Forbidden,
	keyBasedAuthenticationNotPermitted:          blob.Forbidden,

	bloberror.BlobArchived:        blob.Archived,
	bloberror.BlobBeingRehydrated: blob.Archived,

	bloberror.BlobImmutableDueToPolicy: blob.Immutable,

	// A write to the destination of a copy that has not ended.
	bloberror.PendingCopyOperation: blob.Busy,

	bloberror.LeaseAlreadyPresent:                blob.Leased,
	bloberror.LeaseIDMismatchWithBlobOperation:   blob.Leased,
	bloberror.LeaseIDMismatchWithLeaseOperation:  blob.Leased,
	bloberror.LeaseIDMissing:                     blob.Leased,
	bloberror.LeaseIsBreakingAndCannotBeAcquired: blob.Leased,
	bloberror.LeaseIsBrokenAndCannotBeRenewed:    blob.Leased,
	bloberror.LeaseLost:                          blob.Leased,
	bloberror.LeaseNotPresentWithBlobOperation:   blob.Leased,
	bloberror.LeaseNotPresentWithLeaseOperation:  blob.Leased,

	bloberror.BlockCountExceedsLimit:           blob.TooLarge,
	bloberror.BlockListTooLong:                 blob.TooLarge,
	bloberror.ContentLengthLargerThanTierLimit: blob.TooLarge,
	bloberror.MetadataTooLarge:                 blob.TooLarge,
	bloberror.RequestBodyTooLarge:              blob.TooLarge,

	bloberror.ServerBusy: blob.Throttled,

	bloberror.InternalError:     blob.Unavailable,
	bloberror.OperationTimedOut: blob.Unavailable,

	bloberror.CRC64Mismatch: blob.Damaged,
	bloberror.MD5Mismatch:   blob.Damaged,

	bloberror.BlobUsesCustomerSpecifiedEncryption:      blob.Unsupported,
	bloberror.ConditionHeadersNotSupported:             blob.Unsupported,
	bloberror.FeatureVersionMismatch:                   blob.Unsupported,
	bloberror.InvalidBlobType:                          blob.Unsupported,
	bloberror.InvalidSourceBlobType:                    blob.Unsupported,
	bloberror.OperationNotAllowedOnIncrementalCopyBlob: blob.Unsupported,
	blobOperationNotSupported:                          blob.Unsupported,
	featureNotSupported:                                blob.Unsupported,
	operationNotSupportedOnDirectory:                   blob.Unsupported,
}

// Codes that the service sends and azblob has no name for.
const (
	blobOperationNotSupported          bloberror.Code = "BlobOperationNotSupported"
	operationNotSupportedOnDirectory   bloberror.Code = "OperationNotSupportedOnDirectory"
	publicAccessNotPermitted           bloberror.Code = "PublicAccessNotPermitted"
	keyBasedAuthenticationNotPermitted bloberror.Code = "KeyBasedAuthenticationNotPermitted"
)

// Codes of the Data Lake Storage operations ("Path - Create", "Path - Delete"). The Blob service has a word of its own for
// a directory that is not empty.
const (
	pathNotFound                        bloberror.Code = "PathNotFound"
	sourcePathNotFound                  bloberror.Code = "SourcePathNotFound"
	renameDestinationParentPathNotFound bloberror.Code = "RenameDestinationParentPathNotFound"
	pathAlreadyExists                   bloberror.Code = "PathAlreadyExists"
	directoryNotEmpty                   bloberror.Code = "DirectoryNotEmpty"
	directoryIsNotEmpty                 bloberror.Code = "DirectoryIsNotEmpty"
)

// statuses is for answers without an error code that we know.
var statuses = map[int]blob.Code{
	http.StatusUnauthorized:                 blob.Unauthenticated,
	http.StatusForbidden:                    blob.Forbidden,
	http.StatusNotFound:                     blob.NotFound,
	http.StatusRequestTimeout:               blob.Unavailable,
	http.StatusPreconditionFailed:           blob.ConditionNotMet,
	http.StatusRequestEntityTooLarge:        blob.TooLarge,
	http.StatusRequestedRangeNotSatisfiable: blob.InvalidRange,
	http.StatusTooManyRequests:              blob.Throttled,
	http.StatusInternalServerError:          blob.Unavailable,
	http.StatusBadGateway:                   blob.Unavailable,
	http.StatusNotImplemented:               blob.Unsupported,
	http.StatusServiceUnavailable:           blob.Throttled,
	http.StatusGatewayTimeout:               blob.Unavailable,
}

// notOfService reports whether a 404 without an error code that we know is one of a gateway or proxy between, that has no way
// to the service: it says nothing about a blob, and may pass. The service gives each answer a request id ("Status and error
// codes", and the response headers of each operation: x-ms-request-id), those to HEAD too.
func notOfService(status int, header http.Header) bool {
	return status == http.StatusNotFound && header.Get("x-ms-request-id") == ""
}

// fail makes the error of an operation from whatever the SDK returned; nil stays nil.
func fail(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	e := &blob.Error{Op: op, Name: name}
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		fromAnswer(e, answer)
		return e
	}
	if ctx.Err() != nil {
		e.Err = ctx.Err()
		return e
	}
	var token *credentialError
	var held *heldError
	var lost *unreachableError
	var cert *tls.CertificateVerificationError
	var other *versionError
	e.Err = safe(err)
	switch {
	case errors.As(err, &token):
		e.Code = blob.Unauthenticated
		if token.temporary() {
			e.Code = blob.Unavailable
		}
	case errors.Is(err, errDamaged), errors.As(err, &other):
		e.Code = blob.Damaged
	case errors.Is(err, errReplaced):
		e.Code = blob.ConditionNotMet
	case errors.As(err, &held):
		e.Code = blob.Throttled
	case errors.As(err, &lost), errors.As(err, &cert):
		e.Code = blob.Unavailable
	}
	return e
}

// failWrite is fail for a write with a condition. To a caller who said IfNoneMatch: Any, "condition not met"
// means that the blob exists. The service says so with 409 BlobAlreadyExists in most cases, and with 412 in some.
func failWrite(ctx context.Context, op, name string, c blob.Condition, err error) error {
	err = fail(ctx, op, name, err)
	e, ok := errors.AsType[*blob.Error](err)
	switch {
	case !ok:
	case e.Code == blob.NotModified:
		// 304 to a write is about the source of a copy: the same failed condition as in a read.
		e.Code = blob.ConditionNotMet
	case e.Code == blob.ConditionNotMet && c.IfNoneMatch == blob.Any && e.ServiceCode != string(bloberror.SourceConditionNotMet):
		e.Code = blob.Exists
	}
	return err
}

func fromAnswer(e *blob.Error, answer *azcore.ResponseError) {
	e.Status = answer.StatusCode
	e.ServiceCode = answer.ErrorCode
	header := http.Header{}
	if answer.RawResponse != nil {
		header = answer.RawResponse.Header
	}
	e.RequestID = header.Get("x-ms-request-id")
	e.Date, _ = http.ParseTime(header.Get("Date")) // zero if it is not there
	code, known := codes[bloberror.Code(answer.ErrorCode)]
	switch {
	case answer.StatusCode == http.StatusNotModified:
		// HEAD and GET with If-None-Match; its error code is ConditionNotMet.
		e.Code = blob.NotModified
	case answer.ErrorCode == string(bloberror.CannotVerifyCopySource):
		// Copy could not read its source; the status is that of the reading.
		e.Code = statuses[answer.StatusCode]
	case known:
		e.Code = code
	case notOfService(answer.StatusCode, header):
		e.Code = blob.Unavailable
	default:
		e.Code = statuses[answer.StatusCode] // Other when it is not there
	}
	e.Err = &answerError{answer.StatusCode, explanation(answer)}
}

// answerError is the cause kept for the log: what the service said, without the parts that may hold secrets.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("the service answered %d %s", e.status, http.StatusText(e.status))
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

// explanation returns the first line of the message in the body. Answers about authentication have none: they
// quote the signature that was sent.
func explanation(answer *azcore.ResponseError) string {
	if answer.RawResponse == nil || answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden {
		return ""
	}
	body, err := runtime.Payload(answer.RawResponse)
	if err != nil {
		return ""
	}
	var m struct {
		Message string `xml:"Message"`
	}
	if xml.Unmarshal(body, &m) != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(m.Message), "\n")
	return redact(line)
}

// unreachableError is a failure of the connection, after all repetitions.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// credentialError is a failure to get a token.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return "no token: " + e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// temporary reports whether the credential says of its own failure that it may pass, by a method of this name: where
// tokens come from was not reached, or failed.
func (e *credentialError) temporary() bool {
	var t interface{ Temporary() bool }
	return errors.As(e.err, &t) && t.Temporary()
}

// bodyError is a failure to read what is to be uploaded. Repeating the request would not help.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "reading what is to be uploaded: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }
func (e *bodyError) NonRetriable() {}

// safeError carries a cause without its secrets.
type safeError struct {
	text string
	err  error // nil when the original may not be looked at
}

func (e *safeError) Error() string { return e.text }
func (e *safeError) Unwrap() error { return e.err }

// safe returns err in a form that may be shown. Secrets are taken out of its text, and the original stays in the
// chain only if it has none, and if it does not pass for the end of the caller's context, as the timeouts of
// net and net/http do.
func safe(err error) error {
	text := err.Error()
	clean := redact(text)
	if clean != text || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = nil
	}
	return &safeError{clean, err}
}

// secrets are the signature of a SAS, and what an Authorization header holds.
var secrets = regexp.MustCompile(`(?i)(\b(?:sig|client_secret|client_assertion|access_token)=)[^&\s"']+|(\b(?:bearer|sharedkey(?:lite)?) +)[^\s"']+`)

func redact(s string) string { return secrets.ReplaceAllString(s, "${1}${2}REDACTED") }

// checkName refuses what cannot be carried to the service unchanged.
func checkName(op, name string) error { return blob.CheckName(op, name) }
