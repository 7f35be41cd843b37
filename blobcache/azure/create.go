package azure

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
)

// Create creates the container, without public access (Create Container). It is no failure when there is one. created
// says whether this call made it, as far as one can know when an answer was lost.
func (c *Container) Create(ctx context.Context) (created bool, err error) {
	const op = "CreateContainer"
	ctx, _ = withAttempts(ctx, op, "")
	_, err = c.client.Create(ctx, nil)
	if bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return false, nil
	}
	return err == nil, fail(ctx, op, "", err)
}
