package azure

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// changed is a service with a blob. It loses the answer to the first write, refuses the others by code, and shows
// what the blob is by then.
type changed struct {
	kind, content string
	age           time.Duration // of the version
	metadata      map[string]string
}

func (b changed) serve(t *testing.T, code string) *service {
	return serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch {
		case r.Method == http.MethodPut && n == 1:
			_, _ = io.Copy(io.Discard, r.Body)
			hangUp(w)
			return
		case r.Method == http.MethodPut:
			refuse(w, r, http.StatusPreconditionFailed, code, "")
			return
		}
		h.Set("ETag", etag1)
		h.Set("Last-Modified", time.Now().Add(-b.age).UTC().Format(http.TimeFormat))
		h.Set("x-ms-blob-type", b.kind)
		for k, v := range b.metadata {
			h.Set("x-ms-meta-"+k, v)
		}
		if r.Method == http.MethodHead {
			h.Set("Content-Length", strconv.Itoa(len(b.content)))
			return
		}
		var first, last int
		if _, err := fmt.Sscanf(r.Header.Get("x-ms-range"), "bytes=%d-%d", &first, &last); err != nil || last >= len(b.content) {
			t.Errorf("range %q of %d bytes", r.Header.Get("x-ms-range"), len(b.content))
			return
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(b.content)))
		h.Set("Content-Length", strconv.Itoa(last+1-first))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, b.content[first:last+1])
	})
}

// What was appended by a try whose answer was lost is ours if the blob ends there, with these bytes.
func TestRecognisesOwnAppend(t *testing.T) {
	const kind = "AppendBlob"
	for what, test := range map[string]struct {
		is   changed
		code string
		ours bool
	}{
		"by position":     {changed{kind: kind, content: "old,mine"}, "AppendPositionConditionNotMet", true},
		"by ETag":         {changed{kind: kind, content: "old,mine"}, "ConditionNotMet", true},
		"of another":      {changed{kind: kind, content: "old,them"}, "AppendPositionConditionNotMet", false},
		"and more":        {changed{kind: kind, content: "old,mine,them"}, "AppendPositionConditionNotMet", false},
		"not done":        {changed{kind: kind, content: "old"}, "AppendPositionConditionNotMet", false},
		"long ago":        {changed{kind: kind, content: "old,mine", age: time.Minute}, "AppendPositionConditionNotMet", false},
		"of another kind": {changed{kind: "BlockBlob", content: "old,mine"}, "AppendPositionConditionNotMet", false},
	} {
		c := test.is.serve(t, test.code).container(t, nil)
		w, err := c.AppendBlock(t.Context(), "a", strings.NewReader("mine"), 4, 4, blob.Condition{IfMatch: `"0x1"`})
		switch {
		case test.ours && (err != nil || w.ETag != etag1 || w.Modified.IsZero()):
			t.Errorf("%s: got %+v, %v", what, w, err)
		case !test.ours && !blob.Is(err, blob.ConditionNotMet):
			t.Errorf("%s: got %+v, %v, want ConditionNotMet", what, w, err)
		}
	}
}

// Metadata that is there, and was not before the operation began, is what was set.
func TestRecognisesOwnMetadata(t *testing.T) {
	mine := map[string]string{"mode": "0644"}
	for what, test := range map[string]struct {
		is   changed
		ours bool
	}{
		"ours":     {changed{kind: "BlockBlob", metadata: mine}, true},
		"of other": {changed{kind: "BlockBlob", metadata: map[string]string{"mode": "0600"}}, false},
		"long ago": {changed{kind: "BlockBlob", metadata: mine, age: time.Minute}, false},
	} {
		c := test.is.serve(t, "ConditionNotMet").container(t, nil)
		w, err := c.SetMetadata(t.Context(), "a", map[string]string{"Mode": "0644"}, blob.Condition{IfMatch: `"0x1"`})
		switch {
		case test.ours && (err != nil || w.ETag != etag1):
			t.Errorf("%s: got %+v, %v", what, w, err)
		case !test.ours && !blob.Is(err, blob.ConditionNotMet):
			t.Errorf("%s: got %+v, %v, want ConditionNotMet", what, w, err)
		}
	}
}

