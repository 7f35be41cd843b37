package blobtest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"blobmount/blobcache/blob"
)

// Fault says which calls of a Container go wrong, and how.
type Fault struct {
	// Op is the method, such as "StageBlock"; empty for all.
	Op string
	// Name is the blob, the destination of a copy, or the prefix of a listing; * stands for any characters, slashes
	// too (see Match). Empty for all.
	Name string
	// Nth chooses the n-th call, from 1, among those that Op and Name choose; 0 chooses all of them.
	Nth int

	// Wait delays the call until the channel is closed, or the context is done, whose error the call then returns.
	Wait <-chan struct{}
	// Err is what the call fails with. Nil: it only waits.
	Err error
	// After makes the call fail when the inner call has acted: the reply was lost. (A body that ReadAt returned is
	// closed.) Without it the inner call is not made.
	After bool
	// BreakBody makes ReadAt succeed, and its Body fail with Err, which must be set, after BodyBytes bytes.
	BreakBody bool
	BodyBytes int64
}

// Faults is a Container that fails on purpose. All methods may be called in parallel.
type Faults struct {
	inner blob.Container
	mu    struct {
		sync.Mutex
		rules []*rule
	}
}

type rule struct {
	fault Fault
	calls int // calls that Op and Name chose
	hits  int // of those, the ones that Nth chose too
}

var _ blob.Container = (*Faults)(nil)

// NewFaults returns c with faults, none at first.
func NewFaults(c blob.Container) *Faults { return &Faults{inner: c} }

// Add adds a fault for the calls from now on, and returns a function that says how many calls it has hit. When
// several faults hit a call, the one that was added first acts; all count the call.
func (f *Faults) Add(fault Fault) (hits func() int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &rule{fault: fault}
	f.mu.rules = append(f.mu.rules, r)
	return func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return r.hits
	}
}

// Clear removes all faults.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.rules = nil
}

// Match reports whether name is what pattern says, in which each * stands for any characters, slashes too.
func Match(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return name == pattern
	}
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[last])
}

// choose counts a call and returns the fault that hits it, if any.
func (f *Faults) choose(op, name string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hit *Fault
	for _, r := range f.mu.rules {
		if r.fault.Op != "" && r.fault.Op != op || r.fault.Name != "" && !Match(r.fault.Name, name) {
			continue
		}
		r.calls++
		if r.fault.Nth != 0 && r.fault.Nth != r.calls {
			continue
		}
		r.hits++
		if hit == nil {
			hit = &r.fault
		}
	}
	return hit
}

// call makes the inner call with whatever goes wrong around it.
func call[T any](f *Faults, ctx context.Context, op, name string, inner func() (T, error)) (T, error) {
	return act(ctx, f.choose(op, name), op, name, inner)
}

func act[T any](ctx context.Context, fault *Fault, op, name string, inner func() (T, error)) (T, error) {
	var zero T
	if fault == nil {
		return inner()
	}
	if fault.Wait != nil {
		select {
		case <-fault.Wait:
		case <-ctx.Done():
			return zero, alive(ctx, op, name)
		}
	}
	if fault.Err == nil || fault.BreakBody {
		return inner()
	}
	if fault.After {
		lost, err := inner()
		if err != nil {
			return zero, err
		}
		if body, ok := any(lost).(*blob.Body); ok {
			if err := body.Close(); err != nil {
				return zero, err
			}
		}
	}
	return zero, fail(op, name, fault.Err)
}

// do is call for methods without a result.
func (f *Faults) do(ctx context.Context, op, name string, inner func() error) error {
	_, err := call(f, ctx, op, name, func() (struct{}, error) { return struct{}{}, inner() })
	return err
}

// URL implements blob.Container.
func (f *Faults) URL(name string) string { return f.inner.URL(name) }

// Properties implements blob.Container.
func (f *Faults) Properties(ctx context.Context, name string, c blob.Condition) (blob.Properties, error) {
	return call(f, ctx, "Properties", name, func() (blob.Properties, error) { return f.inner.Properties(ctx, name, c) })
}

// List implements blob.Container.
func (f *Faults) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	return call(f, ctx, "List", o.Prefix, func() (blob.Page, error) { return f.inner.List(ctx, o) })
}

