package blobtest

import (
	"encoding/base64"
	"slices"
	"strings"

	"blobmount/blobcache/blob"
)

// MaxPage is the largest page of a listing, and the default ("List Blobs", maxresults).
const MaxPage = 5000

// A marker is opaque to callers. It holds one of these letters and then the name where the page before ended.
const (
	afterBlob   = 'b' // go on after the blob
	afterPrefix = 'p' // go on after everything below the folded prefix
	afterEmpty  = 'e' // as one of the other two, which follows; the empty page was given (StoreOptions.EmptyPages)
)

func formatMarker(kind byte, rest string) string {
	return base64.URLEncoding.EncodeToString([]byte(string(kind) + rest))
}

// smallPage is from when on a page counts as one that will be full: growing to 5,000 blobs by and by costs as much as
// finding them.
const smallPage = 64

// List returns one page of blobs in the order of their bytes (List Blobs). It costs O(page + log n) without a
// delimiter, and one seek of O(log n) more for each folded prefix, however many blobs lie below it.
func (s *Store) List(o blob.ListOptions) (blob.Page, error) {
	limit := o.MaxResults
	switch {
	case limit < 0:
		return blob.Page{}, Err("OutOfRangeQueryParameterValue")
	case limit == 0, limit > MaxPage:
		limit = MaxPage
	}
	from, ok, empty, err := s.start(o)
	if err != nil || empty != "" {
		return blob.Page{Next: empty}, err
	}
	var page blob.Page
	kind, last := byte(0), "" // of the marker that goes on after the last entry
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !ok {
		return page, nil
	}
	w, ok := s.walk(from)
	for ok && strings.HasPrefix(w.name, o.Prefix) {
		if len(page.Blobs)+len(page.Prefixes) == limit {
			page.Next = formatMarker(kind, last)
			return page, nil
		}
		name := w.name
		if folded, yes := fold(name, o.Prefix, o.Delimiter); yes {
			page.Prefixes = append(page.Prefixes, folded)
			kind, last = afterPrefix, folded
			next, more := successor(folded)
			ok = more && w.seek(next)
			continue
		}
		if s.opts.Hierarchical && o.Delimiter == "/" && s.get(name).isDirectory() {
			if len(s.below(name, 1)) == 0 { // else what is below stands for it
				page.Prefixes = append(page.Prefixes, name+"/")
				kind, last = afterBlob, name
			}
			ok = w.next()
			continue
		}
		if len(page.Blobs) == smallPage {
			page.Blobs = slices.Grow(page.Blobs, limit)
		}
		page.Blobs = append(page.Blobs, w.properties())
		kind, last = afterBlob, name
		ok = w.next()
	}
	return page, nil
}

// start returns the first name that a page may have; ok is false when none can follow. With EmptyPages, empty is
// the marker to answer instead.
func (s *Store) start(o blob.ListOptions) (from string, ok bool, empty string, err error) {
	marker, err := base64.URLEncoding.DecodeString(o.Marker)
	if err != nil {
		return "", false, "", Err("InvalidQueryParameterValue")
	}
	if s.opts.EmptyPages {
		if len(marker) == 0 || marker[0] != afterEmpty {
			return "", false, formatMarker(afterEmpty, string(marker)), nil
		}
		marker = marker[1:]
	}
	if len(marker) == 0 {
		return o.Prefix, true, "", nil
	}
	name := string(marker[1:])
	switch marker[0] {
	case afterBlob:
		from, ok = name+"\x00", true
	case afterPrefix:
		from, ok = successor(name)
	default:
		return "", false, "", Err("InvalidQueryParameterValue")
	}
	return max(from, o.Prefix), ok, "", nil
}

// fold returns the prefix that stands for name at this level of the hierarchy, if one does.
func fold(name, prefix, delimiter string) (string, bool) {
	if delimiter == "" {
		return "", false
	}
	i := strings.Index(name[len(prefix):], delimiter)
	if i < 0 {
		return "", false
	}
	return name[:len(prefix)+i+len(delimiter)], true
}

// successor returns the first string in byte order that is after all strings with the prefix.
func successor(prefix string) (string, bool) {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xFF {
			return prefix[:i] + string([]byte{prefix[i] + 1}), true
		}
	}
	return "", false
}
