package crash

import (
	"strings"
	"testing"
)

// The judge finds what is older, missing or mixed, and accepts what is whole and new enough.
func TestJudge(t *testing.T) {
	l := NewLedger()
	const size = 1000 // not a multiple of a record
	write := func(path string, size int64) (*Claim, []byte) {
		image := NewImage(l.Next(path), size)
		return l.Begin(path, image), image.Bytes()
	}
	want := func(what, path string, f Found, v Verdict) {
		t.Helper()
		if got, text := l.Judge(path, f); got != v || (v == Right) != (text == "") {
			t.Errorf("%s: %d (%s), want %d", what, got, text, v)
		}
	}
	want("nothing was begun", "a", Found{}, Right)
	first, one := write("a", size)
	want("begun and not there", "a", Found{}, Right)
	want("begun and there", "a", Found{true, one}, Right)
	first.Acknowledge()
	want("missing", "a", Found{}, Lost)
	second, two := write("a", size)
	want("the acknowledged one", "a", Found{true, one}, Right)
	want("the begun one", "a", Found{true, two}, Right)
	want("cut", "a", Found{true, two[:size-1]}, Torn)
	want("mixed", "a", Found{true, append(append([]byte{}, one[:500]...), two[500:]...)}, Torn)
	want("zeros", "a", Found{true, make([]byte, size)}, Torn)
	want("moved", "a", Found{true, append(append([]byte{}, two[32:]...), two[:32]...)}, Torn)
	second.Acknowledge()
	want("older", "a", Found{true, one}, Lost)
	want("of another file", "b", Found{true, two}, Torn)

	rename := l.BeginRename("a", "b")
	want("the source of a rename", "a", Found{}, Right)
	want("its target", "b", Found{true, two}, Right)
	if v, text := l.JudgeRename("a", func(string) Found { return Found{} }); v != Lost {
		t.Errorf("neither name is there: %d (%s), want lost", v, text)
	}
	if v, text := l.JudgeRename("a", func(path string) Found { return Found{path == "b", two} }); v != Right {
		t.Errorf("renamed: %d (%s)", v, text)
	}
	rename.Acknowledge()
	want("the source comes back", "a", Found{true, two}, Lost)
	want("the target is missing", "b", Found{}, Lost)
	unlink := l.BeginUnlink("b")
	want("begun unlink", "b", Found{}, Right)
	unlink.Acknowledge()
	want("unlinked", "b", Found{true, two}, Lost)

	// After a prefix was found, that is the file.
	image := NewImage(l.Next("log"), 100)
	l.BeginAppend("log", image).Acknowledge()
	longer := image.Patch(l.Next("log"), 100, 100)
	l.BeginAppend("log", longer)
	want("too short a prefix", "log", Found{true, longer.Bytes()[:99]}, Torn)
	want("a prefix", "log", Found{true, longer.Bytes()[:150]}, Right)
	l.Settle("log", Found{true, longer.Bytes()[:150]})
	want("what it was settled on", "log", Found{true, longer.Bytes()[:150]}, Right)
	want("more than it was settled on", "log", Found{true, longer.Bytes()}, Torn)
}

