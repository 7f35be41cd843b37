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
		{"data/train/:20000:25000", Synthetic{"data", "train/", 20000, 25000}},
		{"data/:1:0", Synthetic{"data", "", 1, 0}},
		{"data/a:b/:2:3", Synthetic{"data", "a:b/", 2, 3}},
	} {
		if got, err := ParseSynthetic(c.text); err != nil || got != c.want || got.String() != c.text {
			t.Errorf("%s: %+v, %v", c.text, got, err)
		}
	}
	for _, text := range []string{"", "data", "data/x", "data/x:1", "data:1:1", "data/x:0:1", "data/x:1000001:1", "data/x:1:-1", "data/x:1:1k"} {
		if got, err := ParseSynthetic(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

func TestAddSynthetic(t *testing.T) {
	c := start(t, Options{})
	d := Synthetic{"new", "dir/", 3, 10_000}
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
