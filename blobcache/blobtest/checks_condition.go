package blobtest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"blobmount/blobcache/blob"
)

// writers are the methods that make a version, as functions of a condition. Each leaves its mark as the content.
var writers = []struct {
	op    string
	write func(p *probe, name, mark string, c blob.Condition) (blob.Written, error)
}{
	{"Upload", func(p *probe, name, mark string, c blob.Condition) (blob.Written, error) {
		return p.upload(name, mark, blob.WriteOptions{Condition: c})
	}},
	{"CommitBlockList", func(p *probe, name, mark string, c blob.Condition) (blob.Written, error) {
		p.stage(name, "id", mark)
		return p.c.CommitBlockList(p.ctx, name, []string{"id"}, blob.WriteOptions{Condition: c})
	}},
	{"Copy", func(p *probe, name, mark string, c blob.Condition) (blob.Written, error) {
		p.put("source", mark, blob.WriteOptions{})
		return p.c.Copy(p.ctx, name, "source", blob.CopyOptions{Condition: c})
	}},
}

// conditionChecks are the rules of "Specifying conditional headers for Blob service operations", and of the
// Condition and Code comments of the contract.
func conditionChecks() []Check {
	var all []Check
	for _, w := range writers {
		all = append(all,
			// contract, Any: IfNoneMatch: Any means "must not exist"; Exists: the write was to create a blob.
			check(w.op+"/IfNoneMatchAny", func(p *probe) {
				_, err := w.write(p, "a", "first", blob.Condition{IfNoneMatch: blob.Any})
				p.ok(err, "%s of a new name", w.op)
				p.holds("a", "first")
				_, err = w.write(p, "a", "second", blob.Condition{IfNoneMatch: blob.Any})
				p.fails(err, "%s over a blob", w.op).with(blob.Exists)
				p.holds("a", "first")
			}),
			// contract, ConditionNotMet: the current version is not the one that the request named.
			check(w.op+"/IfMatch", func(p *probe) {
				first := p.put("a", "first", blob.WriteOptions{})
				second, err := w.write(p, "a", "second", blob.Condition{IfMatch: first.ETag})
				p.ok(err, "%s over the current version", w.op)
				p.holds("a", "second")
				_, err = w.write(p, "a", "third", blob.Condition{IfMatch: first.ETag})
				p.fails(err, "%s over an old version", w.op).with(blob.ConditionNotMet)
				p.holds("a", "second")
				p.equal(p.props("a").ETag, second.ETag, "ETag after a refused %s", w.op)
			}),
			// "Specifying conditional headers": a named version that is not there is not met, and nothing is made.
			check(w.op+"/IfMatchMissing", func(p *probe) {
				gone := p.put("a", "first", blob.WriteOptions{})
				p.ok(p.c.Delete(p.ctx, "a", blob.Condition{}), "Delete")
				_, err := w.write(p, "a", "second", blob.Condition{IfMatch: gone.ETag})
				p.fails(err, "%s over a deleted version", w.op).with(blob.ConditionNotMet)
				p.absent("a")
			}),
			// contract, Any: IfMatch: Any means "must exist".
			check(w.op+"/IfMatchAny", func(p *probe) {
				p.put("a", "first", blob.WriteOptions{})
				_, err := w.write(p, "a", "second", blob.Condition{IfMatch: blob.Any})
				p.ok(err, "%s over a blob", w.op)
				p.holds("a", "second")
			}),
			check(w.op+"/IfMatchAnyMissing", func(p *probe) {
				_, err := w.write(p, "a", "first", blob.Condition{IfMatch: blob.Any})
				p.fails(err, "%s of a new name", w.op).with(blob.ConditionNotMet)
				p.absent("a")
			}),
			// "Specifying conditional headers", If-None-Match with an ETag: the write is refused over that version
			// only.
			check(w.op+"/IfNoneMatch", func(p *probe) {
				first := p.put("a", "first", blob.WriteOptions{})
				_, err := w.write(p, "a", "second", blob.Condition{IfNoneMatch: first.ETag})
				p.fails(err, "%s over the excluded version", w.op).with(blob.ConditionNotMet)
				p.holds("a", "first")
				p.put("a", "second", blob.WriteOptions{})
				_, err = w.write(p, "a", "third", blob.Condition{IfNoneMatch: first.ETag})
				p.ok(err, "%s over another version", w.op)
				p.holds("a", "third")
			}),
		)
	}
	return append(all,
		// The same for the writes that need a blob.
		check("SetMetadata/Conditions", func(p *probe) {
			first := p.put("a", "x", blob.WriteOptions{})
			set := func(v string, c blob.Condition) (blob.Written, error) {
				return p.c.SetMetadata(p.ctx, "a", map[string]string{"k": v}, c)
			}
			second, err := set("2", blob.Condition{IfMatch: first.ETag})
			p.ok(err, "SetMetadata of the current version")
			_, err = set("3", blob.Condition{IfMatch: first.ETag})
			p.fails(err, "SetMetadata of an old version").with(blob.ConditionNotMet)
			_, err = set("3", blob.Condition{IfNoneMatch: second.ETag})
			p.fails(err, "SetMetadata of the excluded version").with(blob.ConditionNotMet)
			p.metadataIs(p.props("a").Metadata, map[string]string{"k": "2"}, "metadata after refused changes")
			_, err = set("4", blob.Condition{IfNoneMatch: first.ETag})
			p.ok(err, "SetMetadata of another version than the excluded one")
			_, err = set("5", blob.Condition{IfMatch: blob.Any})
			p.ok(err, "SetMetadata of any version")
			p.metadataIs(p.props("a").Metadata, map[string]string{"k": "5"}, "metadata")
		}),
		check("Delete/Conditions", func(p *probe) {
			first := p.put("a", "x", blob.WriteOptions{})
			second := p.put("a", "y", blob.WriteOptions{})
			p.fails(p.c.Delete(p.ctx, "a", blob.Condition{IfMatch: first.ETag}), "Delete of an old version").with(blob.ConditionNotMet)
			p.fails(p.c.Delete(p.ctx, "a", blob.Condition{IfNoneMatch: second.ETag}), "Delete of the excluded version").with(blob.ConditionNotMet)
			p.holds("a", "y")
			p.ok(p.c.Delete(p.ctx, "a", blob.Condition{IfMatch: second.ETag}), "Delete of the current version")
			p.absent("a")
			third := p.put("a", "z", blob.WriteOptions{})
			p.ok(p.c.Delete(p.ctx, "a", blob.Condition{IfNoneMatch: second.ETag}), "Delete of another version than the excluded one")
			p.absent("a")
			// A blob that is gone: the service answers with BlobNotFound; one that looks at the condition first
			// answers with ConditionNotMet. Both say that the version is not there.
			p.fails(p.c.Delete(p.ctx, "a", blob.Condition{IfMatch: third.ETag}), "Delete of a deleted version").with(blob.NotFound, blob.ConditionNotMet)
		}),
		// contract: ReadAt of a version that is not the current one fails with ConditionNotMet. It never returns
		// bytes of another version.
		check("ReadAt/IfMatch", func(p *probe) {
			first := p.put("a", "first", blob.WriteOptions{})
			got, props, err := p.readAt("a", 1, 3, blob.Condition{IfMatch: first.ETag})
			p.ok(err, "ReadAt of the current version")
			p.equal(got, "irs", "content")
			p.equal(props.ETag, first.ETag, "ETag of the body")
			second := p.put("a", "second", blob.WriteOptions{})
			_, _, err = p.readAt("a", 1, 3, blob.Condition{IfMatch: first.ETag})
			p.fails(err, "ReadAt of an old version").with(blob.ConditionNotMet)
			_, _, err = p.readAt("a", 100, 3, blob.Condition{IfMatch: first.ETag})
			p.fails(err, "ReadAt of an old version outside of the new").with(blob.ConditionNotMet)
			_, props, err = p.readAt("a", 0, 1, blob.Condition{IfMatch: blob.Any})
			p.ok(err, "ReadAt of any version")
			p.equal(props.ETag, second.ETag, "ETag of the body")
			p.ok(p.c.Delete(p.ctx, "a", blob.Condition{}), "Delete")
			_, _, err = p.readAt("a", 0, 1, blob.Condition{IfMatch: second.ETag})
			p.fails(err, "ReadAt of a deleted version").with(blob.NotFound, blob.ConditionNotMet) // as in Delete/Conditions
		}),
		// contract, NotModified: a read with IfNoneMatch found that very version (304).
		check("ReadAt/IfNoneMatch", func(p *probe) {
			first := p.put("a", "first", blob.WriteOptions{})
			_, _, err := p.readAt("a", 0, 1, blob.Condition{IfNoneMatch: first.ETag})
			p.fails(err, "ReadAt of the excluded version").with(blob.NotModified)
			p.put("a", "second", blob.WriteOptions{})
			got, _, err := p.readAt("a", 0, 6, blob.Condition{IfNoneMatch: first.ETag})
			p.ok(err, "ReadAt of another version than the excluded one")
			p.equal(got, "second", "content")
		}),
		check("Properties/Conditions", func(p *probe) {
			first := p.put("a", "first", blob.WriteOptions{})
			get := func(c blob.Condition) (blob.Properties, error) { return p.c.Properties(p.ctx, "a", c) }
			_, err := get(blob.Condition{IfNoneMatch: first.ETag})
			p.fails(err, "Properties of the excluded version").with(blob.NotModified)
			_, err = get(blob.Condition{IfMatch: first.ETag})
			p.ok(err, "Properties of the current version")
			second := p.put("a", "second", blob.WriteOptions{})
			_, err = get(blob.Condition{IfMatch: first.ETag})
			p.fails(err, "Properties of an old version").with(blob.ConditionNotMet)
			got, err := get(blob.Condition{IfNoneMatch: first.ETag})
			p.ok(err, "Properties of another version than the excluded one")
			p.equal(got.ETag, second.ETag, "ETag")
		}),
		// contract: an ETag changes with every write, also with one of metadata, so conditions see it.
		check("SetMetadata/MakesVersion", func(p *probe) {
			first := p.put("a", "x", blob.WriteOptions{})
			_, err := p.c.SetMetadata(p.ctx, "a", map[string]string{"k": "v"}, blob.Condition{})
			p.ok(err, "SetMetadata")
			_, err = p.upload("a", "y", blob.WriteOptions{Condition: blob.Condition{IfMatch: first.ETag}})
			p.fails(err, "Upload over the version before SetMetadata").with(blob.ConditionNotMet)
			p.holds("a", "x")
		}),
	)
}

