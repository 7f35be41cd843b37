package crash

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A link passes on, refuses while it is cut, and passes on again under the same address.
func TestLink(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer s.Close()
	l, err := NewLink(strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := l.Address()
	client := &http.Client{Transport: &http.Transport{}}
	echo := func() error {
		resp, err := client.Post("http://"+address, "", strings.NewReader("text"))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "text" {
			t.Errorf("answered %q, %v", b, err)
		}
		return nil
	}
	for range 2 {
		if err := echo(); err != nil {
			t.Fatal(err)
		}
		l.Cut()
		if err := echo(); err == nil {
			t.Fatal("a cut link passes on")
		}
		if err := l.AwaitIdle(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		if err := l.Mend(); err != nil {
			t.Fatal(err)
		}
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	if err := l.AwaitIdle(10 * time.Second); err != nil {
		t.Fatal(err)
	}
}
