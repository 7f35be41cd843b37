package auth_test

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blobmount/auth"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
)

const (
	client  = "11111111-2222-3333-4444-555555555555"
	subject = "system:serviceaccount:training:reader"
)

var assigned = identity.ManagedIdentity{
	ClientID: "aaaaaaaa-0000-0000-0000-000000000001", ObjectID: "aaaaaaaa-0000-0000-0000-000000000002",
	ResourceID: "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i",
}

// cloud is an identity service, a blob service that checks its tokens, and an environment in which both are found.
type cloud struct {
	*identity.Server
	t     *testing.T
	dir   string
	env   map[string]string
	given []auth.Value
	opts  auth.Options
}

func startCloud(t *testing.T) *cloud {
	t.Helper()
	id, err := identity.Start()
	must(t, err)
	t.Cleanup(func() { must(t, id.Close()) })
	secure, err := id.TLS()
	must(t, err)
	s, err := blobserver.Start(blobserver.Options{TLS: secure, Bearer: id.Bearer, Authority: id.Authority(), Containers: []string{"data"}})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	c := &cloud{Server: id, t: t, dir: t.TempDir(), env: map[string]string{"AZURE_AUTHORITY_HOST": id.URL()}}
	c.opts = auth.Options{
		Account: blobserver.DefaultAccount, Endpoint: s.URL(), CAFile: c.file("ca.pem", id.CA()),
		Given:     func() ([]auth.Value, error) { return c.given, nil },
		LookupEnv: func(name string) (string, bool) { v, ok := c.env[name]; return v, ok },
	}
	// A token of a managed identity is kept for the whole process, unless it ends within five minutes.
	id.SetLife(4*time.Minute, 4*time.Minute)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file writes a file, and returns its path.
func (c *cloud) file(name string, content []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	must(c.t, os.WriteFile(path, content, 0o600))
	return path
}

// setenv sets variables, also those of this process, which azidentity reads by itself.
func (c *cloud) setenv(variables ...string) {
	c.t.Helper()
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		c.env[name] = value
		c.t.Setenv(name, value)
	}
}

// list finds the credential, and lists the container with it.
func (c *cloud) list() (auth.Found, error) {
	c.t.Helper()
	found, err := auth.Find(c.opts)
	if err != nil {
		return found, err
	}
	container, err := azure.New(azure.Config{
		URL: found.Endpoint + "/data", Credential: azure.Credential{Token: found.Token}, RetryFor: -1,
		Transport: azure.TransportConfig{RootCAs: found.RootCAs},
	})
	must(c.t, err)
	defer container.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	_, err = container.List(ctx, blob.ListOptions{})
	return found, err
}

