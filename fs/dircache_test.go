package fs

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache/blob"
)

// dirPages is the kernel's cache of a directory as fs/fuse/readdir.c keeps it: it adds what continues what it has, by the
// positions, and knows no listings.
type dirPages struct {
	names    []string
	at       uint64 // the position at its end
	complete bool
	dropped  bool // the pages with the beginning are gone
}

// openedDir is a directory that a program has open.
type openedDir struct {
	fh, at uint64
	flags  uint32
	shown  []string
}

// listedDir is a directory, and what a kernel does with it.
type listedDir struct {
	*kernel
	id    uint64
	cache dirPages
}

func (d *listedDir) open() *openedDir {
	d.t.Helper()
	var out fuse.OpenOut
	if s := d.fs.OpenDir(nil, &fuse.OpenIn{InHeader: header(d.id)}, &out); s != fuse.OK {
		d.t.Fatal(s)
	}
	if out.OpenFlags&fuse.FOPEN_KEEP_CACHE == 0 {
		d.cache.dropped = len(d.cache.names) > 0
	}
	return &openedDir{fh: out.Fh, flags: out.OpenFlags}
}

func (d *listedDir) close(o *openedDir) {
	d.fs.ReleaseDir(&fuse.ReleaseIn{InHeader: header(d.id), Fh: o.fh})
}

// read is getdents(2) with room for so many entries. It returns whether that was the end.
func (d *listedDir) read(o *openedDir, count int) (end bool) {
	d.t.Helper()
	c, caches := &d.cache, o.flags&fuse.FOPEN_CACHE_DIR != 0
	if caches && c.complete && c.dropped {
		*c = dirPages{}
	}
	if caches && c.complete && o.at == 0 {
		o.shown = slices.Clone(c.names)
		return true
	}
	list := fuse.NewDirEntryList(make([]byte, 64<<10), o.at)
	in := fuse.ReadIn{InHeader: header(d.id), Fh: o.fh, Offset: o.at}
	if s := d.fs.ReadDir(nil, &in, list); s != fuse.OK {
		d.t.Fatal(s)
	}
	entries, err := fuse.ParseDirEntries(list.Bytes())
	if err != nil {
		d.t.Fatal(err)
	}
	if len(entries) == 0 && caches && c.at == o.at {
		c.complete = true
	}
	for _, e := range entries[:min(count, len(entries))] {
		if caches && !c.complete && c.at == o.at {
			c.names, c.at = append(c.names, e.Name), e.Off
		}
		o.shown, o.at = append(o.shown, e.Name), e.Off
	}
	return len(entries) == 0
}

// whole reads what is left.
func (d *listedDir) whole(o *openedDir) string {
	d.t.Helper()
	for !d.read(o, 100) {
	}
	return strings.Join(o.shown, " ")
}

func newListedDir(t *testing.T) *listedDir {
	k := newKernel(t, -1)
	for i := range 10 {
		k.put(fmt.Sprintf("d/f%d", i), "")
	}
	return &listedDir{kernel: k, id: k.lookup(fuse.FUSE_ROOT_ID, "d")}
}

// replace is what another host does, and lets the next reader see it: one name goes and another comes, before all others.
func (d *listedDir) replace(gone, made string) {
	d.t.Helper()
	if err := d.store.Delete("d/"+gone, blob.Condition{}); err != nil {
		d.t.Fatal(err)
	}
	d.put("d/"+made, "")
	d.fs.names.Forget("d/" + made)
}

// TestDirectoryIsKept: while a directory stays as it is, all who open it use the kernel's cache; when it has changed, and
// somebody uses the cache still, others do without.
func TestDirectoryIsKept(t *testing.T) {
	const keep, cache = fuse.FOPEN_KEEP_CACHE, fuse.FOPEN_CACHE_DIR
	d := newListedDir(t)
	step := func(what string, o *openedDir, want uint32) *openedDir {
		t.Helper()
		if o.flags != want {
			t.Errorf("%s: flags %#x, want %#x", what, o.flags, want)
		}
		return o
	}
	first := step("the first", d.open(), cache)
	all := d.whole(first)
	again := step("beside it", d.open(), cache|keep)
	d.close(step("a third", d.open(), cache|keep))
	d.replace("f5", "a0")
	other := step("after a change, beside others", d.open(), keep)
	if got := d.whole(other); !strings.Contains(got, "a0") || strings.Contains(got, "f5") {
		t.Errorf("shown %q", got)
	}
	d.close(other)
	if got := d.whole(again); got != all {
		t.Errorf("the cache has %q, want %q", got, all)
	}
	d.close(first)
	d.close(again)
	alone := step("after a change, alone", d.open(), cache)
	if got := d.whole(alone); !strings.Contains(got, "a0") || strings.Contains(got, "f5") {
		t.Errorf("shown %q", got)
	}
	d.close(alone)
	last := step("when that has ended", d.open(), cache|keep)
	if got := d.whole(last); !strings.Contains(got, "a0") || strings.Contains(got, "f5") || !d.cache.complete {
		t.Errorf("shown %q", got)
	}
	d.close(last)
}

// TestDirectoryCacheHasOneState lets programs open, read in pieces, rewind and close a directory at random, while another
// host changes it. What the kernel has kept is never made of two states, and what is opened with it is the state of then.
func TestDirectoryCacheHasOneState(t *testing.T) {
	kept := 0
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 0))
		d := newListedDir(t)
		names := []string{}
		for i := range 10 {
			names = append(names, fmt.Sprintf("f%d", i))
		}
		state := func() string { return strings.Join(append([]string{".", ".."}, names...), " ") }
		states := []string{state()}
		var opened []*openedDir
		for step := range 150 {
			i := 0
			if len(opened) > 0 {
				i = random.IntN(len(opened))
			}
			switch what := random.IntN(12); {
			case len(opened) == 0 || what < 3 && len(opened) < 4:
				o := d.open()
				opened = append(opened, o)
				if o.flags&fuse.FOPEN_KEEP_CACHE != 0 && o.flags&fuse.FOPEN_CACHE_DIR != 0 && d.cache.complete && !d.cache.dropped {
					kept++
					if got := strings.Join(d.cache.names, " "); got != state() {
						t.Fatalf("seed %d, step %d: opened with %q, the directory has %q", seed, step, got, state())
					}
				}
			case what < 8:
				d.read(opened[i], 1+random.IntN(14))
			case what == 8:
				opened[i].at, opened[i].shown = 0, nil
			case what < 11:
				d.close(opened[i])
				opened = slices.Delete(opened, i, i+1)
			default:
				gone, made := random.IntN(len(names)), fmt.Sprintf("a%d-%d", random.IntN(10), step)
				d.replace(names[gone], made)
				names = append(slices.Delete(names, gone, gone+1), made)
				slices.Sort(names)
				states = append(states, state())
			}
			if got := strings.Join(d.cache.names, " "); d.cache.complete && !d.cache.dropped && !slices.Contains(states, got) {
				t.Fatalf("seed %d, step %d: the kernel has kept what never was: %q", seed, step, got)
			}
		}
	}
	if kept == 0 {
		t.Error("nothing was ever kept")
	}
}
