package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"blobmount/blobcache/blob"
)

type fixedToken struct{}

func (fixedToken) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "SECRET for " + strings.Join(o.Scopes, " "), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// The service reads the source of a block like any client: with each credential it gets an address that it may read,
// or a token.
func TestReadable(t *testing.T) {
	key, err := NewSharedKey("account", base64.StdEncoding.EncodeToString([]byte("key")))
	if err != nil {
		t.Fatal(err)
	}
	const base, plain = "https://account.blob.core.windows.net/container", "https://account.blob.core.windows.net/container/dir/a%20b"
	for what, test := range map[string]struct {
		cred       Credential
		url, token string
	}{
		"anonymous": {Credential{}, plain, ""},
		"SAS":       {Credential{SAS: "?sv=1&sig=x%2B"}, plain + "?sv=1&sig=x%2B", ""},
		"token":     {Credential{Token: fixedToken{}}, plain, "Bearer SECRET for https://storage.azure.com/.default"},
	} {
		c, err := New(Config{URL: base, Credential: test.cred})
		if err != nil {
			t.Fatal(err)
		}
		if got, token, err := c.access.Load().readable(t.Context(), c.base, c.URL("dir/a b"), "dir/a b"); got != test.url || token != test.token || err != nil {
			t.Errorf("%s: got %q, %q, %v", what, got, token, err)
		}
	}
	for address, protocol := range map[string]string{base: "https", "http://127.0.0.1:10000/account/container": "https,http"} {
		c, err := New(Config{URL: address, Credential: Credential{SharedKey: key}})
		if err != nil {
			t.Fatal(err)
		}
		got, token, err := c.access.Load().readable(t.Context(), c.base, c.URL("dir/a b"), "dir/a b")
		if err != nil || token != "" {
			t.Fatalf("got token %q, %v", token, err)
		}
		u, err := url.Parse(got)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		end, err := time.Parse(time.RFC3339, q.Get("se"))
		if left := time.Until(end); err != nil || left <= 0 || left > sourceSignedFor {
			t.Errorf("signed for %v: %v", left, err)
		}
		if q.Get("sp") != "r" || q.Get("sr") != "b" || q.Get("spr") != protocol || q.Get("sig") == "" {
			t.Errorf("a signature for more than reading one blob: %v", q)
		}
	}
}

// Whatever becomes of the request, the address of the source is not shown.
func TestSourceIsNotShown(t *testing.T) {
	for _, answer := range []func(n int, w http.ResponseWriter, r *http.Request){
		func(n int, w http.ResponseWriter, r *http.Request) {
			refuse(w, r, 400, "InvalidHeaderValue", "cannot read "+strings.ReplaceAll(r.Header.Get("x-ms-copy-source"), "&", "&amp;"))
		},
		func(n int, w http.ResponseWriter, r *http.Request) { hangUp(w) },
		func(n int, w http.ResponseWriter, r *http.Request) { refuse(w, r, 503, "ServerBusy", "") },
	} {
		var log bytes.Buffer
		s := serve(t, answer)
		c := s.container(t, func(cfg *Config) {
			cfg.Credential.SAS = "sv=2024-11-04&sig=SECRET%2Babc%3D"
			cfg.RetryFor = 300 * time.Millisecond
			cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		})
		err := c.StageBlockFrom(t.Context(), "a", "1", blob.Range{Name: "b", Size: 1})
		if err == nil {
			t.Fatal("no error")
		}
		if text := err.Error() + log.String(); strings.Contains(text, "SECRET") {
			t.Errorf("the secret is shown: %s", text)
		}
		for e := error(err); e != nil; {
			if strings.Contains(e.Error(), "SECRET") {
				t.Errorf("%T shows the secret", e)
			}
			u, ok := e.(interface{ Unwrap() error })
			if !ok {
				break
			}
			e = u.Unwrap()
		}
	}
}

// A copy that carries tier or tags is of the version that had them: when that is replaced meanwhile, Copy looks again.
func TestCopyFollowsItsSource(t *testing.T) {
	version, copies, changes := 1, 0, 2
	etag := func() string { return `"0x` + strings.Repeat("1", version) + `"` }
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch {
		case r.Method == http.MethodHead:
			h.Set("ETag", etag())
			h.Set("x-ms-access-tier", "Cool")
			h.Set("x-ms-tag-count", "1")
		case r.Method == http.MethodGet:
			_, _ = io.WriteString(w, "<Tags><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tags>")
			if copies < changes {
				version++ // somebody else writes
			}
		default:
			copies++
			if r.Header.Get("x-ms-source-if-match") != etag() {
				refuse(w, r, 412, "SourceConditionNotMet", "")
				return
			}
			if h := r.Header; h.Get("x-ms-access-tier") != "Cool" || h.Get("x-ms-tags") != "k=v" {
				t.Errorf("copied with %v", h)
			}
			h.Set("x-ms-copy-status", "success")
			h.Set("ETag", `"copy"`)
			w.WriteHeader(http.StatusAccepted)
		}
	})
	c := s.container(t, nil)
	if w, err := c.Copy(t.Context(), "dst", "src", blob.CopyOptions{}); err != nil || w.ETag != `"copy"` || copies != 3 {
		t.Errorf("got %+v, %v after %d tries", w, err, copies)
	}
	// What the caller demands of the source is not softened, and looking again has an end.
	copies, changes = 0, 1
	if _, err := c.Copy(t.Context(), "dst", "src", blob.CopyOptions{Source: blob.Condition{IfMatch: blob.ETag(etag())}}); !blob.Is(err, blob.ConditionNotMet) || copies != 1 {
		t.Errorf("with a condition: %v after %d tries", err, copies)
	}
	copies, changes = 0, 100
	if _, err := c.Copy(t.Context(), "dst", "src", blob.CopyOptions{}); !blob.Is(err, blob.ConditionNotMet) || copies != 1+maxSourceChanges {
		t.Errorf("without an end: %v after %d tries", err, copies)
	}
}

// Who may not read tags does not lose them by a copy.
func TestCopyNeedsTags(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.Header().Set("ETag", etag1)
			w.Header().Set("x-ms-tag-count", "1")
		case http.MethodGet:
			refuse(w, r, 403, "AuthorizationPermissionMismatch", "")
		default:
			t.Error("the blob was copied without its tags")
		}
	})
	if _, err := s.container(t, nil).Copy(t.Context(), "dst", "src", blob.CopyOptions{}); !blob.Is(err, blob.Forbidden) {
		t.Errorf("got %v, want Forbidden", err)
	}
}
