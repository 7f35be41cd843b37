package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"blobmount/blobcache/blob"
)

func TestErrno(t *testing.T) {
	of := func(c blob.Code, cause error) error { return &blob.Error{Code: c, Op: "Op", Name: "name", Err: cause} }
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{of(blob.NotFound, nil), syscall.ENOENT},
		{of(blob.ContainerNotFound, nil), syscall.EIO},
		{of(blob.Exists, nil), syscall.EEXIST},
		{of(blob.ConditionNotMet, nil), syscall.ESTALE},
		{of(blob.InvalidBlockList, nil), syscall.ESTALE},
		{of(blob.InvalidName, nil), syscall.EINVAL},
		{of(blob.Unauthenticated, nil), syscall.EACCES},
		{of(blob.Forbidden, nil), syscall.EACCES},
		{of(blob.Archived, nil), syscall.EACCES},
		{of(blob.Immutable, nil), syscall.EPERM},
		{of(blob.Leased, nil), syscall.EBUSY},
		{of(blob.TooLarge, nil), syscall.EFBIG},
		{of(blob.Throttled, nil), syscall.EIO},
		{of(blob.Unavailable, nil), syscall.EIO},
		{of(blob.Damaged, io.ErrUnexpectedEOF), syscall.EIO},
		{of(blob.Other, nil), syscall.EIO},
		{of(blob.Code(250), nil), syscall.EIO},
		{of(blob.Unavailable, context.Canceled), syscall.EINTR},
		{of(blob.Unavailable, context.DeadlineExceeded), syscall.ETIMEDOUT},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{syscall.ENOTEMPTY, syscall.ENOTEMPTY},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, syscall.ENOSPC},
		{errors.New("anything"), syscall.EIO},
		{io.EOF, syscall.EIO},
		// The kernel would never ask again.
		{syscall.ENOSYS, syscall.EIO},
		{of(blob.Other, syscall.ENOSYS), syscall.EIO},
	} {
		// Wrapped as often as may be: the cause counts.
		for _, err := range []error{c.err, fmt.Errorf("a: %w", c.err), errors.Join(fmt.Errorf("b: %w", fmt.Errorf("c: %w", c.err)))} {
			if c.err == nil {
				err = nil
			}
			if got := errno(err); got != c.want {
				t.Errorf("%v: %v (%d), want %v", err, got, got, c.want)
			}
		}
	}
}

// Every code that the vocabulary has is in the table, so that a new one is thought about.
func TestErrnoComplete(t *testing.T) {
	for c := blob.Code(0); ; c++ {
		if c > 0 && c.String() == blob.Other.String() {
			if len(errnos) != int(c) {
				t.Errorf("%d codes have an errno, of %d", len(errnos), c)
			}
			return
		}
		if _, ok := errnos[c]; !ok {
			t.Errorf("%q has no errno", c)
		}
	}
}
