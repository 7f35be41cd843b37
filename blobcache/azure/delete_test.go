package azure

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// A deletion without a condition whose answer was lost is not repeated over what another host has made since, and is
// repeated over what was there before, also when that was made here a moment ago.
func TestDeleteSparesWhatIsNewer(t *testing.T) {
	type there struct {
		etag          string // "" for no blob
		created, back time.Duration
	}
	old := there{`"old"`, time.Hour, time.Hour}
	for what, test := range map[string]struct {
		before there
		acts   bool  // the first try
		then   there // made by another host before the second, if there is an ETag
		fresh  bool  // the blob is an upload of ours, of just now
		left   string
	}{
		"acted":                        {before: old, acts: true},
		"did not act":                  {before: old},
		"acted, and made anew":         {before: old, acts: true, then: there{`"theirs"`, 0, 0}, left: `"theirs"`},
		"did not act, and replaced":    {before: old, then: there{`"new"`, time.Hour, 0}},
		"ours of just now":             {before: there{etag1, 0, 0}, fresh: true},
		"ours of just now, made anew":  {before: there{etag1, 0, 0}, fresh: true, acts: true, then: there{`"theirs"`, 0, 0}, left: `"theirs"`},
		"acted, made anew and changed": {before: old, acts: true, then: there{`"theirs2"`, time.Second, 0}, left: `"theirs2"`},
	} {
		for how, lose := range map[string]func(http.ResponseWriter){
			"hang up": hangUp,
			"502":     func(w http.ResponseWriter) { w.WriteHeader(502) },
		} {
			now, deletes := test.before, 0
			s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodPut:
					created(w)
				case now.etag == "":
					refuse(w, r, http.StatusNotFound, "BlobNotFound", "")
				case r.Method == http.MethodHead:
					w.Header().Set("ETag", now.etag)
					w.Header().Set("Last-Modified", time.Now().Add(-now.back).UTC().Format(http.TimeFormat))
					w.Header().Set("x-ms-creation-time", time.Now().Add(-now.created).UTC().Format(http.TimeFormat))
				default:
					if deletes++; deletes == 1 {
						if test.acts {
							now = there{}
						}
						if test.then.etag != "" {
							now = test.then
						}
						lose(w)
						return
					}
					if m := r.Header.Get("If-Match"); m != "" && m != now.etag {
						refuse(w, r, http.StatusPreconditionFailed, "ConditionNotMet", "")
						return
					}
					now = there{}
					w.WriteHeader(http.StatusAccepted)
				}
			})
			c := s.container(t, nil)
			if test.fresh {
				if _, err := c.Upload(t.Context(), "a", strings.NewReader("x"), 1, blob.WriteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Delete(t.Context(), "a", blob.Condition{}); err != nil || now.etag != test.left {
				t.Errorf("%s, %s: %v, left %q, want %q", what, how, err, now.etag, test.left)
			}
		}
	}
}

// Between the look and the repetition another host may come: then it is looked again.
func TestDeleteLooksAgain(t *testing.T) {
	version, deletes := 1, 0
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, version))
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			w.Header().Set("x-ms-creation-time", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			return
		}
		switch deletes++; {
		case deletes == 1:
			w.WriteHeader(502)
			return
		case deletes == 2:
			version++
		}
		if r.Header.Get("If-Match") != fmt.Sprintf(`"%d"`, version) {
			refuse(w, r, http.StatusPreconditionFailed, "ConditionNotMet", "")
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	if err := s.container(t, nil).Delete(t.Context(), "a", blob.Condition{}); err != nil || deletes != 3 {
		t.Errorf("%v after %d deletions", err, deletes)
	}
	deletes = 0
	if err := s.container(t, func(c *Config) { c.RetryFor = -1 }).Delete(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Unavailable) || deletes != 1 {
		t.Errorf("one try only: %v after %d", err, deletes)
	}
}

func TestRecent(t *testing.T) {
	var r recent
	r.note("a", "1")
	r.note("b", "1")
	r.note("a", "2")
	if r.etag("a") != "2" || r.etag("b") != "1" || r.etag("c") != "" {
		t.Errorf("%q, %q, %q", r.etag("a"), r.etag("b"), r.etag("c"))
	}
	r.turned = r.turned.Add(-recentFor)
	if r.note("b", "3"); r.etag("a") != "2" || r.etag("b") != "3" {
		t.Errorf("after %v: %q, %q", recentFor, r.etag("a"), r.etag("b"))
	}
	r.turned = r.turned.Add(-recentFor)
	if r.etag("a") != "" || r.etag("b") != "3" {
		t.Errorf("after twice that: %q, %q", r.etag("a"), r.etag("b"))
	}
	r.turned = r.turned.Add(-2 * recentFor)
	if r.etag("b") != "" || len(r.now)+len(r.before) != 0 {
		t.Errorf("later: %q", r.etag("b"))
	}
}
