package blob

import (
	"context"
	"io"
	"strings"
	"time"
)

// Sub returns the part of a container below a prefix, as a container of its own: names are relative to the
// prefix, URL still gives the whole address, so that the cache shares bytes between both.
// The prefix is used as it is; one that means a directory ends with a slash. An empty one returns c.
func Sub(c Container, prefix string) Container {
	if prefix == "" {
		return c
	}
	switch r := c.(type) {
	case Renamer:
		return subRenamer{sub{c, prefix}, r}
	case LateRenamer:
		return subLate{sub{c, prefix}, r}
	}
	return sub{c, prefix}
}

// subLate is the part of a container that may turn out to be a Renamer.
type subLate struct {
	sub
	late LateRenamer
}

func (s subLate) Settle(ctx context.Context) error { return s.late.Settle(ctx) }

func (s subLate) Renamer() Renamer {
	if r := s.late.Renamer(); r != nil {
		return subRenamer{s.sub, r}
	}
	return nil
}

// subRenamer is the part of a container that is a Renamer.
type subRenamer struct {
	sub
	r Renamer
}

func (s subRenamer) Rename(ctx context.Context, dst, src string, o RenameOptions) error {
	return s.r.Rename(ctx, s.prefix+dst, s.prefix+src, o)
}

func (s subRenamer) DeleteDirectory(ctx context.Context, name string) error {
	return s.r.DeleteDirectory(ctx, s.prefix+name)
}

// Prefix returns what c puts before the names that it is given, if Sub has made it.
func Prefix(c Container) string {
	switch s := c.(type) {
	case sub:
		return Prefix(s.c) + s.prefix
	case subRenamer:
		return Prefix(s.c) + s.prefix
	case subLate:
		return Prefix(s.c) + s.prefix
	}
	return ""
}

type sub struct {
	c      Container
	prefix string
}

func (s sub) URL(name string) string { return s.c.URL(s.prefix + name) }

func (s sub) Properties(ctx context.Context, name string, c Condition) (Properties, error) {
	p, err := s.c.Properties(ctx, s.prefix+name, c)
	p.Name = name
	if from, ok := strings.CutPrefix(p.CopiedFrom, s.prefix); ok {
		p.CopiedFrom = from
	} else {
		p.CopiedFrom = ""
	}
	return p, err
}

func (s sub) List(ctx context.Context, o ListOptions) (Page, error) {
	o.Prefix = s.prefix + o.Prefix
	page, err := s.c.List(ctx, o)
	for i := range page.Blobs {
		page.Blobs[i].Name = strings.TrimPrefix(page.Blobs[i].Name, s.prefix)
	}
	for i := range page.Prefixes {
		page.Prefixes[i] = strings.TrimPrefix(page.Prefixes[i], s.prefix)
	}
	return page, err
}

func (s sub) ReadAt(ctx context.Context, name string, offset, count int64, c Condition) (*Body, error) {
	b, err := s.c.ReadAt(ctx, s.prefix+name, offset, count, c)
	if b != nil {
		b.Properties.Name = name
	}
	return b, err
}

func (s sub) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o WriteOptions) (Written, error) {
	return s.c.Upload(ctx, s.prefix+name, body, size, o)
}

func (s sub) StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error {
	return s.c.StageBlock(ctx, s.prefix+name, id, body, size)
}

func (s sub) StageBlockFrom(ctx context.Context, name, id string, src Range) error {
	src.Name = s.prefix + src.Name
	return s.c.StageBlockFrom(ctx, s.prefix+name, id, src)
}

func (s sub) CommitBlockList(ctx context.Context, name string, ids []string, o WriteOptions) (Written, error) {
	return s.c.CommitBlockList(ctx, s.prefix+name, ids, o)
}

func (s sub) BlockList(ctx context.Context, name string) (BlockList, error) {
	return s.c.BlockList(ctx, s.prefix+name)
}

func (s sub) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, position int64, c Condition) (Written, error) {
	return s.c.AppendBlock(ctx, s.prefix+name, body, size, position, c)
}

func (s sub) Copy(ctx context.Context, dst, src string, o CopyOptions) (Written, error) {
	return s.c.Copy(ctx, s.prefix+dst, s.prefix+src, o)
}

func (s sub) SetMetadata(ctx context.Context, name string, metadata map[string]string, c Condition) (Written, error) {
	return s.c.SetMetadata(ctx, s.prefix+name, metadata, c)
}

func (s sub) Tags(ctx context.Context, name string) (map[string]string, error) {
	return s.c.Tags(ctx, s.prefix+name)
}

func (s sub) Delete(ctx context.Context, name string, c Condition) error {
	return s.c.Delete(ctx, s.prefix+name, c)
}

func (s sub) AcquireLease(ctx context.Context, name string, d time.Duration) error {
	return s.c.AcquireLease(ctx, s.prefix+name, d)
}

func (s sub) RenewLease(ctx context.Context, name string) error {
	return s.c.RenewLease(ctx, s.prefix+name)
}

func (s sub) ReleaseLease(ctx context.Context, name string) error {
	return s.c.ReleaseLease(ctx, s.prefix+name)
}
