package blobtest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// setOf is a set of these names. Every second blob has metadata.
func setOf(names []string) Set {
	return Set{
		Count: len(names), Name: func(i int) string { return names[i] }, Size: 100,
		Content: func(name string) Generator { return Random(uint64(len(name))) },
		Metadata: func(i int) map[string]string {
			if i%2 == 0 {
				return nil
			}
			return map[string]string{"mode": "0600"}
		},
	}
}

// Blobs of a set are what the same blobs are that were written, in every listing, also where two sets and single blobs
// lie among each other, and some were changed and deleted.
func TestSetIsLikeWrittenBlobs(t *testing.T) {
	now := func() time.Time { return time.Unix(1e9, 0) }
	set, plain := NewStore(StoreOptions{Now: now}), NewStore(StoreOptions{Now: now})
	var first, second []string
	for i := range 60 {
		first = append(first, fmt.Sprintf("d%02d/f", i))
		second = append(second, fmt.Sprintf("d%02d/%d", i/3*3, i%3), fmt.Sprintf("e%02d", i))
	}
	slices.Sort(second)
	for _, names := range [][]string{first, second} {
		s := setOf(names)
		must(t, set.AddSet(s))
		for i, name := range names {
			_, err := plain.PutSynthetic(name, s.Size, s.Content(name), blob.WriteOptions{Metadata: s.Metadata(i)})
			must(t, err)
		}
	}
	compare := func() {
		t.Helper()
		if set.Len() != plain.Len() {
			t.Errorf("%d blobs, want %d", set.Len(), plain.Len())
		}
		for _, o := range []blob.ListOptions{
			{}, {Delimiter: "/"}, {Prefix: "d"}, {Prefix: "d1", Delimiter: "/"}, {Prefix: "d30/"}, {Prefix: "d30/", Delimiter: "/"},
			{Prefix: "e5"}, {Prefix: "zz"}, {Prefix: "d59/f"}, {Prefix: "d59/f/"},
		} {
			for _, limit := range []int{0, 1, 2, 7, 100} {
				o.MaxResults = limit
				got, want := pages(t, set, o), pages(t, plain, o)
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%+v:\n got %v\nwant %v", o, got, want)
				}
			}
		}
	}
	compare()
	for _, s := range []*Store{set, plain} {
		for _, name := range []string{"d00/f", "d59/f", "d30/0", "e00", "e01", "e59"} {
			must(t, s.Delete(name, blob.Condition{}))
			if err := s.Delete(name, blob.Condition{}); !blob.Is(err, blob.NotFound) {
				t.Errorf("%s deleted twice: %v", name, err)
			}
			if _, err := s.Properties(name, blob.Condition{}); !blob.Is(err, blob.NotFound) {
				t.Errorf("%s is still there: %v", name, err)
			}
		}
		for _, name := range []string{"a", "d00/f", "d07/f", "d07/f2", "e01", "e30", "z"} {
			_, err := s.Put(name, []byte("new"), blob.WriteOptions{})
			must(t, err)
		}
		_, err := s.SetMetadata("e31", map[string]string{"x": "y"}, blob.Condition{})
		must(t, err)
	}
	compare()
	_, r, err := set.Get("e33", 10, 20, blob.Condition{})
	must(t, err)
	_, w, err := plain.Get("e33", 10, 20, blob.Condition{})
	must(t, err)
	got, err := io.ReadAll(r.Reader())
	must(t, err)
	want, err := io.ReadAll(w.Reader())
	must(t, err)
	if !bytes.Equal(got, want) || len(got) != 20 {
		t.Errorf("got %x, want %x", got, want)
	}
	if _, err := set.Properties("e33x", blob.Condition{}); !blob.Is(err, blob.NotFound) {
		t.Errorf("a name of no set: %v", err)
	}
	// What was read keeps its version until it is changed.
	p, err := set.Properties("e40", blob.Condition{})
	must(t, err)
	_, err = set.Properties("e40", blob.Condition{IfMatch: p.ETag})
	must(t, err)
	if other, err := set.Properties("e41", blob.Condition{}); err != nil || other.ETag == p.ETag {
		t.Errorf("two blobs have one ETag: %v", err)
	}
	if err := set.AddSet(setOf([]string{"b", "a"})); err == nil {
		t.Error("names that do not ascend are taken")
	}
	if err := set.AddSet(setOf([]string{"a", ""})); !blob.Is(err, blob.InvalidName) {
		t.Errorf("a bad name: %v", err)
	}
}

// pages returns all of a listing as text, page by page.
func pages(t *testing.T, s *Store, o blob.ListOptions) (out []string) {
	t.Helper()
	for {
		page, err := s.List(o)
		must(t, err)
		for _, b := range page.Blobs {
			keys := slices.Sorted(maps.Keys(b.Metadata))
			out = append(out, fmt.Sprint(b.Name, " ", b.Size, " ", b.Modified, " ", b.Created, " ", b.Tier, keys))
		}
		out = append(append(out, page.Prefixes...), "--")
		if page.Next == "" {
			return out
		}
		o.Marker = page.Next
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
