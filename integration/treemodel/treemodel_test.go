package treemodel

import (
	"fmt"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newTree is a directory of the local file system.
func newTree(t *testing.T) *Tree {
	t.Helper()
	root, err := os.MkdirTemp(t.TempDir(), "tree")
	must(t, err)
	s := &Tree{Root: root}
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func umask() uint32 {
	old := syscall.Umask(0)
	syscall.Umask(old)
	return uint32(old)
}

// random makes n random operations on a system.
func random(s System, seed uint64, n int) error {
	g := &Generator{Random: rand.New(rand.NewPCG(seed, 7)), Remounts: true}
	r := &Runner{System: s, Model: NewModel(umask())}
	for range n {
		if err := r.Step(g.Next(r.Model)); err != nil {
			return err
		}
	}
	return r.Finish()
}

// The model says what the local file system does.
func TestModelIsPOSIX(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the model is that of root")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for i := range uint64(10) {
		if err := random(newTree(t), seed+i, 1000); err != nil {
			t.Fatalf("seed %d: %v", seed+i, err)
		}
	}
}

// broken is a file system that is wrong on purpose.
type broken struct {
	*Tree
	do      func(t *Tree, o Op) (Result, error)
	list    func([]Entry) []Entry
	content func([]byte) []byte
}

func (b broken) Do(o Op) (Result, error) {
	if b.do != nil {
		return b.do(b.Tree, o)
	}
	return b.Tree.Do(o)
}

func (b broken) List(path string, wanted func(string) bool) ([]Entry, error) {
	e, err := b.Tree.List(path, wanted)
	if b.list != nil {
		e = b.list(e)
	}
	return e, err
}

func (b broken) Content(path string) ([]byte, error) {
	c, err := b.Tree.Content(path)
	if b.content != nil {
		c = b.content(c)
	}
	return c, err
}

// A file system that is wrong in any of these ways is found, by a sequence that is short after it was shrunk and still
// fails then.
func TestFindsBrokenFileSystems(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the model is that of root")
	}
	forgets := func(what Kind, when func(Op) bool) func(*Tree, Op) (Result, error) {
		return func(s *Tree, o Op) (Result, error) {
			if o.Do == what && when(o) {
				if _, err := os.Lstat(s.path(o.Path)); err == nil {
					return Result{}, nil // says that it did it
				}
			}
			return s.Do(o)
		}
	}
	always := func(Op) bool { return true }
	each := func(f func(*Entry)) broken {
		return broken{list: func(e []Entry) []Entry {
			for i := range e {
				f(&e[i])
			}
			return e
		}}
	}
	cases := map[string]broken{
		"chmod is forgotten":           {do: forgets(Chmod, always)},
		"unlink is forgotten":          {do: forgets(Unlink, always)},
		"truncation to 0 is forgotten": {do: forgets(Truncate, func(o Op) bool { return o.Size == 0 })},
		"a rename leaves the source": {do: func(s *Tree, o Op) (Result, error) {
			r, err := s.Do(o)
			if o.Do == Rename && r.Errno == 0 && err == nil {
				if info, err := os.Lstat(s.path(o.To)); err == nil && info.Mode().IsRegular() {
					_ = os.Link(s.path(o.To), s.path(o.Path))
				}
			}
			return r, err
		}},
		"a rename of a directory with files loses them": {do: func(s *Tree, o Op) (Result, error) {
			if info, err := os.Lstat(s.path(o.Path)); o.Do == Rename && err == nil && info.IsDir() {
				r, err := s.Do(o)
				if r.Errno == 0 && err == nil && o.To != o.Path {
					files, _ := filepath.Glob(s.path(o.To) + "/*")
					for _, f := range files {
						_ = os.Remove(f)
					}
				}
				return r, err
			}
			return s.Do(o)
		}},
		"rmdir of a full directory says EEXIST": {do: func(s *Tree, o Op) (Result, error) {
			r, err := s.Do(o)
			if o.Do == Rmdir && r.Errno == syscall.ENOTEMPTY {
				r.Errno = syscall.EEXIST
			}
			return r, err
		}},
		"RENAME_NOREPLACE is ignored": {do: func(s *Tree, o Op) (Result, error) {
			if o.Do == Rename {
				o.Exclusive = false
			}
			return s.Do(o)
		}},
		"writes of a handle are lost at a remount": {do: func(s *Tree, o Op) (Result, error) {
			if o.Do == Remount {
				for _, h := range s.handles {
					if h != nil {
						_ = h.Truncate(0)
					}
				}
			}
			return s.Do(o)
		}},
		"the fifth name of a listing is missing": {list: func(e []Entry) []Entry {
			if len(e) > 4 {
				e = append(e[:4:4], e[5:]...)
			}
			return e
		}},
		"links are listed as files": each(func(e *Entry) {
			if e.Kind == "link" {
				e.Kind = "file"
			}
		}),
		"a time is lost": each(func(e *Entry) { e.Attr.Time++ }),
		"links are cut":  each(func(e *Entry) { e.Attr.Target = strings.TrimSuffix(e.Attr.Target, "/b") }),
		"a byte of a large file is wrong": {content: func(b []byte) []byte {
			if len(b) > 66000 {
				b[66000] ^= 1
			}
			return b
		}},
	}
	const most = 6 // operations that show any of them
	for name, b := range cases {
		t.Run(name, func(t *testing.T) {
			fresh := func() System {
				b.Tree = newTree(t)
				return b
			}
			var failure *Failure
			for seed := uint64(0); failure == nil; seed++ {
				if seed == 20 {
					t.Fatal("it is not found")
				}
				err := random(fresh(), seed, 1000)
				if f, ok := err.(*Failure); ok {
					failure = f
				} else {
					must(t, err)
				}
			}
			fails := func(ops []Op) bool { return Replay(fresh(), NewModel(umask()), ops) != nil }
			ops := Shrink(failure.Ops, time.Now().Add(time.Minute), fails)
			if len(ops) > most {
				t.Errorf("%d operations are left, want at most %d: %#v", len(ops), most, ops)
			}
			if err := Replay(fresh(), NewModel(umask()), ops); err == nil {
				t.Error("what is left does not fail")
			} else {
				t.Log(err)
			}
			if err := Replay(newTree(t), NewModel(umask()), ops); err != nil {
				t.Errorf("what is left fails on a good file system too: %v", err)
			}
		})
	}
}

