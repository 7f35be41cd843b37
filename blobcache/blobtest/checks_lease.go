package blobtest

import (
	"strings"
	"time"

	"blobmount/blobcache/blob"
)

// leasedWrites are the calls that a lease keeps others from, each on the blob "x".
var leasedWrites = []struct {
	op    string
	kind  blob.Kind
	write func(p *probe, c blob.Container) error
}{
	{"Upload", blob.BlockBlob, func(p *probe, c blob.Container) error {
		_, err := c.Upload(p.ctx, "x", strings.NewReader("new"), 3, blob.WriteOptions{})
		return err
	}},
	{"StageBlock", blob.BlockBlob, func(p *probe, c blob.Container) error {
		return c.StageBlock(p.ctx, "x", "1", strings.NewReader("new"), 3)
	}},
	{"StageBlockFrom", blob.BlockBlob, func(p *probe, c blob.Container) error {
		return c.StageBlockFrom(p.ctx, "x", "1", blob.Range{Name: "source", Size: 1})
	}},
	{"CommitBlockList", blob.BlockBlob, func(p *probe, c blob.Container) error {
		_, err := c.CommitBlockList(p.ctx, "x", nil, blob.WriteOptions{})
		return err
	}},
	{"AppendBlock", blob.AppendBlob, func(p *probe, c blob.Container) error {
		_, err := p.append(c, "x", "new", 0, blob.Condition{})
		return err
	}},
	{"Copy", blob.BlockBlob, func(p *probe, c blob.Container) error {
		_, err := c.Copy(p.ctx, "x", "source", blob.CopyOptions{})
		return err
	}},
	{"SetMetadata", blob.BlockBlob, func(p *probe, c blob.Container) error {
		_, err := c.SetMetadata(p.ctx, "x", nil, blob.Condition{})
		return err
	}},
	{"Delete", blob.BlockBlob, func(p *probe, c blob.Container) error {
		return c.Delete(p.ctx, "x", blob.Condition{})
	}},
}

// lease takes a lease that must be free.
func (p *probe) lease(name string) {
	p.ok(p.c.AcquireLease(p.ctx, name, blob.MinLease), "AcquireLease %q", name)
}

// otherWrites says whether another host may write the blob.
func (p *probe) otherWrites() error {
	_, err := p.other.SetMetadata(p.ctx, "x", nil, blob.Condition{})
	return err
}

