package blobserver

import (
	"bytes"
	"io"
	"testing"

	"blobmount/blobcache/blob"
)

func TestParseSynthetic(t *testing.T) {
	for _, c := range []struct {
		text string
		want Synthetic
	}{
		{"data/train/:20000:25000", Synthetic{Container: "data", Prefix: "train/", Count: 20000, Size: 25000}},
		{"data/:1:0", Synthetic{Container: "data", Count: 1}},
		{"data/a:b/:2:3", Synthetic{Container: "data", Prefix: "a:b/", Count: 2, Size: 3}},
		{"data/:10000x100%10:4096", Synthetic{Container: "data", Count: 100, Size: 4096, Dirs: [maxLevels]int{10000}, Every: 10}},
		{"data/:4x3x2:1", Synthetic{Container: "data", Count: 2, Size: 1, Dirs: [maxLevels]int{4, 3}}},
	} {
		if got, err := ParseSynthetic(c.text); err != nil || got != c.want || got.String() != c.text {
			t.Errorf("%s: %+v, %v", c.text, got, err)
		}
	}
	for _, text := range []string{"", "data", "data/x", "data/x:1", "data:1:1", "data/x:0:1", "data/x:1000001:1", "data/x:1:-1", "data/x:1:1k",
		"data/x:2x:1", "data/x:x2:1", "data/x:0x2:1", "data/x:2%:1", "data/x:2%0:1", "data/x:2%1%1:1", "data/x:1000000x1000:1",
		"data/:1x1x1x1x1x1x1x1x1x1x1x1x1x1:1"} {
		if got, err := ParseSynthetic(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

func TestAddSynthetic(t *testing.T) {
	c := start(t, Options{})
	d := Synthetic{Container: "new", Prefix: "dir/", Count: 3, Size: 10_000}
	if err := c.s.AddSynthetic(d); err != nil {
		t.Fatal(err)
	}
	var read [3][]byte
	for i := range read {
		p, r, err := c.s.Store("new").Get(d.Name(i), 0, 10_000, blob.Condition{})
		if err != nil || p.Size != d.Size {
			t.Fatalf("%d: %+v, %v", i, p, err)
		}
		if read[i], err = io.ReadAll(r.Reader()); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, d.Size)
		SyntheticContent(d.Name(i))(want, 0)
		if !bytes.Equal(read[i], want) {
			t.Errorf("%s has other content", d.Name(i))
		}
	}
	if bytes.Equal(read[0], read[1]) {
		t.Error("two blobs have the same content")
	}
}

// The names are what the set says, in the service's order.
func TestSyntheticNames(t *testing.T) {
	c := start(t, Options{})
	d := Synthetic{Container: "con1", Prefix: "t/", Count: 2, Size: 1, Dirs: [maxLevels]int{2, 3}, Every: 5}
	if err := c.s.AddSynthetic(d); err != nil {
		t.Fatal(err)
	}
	page, err := c.s.Store("con1").List(blob.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Blobs) != 12 || d.Total() != 12 {
		t.Fatalf("%d blobs, %d in all", len(page.Blobs), d.Total())
	}
	for i, want := range map[int]string{
		0: "t/000000/000000/000000", 1: "t/000000/000000/000001", 2: "t/000000/000001/000000", 6: "t/000001/000000/000000",
		11: "t/000001/000002/000001",
	} {
		if d.Name(i) != want || page.Blobs[i].Name != want {
			t.Errorf("%d: %s in the set, %s in the service, want %s", i, d.Name(i), page.Blobs[i].Name, want)
		}
	}
	for i, b := range page.Blobs {
		if marked := b.Metadata["mode"] == "0600" && b.Metadata["mtime"] != ""; marked != (i%5 == 0) {
			t.Errorf("%d has the metadata %v", i, b.Metadata)
		}
	}
}
