package treemodel

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"time"
)

// Failure says how a file system differs from the model.
type Failure struct {
	Ops  []Op // what was done, the last one included
	What string
}

func (f *Failure) Error() string {
	return fmt.Sprintf("after %d operations, the last one %#v: %s", len(f.Ops), f.Ops[len(f.Ops)-1], f.What)
}

// compareAll is after how many operations the whole trees are compared, contents too.
const compareAll = 200

// Runner makes operations on a system and on a model of it.
type Runner struct {
	System System
	Model  *Model
	Done   []Op // all that were made
	// Every says that the attributes of all names in a touched directory are compared after every how manieth operation;
	// after the others only those that the operation named. 0: always.
	Every int
}

// Step makes one operation and compares. What it returns is a *Failure if the system is wrong.
func (r *Runner) Step(o Op) error {
	before := r.touched(o)
	want, ok := r.Model.Apply(o)
	if !ok {
		return nil
	}
	r.Done = append(r.Done, o)
	got, err := r.System.Do(o)
	if err != nil {
		return r.fail("%v", err)
	}
	if !want.allows(got) {
		return r.fail("it answers %v, want %v", got, want)
	}
	for _, p := range slices.Compact(slices.Sorted(slices.Values(append(before, r.touched(o)...)))) {
		if err := r.compare(p, false); err != nil {
			return err
		}
	}
	if len(r.Done)%compareAll == 0 || o.Do == Remount {
		return r.compare("", true)
	}
	return nil
}

// Finish compares the whole trees.
func (r *Runner) Finish() error { return r.compare("", true) }

func (r *Runner) fail(format string, args ...any) error {
	return &Failure{slices.Clone(r.Done), fmt.Sprintf(format, args...)}
}

// touched returns the directories, with the files in them, that an operation may change.
func (r *Runner) touched(o Op) (paths []string) {
	add := func(p string) {
		for ; p != "."; p = path.Dir(p) {
			if n, errno := r.Model.find(p); errno == 0 && n.kind == dir {
				break
			}
		}
		if p == "." {
			p = ""
		}
		paths = append(paths, p)
	}
	if o.Path != "" {
		add(o.Path) // itself, or the first directory above it
		add(path.Dir(o.Path))
	}
	if o.Do == Rename {
		add(o.To)
		add(path.Dir(o.To))
	}
	if n := r.Model.handles[o.Handle]; n != nil {
		if p, ok := r.Model.path(n); ok {
			add(path.Dir(p))
		}
	}
	return paths
}

// compare compares a directory, and with deep all below it, contents too. Not deep, it reads the contents of what the last
// operation named.
func (r *Runner) compare(p string, deep bool) error {
	d, errno := r.Model.find(p)
	if errno != 0 || d.kind != dir {
		return nil // gone in between: its own directory is compared too
	}
	last := r.Done[len(r.Done)-1]
	named := func(name string) bool {
		at, n := path.Join(p, name), d.children[name]
		return at == last.Path || at == last.To || n != nil && n == r.Model.handles[last.Handle]
	}
	all := deep || r.Every == 0 || len(r.Done)%r.Every == 0
	wanted := func(name string) bool { return all || named(name) }
	entries, err := r.System.List(p, wanted)
	if err != nil {
		return r.fail("listing of %q: %v", p, err)
	}
	var got, want []string
	for _, e := range entries {
		got = append(got, e.Kind+" "+e.Name)
	}
	for _, name := range d.names() {
		want = append(want, d.children[name].attr().Kind+" "+name)
	}
	if !slices.Equal(got, want) {
		return r.fail("%q has %q, want %q", p, got, want)
	}
	for _, e := range entries {
		if !wanted(e.Name) {
			continue
		}
		n, at := d.children[e.Name], path.Join(p, e.Name)
		if want := n.attr(); !want.allows(e.Attr) {
			return r.fail("%q is a %v, want a %v", at, e.Attr, want)
		}
		var err error
		switch {
		case n.kind == dir && deep:
			err = r.compare(at, true)
		case n.kind == file && (deep || named(e.Name)):
			err = r.compareContent(at, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) compareContent(p string, n *node) error {
	b, err := r.System.Content(p)
	if err != nil {
		return r.fail("content of %q: %v", p, err)
	}
	if !bytes.Equal(b, n.content) {
		return r.fail("%q has %s, want %s", p, difference(b, n.content), digest(n.content))
	}
	return nil
}

// difference says what content is, and from where on it is wrong.
func difference(got, want []byte) string {
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Sprintf("%s, wrong from byte %d on", digest(got), at)
}

// Replay makes a sequence.
func Replay(s System, m *Model, ops []Op) error {
	r := &Runner{System: s, Model: m}
	for _, o := range ops {
		if err := r.Step(o); err != nil {
			return err
		}
	}
	if len(r.Done) == 0 {
		return nil
	}
	return r.Finish()
}

// Shrink drops operations from a sequence that fails as long as it still fails, until none can be dropped or the time is
// over. fails makes a sequence on something new.
func Shrink(ops []Op, until time.Time, fails func([]Op) bool) []Op {
	for size := len(ops) / 2; size > 0; {
		smaller := false
		for at := 0; at < len(ops) && time.Now().Before(until); {
			left := slices.Concat(ops[:at], ops[min(at+size, len(ops)):])
			if fails(left) {
				ops, smaller = left, true
			} else {
				at += size
			}
		}
		switch {
		case !time.Now().Before(until):
			return ops
		case size > 1:
			size /= 2
		case !smaller:
			return ops
		}
	}
	return ops
}
