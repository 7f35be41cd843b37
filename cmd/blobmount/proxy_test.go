package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A proxy that is no URL is refused at the start, without its password.
func TestCheckProxy(t *testing.T) {
	asked := ""
	bad := func(r *http.Request) (*url.URL, error) {
		asked = r.URL.Scheme
		return nil, &url.Error{Op: "parse", URL: "http://user:" + planted + "@host:port", Err: http.ErrNotSupported}
	}
	err := checkProxy(bad, "https://acct1.blob.core.windows.net")
	if err == nil || !strings.Contains(err.Error(), "HTTPS_PROXY") || strings.Contains(err.Error(), planted) || asked != "https" {
		t.Errorf("%v, asked for %q", err, asked)
	}
	good := func(*http.Request) (*url.URL, error) { return url.Parse("http://user:" + planted + "@host:3128") }
	if err := checkProxy(good, "https://acct1.blob.core.windows.net"); err != nil {
		t.Error(err)
	}
}
