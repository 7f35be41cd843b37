package azure

import (
	"net/http"
	"strings"
	"testing"

	"blobmount/blobcache/blob"
)

// A rename whose answer was lost is recognised by the source under the new name. A target that was there before is not it,
// also when somebody else has deleted the source meanwhile.
func TestRecognisesOwnRename(t *testing.T) {
	file := blob.RenameOptions{Source: blob.Condition{IfMatch: etag1}}
	fresh := file
	fresh.Condition.IfNoneMatch = blob.Any
	dir := blob.RenameOptions{}
	for what, test := range map[string]struct {
		o        blob.RenameOptions
		dst      string // ETag, "" for none
		acts     bool
		then     string // what another host puts under the old name before the second try; "" deletes what is there
		code     string // of the second refusal
		status   int
		want     blob.Code // Other: it succeeds
		requests int
	}{
		"file":                              {file, "", true, "", "SourcePathNotFound", 404, blob.Other, 4},
		"file over another":                 {file, `"old"`, true, "", "SourcePathNotFound", 404, blob.Other, 4},
		"file, there is a new one":          {file, "", true, `"new"`, "SourceConditionNotMet", 412, blob.Other, 4},
		"file that must be new":             {fresh, "", true, "", "PathAlreadyExists", 409, blob.Other, 4},
		"file, deleted by another":          {file, "", false, "", "SourcePathNotFound", 404, blob.NotFound, 3},
		"file, deleted, over another":       {file, `"old"`, false, "", "SourcePathNotFound", 404, blob.NotFound, 3},
		"file, replaced, over another":      {file, `"old"`, false, `"new"`, "SourceConditionNotMet", 412, blob.ConditionNotMet, 3},
		"directory":                         {dir, "", true, "", "SourcePathNotFound", 404, blob.Other, 5},
		"directory over another":            {dir, `"old"`, true, "", "SourcePathNotFound", 404, blob.Other, 5},
		"directory, deleted by another":     {dir, "", false, "", "SourcePathNotFound", 404, blob.NotFound, 4},
		"directory, deleted, over an empty": {dir, `"old"`, false, "", "SourcePathNotFound", 404, blob.NotFound, 4},
	} {
		names := map[string]string{"src": etag1, "dst": test.dst}
		puts := 0
		s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
			switch {
			case r.Method == http.MethodHead && names[name] == "":
				refuse(w, r, http.StatusNotFound, "BlobNotFound", "")
			case r.Method == http.MethodHead:
				w.Header().Set("ETag", names[name])
			default:
				if puts++; puts > 1 {
					refuse(w, r, test.status, test.code, "")
					return
				}
				if test.acts {
					names["dst"] = names["src"]
				}
				names["src"] = test.then
				w.WriteHeader(http.StatusBadGateway)
			}
		})
		c := s.container(t, nil)
		err := (&Hierarchical{c, c.base}).Rename(t.Context(), "dst", "src", test.o)
		if err != nil && !blob.Is(err, test.want) || (err == nil) != (test.want == blob.Other) || s.requests() != test.requests {
			t.Errorf("%s: %v after %d requests, want %v after %d", what, err, s.requests(), test.want, test.requests)
		}
	}
}

// The ordinary rename of a file is one request.
func TestRenameIsOneRequest(t *testing.T) {
	s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusCreated) })
	c := s.container(t, nil)
	o := blob.RenameOptions{Source: blob.Condition{IfMatch: etag1}}
	if err := (&Hierarchical{c, c.base}).Rename(t.Context(), "dst", "src", o); err != nil || s.requests() != 1 {
		t.Errorf("%v after %d requests", err, s.requests())
	}
}
