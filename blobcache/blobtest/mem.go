package blobtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/minio/crc64nvme"

	"blobmount/blobcache/blob"
)

var _ blob.Container = (*Mem)(nil)

// Mem is a container in memory. All methods may be called in parallel.
type Mem struct {
	store  *Store
	url    string
	leases *blob.Leases
}

// NewContainer returns the container whose blobs s holds. The url is its address, without a slash at the end. Several
// containers over one store are what several hosts are over one service: each has its own leases.
func NewContainer(s *Store, url string) *Mem {
	return &Mem{s, url, blob.NewLeases()}
}

// Store returns the blobs, for tests that arrange or inspect them behind the container's back.
func (m *Mem) Store() *Store { return m.store }

// fail completes an error of the Store with what only the caller knows.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var e *blob.Error
	if !errors.As(err, &e) {
		return &blob.Error{Op: op, Name: name, Err: err}
	}
	full := *e
	full.Op, full.Name = op, name
	return &full
}

func alive(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %q: %w", op, name, err)
	}
	return nil
}

// URL implements blob.Container.
func (m *Mem) URL(name string) string {
	if name == "" {
		return m.url
	}
	segments := strings.Split(name, "/")
	for i := range segments {
		segments[i] = url.PathEscape(segments[i])
	}
	return m.url + "/" + strings.Join(segments, "/")
}

// Properties implements blob.Container.
func (m *Mem) Properties(ctx context.Context, name string, c blob.Condition) (blob.Properties, error) {
	if err := alive(ctx, "Properties", name); err != nil {
		return blob.Properties{}, err
	}
	p, err := m.store.Properties(name, c)
	return p, fail("Properties", name, err)
}

// List implements blob.Container.
func (m *Mem) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	if err := alive(ctx, "List", o.Prefix); err != nil {
		return blob.Page{}, err
	}
	page, err := m.store.List(o)
	return page, fail("List", o.Prefix, err)
}

// ReadAt implements blob.Container.
func (m *Mem) ReadAt(ctx context.Context, name string, offset, count int64, c blob.Condition) (*blob.Body, error) {
	if err := alive(ctx, "ReadAt", name); err != nil {
		return nil, err
	}
	if count <= 0 {
		return nil, fail("ReadAt", name, Err("InvalidRange"))
	}
	p, r, err := m.store.Get(name, offset, count, c)
	if err != nil {
		return nil, fail("ReadAt", name, err)
	}
	return &blob.Body{ReadCloser: &memBody{ctx, name, r.Reader()}, Properties: p}, nil
}

// memBody ends with its context, as a stream over a connection does.
type memBody struct {
	ctx  context.Context
	name string
	r    io.Reader
}

func (b *memBody) Read(p []byte) (int, error) {
	if err := alive(b.ctx, "ReadAt", b.name); err != nil {
		return 0, err
	}
	return b.r.Read(p)
}

func (b *memBody) Close() error { return nil }

// readBody reads the body of a write into a buffer of its own.
func readBody(body io.ReadSeeker, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, Err("RequestBodyTooLarge")
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(body, buf); err != nil {
		return nil, fmt.Errorf("body of %d bytes: %w", size, err)
	}
	if s, ok := body.(blob.Summed); ok {
		if sum, known := s.CRC64(); known && sum != crc64nvme.Checksum(buf) {
			return nil, Err("Crc64Mismatch")
		}
	}
	return buf, nil
}

// writer returns the store for a write of the blob, with its lease if there is one.
func (m *Mem) writer(name string) *Store {
	return m.store.WithLease(m.leases.Held(name))
}

// Upload implements blob.Container.
func (m *Mem) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	if err := alive(ctx, "Upload", name); err != nil {
		return blob.Written{}, err
	}
	buf, err := readBody(body, size, blob.MaxUploadSize)
	if err != nil {
		return blob.Written{}, fail("Upload", name, err)
	}
	var w blob.Written
	switch {
	case o.Kind == blob.BlockBlob:
		w, err = m.writer(name).Put(name, buf, o)
	case o.Kind == blob.AppendBlob && size == 0:
		w, err = m.writer(name).PutAppend(name, nil, o)
	default:
		err = Err("InvalidBlobType")
	}
	return w, fail("Upload", name, err)
}

// StageBlock implements blob.Container.
func (m *Mem) StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error {
	if err := alive(ctx, "StageBlock", name); err != nil {
		return err
	}
	buf, err := readBody(body, size, blob.MaxBlockSize)
	if err != nil {
		return fail("StageBlock", name, err)
	}
	return fail("StageBlock", name, m.writer(name).PutBlock(name, id, buf))
}

