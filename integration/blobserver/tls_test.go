package blobserver

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"blobmount/integration/identity"
)

// Over https the service does the same: it answers, and it breaks.
func TestTLS(t *testing.T) {
	id, err := identity.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := id.Close(); err != nil {
			t.Error(err)
		}
	})
	secure, err := id.TLS()
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, Options{TLS: secure})
	if !strings.HasPrefix(c.s.URL(), "https://127.0.0.1:") || !strings.Contains(c.s.ConnectionString(), "DefaultEndpointsProtocol=https;") {
		t.Errorf("%s, %s", c.s.URL(), c.s.ConnectionString())
	}
	if _, err := c.try("GET", "/con1/a", ""); err == nil {
		t.Error("a client that does not know the CA got an answer")
	}
	c.h.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: id.Roots()}
	c.put("/con1/a", "content")
	if got := c.do(200, "", "GET", "/con1/a", "").body; got != "content" {
		t.Errorf("%q", got)
	}
	for _, action := range []Action{LoseReply, Break} {
		c.s.AddFault(Fault{Op: "GetBlob", Action: action, Bytes: 3})
		if a, err := c.try("GET", "/con1/a", ""); err == nil {
			t.Errorf("action %v: got %d %q", action, a.status, a.body)
		}
		c.s.ClearFaults()
	}
	c.do(200, "", "GET", "/con1/a", "")
}
