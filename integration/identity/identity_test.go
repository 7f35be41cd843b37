package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"
)

const client = "11111111-2222-3333-4444-555555555555"

var assigned = ManagedIdentity{
	ClientID: "aaaaaaaa-0000-0000-0000-000000000001", ObjectID: "aaaaaaaa-0000-0000-0000-000000000002",
	ResourceID: "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i",
}

// world is a service, and how a client reaches it.
type world struct {
	*Server
	t *testing.T
}

func start(t *testing.T) *world {
	t.Helper()
	s, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{s, t}
}

// options are those of a client that was told the authority host and the CA.
func (w *world) options() azcore.ClientOptions {
	return azcore.ClientOptions{
		Cloud:     cloud.Configuration{ActiveDirectoryAuthorityHost: w.URL()},
		Transport: w.transport(nil),
		Retry:     policy.RetryOptions{MaxRetries: -1},
	}
}

func (w *world) transport(proxy func(*http.Request) (*url.URL, error)) *http.Client {
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Roots()}, Proxy: proxy}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func (w *world) setenv(env []string) {
	w.t.Helper()
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		w.t.Setenv(name, value)
	}
}

func token(t *testing.T, c azcore.TokenCredential) (azcore.AccessToken, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return c.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{Audience + "/.default"}})
}

// gets checks that a credential gets a token of the client, by the path.
func (w *world) gets(c azcore.TokenCredential, err error, p Path, client string) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	before := w.Requests(p)
	got, err := token(w.t, c)
	if err != nil {
		w.t.Fatal(err)
	}
	claims, err := w.Check(got.Token)
	if err != nil || claims.Client != client || claims.Tenant != Tenant {
		w.t.Errorf("claims %+v, %v; want those of client %s", claims, err, client)
	}
	if w.Requests(p) == before {
		w.t.Errorf("no request by %s", p)
	}
	if life := time.Until(got.ExpiresOn); life < DefaultLife-time.Minute || life > DefaultLife+time.Minute {
		w.t.Errorf("the token holds for %v, want %v", life, DefaultLife)
	}
}

// refuses checks that a credential gets no token, and that the error names the reason.
func (w *world) refuses(c azcore.TokenCredential, err error, says string) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = token(w.t, c)
	if err == nil || !strings.Contains(err.Error(), says) {
		w.t.Errorf("got %v, want an error with %q", err, says)
	}
}

func (w *world) secretCredential(tenant, client, secret string) (azcore.TokenCredential, error) {
	return azidentity.NewClientSecretCredential(tenant, client, secret,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: w.options(), DisableInstanceDiscovery: true})
}

func TestClientSecret(t *testing.T) {
	w := start(t)
	w.AddSecret(client, "right")
	c, err := w.secretCredential(Tenant, client, "right")
	w.gets(c, err, ClientSecret, client)
	if w.Requests(OpenID) != 1 || w.Requests(Instance) != 0 {
		t.Errorf("%d requests for the OpenID configuration, %d for the instance; want 1 and 0", w.Requests(OpenID), w.Requests(Instance))
	}
	c, err = w.secretCredential(Tenant, client, "wrong")
	w.refuses(c, err, "AADSTS7000215")
	c, err = w.secretCredential(Tenant, "99999999-2222-3333-4444-555555555555", "right")
	w.refuses(c, err, "AADSTS700016")
	c, err = w.secretCredential("99999999-9f0e-4d5c-8a66-0c6d2c1e7b10", client, "right")
	w.refuses(c, err, "AADSTS90002")

	w.AddSecret(client, "second")
	w.RemoveSecret(client, "right")
	c, err = w.secretCredential(Tenant, client, "second")
	w.gets(c, err, ClientSecret, client)
	c, err = w.secretCredential(Tenant, client, "right")
	w.refuses(c, err, "AADSTS7000215")
	if secrets := w.Secrets(); !slices.Contains(secrets, "right") || !slices.Contains(secrets, "wrong") {
		t.Errorf("%d secrets, and what was sent is not among them", len(secrets))
	}
}

