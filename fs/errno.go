package fs

import (
	"context"
	"errors"
	"syscall"

	"blobmount/blobcache/blob"
)

// errnos maps what the service says to what a program expects. SEMANTICS.md has the same table.
var errnos = map[blob.Code]syscall.Errno{
	blob.Other:             syscall.EIO,
	blob.NotFound:          syscall.ENOENT,
	blob.ContainerNotFound: syscall.EIO, // a lost container is not an empty directory
	blob.Exists:            syscall.EEXIST,
	blob.ConditionNotMet:   syscall.ESTALE,
	blob.NotModified:       syscall.EIO, // never reaches a caller
	blob.InvalidBlockList:  syscall.ESTALE,
	blob.BlockIDLength:     syscall.EBUSY, // another program's upload is under way, or was given up within the week
	blob.InvalidRange:      syscall.EIO,
	blob.InvalidName:       syscall.EINVAL,
	blob.Unauthenticated:   syscall.EACCES,
	blob.Forbidden:         syscall.EACCES,
	blob.Archived:          syscall.EACCES,
	blob.Immutable:         syscall.EPERM,
	blob.Leased:            syscall.EBUSY,
	blob.TooLarge:          syscall.EFBIG,
	blob.Throttled:         syscall.EIO,
	blob.Unavailable:       syscall.EIO,
	blob.Damaged:           syscall.EIO,
	blob.Busy:              syscall.EBUSY,
	blob.NotEmpty:          syscall.ENOTEMPTY,
	blob.Unsupported:       syscall.EPERM,
}

// errno returns the number for an error, 0 for none. It looks through wrapping, since an unknown error must never
// become ENOSYS: the kernel would remember that for the whole mount.
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e *blob.Error
	if errors.As(err, &e) {
		if errors.Is(err, context.Canceled) {
			return syscall.EINTR
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return syscall.ETIMEDOUT
		}
		if n, ok := errnos[e.Code]; ok {
			return n
		}
		return syscall.EIO
	}
	var n syscall.Errno
	switch {
	case errors.As(err, &n) && n != syscall.ENOSYS:
		return n
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}

// expected reports whether an error number is part of ordinary life, and so not worth a line in the log.
func expected(n syscall.Errno) bool {
	switch n {
	case syscall.ENOENT, syscall.EEXIST, syscall.ENOTEMPTY, syscall.EINTR, syscall.EINVAL, syscall.ENOTDIR,
		syscall.EISDIR, syscall.ENAMETOOLONG, syscall.ENODATA, syscall.EOPNOTSUPP, syscall.EROFS, syscall.EILSEQ:
		return true
	}
	return false
}