// parallelism is the number of goroutines that race: enough to overlap on two cores, few enough for an emulator.
const parallelism = 8

func parallelChecks() []Check {
	var all []Check
	for _, op := range []string{"Upload", "CommitBlockList"} {
		// race writes from all goroutines at once, each its own mark, and returns who won.
		race := func(p *probe, name string, c blob.Condition) (won []string, errs []error) {
			ids := make([]string, parallelism)
			for i := range ids {
				ids[i] = fmt.Sprintf("block-%d", i)
				if op == "CommitBlockList" {
					p.stage(name, ids[i], ids[i]) // all before the first commit, which discards the others
				}
			}
			var mu sync.Mutex // guards won and errs
			var wg sync.WaitGroup
			for _, id := range ids {
				wg.Go(func() {
					o := blob.WriteOptions{Condition: c}
					var err error
					if op == "Upload" {
						_, err = p.c.Upload(p.ctx, name, bytes.NewReader([]byte(id)), int64(len(id)), o)
					} else {
						_, err = p.c.CommitBlockList(p.ctx, name, []string{id}, o)
					}
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won = append(won, id)
					} else {
						errs = append(errs, err)
					}
				})
			}
			wg.Wait()
			return won, errs
		}
		// A commit that lost can find its block discarded before it finds the blob.
		lost := func(code blob.Code) []blob.Code {
			if op == "CommitBlockList" {
				return []blob.Code{code, blob.InvalidBlockList}
			}
			return []blob.Code{code}
		}
		all = append(all,
			// contract: all methods may be called in parallel, and a condition is checked together with the write:
			// of many that create a blob exactly one succeeds. Lock files between hosts rest on this.
			check("Parallel/"+op+"CreateOnce", func(p *probe) {
				for round := range 5 {
					name := fmt.Sprintf("lock%d", round)
					won, errs := race(p, name, blob.Condition{IfNoneMatch: blob.Any})
					p.equal(len(won), 1, "number of writers that created the blob (%v)", errs)
					p.holds(name, won[0])
					for _, err := range errs {
						p.fails(err, "%s that came too late", op).with(lost(blob.Exists)...)
					}
				}
			}),
			// The same for a version that is replaced.
			check("Parallel/"+op+"ReplaceOnce", func(p *probe) {
				for round := range 5 {
					name := fmt.Sprintf("blob%d", round)
					base := p.put(name, "base", blob.WriteOptions{})
					won, errs := race(p, name, blob.Condition{IfMatch: base.ETag})
					p.equal(len(won), 1, "number of writers that replaced the version (%v)", errs)
					p.holds(name, won[0])
					for _, err := range errs {
						p.fails(err, "%s that came too late", op).with(lost(blob.ConditionNotMet)...)
					}
				}
			}),
		)
	}
	return append(all,
		// contract: blocks of one blob are staged in parallel.
		check("Parallel/StageBlock", func(p *probe) {
			const size = 100_000
			body := pattern(parallelism * size)
			ids := make([]string, parallelism)
			errs := make([]error, parallelism)
			var wg sync.WaitGroup
			for i := range ids {
				ids[i] = fmt.Sprintf("%04d", i)
				wg.Go(func() { errs[i] = p.tryStage("a", ids[i], body[i*size:(i+1)*size]) })
			}
			wg.Wait()
			for i, err := range errs {
				p.ok(err, "StageBlock %q", ids[i])
			}
			p.commit("a", blob.WriteOptions{}, ids...)
			p.holds("a", body)
		}),
		// contract: a body is one version's, whatever is written meanwhile. A read gets either an error or bytes that
		// belong to the ETag that it says.
		check("Parallel/ReadsOneVersion", func(p *probe) {
			const size = 300_000
			contentOf := func(i int) string { return string(bytes.Repeat([]byte{byte('a' + i)}, size)) }
			p.put("a", contentOf(0), blob.WriteOptions{})
			ctx, cancel := context.WithCancel(p.ctx)
			defer cancel()
			var writeErr error
			var wg sync.WaitGroup
			wg.Go(func() {
				defer cancel()
				for i := range 20 {
					body := contentOf(i % 26)
					if _, writeErr = p.c.Upload(p.ctx, "a", bytes.NewReader([]byte(body)), size, blob.WriteOptions{}); writeErr != nil {
						return
					}
				}
			})
			var torn error
			for reads := 0; torn == nil && (reads < 3 || ctx.Err() == nil); reads++ {
				got, _, err := p.readAt("a", 0, size, blob.Condition{})
				switch {
				case err != nil:
					torn = err
				case len(got) != size || got != string(bytes.Repeat([]byte{got[0]}, size)):
					torn = fmt.Errorf("body of %d bytes from more than one version", len(got))
				}
			}
			wg.Wait()
			p.ok(writeErr, "Upload beside reads")
			p.ok(torn, "ReadAt beside writes")
		}),
	)
}