func TestClientCertificate(t *testing.T) {
	w := start(t)
	cert, file, err := NewClientCertificate("app")
	if err != nil {
		t.Fatal(err)
	}
	credential := func(file []byte) (azcore.TokenCredential, error) {
		certs, key, err := azidentity.ParseCertificates(file, nil)
		if err != nil {
			return nil, err
		}
		return azidentity.NewClientCertificateCredential(Tenant, client, certs, key,
			&azidentity.ClientCertificateCredentialOptions{ClientOptions: w.options(), DisableInstanceDiscovery: true})
	}
	w.AddCertificate(client, cert)
	c, err := credential(file)
	w.gets(c, err, ClientCertificate, client)

	_, other, err := NewClientCertificate("app")
	if err != nil {
		t.Fatal(err)
	}
	c, err = credential(other)
	w.refuses(c, err, "AADSTS700027")
	// The certificate of one and the key of the other.
	keyEnd := bytes.Index(other, []byte("-----BEGIN CERTIFICATE"))
	certBegin := bytes.Index(file, []byte("-----BEGIN CERTIFICATE"))
	if c, err := credential(slices.Concat(other[:keyEnd], file[certBegin:])); err == nil {
		w.refuses(c, nil, "AADSTS700027")
	}
	w.RemoveCertificate(client, cert)
	c, err = credential(file)
	w.refuses(c, err, "AADSTS700027")
}

// What azidentity would never sign: each wrong claim of an assertion is found.
func TestAssertionClaims(t *testing.T) {
	w := start(t)
	cert, file, err := NewClientCertificate("app")
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := azidentity.ParseCertificates(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.AddCertificate(client, cert)
	endpoint := w.Authority() + "/oauth2/v2.0/token"
	soon := jwt.NewNumericDate(time.Now().Add(time.Minute))
	for says, claims := range map[string]jwt.RegisteredClaims{
		"access_token": {Issuer: client, Subject: client, Audience: jwt.ClaimStrings{endpoint}, ExpiresAt: soon},
		"AADSTS700023": {Issuer: client, Subject: client, Audience: jwt.ClaimStrings{w.URL()}, ExpiresAt: soon},
		"AADSTS700021": {Issuer: "other", Subject: client, Audience: jwt.ClaimStrings{endpoint}, ExpiresAt: soon},
		"AADSTS700024": {Issuer: client, Subject: client, Audience: jwt.ClaimStrings{endpoint}, ExpiresAt: jwt.NewNumericDate(time.Now().Add(-time.Minute))},
		"AADSTS50027":  {Issuer: client, Subject: client, Audience: jwt.ClaimStrings{endpoint}},
	} {
		a := jwt.NewWithClaims(jwt.SigningMethodPS256, claims)
		a.Header["x5t#S256"] = thumbprintOf(cert.Raw)
		signed, err := a.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "scope": {Audience + "/.default"},
			"client_assertion_type": {assertionType}, "client_assertion": {signed}}
		res, err := w.transport(nil).PostForm(endpoint, form)
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		_, err = body.ReadFrom(res.Body)
		res.Body.Close()
		if err != nil || !strings.Contains(body.String(), says) {
			t.Errorf("%+v: %v, %s; want %s", claims, err, &body, says)
		}
	}
}

