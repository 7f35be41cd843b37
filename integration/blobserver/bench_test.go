package blobserver

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// BenchmarkGet reads ranges of 8 MiB over four connections, both ends on the same machine.
func BenchmarkGet(b *testing.B) {
	const size, part, connections = 256 << 20, 8 << 20, 4
	c := start(b, Options{})
	body := make([]byte, size)
	blobtest.Random(1)(body, 0)
	if _, err := c.s.Store("con1").Put("Stored", body, blob.WriteOptions{}); err != nil {
		b.Fatal(err)
	}
	if _, err := c.s.Store("con1").PutSynthetic("Synthetic", size, blobtest.Random(1), blob.WriteOptions{}); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"Stored", "Synthetic"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(part)
			parts := make(chan int64)
			var wg sync.WaitGroup
			for range connections {
				wg.Go(func() {
					buf := make([]byte, part)
					for at := range parts {
						r, err := http.NewRequest("GET", c.s.URL()+"/con1/"+name, nil)
						if err != nil {
							b.Error(err)
							continue
						}
						r.Header.Set("Authorization", "Bearer x")
						r.Header.Set("x-ms-range", fmt.Sprintf("bytes=%d-%d", at, at+part-1))
						res, err := c.h.Do(r)
						if err != nil {
							b.Error(err)
							continue
						}
						if _, err := io.ReadFull(res.Body, buf); err != nil {
							b.Error(err)
						}
						_ = res.Body.Close()
					}
				})
			}
			at := int64(0)
			for b.Loop() {
				parts <- at
				at = (at + part) % size
			}
			close(parts)
			wg.Wait()
		})
	}
}

// BenchmarkList reads pages of 5,000 out of a million blobs.
func BenchmarkList(b *testing.B) {
	c := start(b, Options{})
	if err := c.s.AddSynthetic(Synthetic{Container: "con1", Prefix: "dir/", Count: 1_000_000, Size: 100, Every: 10}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c.do(200, "", "GET", "/con1?restype=container&comp=list&include=metadata", "")
	}
}
