package integration

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
	"blobmount/integration/mounttest"
)

// planted are secrets that a mount is given, and where they must not be seen.
type planted struct {
	t       *testing.T
	secrets map[string]string // by what they are
}

// add plants a secret, in each of the forms in which it may be written.
func (p *planted) add(what, secret string) {
	p.secrets[what] = secret
	p.secrets[what+", escaped"] = url.QueryEscape(secret)
	if raw, err := base64.StdEncoding.DecodeString(secret); err == nil {
		p.secrets[what+", decoded"] = string(raw)
		p.secrets[what+", in hex"] = fmt.Sprintf("%x", raw)
	}
}

// check looks for them.
func (p *planted) check(where string, text []byte) {
	p.t.Helper()
	for what, secret := range p.secrets {
		if i := bytes.Index(text, []byte(secret)); i >= 0 {
			before := text[max(0, i-80):i]
			p.t.Errorf("%s shows the %s, after %q", where, what, before)
		}
	}
}

// A mount by each kind of secret goes through what there is in its life, failures above all, at log level debug and with
// the log of the SDK: none of its outputs, and nothing that it leaves on the disk, has the secret.
func TestMountShowsNoSecret(t *testing.T) {
	mounttest.NeedFUSE(t)
	mounttest.Binary(t)
	s, id := mounttest.WithIdentity(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, id.CA(), 0o600))
	const client, secret = "11111111-2222-3333-4444-555555555555", "PLANTED~client.secret-_x1"
	id.AddSecret(client, secret)
	sasOf := func(c *mounttest.Container) string {
		return strings.TrimPrefix(sasFiles(t, c.Name, time.Hour)["sas_token"], "?")
	}
	signature := func(sas string) string {
		q, err := url.ParseQuery(sas)
		must(t, err)
		return q.Get("sig")
	}
	for _, kind := range []struct {
		name string
		// give returns the flags, the variables and the source that give the secret, and plants it.
		give func(p *planted, c *mounttest.Container) (flags, env []string, source string)
	}{
		{"key", func(p *planted, c *mounttest.Container) (flags, env []string, source string) {
			p.add("account key", blobserver.DefaultKey)
			v := newSecretVolume(t, map[string]string{"account_name": blobserver.DefaultAccount, "account_key": blobserver.DefaultKey})
			return []string{"--secret-dir", v.dir}, nil, ""
		}},
		{"SAS", func(p *planted, c *mounttest.Container) (flags, env []string, source string) {
			sas := sasOf(c)
			p.add("signature", signature(sas))
			v := newSecretVolume(t, map[string]string{"account_name": blobserver.DefaultAccount, "sas_token": "?" + sas})
			return []string{"--secret-dir", v.dir}, nil, ""
		}},
		{"SAS in the source", func(p *planted, c *mounttest.Container) (flags, env []string, source string) {
			sas := sasOf(c)
			p.add("signature", signature(sas))
			return nil, nil, s.URL() + "/" + c.Name + "?" + sas
		}},
		{"connection string", func(p *planted, c *mounttest.Container) (flags, env []string, source string) {
			p.add("account key", blobserver.DefaultKey)
			return nil, []string{"AZURE_STORAGE_CONNECTION_STRING=" + s.ConnectionString()}, ""
		}},
		{"client secret", func(p *planted, c *mounttest.Container) (flags, env []string, source string) {
			p.add("client secret", secret)
			v := newSecretVolume(t, map[string]string{"account_name": blobserver.DefaultAccount, "tenant_id": identity.Tenant,
				"client_id": client, "client_secret": secret})
			return []string{"--secret-dir", v.dir, "--authority-host", id.URL()}, nil, ""
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			c := s.NewContainer(t)
			m := &planted{t, map[string]string{}}
			p := s.NewPoint(t, c)
			p.Setenv("AZURE_STORAGE_CONNECTION_STRING=")
			p.Setenv("AZURE_SDK_GO_LOGGING=all") // the SDK logs requests then, on standard error, which becomes the log
			flags, env, source := kind.give(m, c)
			for _, e := range env {
				p.Setenv(e)
			}
			if source == "" {
				source, flags = p.Source(), append(flags, "--endpoint", s.URL())
			}
			p.AllowError("") // what the SDK writes is no line of ours, and there will be failures
			logFile := p.Log
			run := func(args ...string) mounttest.Result {
				r := p.Run(args...)
				m.check("standard output of "+args[0], []byte(r.Stdout))
				m.check("standard error of "+args[0], []byte(r.Stderr))
				return r
			}
			flags = append(flags, "--ca-file", ca, "--cache-dir", p.Cache, "--log-file", logFile, "--log-format=json", "--log-level=debug",
				"--retry-for=200ms", "--blob-cache-timeout=0", "--block-size=64KiB", "--write-back=close", "--write-back-delay=0", "--drain-timeout=200ms")
			mount := func() mounttest.Result { return run(append(flags, source, p.Dir)...) }
			if r := mount(); r.Status != 0 {
				t.Fatalf("%+v", r)
			}
			pid := p.PID()
			w := &world{p, c, t}
			w.write("file", noise(300<<10))
			f := w.open("file", os.O_RDWR) // a block of it is changed, and others are copied
			_, err := f.WriteAt([]byte("changed"), 100<<10)
			must(t, err)
			must(t, f.Sync())
			must(t, f.Close())
			must(t, os.Rename(w.path("file"), w.path("renamed")))

			refuse := func(fault blobserver.Fault) { s.Embedded.AddFault(fault) }
			for _, fault := range []blobserver.Fault{
				{Action: blobserver.Refuse, Status: 503, Code: "ServerBusy"},
				{Action: blobserver.Refuse, Status: 400, Code: "InvalidHeaderValue"},
				{Action: blobserver.Break},
				{Action: blobserver.Refuse, Status: 403, Code: "AuthenticationFailed"},
			} {
				refuse(fault)
				if _, err := os.ReadFile(w.path("renamed")); err == nil {
					t.Error("read in spite of a fault")
				}
				if os.Rename(w.path("renamed"), w.path("again")) == nil {
					t.Error("renamed in spite of a fault")
				}
				s.Embedded.ClearFaults()
			}
			// Closed, and not sent any more.
			refuse(blobserver.Fault{Action: blobserver.Refuse, Status: 403, Code: "AuthenticationFailed", Op: "PutBlob"})
			refuse(blobserver.Fault{Action: blobserver.Refuse, Status: 403, Code: "AuthenticationFailed", Op: "PutBlock"})
			w.write("left", noise(100<<10))
			p.AwaitLog("file is not saved in the service yet")

			for _, file := range []string{"cmdline", "comm", "mountinfo"} {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
				must(t, err)
				m.check("/proc/PID/"+file, text)
			}
			ps, err := exec.CommandContext(t.Context(), "ps", "axww").Output()
			must(t, err)
			if !strings.Contains(string(ps), p.Dir) {
				t.Error("ps does not show the daemon, so it proves nothing")
			}
			m.check("ps", ps)
			for _, args := range [][]string{{"status", p.Dir}, {"status", "--json", p.Dir}, {"status"}, {"recover", "--cache-dir", p.Cache, "list"}} {
				if r := run(args...); r.Status != 0 {
					t.Errorf("%v: %+v", args, r)
				}
			}
			if r := run("unmount", p.Dir); r.Status != 32 || !strings.Contains(r.Stderr, "left") {
				t.Errorf("unmount with a file that cannot be sent: %+v", r)
			}
			p.Gone()
			run("recover", "--cache-dir", p.Cache, "list", "--json")
			var ids []string
			journals, err := filepath.Glob(filepath.Join(p.Cache, "staging", "*.journal"))
			must(t, err)
			for _, j := range journals {
				ids = append(ids, strings.TrimSuffix(filepath.Base(j), ".journal"))
			}
			for _, id := range ids {
				run("recover", "--cache-dir", p.Cache, "--retry-for=0", "retry", id) // fails, or finds nothing to retry
			}
			s.Embedded.ClearFaults()

			// A check before the mount that fails.
			refuse(blobserver.Fault{Action: blobserver.Refuse, Status: 403, Code: "AuthenticationFailed"})
			if r := mount(); r.Status != 32 {
				t.Errorf("mounted in spite of a refusal: %+v", r)
			}
			s.Embedded.ClearFaults()
			for what, token := range id.Secrets() {
				m.add(fmt.Sprint("token or secret of the identity service ", what), token)
			}
			log, err := os.ReadFile(logFile)
			must(t, err)
			for _, text := range []string{"OUTGOING REQUEST", "repeating a request", "operation failed", "check of the container failed"} {
				if !bytes.Contains(log, []byte(text)) {
					t.Errorf("the log has no %q, so it proves less than it could", text)
				}
			}
			m.check("the log", log)
			seen := 0
			must(t, filepath.WalkDir(p.Cache, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				text, err := os.ReadFile(path)
				seen++
				m.check(path, text)
				return err
			}))
			if seen == 0 {
				t.Error("there is no file in the cache directory")
			}
		})
	}
}
