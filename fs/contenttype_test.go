package fs

import (
	"mime"
	"strings"
	"testing"
)

func TestContentTypes(t *testing.T) {
	table := NewContentTypes(map[string]string{".parquet": "application/x-mine", ".ome.tif": "image/x-ome", ".txt": ""})
	for name, want := range map[string]string{
		"a.json": "application/json", "A.JSON": "application/json", "dir.csv/file": "", "dir/a.b.png": "image/png", "a.tar.gz": "application/gzip",
		".json": "", "..json": "application/json", ".hidden.json": "application/json", "json": "", "a.": "", "a.unknown": "", "": "", "a/b": "", "a.json.part": "",
		"a.parquet": "application/x-mine", "x.ome.tif": "image/x-ome", "x.tif": "image/tiff", "a.txt": "",
	} {
		if got := table.of(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if got := NewContentTypes(nil).of("a.parquet"); got != "application/vnd.apache.parquet" {
		t.Errorf("another's entry went into the built-in table: %q", got)
	}
}

func TestContentTypeTable(t *testing.T) {
	for end, kind := range contentTypes {
		if end != strings.ToLower(end) || len(end) < 2 || end[0] != '.' {
			t.Errorf("%q can be no end of a name", end)
		}
		if parsed, params, err := mime.ParseMediaType(kind); err != nil || parsed != kind || len(params) != 0 {
			t.Errorf("%s: %q: %v", end, kind, err)
		}
	}
}
