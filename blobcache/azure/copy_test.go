package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
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

// pending is a service whose copies take their time: the destination is there at once, and copies from src until as many
// looks at it are over. It loses the answers to the first copies, and refuses the others.
type pending struct {
	lost  int
	code  string // of the refusal
	looks int    // until it has ended; negative for never
	moves bool   // the progress
	ends  string // status
}

func (p *pending) serve(t *testing.T) *service {
	puts, looks := 0, 0
	var s *service
	s = serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if r.Method == http.MethodPut {
			if puts++; puts <= p.lost {
				hangUp(w)
				return
			}
			if p.code != "" {
				refuse(w, r, http.StatusConflict, p.code, "")
				return
			}
			h.Set("x-ms-copy-status", "pending")
			h.Set("x-ms-copy-id", "copy-1")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		h.Set("ETag", etag1)
		h.Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		h.Set("Content-Length", "1000")
		if !strings.HasSuffix(r.URL.Path, "/dst") {
			return
		}
		if puts == 0 {
			refuse(w, r, http.StatusNotFound, "BlobNotFound", "")
			return
		}
		looks++
		h.Set("x-ms-copy-source", s.URL+"/account/container/src")
		h.Set("x-ms-copy-id", "copy-1")
		h.Set("x-ms-copy-status", "pending")
		h.Set("x-ms-copy-progress", "0/1000")
		if p.moves {
			h.Set("x-ms-copy-progress", fmt.Sprintf("%d/1000", looks))
		}
		if p.looks >= 0 && looks > p.looks {
			h.Set("x-ms-copy-status", p.ends)
			h.Set("ETag", `"final"`)
		}
	})
	return s
}

// A copy that has not ended is no copy yet: it is waited for, also when it is known only from a refusal, and its source
// must not pass for saved elsewhere before.
func TestPendingCopyIsNotFinished(t *testing.T) {
	none := blob.Condition{IfNoneMatch: blob.Any}
	for what, test := range map[string]struct {
		pending
		cond blob.Condition
		want blob.Code // Other: it succeeds
	}{
		"answer lost":                    {pending{lost: 1, code: "BlobAlreadyExists", looks: 2, ends: "success"}, none, blob.Other},
		"answer lost, no condition":      {pending{lost: 1, code: "PendingCopyOperation", looks: 2, ends: "success"}, blob.Condition{}, blob.Other},
		"answer lost, and failed":        {pending{lost: 1, code: "BlobAlreadyExists", looks: 2, ends: "failed"}, none, blob.Exists},
		"answer lost, and never ends":    {pending{lost: 1, code: "BlobAlreadyExists", looks: -1}, none, blob.Unavailable},
		"of an earlier process":          {pending{code: "BlobAlreadyExists", looks: 2, ends: "success"}, none, blob.Exists},
		"of an earlier process, no cond": {pending{code: "PendingCopyOperation", looks: 2, ends: "success"}, blob.Condition{}, blob.Busy},
	} {
		s := test.serve(t)
		c := s.container(t, func(cfg *Config) { cfg.RetryFor = time.Second })
		w, err := c.Copy(t.Context(), "dst", "src", blob.CopyOptions{Source: blob.Condition{IfMatch: etag1}, Condition: test.cond})
		switch {
		case test.want == blob.Other && (err != nil || w.ETag != `"final"` || !w.Doubtful):
			t.Errorf("%s: got %+v, %v", what, w, err)
		case test.want != blob.Other && !blob.Is(err, test.want):
			t.Errorf("%s: got %+v, %v, want %v", what, w, err, test.want)
		}
		// Whoever is refused looks at what is there, and finds it as it will stay.
		p, err := c.Properties(t.Context(), "dst", blob.Condition{})
		if want := map[string]string{"success": "src"}[test.ends]; err != nil || p.CopiedFrom != want {
			t.Errorf("%s: copied from %q, %v, want %q", what, p.CopiedFrom, err, want)
		}
	}
}

