package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// room says what a directory's packages may import beside the standard library. A path allows what lies below it,
// but a path of this module allows one package only.
type room struct {
	imports  []string
	anything bool // tests, and what is made for them
	environ  bool // may read environment variables
}

const (
	azcore     = "github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azblob     = "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	azidentity = "github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	pkcs12     = "software.sslmate.com/src/go-pkcs12"
)

// rooms is the law of imports, see ARCHITECTURE.md. Only the packages of one room know each outside thing, so that an
// upgrade of it touches one directory: go-fuse in fs, azblob in blobcache/azure, azidentity in auth, pflag in
// cmd/blobmount, YAML in cmd/source. Of go-fuse only package fuse: errors that its package fs does not know become ENOSYS.
var rooms = map[string]room{
	"cmd/blobmount": {environ: true, imports: []string{
		"blobmount/auth", "blobmount/blobcache", "blobmount/blobcache/azure", "blobmount/blobcache/blob", "blobmount/cmd/source", "blobmount/fs",
		"github.com/spf13/pflag", "golang.org/x/sys/unix"}},
	"cmd/source":         {imports: []string{"blobmount/auth", "blobmount/blobcache/blob", "go.yaml.in/yaml/v3"}},
	"auth":               {environ: true, imports: []string{azcore, azidentity, pkcs12, "github.com/fsnotify/fsnotify"}},
	"fs":                 {imports: []string{"blobmount/blobcache", "blobmount/blobcache/blob", "github.com/hanwen/go-fuse/v2/fuse", "golang.org/x/sys/unix"}},
	"blobcache":          {imports: []string{"blobmount/blobcache/blob", "github.com/minio/crc64nvme", "golang.org/x/sys/unix"}},
	"blobcache/blob":     {},
	"blobcache/azure":    {imports: []string{"blobmount/blobcache/blob", azcore, azblob, "github.com/minio/crc64nvme"}},
	"blobcache/blobtest": {imports: []string{"blobmount/blobcache/blob", "github.com/minio/crc64nvme", "github.com/tidwall/btree"}},
	"integration":        {anything: true},
}

// environment are the functions of the standard library that read environment variables.
var environment = []string{
	"os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv", "os.UserHomeDir", "os.UserCacheDir", "os.UserConfigDir",
	"os.TempDir", "http.ProxyFromEnvironment", "syscall.Getenv", "syscall.Environ", "unix.Getenv", "unix.Environ",
}

// The code keeps the law. Tests may import what they need.
func TestImports(t *testing.T) {
	found, files := violations(t, os.DirFS(".."))
	for _, v := range found {
		t.Error(v)
	}
	if files < 50 {
		t.Errorf("only %d files were looked at", files)
	}
}

// The law has teeth: each of these is found, and nothing else is.
func TestImportsAreChecked(t *testing.T) {
	source := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	tree := fstest.MapFS{
		"fs/up.go":               source(`package fs; import _ "blobmount/cmd/blobmount"`),
		"fs/deep.go":             source(`package fs; import _ "blobmount/blobcache/azure"`),
		"fs/nodes.go":            source(`package fs; import _ "github.com/hanwen/go-fuse/v2/fs"`),
		"fs/similar.go":          source(`package fs; import _ "github.com/hanwen/go-fuse/v2/fuseutil"`),
		"fs/good.go":             source(`package fs; import _ "github.com/hanwen/go-fuse/v2/fuse/pathfs"`),
		"fs/up_test.go":          source(`package fs; import _ "blobmount/integration/blobserver"`),
		"blobcache/environ.go":   source(`package blobcache; import sys "os"; var x = sys.Getenv("X")`),
		"blobcache/blob/big.go":  source(`package blob; import _ "golang.org/x/sys/unix"`),
		"auth/environ.go":        source(`package auth; import "os"; var x = os.Getenv("X")`),
		"integration/x/any.go":   source(`package x; import _ "blobmount/fs"`),
		"blobcache/newroom/x.go": source(`package newroom`),
	}
	found, _ := violations(t, tree)
	want := []string{"fs/up.go", "fs/deep.go", "fs/nodes.go", "fs/similar.go", "blobcache/environ.go", "blobcache/blob/big.go", "blobcache/newroom/x.go"}
	var in []string
	for _, v := range found {
		file, _, _ := strings.Cut(v, ":")
		in = append(in, file)
	}
	slices.Sort(in)
	slices.Sort(want)
	if !slices.Equal(in, want) {
		t.Errorf("found in %q, want %q:\n%s", in, want, strings.Join(found, "\n"))
	}
}

// violations returns a line for each breach, and how many files it looked at.
func violations(t *testing.T, root fs.FS) (found []string, files int) {
	t.Helper()
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if base := path.Base(name); base == "node_modules" || base == "testdata" || base != "." && strings.HasPrefix(base, ".") {
				return fs.SkipDir
			}
			// The mount of make demo is not ours to walk through.
			if name == "demo" {
				return fs.SkipDir
			}
			return nil
		case path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		files++
		breaches, err := check(name, text)
		found = append(found, breaches...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, files
}

// check returns the breaches of one file.
func check(name string, text []byte) (found []string, err error) {
	dir := path.Dir(name)
	r, ok := rooms[dir]
	if top, _, below := strings.Cut(dir, "/"); !ok && below {
		r, ok = rooms[top]
		ok = ok && r.anything
	}
	if !ok {
		return []string{name + ": the directory is not in the law of imports; say there what it may import"}, nil
	}
	if r.anything {
		return nil, nil
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	packages := map[string]string{} // name in the file: last part of the path
	for _, i := range file.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return nil, err
		}
		packages[path.Base(p)] = path.Base(p)
		if i.Name != nil {
			packages[i.Name.Name] = path.Base(p)
		}
		if !r.allows(p) {
			found = append(found, fmt.Sprintf("%s: imports %s, which %s may not", name, p, dir))
		}
	}
	if r.environ {
		return found, nil
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok {
				if called := packages[x.Name] + "." + s.Sel.Name; slices.Contains(environment, called) {
					found = append(found, fmt.Sprintf("%s: uses %s; the environment is read in cmd and auth", name, called))
				}
			}
		}
		return true
	})
	return found, nil
}

// allows reports whether a package may be imported.
func (r room) allows(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	if first != "blobmount" && !strings.Contains(first, ".") {
		return true // standard library
	}
	return slices.ContainsFunc(r.imports, func(a string) bool {
		return p == a || first != "blobmount" && strings.HasPrefix(p, a+"/")
	})
}