// Where parts are allowed, what was not acknowledged may be there up to any byte, but nothing else.
func TestJudgeParts(t *testing.T) {
	const size = 1000
	stamp := func(version int) Stamp { return Stamp{"a", version} }
	first := NewImage(stamp(1), size)
	over := func(image Image, by []byte, n int64) []byte {
		b := image.Bytes()
		copy(b, by[:n])
		return b
	}
	patched, longer, anew := first.Patch(stamp(2), 300, 200), first.Patch(stamp(2), size, 500), NewImage(stamp(2), 700)
	for _, tc := range []struct {
		name    string
		begin   func(l *Ledger) *Claim
		content []byte
		want    Verdict // Torn without parts, but for the whole ones
	}{
		{"half of a patch", func(l *Ledger) *Claim { return l.BeginInPlace("a", patched) }, over(first, patched.Bytes(), 410), Right},
		{"the other half", func(l *Ledger) *Claim { return l.BeginInPlace("a", patched) }, over(patched, first.Bytes(), 410), Torn},
		{"a patch, cut", func(l *Ledger) *Claim { return l.BeginInPlace("a", patched) }, patched.Bytes()[:600], Torn},
		{"longer", func(l *Ledger) *Claim { return l.BeginInPlace("a", longer) }, longer.Bytes()[:size+7], Right},
		{"longer, with zeros", func(l *Ledger) *Claim { return l.BeginInPlace("a", longer) }, append(longer.Bytes()[:size+7], make([]byte, 9)...), Torn},
		{"written anew", func(l *Ledger) *Claim { return l.Begin("a", anew) }, anew.Bytes()[:333], Right},
		{"emptied", func(l *Ledger) *Claim { return l.Begin("a", anew) }, nil, Right},
		{"anew over the old", func(l *Ledger) *Claim { return l.Begin("a", anew) }, over(first, anew.Bytes(), 333), Torn},
	} {
		for _, parts := range []bool{false, true} {
			l := NewLedger()
			if parts {
				l.AllowParts()
			}
			l.Begin("a", first).Acknowledge()
			claim := tc.begin(l)
			found, want := Found{true, tc.content}, tc.want
			if !parts {
				want = Torn
			}
			if v, text := l.Judge("a", found); v != want {
				t.Errorf("%s, parts %v: %d (%s), want %d", tc.name, parts, v, text, want)
			}
			if want == Right {
				l.Settle("a", found)
				if image, _ := l.Current("a"); !image.Is(tc.content) {
					t.Errorf("%s: settled on another content", tc.name)
				}
				continue
			}
			claim.Acknowledge()
			if v, _ := l.Judge("a", found); v != Torn {
				t.Errorf("%s, parts %v, acknowledged: %d", tc.name, parts, v)
			}
		}
	}
	l := NewLedger()
	l.AllowParts()
	l.Begin("a", first).Acknowledge()
	l.Begin("b", NewImage(Stamp{"b", 1}, size)).Acknowledge()
	l.BeginRename("b", "a")
	if v, _ := l.Judge("a", Found{true, NewImage(Stamp{"b", 1}, size).Bytes()[:500]}); v != Torn {
		t.Errorf("a part of a renamed file: %d", v)
	}
}

func TestUnclosed(t *testing.T) {
	l := NewLedger()
	image := NewImage(l.Next("a"), 10)
	c := l.Begin("a", image)
	open := func(want int) {
		t.Helper()
		if n := len(l.Unclosed()); n != want {
			t.Errorf("%d files are unclosed, want %d", n, want)
		}
	}
	open(0)
	c.Written()
	open(1)
	c.Closing()
	open(0)
	c.Acknowledge()
	if n, bytes := l.Acknowledged(); n != 1 || bytes != 10 {
		t.Errorf("%d operations of %d bytes", n, bytes)
	}
}

func TestImage(t *testing.T) {
	a, b := Stamp{"a", 1}, Stamp{"b", 2}
	m := NewImage(a, 300).Patch(b, 50, 100)
	whole, over := NewImage(a, 300).Bytes(), NewImage(b, 300).Bytes()
	copy(whole[50:150], over[50:150])
	if !m.Is(whole) {
		t.Error("a patch is not where it belongs")
	}
	if m := m.Cut(120); m.Size() != 120 || !m.Is(whole[:120]) {
		t.Error("a cut image is not a prefix")
	}
	if m := m.Patch(b, 300, 20); m.Size() != 320 || string(m.Bytes()[:300]) != string(whole) {
		t.Error("an append changes what was there")
	}
	text := Describe(append(append([]byte{}, NewImage(a, 64).Bytes()...), make([]byte, 64)...), "a", "b")
	if !strings.Contains(text, "[0, 64) a version 1") || !strings.Contains(text, "[64, 128) zeros") {
		t.Error(text)
	}
}
