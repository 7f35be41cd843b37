package blobtest

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"io"
	"net/url"
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// pattern returns n bytes in which every position can be told from its neighbours.
func pattern(n int) string {
	b := make([]byte, n)
	Random(1)(b, 0)
	return string(b)
}

// awkwardNames are legal names that some layer between us and the service could spoil: they need escaping in
// URLs, in XML or in neither ("Naming and referencing containers, blobs, and metadata").
var awkwardNames = []string{
	"plain",
	"dir/sub/leaf",
	"two words",
	" leading space",
	"100%",
	"%41", // must not become A
	"%2F",
	"what?",
	"what?comp=list&restype=container",
	"#fragment",
	"a#b/c#d",
	`"double" and 'single'`,
	"a+b",
	"a&b=c;d",
	"<xml> & ]]>",
	"comma,colon:at@dollar$star*paren()bang!tilde~",
	"[brackets]{braces}|pipe^caret`",
	"ünïcödé",
	"日本語/ファイル",
	"e\u0301 is not \u00e9", // combining accent: no normalisation
	"\U0001F600",
	".hidden",
	"..dots..x",
	"a/-/b",
	strings.Repeat("x", 255),
	strings.Repeat("é", 127) + "x/" + strings.Repeat("y", 255),
}

func nameChecks() []Check {
	return []Check{
		// contract: a name is kept exactly as it is. Written, read, copied and listed under the same bytes.
		check("Names/RoundTrip", func(p *probe) {
			for _, name := range awkwardNames {
				p.put(name, "content of "+name, blob.WriteOptions{})
			}
			for _, name := range awkwardNames {
				p.holds(name, "content of "+name)
				p.equal(p.props(name).Name, name, "Properties.Name")
			}
			all, _ := p.list(blob.ListOptions{})
			p.equal(len(all.Blobs), len(awkwardNames), "number of names in the listing")
			listed := map[string]bool{}
			for _, b := range all.Blobs {
				listed[b.Name] = true
			}
			for _, name := range awkwardNames {
				if !listed[name] {
					p.failf("List does not have %q", name)
				}
			}
		}),
		// contract: the same for names as source and destination of a copy, where the source travels in a header.
		check("Names/Copy", func(p *probe) {
			for _, name := range awkwardNames {
				p.put(name, "content of "+name, blob.WriteOptions{})
				_, err := p.c.Copy(p.ctx, "copy", name, blob.CopyOptions{})
				p.ok(err, "Copy from %q", name)
				p.holds("copy", "content of "+name)
				p.ok(p.c.Delete(p.ctx, name, blob.Condition{}), "Delete %q", name)
				_, err = p.c.Copy(p.ctx, name, "copy", blob.CopyOptions{})
				p.ok(err, "Copy to %q", name)
				p.holds(name, "content of "+name)
			}
		}),
		// contract: and for blocks, metadata, prefixes of listings and deletion.
		check("Names/EveryMethod", func(p *probe) {
			for _, name := range awkwardNames {
				p.stage(name, "id", "block")
				p.commit(name, blob.WriteOptions{}, "id")
				p.equal(len(p.blocks(name).Committed), 1, "committed blocks of %q", name)
				_, err := p.c.SetMetadata(p.ctx, name, map[string]string{"k": "v"}, blob.Condition{})
				p.ok(err, "SetMetadata %q", name)
				page, _ := p.list(blob.ListOptions{Prefix: name})
				p.equal(names(page.Blobs), []string{name}, "List with the whole name as prefix")
				p.ok(p.c.Delete(p.ctx, name, blob.Condition{}), "Delete %q", name)
				p.absent(name)
			}
		}),
		// "Naming and referencing containers, blobs, and metadata": up to 1,024 characters (not bytes: é has two).
		check("Names/Longest", func(p *probe) {
			for _, leaf := range []string{"f", "é"} {
				name := strings.Repeat(strings.Repeat("d", 99)+"/", 10) + strings.Repeat(leaf, 24)
				p.put(name, "content", blob.WriteOptions{})
				p.holds(name, "content")
				page, _ := p.list(blob.ListOptions{Prefix: name})
				p.equal(names(page.Blobs), []string{name}, "List with the whole name as prefix")
			}
		}),
		// "Naming and referencing containers, blobs, and metadata" advises against a dot at the end of a segment and
		// against backslashes: the service drops the one and makes slashes of the other. A container keeps such a
		// name or refuses it; it never stores the blob under another.
		check("Names/KeptOrRefused", func(p *probe) {
			for _, name := range []string{"dot.", "dots...", "dir./file", "dir/..x../y.", `back\slash`, "slash/", "double//slash"} {
				_, err := p.upload(name, "content", blob.WriteOptions{})
				if blob.Is(err, blob.InvalidName) {
					page, _ := p.list(blob.ListOptions{})
					p.equal(len(page.Blobs), 0, "blobs after %q was refused", name)
					continue
				}
				p.ok(err, "Upload %q", name)
				p.holds(name, "content")
				page, _ := p.list(blob.ListOptions{Prefix: name})
				p.equal(names(page.Blobs), []string{name}, "List with the whole name as prefix")
				p.ok(p.c.Delete(p.ctx, name, blob.Condition{}), "Delete %q", name)
			}
		}),
		// "Naming and referencing containers, blobs, and metadata": names are case-sensitive.
		check("Names/Case", func(p *probe) {
			p.put("Name", "upper", blob.WriteOptions{})
			p.put("name", "lower", blob.WriteOptions{})
			p.holds("Name", "upper")
			p.holds("name", "lower")
		}),
		// contract: URL gives scheme, host, container and name; without credentials, distinct for distinct names.
		check("URL/Identity", func(p *probe) {
			base := p.c.URL("")
			u, err := url.Parse(base)
			p.ok(err, "URL of the container")
			if u.Scheme == "" || u.Host == "" || u.User != nil || u.RawQuery != "" {
				p.failf("URL of the container is not scheme://host/... without credentials")
			}
			seen := map[string]string{}
			for _, name := range awkwardNames {
				got := p.c.URL(name)
				if !strings.HasPrefix(got, base) {
					p.failf("URL(%q) does not start with that of the container", name)
				}
				u, err := url.Parse(got)
				p.ok(err, "URL of %q", name)
				if u.RawQuery != "" || u.Fragment != "" || !strings.HasSuffix(u.Path, "/"+name) {
					p.failf("URL(%q) = %q does not parse back to the name", name, got)
				}
				if other, twice := seen[got]; twice {
					p.failf("URL is the same for %q and %q", name, other)
				}
				seen[got] = name
				p.equal(p.c.URL(name), got, "URL at the second call")
			}
		}),
	}
}

