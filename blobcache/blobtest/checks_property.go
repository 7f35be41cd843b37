package blobtest

import (
	"blobmount/blobcache/blob"
)

// propertyChecks are the rules about tags and tiers: "Get Blob Tags", and x-ms-tags, x-ms-access-tier and
// x-ms-access-tier-inferred of the other pages.
func propertyChecks() []Check {
	tags := map[string]string{"project": "blob mount", "a+b": "1/2:3=4_-.", "empty": ""}
	tagsAre := func(p *probe, name string, want map[string]string) {
		got, err := p.c.Tags(p.ctx, name)
		p.ok(err, "Tags %q", name)
		p.equal(got, want, "tags of %q", name)
		p.equal(p.props(name).TagCount, len(want), "TagCount of %q", name)
	}
	return []Check{
		// contract, WriteOptions: tags are written with the content, and what is not set is removed.
		check("Upload/Tags", func(p *probe) {
			p.put("x", "content", blob.WriteOptions{Tags: tags})
			tagsAre(p, "x", tags)
			_, got, err := p.readAt("x", 0, 1, blob.Condition{})
			p.ok(err, "ReadAt")
			p.equal(got.TagCount, 3, "TagCount in the Properties of a body")
			p.put("x", "content", blob.WriteOptions{})
			tagsAre(p, "x", nil)
			p.put("log", "", blob.WriteOptions{Kind: blob.AppendBlob, Tags: map[string]string{"k": "v"}})
			tagsAre(p, "log", map[string]string{"k": "v"})
		}),
		check("CommitBlockList/Tags", func(p *probe) {
			p.stage("x", "1", "one")
			p.commit("x", blob.WriteOptions{Tags: tags}, "1")
			tagsAre(p, "x", tags)
			p.commit("x", blob.WriteOptions{}, "1")
			tagsAre(p, "x", nil)
		}),
		check("List/TagCount", func(p *probe) {
			p.put("none", "x", blob.WriteOptions{})
			p.put("some", "x", blob.WriteOptions{Tags: tags})
			page, _ := p.list(blob.ListOptions{})
			for _, b := range page.Blobs {
				p.equal(b.TagCount, p.props(b.Name).TagCount, "TagCount of %q", b.Name)
			}
		}),
		check("Tags/Missing", func(p *probe) {
			_, err := p.c.Tags(p.ctx, "x")
			p.fails(err, "Tags of a missing blob").with(blob.NotFound)
		}),
		// contract: tags come along, and nothing else stays of what the copy replaces.
		check("Copy/Tags", func(p *probe) {
			p.put("src", "content", blob.WriteOptions{Tags: tags, Metadata: map[string]string{"m": "1"}})
			p.put("dst", "old", blob.WriteOptions{Tags: map[string]string{"old": "1"}})
			w, err := p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{})
			p.ok(err, "Copy")
			tagsAre(p, "dst", tags)
			tagsAre(p, "src", tags)
			p.equal(p.props("dst").ETag, w.ETag, "ETag")
			_, err = p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{Metadata: map[string]string{}})
			p.ok(err, "Copy without metadata")
			p.metadataIs(p.props("dst").Metadata, nil, "metadata")
			tagsAre(p, "dst", tags)
			p.put("src", "content", blob.WriteOptions{})
			_, err = p.c.Copy(p.ctx, "dst", "src", blob.CopyOptions{})
			p.ok(err, "Copy of a blob without tags")
			tagsAre(p, "dst", nil)
		}),
		// contract: a tier that was chosen comes along; one that was not stays a matter of the account.
		check("Copy/Tier", func(p *probe) {
			p.put("cool", "x", blob.WriteOptions{Tier: "Cool"})
			_, err := p.c.Copy(p.ctx, "dst", "cool", blob.CopyOptions{})
			p.ok(err, "Copy")
			got := p.props("dst")
			p.equal(got.Tier, "Cool", "tier of the copy")
			p.equal(got.TierInferred, false, "TierInferred of the copy")
			p.put("any", "x", blob.WriteOptions{})
			_, err = p.c.Copy(p.ctx, "dst", "any", blob.CopyOptions{})
			p.ok(err, "Copy")
			p.equal(p.props("dst").Tier, p.props("any").Tier, "tier of the copy")
			p.equal(p.props("dst").TierInferred, true, "TierInferred of the copy")
		}),
		// contract, Properties.TierInferred, in every answer that has the tier.
		check("Properties/TierInferred", func(p *probe) {
			p.put("any", "x", blob.WriteOptions{})
			p.put("hot", "x", blob.WriteOptions{Tier: "Hot"})
			page, _ := p.list(blob.ListOptions{})
			for i, want := range []bool{true, false} {
				listed := page.Blobs[i]
				p.equal(p.props(listed.Name).TierInferred, want, "TierInferred of %q", listed.Name)
				p.equal(listed.TierInferred, want, "TierInferred of %q in a listing", listed.Name)
				_, read, err := p.readAt(listed.Name, 0, 1, blob.Condition{})
				p.ok(err, "ReadAt %q", listed.Name)
				if read.Tier != "" { // the answer need not have it
					p.equal(read.TierInferred, want, "TierInferred of %q in the Properties of a body", listed.Name)
				}
			}
		}),
		// contract: SetMetadata changes the ETag, and nothing but the metadata.
		check("SetMetadata/KeepsTheRest", func(p *probe) {
			p.put("x", "content", blob.WriteOptions{Tags: tags, Tier: "Cool", Headers: blob.Headers{ContentType: "text/x-test"}})
			_, err := p.c.SetMetadata(p.ctx, "x", map[string]string{"m": "1"}, blob.Condition{})
			p.ok(err, "SetMetadata")
			got := p.props("x")
			p.equal(got.Tier, "Cool", "tier")
			p.equal(got.TierInferred, false, "TierInferred")
			p.equal(got.Headers.ContentType, "text/x-test", "content type")
			tagsAre(p, "x", tags)
			p.holds("x", "content")
		}),
	}
}
