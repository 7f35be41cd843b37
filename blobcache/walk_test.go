package blobcache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// smallPages is a container whose pages have a few names, in another order if told to.
type smallPages struct {
	blob.Container
	max     int
	shuffle *rand.Rand
}

func (c smallPages) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	if o.MaxResults == 0 {
		o.MaxResults = c.max
	}
	p, err := c.Container.List(ctx, o)
	if c.shuffle != nil {
		c.shuffle.Shuffle(len(p.Blobs), func(i, j int) { p.Blobs[i], p.Blobs[j] = p.Blobs[j], p.Blobs[i] })
		c.shuffle.Shuffle(len(p.Prefixes), func(i, j int) { p.Prefixes[i], p.Prefixes[j] = p.Prefixes[j], p.Prefixes[i] })
	}
	return p, err
}

// randomTree returns names of blobs, markers (with a *) and directories whose order is not that of their paths.
func randomTree(random *rand.Rand) []string {
	var out []string
	var dir func(path string, depth int)
	dir = func(path string, depth int) {
		for _, name := range shortNames(random, 1+random.IntN(12)) {
			p := path + name
			switch k := random.IntN(10); {
			case k < 4 && depth > 0:
				dir(p+"/", depth-1)
				if random.IntN(3) == 0 {
					out = append(out, "*"+p)
				}
			case k == 4:
				out = append(out, "*"+p)
			case k == 5:
				out = append(out, p+"/")
			case k == 6:
				out = append(out, p, p+"/x")
			case k == 7:
				out = append(out, p+"//hidden", p+"/../hidden", p+"/"+strings.Repeat("n", 256)+"/x", p)
			default:
				out = append(out, p)
			}
		}
	}
	dir("", 4)
	return out
}

// tree returns all paths with what they are, by listing one directory after the other as find does.
func tree(t testing.TB, n *Names, root string) []string {
	t.Helper()
	var out []string
	for _, line := range listed(t, n, root, false) {
		i := strings.LastIndex(line, ": ")
		path := join(root, line[:i])
		out = append(out, path+line[i:])
		if strings.HasPrefix(line[i:], ": dir") {
			out = append(out, tree(t, n, path)...)
		}
	}
	return out
}

// TestWalkSeesAll: a tree that is read by a walk is the same as one that is read directory by directory, whatever the
// names, the pages and the order in which the service has them. What was found is known afterwards.
func TestWalkSeesAll(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 3))
		s := newService()
		s.fill(t, randomTree(random)...)
		plain, _ := newNames(t, s, 0)
		want := tree(t, plain, "")
		pages := smallPages{Container: s, max: 1 + random.IntN(30)}
		if seed%5 == 0 {
			pages.shuffle = random
		}
		n, _ := newNames(t, s, time.Minute)
		n.cont = pages
		got := tree(t, n, "")
		if pages.shuffle != nil {
			slices.Sort(got)
			slices.Sort(want)
		}
		sameLines(t, fmt.Sprintf("seed %d, pages of %d", seed, pages.max), got, want)
		for _, line := range want {
			i := strings.LastIndex(line, ": ")
			if e, _, ok := n.Known(line[:i]); !ok || ": "+show(e) != line[i:] {
				t.Fatalf("seed %d: %q is known as %v %q", seed, line, ok, show(e))
			}
			if e, _, ok := n.Known(line[:i] + "+"); ok {
				t.Fatalf("seed %d: %q+ is known as %q", seed, line[:i], show(e))
			}
		}
	}
}

// sameLines shows the first difference.
func sameLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	if i < max(len(got), len(want)) {
		t.Fatalf("%s: %d lines, want %d; from line %d on %q, want %q", what, len(got), len(want), i,
			got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
	}
}

// TestWalkCost: a tree of many directories costs hardly more requests than its names fill pages.
func TestWalkCost(t *testing.T) {
	for _, tc := range []struct {
		name  string
		paths func() []string
		pages int // of 100 names, of the whole tree
	}{
		{"wide", func() (out []string) {
			for i := range 300 {
				for j := range 10 {
					out = append(out, fmt.Sprintf("d%03d/f%d", i, j))
				}
			}
			return out
		}, 30 + 3},
		{"deep", func() (out []string) {
			for i := range 6 * 6 * 6 * 6 {
				out = append(out, fmt.Sprintf("%d/%d/%d/%d/f", i/216, i/36%6, i/6%6, i%6))
			}
			return out
		}, 13 + 1},
		{"empty directories", func() (out []string) {
			for i := range 500 {
				out = append(out, fmt.Sprintf("*d%03d", i))
			}
			return out
		}, 5},
		{"chains", func() (out []string) {
			for i := range 50 {
				out = append(out, fmt.Sprintf("c%02d/", i)+strings.Repeat("x/", 10)+"f")
			}
			return out
		}, 1 + 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService()
			s.fill(t, tc.paths()...)
			n, _ := newNames(t, s, time.Minute)
			n.cont = smallPages{Container: s, max: 100}
			got := tree(t, n, "")
			if requests := s.Count(""); requests > tc.pages+walkAfter+1 {
				t.Errorf("%d requests for %d names, want %d and a few", requests, len(got), tc.pages)
			}
			s.Reset()
			if again := tree(t, n, ""); !slices.Equal(again, got) {
				t.Error("another tree the second time")
			}
			s.asked(t)
		})
	}
}