func writeChecks() []Check {
	sum := md5.Sum([]byte("content"))
	headers := blob.Headers{
		ContentType: "text/x-test", ContentEncoding: "identity", ContentLanguage: "en, fr",
		ContentDisposition: `attachment; filename="a b"`, CacheControl: "max-age=60", ContentMD5: sum[:],
	}
	metadata := map[string]string{"mode": "0100644", "Mixed_Case1": "a value, with = and ; \" %41"}
	answered := map[string]string{"mode": metadata["mode"], "mixed_case1": metadata["Mixed_Case1"]}

	// same demands that all that belongs to a version is as it was written.
	same := func(p *probe, got blob.Properties, w blob.Written, what string) {
		p.equal(got.Headers, headers, "%s: headers", what)
		p.metadataIs(got.Metadata, answered, "%s: metadata", what)
		p.equal(got.ETag, w.ETag, "%s: ETag", what)
		if !got.Modified.Equal(w.Modified) {
			p.failf("%s: modified at %v, but the write said %v", what, got.Modified, w.Modified)
		}
		p.equal(got.Size, int64(len("content")), "%s: size", what)
		p.equal(got.Kind, blob.BlockBlob, "%s: kind", what)
		p.equal(got.Name, "a/b", "%s: name", what)
	}
	return []Check{
		// contract: Properties, ReadAt and List say what Upload was given; metadata names are lower-case.
		check("Upload/RoundTrip", func(p *probe) {
			w := p.put("a/b", "content", blob.WriteOptions{Headers: headers, Metadata: metadata})
			same(p, p.props("a/b"), w, "Properties")
			got, props, err := p.readAt("a/b", 0, 100, blob.Condition{})
			p.ok(err, "ReadAt")
			p.equal(got, "content", "content")
			same(p, props, w, "ReadAt")
			page, _ := p.list(blob.ListOptions{})
			p.equal(len(page.Blobs), 1, "blobs listed")
			same(p, page.Blobs[0], w, "List")
		}),
		// contract: the same for a committed block list.
		check("CommitBlockList/RoundTrip", func(p *probe) {
			p.stage("a/b", "1", "con")
			p.stage("a/b", "2", "tent")
			w := p.commit("a/b", blob.WriteOptions{Headers: headers, Metadata: metadata}, "1", "2")
			same(p, p.props("a/b"), w, "Properties")
			got, props, err := p.readAt("a/b", 0, 100, blob.Condition{})
			p.ok(err, "ReadAt")
			p.equal(got, "content", "content")
			same(p, props, w, "ReadAt")
			page, _ := p.list(blob.ListOptions{})
			p.equal(len(page.Blobs), 1, "blobs listed")
			same(p, page.Blobs[0], w, "List")
		}),
		// "Put Blob": the content type is application/octet-stream when the writer names none.
		check("Upload/DefaultContentType", func(p *probe) {
			p.put("a", "x", blob.WriteOptions{})
			p.equal(p.props("a").Headers.ContentType, "application/octet-stream", "content type")
		}),
		// contract: an ETag is kept as the service sent it, with its quotes; one version, one ETag.
		check("Upload/ETag", func(p *probe) {
			seen := map[blob.ETag]bool{}
			for range 5 {
				w := p.put("a", "the same content", blob.WriteOptions{})
				if len(w.ETag) < 3 || w.ETag[0] != '"' || w.ETag[len(w.ETag)-1] != '"' {
					p.failf("ETag %s has no quotes", w.ETag)
				}
				if seen[w.ETag] {
					p.failf("ETag %s for two versions", w.ETag)
				}
				seen[w.ETag] = true
				p.equal(p.props("a").ETag, w.ETag, "ETag in Properties")
			}
		}),
		// contract: Written.Modified and Properties.Modified are the time of the write.
		check("Upload/Modified", func(p *probe) {
			w := p.put("a", "x", blob.WriteOptions{})
			// A day of tolerance: the clocks are not ours, but a zero or a misread time is far off.
			if d := time.Since(w.Modified).Abs(); d > 24*time.Hour {
				p.failf("modified at %v", w.Modified)
			}
			if got := p.props("a"); got.Created.IsZero() || got.Created.After(got.Modified) {
				p.failf("created at %v, modified at %v", got.Created, got.Modified)
			}
		}),
		// contract, WriteOptions: what is not set is removed by a write that replaces the content.
		check("Upload/ReplaceRemovesTheRest", func(p *probe) {
			p.put("a", "old", blob.WriteOptions{Headers: headers, Metadata: metadata})
			p.put("a", "new", blob.WriteOptions{})
			got := p.props("a")
			p.metadataIs(got.Metadata, nil, "metadata after Upload without")
			p.equal(got.Headers.CacheControl, "", "cache control after Upload without")
			p.equal(got.Headers.ContentType, "application/octet-stream", "content type after Upload without")
			p.holds("a", "new")
			p.put("a", "old", blob.WriteOptions{Headers: headers, Metadata: metadata})
			p.stage("a", "1", "newer")
			p.commit("a", blob.WriteOptions{}, "1")
			got = p.props("a")
			p.metadataIs(got.Metadata, nil, "metadata after CommitBlockList without")
			p.equal(got.Headers.CacheControl, "", "cache control after CommitBlockList without")
			p.equal(got.Headers.ContentMD5, []byte(nil), "MD5 of other content after CommitBlockList without")
			p.holds("a", "newer")
		}),
		// contract: a blob can be empty.
		check("Upload/Empty", func(p *probe) {
			p.put("a", "", blob.WriteOptions{Metadata: map[string]string{"hdi_isfolder": "true"}})
			got := p.props("a")
			p.equal(got.Size, int64(0), "size")
			p.metadataIs(got.Metadata, map[string]string{"hdi_isfolder": "true"}, "metadata")
		}),
		// contract: body is read from its offset 0, wherever it stands.
		check("Upload/FromStart", func(p *probe) {
			r := bytes.NewReader([]byte("0123456789"))
			if _, err := r.Seek(7, io.SeekStart); err != nil {
				p.failf("seek: %w", err)
			}
			_, err := p.c.Upload(p.ctx, "a", r, 10, blob.WriteOptions{})
			p.ok(err, "Upload")
			p.holds("a", "0123456789")
			_, err = r.Seek(3, io.SeekStart)
			p.ok(err, "seek")
			p.ok(p.c.StageBlock(p.ctx, "a", "1", r, 10), "StageBlock")
			p.commit("a", blob.WriteOptions{}, "1")
			p.holds("a", "0123456789")
		}),
		// contract: bytes come back as they were sent, also through many buffers. 5 MiB + 13 is no multiple of any.
		check("Upload/Large", func(p *probe) {
			body := pattern(5<<20 + 13)
			p.put("a", body, blob.WriteOptions{})
			p.holds("a", body)
		}),
		// contract, Properties.Tier, and "Put Blob", x-ms-access-tier.
		check("Upload/Tier", func(p *probe) {
			for _, tier := range []string{"Hot", "Cool"} {
				p.put("a", "x", blob.WriteOptions{Tier: tier})
				p.equal(p.props("a").Tier, tier, "tier in Properties")
				page, _ := p.list(blob.ListOptions{})
				p.equal(page.Blobs[0].Tier, tier, "tier in List")
			}
		}),
		// contract, Archived; "Get Blob": BlobArchived. Properties stay readable.
		check("Upload/Archived", func(p *probe) {
			p.put("a", "x", blob.WriteOptions{Tier: "Archive"})
			p.equal(p.props("a").Tier, "Archive", "tier")
			_, _, err := p.readAt("a", 0, 1, blob.Condition{})
			p.fails(err, "ReadAt of an archived blob").with(blob.Archived)
		}),
		// "Setting and retrieving properties and metadata": names are C# identifiers. A bad one is refused, it is
		// not stored under another name.
		check("Upload/InvalidMetadataName", func(p *probe) {
			_, err := p.upload("a", "x", blob.WriteOptions{Metadata: map[string]string{"no-dash": "v"}})
			if err == nil {
				p.failf("Upload with the metadata name no-dash succeeded")
			}
			p.absent("a")
		}),
		// contract: the metadata changes as a whole, the ETag too, and nothing else.
		check("SetMetadata/Replaces", func(p *probe) {
			p.stage("a/b", "1", "content")
			before := p.commit("a/b", blob.WriteOptions{Headers: headers, Metadata: map[string]string{"old": "1", "k": "2"}}, "1")
			w, err := p.c.SetMetadata(p.ctx, "a/b", metadata, blob.Condition{})
			p.ok(err, "SetMetadata")
			if w.ETag == before.ETag {
				p.failf("SetMetadata left the ETag %s", w.ETag)
			}
			same(p, p.props("a/b"), w, "Properties")
			p.holds("a/b", "content")
			p.equal(p.blocks("a/b").Committed, []blob.Block{{ID: "1", Size: 7}}, "committed blocks")
		}),
		// contract: replacing by nothing removes all.
		check("SetMetadata/Clears", func(p *probe) {
			p.put("a", "x", blob.WriteOptions{Metadata: metadata})
			_, err := p.c.SetMetadata(p.ctx, "a", nil, blob.Condition{})
			p.ok(err, "SetMetadata")
			p.metadataIs(p.props("a").Metadata, nil, "metadata")
		}),
		// "Set Blob Metadata": BlobNotFound.
		check("SetMetadata/Missing", func(p *probe) {
			_, err := p.c.SetMetadata(p.ctx, "a", metadata, blob.Condition{})
			p.fails(err, "SetMetadata of a missing blob").with(blob.NotFound)
			p.absent("a")
		}),
		// contract: Delete deletes; "Delete Blob": BlobNotFound when there is none, also the second time.
		check("Delete/Missing", func(p *probe) {
			p.fails(p.c.Delete(p.ctx, "a", blob.Condition{}), "Delete of a missing blob").with(blob.NotFound)
			p.put("a", "x", blob.WriteOptions{})
			p.put("ab", "y", blob.WriteOptions{})
			p.ok(p.c.Delete(p.ctx, "a", blob.Condition{}), "Delete")
			p.absent("a")
			_, _, err := p.readAt("a", 0, 1, blob.Condition{})
			p.fails(err, "ReadAt of a deleted blob").with(blob.NotFound)
			page, _ := p.list(blob.ListOptions{})
			p.equal(names(page.Blobs), []string{"ab"}, "names after Delete")
			p.fails(p.c.Delete(p.ctx, "a", blob.Condition{}), "Delete of a deleted blob").with(blob.NotFound)
		}),
		// contract, Error: Op is the method, Name the blob; ServiceCode is the service's word.
		check("Error/Fields", func(p *probe) {
			err := p.c.Delete(p.ctx, "a b", blob.Condition{})
			var e *blob.Error
			if !errors.As(err, &e) {
				p.failf("Delete of a missing blob: %v is no *blob.Error", err)
			}
			p.equal(e.Op, "Delete", "Op")
			p.equal(e.Name, "a b", "Name")
			p.equal(e.ServiceCode, "BlobNotFound", "ServiceCode")
			p.equal(e.Status, 404, "Status")
		}),
		// contract: a cancelled or expired context is found by errors.Is, in every method.
		check("Context/Cancelled", func(p *probe) {
			p.put("a", "x", blob.WriteOptions{})
			p.cancelled(context.Canceled, func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(p.ctx)
				cancel()
				return ctx, cancel
			})
			p.cancelled(context.DeadlineExceeded, func() (context.Context, context.CancelFunc) {
				return context.WithDeadline(p.ctx, time.Now().Add(-time.Second))
			})
			p.holds("a", "x")
		}),
		// contract: a stream ends with its context, never early with io.EOF. 16 MiB do not fit in the buffers of a
		// loopback connection (4 MiB each way by default), so the rest cannot have arrived.
		check("Context/CancelledBody", func(p *probe) {
			body := pattern(16 << 20)
			p.put("a", body, blob.WriteOptions{})
			ctx, cancel := context.WithCancel(p.ctx)
			defer cancel()
			b, err := p.c.ReadAt(ctx, "a", 0, int64(len(body)), blob.Condition{})
			p.ok(err, "ReadAt")
			defer b.Close()
			_, err = io.ReadFull(b, make([]byte, 1000))
			p.ok(err, "first 1,000 bytes")
			cancel()
			if _, err = io.Copy(io.Discard, b); !errors.Is(err, context.Canceled) {
				p.failf("body after cancel: got %v, want context.Canceled", err)
			}
		}),
	}
}

