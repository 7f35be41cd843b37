package blobserver

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// blobHeaders returns the headers to store with a blob.
func (q *request) blobHeaders() (blob.Headers, error) {
	g := q.r.Header.Get
	md5, err := base64.StdEncoding.DecodeString(g("x-ms-blob-content-md5"))
	if err != nil {
		return blob.Headers{}, blobtest.Err("InvalidMd5")
	}
	if len(md5) == 0 {
		md5 = nil
	}
	return blob.Headers{
		ContentType: g("x-ms-blob-content-type"), ContentEncoding: g("x-ms-blob-content-encoding"),
		ContentLanguage: g("x-ms-blob-content-language"), ContentDisposition: g("x-ms-blob-content-disposition"),
		CacheControl: g("x-ms-blob-cache-control"), ContentMD5: md5,
	}, nil
}

func (q *request) writeOptions() (blob.WriteOptions, error) {
	headers, err := q.blobHeaders()
	if err != nil {
		return blob.WriteOptions{}, err
	}
	tags, err := q.tags()
	return blob.WriteOptions{
		Condition: q.condition(""), Headers: headers, Metadata: q.metadata(), Tier: q.r.Header.Get("x-ms-access-tier"), Tags: tags,
	}, err
}

// putBlob is Put Blob, of all three types.
func (q *request) putBlob() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	o, err := q.writeOptions()
	if err != nil {
		return err
	}
	kind := q.r.Header.Get("x-ms-blob-type")
	limit := int64(0) // "Put Blob": append and page blobs are created empty
	switch kind {
	case "BlockBlob":
		limit = blob.MaxUploadSize
	case "AppendBlob", "PageBlob":
	case "":
		return blobtest.Err("MissingRequiredHeader")
	default:
		return blobtest.Err("InvalidHeaderValue")
	}
	body, err := q.body(limit)
	if err != nil {
		return err
	}
	var w blob.Written
	switch kind {
	case "BlockBlob":
		w, err = store.Put(q.blob, body, o)
	case "AppendBlob":
		w, err = store.PutAppend(q.blob, nil, o)
	case "PageBlob":
		size, parseErr := strconv.ParseInt(q.r.Header.Get("x-ms-blob-content-length"), 10, 64)
		if parseErr != nil || size < 0 {
			return blobtest.Err("InvalidHeaderValue")
		}
		if size > maxPageBlob {
			return blobtest.Err("RequestBodyTooLarge")
		}
		w, err = store.PutPage(q.blob, make([]byte, size), o)
	}
	if err != nil {
		return err
	}
	q.answerWritten(http.StatusCreated, w)
	return nil
}

// maxPageBlob bounds page blobs, which are stored whole here, zeros too: the service's limit is 8 TiB.
const maxPageBlob = 256 << 20

// appendBlock is Append Block.
func (q *request) appendBlock() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	c := blobtest.AppendCondition{Condition: q.condition("")}
	if c.Position, err = q.length("x-ms-blob-condition-appendpos"); err != nil {
		return err
	}
	if c.MaxSize, err = q.length("x-ms-blob-condition-maxsize"); err != nil {
		return err
	}
	body, err := q.body(blob.MaxAppendSize)
	if err != nil {
		return err
	}
	w, at, err := store.AppendBlock(q.blob, body, c)
	if err != nil {
		return err
	}
	q.w.Header().Set("x-ms-blob-append-offset", strconv.FormatInt(at, 10))
	q.answerWritten(http.StatusCreated, w)
	return nil
}

// length returns the number of bytes that a header names, -1 when it is not there.
func (q *request) length(header string) (int64, error) {
	text := q.r.Header.Get(header)
	if text == "" {
		return -1, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, blobtest.Err("InvalidHeaderValue")
	}
	return n, nil
}

// blockID returns the raw id of a block.
func (q *request) blockID() (string, error) {
	id, err := base64.StdEncoding.DecodeString(q.query.Get("blockid"))
	if err != nil || len(id) == 0 {
		return "", blobtest.Err("InvalidQueryParameterValue")
	}
	return string(id), nil
}

// putBlock is Put Block.
func (q *request) putBlock() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	id, err := q.blockID()
	if err != nil {
		return err
	}
	body, err := q.body(blob.MaxBlockSize)
	if err != nil {
		return err
	}
	if err := store.PutBlock(q.blob, id, body); err != nil {
		return err
	}
	q.answerStaged()
	return nil
}

func (q *request) answerStaged() {
	q.w.Header().Set("x-ms-request-server-encrypted", "true")
	q.w.Header().Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
}

// maxBlockListBody is more than 50,000 ids of 64 bytes need in base64 and XML: 50,000 times 120 bytes.
const maxBlockListBody = 8 << 20

// putBlockList is Put Block List.
func (q *request) putBlockList() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	o, err := q.writeOptions()
	if err != nil {
		return err
	}
	body, err := q.body(maxBlockListBody)
	if err != nil {
		return err
	}
	refs, err := parseBlockList(body)
	if err != nil {
		return err
	}
	w, err := store.PutBlockList(q.blob, refs, o)
	if err != nil {
		return err
	}
	q.answerWritten(http.StatusCreated, w)
	return nil
}

// parseBlockList reads a BlockList document in its own order, in which Latest, Committed and Uncommitted may be
// mixed.
func parseBlockList(body []byte) ([]blobtest.BlockRef, error) {
	lists := map[string]blobtest.BlockFrom{
		"Latest": blobtest.Latest, "Committed": blobtest.Committed, "Uncommitted": blobtest.Uncommitted,
	}
	var refs []blobtest.BlockRef
	d := xml.NewDecoder(bytes.NewReader(body))
	root := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && root {
			return refs, nil
		}
		if err != nil {
			return nil, blobtest.Err("InvalidXmlDocument")
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if !root && start.Name.Local == "BlockList" {
			root = true
			continue
		}
		list, ok := lists[start.Name.Local]
		var text string
		if !ok || !root || d.DecodeElement(&text, &start) != nil {
			return nil, blobtest.Err("InvalidXmlDocument")
		}
		id, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil {
			return nil, blobtest.Err("InvalidBlockList")
		}
		refs = append(refs, blobtest.BlockRef{ID: string(id), From: list})
	}
}

// setMetadata is Set Blob Metadata.
func (q *request) setMetadata() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	w, err := store.SetMetadata(q.blob, q.metadata(), q.condition(""))
	if err != nil {
		return err
	}
	q.answerWritten(http.StatusOK, w)
	return nil
}

// setProperties is Set Blob Properties: what is not given is removed.
func (q *request) setProperties() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	headers, err := q.blobHeaders()
	if err != nil {
		return err
	}
	w, err := store.SetHeaders(q.blob, headers, q.condition(""))
	if err != nil {
		return err
	}
	q.answerWritten(http.StatusOK, w)
	return nil
}

// setTier is Set Blob Tier.
func (q *request) setTier() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	if err := store.SetTier(q.blob, q.r.Header.Get("x-ms-access-tier")); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusOK)
	return nil
}

// deleteBlob is Delete Blob. There are no snapshots, so "include" does nothing more, and "only" nothing at all.
func (q *request) deleteBlob() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	switch q.r.Header.Get("x-ms-delete-snapshots") {
	case "", "include":
		err = store.Delete(q.blob, q.condition(""))
	case "only":
		_, err = store.Properties(q.blob, q.condition(""))
	default:
		err = blobtest.Err("InvalidHeaderValue")
	}
	if err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