// TestWalkIsNoGuess: somebody who looks into a few directories far apart does not pay for the whole tree, and a walk that
// does not reach what is asked for ends.
func TestWalkIsNoGuess(t *testing.T) {
	s := newService()
	for i := range 100 {
		for j := range 50 {
			s.fill(t, fmt.Sprintf("d%02d/f%02d", i, j))
		}
	}
	n, _ := newNames(t, s, time.Hour)
	n.cont = smallPages{Container: s, max: 100}
	listed(t, n, "", false)
	s.Reset()
	for i := 99; i > 89; i-- {
		listed(t, n, fmt.Sprintf("d%02d", i), false)
	}
	if got, most := s.Count(""), 10+2*firstPages+1; got > most {
		t.Errorf("%d requests for ten directories from the end, want at most %d: %q", got, most, s.Lines())
	}
	if len(n.walks) > 0 {
		t.Error("the walk goes on")
	}
	n, now := newNames(t, s, time.Hour)
	listed(t, n, "", false)
	s.Reset()
	for i := range 20 {
		listed(t, n, fmt.Sprintf("d%02d", i), false)
		now.forward(walkWindow / 2)
	}
	if got := s.Count(""); got != 20 {
		t.Errorf("%d requests for 20 directories that somebody looked at slowly", got)
	}
}

// TestWalkAndChanges: what is changed here while a walk is under way counts, and what was dropped does not come back.
func TestWalkAndChanges(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 4))
		s := newService()
		s.fill(t, randomTree(random)...)
		s.fill(t, "a/first", "a-/first", "a/a/first", "-/first", "0/a/first")
		n, _ := newNames(t, s, time.Hour)
		hooked := &hook{Container: smallPages{Container: s, max: 1 + random.IntN(20)}}
		n.cont = hooked
		// Each change is made in the service and told to Names, as fs does, between the request and its answer or before.
		made := 0
		hooked.after = func() {
			if random.IntN(3) > 0 || made > 20 {
				return
			}
			made++
			name := fmt.Sprintf("%s/new%d", []string{"a", "a-", "a/a", "-", "0/a"}[random.IntN(5)], made)
			switch random.IntN(3) {
			case 0:
				s.fill(t, name)
				p, err := s.store.Properties(name, blob.Condition{})
				if err != nil {
					t.Error(err)
				}
				n.Set(name, Entry{Properties: p})
			case 1:
				s.fill(t, "*"+name)
				p, err := s.store.Properties(name, blob.Condition{})
				if err != nil {
					t.Error(err)
				}
				n.SetEmpty(name)
				n.Set(name, Entry{Dir: true, Marker: true, Properties: p})
			default:
				dir := []string{"a", "a-", "-"}[random.IntN(3)]
				s.fill(t, dir+"/renamed-into")
				n.ForgetTree(dir)
				n.Forget(dir)
			}
		}
		tree(t, n, "")
		hooked.after = func() {}
		plain, _ := newNames(t, s, 0)
		want, got := tree(t, plain, ""), tree(t, n, "")
		slices.Sort(want) // what was made meanwhile comes at the end of a directory
		slices.Sort(got)
		sameLines(t, fmt.Sprintf("seed %d, after %d changes", seed, made), got, want)
	}
}

// hook calls a function between the service's answer and who asked.
type hook struct {
	blob.Container
	mu    sync.Mutex // guards after, and what it does
	after func()
}

func (h *hook) List(ctx context.Context, o blob.ListOptions) (blob.Page, error) {
	p, err := h.Container.List(ctx, o)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.after()
	return p, err
}

