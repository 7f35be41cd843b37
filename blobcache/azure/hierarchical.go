package azure

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"blobmount/blobcache/blob"
)

// Hierarchical is a container of an account with a hierarchical namespace.
type Hierarchical struct {
	*Container
	paths string // the container's address at the endpoint of Data Lake Storage
}

var _ blob.Renamer = (*Hierarchical)(nil)

// pathVersion is the version of the REST interface that operations on paths are sent with.
const pathVersion = "2023-11-03"

// Hierarchical returns the container with what it can do besides if its account has a hierarchical namespace ("Get Account
// Information", x-ms-is-hns-enabled), else nil.
func (c *Container) Hierarchical(ctx context.Context) (*Hierarchical, error) {
	const op = "Hierarchical"
	ctx, _ = withAttempts(ctx, op, "")
	r, err := c.client.GetAccountInfo(ctx, nil)
	if err != nil {
		return nil, fail(ctx, op, "", err)
	}
	if !value(r.IsHierarchicalNamespaceEnabled) {
		return nil, nil
	}
	u, err := url.Parse(c.base)
	if err != nil {
		return nil, err
	}
	// ACCOUNT.blob.core.windows.net has ACCOUNT.dfs.core.windows.net beside it ("Path - Create"). Another name, as of an
	// emulator, has to serve both.
	u.Host = strings.Replace(u.Host, ".blob.", ".dfs.", 1)
	return &Hierarchical{c, u.String()}, nil
}

// Rename implements blob.Renamer. Without an ETag of the source, as for a directory, it asks first what is under the new name:
// when the answer is lost, nothing else tells whether the rename has happened.
func (h *Hierarchical) Rename(ctx context.Context, dst, src string, o blob.RenameOptions) error {
	const op = "Rename"
	if err := cmp.Or(checkName(op, dst), checkName(op, src)); err != nil {
		return err
	}
	is, err := h.renamed(ctx, dst, o)
	if err != nil {
		return err
	}
	ctx, tries := withAttempts(ctx, op, dst)
	header := map[string]string{
		"x-ms-source-if-match": string(o.Source.IfMatch),
		"If-Match":             string(o.Condition.IfMatch),
		"If-None-Match":        string(o.Condition.IfNoneMatch),
		"x-ms-source-lease-id": h.leases.Held(src),
		"x-ms-lease-id":        h.leases.Held(dst),
	}
	ctx = context.WithValue(ctx, renameSourceKey{}, "/"+path.Base(h.base)+"/"+escape(src))
	query := "mode=posix"
	for {
		resp, err := h.send(ctx, http.MethodPut, dst, query, header, http.StatusCreated)
		if err != nil {
			err = failWrite(ctx, op, dst, o.Condition, err)
			if tries.doubtful && h.isRenamed(ctx, dst, src, err, is) {
				return nil
			}
			return err
		}
		next := resp.Header.Get("x-ms-continuation")
		if next == "" {
			return nil
		}
		query = "mode=posix&continuation=" + url.QueryEscape(next)
	}
}

// renamed returns what tells, by what is under the new name later, whether the source has come there. An old target is not
// the source. The ETag goes with a file to its new name (Hadoop's ABFS promises and uses this: fs.capability.etags.preserved.in.rename,
// and the recovery of its renames).
func (h *Hierarchical) renamed(ctx context.Context, dst string, o blob.RenameOptions) (is func(blob.Properties) bool, err error) {
	if e := o.Source.IfMatch; e != "" && e != blob.Any {
		return func(p blob.Properties) bool { return p.ETag == e }, nil
	}
	before, err := h.Properties(ctx, dst, blob.Condition{})
	if err != nil && !blob.Is(err, blob.NotFound) {
		return nil, err
	}
	return func(p blob.Properties) bool { return p.ETag != before.ETag }, nil
}

// isRenamed reports whether an earlier try of a rename that was refused in the end has succeeded, and its answer was lost:
// then the source is under the new name, and not under the old one. What the service looks at first, when both the source is
// missing and the target is there, is not documented.
func (h *Hierarchical) isRenamed(ctx context.Context, dst, src string, refused error, is func(blob.Properties) bool) bool {
	switch blob.CodeOf(refused) {
	case blob.NotFound, blob.Exists, blob.NotEmpty, blob.ConditionNotMet:
	default:
		return false
	}
	p, err := h.Properties(ctx, dst, blob.Condition{})
	if err != nil || !is(p) {
		return false
	}
	// There may be another one again by now.
	if old, err := h.Properties(ctx, src, blob.Condition{}); err == nil && old.ETag == p.ETag || err != nil && !blob.Is(err, blob.NotFound) {
		return false
	}
	h.log.Info("recognised a rename whose answer was lost", "from", src, "to", dst)
	return true
}

// DeleteDirectory implements blob.Renamer.
func (h *Hierarchical) DeleteDirectory(ctx context.Context, name string) error {
	const op = "DeleteDirectory"
	if err := checkName(op, name); err != nil {
		return err
	}
	ctx, tries := withAttempts(ctx, op, name)
	_, err := h.send(ctx, http.MethodDelete, name, "recursive=false", nil, http.StatusOK)
	if err = fail(ctx, op, name, err); tries.doubtful && blob.Is(err, blob.NotFound) {
		return nil
	}
	return err
}

// send sends a request about a path. Its error is the SDK's.
func (h *Hierarchical) send(ctx context.Context, method, name, query string, header map[string]string, want int) (*http.Response, error) {
	req, err := runtime.NewRequest(ctx, method, h.paths+"/"+escape(name))
	if err != nil {
		return nil, err
	}
	req.Raw().URL.RawQuery = query
	req.Raw().Header.Set("x-ms-version", pathVersion)
	for k, v := range header {
		if v != "" {
			req.Raw().Header.Set(k, v)
		}
	}
	resp, err := h.pipeline.Do(req)
	if err != nil {
		return nil, err
	}
	defer runtime.Drain(resp)
	if resp.StatusCode != want {
		return nil, runtime.NewResponseError(resp)
	}
	return resp, nil
}

// newPipeline returns what sends the requests that the SDK for blobs does not know. Its own module would be one more copy
// of what container.go has set up, for two requests.
func newPipeline(o policy.ClientOptions) runtime.Pipeline {
	return runtime.NewPipeline("blobmount", "v1", runtime.PipelineOptions{}, &o)
}
