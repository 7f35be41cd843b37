package azure

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"blobmount/blobcache/blob"
)

// A cache or a page between that does not know If-Match never passes for the version that was asked for, whatever it
// answers. It is asked again, twice, and the right answer is taken then.
func TestAnswerOfAnotherVersion(t *testing.T) {
	const other = `"5f3-abc"`
	content := strings.Repeat("0123456789", 20)
	for what, page := range map[string]func(w http.ResponseWriter){
		"a page": func(w http.ResponseWriter) {
			w.Header().Set("ETag", other)
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, strings.Repeat("<html>blk ", 100))
		},
		"a page without ETag": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, strings.Repeat("<html>blk ", 100))
		},
		"another version": func(w http.ResponseWriter) {
			w.Header().Set("ETag", other)
			w.Header().Set("Content-Range", "bytes 0-99/200")
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, strings.Repeat("9876543210", 10))
		},
	} {
		for wrong, want := range map[int]blob.Code{maxDamaged: blob.Other, maxDamaged + 1: blob.Damaged} { // Other: it succeeds
			s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n <= wrong {
					w.Header().Del("x-ms-request-id")
					page(w)
					return
				}
				w.Header().Set("ETag", etag1)
				w.Header().Set("Content-Range", "bytes 0-99/200")
				w.Header().Set("Content-Length", "100")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = io.WriteString(w, content[:100])
			})
			b, err := s.container(t, nil).ReadAt(t.Context(), "a", 0, 100, blob.Condition{IfMatch: etag1})
			if err != nil {
				if !blob.Is(err, want) || want == blob.Other || s.requests() != 1+maxDamaged {
					t.Errorf("%s, %d times: %v after %d requests", what, wrong, err, s.requests())
				}
				continue
			}
			got, err := io.ReadAll(b)
			b.Close()
			if want != blob.Other || err != nil || string(got) != content[:100] || b.Properties.ETag != etag1 {
				t.Errorf("%s, %d times: delivered %.20q of %s, %v", what, wrong, got, b.Properties.ETag, err)
			}
		}
	}
}

// Properties without an ETag, or of another version than If-Match names, are no properties: what is written over the
// first would have no condition.
func TestPropertiesOfAnotherVersion(t *testing.T) {
	for _, test := range []struct {
		etag string
		cond blob.Condition
		bad  bool
	}{
		{"", blob.Condition{}, true},
		{"", blob.Condition{IfNoneMatch: etag1}, true},
		{`"other"`, blob.Condition{IfMatch: etag1}, true},
		{etag1, blob.Condition{IfMatch: etag1}, false},
		{`"other"`, blob.Condition{IfMatch: blob.Any}, false},
		{`"other"`, blob.Condition{IfNoneMatch: etag1}, false},
		{etag1, blob.Condition{}, false},
	} {
		s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			if test.etag != "" {
				w.Header().Set("ETag", test.etag)
			}
			w.Header().Set("Content-Length", "1234")
		})
		p, err := s.container(t, nil).Properties(t.Context(), "a", test.cond)
		if test.bad != blob.Is(err, blob.Damaged) || !test.bad && (err != nil || string(p.ETag) != test.etag) {
			t.Errorf("ETag %q under %+v: %+v, %v", test.etag, test.cond, p, err)
		}
		if test.etag != "" {
			continue
		}
		if _, err := s.container(t, nil).Copy(t.Context(), "b", "a", blob.CopyOptions{}); !blob.Is(err, blob.Damaged) {
			t.Errorf("copied a source without ETag: %v", err)
		}
	}
}

// The rest of a download is not taken from a cache that has another version either.
func TestResumeFromAnotherVersion(t *testing.T) {
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		var first, last int
		if _, err := fmt.Sscanf(r.Header.Get("x-ms-range"), "bytes=%d-%d", &first, &last); err != nil {
			t.Error(err)
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, min(n, 2)))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/1000", first, last))
		w.Header().Set("Content-Length", strconv.Itoa(last+1-first))
		w.WriteHeader(http.StatusPartialContent)
		if n == 1 {
			w.(http.Flusher).Flush()
			hangUp(w)
			return
		}
		_, _ = io.WriteString(w, strings.Repeat("x", last+1-first))
	})
	b, err := s.container(t, nil).ReadAt(t.Context(), "a", 0, 1000, blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); !blob.Is(err, blob.Damaged) || len(got) > 0 || s.requests() != 2+maxDamaged {
		t.Errorf("%d bytes, %v after %d requests", len(got), err, s.requests())
	}
}
