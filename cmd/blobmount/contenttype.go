package main

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// contentTypesValue gives ends of names, such as .json, the content types of new blobs. Each Set adds to it.
type contentTypesValue map[string]string

var _ pflag.Value = (*contentTypesValue)(nil)

// Set takes .END=TYPE, or @FILE.
func (v *contentTypesValue) Set(s string) error {
	if file, ok := strings.CutPrefix(s, "@"); ok {
		return v.read(file)
	}
	end, kind, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("must be the end of a name and a content type, such as .parquet=application/vnd.apache.parquet, or @FILE")
	}
	return v.add(end, kind)
}

func (v *contentTypesValue) add(end, kind string) error {
	if len(end) < 2 || end[0] != '.' || strings.ContainsRune(end, '/') {
		return fmt.Errorf("the end of a name must begin with a dot and have no slash: %q", end)
	}
	if kind != "" {
		major, minor, both := strings.Cut(kind, "/")
		if _, _, err := mime.ParseMediaType(kind); err != nil || !both || major == "" || minor == "" || kind != strings.TrimSpace(kind) {
			return fmt.Errorf("%q is no content type, such as text/csv", kind)
		}
	}
	if *v == nil {
		*v = contentTypesValue{}
	}
	(*v)[strings.ToLower(end)] = kind
	return nil
}

// read takes lines of a type and the ends, without their dots, of names that have it; # begins a comment.
func (v *contentTypesValue) read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("cannot be read: %w", plain(err))
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		for _, end := range words[1:] {
			if err := v.add("."+end, words[0]); err != nil {
				return fmt.Errorf("%s, line %d: %w", file, n, err)
			}
		}
	}
	return nil
}

func (v *contentTypesValue) String() string {
	var words []string
	for _, end := range slices.Sorted(maps.Keys(*v)) {
		words = append(words, end+"="+(*v)[end])
	}
	return strings.Join(words, " ")
}

func (*contentTypesValue) Type() string { return ".END=TYPE" }
