package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
)

// part is one ranged request, and where its bytes go in the output.
type part struct {
	url string
	span
	out int64
}

// parts returns the requests: the spans of the only blob at their own offsets, or all blobs in blocks, one after the
// other.
func (t task) parts() []part {
	var parts []part
	var out int64
	for _, f := range t.Files {
		if t.Spans != nil {
			for _, s := range t.Spans {
				for _, c := range cut(s.Len, t.Block) {
					c.Off += s.Off
					parts = append(parts, part{f.Path, c, c.Off})
				}
			}
			continue
		}
		for _, c := range cut(f.Size, t.Block) {
			parts = append(parts, part{f.Path, c, out + c.Off})
		}
		out += f.Size
	}
	return parts
}

// download is the reference for cold reads: what a program reaches that does nothing but ranged requests over a
// number of connections, and writes what it gets to a file. The blobs must be readable without credentials.
func (t task) download() (func() (result, error), error) {
	parts := t.parts()
	client := &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: t.Threads, MaxIdleConnsPerHost: t.Threads,
		DisableCompression: true, ReadBufferSize: 128 << 10,
	}}
	return func() (result, error) {
		out, err := os.Create(t.Out)
		if err != nil {
			return result{}, err
		}
		defer out.Close()
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		next := make(chan part)
		go func() {
			defer close(next)
			for _, p := range parts {
				select {
				case next <- p:
				case <-ctx.Done():
					return
				}
			}
		}()
		var wg sync.WaitGroup
		for range t.Threads {
			wg.Go(func() {
				buf := make([]byte, min(t.Block, 1<<20))
				for p := range next {
					if err := fetch(ctx, client, p, out, buf); err != nil {
						cancel(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := context.Cause(ctx); err != nil {
			return result{}, err
		}
		r := result{Reads: int64(len(parts))}
		for _, p := range parts {
			r.Bytes += p.Len
		}
		return r, nil
	}, nil
}

// fetch makes one request.
func fetch(ctx context.Context, client *http.Client, p part, out io.WriterAt, buf []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", p.Off, p.Off+p.Len-1))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%s: %s", p.url, res.Status)
	}
	for at := int64(0); at < p.Len; {
		b := buf[:min(int64(len(buf)), p.Len-at)]
		n, err := io.ReadFull(res.Body, b)
		if err != nil {
			return fmt.Errorf("%s: %w", p.url, err)
		}
		if _, err := out.WriteAt(b[:n], p.out+at); err != nil {
			return err
		}
		at += int64(n)
	}
	if _, err := res.Body.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // so that the connection is used again
		return fmt.Errorf("%s: more than was asked for, or %w", p.url, err)
	}
	return nil
}
