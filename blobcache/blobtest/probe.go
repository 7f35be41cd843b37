package blobtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"reflect"
	"time"

	"blobmount/blobcache/blob"
)

// probe is what a check works with. A method that finds the container wrong ends the check, by a panic that check
// turns into the returned error: it keeps a check as short as the rule that it states. A probe belongs to the
// check's goroutine.
type probe struct {
	ctx     context.Context
	c       blob.Container
	other   blob.Container
	advance func(time.Duration)
}

type broken struct{ err error }

func check(name string, f func(p *probe)) Check {
	return Check{Name: name, Run: func(ctx context.Context, s Subject) (err error) {
		defer func() {
			switch r := recover().(type) {
			case nil:
			case broken:
				err = r.err
			default:
				panic(r)
			}
		}()
		f(&probe{ctx, s.Container, s.Other, s.Advance})
		return nil
	}}
}

// timed is check for a rule about time.
func timed(name string, f func(p *probe)) Check {
	c := check(name, f)
	c.Clock = true
	return c
}

func (p *probe) failf(format string, args ...any) {
	panic(broken{fmt.Errorf(format, args...)})
}

// ok demands success.
func (p *probe) ok(err error, format string, args ...any) {
	if err != nil {
		p.failf("%s: %w", fmt.Sprintf(format, args...), err)
	}
}

// fails demands an error of one of the codes.
func (p *probe) fails(err error, format string, args ...any) failing {
	return failing{p, err, fmt.Sprintf(format, args...)}
}

type failing struct {
	p    *probe
	err  error
	what string
}

func (f failing) with(codes ...blob.Code) {
	for _, c := range codes {
		if blob.Is(f.err, c) {
			return
		}
	}
	f.p.failf("%s: got error %v, want one that says %q", f.what, f.err, codes[0])
}

// equal demands that got is want.
func (p *probe) equal(got, want any, format string, args ...any) {
	if !reflect.DeepEqual(got, want) {
		p.failf("%s: got %.200v, want %.200v", fmt.Sprintf(format, args...), got, want)
	}
}

// put uploads a blob that must succeed.
func (p *probe) put(name, body string, o blob.WriteOptions) blob.Written {
	w, err := p.upload(name, body, o)
	p.ok(err, "Upload %q", name)
	return w
}

func (p *probe) upload(name, body string, o blob.WriteOptions) (blob.Written, error) {
	return p.c.Upload(p.ctx, name, bytes.NewReader([]byte(body)), int64(len(body)), o)
}

// append appends to a blob that is at bytes long.
func (p *probe) append(c blob.Container, name, body string, at int64, cond blob.Condition) (blob.Written, error) {
	return c.AppendBlock(p.ctx, name, bytes.NewReader([]byte(body)), int64(len(body)), at, cond)
}

// stage stages a block that must succeed.
func (p *probe) stage(name, id, body string) {
	p.ok(p.tryStage(name, id, body), "StageBlock %q %q", name, id)
}

func (p *probe) tryStage(name, id, body string) error {
	return p.c.StageBlock(p.ctx, name, id, bytes.NewReader([]byte(body)), int64(len(body)))
}

// commit commits a block list that must succeed.
func (p *probe) commit(name string, o blob.WriteOptions, ids ...string) blob.Written {
	w, err := p.c.CommitBlockList(p.ctx, name, ids, o)
	p.ok(err, "CommitBlockList %q %q", name, ids)
	return w
}

// blocks returns a block list that must be there.
func (p *probe) blocks(name string) blob.BlockList {
	l, err := p.c.BlockList(p.ctx, name)
	p.ok(err, "BlockList %q", name)
	return l
}

// props returns properties that must be there.
func (p *probe) props(name string) blob.Properties {
	got, err := p.c.Properties(p.ctx, name, blob.Condition{})
	p.ok(err, "Properties %q", name)
	return got
}

// absent demands that there is no blob.
func (p *probe) absent(name string) {
	_, err := p.c.Properties(p.ctx, name, blob.Condition{})
	p.fails(err, "Properties of %q, which must not be there", name).with(blob.NotFound)
}

// readAt reads a range through its whole stream.
func (p *probe) readAt(name string, offset, count int64, c blob.Condition) (string, blob.Properties, error) {
	b, err := p.c.ReadAt(p.ctx, name, offset, count, c)
	if err != nil {
		return "", blob.Properties{}, err
	}
	got, err := io.ReadAll(b)
	if closeErr := b.Close(); err == nil {
		err = closeErr
	}
	return string(got), b.Properties, err
}

// holds demands that a blob has this content, not empty.
func (p *probe) holds(name, want string) {
	got, props, err := p.readAt(name, 0, int64(len(want))+1, blob.Condition{})
	p.ok(err, "ReadAt %q", name)
	if got != want {
		p.failf("content of %q: got %d bytes %.60q, want %d bytes %.60q", name, len(got), got, len(want), want)
	}
	p.equal(props.Size, int64(len(want)), "size of %q in the Properties of a body", name)
}

// list returns all pages of a listing as one, which must be in order and without duplicates, and how many there
// were.
func (p *probe) list(o blob.ListOptions) (blob.Page, int) {
	var all blob.Page
	seen := map[string]bool{}
	markers := map[string]bool{}
	last := "" // the greatest name or prefix of the pages before
	for n := 1; ; n++ {
		page, err := p.c.List(p.ctx, o)
		p.ok(err, "List %+v", o)
		if limit := o.MaxResults; limit > 0 && len(page.Blobs)+len(page.Prefixes) > limit {
			p.failf("List %+v: page has %d blobs and %d prefixes", o, len(page.Blobs), len(page.Prefixes))
		}
		greatest := last
		add := func(kind, name, previous string) {
			switch {
			case seen[name]:
				p.failf("List %+v: %s %q twice", o, kind, name)
			case name <= previous:
				p.failf("List %+v: %s %q comes after %q", o, kind, name, previous)
			case name <= last:
				p.failf("List %+v: %s %q on page %d, though the page before reached %q", o, kind, name, n, last)
			}
			seen[name] = true
			greatest = max(greatest, name)
		}
		previous := ""
		for _, b := range page.Blobs {
			add("blob", b.Name, previous)
			previous = b.Name
		}
		previous = ""
		for _, name := range page.Prefixes {
			add("prefix", name, previous)
			previous = name
		}
		last = greatest
		all.Blobs = append(all.Blobs, page.Blobs...)
		all.Prefixes = append(all.Prefixes, page.Prefixes...)
		if page.Next == "" {
			return all, n
		}
		if markers[page.Next] {
			p.failf("List %+v: marker %q comes again, the listing does not end", o, page.Next)
		}
		markers[page.Next] = true
		o.Marker = page.Next
	}
}

// names returns the names of blobs.
func names(blobs []blob.Properties) []string {
	var out []string
	for _, b := range blobs {
		out = append(out, b.Name)
	}
	return out
}

// metadataIs demands metadata; an empty map and nil are the same.
func (p *probe) metadataIs(got, want map[string]string, format string, args ...any) {
	if len(got) == 0 && len(want) == 0 {
		return
	}
	p.equal(got, want, format, args...)
}
