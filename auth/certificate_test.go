package auth

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"
)

// "Service principal by certificate (PEM and PFX)": each form that Azure, OpenSSL and Key Vault give.
func TestParseCertificate(t *testing.T) {
	key, cert := certificate()
	pfx := func(e *pkcs12.Encoder, password string) string {
		data, err := e.Encode(key, cert, []*x509.Certificate{cert}, password)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	text := base64.StdEncoding.EncodeToString([]byte(pfx(pkcs12.Modern2023, "")))
	for name, tt := range map[string]struct{ data, password, wrong string }{
		"PEM":                      {pemText(t), "", ""},
		"PEM of OpenSSL 1":         {pkcs1, "", ""},
		"PEM with words before it": {"Bag Attributes\n  friendlyName: x\n" + pemText(t), "", ""},
		"PFX of OpenSSL 3":         {pfx(pkcs12.Modern2023, "word"), "word", ""},
		"PFX of Windows":           {pfx(pkcs12.LegacyDES, "word"), "word", ""},
		"PFX of OpenSSL 1":         {pfx(pkcs12.LegacyRC2, "word"), "word", ""},
		"PFX without a password":   {pfx(pkcs12.Modern2023, ""), "", ""},
		"PFX of Key Vault":         {text[:64] + "\n" + text[64:] + "\n", "", ""},

		"PFX, no password":    {pfx(pkcs12.Modern2023, planted), "", "the PFX file has a password, and none was given"},
		"PFX, wrong password": {pfx(pkcs12.Modern2023, "word"), planted, "the password does not open the PFX file"},
		"PEM and a password":  {pemText(t), planted, "a PEM file has none"},
		"encrypted PEM":       {strings.ReplaceAll(pemText(t), "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "", "is encrypted: make it a PFX file"},
		"PEM without a key":   {pemText(t)[strings.Index(pemText(t), "-----BEGIN CERT"):], "", "must hold a certificate and its private key"},
		"PEM of nothing":      {"-----BEGIN " + planted, "", "must hold a certificate and its private key"},
		"neither":             {planted, "", "it must be a PEM or PFX file"},
	} {
		certs, got, err := parseCertificate([]byte(tt.data), tt.password)
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), planted) {
				t.Errorf("%s: error is %v, want %q", name, err, tt.wrong)
			}
			continue
		}
		if err != nil || len(certs) == 0 || !certs[0].Equal(cert) || !key.Equal(got) {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
}

// A certificate is a secret file, wherever it is named.
func TestCertificateFile(t *testing.T) {
	path := writeFile(t, pemText(t))
	e := env{"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_CERTIFICATE_PATH": path}
	o := Options{Account: "acct1", LookupEnv: e.lookup}
	before, err := Find(o)
	if err != nil || before.Origin != "service principal by certificate from environment AZURE_CLIENT_CERTIFICATE_PATH" {
		t.Fatalf("%q, %v", before.Origin, err)
	}
	if err := os.WriteFile(path, []byte("renewed\n"+pemText(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	if after, err := Find(o); err != nil || before.Same(after) {
		t.Errorf("a new certificate in the same file is not noticed: %v", err)
	}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return os.WriteFile(path, []byte(planted), 0o600) }, "client certificate from environment AZURE_CLIENT_CERTIFICATE_PATH: it holds no certificate"},
		{func() error { return os.Chmod(path, 0o620) }, "certificate file " + path + " can be written by other users"},
		{func() error { return os.Remove(path) }, "environment AZURE_CLIENT_CERTIFICATE_PATH: there is no file " + path},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if _, err := Find(o); err == nil || !strings.Contains(err.Error(), step.want) || strings.Contains(err.Error(), planted) {
			t.Errorf("error is %v, want %q", err, step.want)
		}
	}
}
