package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
	"blobmount/integration/mounttest"
)

const (
	clientID       = "11111111-2222-3333-4444-555555555555"
	clientSecret   = "the-secret-of-an-application"
	serviceAccount = "system:serviceaccount:training:reader"
)

var userAssigned = identity.ManagedIdentity{
	ClientID: "aaaaaaaa-0000-0000-0000-000000000001", ObjectID: "aaaaaaaa-0000-0000-0000-000000000002",
	ResourceID: "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i",
}

// cloud is a blob service that takes the tokens of an identity service.
type cloud struct {
	*mounttest.Service
	id *identity.Server
	t  *testing.T
}

func startCloud(t *testing.T) *cloud {
	t.Helper()
	mounttest.NeedFUSE(t)
	mounttest.Binary(t)
	s, id := mounttest.WithIdentity(t)
	id.Assign(userAssigned)
	return &cloud{s, id, t}
}

// tenant is a mount point whose program is told where both services are, and the files that prove who it is.
type tenant struct {
	*world
	*cloud
	files string
	flags []string
}

func (c *cloud) newTenant(t *testing.T) *tenant {
	t.Helper()
	con := c.NewContainer(t)
	p := c.NewPoint(t, con)
	n := &tenant{&world{p, con, t}, c, t.TempDir(), nil}
	p.Setenv("AZURE_STORAGE_CONNECTION_STRING=")
	p.Setenv("AZURE_STORAGE_ACCOUNT_NAME=" + blobserver.DefaultAccount)
	p.Setenv("AZURE_AUTHORITY_HOST=" + c.id.URL())
	n.flags = []string{"--log-level=debug", "--endpoint", c.URL(), "--ca-file", n.file("ca.pem", c.id.CA())}
	return n
}

// file writes a file that only its owner can read, and returns its path.
func (n *tenant) file(name string, content []byte) string {
	n.world.t.Helper()
	path := filepath.Join(n.files, name)
	must(n.world.t, os.WriteFile(path, content, 0o600))
	return path
}

func (n *tenant) setenv(variables ...string) {
	for _, v := range variables {
		n.Setenv(v)
	}
}

// bySecret is a service principal whose secret is in the environment.
func (n *tenant) bySecret(secret string) {
	n.setenv("AZURE_STORAGE_TENANT_ID="+identity.Tenant, "AZURE_STORAGE_CLIENT_ID="+clientID, "AZURE_STORAGE_CLIENT_SECRET="+secret)
}

// byToken is a workload whose federated token is in a file.
func (n *tenant) byToken(life time.Duration) {
	n.world.t.Helper()
	cluster, err := n.id.NewCluster()
	must(n.world.t, err)
	n.id.Trust(clientID, cluster, serviceAccount)
	text, err := cluster.Token(serviceAccount, identity.FederatedAudience, life)
	must(n.world.t, err)
	n.setenv("AZURE_TENANT_ID="+identity.Tenant, "AZURE_CLIENT_ID="+clientID, "AZURE_FEDERATED_TOKEN_FILE="+n.file("token", []byte(text)))
}

// run runs the program for a mount that must not come about.
func (n *tenant) run(flags ...string) mounttest.Result {
	args := append([]string{"--cache-dir", n.Cache, "--log-file", n.refusedLog()}, n.flags...)
	return n.Run(append(append(args, flags...), n.Source(), n.Dir)...)
}

func (n *tenant) refusedLog() string { return filepath.Join(n.files, "refused.log") }

// hides checks that nothing that the program has said holds a secret that was given out, or sent to the services.
func (n *tenant) hides(outputs ...string) {
	n.world.t.Helper()
	secrets := n.id.Secrets()
	if len(secrets) < 2 {
		n.world.t.Errorf("there are only %d secrets to look for", len(secrets))
	}
	for _, file := range []string{n.Log, n.refusedLog()} {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.world.t.Fatal(err)
		}
		outputs = append(outputs, string(text))
	}
	if len(strings.Join(outputs, "")) < 100 {
		n.world.t.Error("there is hardly any output to look into")
	}
	for _, secret := range secrets {
		for _, o := range outputs {
			if strings.Contains(o, secret) {
				n.world.t.Errorf("a secret of %d characters is in the output of the program", len(secret))
			}
		}
	}
}

