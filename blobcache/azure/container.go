// Package azure is blob.Container over the Blob service of Azure Storage.
//
// It is the one place where the SDK (azblob) meets the rest of the program: requests, retries and the
// translation of the service's error codes live here, and no SDK type leaves but in Credential. The rules that
// it follows are those of the REST reference
// (https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api).
//
// # What a write that was repeated may answer
//
// A reply can be lost after the service acted. Repeating a write of content without a condition makes the same content
// again, also over what another host has written between the two: who sends none has asked for that. A conditional one
// finds its own first attempt in the way and is refused. For Upload, CommitBlockList, AppendBlock, SetMetadata and Copy the
// adapter then looks whether the version that is there is the one it sent (see recognise.go). Delete that finds nothing on
// a repetition has succeeded, and so has ReleaseLease that finds no lease of its own; a Delete without a condition, and a
// Copy over whatever is there, are repeated only when what is there is not newer (see delete.go). AcquireLease and
// RenewLease may be repeated.
package azure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blob"
)

// Config says which container, and how to talk to it. The zero value of a field that has a default means the
// default.
type Config struct {
	// URL is the container's address without a query: https://ACCOUNT.blob.core.windows.net/CONTAINER, or with
	// the account in the path, as emulators want it: http://127.0.0.1:10000/devstoreaccount1/CONTAINER.
	URL        string
	Credential Credential
	// Renew is called when the service has refused the credential, before the operation fails. It may call
	// SetCredential: then the operation is tried again. If it reports that it is undecided, since there is another
	// credential that could not be tried, the operation is repeated within RetryFor. Parallel calls are made. Nil for a
	// credential that never changes.
	Renew func(context.Context) (undecided bool)
	// RetryFor is how long an operation goes on repeating failures that are safe to repeat: throttling, a
	// failing service, a broken connection. An operation that Retry-After would hold back beyond it fails at once;
	// waiting for a connection while others are served does not count. 0 means DefaultRetryFor, a negative value
	// means one try only.
	RetryFor  time.Duration
	Transport TransportConfig
	// Log gets one record per repeated request, at level Debug when the service throttled it, and at Info one when
	// throttling begins to lower the number of requests under way, and one when it is back at MaxConnections. Nil
	// logs nothing.
	Log *slog.Logger
}

// DefaultRetryFor outlasts a failover of a storage partition, which takes the service some 15 to 30 seconds.
const DefaultRetryFor = 90 * time.Second

// Container is a container of the Blob service. Its methods may be called in parallel.
type Container struct {
	client *container.Client // signs nothing: see signer
	// pipeline sends what client has no method for.
	pipeline runtime.Pipeline
	access   atomic.Pointer[access]
	leases   *blob.Leases
	recent   recent
	// base is the container's address without credentials, as URL gives it.
	base     string
	retryFor time.Duration
	log      *slog.Logger
	close    func()
	// noCRC64 is set once the endpoint refused a CRC-64 (see protect).
	noCRC64 atomic.Bool
}

var _ blob.Container = (*Container)(nil)

// New returns the container of that address. It sends no request: whether the container exists, and whether the
// credential is good for it, shows at the first one.
func New(cfg Config) (*Container, error) {
	base, err := containerURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	c := &Container{
		leases:   blob.NewLeases(),
		base:     base.String(),
		retryFor: cfg.RetryFor,
		log:      cfg.Log,
	}
	if c.retryFor == 0 {
		c.retryFor = DefaultRetryFor
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if err := c.SetCredential(cfg.Credential); err != nil {
		return nil, err
	}
	if cfg.Credential.SAS != "" && base.Scheme == "http" {
		c.log.Warn("the SAS is sent without encryption", "endpoint", base.Host)
	}
	if cfg.Transport.MaxConnections < 0 {
		return nil, fmt.Errorf("%d connections are not enough", cfg.Transport.MaxConnections)
	}
	connections := cmp.Or(cfg.Transport.MaxConnections, DefaultMaxConnections)
	cfg.Transport.MaxConnections = connections
	tr := newTransport(cfg.Transport)
	c.close = tr.CloseIdleConnections
	limit := newThrottle(connections, c.log)

	options := &container.ClientOptions{
		ClientOptions: azcore.ClientOptions{
			Transport: slotTransport{tr},
			Telemetry: policy.TelemetryOptions{ApplicationID: "blobmount"},
			// The SDK's own policy counts attempts; the contract here is a span of time. It gets one try, and
			// retrier repeats around it.
			Retry: policy.RetryOptions{MaxRetries: -1},
			PerCallPolicies: []policy.Policy{pageReader{}, &retrier{
				retryFor: c.retryFor, log: c.log, throttle: limit, access: &c.access, renew: cfg.Renew,
			}},
			PerRetryPolicies: []policy.Policy{signer{c}},
		},
		// "Expect: 100-continue" would cost a round trip per upload for a minute after each throttled request.
		// An early refusal needs no help: the transport stops sending when the answer arrives (see gate).
		ExpectContinueBehavior: container.ExpectContinueOptions{Mode: container.ExpectContinueModeOff},
	}
	c.pipeline = newPipeline(options.ClientOptions)
	c.client, err = container.NewClientWithNoCredential(c.base, options)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.base, safe(err))
	}
	return c, nil
}

