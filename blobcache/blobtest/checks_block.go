package blobtest

import (
	"fmt"
	"strings"

	"blobmount/blobcache/blob"
)

// blockChecks are the rules of "Put Block", "Put Block List" and "Get Block List".
func blockChecks() []Check {
	return []Check{
		// contract: the blob consists of exactly the named blocks, in the order of the list, not of staging.
		check("CommitBlockList/Order", func(p *probe) {
			for _, id := range []string{"c", "a", "d", "b"} {
				p.stage("x", id, "<"+id+">")
			}
			w := p.commit("x", blob.WriteOptions{}, "d", "a", "c", "b")
			p.holds("x", "<d><a><c><b>")
			l := p.blocks("x")
			p.equal(l.ETag, w.ETag, "ETag of the block list")
			p.equal(l.Committed, []blob.Block{{ID: "d", Size: 3}, {ID: "a", Size: 3}, {ID: "c", Size: 3}, {ID: "b", Size: 3}}, "committed blocks")
			p.equal(len(l.Uncommitted), 0, "number of uncommitted blocks")
		}),
		// contract: staged blocks are not visible before the commit, neither as a blob nor in a listing.
		check("StageBlock/Invisible", func(p *probe) {
			p.stage("new", "1", "x")
			p.absent("new")
			_, _, err := p.readAt("new", 0, 1, blob.Condition{})
			p.fails(err, "ReadAt of a blob that was not committed").with(blob.NotFound)
			page, _ := p.list(blob.ListOptions{})
			p.equal(len(page.Blobs), 0, "blobs listed")
			l := p.blocks("new")
			p.equal(l.Uncommitted, []blob.Block{{ID: "1", Size: 1}}, "uncommitted blocks")
			p.equal(len(l.Committed), 0, "number of committed blocks")
			p.equal(l.ETag, blob.ETag(""), "ETag before the first commit")

			old := p.put("old", "content", blob.WriteOptions{})
			p.stage("old", "1", "x")
			p.holds("old", "content")
			p.equal(p.props("old").ETag, old.ETag, "ETag after StageBlock")
		}),
		// "Put Block": a block staged again under its id replaces the one before.
		check("StageBlock/Replaces", func(p *probe) {
			p.stage("x", "1", "old")
			p.stage("x", "1", "newer")
			p.commit("x", blob.WriteOptions{}, "1")
			p.holds("x", "newer")
		}),
		fileBodyCheck(),
		// contract: ids are raw, any bytes, up to 64 of them.
		check("StageBlock/IDs", func(p *probe) {
			for _, id := range []string{"\x00\xff\xfe/+=", "a&b<c>", strings.Repeat("i", 64)} {
				p.stage("x", id, "content")
				p.commit("x", blob.WriteOptions{}, id)
				p.equal(p.blocks("x").Committed, []blob.Block{{ID: id, Size: 7}}, "committed blocks")
				p.holds("x", "content")
			}
		}),
		// contract, BlockIDLength: uncommitted ids have one length, another is refused; until the blocks are discarded.
		// Those of committed blocks do not matter ("Put Block", remarks).
		check("StageBlock/IDLength", func(p *probe) {
			p.stage("x", "22", "x")
			p.fails(p.tryStage("x", "333", "y"), "StageBlock with an id of another length").with(blob.BlockIDLength)
			p.equal(p.blocks("x").Uncommitted, []blob.Block{{ID: "22", Size: 1}}, "uncommitted blocks")
			p.commit("x", blob.WriteOptions{}, "22")
			p.stage("x", "333", "y")
			p.commit("x", blob.WriteOptions{}, "22", "333")
			p.holds("x", "xy")
		}),
		// contract: each id is looked for among the committed blocks too, so that unchanged blocks are not sent
		// again; the uncommitted one wins.
		check("CommitBlockList/Reuse", func(p *probe) {
			p.stage("x", "1", "one")
			p.stage("x", "2", "two")
			p.stage("x", "3", "three")
			p.commit("x", blob.WriteOptions{}, "1", "2", "3")
			p.stage("x", "2", "TWO")
			p.commit("x", blob.WriteOptions{}, "1", "2", "3")
			p.holds("x", "oneTWOthree")
			p.commit("x", blob.WriteOptions{}, "3", "1", "2")
			p.holds("x", "threeoneTWO")
		}),
		// contract: committed blocks that are not named are gone, in content and in the list.
		check("CommitBlockList/LeftOut", func(p *probe) {
			p.stage("x", "1", "one")
			p.stage("x", "2", "two")
			p.commit("x", blob.WriteOptions{}, "1", "2")
			p.commit("x", blob.WriteOptions{}, "2")
			p.holds("x", "two")
			p.equal(p.blocks("x").Committed, []blob.Block{{ID: "2", Size: 3}}, "committed blocks")
			_, err := p.c.CommitBlockList(p.ctx, "x", []string{"1", "2"}, blob.WriteOptions{})
			p.fails(err, "CommitBlockList with a block that was left out before").with(blob.InvalidBlockList)
			p.holds("x", "two")
		}),
		// contract: uncommitted blocks that a commit leaves out are discarded ("Put Block List", remarks).
		check("CommitBlockList/Discards", func(p *probe) {
			p.stage("x", "1", "one")
			p.stage("x", "2", "two")
			p.commit("x", blob.WriteOptions{}, "1")
			p.equal(len(p.blocks("x").Uncommitted), 0, "number of uncommitted blocks after a commit")
			_, err := p.c.CommitBlockList(p.ctx, "x", []string{"1", "2"}, blob.WriteOptions{})
			p.fails(err, "CommitBlockList with a discarded block").with(blob.InvalidBlockList)
			p.holds("x", "one")
		}),
		// contract: and so does an Upload of the same name ("Put Blob", remarks).
		check("Upload/Discards", func(p *probe) {
			p.stage("x", "1", "one")
			p.put("x", "whole", blob.WriteOptions{})
			p.equal(len(p.blocks("x").Uncommitted), 0, "number of uncommitted blocks after Upload")
			_, err := p.c.CommitBlockList(p.ctx, "x", []string{"1"}, blob.WriteOptions{})
			p.fails(err, "CommitBlockList with a discarded block").with(blob.InvalidBlockList)
			p.holds("x", "whole")
		}),
		// contract: blocks of one name have nothing to do with those of another.
		check("StageBlock/PerName", func(p *probe) {
			p.stage("x", "1", "of x")
			p.stage("y", "1", "of y")
			p.stage("x/y", "1", "of x/y")
			p.commit("x", blob.WriteOptions{}, "1")
			p.put("x/y", "whole", blob.WriteOptions{})
			p.equal(p.blocks("y").Uncommitted, []blob.Block{{ID: "1", Size: 4}}, "uncommitted blocks of the other name")
			p.commit("y", blob.WriteOptions{}, "1")
			p.holds("x", "of x")
			p.holds("y", "of y")
		}),
		// contract: an id that is in neither list fails with InvalidBlockList; nothing is changed or discarded.
		check("CommitBlockList/UnknownID", func(p *probe) {
			_, err := p.c.CommitBlockList(p.ctx, "new", []string{"1"}, blob.WriteOptions{})
			p.fails(err, "CommitBlockList of a block that was never staged").with(blob.InvalidBlockList)
			p.absent("new")
			old := p.put("x", "content", blob.WriteOptions{})
			p.stage("x", "1", "one")
			_, err = p.c.CommitBlockList(p.ctx, "x", []string{"1", "2"}, blob.WriteOptions{})
			p.fails(err, "CommitBlockList of a block that was never staged").with(blob.InvalidBlockList)
			p.holds("x", "content")
			p.equal(p.props("x").ETag, old.ETag, "ETag after a refused commit")
			p.commit("x", blob.WriteOptions{}, "1")
			p.holds("x", "one")
		}),
		// contract: a condition that is not met changes and discards nothing, so that the writer can try again.
		check("CommitBlockList/RefusedKeepsBlocks", func(p *probe) {
			old := p.put("x", "old", blob.WriteOptions{})
			p.put("x", "base", blob.WriteOptions{})
			p.stage("x", "1", "one")
			_, err := p.c.CommitBlockList(p.ctx, "x", []string{"1"}, blob.WriteOptions{Condition: blob.Condition{IfMatch: old.ETag}})
			p.fails(err, "CommitBlockList over an old version").with(blob.ConditionNotMet)
			p.holds("x", "base")
			p.equal(p.blocks("x").Uncommitted, []blob.Block{{ID: "1", Size: 3}}, "uncommitted blocks after a refused commit")
			p.commit("x", blob.WriteOptions{}, "1")
			p.holds("x", "one")
		}),
		// contract: a blob written by Upload has no committed blocks, whatever it had before.
		check("Upload/NoBlocks", func(p *probe) {
			p.stage("x", "1", "one")
			p.commit("x", blob.WriteOptions{}, "1")
			w := p.put("x", "whole", blob.WriteOptions{})
			l := p.blocks("x")
			p.equal(len(l.Committed), 0, "number of committed blocks")
			p.equal(l.ETag, w.ETag, "ETag of the block list")
			_, err := p.c.CommitBlockList(p.ctx, "x", []string{"1"}, blob.WriteOptions{})
			p.fails(err, "CommitBlockList with a block that Upload replaced").with(blob.InvalidBlockList)
		}),
		// "Put Block List": an empty list makes an empty blob.
		check("CommitBlockList/Empty", func(p *probe) {
			p.commit("x", blob.WriteOptions{Metadata: map[string]string{"k": "v"}})
			got := p.props("x")
			p.equal(got.Size, int64(0), "size")
			p.metadataIs(got.Metadata, map[string]string{"k": "v"}, "metadata")
		}),
		// "Get Block List": BlobNotFound.
		check("BlockList/Missing", func(p *probe) {
			_, err := p.c.BlockList(p.ctx, "x")
			p.fails(err, "BlockList of a missing blob").with(blob.NotFound)
		}),
		// contract: a range crosses blocks of different sizes without a seam.
		check("CommitBlockList/RangesCrossBlocks", func(p *probe) {
			var want strings.Builder
			var ids []string
			for i := range 20 {
				id := fmt.Sprintf("%04d", i)
				body := pattern(1000 + 37*i)[i:]
				p.stage("x", id, body)
				ids = append(ids, id)
				want.WriteString(body)
			}
			p.commit("x", blob.WriteOptions{}, ids...)
			p.holds("x", want.String())
			for at := 0; at < want.Len(); at += 777 {
				got, _, err := p.readAt("x", int64(at), 3000, blob.Condition{})
				p.ok(err, "ReadAt %d", at)
				if got != want.String()[at:min(at+3000, want.Len())] {
					p.failf("ReadAt %d+3000: wrong bytes", at)
				}
			}
		}),
	}
}

