package integration

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/integration/azurite"
	"blobmount/integration/identity"
	"blobmount/integration/mounttest"
)

// noCredential leaves a run without the credential that it would find in the environment.
const noCredential = "AZURE_STORAGE_CONNECTION_STRING="

// everything is what a mount that writes needs of a SAS.
var everything = sas.ContainerPermissions{Read: true, List: true, Write: true, Delete: true}

// sasOf signs for a container, and returns the query.
func sasOf(t *testing.T, c *mounttest.Container, p sas.ContainerPermissions) string {
	t.Helper()
	url, err := c.Client.GetSASURL(p, time.Now().Add(time.Hour), nil)
	must(t, err)
	_, query, _ := strings.Cut(url, "?")
	return query
}

// signature is the part of a SAS that must not be seen anywhere, as it stands in the query.
func signature(query string) string {
	_, sig, _ := strings.Cut(query, "sig=")
	sig, _, _ = strings.Cut(sig, "&")
	return sig
}

// The URL of a container with a SAS, as the portal shows it, is a source. Nobody can read the SAS afterwards: not in the
// mount table, in the arguments of any process, in status, or in the log. From fstab it is refused, since it would stay
// in the mount table.
func testSourceSAS(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	c.Put("dir/blob", []byte("content"))
	p := s.NewPoint(t, c)
	p.Setenv(noCredential)
	query := sasOf(t, c, everything)
	sig := signature(query)
	if len(sig) < 40 {
		t.Fatal("the SAS has no signature")
	}
	shown := s.URL() + "/" + c.Name + "/dir"
	source := shown + "?" + query
	flags := []string{"--cache-dir", p.Cache, "--log-file", p.Log, "--log-format=json", "--log-level=debug"}

	hidden := func(what string, text []byte) {
		t.Helper()
		if bytes.Contains(text, []byte(sig)) {
			t.Errorf("%s has the signature", what)
		}
	}
	look := func(pid int) {
		t.Helper()
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		must(t, err)
		hidden("/proc/PID/cmdline", cmdline)
		if !bytes.Contains(cmdline, []byte(shown)) {
			t.Errorf("the arguments are %q", cmdline)
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		must(t, err)
		hidden("/proc/PID/environ", environ)
		out, err := exec.Command("ps", "axww", "-o", "args").Output()
		must(t, err)
		hidden("ps", out)
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		hidden("the mount table", mounts)
		if !bytes.Contains(mounts, []byte(" "+p.Dir+" ")) || !bytes.Contains(mounts, []byte(" "+shown+" ")) {
			t.Errorf("%s is not in the mount table as %s", p.Dir, shown)
		}
		for _, args := range [][]string{{"status", p.Dir}, {"status", "--json", p.Dir}} {
			r := p.Run(args...)
			if r.Status != 0 || !strings.Contains(r.Stdout, "SAS token from the source") {
				t.Errorf("status: %+v", r)
			}
			hidden("status", []byte(r.Stdout+r.Stderr))
		}
		got, err := os.ReadFile(filepath.Join(p.Dir, "blob"))
		must(t, err)
		equal(t, "blob", got, []byte("content"))
		log, err := os.ReadFile(p.Log)
		must(t, err)
		hidden("the log", log)
	}

	t.Run("background", func(t *testing.T) {
		if r := p.Run(append(flags, source, p.Dir)...); r.Status != 0 || r.Stdout+r.Stderr != "" {
			t.Fatalf("%+v", r)
		}
		look(p.PID())
		must(t, os.WriteFile(filepath.Join(p.Dir, "new"), []byte("new"), 0o644))
		equal(t, "new", c.Get("dir/new"), []byte("new"))
		p.Unmount()
	})
	t.Run("foreground", func(t *testing.T) {
		cmd := exec.Command(mounttest.Binary(t), append(flags, "--foreground", source, p.Dir)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, cmd.Start())
		defer func() { _ = cmd.Process.Kill() }() // of a test that failed
		for deadline := time.Now().Add(30 * time.Second); !mounttest.IsMounted(t, p.Dir); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not mounted: %s", out.Bytes())
			}
		}
		look(cmd.Process.Pid)
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		must(t, cmd.Wait())
		hidden("the output", out.Bytes())
	})
	t.Run("fstab", func(t *testing.T) {
		helper := filepath.Join(t.TempDir(), "mount.blobmount")
		must(t, os.Symlink(mounttest.Binary(t), helper))
		r := p.RunAs(helper, source, p.Dir, "-o", "rw")
		refused(t, p, r, 1, "everybody could read in /etc/fstab and in the mount table", sig)
		refused(t, p, p.Run("-o", "rw,dev,suid", source, p.Dir), 1, "use flags instead of -o", sig)
	})
	t.Run("refused", func(t *testing.T) {
		wrong := strings.Replace(source, c.Name, "not-there", 1)
		r := p.Run(append(flags, wrong, p.Dir)...)
		if r.Status != 32 || strings.Count(r.Stderr, "\n") != 1 || strings.Contains(r.Stderr, sig) {
			t.Errorf("%+v", r)
		}
		log, err := os.ReadFile(p.Log)
		must(t, err)
		hidden("the log", log)
		p.Gone()
	})
	p.AllowError("check of the container failed")
	p.AllowError("ended")
}

