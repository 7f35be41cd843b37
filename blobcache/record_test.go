package blobcache

import (
	"reflect"
	"testing"
)

// TestRecordBase: what becomes of bytes that only the service has when the blob gets another version.
func TestRecordBase(t *testing.T) {
	commit := base{Name: "a", ETag: `"2"`, From: "a", FromETag: `"2"`, FromSize: 150, Limit: 150}
	for _, tc := range []struct {
		name                    string
		base                    base
		changed, released, lost extents
		staged                  int
	}{
		{"a commit of the first 150 bytes", commit, extents{{0, 100}, {150, 300}}, nil, extents{{150, 200}}, 0},
		{"a commit of all", func(b base) base { b.Limit = 300; return b }(commit), extents{{0, 100}, {200, 300}}, nil, nil, 0},
		{"a commit after which nothing came", func(b base) base { b.Clean = true; return b }(commit), nil, nil, nil, 0},
		{"attributes", func(b base) base { b.Limit, b.Blocks = 100, true; return b }(commit), extents{{0, 300}}, extents{{100, 200}}, nil, 2},
		{"an empty blob", base{Name: "a", ETag: `"2"`}, extents{{0, 300}}, nil, extents{{100, 200}}, 0},
		{"a name", base{Name: "b", ETag: `"1"`, From: "b", FromETag: `"1"`, FromSize: 100, Limit: 100}, extents{{0, 300}}, nil, extents{{100, 200}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := testHeader()
			h.Base = base{Name: "a", ETag: `"1"`, From: "a", FromETag: `"1"`, FromSize: 100, Limit: 100}
			j, read := newTestJournal(t, h)
			for _, err := range []error{
				j.span(recWritten, 0, 300),
				j.span(recStaged, 0, 100, []byte("id-0")...),
				j.span(recStaged, 100, 200, []byte("id-1")...),
				j.span(recReleased, 100, 200),
				j.json(recBase, tc.base),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			r := read()
			if got, want := []extents{r.changed, r.released, r.lost}, []extents{tc.changed, tc.released, tc.lost}; !reflect.DeepEqual(got, want) || len(r.staged) != tc.staged {
				t.Errorf("changed, released, lost are %v, %d staged; want %v, %d", got, len(r.staged), want, tc.staged)
			}
			if clone := r.clone(); !reflect.DeepEqual(clone, r) {
				t.Errorf("the copy is %+v", clone)
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(j.span(recWritten, 0, 300))
			if r := read(); len(r.lost) > 0 {
				t.Errorf("lost after it was written again: %v", r.lost)
			}
		})
	}
}
