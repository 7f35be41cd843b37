package fs

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"blobmount/blobcache/blob"
)

// toldNames returns the blobs that lines of a log name.
func toldNames(log string) (names []string) {
	for line := range strings.Lines(log) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "blob="); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What cannot be shown is named in the log, each name once however often it is listed, and counted.
func TestOddNames(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Hour} {
		var out bytes.Buffer
		k := newKernelWith(t, func(o *Options) {
			o.Timeout, o.Log = timeout, slog.New(slog.NewTextHandler(&out, nil))
		})
		for _, name := range []string{
			"good", "dir/good", "marked/", "a//b", "dir//x", "dir/./x", "dir/../x", "dir/" + strings.Repeat("n", 256), "dir/sub/" + strings.Repeat("n", 400) + "/x",
			"both", "both/file", "dir/both", "dir/both/file",
		} {
			k.put(name, "x")
		}
		k.mkdir(fuse.FUSE_ROOT_ID, "made") // a marker
		for range 2 {
			for _, path := range []string{"", "dir", "dir/sub", "a"} {
				if _, err := k.fs.names.List(t.Context(), path, true); err != nil {
					t.Fatal(err)
				}
			}
			dir := k.lookup(fuse.FUSE_ROOT_ID, "dir")
			k.lookup(dir, "both")
			k.lookup(fuse.FUSE_ROOT_ID, "both")
		}
		want := []string{
			"a//", "dir/../", "dir/./", "dir//", "dir/" + strings.Repeat("n", 256),
			("dir/sub/" + strings.Repeat("n", 400))[:maxToldBytes] + "...", "both", "dir/both",
		}
		slices.Sort(want)
		if got := toldNames(out.String()); !slices.Equal(got, want) {
			t.Errorf("timeout %v: the log names\n%s\nwant\n%s", timeout, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if s := k.fs.report(); s.Shadowed != 2 || s.Hidden != 6 {
			t.Errorf("timeout %v: the status says %d hidden, %d shadowed", timeout, s.Hidden, s.Shadowed)
		}
	}
}

// A container of nothing but such names does not fill the log.
func TestOddNamesAreBounded(t *testing.T) {
	var out bytes.Buffer
	o := newOdd(slog.New(slog.NewTextHandler(&out, nil)))
	w := watched{nil, o}
	for i := range 3 * maxToldLines {
		w.look(fmt.Sprintf("a%d//x", i), 0)
		w.look(fmt.Sprintf("a/%d", i), 0)
		o.shadows(fmt.Sprint(i))
	}
	if got := strings.Count(out.String(), "\n"); got != 2*maxToldLines+2 {
		t.Errorf("%d lines", got)
	}
	if n := o.countShadowed(); n != 3*maxToldLines {
		t.Errorf("%d are counted", n)
	}
}

var _ blob.Container = watched{}