// TestNamesMemory: what is known stays within the bound, what the service does not have is never forgotten, and a directory
// that does not fit is read whole all the same, by several at once and from any position.
func TestNamesMemory(t *testing.T) {
	s := newService()
	for i := range 60 {
		for j := range 60 {
			s.fill(t, fmt.Sprintf("d%02d/file%02d", i, j))
		}
	}
	n, _ := newNames(t, s, time.Hour)
	n.limit = 60_000
	n.Set("d00/pending", Entry{Pending: true})
	check := func(when string) {
		t.Helper()
		st := n.Statistics()
		sum := int64(0)
		for _, d := range n.dirs {
			sum += d.size()
		}
		if st.Bytes > n.limit || st.Bytes != sum {
			t.Errorf("%s: %d bytes are counted, %d are used, the limit is %d", when, st.Bytes, sum, n.limit)
		}
		if e, _, ok := n.Known("d00/pending"); !ok || !e.Pending {
			t.Errorf("%s: what the service does not have was forgotten", when)
		}
	}
	want := tree(t, n, "")
	check("after a tree")
	if got := tree(t, n, ""); !slices.Equal(got, want) || len(got) != 60+3600+1 {
		t.Errorf("%d names, %d the first time", len(got), len(want))
	}
	for i := range 500 {
		looked(t, n, fmt.Sprintf("d%02d/missing%d", i%60, i))
	}
	check("after lookups")
	for i := range 500 {
		n.Set(fmt.Sprintf("one/%d", i), Entry{Properties: blob.Properties{ETag: "x"}})
	}
	check("after many names in one directory")

	for i := range 3000 {
		s.fill(t, fmt.Sprintf("big/file%04d", i))
	}
	n.cont = smallPages{Container: s, max: 100}
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			reader, err := n.Open(t.Context(), "big")
			if err != nil {
				t.Error(err)
				return
			}
			pos := 0
			for i := 0; i < 3000; {
				count := 0
				err := reader.Read(t.Context(), pos, func(e Named, next int) bool {
					if want := fmt.Sprintf("file%04d", i); e.Name != want {
						t.Errorf("reader %d: %q, want %q", r, e.Name, want)
					}
					pos = next
					i++
					count++
					return count < 10+r
				})
				if err != nil || count == 0 {
					t.Errorf("reader %d at %d: %d entries, error %v", r, i, count, err)
					return
				}
			}
			if err := reader.Read(t.Context(), 5, func(e Named, _ int) bool {
				if e.Name != "file0005" {
					t.Errorf("reader %d: %q at position 5", r, e.Name)
				}
				return false
			}); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	check("after a directory that does not fit")
}

// TestReader: the first names come after one page; positions stay what they are; what is made and removed meanwhile is seen
// and not seen.
func TestReader(t *testing.T) {
	s := newService()
	for i := range 1000 {
		s.fill(t, fmt.Sprintf("d/file%04d", i))
	}
	n, _ := newNames(t, s, time.Hour)
	n.cont = smallPages{Container: s, max: 100}
	r, err := n.Open(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var after []int
	read := func(pos, count int) (out []string) {
		t.Helper()
		if err := r.Read(t.Context(), pos, func(e Named, next int) bool {
			out, after = append(out, e.Name), append(after, next)
			return len(out) < count
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	names = read(0, 1)
	if got := s.Count("List"); names[0] != "file0000" || got > 2 {
		t.Errorf("%q after %d requests", names, got)
	}
	if e, _, ok := n.Known("d/file0050"); !ok || e.Properties.Size != 1 {
		t.Error("a name of the first page is not known")
	}
	n.Remove("d/file0500")
	n.Set("d/new", Entry{Pending: true})
	n.Set("d/file0600", Entry{Pending: true, Properties: blob.Properties{Size: 5}})
	after = nil
	names = read(0, 10_000)
	if len(names) != 1000 || names[500] != "file0501" || names[999] != "new" || slices.Contains(names, "file0500") {
		t.Errorf("%d names, the last %q", len(names), names[len(names)-1])
	}
	positions := slices.Clone(after)
	for _, i := range []int{0, 98, 99, 499, 500, 998} {
		if got := read(positions[i], 2); got[0] != names[i+1] {
			t.Errorf("after %q comes %q, want %q", names[i], got[0], names[i+1])
		}
	}
	if got := read(positions[999], 1); len(got) > 0 {
		t.Errorf("%q after the end", got)
	}
	s.Reset()
	stamp := n.Stamp("d")
	if stamp == r.Stamp() || stamp == (Stamp{}) {
		t.Error("the directory is what it was when the reader began")
	}
	if r, err := n.Open(t.Context(), "d"); err != nil || stamp != r.Stamp() {
		t.Errorf("the directory is not what a reader shows that begins now: %v", err)
	}
	looked(t, n, "d/file0001")
	n.Set("d/file0001", Entry{Properties: blob.Properties{ETag: "new"}})
	if n.Stamp("d") != stamp {
		t.Error("another content of a file changes the names")
	}
	n.Set("d/another", Entry{Pending: true})
	if n.Stamp("d") == stamp {
		t.Error("a new name does not change the names")
	}
	n.Forget("d/file0001")
	if n.Stamp("d") != (Stamp{}) {
		t.Error("the names are known though one was forgotten")
	}
	s.asked(t)
}
