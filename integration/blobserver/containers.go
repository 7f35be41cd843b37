package blobserver

import (
	"net/http"
	"strconv"

	"blobmount/blobcache/blob"
)

// createContainer is Create Container.
func (q *request) createContainer() error {
	if err := q.s.CreateContainer(q.container); err != nil {
		return err
	}
	c, err := q.s.container(q.container)
	if err != nil {
		return err
	}
	q.answerWritten(http.StatusCreated, blob.Written{ETag: c.etag, Modified: c.modified})
	return nil
}

// getContainer is Get Container Properties.
func (q *request) getContainer() error {
	c, err := q.s.container(q.container)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("x-ms-lease-state", "available")
	h.Set("x-ms-lease-status", "unlocked")
	h.Set("x-ms-has-immutability-policy", "false")
	h.Set("x-ms-has-legal-hold", "false")
	if q.s.opts.Anonymous {
		h.Set("x-ms-blob-public-access", "container")
	}
	q.answerWritten(http.StatusOK, blob.Written{ETag: c.etag, Modified: c.modified})
	return nil
}

// deleteContainer is Delete Container. The name can be used again at once; the service holds it for 30 seconds.
func (q *request) deleteContainer() error {
	if err := q.s.deleteContainer(q.container); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// getAccount is Get Account Information.
func (q *request) getAccount() error {
	h := q.w.Header()
	h.Set("x-ms-sku-name", "Standard_RAGRS")
	h.Set("x-ms-account-kind", "StorageV2")
	h.Set("x-ms-is-hns-enabled", strconv.FormatBool(q.s.opts.Store.Hierarchical))
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusOK)
	return nil
}
