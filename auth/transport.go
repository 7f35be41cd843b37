package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// metadataHost is where virtual machines reach the service that has the tokens of managed identities (Microsoft Learn,
// "Azure Instance Metadata Service"). It is a link-local address, and requests must not go through a proxy.
const metadataHost = "169.254.169.254"

// identityClient returns the client for requests to identity services. azidentity wants a http.Client over a
// http.Transport, since it pins certificates on Service Fabric.
func (f *finder) identityClient() (*http.Client, error) {
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	dial := dialer.DialContext
	if host, ok := f.lookup(podIdentityName); ok {
		// azidentity for Go does not know this variable, which those for other languages do.
		u, err := url.Parse(host)
		if err != nil || u.Scheme != "http" || u.Hostname() == "" {
			return nil, fmt.Errorf("environment %s must be a URL such as http://127.0.0.1:2579", podIdentityName)
		}
		port := u.Port()
		if port == "" {
			port = "80"
		}
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == metadataHost+":80" {
				address = net.JoinHostPort(u.Hostname(), port)
			}
			return dialer.DialContext(ctx, network, address)
		}
	}
	proxy := f.Proxy
	if proxy != nil {
		proxy = func(r *http.Request) (*url.URL, error) {
			if r.URL.Hostname() == metadataHost {
				return nil, nil
			}
			return f.Proxy(r)
		}
	}
	return &http.Client{Transport: &http.Transport{
		Proxy:                 proxy,
		DialContext:           dial,
		TLSClientConfig:       &tls.Config{RootCAs: f.rootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
	}}, nil
}

// readCAs returns the authorities of the system and those of a file in PEM form. They are public, so that their file may
// be readable by everybody; who can change it decides whom we trust.
func readCAs(path string) (*x509.CertPool, Secret, error) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o002 != 0 {
		return nil, Secret{}, fmt.Errorf("CA file %s can be written by everybody: run chmod o-w %s", path, path)
	}
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, Secret{}, fmt.Errorf("cannot read CA file %s: %w", path, cause(err))
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, Secret{}, fmt.Errorf("cannot read the system's certificate authorities: %w", err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return nil, Secret{}, fmt.Errorf("CA file %s has no certificate in PEM form (-----BEGIN CERTIFICATE-----)", path)
	}
	return pool, NewSecret(string(text)), nil
}