// An Azure Machine Learning datastore is mounted by its URI and its definition.
func testDatastore(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	c.Put("train/a", []byte("content"))
	define := func(name, container, more string) string {
		file := filepath.Join(t.TempDir(), name+".yml")
		text := fmt.Sprintf("$schema: https://azuremlschemas.azureedge.net/latest/azureBlob.schema.json\nname: %s\ntype: azure_blob\n"+
			"account_name: %s\ncontainer_name: %s\nendpoint: %s\n%s\n", name, azurite.Account, container, s.URL(), more)
		must(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	key := "credentials:\n  account_key: " + azurite.Key
	query := sasOf(t, c, everything)
	mount := func(t *testing.T, flags ...string) (*mounttest.Point, mounttest.Result) {
		p := s.NewPoint(t, c)
		p.Setenv(noCredential)
		r := p.Run(append([]string{"--cache-dir", p.Cache, "--log-file", p.Log, "--log-format=json"}, append(flags, p.Dir)...)...)
		if strings.Contains(r.Stdout+r.Stderr, azurite.Key) || strings.Contains(r.Stderr, signature(query)) {
			t.Error("a secret is in the output")
		}
		return p, r
	}
	for _, tt := range []struct {
		name, more, uri, path string
		readOnly              bool
		timeout, credential   string
	}{
		{"key", key, "azureml://datastores/store_1/paths/train", "a", false, "60", "account key"},
		{"SAS, long form", "credentials:\n  sas_token: ?" + query,
			"azureml://subscriptions/s/resourceGroups/g/workspaces/w/datastores/STORE_1/paths/", "train/a", false, "60", "SAS token"},
		{"read-only with a prefix", "prefix: train\nread_only: true\n" + key, "azureml://datastores/store_1", "a", true, "none", "account key"},
		{"read-only with a timeout", "read_only: true\nblob_cache_timeout: 7\n" + key, "azureml://datastores/store_1/paths/train", "a", true, "7", "account key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := define("store_1", c.Name, tt.more)
			p, r := mount(t, "--datastore", filepath.Dir(file), tt.uri)
			if r.Status != 0 || r.Stdout+r.Stderr != "" {
				t.Fatalf("%+v", r)
			}
			p.PID()
			got, err := os.ReadFile(filepath.Join(p.Dir, tt.path))
			must(t, err)
			equal(t, "blob", got, []byte("content"))
			err = os.WriteFile(filepath.Join(p.Dir, "new"), nil, 0o644)
			if tt.readOnly {
				wantErrno(t, "write", err, syscall.EROFS)
			} else {
				must(t, err)
			}
			if st := p.Run("status", "--json", p.Dir); !strings.Contains(st.Stdout, tt.credential+" from datastore definition "+file) ||
				!strings.Contains(st.Stdout, `"blob_cache_timeout": "`+tt.timeout+`"`) || !strings.Contains(st.Stdout, `"source": "`+tt.uri+`"`) {
				t.Errorf("status: %s", st.Stdout)
			}
			p.Unmount()
		})
	}
	for _, tt := range []struct{ name, file, uri, says string }{
		{"not defined", define("other", c.Name, key), "azureml://datastores/store_1/paths/a", "--datastore has other"},
		{"file share", func() string {
			file := filepath.Join(t.TempDir(), "share.yml")
			must(t, os.WriteFile(file, []byte("type: azure_file\nname: store_1\naccount_name: a\nfile_share_name: b\n"), 0o600))
			return file
		}(), "azureml://datastores/store_1/paths/a", "Azure Files (type azure_file) is no blob service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, r := mount(t, "--datastore", tt.file, tt.uri)
			refused(t, p, r, 1, tt.says, azurite.Key)
		})
	}
}

