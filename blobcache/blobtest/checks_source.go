package blobtest

import (
	"blobmount/blobcache/blob"
)

// sourceChecks are the rules of "Put Block From URL".
func sourceChecks() []Check {
	const digits = "0123456789"
	from := func(p *probe, name, id string, src blob.Range) {
		p.ok(p.c.StageBlockFrom(p.ctx, name, id, src), "StageBlockFrom %+v", src)
	}
	return []Check{
		// contract: the block is exactly the range, uncommitted, and mixes with those of StageBlock.
		check("StageBlockFrom/Range", func(p *probe) {
			src := p.put("dir/s %&", digits, blob.WriteOptions{})
			from(p, "dst", "1", blob.Range{Name: "dir/s %&", Offset: 2, Size: 3})
			p.stage("dst", "2", "<>")
			from(p, "dst", "3", blob.Range{Name: "dir/s %&", Offset: 9, Size: 1, Condition: blob.Condition{IfMatch: src.ETag}})
			p.absent("dst")
			p.equal(p.blocks("dst").Uncommitted, []blob.Block{{ID: "1", Size: 3}, {ID: "2", Size: 2}, {ID: "3", Size: 1}}, "uncommitted blocks")
			p.commit("dst", blob.WriteOptions{}, "3", "2", "1")
			p.holds("dst", "9<>234")
			p.holds("dir/s %&", digits)
		}),
		// A blob that is written anew takes what did not change from the version that it replaces, across its blocks.
		check("StageBlockFrom/ItsOwnBlob", func(p *probe) {
			p.stage("x", "1", "01234")
			p.stage("x", "2", "56789")
			old := p.commit("x", blob.WriteOptions{}, "1", "2")
			from(p, "x", "a", blob.Range{Name: "x", Offset: 3, Size: 4, Condition: blob.Condition{IfMatch: old.ETag}})
			p.holds("x", digits)
			p.stage("x", "b", "!")
			p.commit("x", blob.WriteOptions{Condition: blob.Condition{IfMatch: old.ETag}}, "b", "a")
			p.holds("x", "!3456")
		}),
		// The block is a copy: what becomes of the source later does not matter.
		check("StageBlockFrom/OutlivesSource", func(p *probe) {
			p.put("src", digits, blob.WriteOptions{})
			from(p, "dst", "1", blob.Range{Name: "src", Size: 10})
			p.put("src", "other", blob.WriteOptions{})
			p.ok(p.c.Delete(p.ctx, "src", blob.Condition{}), "Delete")
			p.commit("dst", blob.WriteOptions{}, "1")
			p.holds("dst", digits)
		}),
		// contract: NotFound, and ConditionNotMet, are about the source.
		check("StageBlockFrom/Condition", func(p *probe) {
			first := p.put("src", digits, blob.WriteOptions{})
			second := p.put("src", digits, blob.WriteOptions{})
			part := blob.Range{Name: "src", Size: 4, Condition: blob.Condition{IfMatch: first.ETag}}
			p.fails(p.c.StageBlockFrom(p.ctx, "dst", "1", part), "StageBlockFrom of an old version").with(blob.ConditionNotMet)
			part.Condition = blob.Condition{IfNoneMatch: second.ETag}
			p.fails(p.c.StageBlockFrom(p.ctx, "dst", "1", part), "StageBlockFrom of the excluded version").with(blob.ConditionNotMet)
			part = blob.Range{Name: "none", Size: 4}
			p.fails(p.c.StageBlockFrom(p.ctx, "dst", "1", part), "StageBlockFrom of a missing blob").with(blob.NotFound)
			_, err := p.c.BlockList(p.ctx, "dst")
			p.fails(err, "BlockList after nothing was staged").with(blob.NotFound)
		}),
		// contract: a range that does not begin inside the source fails.
		check("StageBlockFrom/OutsideRange", func(p *probe) {
			p.put("src", digits, blob.WriteOptions{})
			for _, part := range []blob.Range{{Offset: 10, Size: 1}, {Offset: 1 << 40, Size: 5}, {Offset: -1, Size: 2}, {Offset: 3}} {
				part.Name = "src"
				p.fails(p.c.StageBlockFrom(p.ctx, "dst", "1", part), "StageBlockFrom %+v", part).with(blob.InvalidRange)
			}
		}),
		// contract: what StageBlock says of ids.
		check("StageBlockFrom/IDLength", func(p *probe) {
			p.put("src", digits, blob.WriteOptions{})
			p.stage("dst", "22", "x")
			err := p.c.StageBlockFrom(p.ctx, "dst", "333", blob.Range{Name: "src", Size: 1})
			p.fails(err, "StageBlockFrom with an id of another length").with(blob.BlockIDLength)
			from(p, "dst", "22", blob.Range{Name: "src", Offset: 7, Size: 1})
			p.commit("dst", blob.WriteOptions{}, "22")
			p.holds("dst", "7")
		}),
	}
}
