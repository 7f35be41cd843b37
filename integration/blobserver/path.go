package blobserver

import (
	"net/http"
	"net/url"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// The operations of Data Lake Storage on paths, in accounts with a hierarchical namespace. The service has an endpoint of
// its own for them; here they are on the address of the Blob service, as for every account with its name in the path.

// renamePath is Path - Create with x-ms-rename-source.
func (q *request) renamePath() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	// "The value must have the following format: /{filesystem}/{path}", percent-encoded, with an optional query (a SAS).
	address, _, _ := strings.Cut(q.r.Header.Get("x-ms-rename-source"), "?")
	source, err := url.PathUnescape(address)
	if err != nil {
		return blobtest.Err("InvalidHeaderValue")
	}
	container, src, ok := strings.Cut(strings.TrimPrefix(source, "/"), "/")
	if !ok || container != q.container || src == "" {
		return blobtest.Err("InvalidHeaderValue") // of this container only
	}
	if mode := q.query.Get("mode"); mode != "" && mode != "posix" {
		return blobtest.Err("UnsupportedQueryParameter")
	}
	if id := q.r.Header.Get("x-ms-source-lease-id"); id != "" {
		store = store.WithLease(strings.ToLower(id))
	}
	err = store.Rename(q.blob, src, blob.RenameOptions{Source: q.condition("x-ms-source-"), Condition: q.condition("")})
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// deletePath is Path - Delete of an empty directory.
func (q *request) deletePath() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	if q.query.Get("recursive") != "false" {
		return blobtest.Err("UnsupportedQueryParameter")
	}
	if err := store.DeleteDirectory(q.blob); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusOK)
	return nil
}