// The service principal of a definition, by secret and by certificate, gets its tokens from the authority that it names.
func TestDatastoreIdentity(t *testing.T) {
	mounttest.NeedFUSE(t)
	s, id := mounttest.WithIdentity(t)
	const client, secret = "11111111-2222-3333-4444-555555555555", "the-secret-of-an-application"
	id.AddSecret(client, secret)
	certificate, pemText, err := identity.NewClientCertificate("application")
	must(t, err)
	id.AddCertificate(client, certificate)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, id.CA(), 0o600))
	thumbprint := sha1.Sum(certificate.Raw)
	block := "  certificate: |\n    " + strings.ReplaceAll(strings.TrimSpace(string(pemText)), "\n", "\n    ")
	for name, proof := range map[string]string{
		"secret":      "  client_secret: " + secret,
		"certificate": block + fmt.Sprintf("\n  thumbprint: %X", thumbprint),
	} {
		t.Run(name, func(t *testing.T) {
			c := s.NewContainer(t)
			c.Put("blob", []byte("content"))
			p := s.NewPoint(t, c)
			p.Setenv(noCredential)
			file := filepath.Join(t.TempDir(), "lake.yml")
			must(t, os.WriteFile(file, fmt.Appendf(nil, "type: azure_data_lake_gen2\nname: lake\naccount_name: %s\nfilesystem: %s\nendpoint: %s\n"+
				"credentials:\n  tenant_id: %s\n  client_id: %s\n  resource_url: https://storage.azure.com/\n  authority_url: %s\n%s\n",
				azurite.Account, c.Name, s.URL(), identity.Tenant, client, id.URL(), proof), 0o600))
			r := p.Run("--cache-dir", p.Cache, "--log-file", p.Log, "--log-format=json", "--log-level=debug", "--ca-file", ca,
				"--datastore", file, "azureml://datastores/lake/paths/", p.Dir)
			if r.Status != 0 || r.Stdout+r.Stderr != "" {
				t.Fatalf("%+v", r)
			}
			p.PID()
			got, err := os.ReadFile(filepath.Join(p.Dir, "blob"))
			must(t, err)
			equal(t, "blob", got, []byte("content"))
			must(t, os.WriteFile(filepath.Join(p.Dir, "new"), []byte("new"), 0o644))
			if left := c.Blobs(); len(left) != 2 {
				t.Errorf("in the container: %q", left)
			}
			p.Unmount()
			log, err := os.ReadFile(p.Log)
			must(t, err)
			for _, s := range append(id.Secrets(), "PRIVATE KEY") {
				if bytes.Contains(log, []byte(s)) {
					t.Error("the log has a secret")
				}
			}
		})
	}
}