// StageBlockFrom implements blob.Container.
func (m *Mem) StageBlockFrom(ctx context.Context, name, id string, src blob.Range) error {
	if err := alive(ctx, "StageBlockFrom", name); err != nil {
		return err
	}
	if src.Offset < 0 || src.Size <= 0 {
		return fail("StageBlockFrom", name, Err("InvalidRange"))
	}
	err := m.writer(name).PutBlockFrom(name, id, m.store, src.Name, src.Offset, src.Size, src.Condition)
	return fail("StageBlockFrom", name, err)
}

// CommitBlockList implements blob.Container.
func (m *Mem) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	if err := alive(ctx, "CommitBlockList", name); err != nil {
		return blob.Written{}, err
	}
	refs := make([]BlockRef, len(ids))
	for i, id := range ids {
		refs[i].ID = id
	}
	w, err := m.writer(name).PutBlockList(name, refs, o)
	return w, fail("CommitBlockList", name, err)
}

// BlockList implements blob.Container.
func (m *Mem) BlockList(ctx context.Context, name string) (blob.BlockList, error) {
	if err := alive(ctx, "BlockList", name); err != nil {
		return blob.BlockList{}, err
	}
	l, err := m.store.Blocks(name)
	return l, fail("BlockList", name, err)
}

// AppendBlock implements blob.Container.
func (m *Mem) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, position int64, c blob.Condition) (blob.Written, error) {
	if err := alive(ctx, "AppendBlock", name); err != nil {
		return blob.Written{}, err
	}
	if position < 0 {
		return blob.Written{}, fail("AppendBlock", name, Err("InvalidHeaderValue"))
	}
	buf, err := readBody(body, size, blob.MaxAppendSize)
	if err != nil {
		return blob.Written{}, fail("AppendBlock", name, err)
	}
	w, _, err := m.writer(name).AppendBlock(name, buf, AppendCondition{c, position, -1})
	return w, fail("AppendBlock", name, err)
}

// Tags implements blob.Container.
func (m *Mem) Tags(ctx context.Context, name string) (map[string]string, error) {
	if err := alive(ctx, "Tags", name); err != nil {
		return nil, err
	}
	tags, err := m.store.Tags(name)
	return tags, fail("Tags", name, err)
}

// Copy implements blob.Container.
func (m *Mem) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	if err := alive(ctx, "Copy", dst); err != nil {
		return blob.Written{}, err
	}
	w, err := m.writer(dst).Copy(dst, src, o)
	return w, fail("Copy", dst, err)
}

// SetMetadata implements blob.Container.
func (m *Mem) SetMetadata(ctx context.Context, name string, metadata map[string]string, c blob.Condition) (blob.Written, error) {
	if err := alive(ctx, "SetMetadata", name); err != nil {
		return blob.Written{}, err
	}
	w, err := m.writer(name).SetMetadata(name, metadata, c)
	return w, fail("SetMetadata", name, err)
}

// Delete implements blob.Container.
func (m *Mem) Delete(ctx context.Context, name string, c blob.Condition) error {
	if err := alive(ctx, "Delete", name); err != nil {
		return err
	}
	err := m.writer(name).Delete(name, c)
	if err == nil {
		m.leases.Forget(name)
	}
	return fail("Delete", name, err)
}

// AcquireLease implements blob.Container.
func (m *Mem) AcquireLease(ctx context.Context, name string, d time.Duration) error {
	if err := alive(ctx, "AcquireLease", name); err != nil {
		return err
	}
	_, err := m.store.AcquireLease(name, m.leases.ID(name), d, blob.Condition{})
	if err == nil {
		m.leases.Set(name)
	}
	return fail("AcquireLease", name, err)
}

// RenewLease implements blob.Container.
func (m *Mem) RenewLease(ctx context.Context, name string) error {
	if err := alive(ctx, "RenewLease", name); err != nil {
		return err
	}
	_, err := m.store.RenewLease(name, m.leases.ID(name), blob.Condition{})
	return fail("RenewLease", name, err)
}

// ReleaseLease implements blob.Container.
func (m *Mem) ReleaseLease(ctx context.Context, name string) error {
	if err := alive(ctx, "ReleaseLease", name); err != nil {
		return err
	}
	m.leases.Forget(name)
	_, err := m.store.ReleaseLease(name, m.leases.ID(name), blob.Condition{})
	return fail("ReleaseLease", name, err)
}
