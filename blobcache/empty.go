package blobcache

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"

	"blobmount/blobcache/blob"
)

// HasOther reports whether the service has anything in a directory but the names given: from what is known if that is not
// older than the timeout, else by a listing of two names more than given, however many there are.
func (n *Names) HasOther(ctx context.Context, dir string, names ...string) (bool, error) {
	if has, known := n.knowsOther(dir, names); known {
		return has, nil
	}
	return n.askOther(ctx, dir, names)
}

// IsEmpty asks the service whether it has anything in a directory. What only this mount has counts too.
func (n *Names) IsEmpty(ctx context.Context, dir string) (bool, error) {
	n.mu.Lock()
	if d := n.dirs[dir]; d != nil {
		for _, k := range d.over {
			if k.exists && k.Pending {
				n.mu.Unlock()
				return false, nil
			}
		}
	}
	n.mu.Unlock()
	other, err := n.askOther(ctx, dir, nil)
	return !other, err
}

// askOther is HasOther by a request.
func (n *Names) askOther(ctx context.Context, dir string, names []string) (bool, error) {
	prefix := below(dir)
	// Two: the directory's own marker of the other kind, "dir/", and one more.
	o := blob.ListOptions{Prefix: prefix, Delimiter: "/", MaxResults: len(names) + 2}
	for {
		page, err := n.cont.List(ctx, o)
		if err != nil {
			return false, err
		}
		for _, b := range page.Blobs {
			if other := b.Name[len(prefix):]; other != "" && !slices.Contains(names, other) {
				return true, nil
			}
		}
		for _, p := range page.Prefixes {
			if !slices.Contains(names, strings.TrimSuffix(p[len(prefix):], "/")) {
				return true, nil
			}
		}
		if page.Next == "" {
			return false, nil
		}
		o.Marker = page.Next
	}
}

// knowsOther is HasOther without asking. known is false when it cannot tell.
func (n *Names) knowsOther(dir string, names []string) (has, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dirs[dir]
	if d == nil || d.listing == nil || !d.listing.done || !n.usable(d.listing) {
		return false, false
	}
	is := func(other string) bool {
		k, _ := d.find(other)
		return k.exists && !k.Pending && !slices.Contains(names, other)
	}
	if d.other != "" && is(d.other) {
		return true, true
	}
	// Programs delete a directory name by name and ask each time. A name by chance stays for half of what is left, so all
	// are looked at a few times only.
	d.other = ""
	count := 0
	try := func(other string) {
		if is(other) {
			if count++; rand.IntN(count) == 0 {
				d.other = other
			}
		}
	}
	for other := range d.over {
		try(other)
	}
	for _, p := range d.listing.parts {
		for i := range p.len() {
			try(string(p.name(i)))
		}
	}
	return count > 0, true
}
