package mounttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/integration/azurite"
	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
)

// Service is a running blob service. All methods may be called in parallel.
type Service struct {
	// Name is "Embedded" or "Azurite".
	Name string
	// Embedded is the embedded service, to count and to break requests; nil when it is Azurite.
	Embedded *blobserver.Server

	connection, url string
	credential      *container.SharedKeyCredential
	client          *http.Client // of the SDK; nil is its own
	containers      atomic.Int64
}

// Embedded starts the embedded service until the test ends.
func Embedded(t testing.TB) *Service {
	t.Helper()
	return EmbeddedWith(t, blobserver.Options{})
}

// WithIdentity starts an identity service, and the embedded blob service over https, which takes its tokens beside
// signatures of the key. Both end with the test. Points of the service need the CA of the identity service (--ca-file), the
// URL of the blob service (--endpoint), and an empty connection string.
func WithIdentity(t testing.TB) (*Service, *identity.Server) {
	t.Helper()
	id, err := identity.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := id.Close(); err != nil {
			t.Error(err)
		}
	})
	secure, err := id.TLS()
	if err != nil {
		t.Fatal(err)
	}
	s := EmbeddedWith(t, blobserver.Options{TLS: secure, Bearer: id.Bearer, Authority: id.Authority()})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: id.Roots()}}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport}
	return s, id
}

// EmbeddedWith is Embedded with options, which must leave the account as it is.
func EmbeddedWith(t testing.TB, o blobserver.Options) *Service {
	t.Helper()
	s, err := blobserver.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	key, err := container.NewSharedKeyCredential(blobserver.DefaultAccount, blobserver.DefaultKey)
	if err != nil {
		t.Fatal(err)
	}
	return &Service{Name: "Embedded", Embedded: s, connection: s.ConnectionString(), url: s.URL(), credential: key}
}

// Azurite starts Azurite until the test ends.
func Azurite(t testing.TB) *Service {
	t.Helper()
	s := azurite.Start(t)
	return &Service{Name: "Azurite", connection: s.ConnectionString(), url: s.URL, credential: s.Credential()}
}

// URL returns the address of the account, without a slash at the end.
func (s *Service) URL() string { return s.url }

// Via returns the same service as it is reached through another address, host:port, that passes connections on. It is
// for mounts (NewPoint); containers are made by the original.
func (s *Service) Via(address string) *Service {
	host := s.Address()
	return &Service{
		Name: s.Name, Embedded: s.Embedded, credential: s.credential, client: s.client,
		connection: strings.ReplaceAll(s.connection, host, address), url: strings.ReplaceAll(s.url, host, address),
	}
}

// Address returns host:port of the service.
func (s *Service) Address() string {
	_, host, _ := strings.Cut(s.url, "://")
	host, _, _ = strings.Cut(host, "/")
	return host
}

// ConnectionString returns what the SDKs and blobmount take, the key included.
func (s *Service) ConnectionString() string { return s.connection }

// Container is one container as another program sees it: through the SDK, past every mount. Its methods fail the
// test when the service does, and may be called in parallel.
type Container struct {
	Name   string
	Client *container.Client
	t      testing.TB
}

// NewContainer makes an empty container. It is deleted when the test ends.
func (s *Service) NewContainer(t testing.TB) *Container {
	t.Helper()
	name := fmt.Sprintf("e2e-%d", s.containers.Add(1))
	options := &container.ClientOptions{}
	if s.client != nil {
		options.Transport = s.client
	}
	client, err := container.NewClientWithSharedKeyCredential(s.url+"/"+name, s.credential, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	c := &Container{Name: name, Client: client, t: t}
	t.Cleanup(func() {
		if _, err := client.Delete(context.Background(), nil); err != nil && !bloberror.HasCode(err, bloberror.ContainerNotFound) {
			t.Error(err)
		}
	})
	return c
}

// Put creates or replaces a blob by one Put Blob.
func (c *Container) Put(name string, content []byte) {
	c.t.Helper()
	if _, err := c.Client.NewBlockBlobClient(name).Upload(context.Background(), nopCloser{bytes.NewReader(content)}, nil); err != nil {
		c.t.Fatalf("put %q: %v", name, err)
	}
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// Get returns the content of a blob.
func (c *Container) Get(name string) []byte {
	c.t.Helper()
	r, err := c.Client.NewBlobClient(name).DownloadStream(context.Background(), nil)
	if err != nil {
		c.t.Fatalf("get %q: %v", name, err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatalf("get %q: %v", name, err)
	}
	return b
}

// Has reports whether there is a blob of this name.
func (c *Container) Has(name string) bool {
	c.t.Helper()
	_, err := c.Client.NewBlobClient(name).GetProperties(context.Background(), nil)
	if err != nil && !bloberror.HasCode(err, bloberror.BlobNotFound) {
		c.t.Fatalf("properties of %q: %v", name, err)
	}
	return err == nil
}

// ETag returns the version of a blob.
func (c *Container) ETag(name string) azcore.ETag {
	c.t.Helper()
	p, err := c.Client.NewBlobClient(name).GetProperties(context.Background(), nil)
	if err != nil {
		c.t.Fatalf("properties of %q: %v", name, err)
	}
	return *p.ETag
}

// Delete deletes a blob.
func (c *Container) Delete(name string) {
	c.t.Helper()
	if _, err := c.Client.NewBlobClient(name).Delete(context.Background(), nil); err != nil {
		c.t.Fatalf("delete %q: %v", name, err)
	}
}

// Blobs returns the names of all blobs, sorted by their bytes.
func (c *Container) Blobs() []string {
	c.t.Helper()
	var names []string
	pager := c.Client.NewListBlobsFlatPager(nil)
	for pager.More() {
		page, err := pager.NextPage(context.Background())
		if err != nil {
			c.t.Fatalf("list: %v", err)
		}
		for _, b := range page.Segment.BlobItems {
			names = append(names, *b.Name)
		}
	}
	slices.Sort(names)
	return names
}