// leaseChecks are the rules of "Lease Blob", for two hosts.
func leaseChecks() []Check {
	var all []Check
	for _, w := range leasedWrites {
		// contract: the holder's calls carry the id by themselves, those of others fail with Leased.
		all = append(all, check("Lease/"+w.op, func(p *probe) {
			p.put("source", "s", blob.WriteOptions{})
			before := p.put("x", "", blob.WriteOptions{Kind: w.kind})
			p.lease("x")
			p.equal(p.props("x").ETag, before.ETag, "ETag after AcquireLease")
			p.fails(w.write(p, p.other), "%s of another host", w.op).with(blob.Leased)
			p.equal(p.props("x").ETag, before.ETag, "ETag after a refused %s", w.op)
			p.ok(w.write(p, p.c), "%s of the holder", w.op)
			if w.op == "Delete" {
				return
			}
			// It stays with the name.
			p.fails(w.write(p, p.other), "%s of another host after one of the holder", w.op).with(blob.Leased)
		}))
	}
	return append(all,
		// contract: one holder at a time; what is held already is held anew; reads do not mind.
		check("Lease/Acquire", func(p *probe) {
			p.fails(p.c.AcquireLease(p.ctx, "x", blob.MinLease), "AcquireLease of a missing blob").with(blob.NotFound)
			p.put("x", "content", blob.WriteOptions{})
			for _, d := range []time.Duration{0, blob.MinLease - time.Second, blob.MinLease + time.Millisecond, blob.MaxLease + time.Second} {
				if err := p.c.AcquireLease(p.ctx, "x", d); err == nil {
					p.failf("AcquireLease for %v succeeded", d)
				}
			}
			p.ok(p.otherWrites(), "SetMetadata of another host without a lease")
			p.ok(p.c.AcquireLease(p.ctx, "x", blob.MaxLease), "AcquireLease")
			p.lease("x")
			p.ok(p.c.RenewLease(p.ctx, "x"), "RenewLease")
			p.fails(p.other.AcquireLease(p.ctx, "x", blob.MinLease), "AcquireLease of another host").with(blob.Leased)
			p.fails(p.other.RenewLease(p.ctx, "x"), "RenewLease of another host").with(blob.Leased)
			p.fails(p.other.ReleaseLease(p.ctx, "x"), "ReleaseLease of another host").with(blob.Leased)
			_, err := p.other.ReadAt(p.ctx, "x", 0, 1, blob.Condition{})
			p.ok(err, "ReadAt of another host")
			p.put("y", "content", blob.WriteOptions{})
			_, err = p.other.SetMetadata(p.ctx, "y", nil, blob.Condition{})
			p.ok(err, "SetMetadata of another blob")
		}),
		// contract: after ReleaseLease others need not wait, and requests carry no id.
		check("Lease/Release", func(p *probe) {
			p.put("x", "content", blob.WriteOptions{})
			p.lease("x")
			p.ok(p.c.ReleaseLease(p.ctx, "x"), "ReleaseLease")
			p.ok(p.otherWrites(), "SetMetadata of another host after ReleaseLease")
			p.put("x", "again", blob.WriteOptions{})
			p.fails(p.c.ReleaseLease(p.ctx, "x"), "ReleaseLease of no lease").with(blob.Leased)
			p.fails(p.c.RenewLease(p.ctx, "x"), "RenewLease of no lease").with(blob.Leased)
			p.ok(p.other.AcquireLease(p.ctx, "x", blob.MinLease), "AcquireLease of another host")
			_, err := p.upload("x", "again", blob.WriteOptions{})
			p.fails(err, "Upload of the one who released").with(blob.Leased)
		}),
		// contract: a successful Delete ends the lease; who writes the name then needs none.
		check("Lease/EndsWithBlob", func(p *probe) {
			p.put("x", "content", blob.WriteOptions{})
			p.lease("x")
			p.ok(p.c.Delete(p.ctx, "x", blob.Condition{}), "Delete")
			p.put("x", "new", blob.WriteOptions{})
			p.ok(p.otherWrites(), "SetMetadata of another host")
		}),
		// contract: when the time is over others may write, and the holder's writes fail until it says that it knows.
		timed("Lease/Expires", func(p *probe) {
			p.put("x", "content", blob.WriteOptions{})
			p.lease("x")
			p.advance(blob.MinLease - time.Second)
			p.fails(p.otherWrites(), "SetMetadata of another host a second before the end").with(blob.Leased)
			p.ok(p.c.RenewLease(p.ctx, "x"), "RenewLease")
			p.advance(blob.MinLease - time.Second)
			p.fails(p.otherWrites(), "SetMetadata of another host after RenewLease").with(blob.Leased)
			p.advance(time.Second)
			_, err := p.upload("x", "mine", blob.WriteOptions{})
			p.fails(err, "Upload under a lease that is over").with(blob.Leased)
			p.ok(p.otherWrites(), "SetMetadata of another host after the end")
			p.fails(p.c.RenewLease(p.ctx, "x"), "RenewLease after the blob was changed").with(blob.Leased)
			_, err = p.upload("x", "mine", blob.WriteOptions{})
			p.fails(err, "Upload under a lease that is lost").with(blob.Leased)
			p.lease("x")
			p.put("x", "mine", blob.WriteOptions{})
			p.advance(blob.MinLease)
			p.ok(p.other.AcquireLease(p.ctx, "x", blob.MinLease), "AcquireLease of another host after the end")
			p.fails(p.c.ReleaseLease(p.ctx, "x"), "ReleaseLease of a lease that somebody else has").with(blob.Leased)
			p.ok(p.other.ReleaseLease(p.ctx, "x"), "ReleaseLease of the other host")
			p.put("x", "mine", blob.WriteOptions{})
		}),
		// contract: a lease that is over can be renewed while nobody changed or leased the blob.
		timed("Lease/RenewedAfterItsEnd", func(p *probe) {
			p.put("x", "content", blob.WriteOptions{})
			p.lease("x")
			p.advance(blob.MaxLease)
			p.ok(p.c.RenewLease(p.ctx, "x"), "RenewLease")
			p.fails(p.otherWrites(), "SetMetadata of another host").with(blob.Leased)
			p.put("x", "mine", blob.WriteOptions{})
		}),
	)
}