// Each kind of identity mounts, reads and writes: the blob service takes the token, and it is that of the right identity.
func TestMountIdentity(t *testing.T) {
	c := startCloud(t)
	c.id.AddSecret(clientID, clientSecret)
	cert, pem, err := identity.NewClientCertificate("app")
	must(t, err)
	c.id.AddCertificate(clientID, cert)
	for _, m := range []struct {
		name   string
		setup  func(n *tenant) (flags []string)
		path   identity.Path
		client string
		origin string
	}{
		{"SecretInDirectory", func(n *tenant) []string {
			n.file("tenant_id", []byte(identity.Tenant))
			n.file("client_id", []byte(clientID))
			n.file("client_secret", []byte(clientSecret))
			return []string{"--secret-dir", n.files}
		}, identity.ClientSecret, clientID, "service principal from secret file "},
		{"SecretInEnvironment", func(n *tenant) []string {
			n.bySecret(clientSecret)
			return nil
		}, identity.ClientSecret, clientID, "service principal from environment AZURE_STORAGE_CLIENT_SECRET"},
		{"Certificate", func(n *tenant) []string {
			return []string{"--tenant-id", identity.Tenant, "--client-id", clientID, "--client-certificate", n.file("app.pem", pem)}
		}, identity.ClientCertificate, clientID, "service principal by certificate from --client-certificate"},
		{"Workload", func(n *tenant) []string {
			n.byToken(time.Hour)
			return nil
		}, identity.Federated, clientID, "service principal by federated token from environment AZURE_FEDERATED_TOKEN_FILE"},
		{"AppService", func(n *tenant) []string {
			n.setenv(c.id.AppServiceEnv()...)
			return []string{"--auth=msi"}
		}, identity.AppService, identity.System.ClientID, "managed identity of this machine"},
		{"AppServiceObject", func(n *tenant) []string {
			n.setenv(c.id.AppServiceEnv()...)
			return []string{"--auth=msi", "--object-id", userAssigned.ObjectID}
		}, identity.AppService, userAssigned.ClientID, "managed identity from --object-id"},
		{"MetadataClient", func(n *tenant) []string {
			n.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST=" + c.id.ManagedURL())
			return []string{"--auth=msi", "--client-id", userAssigned.ClientID}
		}, identity.IMDS, userAssigned.ClientID, "managed identity from --client-id"},
		{"MetadataResource", func(n *tenant) []string {
			n.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST=" + c.id.ManagedURL())
			return []string{"--auth=msi", "--resource-id", userAssigned.ResourceID}
		}, identity.IMDS, userAssigned.ClientID, "managed identity from --resource-id"},
		{"AzureML", func(n *tenant) []string {
			n.setenv(c.id.AzureMLEnv()...)
			return []string{"--auth=msi"}
		}, identity.AzureML, identity.System.ClientID, "managed identity of this machine"},
		{"DefaultChain", func(n *tenant) []string {
			n.setenv(c.id.AppServiceEnv()...)
			return nil
		}, identity.AppService, identity.System.ClientID, "identity from azidentity's default chain"},
		{"PublicCloudThroughProxy", func(n *tenant) []string {
			n.bySecret(clientSecret)
			n.setenv("AZURE_AUTHORITY_HOST=", "HTTPS_PROXY="+c.id.Proxy())
			return nil
		}, identity.ClientSecret, clientID, "service principal from environment AZURE_STORAGE_CLIENT_SECRET"},
	} {
		t.Run(m.name, func(t *testing.T) {
			n := c.newTenant(t)
			n.Put("there", []byte("content"))
			flags := append(n.flags, m.setup(n)...)
			asked, used := c.id.Requests(m.path), c.id.Used()[m.client]
			n.Mount(flags...)
			n.read("there", []byte("content"))
			n.write("new", []byte("written"))
			must(t, os.Rename(n.path("new"), n.path("moved")))
			n.holds("moved", []byte("written"))
			status := n.Run("status", n.Dir)
			n.Unmount()
			if got := c.id.Requests(m.path) - asked; got == 0 {
				t.Errorf("no token was asked for by %s", m.path)
			}
			if c.id.Used()[m.client] == used {
				t.Errorf("the blob service saw no token of %s: %v", m.client, c.id.Used())
			}
			if status.Status != 0 || !strings.Contains(status.Stdout, m.origin) {
				t.Errorf("status does not name %q: %+v", m.origin, status)
			}
			n.hides(status.Stdout, status.Stderr)
		})
	}
}