// cancelled demands the error from every method that gets a context of the given kind.
func (p *probe) cancelled(want error, made func() (context.Context, context.CancelFunc)) {
	ctx, cancel := made()
	defer cancel()
	body := func() io.ReadSeeker { return bytes.NewReader([]byte("y")) }
	none, write := blob.Condition{}, blob.WriteOptions{}
	calls := map[string]func() error{
		"Properties":      func() error { _, err := p.c.Properties(ctx, "a", none); return err },
		"List":            func() error { _, err := p.c.List(ctx, blob.ListOptions{}); return err },
		"ReadAt":          func() error { _, err := p.c.ReadAt(ctx, "a", 0, 1, none); return err },
		"Upload":          func() error { _, err := p.c.Upload(ctx, "a", body(), 1, write); return err },
		"StageBlock":      func() error { return p.c.StageBlock(ctx, "a", "1", body(), 1) },
		"StageBlockFrom":  func() error { return p.c.StageBlockFrom(ctx, "a", "1", blob.Range{Name: "a", Size: 1}) },
		"AppendBlock":     func() error { _, err := p.c.AppendBlock(ctx, "a", body(), 1, 0, none); return err },
		"Tags":            func() error { _, err := p.c.Tags(ctx, "a"); return err },
		"AcquireLease":    func() error { return p.c.AcquireLease(ctx, "a", blob.MinLease) },
		"RenewLease":      func() error { return p.c.RenewLease(ctx, "a") },
		"ReleaseLease":    func() error { return p.c.ReleaseLease(ctx, "a") },
		"CommitBlockList": func() error { _, err := p.c.CommitBlockList(ctx, "a", nil, write); return err },
		"BlockList":       func() error { _, err := p.c.BlockList(ctx, "a"); return err },
		"Copy":            func() error { _, err := p.c.Copy(ctx, "b", "a", blob.CopyOptions{}); return err },
		"SetMetadata":     func() error { _, err := p.c.SetMetadata(ctx, "a", nil, none); return err },
		"Delete":          func() error { return p.c.Delete(ctx, "a", none) },
	}
	for op, call := range calls {
		if err := call(); !errors.Is(err, want) {
			p.failf("%s: got %v, want %v", op, err, want)
		}
	}
}

