package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the texts for readers.
var documents = []string{"README.md", "SEMANTICS.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "integration/POSIX.md"}

// Each test that a document names is there: a promise must not go on naming a proof that was removed.
func TestDocumentsNameTests(t *testing.T) {
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	walkTests(t, func(text string) {
		for _, m := range declared.FindAllStringSubmatch(text, -1) {
			tests[m[1]] = true
		}
	})
	for _, s := range scenarios {
		tests["Mount/"+s.name] = true
	}
	named := regexp.MustCompile(`\b(Test[A-Z]\w+|Mount/[A-Z]\w+)`)
	proofs := 0
	for _, name := range documents {
		for _, test := range named.FindAllString(read(t, name), -1) {
			if test == "Mount/X" { // the one that explains the form
				continue
			}
			proofs++
			if !tests[test] {
				t.Errorf("%s names %s, which does not exist", name, test)
			}
		}
	}
	if proofs < 40 {
		t.Errorf("only %d names were found", proofs)
	}
}

// Each scenario proves a promise.
func TestScenariosAreNamed(t *testing.T) {
	semantics := read(t, "SEMANTICS.md")
	for _, s := range scenarios {
		if !regexp.MustCompile(`Mount/` + s.name + `\b`).MatchString(semantics) {
			t.Errorf("SEMANTICS.md does not say what scenario %s proves", s.name)
		}
	}
}

// Links between the documents, and to directories and files, lead somewhere.
func TestDocumentsLink(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, name := range documents {
		for _, m := range link.FindAllStringSubmatch(read(t, name), -1) {
			if _, err := os.Stat(filepath.Join("..", filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// walkTests calls do with the text of each test file.
func walkTests(t *testing.T, do func(text string)) {
	t.Helper()
	files := 0
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("walk: %w", err)
		case d.IsDir() && (d.Name() == "node_modules" || name == "demo" || name != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(root, name)
		files++
		do(string(text))
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d test files, %v", files, err)
	}
}