// A copy whose answer was lost is ours if it was made since, from this source, and the source is what was to be copied.
func TestRecognisesOwnCopy(t *testing.T) {
	for what, test := range map[string]struct {
		from, now string // of the copy: its source; of the source: its ETag
		age       time.Duration
		answered  bool // the first try
		status    string
		ours      bool
	}{
		"ours":            {from: "a b", now: etag1, ours: true},
		"of another blob": {from: "a", now: etag1},
		"no copy":         {now: etag1},
		"long ago":        {from: "a b", now: etag1, age: time.Minute},
		"source changed":  {from: "a b", now: `"0x2"`},
		"first refusal":   {from: "a b", now: etag1, answered: true},
		"failed":          {from: "a b", now: etag1, status: "failed"},
		"aborted":         {from: "a b", now: etag1, status: "aborted"},
	} {
		puts := 0
		var s *service
		s = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			switch {
			case r.Method == http.MethodPut:
				if puts++; puts == 1 && !test.answered {
					hangUp(w)
					return
				}
				refuse(w, r, http.StatusConflict, "BlobAlreadyExists", "")
			case strings.HasSuffix(r.URL.Path, "/dst"):
				h.Set("ETag", `"copy"`)
				h.Set("Last-Modified", time.Now().Add(-test.age).UTC().Format(http.TimeFormat))
				if test.from != "" {
					u, err := url.Parse(s.container(t, nil).URL(test.from))
					if err != nil {
						t.Error(err)
					}
					h.Set("x-ms-copy-source", u.String())
					h.Set("x-ms-copy-status", cmp.Or(test.status, "success"))
				}
			default:
				if m := r.Header.Get("If-Match"); m != "" && m != test.now {
					refuse(w, r, http.StatusPreconditionFailed, "ConditionNotMet", "")
					return
				}
				h.Set("ETag", test.now)
			}
		})
		w, err := s.container(t, nil).Copy(t.Context(), "dst", "a b", blob.CopyOptions{
			Source: blob.Condition{IfMatch: etag1}, Condition: blob.Condition{IfNoneMatch: blob.Any},
		})
		switch {
		case test.ours && (err != nil || w.ETag != `"copy"` || !w.Doubtful):
			t.Errorf("%s: got %+v, %v", what, w, err)
		case !test.ours && !blob.Is(err, blob.Exists):
			t.Errorf("%s: got %+v, %v, want Exists", what, w, err)
		}
	}
}

// A refusal of the first try says that another writer was faster, whatever the blob is.
func TestFirstRefusalOfAppendIsFinal(t *testing.T) {
	b := changed{kind: "AppendBlob", content: "old,mine"}
	s := b.serve(t, "AppendPositionConditionNotMet")
	c := s.container(t, nil)
	_, _ = c.AppendBlock(t.Context(), "a", strings.NewReader("mine"), 4, 4, blob.Condition{}) // takes the lost answer
	if _, err := c.AppendBlock(t.Context(), "a", strings.NewReader("mine"), 4, 4, blob.Condition{}); !blob.Is(err, blob.ConditionNotMet) {
		t.Errorf("got %v, want ConditionNotMet", err)
	}
}

// A lease whose answers are lost is acquired under the same id again, and released all the same.
func TestLeaseRepeats(t *testing.T) {
	ids := map[string]bool{}
	released := false
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch action := r.Header.Get("x-ms-lease-action"); {
		case action == "acquire":
			ids[r.Header.Get("x-ms-proposed-lease-id")] = true
		case action == "release" && released:
			refuse(w, r, 409, "LeaseIdMismatchWithLeaseOperation", "")
			return
		default:
			ids[r.Header.Get("x-ms-lease-id")] = true
			released = action == "release"
		}
		switch {
		case n%2 == 1:
			hangUp(w)
		case r.Header.Get("x-ms-lease-action") == "acquire":
			created(w)
		} // else 200 OK
	})
	c := s.container(t, nil)
	if err := c.AcquireLease(t.Context(), "a", blob.MinLease); err != nil {
		t.Error(err)
	}
	if err := c.RenewLease(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if err := c.ReleaseLease(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if s.requests() != 6 || len(ids) != 1 {
		t.Errorf("%d requests under %d ids, want 6 under one", s.requests(), len(ids))
	}
	if err := c.ReleaseLease(t.Context(), "a"); !blob.Is(err, blob.Leased) {
		t.Errorf("released again: got %v, want Leased", err)
	}
}
