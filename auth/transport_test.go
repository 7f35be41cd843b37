package auth

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
)

// "HTTP proxies from the environment (used for identity requests too)", but never for the metadata service, whose answer
// must come from this machine.
func TestIdentityRequestsGoThroughTheProxy(t *testing.T) {
	var proxied []string
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { proxied = append(proxied, r.URL.Host) }))
	defer proxy.Close()
	var asked []string
	metadata := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = append(asked, r.Host+r.URL.Path) }))
	defer metadata.Close()
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := finder{Options: Options{Proxy: http.ProxyURL(address), LookupEnv: env{podIdentityName: metadata.URL}.lookup}}
	client, err := f.identityClient()
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"http://login.example.com/", "http://169.254.169.254/metadata/identity/oauth2/token"} {
		answer, err := client.Get(to)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
	if len(proxied) != 1 || proxied[0] != "login.example.com" {
		t.Errorf("through the proxy: %q", proxied)
	}
	if len(asked) != 1 || asked[0] != "169.254.169.254/metadata/identity/oauth2/token" {
		t.Errorf("at the metadata service: %q", asked)
	}
	for _, bad := range []string{"https://127.0.0.1", "127.0.0.1:80", "http://"} {
		f.LookupEnv = env{podIdentityName: bad}.lookup
		if _, err := f.identityClient(); err == nil || !strings.Contains(err.Error(), "environment AZURE_POD_IDENTITY_AUTHORITY_HOST must be a URL") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// "--ca-file: own CA for service and identity requests."
func TestCAFile(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it does not like to be distrusted
	server.StartTLS()
	defer server.Close()
	path := writeFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	get := func(pool *x509.CertPool) error {
		f := finder{Options: Options{LookupEnv: env{}.lookup}, rootCAs: pool}
		client, err := f.identityClient()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Get(server.URL)
		if err == nil {
			answer.Body.Close()
		}
		return err
	}
	o := Options{Account: "acct1", CAFile: path, LookupEnv: env{envKey: planted}.lookup}
	found, err := Find(o)
	if err != nil || found.RootCAs == nil {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := get(found.RootCAs); err != nil {
		t.Error(err)
	}
	if err := get(nil); err == nil {
		t.Error("the test's own authority is trusted without the file")
	}
	// The system's authorities are trusted beside it.
	want, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	want.AddCert(server.Certificate())
	if !found.RootCAs.Equal(want) {
		t.Error("not the system's authorities and one more")
	}

	if err := os.Chmod(path, 0o644); err != nil { // authorities are public
		t.Fatal(err)
	}
	if found, err := Find(o); err != nil || len(found.Warnings) != 0 {
		t.Errorf("%q, %v", found.Warnings, err)
	}
	if err := os.Chmod(path, 0o646); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		path:                        "can be written by everybody: run chmod o-w " + path,
		path + "x":                  "cannot read CA file " + path + "x: no such file or directory",
		t.TempDir():                 "it is not a regular file",
		writeFile(t, "no PEM here"): "has no certificate in PEM form",
	} {
		o.CAFile = path
		if _, err := Find(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}
