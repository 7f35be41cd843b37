package azure

import (
	"context"
	"fmt"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"blobmount/blobcache/blob"
)

// AcquireLease implements blob.Container.
func (c *Container) AcquireLease(ctx context.Context, name string, d time.Duration) error {
	const op = "AcquireLease"
	if d < blob.MinLease || d > blob.MaxLease || d%time.Second != 0 {
		return &blob.Error{Code: blob.Other, Op: op, Name: name,
			Err: fmt.Errorf("a lease of %v: it must be whole seconds from %v to %v", d, blob.MinLease, blob.MaxLease)}
	}
	_, err := c.onLease(ctx, op, name, func(ctx context.Context, l *lease.BlobClient) error {
		_, err := l.AcquireLease(ctx, int32(d/time.Second), nil)
		return err
	})
	if err == nil {
		c.leases.Set(name)
	}
	return err
}

// RenewLease implements blob.Container.
func (c *Container) RenewLease(ctx context.Context, name string) error {
	_, err := c.onLease(ctx, "RenewLease", name, func(ctx context.Context, l *lease.BlobClient) error {
		_, err := l.RenewLease(ctx, nil)
		return err
	})
	return err
}

// ReleaseLease implements blob.Container.
func (c *Container) ReleaseLease(ctx context.Context, name string) error {
	c.leases.Forget(name)
	tries, err := c.onLease(ctx, "ReleaseLease", name, func(ctx context.Context, l *lease.BlobClient) error {
		_, err := l.ReleaseLease(ctx, nil)
		return err
	})
	if err != nil && tries.doubtful && blob.Is(err, blob.Leased) {
		return nil // an earlier try released it, and its answer was lost
	}
	return err
}

// onLease makes a request about the lease that this container has, or wants, on a blob.
func (c *Container) onLease(ctx context.Context, op, name string, act func(context.Context, *lease.BlobClient) error) (*attempts, error) {
	ctx, tries := withAttempts(ctx, op, name)
	if err := checkName(op, name); err != nil {
		return tries, err
	}
	id := c.leases.ID(name)
	client, err := lease.NewBlobClient(c.client.NewBlobClient(name), &lease.BlobClientOptions{LeaseID: &id})
	if err != nil {
		return tries, fail(ctx, op, name, err)
	}
	return tries, fail(ctx, op, name, act(ctx, client))
}
