package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the table of flags into README.md")

// The table of flags in README.md says what --help says. After a change: go test ./cmd/blobmount -run Readme -update
func TestReadmeHasTheFlags(t *testing.T) {
	const file = "../../README.md"
	const begin, end = "<!-- flags: generated from blobmount --help -->\n", "<!-- end of flags -->\n"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks %q and %q", file, begin, end)
	}
	want := flagTable()
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("the table of flags in README.md differs from --help: run go test ./cmd/blobmount -run Readme -update")
	}
	if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// flagTable returns the flags as a Markdown table, in the order of the help.
func flagTable() string {
	var c Config
	flags := newFlags(&c, 1000, 1000)
	var b strings.Builder
	b.WriteString("\n| Flag | Meaning | Default |\n|---|---|---|\n")
	for _, s := range sections {
		for _, name := range s.flags {
			f := flags.Lookup(name)
			value, text := pflag.UnquoteUsage(f)
			def := f.DefValue
			if strings.Contains(text, "(default: ") || def == "false" {
				def = ""
			}
			if def != "" {
				def = "`" + def + "`"
			}
			spelled := "--" + name
			if f.Shorthand != "" {
				spelled = "-" + f.Shorthand + ", " + spelled
			}
			switch {
			case f.NoOptDefVal != "" && value != "":
				spelled += "[=" + value + "]"
			case value != "":
				spelled += " " + value
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", spelled, strings.ReplaceAll(text, "|", `\|`), def)
		}
	}
	return b.String() + "\n"
}