// Each way to prove who one is leads to a token that the blob service takes, and the origin names it.
func TestTokens(t *testing.T) {
	for _, c := range []struct {
		name   string
		setup  func(*cloud)
		path   identity.Path
		client string
		origin string
	}{
		{"secret in storage names", func(c *cloud) {
			c.AddSecret(client, "s3cret")
			c.setenv("AZURE_STORAGE_TENANT_ID="+identity.Tenant, "AZURE_STORAGE_CLIENT_ID="+client, "AZURE_STORAGE_CLIENT_SECRET=s3cret")
		}, identity.ClientSecret, client, "service principal from environment AZURE_STORAGE_CLIENT_SECRET"},
		{"secret in azidentity's names", func(c *cloud) {
			c.AddSecret(client, "s3cret")
			c.setenv("AZURE_TENANT_ID="+identity.Tenant, "AZURE_CLIENT_ID="+client, "AZURE_CLIENT_SECRET=s3cret")
		}, identity.ClientSecret, client, "service principal from environment AZURE_CLIENT_SECRET"},
		{"secret in a directory", func(c *cloud) {
			c.AddSecret(client, "s3cret")
			c.file("tenant_id", []byte(identity.Tenant))
			c.file("client_id", []byte(client))
			c.file("client_secret", []byte("s3cret\n"))
			c.opts.SecretDir = c.dir
		}, identity.ClientSecret, client, "service principal from secret file "},
		{"certificate", func(c *cloud) {
			c.setenv("AZURE_TENANT_ID="+identity.Tenant, "AZURE_CLIENT_ID="+client, "AZURE_CLIENT_CERTIFICATE_PATH="+c.file("cert.pem", c.certificate()))
		}, identity.ClientCertificate, client, "service principal by certificate from environment AZURE_CLIENT_CERTIFICATE_PATH"},
		{"certificate by flags", func(c *cloud) {
			c.give(auth.TenantID, identity.Tenant)
			c.give(auth.ClientID, client)
			c.give(auth.ClientCertificate, c.file("cert.pem", c.certificate()))
		}, identity.ClientCertificate, client, "service principal by certificate from a flag"},
		{"certificate in a directory", func(c *cloud) {
			c.file("tenant_id", []byte(identity.Tenant))
			c.file("client_id", []byte(client))
			c.file("client_certificate", c.certificate())
			c.opts.SecretDir = c.dir
		}, identity.ClientCertificate, client, "service principal by certificate from secret file "},
		{"federated token", func(c *cloud) {
			c.setenv("AZURE_TENANT_ID="+identity.Tenant, "AZURE_CLIENT_ID="+client,
				"AZURE_FEDERATED_TOKEN_FILE="+c.file("token", c.federated(c.cluster())))
		}, identity.Federated, client, "service principal by federated token from environment AZURE_FEDERATED_TOKEN_FILE"},

		{"App Service", func(c *cloud) { c.managed(c.AppServiceEnv()) }, identity.AppService, identity.System.ClientID, "managed identity of this machine"},
		{"App Service client id", func(c *cloud) {
			c.managed(c.AppServiceEnv())
			c.give(auth.ManagedClientID, assigned.ClientID)
		}, identity.AppService, assigned.ClientID, "managed identity from a flag"},
		{"App Service object id", func(c *cloud) {
			c.managed(c.AppServiceEnv())
			c.give(auth.ManagedObjectID, assigned.ObjectID)
		}, identity.AppService, assigned.ClientID, "managed identity from a flag"},
		{"App Service resource id", func(c *cloud) {
			c.managed(c.AppServiceEnv())
			c.give(auth.ManagedResourceID, assigned.ResourceID)
		}, identity.AppService, assigned.ClientID, "managed identity from a flag"},
		{"IMDS", func(c *cloud) { c.managed(c.imds()) }, identity.IMDS, identity.System.ClientID, "managed identity of this machine"},
		{"IMDS client id", func(c *cloud) {
			c.managed(c.imds())
			c.setenv("AZURE_STORAGE_IDENTITY_CLIENT_ID=" + assigned.ClientID)
		}, identity.IMDS, assigned.ClientID, "managed identity from environment AZURE_STORAGE_IDENTITY_CLIENT_ID"},
		{"IMDS object id", func(c *cloud) {
			c.managed(c.imds())
			c.setenv("AZURE_STORAGE_IDENTITY_OBJECT_ID=" + assigned.ObjectID)
		}, identity.IMDS, assigned.ClientID, "managed identity from environment AZURE_STORAGE_IDENTITY_OBJECT_ID"},
		{"IMDS resource id", func(c *cloud) {
			c.managed(c.imds())
			c.setenv("AZURE_STORAGE_IDENTITY_RESOURCE_ID=" + assigned.ResourceID)
		}, identity.IMDS, assigned.ClientID, "managed identity from environment AZURE_STORAGE_IDENTITY_RESOURCE_ID"},
		{"Azure ML", func(c *cloud) { c.managed(c.AzureMLEnv()) }, identity.AzureML, identity.System.ClientID, "managed identity of this machine"},
		{"Azure ML client id", func(c *cloud) {
			c.managed(c.AzureMLEnv())
			c.setenv("AZURE_CLIENT_ID=" + assigned.ClientID)
		}, identity.AzureML, assigned.ClientID, "managed identity from environment AZURE_CLIENT_ID"},
		{"default chain", func(c *cloud) {
			c.Assign(assigned)
			c.setenv(c.AppServiceEnv()...)
		}, identity.AppService, identity.System.ClientID, "identity from azidentity's default chain"},

		{"public cloud through a proxy", func(c *cloud) {
			c.AddSecret(client, "s3cret")
			delete(c.env, "AZURE_AUTHORITY_HOST")
			c.opts.Proxy = func(r *http.Request) (*url.URL, error) { return url.Parse(c.Proxy()) }
			c.setenv("AZURE_STORAGE_TENANT_ID="+identity.Tenant, "AZURE_STORAGE_CLIENT_ID="+client, "AZURE_STORAGE_CLIENT_SECRET=s3cret")
		}, identity.ClientSecret, client, "service principal from environment AZURE_STORAGE_CLIENT_SECRET"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := startCloud(t)
			c.setup(w)
			found, err := w.list()
			must(t, err)
			if !strings.HasPrefix(found.Origin, c.origin) {
				t.Errorf("origin %q, want %q", found.Origin, c.origin)
			}
			if used := w.Used(); len(used) != 1 || used[c.client] != 1 {
				t.Errorf("requests with a good token by client: %v, want one of %s", used, c.client)
			}
			if n := w.Requests(c.path); n != 1 {
				t.Errorf("%d requests by %s, want 1", n, c.path)
			}
			// The public cloud is never asked about an authority that is none of its own.
			if n, public := w.Requests(identity.Instance), w.opts.Proxy != nil; (n != 0) != public {
				t.Errorf("%d requests for instance discovery", n)
			}
		})
	}
}

