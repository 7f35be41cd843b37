package blobtest

import (
	"context"
	"testing"

	"blobmount/blobcache/blob"
)

// RenamerChecks returns the rules of blob.Renamer, and what a hierarchical namespace adds to those of blob.Container. The
// comment above each says where the rule is from, as in Checks.
func RenamerChecks() []Check {
	folder := blob.WriteOptions{Metadata: map[string]string{folderKey: "true"}}
	renamer := func(p *probe) blob.Renamer {
		r, ok := p.c.(blob.Renamer)
		if !ok {
			p.failf("the container is no blob.Renamer")
		}
		return r
	}
	none := blob.RenameOptions{}
	return []Check{
		// contract: content and metadata of a file stay, and only the new name is there.
		check("Rename/File", func(p *probe) {
			o := blob.WriteOptions{Metadata: map[string]string{"mode": "0600"}, Headers: blob.Headers{ContentType: "text/x-test"}}
			p.put("a b%?ü", "content", o)
			p.ok(renamer(p).Rename(p.ctx, "c d#ß", "a b%?ü", none), "Rename")
			p.absent("a b%?ü")
			p.holds("c d#ß", "content")
			got := p.props("c d#ß")
			p.metadataIs(got.Metadata, o.Metadata, "metadata")
			p.equal(got.Headers.ContentType, "text/x-test", "content type")
		}),
		// "Path - Create": by default, the destination is overwritten.
		check("Rename/Replaces", func(p *probe) {
			p.put("a", "new", blob.WriteOptions{})
			p.put("b", "old", blob.WriteOptions{})
			p.ok(renamer(p).Rename(p.ctx, "b", "a", none), "Rename")
			p.absent("a")
			p.holds("b", "new")
		}),
		// "Path - Create": to fail if the destination exists, If-None-Match "*".
		check("Rename/Conditions", func(p *probe) {
			first := p.put("a", "1", blob.WriteOptions{})
			second := p.put("a", "2", blob.WriteOptions{})
			p.put("b", "old", blob.WriteOptions{})
			r := renamer(p)
			p.fails(r.Rename(p.ctx, "b", "a", blob.RenameOptions{Condition: blob.Condition{IfNoneMatch: blob.Any}}), "Rename to a name that is taken").with(blob.Exists)
			p.fails(r.Rename(p.ctx, "c", "a", blob.RenameOptions{Source: blob.Condition{IfMatch: first.ETag}}), "Rename of an old version").with(blob.ConditionNotMet)
			p.fails(r.Rename(p.ctx, "b", "a", blob.RenameOptions{Condition: blob.Condition{IfMatch: first.ETag}}), "Rename over another version").with(blob.ConditionNotMet)
			p.fails(r.Rename(p.ctx, "b", "missing", none), "Rename of nothing").with(blob.NotFound)
			p.fails(r.Rename(p.ctx, "no/such/c", "a", none), "Rename into a directory that is not there").with(blob.NotFound)
			p.holds("b", "old")
			o := blob.RenameOptions{Source: blob.Condition{IfMatch: second.ETag}, Condition: blob.Condition{IfNoneMatch: blob.Any}}
			p.ok(r.Rename(p.ctx, "c", "a", o), "Rename")
			p.holds("c", "2")
		}),
		// contract: a directory takes along all that is below it.
		check("Rename/Directory", func(p *probe) {
			p.put("from/x", "1", blob.WriteOptions{})
			p.put("from/sub/y", "2", blob.WriteOptions{})
			p.put("from.z", "beside", blob.WriteOptions{})
			p.put("from/empty", "", folder)
			p.ok(renamer(p).Rename(p.ctx, "to", "from", none), "Rename")
			all, _ := p.list(blob.ListOptions{})
			p.equal(names(all.Blobs), []string{"from.z", "to", "to/empty", "to/sub", "to/sub/y", "to/x"}, "names")
			p.holds("to/sub/y", "2")
		}),
		// contract: a directory replaces an empty one, and nothing else.
		check("Rename/OverDirectory", func(p *probe) {
			p.put("from/x", "1", blob.WriteOptions{})
			p.put("full/x", "2", blob.WriteOptions{})
			p.put("empty", "", folder)
			p.put("file", "3", blob.WriteOptions{})
			r := renamer(p)
			p.fails(r.Rename(p.ctx, "full", "from", none), "Rename over a directory that is not empty").with(blob.NotEmpty)
			p.fails(r.Rename(p.ctx, "file", "from", none), "Rename of a directory over a file").with(blob.Exists)
			p.fails(r.Rename(p.ctx, "empty", "file", none), "Rename of a file over a directory").with(blob.Exists)
			p.ok(r.Rename(p.ctx, "empty", "from", none), "Rename over an empty directory")
			p.holds("empty/x", "1")
			p.absent("from")
		}),
		// "Path - Delete": a directory that is not empty needs recursive=true, which is never sent.
		check("DeleteDirectory/Empty", func(p *probe) {
			p.put("dir/x", "1", blob.WriteOptions{})
			r := renamer(p)
			p.fails(r.DeleteDirectory(p.ctx, "dir"), "DeleteDirectory with a file").with(blob.NotEmpty)
			p.fails(p.c.Delete(p.ctx, "dir", blob.Condition{}), "Delete of a directory").with(blob.Unsupported, blob.NotEmpty)
			p.ok(p.c.Delete(p.ctx, "dir/x", blob.Condition{}), "Delete of the file")
			if got := p.props("dir"); got.Size != 0 || got.Metadata[folderKey] != "true" {
				p.failf("the directory is shown as %+v", got)
			}
			p.ok(r.DeleteDirectory(p.ctx, "dir"), "DeleteDirectory")
			p.absent("dir")
			p.fails(r.DeleteDirectory(p.ctx, "dir"), "DeleteDirectory of nothing").with(blob.NotFound)
		}),
		// contract: listings show directories, as blobs without a delimiter and as prefixes with one.
		check("List/Directories", func(p *probe) {
			p.put("dir/x", "1", blob.WriteOptions{})
			p.put("empty", "", folder)
			all, _ := p.list(blob.ListOptions{})
			p.equal(names(all.Blobs), []string{"dir", "dir/x", "empty"}, "names")
			level, _ := p.list(blob.ListOptions{Delimiter: "/"})
			p.equal(level.Prefixes, []string{"dir/", "empty/"}, "prefixes")
			p.equal(len(level.Blobs), 0, "number of blobs beside them")
		}),
		// contract: a file is renamed by who holds its lease, and by nobody else.
		check("Rename/Lease", func(p *probe) {
			p.put("a", "1", blob.WriteOptions{})
			p.ok(p.c.AcquireLease(p.ctx, "a", blob.MinLease), "AcquireLease")
			other, ok := p.other.(blob.Renamer)
			if !ok {
				p.failf("the other container is no blob.Renamer")
			}
			p.fails(other.Rename(p.ctx, "b", "a", none), "Rename of a leased blob").with(blob.Leased)
			p.ok(renamer(p).Rename(p.ctx, "b", "a", none), "Rename by the holder")
			p.holds("b", "1")
		}),
	}
}

// RenamerConformance runs RenamerChecks as subtests, each on a new subject.
func RenamerConformance(t *testing.T, newSubject func(t *testing.T) Subject) {
	t.Helper()
	for _, check := range RenamerChecks() {
		t.Run(check.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), checkTimeout)
			defer cancel()
			if err := check.Run(ctx, newSubject(t)); err != nil {
				t.Error(err)
			}
		})
	}
}
