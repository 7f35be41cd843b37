package blobtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"blobmount/blobcache/blob"
)

// Trace is a Container that records what is asked of the one inside, as one short line a call, for tests that
// compare whole transcripts:
//
//	ReadAt a/b 0+65536 if-match
//	StageBlock a/b 8388608
//	Upload a/b 12 if-none-match=* = blob already exists
//
// A line is in the place where its call began, and has its error when that is known. All methods may be called in
// parallel; then the order of lines is that in which calls arrived here.
type Trace struct {
	inner blob.Container
	mu    struct {
		sync.Mutex
		lines []string
		count map[string]int
		bytes map[string]int64
		epoch int // how often Reset was called: a call from before does not touch lines of after
	}
}

var _ blob.Container = (*Trace)(nil)

// NewTrace returns c with a record.
func NewTrace(c blob.Container) *Trace {
	t := &Trace{inner: c}
	t.Reset()
	return t
}

// Reset forgets everything recorded.
func (t *Trace) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.lines = nil
	t.mu.count = map[string]int{}
	t.mu.bytes = map[string]int64{}
	t.mu.epoch++
}

// Lines returns the calls so far.
func (t *Trace) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mu.lines)
}

// Count returns the number of calls of a method; of all methods when op is empty.
func (t *Trace) Count(op string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if op != "" {
		return t.mu.count[op]
	}
	sum := 0
	for n := range maps.Values(t.mu.count) {
		sum += n
	}
	return sum
}

// Bytes returns the content that went through a method: read from the bodies of "ReadAt", or given to "Upload",
// "StageBlock" and "AppendBlock" calls that succeeded.
func (t *Trace) Bytes(op string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.bytes[op]
}

func (t *Trace) addBytes(op string, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.bytes[op] += n
}

// record notes a call and returns what notes its end.
func (t *Trace) record(op, name string, c blob.Condition, args ...any) (end func(error)) {
	var line strings.Builder
	line.WriteString(op)
	if name != "" {
		line.WriteString(" " + name)
	}
	for _, a := range args {
		fmt.Fprintf(&line, " %v", a)
	}
	line.WriteString(conditionText("", c))

	t.mu.Lock()
	defer t.mu.Unlock()
	i, epoch := len(t.mu.lines), t.mu.epoch
	t.mu.lines = append(t.mu.lines, line.String())
	t.mu.count[op]++
	return func(err error) {
		if err == nil {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if epoch != t.mu.epoch {
			return
		}
		text := blob.CodeOf(err).String()
		if ctxErr := contextError(err); ctxErr != "" {
			text = ctxErr
		}
		t.mu.lines[i] += " = " + text
	}
}

// conditionText leaves ETags out, as they differ from run to run.
func conditionText(prefix string, c blob.Condition) string {
	text := ""
	for _, h := range []struct {
		name string
		etag blob.ETag
	}{{"if-match", c.IfMatch}, {"if-none-match", c.IfNoneMatch}} {
		switch h.etag {
		case "":
		case blob.Any:
			text += " " + prefix + h.name + "=*"
		default:
			text += " " + prefix + h.name
		}
	}
	return text
}

// URL implements blob.Container. It is not recorded: it asks nothing of the service.
func (t *Trace) URL(name string) string { return t.inner.URL(name) }

// Properties implements blob.Container.
func (t *Trace) Properties(ctx context.Context, name string, c blob.Condition) (blob.Properties, error) {
	end := t.record("Properties", name, c)
	p, err := t.inner.Properties(ctx, name, c)
	end(err)
	return p, err
}

// List implements blob.Container.
func (t *Trace) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	var args []any
	if o.Delimiter != "" {
		args = append(args, "delimiter="+o.Delimiter)
	}
	if o.Marker != "" {
		args = append(args, "next") // markers are opaque
	}
	if o.MaxResults != 0 {
		args = append(args, fmt.Sprintf("max=%d", o.MaxResults))
	}
	end := t.record("List", o.Prefix, blob.Condition{}, args...)
	page, err := t.inner.List(ctx, o)
	end(err)
	return page, err
}

// ReadAt implements blob.Container.
func (t *Trace) ReadAt(ctx context.Context, name string, offset, count int64, c blob.Condition) (*blob.Body, error) {
	end := t.record("ReadAt", name, c, fmt.Sprintf("%d+%d", offset, count))
	body, err := t.inner.ReadAt(ctx, name, offset, count, c)
	end(err)
	if err == nil {
		body.ReadCloser = &countedBody{body.ReadCloser, t}
	}
	return body, err
}

