package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContentTypesValue(t *testing.T) {
	file := filepath.Join(t.TempDir(), "types")
	if err := os.WriteFile(file, []byte("# comment\n\ntext/x-one  one TWO # and more\napplication/none\nimage/x-three\tthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v contentTypesValue
	for _, s := range []string{"@" + file, ".Parquet=application/x-p", ".two=text/two; charset=utf-8", ".three="} {
		if err := v.Set(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	want := contentTypesValue{".one": "text/x-one", ".two": "text/two; charset=utf-8", ".three": "", ".parquet": "application/x-p"}
	if !maps.Equal(v, want) {
		t.Errorf("%v, want %v", v, want)
	}
	if err := os.WriteFile(file, []byte("text/x-one one\nnothing two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for s, part := range map[string]string{
		"": "such as", "json": "such as", "json=text/x": "dot", ".=text/x": "dot", ".a/b=text/x": "slash", ".a=text": "content type",
		".a=/": "content type", ".a=text/ü": "content type", ".a= text/x": "content type", "@" + file: "line 2", "@/nowhere": "no such file",
	} {
		if err := v.Set(s); err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", s, err)
		}
	}
}