// What another host does is a tree, and directories that only imply each other vanish with their last blob.
func TestForeign(t *testing.T) {
	m := NewModel(0)
	steps := []struct {
		op   Op
		done bool
		want string // names in the root
	}{
		{Op{Do: ForeignPut, Path: "a/b/c", Size: 1}, true, "a"},
		{Op{Do: ForeignPut, Path: "a/b"}, false, "a"},
		{Op{Do: ForeignPut, Path: "a/b/c/d"}, false, "a"},
		{Op{Do: ForeignDelete, Path: "a/b"}, false, "a"},
		{Op{Do: ForeignDelete, Path: "a/x"}, false, "a"},
		{Op{Do: ForeignDelete, Path: "a/b/c"}, true, ""},
		{Op{Do: ForeignPut, Path: "a/b/c"}, true, "a"},
		{Op{Do: Open, Path: "a/b/c"}, true, "a"},
		{Op{Do: ForeignDelete, Path: "a/b/c"}, false, "a"},
		{Op{Do: CloseHandle}, true, "a"},
		{Op{Do: CloseHandle}, false, "a"},
		{Op{Do: Chmod, Path: "a", Mode: 0o700}, true, "a"},
		{Op{Do: ForeignDelete, Path: "a/b/c"}, true, "a"},
		{Op{Do: Rmdir, Path: "a"}, true, ""},
		{Op{Do: ForeignPut, Path: "x/y"}, true, "x"},
		{Op{Do: Unlink, Path: "x/y"}, true, "x"},
	}
	for _, s := range steps {
		if _, done := m.Apply(s.op); done != s.done {
			t.Errorf("%#v: done is %v, want %v", s.op, done, s.done)
		}
		if got := strings.Join(m.root.names(), " "); got != s.want {
			t.Errorf("after %#v the root has %q, want %q", s.op, got, s.want)
		}
	}
}

// A printed test case is Go.
func TestTestCase(t *testing.T) {
	g := &Generator{Random: rand.New(rand.NewPCG(1, 1)), Foreign: true, Remounts: true}
	m := NewModel(0)
	var ops []Op
	seen := map[Kind]bool{}
	for len(seen) < int(kinds) {
		o := g.Next(m)
		m.Apply(o)
		ops = append(ops, o)
		seen[o.Do] = true
	}
	text := TestCase("TestX", "replay(t, ", ops)
	if _, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\n"+text, 0); err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
	if want := fmt.Sprintf("%#v", Op{Do: Rename, Path: "a\n", To: "b", Exclusive: true}); want != `{Do: treemodel.Rename, Path: "a\n", To: "b", Exclusive: true}` {
		t.Error(want)
	}
}