type countedBody struct {
	io.ReadCloser
	t *Trace
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.t.addBytes("ReadAt", int64(n))
	return n, err
}

// Upload implements blob.Container.
func (t *Trace) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	end := t.record("Upload", name, o.Condition, size)
	w, err := t.inner.Upload(ctx, name, body, size, o)
	end(err)
	if err == nil {
		t.addBytes("Upload", size)
	}
	return w, err
}

// StageBlock implements blob.Container.
func (t *Trace) StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error {
	end := t.record("StageBlock", name, blob.Condition{}, size)
	err := t.inner.StageBlock(ctx, name, id, body, size)
	end(err)
	if err == nil {
		t.addBytes("StageBlock", size)
	}
	return err
}

// StageBlockFrom implements blob.Container.
func (t *Trace) StageBlockFrom(ctx context.Context, name, id string, src blob.Range) error {
	end := t.record("StageBlockFrom", name, blob.Condition{},
		fmt.Sprintf("from %s %d+%d", src.Name, src.Offset, src.Size)+conditionText("source-", src.Condition))
	err := t.inner.StageBlockFrom(ctx, name, id, src)
	end(err)
	return err
}

// CommitBlockList implements blob.Container.
func (t *Trace) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	end := t.record("CommitBlockList", name, o.Condition, fmt.Sprintf("blocks=%d", len(ids)))
	w, err := t.inner.CommitBlockList(ctx, name, ids, o)
	end(err)
	return w, err
}

// BlockList implements blob.Container.
func (t *Trace) BlockList(ctx context.Context, name string) (blob.BlockList, error) {
	end := t.record("BlockList", name, blob.Condition{})
	l, err := t.inner.BlockList(ctx, name)
	end(err)
	return l, err
}

// AppendBlock implements blob.Container.
func (t *Trace) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, position int64, c blob.Condition) (blob.Written, error) {
	end := t.record("AppendBlock", name, c, fmt.Sprintf("%d+%d", position, size))
	w, err := t.inner.AppendBlock(ctx, name, body, size, position, c)
	end(err)
	if err == nil {
		t.addBytes("AppendBlock", size)
	}
	return w, err
}

// Tags implements blob.Container.
func (t *Trace) Tags(ctx context.Context, name string) (map[string]string, error) {
	end := t.record("Tags", name, blob.Condition{})
	tags, err := t.inner.Tags(ctx, name)
	end(err)
	return tags, err
}

// Copy implements blob.Container.
func (t *Trace) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	end := t.record("Copy", dst, o.Condition, "from "+src+conditionText("source-", o.Source))
	w, err := t.inner.Copy(ctx, dst, src, o)
	end(err)
	return w, err
}

// SetMetadata implements blob.Container.
func (t *Trace) SetMetadata(ctx context.Context, name string, metadata map[string]string, c blob.Condition) (blob.Written, error) {
	end := t.record("SetMetadata", name, c, strings.Join(slices.Sorted(maps.Keys(metadata)), ","))
	w, err := t.inner.SetMetadata(ctx, name, metadata, c)
	end(err)
	return w, err
}

// Delete implements blob.Container.
func (t *Trace) Delete(ctx context.Context, name string, c blob.Condition) error {
	end := t.record("Delete", name, c)
	err := t.inner.Delete(ctx, name, c)
	end(err)
	return err
}

// AcquireLease implements blob.Container.
func (t *Trace) AcquireLease(ctx context.Context, name string, d time.Duration) error {
	end := t.record("AcquireLease", name, blob.Condition{}, d)
	err := t.inner.AcquireLease(ctx, name, d)
	end(err)
	return err
}

// RenewLease implements blob.Container.
func (t *Trace) RenewLease(ctx context.Context, name string) error {
	end := t.record("RenewLease", name, blob.Condition{})
	err := t.inner.RenewLease(ctx, name)
	end(err)
	return err
}

// ReleaseLease implements blob.Container.
func (t *Trace) ReleaseLease(ctx context.Context, name string) error {
	end := t.record("ReleaseLease", name, blob.Condition{})
	err := t.inner.ReleaseLease(ctx, name)
	end(err)
	return err
}

// contextError names the end of a context, which has no code of its own.
func contextError(err error) string {
	for _, e := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return ""
}
