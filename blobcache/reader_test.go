package blobcache

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestReaderMissesNothingOfOurs: "with every name that was made through this mount before the listing began", also in a
// directory of which only a part fits into memory, and when another listing has to take over: whatever the place of the name.
func TestReaderMissesNothingOfOurs(t *testing.T) {
	const files = 3000
	for _, ahead := range []int{0, 150} { // how much is read before another reader goes on to the end
		s := newService()
		for i := range files {
			s.fill(t, fmt.Sprintf("big/file%04d", i))
		}
		n, _ := newNames(t, s, time.Hour)
		n.limit = 60_000
		n.cont = smallPages{Container: s, max: 100}
		open := func() func(count int) []string {
			r, err := n.Open(t.Context(), "big")
			if err != nil {
				t.Fatal(err)
			}
			pos := 0
			return func(count int) (out []string) {
				if err := r.Read(t.Context(), pos, func(e Named, next int) bool {
					if len(out) == count {
						return false
					}
					out, pos = append(out, e.Name), next
					return true
				}); err != nil {
					t.Fatal(err)
				}
				return out
			}
		}
		other := open()
		other(150)
		made := []string{"aaa", "file0050a", "file0199a", "file1500a", "zzz"}
		for _, name := range made {
			s.fill(t, "big/"+name)
			n.Set("big/"+name, Entry{Properties: s.properties(t, "big/"+name)})
		}
		n.Set("big/unsaved", Entry{Pending: true})
		s.fill(t, "big/file0001")
		n.Set("big/file0001", Entry{Properties: s.properties(t, "big/file0001")}) // another version: no new name
		remove(t, s, "big/file0002")
		n.Remove("big/file0002")

		read := open()
		got := read(ahead)
		if ahead > 0 {
			other(files)
			s.fill(t, "big/unsaved") // is committed meanwhile
			n.Set("big/unsaved", Entry{Properties: s.properties(t, "big/unsaved")})
		}
		got = append(got, read(2*files)...)
		if l := n.dirs["big"].listing; l != nil && l.cut == 0 {
			t.Fatal("nothing was given up: the test does not test what it says")
		}
		slices.Sort(got)
		want := append(made, "unsaved")
		for i := range files {
			if i != 2 {
				want = append(want, fmt.Sprintf("file%04d", i))
			}
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			i := 0
			for i < min(len(got), len(want)) && got[i] == want[i] {
				i++
			}
			t.Errorf("after %d: %d names, want %d; from %d on %q, want %q",
				ahead, len(got), len(want), i, got[i:min(i+4, len(got))], want[i:min(i+4, len(want))])
		}
	}
}