// A copy that does not move is given up after RetryFor.
func TestCopyStands(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := (&pending{looks: -1}).serve(t).container(t, func(cfg *Config) { cfg.RetryFor = 300 * time.Millisecond })
	if _, err := c.Copy(ctx, "dst", "src", blob.CopyOptions{}); !blob.Is(err, blob.Unavailable) {
		t.Errorf("got %v, want Unavailable", err)
	}
}

// One that moves is waited for, however long it takes.
func TestStall(t *testing.T) {
	now := time.Now()
	s := stall{limit: time.Minute, moved: now}
	for _, step := range []struct {
		after    time.Duration
		progress string
		over     bool
	}{
		{50 * time.Second, "", false}, {50 * time.Second, "0/9", false}, {50 * time.Second, "1/9", false},
		{50 * time.Second, "1/9", false}, {time.Second, "1/9", true}, {0, "2/9", false}, {51 * time.Second, "2/9", true},
	} {
		now = now.Add(step.after)
		if got := s.over(now, 10*time.Second, step.progress); got != step.over {
			t.Errorf("%q after %v: over %v", step.progress, step.after, got)
		}
	}
}

// A copy over a name whose answer was lost is not repeated over what another host has written there meanwhile.
func TestCopySparesWhatIsNewer(t *testing.T) {
	type there struct {
		etag, from string
		age        time.Duration
	}
	old, theirs := there{etag: `"old"`, age: time.Hour}, there{etag: `"theirs"`}
	for what, test := range map[string]struct {
		before there
		acts   bool  // the first try
		then   there // written by another host before the second
		later  there // written by another host after the look
		want   blob.Code
		left   string
	}{
		"acted":                      {before: old, acts: true, left: `"copy"`},
		"acted, on a new name":       {acts: true, left: `"copy"`},
		"did not act":                {before: old, left: `"copy"`},
		"did not act, on a new name": {left: `"copy"`},
		"acted, and replaced":        {before: old, acts: true, then: theirs, want: blob.ConditionNotMet, left: `"theirs"`},
		"did not act, and replaced":  {before: old, then: theirs, want: blob.ConditionNotMet, left: `"theirs"`},
		"replaced after the look":    {before: old, later: theirs, want: blob.ConditionNotMet, left: `"theirs"`},
		"made after the look":        {later: theirs, want: blob.ConditionNotMet, left: `"theirs"`},
	} {
		now, puts := test.before, 0
		var s *service
		s = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			copied := there{etag: `"copy"`, from: s.URL + "/account/container/src"}
			switch {
			case r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/src"):
				h.Set("ETag", etag1)
			case r.Method == http.MethodHead && now.etag == "":
				refuse(w, r, http.StatusNotFound, "BlobNotFound", "")
			case r.Method == http.MethodHead:
				h.Set("ETag", now.etag)
				h.Set("Last-Modified", time.Now().Add(-now.age).UTC().Format(http.TimeFormat))
				if now.from != "" {
					h.Set("x-ms-copy-source", now.from)
					h.Set("x-ms-copy-status", "success")
				}
			default:
				if puts++; puts == 1 {
					if test.acts {
						now = copied
					}
					if test.then.etag != "" {
						now = test.then
					}
					hangUp(w)
					return
				}
				if test.later.etag != "" {
					now = test.later
				}
				if m := r.Header.Get("If-Match"); m != "" && m != now.etag {
					refuse(w, r, http.StatusPreconditionFailed, "ConditionNotMet", "")
					return
				}
				if r.Header.Get("If-None-Match") == "*" && now.etag != "" {
					refuse(w, r, http.StatusConflict, "BlobAlreadyExists", "")
					return
				}
				now = copied
				h.Set("ETag", now.etag)
				h.Set("x-ms-copy-status", "success")
				w.WriteHeader(http.StatusAccepted)
			}
		})
		w, err := s.container(t, nil).Copy(t.Context(), "dst", "src", blob.CopyOptions{Source: blob.Condition{IfMatch: etag1}})
		if now.etag != test.left || test.want == blob.Other && (err != nil || w.ETag != `"copy"`) || test.want != blob.Other && !blob.Is(err, test.want) {
			t.Errorf("%s: got %+v, %v, left %s", what, w, err, now.etag)
		}
	}
}
