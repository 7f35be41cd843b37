package blobtest

import (
	"net/http"

	"blobmount/blobcache/blob"
)

// serviceErrors are the failures of the service that the Store and the embedded service use, with the status and
// the message of "Blob service error codes" and "Common REST API error codes".
var serviceErrors = map[string]struct {
	status  int
	code    blob.Code
	message string
}{
	"AuthenticationFailed":                 {http.StatusForbidden, blob.Unauthenticated, "Server failed to authenticate the request."},
	"AuthorizationFailure":                 {http.StatusForbidden, blob.Forbidden, "This request is not authorized to perform this operation."},
	"BlobAlreadyExists":                    {http.StatusConflict, blob.Exists, "The specified blob already exists."},
	"BlobArchived":                         {http.StatusConflict, blob.Archived, "This operation is not permitted on an archived blob."},
	"BlobNotFound":                         {http.StatusNotFound, blob.NotFound, "The specified blob does not exist."},
	"BlockCountExceedsLimit":               {http.StatusConflict, blob.TooLarge, "The uncommitted block count cannot exceed the maximum limit of 100,000 blocks."},
	"BlockListTooLong":                     {http.StatusBadRequest, blob.TooLarge, "The block list may not contain more than 50,000 blocks."},
	"CannotVerifyCopySource":               {http.StatusNotFound, blob.NotFound, "Could not verify the copy source."},
	"ConditionNotMet":                      {http.StatusPreconditionFailed, blob.ConditionNotMet, "The condition specified using HTTP conditional header(s) is not met."},
	"ContainerAlreadyExists":               {http.StatusConflict, blob.Other, "The specified container already exists."},
	"ContainerNotFound":                    {http.StatusNotFound, blob.ContainerNotFound, "The specified container does not exist."},
	"Crc64Mismatch":                        {http.StatusBadRequest, blob.Damaged, "The CRC64 value specified in the request did not match with the CRC64 value calculated by the server."},
	"InternalError":                        {http.StatusInternalServerError, blob.Unavailable, "The server encountered an internal error. Please retry the request."},
	"InvalidBlobOrBlock":                   {http.StatusBadRequest, blob.BlockIDLength, "The specified blob or block content is invalid."},
	"InvalidBlobType":                      {http.StatusConflict, blob.Unsupported, "The blob type is invalid for this operation."},
	"InvalidBlockList":                     {http.StatusBadRequest, blob.InvalidBlockList, "The specified block list is invalid."},
	"InvalidHeaderValue":                   {http.StatusBadRequest, blob.Other, "The value for one of the HTTP headers is not in the correct format."},
	"InvalidMd5":                           {http.StatusBadRequest, blob.Other, "The MD5 value specified in the request is invalid."},
	"InvalidMetadata":                      {http.StatusBadRequest, blob.Other, "The metadata specified is invalid. It has characters that are not permitted."},
	"InvalidQueryParameterValue":           {http.StatusBadRequest, blob.Other, "Value for one of the query parameters specified in the request URI is invalid."},
	"InvalidRange":                         {http.StatusRequestedRangeNotSatisfiable, blob.InvalidRange, "The range specified is invalid for the current size of the resource."},
	"InvalidResourceName":                  {http.StatusBadRequest, blob.InvalidName, "The specified resource name contains invalid characters."},
	"InvalidTag":                           {http.StatusBadRequest, blob.Other, "The tag specified is invalid."},
	"InvalidUri":                           {http.StatusBadRequest, blob.InvalidName, "The requested URI does not represent any resource on the server."},
	"InvalidXmlDocument":                   {http.StatusBadRequest, blob.Other, "The XML specified is not syntactically valid."},
	"LeaseAlreadyPresent":                  {http.StatusConflict, blob.Leased, "There is already a lease present."},
	"LeaseIdMismatchWithBlobOperation":     {http.StatusPreconditionFailed, blob.Leased, "The lease ID specified did not match the lease ID for the blob."},
	"LeaseIdMismatchWithLeaseOperation":    {http.StatusConflict, blob.Leased, "The lease ID specified did not match the lease ID for the blob."},
	"LeaseIdMissing":                       {http.StatusPreconditionFailed, blob.Leased, "There is currently a lease on the blob and no lease ID was specified in the request."},
	"LeaseIsBreakingAndCannotBeAcquired":   {http.StatusConflict, blob.Leased, "The lease ID matched, but the lease is currently in breaking state and cannot be acquired until it is broken."},
	"LeaseIsBrokenAndCannotBeRenewed":      {http.StatusConflict, blob.Leased, "The lease ID matched, but the lease has been broken explicitly and cannot be renewed."},
	"LeaseLost":                            {http.StatusPreconditionFailed, blob.Leased, "A lease ID was specified, but the lease for the blob has expired."},
	"LeaseNotPresentWithBlobOperation":     {http.StatusPreconditionFailed, blob.Leased, "There is currently no lease on the blob."},
	"LeaseNotPresentWithLeaseOperation":    {http.StatusConflict, blob.Leased, "There is currently no lease on the blob."},
	"Md5Mismatch":                          {http.StatusBadRequest, blob.Damaged, "The MD5 value specified in the request did not match with the MD5 value calculated by the server."},
	"MetadataTooLarge":                     {http.StatusBadRequest, blob.TooLarge, "The size of the specified metadata exceeds the maximum size permitted."},
	"MissingContentLengthHeader":           {http.StatusLengthRequired, blob.Other, "The Content-Length header was not specified."},
	"MissingRequiredHeader":                {http.StatusBadRequest, blob.Other, "An HTTP header that's mandatory for this request is not specified."},
	"NotImplemented":                       {http.StatusNotImplemented, blob.Unsupported, "The requested operation is not implemented on the specified resource."},
	"OperationTimedOut":                    {http.StatusInternalServerError, blob.Unavailable, "The operation could not be completed within the permitted time."},
	"OutOfRangeQueryParameterValue":        {http.StatusBadRequest, blob.Other, "A query parameter specified in the request URI is outside the permissible range."},
	"PublicAccessNotPermitted":             {http.StatusConflict, blob.Unauthenticated, "Public access is not permitted on this storage account."},
	"InvalidAuthenticationInfo":            {http.StatusUnauthorized, blob.Unauthenticated, "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."},
	"NoAuthenticationInformation":          {http.StatusUnauthorized, blob.Unauthenticated, "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."},
	"RequestBodyTooLarge":                  {http.StatusRequestEntityTooLarge, blob.TooLarge, "The size of the request body exceeds the maximum size permitted."},
	"ResourceNotFound":                     {http.StatusNotFound, blob.ContainerNotFound, "The specified resource does not exist."},
	"ServerBusy":                           {http.StatusServiceUnavailable, blob.Throttled, "The server is currently unable to receive requests. Please retry your request."},
	"SourceConditionNotMet":                {http.StatusPreconditionFailed, blob.ConditionNotMet, "The source condition specified using HTTP conditional header(s) is not met."},
	"AuthorizationPermissionMismatch":      {http.StatusForbidden, blob.Forbidden, "This request is not authorized to perform this operation using this permission."},
	"TagsTooLarge":                         {http.StatusBadRequest, blob.TooLarge, "The tags specified exceed the maximum permissible limit."},
	"UnsupportedHeader":                    {http.StatusBadRequest, blob.Unsupported, "One of the HTTP headers specified in the request is not supported."},
	"UnsupportedQueryParameter":            {http.StatusBadRequest, blob.Unsupported, "One of the query parameters specified in the request URI is not supported."},
	"UnsatisfiableCondition":               {http.StatusBadRequest, blob.Other, "The request includes an unsatisfiable condition for this operation."},
	"UnsupportedHttpVerb":                  {http.StatusMethodNotAllowed, blob.Other, "The resource doesn't support the specified HTTP verb."},
	"MultipleConditionHeadersNotSupported": {http.StatusBadRequest, blob.Other, "Multiple condition headers are not supported."},
	"MaxBlobSizeConditionNotMet":           {http.StatusPreconditionFailed, blob.ConditionNotMet, "The max blob size condition specified was not met."},
	"DirectoryNotEmpty":                    {http.StatusConflict, blob.NotEmpty, "The recursive query parameter value must be true to delete a non-empty directory."},
	"InvalidRenameSourcePath":              {http.StatusConflict, blob.Other, "The source directory cannot be the same as the destination directory, nor can the destination be a subdirectory of the source directory."},
	"OperationNotSupportedOnDirectory":     {http.StatusBadRequest, blob.Unsupported, "The requested operation is not supported on a directory."},
	"PathAlreadyExists":                    {http.StatusConflict, blob.Exists, "The specified path already exists."},
	"PathNotFound":                         {http.StatusNotFound, blob.NotFound, "The specified path does not exist."},
	"RenameDestinationParentPathNotFound":  {http.StatusNotFound, blob.NotFound, "The parent directory of the destination path does not exist."},
	"SourcePathNotFound":                   {http.StatusNotFound, blob.NotFound, "The source path for a rename operation does not exist."},
	"AppendPositionConditionNotMet":        {http.StatusPreconditionFailed, blob.ConditionNotMet, "The append position condition specified was not met."},
}

// Err returns the failure that the service calls serviceCode, with its HTTP status; the caller may fill Op and
// Name. A code that the table does not know becomes InternalError: that is a mistake in the caller, and the
// message says which.
func Err(serviceCode string) *blob.Error {
	e, ok := serviceErrors[serviceCode]
	if !ok {
		return &blob.Error{Code: blob.Unavailable, ServiceCode: "InternalError " + serviceCode, Status: http.StatusInternalServerError}
	}
	return &blob.Error{Code: e.code, ServiceCode: serviceCode, Status: e.status}
}

// notModified is what a read gets whose If-None-Match names the current version: the same service code as a
// failed If-Match, told apart by the status 304.
func notModified() *blob.Error {
	return &blob.Error{Code: blob.NotModified, ServiceCode: "ConditionNotMet", Status: http.StatusNotModified}
}

// Message returns the service's text for a code, for error bodies.
func Message(serviceCode string) string { return serviceErrors[serviceCode].message }
