package blobcache

import (
	"bytes"
	"context"
	"io"
	"testing"

	"blobmount/blobcache/blob"
)

// liar answers reads with bytes of its own.
type liar struct {
	blob.Container
	props blob.Properties
}

func (l liar) ReadAt(_ context.Context, _ string, _, count int64, _ blob.Condition) (*blob.Body, error) {
	body := bytes.NewReader(bytes.Repeat([]byte("x"), int(count)))
	return &blob.Body{ReadCloser: io.NopCloser(body), Properties: l.props}, nil
}

// What a container says is of another version, or of another size than the version has, reaches no reader and is not kept.
func TestFetchOfAnotherVersion(t *testing.T) {
	for what, change := range map[string]func(*blob.Properties){
		"ETag":    func(p *blob.Properties) { p.ETag = `"other"` },
		"no ETag": func(p *blob.Properties) { p.ETag = "" },
		"size":    func(p *blob.Properties) { p.Size++ },
	} {
		t.Run(what, func(t *testing.T) {
			s := newService()
			c := openCache(t, config(t.TempDir()))
			p, want := s.put(t, "a", 100*kib, 1)
			lie := p
			change(&lie)
			f := c.OpenFile(liar{s, lie}, p, noHooks)
			f.Acquire(false)
			if d, err := f.Read(t.Context(), make([]byte, kib), 0); !blob.Is(err, blob.Damaged) {
				t.Errorf("got %.20q, %v, want Damaged", d.Bytes, err)
			}
			f.Release(false)
			f = c.OpenFile(s, p, noHooks)
			f.Acquire(false)
			defer f.Release(false)
			d, err := f.Read(t.Context(), make([]byte, kib), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Done()
			if got := bytes.Join(d.Bytes, nil); !bytes.Equal(got, want[:kib]) {
				t.Errorf("then from the cache: %.20q", got)
			}
		})
	}
}