// The agent of Azure Arc writes a file, at a place that only root can write to, which has to be read for a token.
func TestMountArc(t *testing.T) {
	c := startCloud(t)
	n := c.newTenant(t)
	challenges := t.TempDir()
	n.setenv(c.id.ArcEnv(challenges)...)
	script := `mount -t tmpfs none /var/opt && mkdir -p /var/opt/azcmagent/tokens && mount --bind "$0" /var/opt/azcmagent/tokens && exec "$@"`
	if out, err := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", script, challenges, "true").CombinedOutput(); err != nil {
		t.Skipf("needs a mount namespace: %v: %s", err, out)
	}
	// A mount would be seen by nobody outside of the namespace: so all is checked but not mounted, as mount -f does.
	helper := filepath.Join(t.TempDir(), "mount.blobmount")
	must(t, os.Symlink(mounttest.Binary(t), helper))
	for _, m := range []struct{ option, client string }{
		{"", identity.System.ClientID}, {",client-id=" + userAssigned.ClientID, userAssigned.ClientID},
	} {
		used := c.id.Used()[m.client]
		options := "auth=msi,log-level=debug,cache-dir=" + n.Cache + ",log-file=" + n.refusedLog() + ",endpoint=" + c.URL() +
			",ca-file=" + filepath.Join(n.files, "ca.pem") + m.option
		if r := n.RunAs("unshare", "-m", "sh", "-c", script, challenges, helper, n.Source(), n.Dir, "-f", "-o", options); r != (mounttest.Result{}) {
			t.Fatalf("%+v", r)
		}
		if c.id.Used()[m.client] == used {
			t.Errorf("the blob service saw no token of %s: %v", m.client, c.id.Used())
		}
	}
	if asked := c.id.Requests(identity.Arc); asked != 4 {
		t.Errorf("%d requests, want 2 for each token", asked)
	}
	if left, err := os.ReadDir(challenges); err != nil || len(left) != 0 {
		t.Errorf("challenges that nobody answered: %v, %v", left, err)
	}
	n.hides()
}

