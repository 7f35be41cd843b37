package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"

	sdkblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"blobmount/blobcache/blobtest"
)

// What other tools leave in a service is made there out of a synthetic blob, so that it costs neither time nor memory.

// compose makes a blob of the blocks of another one, of block bytes each, by ids of 48 bytes as other tools use them.
func (s *service) compose(ctx context.Context, name, source string, n, block int64) error {
	client, err := sdk(s.connection, 1)
	if err != nil {
		return err
	}
	b := client.NewBlockBlobClient(name)
	var ids []string
	for i, part := range cut(n, block) {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%048d", i))
		options := &blockblob.StageBlockFromURLOptions{Range: sdkblob.HTTPRange{Offset: part.Off, Count: part.Len}}
		if _, err := b.StageBlockFromURL(ctx, id, s.blobURL(source), options); err != nil {
			return err
		}
		ids = append(ids, id)
	}
	_, err = b.CommitBlockList(ctx, ids, nil)
	return err
}

// duplicate makes a copy of a blob. A synthetic blob has no blocks, as one that was made by Put Blob has none, and
// neither has its copy.
func (s *service) duplicate(ctx context.Context, name, source string) error {
	client, err := sdk(s.connection, 1)
	if err != nil {
		return err
	}
	_, err = client.NewBlobClient(name).StartCopyFromURL(ctx, s.blobURL(source), nil) // the embedded service is done when it answers
	return err
}

// delete deletes blobs.
func (s *service) delete(ctx context.Context, files []file) error {
	client, err := sdk(s.connection, 1)
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := client.NewBlobClient(f.Name).Delete(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) blobURL(name string) string { return s.url + "/" + container + "/" + name }

// compare reads ranges of a blob in the service, and compares them and the blob's size with what must be there.
func (s *service) compare(ctx context.Context, name string, size int64, content blobtest.Generator, ranges ...span) error {
	for _, r := range ranges {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.blobURL(name), nil)
		if err != nil {
			return err
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Off, r.Off+r.Len-1))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			return err
		}
		_, total, _ := strings.Cut(res.Header.Get("Content-Range"), "/")
		if res.StatusCode != http.StatusPartialContent || total != fmt.Sprint(size) {
			return fmt.Errorf("%s: %s of %s bytes, which must be %d", name, res.Status, total, size)
		}
		want := make([]byte, r.Len)
		content(want, r.Off)
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: wrong bytes in the service from %d on", name, r.Off)
		}
	}
	return nil
}

// samples are ranges of a blob that are worth a comparison: 4 KiB at both ends and around each whole MiB of a few.
func samples(size int64) []span {
	const page, few = 4 << 10, 16
	ranges := []span{{0, min(page, size)}, {max(0, size-page), min(page, size)}}
	for i := range int64(few) {
		if at := size * i / few >> 20 << 20; at >= page && at+page <= size {
			ranges = append(ranges, span{at - page/2, page})
		}
	}
	return ranges
}