// ReadAt implements blob.Container.
func (f *Faults) ReadAt(ctx context.Context, name string, offset, count int64, c blob.Condition) (*blob.Body, error) {
	fault := f.choose("ReadAt", name)
	body, err := act(ctx, fault, "ReadAt", name, func() (*blob.Body, error) {
		return f.inner.ReadAt(ctx, name, offset, count, c)
	})
	if err == nil && fault != nil && fault.BreakBody {
		body.ReadCloser = &brokenBody{body.ReadCloser, fault.BodyBytes, fail("ReadAt", name, fault.Err)}
	}
	return body, err
}

// Upload implements blob.Container.
func (f *Faults) Upload(ctx context.Context, name string, body io.ReadSeeker, size int64, o blob.WriteOptions) (blob.Written, error) {
	return call(f, ctx, "Upload", name, func() (blob.Written, error) { return f.inner.Upload(ctx, name, body, size, o) })
}

// StageBlock implements blob.Container.
func (f *Faults) StageBlock(ctx context.Context, name, id string, body io.ReadSeeker, size int64) error {
	return f.do(ctx, "StageBlock", name, func() error { return f.inner.StageBlock(ctx, name, id, body, size) })
}

// StageBlockFrom implements blob.Container.
func (f *Faults) StageBlockFrom(ctx context.Context, name, id string, src blob.Range) error {
	return f.do(ctx, "StageBlockFrom", name, func() error { return f.inner.StageBlockFrom(ctx, name, id, src) })
}

// CommitBlockList implements blob.Container.
func (f *Faults) CommitBlockList(ctx context.Context, name string, ids []string, o blob.WriteOptions) (blob.Written, error) {
	return call(f, ctx, "CommitBlockList", name, func() (blob.Written, error) { return f.inner.CommitBlockList(ctx, name, ids, o) })
}

// BlockList implements blob.Container.
func (f *Faults) BlockList(ctx context.Context, name string) (blob.BlockList, error) {
	return call(f, ctx, "BlockList", name, func() (blob.BlockList, error) { return f.inner.BlockList(ctx, name) })
}

// AppendBlock implements blob.Container.
func (f *Faults) AppendBlock(ctx context.Context, name string, body io.ReadSeeker, size, position int64, c blob.Condition) (blob.Written, error) {
	return call(f, ctx, "AppendBlock", name, func() (blob.Written, error) {
		return f.inner.AppendBlock(ctx, name, body, size, position, c)
	})
}

// Tags implements blob.Container.
func (f *Faults) Tags(ctx context.Context, name string) (map[string]string, error) {
	return call(f, ctx, "Tags", name, func() (map[string]string, error) { return f.inner.Tags(ctx, name) })
}

// Copy implements blob.Container.
func (f *Faults) Copy(ctx context.Context, dst, src string, o blob.CopyOptions) (blob.Written, error) {
	return call(f, ctx, "Copy", dst, func() (blob.Written, error) { return f.inner.Copy(ctx, dst, src, o) })
}

// SetMetadata implements blob.Container.
func (f *Faults) SetMetadata(ctx context.Context, name string, metadata map[string]string, c blob.Condition) (blob.Written, error) {
	return call(f, ctx, "SetMetadata", name, func() (blob.Written, error) { return f.inner.SetMetadata(ctx, name, metadata, c) })
}

// Delete implements blob.Container.
func (f *Faults) Delete(ctx context.Context, name string, c blob.Condition) error {
	return f.do(ctx, "Delete", name, func() error { return f.inner.Delete(ctx, name, c) })
}

// AcquireLease implements blob.Container.
func (f *Faults) AcquireLease(ctx context.Context, name string, d time.Duration) error {
	return f.do(ctx, "AcquireLease", name, func() error { return f.inner.AcquireLease(ctx, name, d) })
}

// RenewLease implements blob.Container.
func (f *Faults) RenewLease(ctx context.Context, name string) error {
	return f.do(ctx, "RenewLease", name, func() error { return f.inner.RenewLease(ctx, name) })
}

// ReleaseLease implements blob.Container.
func (f *Faults) ReleaseLease(ctx context.Context, name string) error {
	return f.do(ctx, "ReleaseLease", name, func() error { return f.inner.ReleaseLease(ctx, name) })
}

// brokenBody gives left bytes of the inner body and then fails.
type brokenBody struct {
	io.ReadCloser
	left int64
	err  error
}

func (b *brokenBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if errors.Is(err, io.EOF) {
		return n, b.err // shorter than BodyBytes: broken all the same
	}
	return n, err
}