// copyChecks are the rules of "Copy Blob" and "Copy Blob From URL".
func copyChecks() []Check {
	return []Check{
		// contract: content, headers, metadata and block list come along; the copy is a version of its own.
		check("Copy/All", func(p *probe) {
			o := blob.WriteOptions{
				Headers:  blob.Headers{ContentType: "text/x-test", CacheControl: "no-cache"},
				Metadata: map[string]string{"mode": "0100755"},
			}
			p.stage("src", "1", "one")
			p.stage("src", "2", "two")
			from := p.commit("src", o, "1", "2")
			w, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{})
			p.ok(err, "Copy")
			if w.ETag == from.ETag {
				p.failf("the copy has the ETag of its source")
			}
			got := p.props("dst")
			p.equal(got.ETag, w.ETag, "ETag")
			p.equal(got.Headers.ContentType, "text/x-test", "content type")
			p.equal(got.Headers.CacheControl, "no-cache", "cache control")
			p.metadataIs(got.Metadata, o.Metadata, "metadata")
			p.holds("dst", "onetwo")
			p.holds("src", "onetwo")
			p.equal(p.props("src").ETag, from.ETag, "ETag of the source")
		}),
		// "Get Blob Properties", x-ms-copy-source: a copy names its source, until its content is replaced.
		check("Copy/Source", func(p *probe) {
			const src, dst = "dir/a b%?ü", "dir/copy"
			p.put(src, "x", blob.WriteOptions{})
			p.equal(p.props(src).CopiedFrom, "", "source of what is no copy")
			_, err := p.c.Copy(p.ctx, dst, src, blob.CopyOptions{})
			p.ok(err, "Copy")
			p.equal(p.props(dst).CopiedFrom, src, "source of the copy")
			_, err = p.c.SetMetadata(p.ctx, dst, map[string]string{"a": "1"}, blob.Condition{})
			p.ok(err, "SetMetadata")
			p.equal(p.props(dst).CopiedFrom, src, "source of the copy with other metadata")
			p.put(dst, "y", blob.WriteOptions{})
			p.equal(p.props(dst).CopiedFrom, "", "source of what was a copy")
		}),
		// contract: the block list comes along, so a copy can be changed block by block.
		check("Copy/BlockList", func(p *probe) {
			p.stage("src", "1", "one")
			p.stage("src", "2", "two")
			p.commit("src", blob.WriteOptions{}, "1", "2")
			_, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{})
			p.ok(err, "Copy")
			p.equal(p.blocks("dst").Committed, []blob.Block{{ID: "1", Size: 3}, {ID: "2", Size: 3}}, "committed blocks of the copy")
			p.stage("dst", "2", "TWO")
			p.commit("dst", blob.WriteOptions{}, "1", "2")
			p.holds("dst", "oneTWO")
			p.holds("src", "onetwo")
		}),
		// contract, CopyOptions: metadata replaces the source's when it is not nil.
		check("Copy/Metadata", func(p *probe) {
			p.put("src", "x", blob.WriteOptions{Metadata: map[string]string{"a": "1", "b": "2"}})
			_, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{Metadata: map[string]string{"b": "3"}})
			p.ok(err, "Copy")
			p.metadataIs(p.props("dst").Metadata, map[string]string{"b": "3"}, "metadata of the copy")
			p.metadataIs(p.props("src").Metadata, map[string]string{"a": "1", "b": "2"}, "metadata of the source")
		}),
		// contract: over a blob, everything of it is replaced.
		check("Copy/Overwrites", func(p *probe) {
			p.put("src", "new", blob.WriteOptions{})
			p.put("dst", "old and longer", blob.WriteOptions{Metadata: map[string]string{"old": "1"}})
			_, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{})
			p.ok(err, "Copy")
			p.holds("dst", "new")
			p.metadataIs(p.props("dst").Metadata, nil, "metadata")
		}),
		// contract: an empty blob, and one larger than a buffer, are complete when Copy returns.
		check("Copy/Sizes", func(p *probe) {
			p.put("empty", "", blob.WriteOptions{})
			_, err := p.c.Copy(p.ctx, "empty2", "empty", blob.CopyOptions{})
			p.ok(err, "Copy of an empty blob")
			p.equal(p.props("empty2").Size, int64(0), "size")
			body := pattern(5<<20 + 1)
			p.put("large", body, blob.WriteOptions{})
			_, err = p.c.Copy(p.ctx, "large2", "large", blob.CopyOptions{})
			p.ok(err, "Copy of 5 MiB")
			p.holds("large2", body)
		}),
		// "Copy Blob": BlobNotFound when the source is not there; the destination stays.
		check("Copy/SourceMissing", func(p *probe) {
			p.put("dst", "old", blob.WriteOptions{})
			_, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{})
			p.fails(err, "Copy of a missing blob").with(blob.NotFound)
			p.holds("dst", "old")
		}),
		// contract, CopyOptions.Source: the condition on the source.
		check("Copy/SourceConditions", func(p *probe) {
			first := p.put("src", "first", blob.WriteOptions{})
			second := p.put("src", "second", blob.WriteOptions{})
			_, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{Source: blob.Condition{IfMatch: first.ETag}})
			p.fails(err, "Copy of an old version").with(blob.ConditionNotMet)
			p.absent("dst")
			_, err = p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{Source: blob.Condition{IfNoneMatch: second.ETag}})
			p.fails(err, "Copy of the excluded version").with(blob.ConditionNotMet)
			p.absent("dst")
			_, err = p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{
				Source: blob.Condition{IfMatch: second.ETag}, Condition: blob.Condition{IfNoneMatch: blob.Any},
			})
			p.ok(err, "Copy of the current version to a new name")
			p.holds("dst", "second")
		}),
		// A rename is a copy under both conditions; the destination's own is told apart from the source's by the
		// code Exists.
		check("Copy/BothConditions", func(p *probe) {
			src := p.put("src", "src", blob.WriteOptions{})
			p.put("dst", "dst", blob.WriteOptions{})
			_, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{
				Source: blob.Condition{IfMatch: src.ETag}, Condition: blob.Condition{IfNoneMatch: blob.Any},
			})
			p.fails(err, "Copy over a blob").with(blob.Exists)
			p.holds("dst", "dst")
		}),
	}
}
