package blobcache

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// shortNames are names of which many are the beginning of others, with characters on both sides of the slash.
func shortNames(random *rand.Rand, n int) []string {
	seen := map[string]bool{}
	for range n {
		b := make([]byte, 1+random.IntN(4))
		for i := range b {
			b[i] = "a!-.0"[random.IntN(5)]
		}
		if s := string(b); Representable(s) {
			seen[s] = true
		}
	}
	out := make([]string, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

func TestCompareNames(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	names := shortNames(random, 300)
	for _, a := range names {
		for _, b := range names {
			if got, want := compareNames(a, b), cmp.Compare(a+"/", b+"/"); got != want {
				t.Fatalf("compareNames(%q, %q) = %d, want %d", a, b, got, want)
			}
			for _, key := range []string{b, b + "/"} {
				if got, want := within(a, key), a+"/" <= key; got != want {
					t.Fatalf("within(%q, %q) = %v", a, key, got)
				}
			}
		}
	}
}

// TestFold: whatever blobs and prefixes there are, every name is one entry, in order, and of the right kind.
func TestFold(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		type item struct {
			key    string
			prefix bool
			marker bool
		}
		want := map[string]string{}
		var items []item
		for _, name := range shortNames(random, 60) {
			isBlob, isPrefix, marker := random.IntN(4) > 0, random.IntN(3) == 0, random.IntN(3) == 0
			kind := ""
			switch {
			case isBlob && marker:
				kind = "dir marker etag"
			case isBlob && isPrefix:
				kind = "dir shadowed"
			case isBlob:
				kind = "file etag"
			case isPrefix:
				kind = "dir"
			default:
				continue
			}
			want[name] = kind
			if isBlob {
				items = append(items, item{name, false, marker})
			}
			if isPrefix {
				items = append(items, item{name + "/", true, false})
			}
		}
		slices.SortFunc(items, func(a, b item) int { return strings.Compare(a.key, b.key) })
		var f fold
		var got []Named
		empty := map[string]bool{}
		emit := func(e Named) { got = append(got, e) }
		alone := func(e Named) { emit(e); empty[e.Name] = true }
		for _, i := range items {
			ok := false
			if i.prefix {
				ok = f.prefix(strings.TrimSuffix(i.key, "/"), emit, alone)
			} else {
				p := blob.Properties{ETag: "x"}
				if i.marker {
					p.Metadata = map[string]string{MarkerKey: "true"}
				}
				ok = f.blob(i.key, p, alone)
			}
			if !ok {
				t.Fatalf("%q is said to be out of order", i.key)
			}
			for _, e := range got {
				if !within(e.Name, f.key) {
					t.Fatalf("%q was emitted at %q", e.Name, f.key)
				}
			}
		}
		f.end(alone)
		if !slices.IsSortedFunc(got, func(a, b Named) int { return compareNames(a.Name, b.Name) }) || len(got) != len(want) {
			t.Fatalf("seed %d: %d entries, want %d", seed, len(got), len(want))
		}
		for _, e := range got {
			hasPrefix := slices.ContainsFunc(items, func(i item) bool { return i.key == e.Name+"/" })
			if show(e.Entry) != want[e.Name] || empty[e.Name] == hasPrefix {
				t.Fatalf("seed %d: %q is %q, want %q; alone %v, prefix %v", seed, e.Name, show(e.Entry), want[e.Name], empty[e.Name], hasPrefix)
			}
		}
	}
	var f fold
	f.blob("b", blob.Properties{}, func(Named) {})
	if f.blob("a", blob.Properties{}, nil) || f.blob("b", blob.Properties{}, nil) || f.prefix("a", nil, nil) {
		t.Error("what is out of order was taken")
	}
}

// fillFields gives every field of a struct a value that is not zero. A field of a new type makes the test fail here.
func fillFields(t *testing.T, v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1700000000, 123456789).UTC()))
			return
		}
		for i := range v.NumField() {
			fillFields(t, v.Field(i), at+"."+v.Type().Field(i).Name)
		}
	case reflect.String:
		v.SetString(at)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(len(at)) << 30)
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.Slice:
		v.SetBytes([]byte(at))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"one": at, "two": "2", "empty": ""}))
	default:
		t.Fatalf("%s is a %s: teach packed, and this test, what to do with it", at, v.Kind())
	}
}

// TestPacked: what is packed comes out as it was, every field of it, and is found by its name.
func TestPacked(t *testing.T) {
	var full, noTimes blob.Properties
	fillFields(t, reflect.ValueOf(&full).Elem(), "p")
	noTimes = full
	noTimes.Modified, noTimes.Created = time.Time{}, time.Time{}
	entries := []Named{
		{"a", Entry{Properties: full}},
		{"b", Entry{Properties: blob.Properties{ETag: "0x1", Size: 1 << 60, Tier: "Hot"}}},
		{"c", Entry{Dir: true}},
		{"d", Entry{Dir: true, Shadowed: true}},
		{"e", Entry{Dir: true, Marker: true, Properties: full}},
		{"f", Entry{Properties: noTimes}},
		{strings.Repeat("g", 255), Entry{Properties: blob.Properties{ETag: "x", Headers: blob.Headers{ContentMD5: make([]byte, 16)}}}},
		{"\xff \x01", Entry{Properties: blob.Properties{ETag: "x", Metadata: map[string]string{"a": "b"}}}},
	}
	var w packer
	for range 2 { // the second time with the memory of the first
		for _, e := range entries {
			w.add(e)
		}
		p := w.done("bound", time.Unix(5, 0), 7)
		if p.len() != len(entries) || p.bound != "bound" || p.seq != 7 {
			t.Fatalf("%d entries, bound %q", p.len(), p.bound)
		}
		for i, e := range entries {
			if e.Properties.ETag != "" {
				e.Properties.Name = "dir/" + e.Name
			}
			if got := p.entry("dir", i); !reflect.DeepEqual(got, e) {
				t.Errorf("packed\n%+v, unpacked\n%+v", e, got)
			}
			if got, ok := p.find("dir", e.Name); !ok || !reflect.DeepEqual(got, e.Entry) {
				t.Errorf("%q: found %v", e.Name, ok)
			}
		}
		for _, name := range []string{"", "aa", "b/", "z"} {
			if _, ok := p.find("dir", name); ok {
				t.Errorf("%q was found", name)
			}
		}
	}
}

// TestPackedIsSmall: the figure that the documentation of packed gives.
func TestPackedIsSmall(t *testing.T) {
	var w packer
	const n = 5000
	for i := range n {
		w.add(Named{fmt.Sprintf("file-%08d.jpg", i), Entry{Properties: blob.Properties{
			ETag: `"0x8DC0123456789AB"`, Size: 1 << 20, Modified: time.Unix(1700000000, 0), Created: time.Unix(1700000000, 0),
			Tier: "Hot", Headers: blob.Headers{ContentType: "image/jpeg", ContentMD5: make([]byte, 16)},
		}}})
	}
	if p := w.done("", time.Time{}, 0); p.size()/n > 100 {
		t.Errorf("%d bytes an entry", p.size()/n)
	}
}
