package blobserver

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// source is the blob that x-ms-copy-source names.
type source struct {
	store           *blobtest.Store
	container, name string
	query           url.Values
}

// source finds the blob to read, which must be one of this server.
func (q *request) source() (source, error) {
	u, err := url.Parse(q.r.Header.Get("x-ms-copy-source"))
	if err != nil {
		return source{}, blobtest.Err("InvalidHeaderValue")
	}
	path, ok := strings.CutPrefix(u.Path, "/"+q.s.opts.Account+"/")
	container, name, found := strings.Cut(path, "/")
	if !ok || !found || u.Host != q.r.Host || name == "" {
		return source{}, blobtest.Err("CannotVerifyCopySource")
	}
	query := u.Query()
	if query.Get("snapshot") != "" || query.Get("versionid") != "" {
		return source{}, blobtest.Err("UnsupportedQueryParameter")
	}
	c, err := q.s.container(container)
	if err != nil {
		return source{}, blobtest.Err("CannotVerifyCopySource")
	}
	return source{c.store, container, name, query}, nil
}

// authorizeSource decides whether the source may be read. Unlike Copy Blob, for which the request's own signature is
// enough inside one account, Put Block From URL wants the source to be public, its address signed, or a token for it.
// What the service cannot read it reports as CannotVerifyCopySource, with the status of the reading.
func (q *request) authorizeSource(from source) error {
	reading := &request{
		s: q.s, r: &http.Request{Header: http.Header{}}, query: from.query, container: from.container, blob: from.name, op: opGetBlob,
	}
	if token := q.r.Header.Get("x-ms-copy-source-authorization"); token != "" {
		if !strings.HasPrefix(token, "Bearer ") {
			return blobtest.Err("InvalidHeaderValue") // "Put Block From URL": the only scheme
		}
		reading.r.Header.Set("Authorization", token)
	}
	var refused *blob.Error
	if err := q.s.authorize(reading); !errors.As(err, &refused) {
		return err
	}
	e := blobtest.Err("CannotVerifyCopySource")
	e.Status = refused.Status
	return e
}

// putBlockFromURL is Put Block From URL.
func (q *request) putBlockFromURL() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	id, err := q.blockID()
	if err != nil {
		return err
	}
	from, err := q.source()
	if err != nil {
		return err
	}
	if err := q.authorizeSource(from); err != nil {
		return err
	}
	offset, count := int64(0), int64(-1)
	if text := q.r.Header.Get("x-ms-source-range"); text != "" {
		var ok bool
		if offset, count, ok = parseRange(text); !ok {
			return blobtest.Err("InvalidHeaderValue")
		}
	}
	if err := store.PutBlockFrom(q.blob, id, from.store, from.name, offset, count, q.condition("x-ms-source-")); err != nil {
		return err
	}
	q.answerStaged()
	return nil
}

// copyBlob is Copy Blob, and Copy Blob From URL when x-ms-requires-sync asks for it: here both are complete when
// they answer.
func (q *request) copyBlob() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	from, err := q.source()
	if err != nil {
		return err
	}
	tags, err := q.tags()
	if err != nil {
		return err
	}
	w, err := store.CopyFrom(from.store, q.blob, from.name, blobtest.CopyOptions{
		CopyOptions: blob.CopyOptions{
			Source: q.condition("x-ms-source-"), Condition: q.condition(""), Metadata: q.metadata(),
		},
		Tier: q.r.Header.Get("x-ms-access-tier"),
		Tags: tags,
	})
	if err != nil {
		return err
	}
	q.w.Header().Set("x-ms-copy-id", q.id)
	q.w.Header().Set("x-ms-copy-status", "success")
	q.answerWritten(http.StatusAccepted, w)
	return nil
}