// Who is refused gets one line that names the credential, and nothing is mounted.
func TestMountIdentityRefused(t *testing.T) {
	c := startCloud(t)
	c.id.AddSecret(clientID, clientSecret)
	for _, m := range []struct {
		name  string
		setup func(n *tenant) (flags []string)
		says  []string
	}{
		{"WrongSecret", func(n *tenant) []string {
			n.bySecret("a-wrong-secret-of-an-application")
			return nil
		}, []string{"service principal from environment AZURE_STORAGE_CLIENT_SECRET", "AADSTS7000215"}},
		{"SecretExpired", func(n *tenant) []string {
			n.bySecret(clientSecret)
			c.id.Refuse(&identity.Refusal{Status: http.StatusUnauthorized, Error: "invalid_client", Code: 7000222, Text: "The provided client secret keys for app are expired."})
			return nil
		}, []string{"service principal from environment AZURE_STORAGE_CLIENT_SECRET", "AADSTS7000222"}},
		{"UnknownClient", func(n *tenant) []string {
			n.bySecret(clientSecret)
			n.setenv("AZURE_STORAGE_CLIENT_ID=99999999-2222-3333-4444-555555555555")
			return nil
		}, []string{"service principal", "AADSTS700016"}},
		{"UnknownTenant", func(n *tenant) []string {
			n.bySecret(clientSecret)
			n.setenv("AZURE_STORAGE_TENANT_ID=99999999-9f0e-4d5c-8a66-0c6d2c1e7b10")
			return nil
		}, []string{"service principal", "AADSTS90002"}},
		{"CertificateNotRegistered", func(n *tenant) []string {
			_, pem, err := identity.NewClientCertificate("stranger")
			must(t, err)
			return []string{"--tenant-id", identity.Tenant, "--client-id", clientID, "--client-certificate", n.file("stranger.pem", pem)}
		}, []string{"service principal by certificate from --client-certificate", "AADSTS700027"}},
		{"FederatedTokenExpired", func(n *tenant) []string {
			n.byToken(-time.Minute)
			return nil
		}, []string{"AZURE_FEDERATED_TOKEN_FILE", "AADSTS700024"}},
		{"FederatedTokenMissing", func(n *tenant) []string {
			n.byToken(time.Hour)
			must(t, os.Remove(filepath.Join(n.files, "token")))
			return nil
		}, []string{"AZURE_FEDERATED_TOKEN_FILE"}},
		{"ManagedIdentityNotAssigned", func(n *tenant) []string {
			n.setenv(c.id.AppServiceEnv()...)
			return []string{"--auth=msi", "--client-id", "99999999-2222-3333-4444-555555555555"}
		}, []string{"managed identity from --client-id"}},
		{"MetadataNotAssigned", func(n *tenant) []string {
			n.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST=" + c.id.ManagedURL())
			return []string{"--auth=msi", "--client-id", "99999999-2222-3333-4444-555555555555"}
		}, []string{"managed identity from --client-id"}},
		{"TokenForSomethingElse", func(n *tenant) []string {
			n.bySecret(clientSecret)
			n.setenv("AZURE_STORAGE_AUTH_RESOURCE=https://management.azure.com")
			return nil
		}, []string{"did not accept the service principal", "InvalidAuthenticationInfo"}},
		{"CANotTrusted", func(n *tenant) []string {
			n.bySecret(clientSecret)
			other, err := identity.Start()
			must(t, err)
			t.Cleanup(func() { must(t, other.Close()) })
			n.file("ca.pem", other.CA())
			return nil
		}, []string{"service principal", "certificate"}},
		{"NobodyListens", func(n *tenant) []string {
			n.bySecret(clientSecret)
			other, err := identity.Start()
			must(t, err)
			must(t, other.Close())
			n.setenv("AZURE_AUTHORITY_HOST=" + other.URL())
			return nil
		}, []string{"service principal", "connection refused"}},
	} {
		t.Run(m.name, func(t *testing.T) {
			n := c.newTenant(t)
			defer c.id.Refuse(nil)
			flags := m.setup(n)
			r := n.run(flags...)
			for _, says := range m.says {
				refused(t, n.Point, r, 32, says, clientSecret)
			}
			n.hides(r.Stderr)
		})
	}
}