// Close closes the connections that are not in use. Requests under way go on.
func (c *Container) Close() { c.close() }

// URL implements blob.Container.
func (c *Container) URL(name string) string {
	if name == "" {
		return c.base
	}
	return c.base + "/" + escape(name)
}

// escape writes a name as the path of a URL. Every byte but letters, digits and a few marks is escaped, slashes
// stay, so that different names never give the same address.
func escape(name string) string {
	return strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
}

// containerURL checks the address of a container and brings it into the one form that identifies it: scheme and
// host in lower case, no default port, no slash at the end. What it refuses it does not repeat: somebody may
// have pasted an address with a signature.
func containerURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("the container's URL cannot be parsed")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("the container's URL must begin with https:// or http://")
	case u.Host == "":
		return nil, errors.New("the container's URL has no host")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil:
		return nil, errors.New("the container's URL must have no query, fragment or user; a SAS is a credential of its own")
	}
	path := strings.Trim(u.Path, "/")
	parts := strings.Split(path, "/")
	if path == "" || len(parts) > 2 || parts[0] == "" || strings.Contains(path, "//") {
		return nil, errors.New("the path of the container's URL must be /CONTAINER or /ACCOUNT/CONTAINER")
	}
	host := strings.ToLower(u.Host)
	if p := u.Port(); p == "443" && u.Scheme == "https" || p == "80" && u.Scheme == "http" {
		host = strings.TrimSuffix(host, ":"+p)
	}
	return &url.URL{Scheme: u.Scheme, Host: host, Path: "/" + path}, nil
}

func count(conditions ...bool) (n int) {
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}

// accessConditions returns the condition of a read, nil for none.
func accessConditions(c blob.Condition) *sdkblob.AccessConditions {
	if c == (blob.Condition{}) {
		return nil
	}
	return &sdkblob.AccessConditions{ModifiedAccessConditions: &sdkblob.ModifiedAccessConditions{
		IfMatch: etagPointer(c.IfMatch), IfNoneMatch: etagPointer(c.IfNoneMatch),
	}}
}

// writeConditions returns the condition of a write, with the blob's lease if it is held; nil for neither.
func (c *Container) writeConditions(name string, cond blob.Condition) *sdkblob.AccessConditions {
	conditions, lease := accessConditions(cond), c.leaseCondition(name)
	if lease == nil {
		return conditions
	}
	if conditions == nil {
		conditions = &sdkblob.AccessConditions{}
	}
	conditions.LeaseAccessConditions = lease
	return conditions
}

func (c *Container) leaseCondition(name string) *sdkblob.LeaseAccessConditions {
	if id := c.leases.Held(name); id != "" {
		return &sdkblob.LeaseAccessConditions{LeaseID: &id}
	}
	return nil
}

func sourceConditions(c blob.Condition) *sdkblob.SourceModifiedAccessConditions {
	if c == (blob.Condition{}) {
		return nil
	}
	return &sdkblob.SourceModifiedAccessConditions{SourceIfMatch: etagPointer(c.IfMatch), SourceIfNoneMatch: etagPointer(c.IfNoneMatch)}
}

func etagPointer(e blob.ETag) *azcore.ETag {
	if e == "" {
		return nil
	}
	v := azcore.ETag(e)
	return &v
}
