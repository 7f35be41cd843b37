// Package blobtest has what tests and the embedded blob service need in place of an account: a Store with the
// semantics of the service, a Container over it (Mem), decorators that inject faults (Faults) and record calls
// (Trace), and the conformance suite that every blob.Container must pass (Conformance).
//
// The semantics are those of the REST reference of the Blob service
// (https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api), general-purpose v2 account, flat
// namespace, without versions, soft delete, leases and snapshots. Two things are simpler than the service: no MD5
// of content is computed (one that the writer gives is kept), and time limits do not exist (uncommitted blocks
// stay).
package blobtest
