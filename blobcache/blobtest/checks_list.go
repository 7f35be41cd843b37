package blobtest

import (
	"fmt"
	"slices"

	"blobmount/blobcache/blob"
)

// listed is the tree of the listing checks, in byte order: '-' and '.' sort before '/', '0' and letters after,
// upper case before lower, and UTF-8 after ASCII.
var listed = []string{
	"A", "a", "a-b", "a.txt", "a/", "a/1", "a/2", "a/b/c/1", "a/b/c/2", "a/b/d", "a0", "b/1", "b/c/1", "ba", "c",
	"d//e", "d/e", "z/1", "z/2", "z/3", "é/1", "é/2", "日本/1",
}

// listChecks are the rules of "List Blobs" and "Enumerating blob resources".
func listChecks() []Check {
	fill := func(p *probe) {
		for i := range listed { // not in order
			name := listed[(i*7)%len(listed)]
			p.put(name, "content of "+name, blob.WriteOptions{Metadata: map[string]string{"k": "v"}})
		}
	}
	queries := []struct {
		prefix, delimiter string
		blobs, prefixes   []string
	}{
		{"", "", listed, nil},
		{"", "/", []string{"A", "a", "a-b", "a.txt", "a0", "ba", "c"}, []string{"a/", "b/", "d/", "z/", "é/", "日本/"}},
		{"a", "", []string{"a", "a-b", "a.txt", "a/", "a/1", "a/2", "a/b/c/1", "a/b/c/2", "a/b/d", "a0"}, nil},
		{"a", "/", []string{"a", "a-b", "a.txt", "a0"}, []string{"a/"}},
		{"a/", "", []string{"a/", "a/1", "a/2", "a/b/c/1", "a/b/c/2", "a/b/d"}, nil},
		{"a/", "/", []string{"a/", "a/1", "a/2"}, []string{"a/b/"}},
		{"a/b/", "/", []string{"a/b/d"}, []string{"a/b/c/"}},
		{"a/b", "/", nil, []string{"a/b/"}},
		{"d/", "/", []string{"d/e"}, []string{"d//"}},
		{"é/", "/", []string{"é/1", "é/2"}, nil},
		{"z/3", "", []string{"z/3"}, nil},
		{"nothing", "", nil, nil},
		{"nothing/", "/", nil, nil},
	}
	// compare demands the entries of a query for a page size.
	compare := func(p *probe, max int) {
		for _, q := range queries {
			o := blob.ListOptions{Prefix: q.prefix, Delimiter: q.delimiter, MaxResults: max}
			got, _ := p.list(o)
			p.equal(names(got.Blobs), q.blobs, "blobs of List %+v", o)
			p.equal(got.Prefixes, q.prefixes, "prefixes of List %+v", o)
		}
	}
	return []Check{
		// contract: names in the order of their bytes; Prefix, Delimiter; Prefixes end with the delimiter.
		check("List/PrefixAndDelimiter", func(p *probe) {
			fill(p)
			compare(p, 0)
		}),
		// contract: MaxResults bounds blobs and prefixes together; pages put together are the whole, without
		// duplicates and gaps, whatever their size; a page may be empty and have a Next.
		check("List/Paging", func(p *probe) {
			fill(p)
			for _, max := range []int{1, 2, 3, 7, len(listed) - 1, len(listed), len(listed) + 1} {
				compare(p, max)
			}
		}),
		// contract: MaxResults is kept, so there are at least as many pages as needed.
		check("List/PageCount", func(p *probe) {
			fill(p)
			_, pages := p.list(blob.ListOptions{MaxResults: 4})
			if want := (len(listed) + 3) / 4; pages < want {
				p.failf("%d pages of 4 for %d names, want at least %d", pages, len(listed), want)
			}
		}),
		// contract: an empty container has an empty listing, without a Next in the end.
		check("List/Empty", func(p *probe) {
			got, _ := p.list(blob.ListOptions{})
			p.equal(len(got.Blobs)+len(got.Prefixes), 0, "entries of an empty container")
		}),
		// contract: properties and metadata come with the names, the same as Properties says.
		check("List/Properties", func(p *probe) {
			fill(p)
			for _, delimiter := range []string{"", "/"} {
				got, _ := p.list(blob.ListOptions{Delimiter: delimiter})
				for _, b := range got.Blobs {
					want := p.props(b.Name)
					p.equal(b.ETag, want.ETag, "ETag of %q", b.Name)
					p.equal(b.Size, want.Size, "size of %q", b.Name)
					p.equal(b.Kind, want.Kind, "kind of %q", b.Name)
					p.equal(b.Tier, want.Tier, "tier of %q", b.Name)
					p.equal(b.Headers.ContentType, want.Headers.ContentType, "content type of %q", b.Name)
					p.metadataIs(b.Metadata, want.Metadata, "metadata of %q", b.Name)
					if !b.Modified.Equal(want.Modified) {
						p.failf("time of %q: %v in List, %v in Properties", b.Name, b.Modified, want.Modified)
					}
				}
			}
		}),
		// contract: metadata of each blob is its own, and its names are lower-case.
		check("List/Metadata", func(p *probe) {
			p.put("a", "x", blob.WriteOptions{Metadata: map[string]string{"Name": "<a & b>", "Empty_not": "\"'"}})
			p.put("b", "x", blob.WriteOptions{})
			p.put("c", "x", blob.WriteOptions{Metadata: map[string]string{"hdi_isfolder": "true"}})
			got, _ := p.list(blob.ListOptions{})
			p.equal(len(got.Blobs), 3, "blobs")
			p.metadataIs(got.Blobs[0].Metadata, map[string]string{"name": "<a & b>", "empty_not": "\"'"}, "metadata of a")
			p.metadataIs(got.Blobs[1].Metadata, nil, "metadata of b")
			p.metadataIs(got.Blobs[2].Metadata, map[string]string{"hdi_isfolder": "true"}, "metadata of c")
		}),
		// "List Blobs": changes between pages are seen or not, but what was there all the time comes exactly once.
		check("List/ChangesBetweenPages", func(p *probe) {
			for i := range 30 {
				p.put(fmt.Sprintf("keep/%02d", i), "x", blob.WriteOptions{})
			}
			var got []string
			o := blob.ListOptions{Prefix: "keep/", MaxResults: 4}
			for n := range 100 {
				page, err := p.c.List(p.ctx, o)
				p.ok(err, "List %+v", o)
				for _, b := range page.Blobs {
					if len(b.Name) == len("keep/00") {
						got = append(got, b.Name)
					}
				}
				if page.Next == "" {
					break
				}
				o.Marker = page.Next
				p.put(fmt.Sprintf("keep/%02d-new", (n*5)%30), "x", blob.WriteOptions{})
			}
			var want []string
			for i := range 30 {
				want = append(want, fmt.Sprintf("keep/%02d", i))
			}
			if !slices.Equal(got, want) {
				p.failf("names across pages: got %q", got)
			}
		}),
		// contract: List sees a write that returned before it began.
		check("List/ReadYourWrites", func(p *probe) {
			for i := range 10 {
				name := fmt.Sprintf("%d", i)
				p.put(name, "x", blob.WriteOptions{})
				got, _ := p.list(blob.ListOptions{})
				p.equal(len(got.Blobs), 1, "blobs after Upload %q", name)
				p.equal(got.Blobs[0].Name, name, "name")
				p.ok(p.c.Delete(p.ctx, name, blob.Condition{}), "Delete")
				got, _ = p.list(blob.ListOptions{})
				p.equal(len(got.Blobs), 0, "blobs after Delete %q", name)
			}
		}),
	}
}
