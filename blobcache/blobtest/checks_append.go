package blobtest

import (
	"blobmount/blobcache/blob"
)

// appendChecks are the rules of "Append Block", and of append blobs in "Put Blob".
func appendChecks() []Check {
	log := blob.WriteOptions{Kind: blob.AppendBlob}
	return []Check{
		// contract: at the position, and nowhere else; each makes a version.
		check("AppendBlock/Position", func(p *probe) {
			created := p.put("log", "", log)
			one, err := p.append(p.c, "log", "one,", 0, blob.Condition{})
			p.ok(err, "AppendBlock to an empty blob")
			two, err := p.append(p.c, "log", "two", 4, blob.Condition{})
			p.ok(err, "AppendBlock at the end")
			if created.ETag == one.ETag || one.ETag == two.ETag {
				p.failf("ETags %s, %s and %s: each write makes a version", created.ETag, one.ETag, two.ETag)
			}
			for _, at := range []int64{0, 4, 8} {
				_, err := p.append(p.c, "log", "x", at, blob.Condition{})
				p.fails(err, "AppendBlock at %d of 7", at).with(blob.ConditionNotMet)
			}
			p.holds("log", "one,two")
			got := p.props("log")
			p.equal(got.ETag, two.ETag, "ETag")
			p.equal(got.Kind, blob.AppendBlob, "kind")
		}),
		// contract: and only if the condition holds.
		check("AppendBlock/Condition", func(p *probe) {
			old := p.put("log", "", log)
			w, err := p.append(p.c, "log", "a", 0, blob.Condition{IfMatch: old.ETag})
			p.ok(err, "AppendBlock to the current version")
			_, err = p.append(p.c, "log", "b", 1, blob.Condition{IfMatch: old.ETag})
			p.fails(err, "AppendBlock to an old version").with(blob.ConditionNotMet)
			_, err = p.append(p.c, "log", "b", 1, blob.Condition{IfMatch: w.ETag})
			p.ok(err, "AppendBlock to the current version")
			p.holds("log", "ab")
		}),
		// contract: NotFound without a blob, Unsupported for another kind; and an append blob does not take blocks.
		check("AppendBlock/Kind", func(p *probe) {
			_, err := p.append(p.c, "none", "x", 0, blob.Condition{})
			p.fails(err, "AppendBlock without a blob").with(blob.NotFound)
			p.put("block", "x", blob.WriteOptions{})
			_, err = p.append(p.c, "block", "y", 1, blob.Condition{})
			p.fails(err, "AppendBlock to a block blob").with(blob.Unsupported)
			p.holds("block", "x")
			p.put("log", "", log)
			p.fails(p.tryStage("log", "1", "x"), "StageBlock of an append blob").with(blob.Unsupported)
		}),
		// "Append Block": a block needs a byte at least; contract: and a position.
		check("AppendBlock/Nothing", func(p *probe) {
			p.put("log", "", log)
			if _, err := p.append(p.c, "log", "", 0, blob.Condition{}); err == nil {
				p.failf("AppendBlock of nothing succeeded")
			}
			if _, err := p.append(p.c, "log", "x", -1, blob.Condition{}); err == nil {
				p.failf("AppendBlock at -1 succeeded")
			}
			p.equal(p.props("log").Size, int64(0), "size")
		}),
		// contract, WriteOptions.Kind: append blobs begin empty, and replace others as others replace them.
		check("Upload/Kind", func(p *probe) {
			w := p.put("x", "content", blob.WriteOptions{})
			o := blob.WriteOptions{
				Kind: blob.AppendBlob, Condition: blob.Condition{IfMatch: w.ETag},
				Metadata: map[string]string{"a": "1"}, Headers: blob.Headers{ContentType: "text/x-log"},
			}
			w = p.put("x", "", o)
			got := p.props("x")
			p.equal(got.Kind, blob.AppendBlob, "kind")
			p.equal(got.ETag, w.ETag, "ETag")
			p.equal(got.Size, int64(0), "size")
			p.equal(got.Headers.ContentType, "text/x-log", "content type")
			p.metadataIs(got.Metadata, o.Metadata, "metadata")
			_, err := p.upload("x", "", blob.WriteOptions{Kind: blob.AppendBlob, Condition: blob.Condition{IfNoneMatch: blob.Any}})
			p.fails(err, "Upload of an append blob over a blob").with(blob.Exists)
			p.put("x", "block", blob.WriteOptions{})
			p.equal(p.props("x").Kind, blob.BlockBlob, "kind")
			for _, o := range []blob.WriteOptions{log, {Kind: blob.PageBlob}} {
				_, err := p.upload("x", "content", o)
				p.fails(err, "Upload of content as kind %d", o.Kind).with(blob.Unsupported)
				_, err = p.c.CommitBlockList(p.ctx, "x", nil, o)
				p.fails(err, "CommitBlockList of kind %d", o.Kind).with(blob.Unsupported)
			}
			p.holds("x", "block")
		}),
	}
}