func readChecks() []Check {
	const digits = "0123456789"
	return []Check{
		// contract: exactly count bytes from offset, or fewer when the blob ends before ("Get Blob", Range).
		check("ReadAt/Ranges", func(p *probe) {
			p.put("a", digits, blob.WriteOptions{})
			for _, r := range []struct {
				offset, count int64
				want          string
			}{
				{0, 1, "0"}, {9, 1, "9"}, {0, 10, digits}, {3, 4, "3456"}, {5, 5, "56789"},
				{8, 100, "89"}, {9, 2, "9"}, {0, 1 << 40, digits},
			} {
				got, props, err := p.readAt("a", r.offset, r.count, blob.Condition{})
				p.ok(err, "ReadAt %d+%d", r.offset, r.count)
				p.equal(got, r.want, "ReadAt %d+%d", r.offset, r.count)
				p.equal(props.Size, int64(10), "size in the Properties of ReadAt %d+%d", r.offset, r.count)
			}
		}),
		// contract: offset must lie inside the blob, else InvalidRange ("Get Blob": 416).
		check("ReadAt/OutsideRange", func(p *probe) {
			p.put("a", digits, blob.WriteOptions{})
			for _, offset := range []int64{10, 11, 1 << 40} {
				_, _, err := p.readAt("a", offset, 5, blob.Condition{})
				p.fails(err, "ReadAt at %d of 10 bytes", offset).with(blob.InvalidRange)
			}
			p.put("empty", "", blob.WriteOptions{})
			_, _, err := p.readAt("empty", 0, 1, blob.Condition{})
			p.fails(err, "ReadAt of an empty blob").with(blob.InvalidRange)
		}),
		// "Get Blob", "Get Blob Properties": BlobNotFound.
		check("ReadAt/Missing", func(p *probe) {
			_, _, err := p.readAt("a", 0, 1, blob.Condition{})
			p.fails(err, "ReadAt").with(blob.NotFound)
			p.absent("a")
		}),
		// contract: a body can be closed before its end, and the container goes on.
		check("ReadAt/CloseEarly", func(p *probe) {
			body := pattern(2 << 20)
			p.put("a", body, blob.WriteOptions{})
			for range 20 {
				b, err := p.c.ReadAt(p.ctx, "a", 0, int64(len(body)), blob.Condition{})
				p.ok(err, "ReadAt")
				_, err = io.ReadFull(b, make([]byte, 10))
				p.ok(err, "first bytes")
				p.ok(b.Close(), "Close")
			}
			p.holds("a", body)
		}),
		// contract: ranges put together are the content, in any order; 1 MiB + 1 crosses the 1 MiB buffers.
		check("ReadAt/Pieces", func(p *probe) {
			body := pattern(1<<20 + 1)
			p.put("a", body, blob.WriteOptions{})
			const step = 300_007
			for at := int64(len(body)) / step * step; at >= 0; at -= step {
				got, _, err := p.readAt("a", at, step, blob.Condition{})
				p.ok(err, "ReadAt %d", at)
				if got != body[at:min(at+step, int64(len(body)))] {
					p.failf("ReadAt %d+%d: wrong bytes", at, step)
				}
			}
		}),
	}
}
