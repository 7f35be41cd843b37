package azure

import (
	"context"
	"io"
	"time"

	"blobmount/blobcache/blob"
)

func unsupported(op, name string) error {
	return &blob.Error{Code: blob.Unsupported, Op: op, Name: name}
}

// StageBlockFrom implements blob.Container.
func (c *Container) StageBlockFrom(_ context.Context, name, _ string, _ blob.Range) error {
	return unsupported("StageBlockFrom", name)
}

// AppendBlock implements blob.Container.
func (c *Container) AppendBlock(_ context.Context, name string, _ io.ReadSeeker, _, _ int64, _ blob.Condition) (blob.Written, error) {
	return blob.Written{}, unsupported("AppendBlock", name)
}

// Tags implements blob.Container.
func (c *Container) Tags(_ context.Context, name string) (map[string]string, error) {
	return nil, unsupported("Tags", name)
}

// AcquireLease implements blob.Container.
func (c *Container) AcquireLease(_ context.Context, name string, _ time.Duration) error {
	return unsupported("AcquireLease", name)
}

// RenewLease implements blob.Container.
func (c *Container) RenewLease(_ context.Context, name string) error {
	return unsupported("RenewLease", name)
}

// ReleaseLease implements blob.Container.
func (c *Container) ReleaseLease(_ context.Context, name string) error {
	return unsupported("ReleaseLease", name)
}