func (c *cloud) give(k auth.Kind, value string) {
	c.given = append(c.given, auth.Value{Kind: k, Secret: auth.NewSecret(value), From: "a flag"})
}

// managed asks for a managed identity, of a host with this environment.
func (c *cloud) managed(env []string) {
	c.t.Helper()
	c.Assign(assigned)
	c.setenv(env...)
	c.opts.Auth = auth.ManagedIdentity
}

func (c *cloud) imds() []string {
	return []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST=" + c.ManagedURL()}
}

// certificate registers a certificate, and returns its file.
func (c *cloud) certificate() []byte {
	c.t.Helper()
	cert, file, err := identity.NewClientCertificate("app")
	must(c.t, err)
	c.AddCertificate(client, cert)
	return file
}

func (c *cloud) cluster() *identity.Cluster {
	c.t.Helper()
	k, err := c.NewCluster()
	must(c.t, err)
	c.Trust(client, k, subject)
	return k
}

func (c *cloud) federated(k *identity.Cluster) []byte {
	c.t.Helper()
	text, err := k.Token(subject, identity.FederatedAudience, time.Hour)
	must(c.t, err)
	return []byte(text)
}

// Kubernetes replaces the file long before the token in it ends; what is there when a token is asked for counts.
func TestFederatedTokenFileIsReadAgain(t *testing.T) {
	w := startCloud(t)
	k := w.cluster()
	expired, err := k.Token(subject, identity.FederatedAudience, -time.Minute)
	must(t, err)
	w.setenv("AZURE_TENANT_ID="+identity.Tenant, "AZURE_CLIENT_ID="+client, "AZURE_FEDERATED_TOKEN_FILE="+w.file("token", []byte(expired)))
	found, err := w.list()
	if !blob.Is(err, blob.Unauthenticated) {
		t.Fatalf("with an expired token: %v", err)
	}
	w.file("token", w.federated(k))
	container, err := azure.New(azure.Config{URL: found.Endpoint + "/data", Credential: azure.Credential{Token: found.Token}, RetryFor: -1,
		Transport: azure.TransportConfig{RootCAs: found.RootCAs}})
	must(t, err)
	defer container.Close()
	_, err = container.List(t.Context(), blob.ListOptions{})
	must(t, err)
}
