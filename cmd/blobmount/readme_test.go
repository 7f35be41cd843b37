package main

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"blobmount/integration/readme"
)

var update = flag.Bool("update", false, "write the table of flags into README.md")

// The table of flags in README.md says what --help says. After a change: go test ./cmd/blobmount -run Readme -update
func TestReadmeHasTheFlags(t *testing.T) {
	const file = "../../README.md"
	const begin, end = "<!-- flags: generated from blobmount --help -->\n", "<!-- end of flags -->\n"
	readme.Keep(t, file, begin, end, flagTable(), "go test ./cmd/blobmount -run Readme -update", *update)
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