// keepBusy reads and writes on a mount until stop is called, which returns how many operations succeeded. A failed one
// fails the test.
func keepBusy(n *tenant) (stop func() int64) {
	t := n.world.t
	whole := noise(700 << 10)
	n.Put("whole", whole) // one Put Blob: it has no blocks that a change could keep
	var done atomic.Bool
	var ops atomic.Int64
	var all sync.WaitGroup
	work := func(f func(i int) error) {
		all.Go(func() {
			for i := 0; !done.Load(); i++ {
				if err := f(i); err != nil {
					t.Errorf("operation %d: %v", i, err)
					return
				}
				ops.Add(1)
			}
		})
	}
	small, large := noise(10<<10), noise(900<<10)
	work(func(int) error { // with no blob-cache timeout each asks the service
		got, err := os.ReadFile(n.path("whole"))
		if err == nil && len(got) != len(whole) {
			err = fmt.Errorf("%d bytes", len(got))
		}
		return err
	})
	work(func(i int) error {
		name := n.path(fmt.Sprintf("small%d", i%5))
		if err := os.WriteFile(name, small, 0o644); err != nil {
			return err
		}
		return os.Rename(name, name+".moved")
	})
	work(func(int) error { return os.WriteFile(n.path("large"), large, 0o644) })
	work(func(i int) error {
		// A change in the middle: the rest is copied by the service itself, which needs a token for its source.
		name := fmt.Sprintf("changed%d", i%3)
		if _, err := n.Client.NewBlockBlobClient(name).UploadBuffer(t.Context(), large, nil); err != nil {
			return err
		}
		f, err := os.OpenFile(n.path(name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("changed"), 300<<10)
		return errors.Join(err, f.Close())
	})
	work(func(int) error { _, err := os.ReadDir(n.Dir); return err })
	return func() int64 {
		done.Store(true)
		all.Wait()
		return ops.Load()
	}
}

// await waits for what is to happen, with a bound that only keeps a broken program from hanging the test.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// Tokens end while files are read and written, and no operation fails: neither when they end at the time that the identity
// service has said, nor when they end before it.
func TestMountTokenExpires(t *testing.T) {
	for name, stated := range map[string]time.Duration{"OnTime": time.Second, "Early": 4 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			c := startCloud(t)
			c.id.AddSecret(clientID, clientSecret)
			n := c.newTenant(t)
			n.bySecret(clientSecret)
			c.id.SetLife(time.Second, stated)
			n.Mount(append(n.flags, "--log-level=info", "--blob-cache-timeout=0", "--block-size=256KiB")...)
			ends := 3
			if mounttest.Long() {
				ends = 60
			}
			stop := keepBusy(n)
			await(t, "tokens that end", func() bool { return c.id.Ended() >= ends || t.Failed() })
			// While nothing answers, what needs a token waits; when the answer is a failure, it asks again.
			release := c.id.Hold()
			more := c.id.Requests(identity.ClientSecret)
			await(t, "a request for a token", func() bool { return c.id.Requests(identity.ClientSecret) > more || t.Failed() })
			c.id.Refuse(&identity.Refusal{Status: http.StatusServiceUnavailable, Error: "temporarily_unavailable", Code: 90033, Text: "A transient error has occurred."})
			release()
			more = c.id.Requests(identity.ClientSecret) + 3
			await(t, "another request", func() bool { return c.id.Requests(identity.ClientSecret) > more || t.Failed() })
			c.id.Refuse(nil)
			ends = c.id.Ended() + 1
			await(t, "tokens that end afterwards", func() bool { return c.id.Ended() > ends || t.Failed() })
			ops := stop()
			t.Logf("%d operations, %d requests for tokens, %d with a token that had ended", ops, c.id.Requests(identity.ClientSecret), c.id.Rejected())
			if early := stated > time.Second; early && c.id.Rejected() < 2 {
				t.Errorf("only %d requests came with a token that had ended early", c.id.Rejected())
			}
			for _, op := range []string{"PutBlob", "PutBlock", "PutBlockFromURL", "CopyBlob", "GetBlob", "ListBlobs"} {
				if c.Embedded.Stats().Requests[op] == 0 {
					t.Errorf("there was no %s, so nothing is proven of it", op)
				}
			}
			n.Unmount()
			n.hides()
		})
	}
}

// An identity that loses its right while mounted: operations say so, what was written is kept, and all goes on when the
// right is back.
func TestMountIdentityRefusedLater(t *testing.T) {
	c := startCloud(t)
	c.id.AddSecret(clientID, clientSecret)
	n := c.newTenant(t)
	n.bySecret(clientSecret)
	c.id.SetLife(time.Second, time.Second)
	n.Put("blob", []byte("content"))
	n.Mount(append(n.flags, "--blob-cache-timeout=0")...)
	n.read("blob", []byte("content"))
	kept := n.open("kept", os.O_CREATE|os.O_WRONLY)
	_, err := kept.WriteString("written before")
	must(t, err)

	c.id.RemoveSecret(clientID, clientSecret)
	await(t, "an operation that is refused", func() bool { _, err = os.Stat(n.path("blob")); return err != nil })
	wantErrno(t, "stat", err, syscall.EACCES)
	wantErrno(t, "close", kept.Close(), syscall.EACCES)
	wantErrno(t, "create", os.WriteFile(n.path("new"), []byte("x"), 0o644), syscall.EACCES)

	c.id.AddSecret(clientID, clientSecret)
	await(t, "the file that could not be saved", func() bool { return n.Has("kept") })
	n.holds("kept", []byte("written before"))
	n.read("blob", []byte("content"))
	n.write("new", []byte("written afterwards"))
	n.holds("new", []byte("written afterwards"))
	n.Unmount()
	n.hides()
}
