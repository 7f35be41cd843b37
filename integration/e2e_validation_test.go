package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/integration/azurite"
	"blobmount/integration/blobserver"
	"blobmount/integration/mounttest"
)

// What is wrong is found before the mount is there, told apart, and said in one line; no line and no log has a secret.
func TestValidation(t *testing.T) {
	mounttest.NeedFUSE(t)
	s := mounttest.Embedded(t)
	c := s.NewContainer(t)
	credential, err := container.NewSharedKeyCredential(blobserver.DefaultAccount, blobserver.DefaultKey)
	must(t, err)
	sign := func(change func(*sas.BlobSignatureValues)) string {
		v := sas.BlobSignatureValues{
			Protocol: sas.ProtocolHTTPSandHTTP, ContainerName: c.Name, Permissions: everything.String(), ExpiryTime: time.Now().Add(time.Hour),
		}
		change(&v)
		q, err := v.SignWithSharedKey(credential)
		must(t, err)
		return q.Encode()
	}
	accountSAS := func(types string) string {
		q, err := sas.AccountSignatureValues{
			Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().Add(time.Hour), Permissions: everything.String(), ResourceTypes: types,
		}.SignWithSharedKey(credential)
		must(t, err)
		return q.Encode()
	}
	good := sign(func(*sas.BlobSignatureValues) {})

	tls := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(tls.Close)
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusProxyAuthRequired) }))
	t.Cleanup(proxy.Close)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, closed.Close())

	const token = "AZURE_STORAGE_SAS_TOKEN="
	key := "AZURE_STORAGE_ACCOUNT_KEY=" + azurite.Key
	account := "--account-name=" + azurite.Account
	own := "--endpoint=" + s.URL()
	for _, tt := range []struct {
		name string
		env  []string
		args []string
		says string // empty: it mounts
	}{
		{"good SAS", []string{token + good}, []string{own}, ""},
		{"expired SAS", []string{token + sign(func(v *sas.BlobSignatureValues) {
			v.StartTime, v.ExpiryTime = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		})}, []string{own}, "it expired at " + time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15:")},
		{"SAS not yet valid", []string{token + sign(func(v *sas.BlobSignatureValues) {
			v.StartTime, v.ExpiryTime = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		})}, []string{own}, "it is not valid before "},
		{"SAS without list", []string{token + sign(func(v *sas.BlobSignatureValues) { v.Permissions = "rwd" })}, []string{own}, "lacks the permissions l (sp=rwd)"},
		{"SAS without write", []string{token + sign(func(v *sas.BlobSignatureValues) { v.Permissions = "rl" })}, []string{own}, "lacks the permissions wd (sp=rl): sign with them, or use --read-only"},
		{"SAS without write, read-only", []string{token + sign(func(v *sas.BlobSignatureValues) { v.Permissions = "rl" })}, []string{own, "--read-only"}, ""},
		{"SAS without write, unchecked", []string{token + sign(func(v *sas.BlobSignatureValues) { v.Permissions = "rl" })}, []string{own, "--skip-validation"}, ""},
		{"SAS for https", []string{token + sign(func(v *sas.BlobSignatureValues) { v.Protocol = sas.ProtocolHTTPS })}, []string{own}, "firewall"},
		{"account SAS", []string{token + accountSAS("co")}, []string{own}, ""},
		{"SAS of another key", []string{token + strings.Replace(good, "sig=", "sig=AAAA", 1)}, []string{own}, "the key that signed it may have been replaced"},
		{"anonymous", nil, []string{own, "--anonymous"}, "anonymous access can only read: add --read-only"},
		{"anonymous, read-only", nil, []string{own, "--anonymous", "--read-only"}, "is not open to anonymous access"},
		{"unknown authority", []string{key}, []string{"--endpoint=" + tls.URL, account}, "trust it by --ca-file"},
		{"no TLS", []string{key}, []string{"--endpoint=" + strings.Replace(web.URL, "http:", "https:", 1), account}, "does not speak TLS"},
		{"no blob service", []string{key}, []string{"--endpoint=" + web.URL, account}, "answered with status 404, and not as a blob service does"},
		{"proxy wants a password", []string{key, "HTTPS_PROXY=" + proxy.URL}, []string{"--endpoint=https://blobs.example.com", account}, "answered 407 Proxy Authentication Required: check HTTPS_PROXY"},
		{"proxy is not there", []string{key, "HTTPS_PROXY=http://" + closed.Addr().String()}, []string{"--endpoint=https://blobs.example.com", account}, "cannot reach the proxy for blobs.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // some wait for 8 seconds
			p := s.NewPoint(t, c)
			p.Setenv(noCredential)
			for _, v := range tt.env {
				p.Setenv(v)
			}
			r := p.Run(append(append([]string{"--cache-dir", p.Cache, "--log-file", p.Log, "--log-format=json", "--log-level=debug"}, tt.args...), p.Source(), p.Dir)...)
			sig := signature(good)
			if len(tt.env) > 0 && strings.HasPrefix(tt.env[0], token) {
				sig = signature(tt.env[0])
			}
			log, err := os.ReadFile(p.Log)
			must(t, err)
			if strings.Contains(string(log), sig) || strings.Contains(string(log), azurite.Key) {
				t.Error("the log has a secret")
			}
			p.AllowError("check of the container failed")
			p.AllowError("ended")
			p.AllowError("no token")
			if tt.says != "" {
				refused(t, p, r, 32, tt.says, sig)
				return
			}
			if r.Status != 0 || r.Stdout+r.Stderr != "" {
				t.Fatalf("%+v", r)
			}
			p.PID()
			p.Unmount()
		})
	}
	t.Cleanup(func() {
		if left := c.Blobs(); len(left) != 0 {
			t.Errorf("checks have left %q", left)
		}
	})
}

// --create-container makes the container once, and needs no more than the check for one that is there.
func testCreateContainer(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	if _, err := c.Client.Delete(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	p := s.NewPoint(t, c)
	r := p.Run("--cache-dir", p.Cache, "--log-file", filepath.Join(t.TempDir(), "log"), p.Source(), p.Dir)
	refused(t, p, r, 32, "use --create-container", azurite.Key)
	p.Mount("--create-container")
	must(t, os.WriteFile(filepath.Join(p.Dir, "file"), []byte("content"), 0o644))
	p.Unmount()
	p.Mount("--create-container", "--skip-validation")
	got, err := os.ReadFile(filepath.Join(p.Dir, "file"))
	must(t, err)
	equal(t, "file", got, []byte("content"))
	created := 0
	for _, l := range p.LogLines() {
		if strings.Contains(fmt.Sprint(l), "container created") {
			created++
		}
	}
	if created != 1 {
		t.Errorf("created %d times", created)
	}
}