// The assertion is read from a file for each token, as auth does: what is there at that time counts.
func TestFederated(t *testing.T) {
	w := start(t)
	const subject = "system:serviceaccount:training:reader"
	cluster, err := w.NewCluster()
	if err != nil {
		t.Fatal(err)
	}
	w.Trust(client, cluster, subject)
	stranger, err := w.NewCluster()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	write := func(c *Cluster, subject, audience string, life time.Duration) {
		t.Helper()
		text, err := c.Token(subject, audience, life)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	credential := func() (azcore.TokenCredential, error) {
		return azidentity.NewClientAssertionCredential(Tenant, client, func(context.Context) (string, error) {
			b, err := os.ReadFile(file)
			return string(b), err
		}, &azidentity.ClientAssertionCredentialOptions{ClientOptions: w.options(), DisableInstanceDiscovery: true})
	}
	write(cluster, subject, FederatedAudience, -time.Minute)
	c, err := credential()
	w.refuses(c, err, "AADSTS700024")
	write(cluster, subject, FederatedAudience, time.Hour) // the same credential, another file
	w.gets(c, err, Federated, client)

	for _, wrong := range []struct {
		says  string
		write func()
	}{
		{"AADSTS700213", func() { write(cluster, "system:serviceaccount:training:other", FederatedAudience, time.Hour) }},
		{"AADSTS700213", func() { write(stranger, subject, FederatedAudience, time.Hour) }},
		{"AADSTS700023", func() { write(cluster, subject, "https://kubernetes.default.svc", time.Hour) }},
		{"AADSTS700027", func() { write(&Cluster{cluster.issuer, stranger.key, w.Server}, subject, FederatedAudience, time.Hour) }},
		{"AADSTS50027", func() { must(t, os.WriteFile(file, []byte("a.b.c"), 0o600)) }},
	} {
		wrong.write()
		c, err := credential()
		w.refuses(c, err, wrong.says)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Each host's endpoint, asked for each identity that azidentity can ask it for.
func TestManagedIdentity(t *testing.T) {
	ids := map[string]azidentity.ManagedIDKind{
		"system": nil, "client id": azidentity.ClientID(assigned.ClientID), "object id": azidentity.ObjectID(assigned.ObjectID),
		"resource id": azidentity.ResourceID(strings.ToUpper(assigned.ResourceID)), "unknown": azidentity.ClientID("unknown"),
	}
	for _, host := range []struct {
		path  Path
		env   func(*world) []string
		kinds []string
	}{
		{AppService, func(w *world) []string { return w.AppServiceEnv() }, []string{"system", "client id", "object id", "resource id", "unknown"}},
		{AzureML, func(w *world) []string { return w.AzureMLEnv() }, []string{"system", "client id", "unknown"}},
		{IMDS, func(*world) []string { return nil }, []string{"system", "client id", "object id", "resource id", "unknown"}},
	} {
		for _, kind := range host.kinds {
			t.Run(string(host.path)+" "+kind, func(t *testing.T) {
				w := start(t)
				w.Assign(assigned)
				w.setenv(host.env(w))
				o := w.options()
				o.Transport = w.metadataTransport()
				c, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: o, ID: ids[kind]})
				switch kind {
				case "unknown":
					if w.refuses(c, err, "400"); w.Requests(host.path) != 1 {
						t.Errorf("%d requests, want 1", w.Requests(host.path))
					}
				case "system":
					w.gets(fresh{c}, err, host.path, System.ClientID)
				default:
					w.gets(fresh{c}, err, host.path, assigned.ClientID)
				}
			})
		}
	}
}

// metadataTransport leads requests for IMDS here: its address is not ours to listen on.
func (w *world) metadataTransport() *http.Client {
	h := w.transport(nil)
	h.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "169.254.169.254:80" {
			address = strings.TrimPrefix(w.ManagedURL(), "http://")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return h
}

// fresh asks with claims that change nothing, since the tokens of managed identities are cached for the whole process.
type fresh struct{ azcore.TokenCredential }

func (f fresh) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	o.Claims = "{}"
	return f.TokenCredential.GetToken(ctx, o)
}

// A request without the host's header, which any page that makes a server fetch an address could send, gets no token.
func TestManagedIdentityNeedsHeaders(t *testing.T) {
	w := start(t)
	for _, path := range []string{appServicePath, azureMLPath, imdsPath, arcPath} {
		res, err := http.Get(w.ManagedURL() + path + "?resource=" + Audience + "&api-version=2018-02-01")
		must(t, err)
		res.Body.Close()
		if res.StatusCode/100 != 4 {
			t.Errorf("%s: status %d", path, res.StatusCode)
		}
	}
	if secrets := len(w.Secrets()); secrets != 1 {
		t.Errorf("%d secrets were made, want only the header", secrets)
	}
}

// The public cloud's authority through a proxy, and instance discovery, by which it disowns other authorities.
func TestPublicCloud(t *testing.T) {
	w := start(t)
	w.AddSecret(client, "right")
	o := w.options()
	o.Transport = w.transport(func(r *http.Request) (*url.URL, error) {
		if r.URL.Host == publicHost {
			return url.Parse(w.Proxy())
		}
		return nil, nil
	})
	c, err := azidentity.NewClientSecretCredential(Tenant, client, "right", &azidentity.ClientSecretCredentialOptions{ClientOptions: o})
	w.refuses(c, err, "invalid_instance")
	if w.Requests(Instance) == 0 || w.Requests(ClientSecret) != 0 {
		t.Errorf("%d requests for the instance, %d for a token", w.Requests(Instance), w.Requests(ClientSecret))
	}
	o.Cloud = cloud.AzurePublic
	c, err = azidentity.NewClientSecretCredential(Tenant, client, "right", &azidentity.ClientSecretCredentialOptions{ClientOptions: o})
	w.gets(c, err, ClientSecret, client)
}

func TestProxyRefusesOthers(t *testing.T) {
	w := start(t)
	h := w.transport(func(*http.Request) (*url.URL, error) { return url.Parse(w.Proxy()) })
	if res, err := h.Get("https://example.com/"); err == nil {
		res.Body.Close()
		t.Error("there is a tunnel to example.com")
	}
	res, err := h.Get("http://example.com" + imdsPath)
	must(t, err)
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestRefuseAndHold(t *testing.T) {
	w := start(t)
	w.AddSecret(client, "right")
	c, err := w.secretCredential(Tenant, client, "right")
	w.Refuse(&Refusal{http.StatusUnauthorized, "invalid_client", 7000222, "The provided client secret keys for app are expired."})
	w.refuses(c, err, "AADSTS7000222")
	w.Refuse(nil)

	release := w.Hold()
	done := make(chan error, 1)
	go func() {
		_, err := token(t, c)
		done <- err
	}()
	for deadline := time.Now().Add(time.Minute); w.Requests(ClientSecret) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no request came")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("answered while held: %v", err)
	default:
	}
	release()
	release()
	must(t, <-done)
}

func TestCheck(t *testing.T) {
	w := start(t)
	w.SetLife(-time.Hour, time.Hour)
	old, err := w.grant(client, "o", Audience)
	must(t, err)
	w.SetLife(time.Hour, time.Hour)
	other, err := w.grant(client, "o", "https://management.azure.com")
	must(t, err)
	good, err := w.grant(client, "o", Audience)
	must(t, err)
	stranger, err := start(t).grant(client, "o", Audience)
	must(t, err)
	for _, c := range []struct{ says, token string }{
		{"Lifetime", old.token}, {"Audience", other.token}, {"Signature", stranger.token}, {"Signature", "x"}, {"Signature", good.token + "x"},
	} {
		if err := w.Bearer(c.token); err == nil || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("got %v, want an error that begins with %s", err, c.says)
		}
	}
	must(t, w.Bearer(good.token))
	if n := w.Used(); n[client] != 1 || len(n) != 1 || w.Ended() != 0 || w.Rejected() != 5 {
		t.Errorf("used %v, %d ended, %d rejected", n, w.Ended(), w.Rejected())
	}
}

// The certificate of the service is good for those who know the CA, and for nobody else.
func TestTLS(t *testing.T) {
	w := start(t)
	if _, err := http.Get(w.Authority() + "/v2.0/.well-known/openid-configuration"); !errors.As(err, new(*tls.CertificateVerificationError)) {
		t.Errorf("without the CA: %v", err)
	}
	for _, tenant := range []string{Tenant, "other"} {
		res, err := w.transport(nil).Get(w.URL() + "/" + tenant + "/v2.0/.well-known/openid-configuration")
		must(t, err)
		res.Body.Close()
		if ok := res.StatusCode == http.StatusOK; ok != (tenant == Tenant) {
			t.Errorf("%s: status %d", tenant, res.StatusCode)
		}
	}
}
