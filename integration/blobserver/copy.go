package blobserver

import (
	"net/http"
	"net/url"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// source returns the blob that x-ms-copy-source names. It must be one of this server, whose own signature on the
// request covers it.
func (q *request) source() (*blobtest.Store, string, error) {
	u, err := url.Parse(q.r.Header.Get("x-ms-copy-source"))
	if err != nil {
		return nil, "", blobtest.Err("InvalidHeaderValue")
	}
	path, ok := strings.CutPrefix(u.Path, "/"+q.s.opts.Account+"/")
	container, name, found := strings.Cut(path, "/")
	if !ok || !found || u.Host != q.r.Host || name == "" {
		return nil, "", blobtest.Err("CannotVerifyCopySource")
	}
	if u.Query().Get("snapshot") != "" || u.Query().Get("versionid") != "" {
		return nil, "", blobtest.Err("UnsupportedQueryParameter")
	}
	c, err := q.s.container(container)
	if err != nil {
		return nil, "", blobtest.Err("CannotVerifyCopySource")
	}
	return c.store, name, nil
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
	from, name, err := q.source()
	if err != nil {
		return err
	}
	offset, count := int64(0), int64(-1)
	if text := q.r.Header.Get("x-ms-source-range"); text != "" {
		var ok bool
		if offset, count, ok = parseRange(text); !ok {
			return blobtest.Err("InvalidHeaderValue")
		}
	}
	if err := store.PutBlockFrom(q.blob, id, from, name, offset, count, q.condition("x-ms-source-")); err != nil {
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
	from, name, err := q.source()
	if err != nil {
		return err
	}
	w, err := store.CopyFrom(from, q.blob, name, blobtest.CopyOptions{CopyOptions: blob.CopyOptions{
		Source: q.condition("x-ms-source-"), Condition: q.condition(""), Metadata: q.metadata(),
	}})
	if err != nil {
		return err
	}
	q.w.Header().Set("x-ms-copy-id", q.id)
	q.w.Header().Set("x-ms-copy-status", "success")
	q.answerWritten(http.StatusAccepted, w)
	return nil
}
