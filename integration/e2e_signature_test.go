package integration

import (
	"encoding/base64"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/integration/azurite"
	"blobmount/integration/mounttest"
)

// A key and a SAS that are right mount, and each change of them is refused with its source: the service checks what we
// sign, and a signature covers all that a SAS says.
func testSignatures(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	c.Put("blob", []byte("content"))
	p := s.NewPoint(t, c)
	p.Setenv("AZURE_STORAGE_CONNECTION_STRING=")
	p.Setenv("AZURE_STORAGE_ACCOUNT_NAME=" + azurite.Account)
	const key, token = "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"
	give := func(name, value string) {
		p.Setenv(key + "=")
		p.Setenv(token + "=")
		p.Setenv(name + "=" + value)
	}
	wrongKey := base64.StdEncoding.EncodeToString(noise(64))
	good := containerSAS(t, azurite.Key, c.Name, "rcwdl", time.Hour)
	change := func(signed, name, value string) string {
		q, err := url.ParseQuery(signed)
		must(t, err)
		q.Set(name, value)
		return q.Encode()
	}

	for _, g := range []struct{ name, value string }{{key, azurite.Key}, {token, good}, {token, "?" + good}} {
		give(g.name, g.value)
		p.Mount("--endpoint", s.URL())
		w := &world{p, c, t}
		w.read("blob", []byte("content"))
		w.write("new", []byte(g.name))
		must(t, os.Remove(w.path("new")))
		p.Unmount()
		p.EmptyCache()
	}

	for _, b := range []struct{ what, name, value string }{
		{"wrong key", key, wrongKey},
		{"SAS signed with a wrong key", token, containerSAS(t, wrongKey, c.Name, "rl", time.Hour)},
		{"SAS with a changed signature", token, change(good, "sig", base64.StdEncoding.EncodeToString(noise(32)))},
		{"SAS with more permissions than were signed", token, change(containerSAS(t, azurite.Key, c.Name, "r", time.Hour), "sp", "rl")},
		{"SAS with a later expiry than was signed", token, change(good, "se", "2099-01-01T00:00:00Z")},
		{"SAS that has expired", token, containerSAS(t, azurite.Key, c.Name, "rl", -time.Minute)},
		{"SAS of another container", token, containerSAS(t, azurite.Key, "e2e-other", "rl", time.Hour)},
		{"SAS that may not list", token, containerSAS(t, azurite.Key, c.Name, "r", time.Hour)},
	} {
		t.Run(b.what, func(t *testing.T) {
			give(b.name, b.value)
			r := p.Run("--cache-dir", p.Cache, "--log-file", filepath.Join(filepath.Dir(p.Dir), "refused.log"), "--log-level=debug",
				"--endpoint", s.URL(), p.Source(), p.Dir)
			secret := b.value
			if q, err := url.ParseQuery(b.value); err == nil && q.Get("sig") != "" {
				secret = q.Get("sig")
			}
			refused(t, p, r, 32, "environment "+b.name, secret)
			if escaped := url.QueryEscape(secret); strings.Contains(r.Stderr, escaped) {
				t.Error("the line has a signature in it")
			}
		})
	}
}

// containerSAS signs access to a container from an hour ago until life from now.
func containerSAS(t *testing.T, key, name, permissions string, life time.Duration) string {
	t.Helper()
	credential, err := container.NewSharedKeyCredential(azurite.Account, key)
	must(t, err)
	q, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, StartTime: time.Now().Add(-time.Hour), ExpiryTime: time.Now().Add(life),
		Permissions: permissions, ContainerName: name,
	}.SignWithSharedKey(credential)
	must(t, err)
	return q.Encode()
}
