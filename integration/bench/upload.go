package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	sdkcontainer "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
)

// sdk returns azblob's client of the container. It keeps as many connections as are used at once, and repeats nothing:
// a request that fails ends the measurement.
func sdk(connection string, connections int) (*sdkcontainer.Client, error) {
	options := &sdkcontainer.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true}},
		Retry:     policy.RetryOptions{MaxRetries: -1},
	}}
	return sdkcontainer.NewClientFromConnectionString(connection, container, options)
}

// upload is the reference for files that are written in order: azblob's own UploadStream, with Threads blocks of Block
// bytes under way.
func (t task) upload() (func() (result, error), error) {
	client, err := sdk(t.Connection, t.Threads)
	if err != nil {
		return nil, err
	}
	return func() (r result, err error) {
		for _, f := range t.Files {
			body := &stream{content: blobserver.SyntheticContent(f.Name), size: f.Size}
			options := &blockblob.UploadStreamOptions{BlockSize: t.Block, Concurrency: t.Threads}
			if _, err := client.NewBlockBlobClient(f.Name).UploadStream(context.Background(), body, options); err != nil {
				return r, fmt.Errorf("%s: %w", f.Name, err)
			}
			r.Bytes += f.Size
			r.Reads++
		}
		return r, nil
	}, nil
}

// stream reads the content of a file in order, as the program that makes it would write it.
type stream struct {
	content blobtest.Generator
	size    int64
	at      int64
}

func (s *stream) Read(p []byte) (int, error) {
	n := min(int64(len(p)), s.size-s.at)
	if n == 0 {
		return 0, io.EOF
	}
	s.content(p[:n], s.at)
	s.at += n
	return int(n), nil
}

// put is the reference for small files: one Put Blob for each, Threads at once.
func (t task) put() (func() (result, error), error) {
	client, err := sdk(t.Connection, t.Threads)
	if err != nil {
		return nil, err
	}
	return func() (result, error) {
		results := make([]result, t.Threads)
		errs := make([]error, t.Threads)
		var wg sync.WaitGroup
		for i := range t.Threads {
			wg.Go(func() {
				for n := i; n < len(t.Files) && errs[i] == nil; n += t.Threads {
					errs[i] = putBlob(client, t.Files[n], &results[i])
				}
			})
		}
		wg.Wait()
		var sum result
		for _, r := range results {
			sum.Bytes += r.Bytes
			sum.Reads += r.Reads
		}
		return sum, errors.Join(errs...)
	}, nil
}

func putBlob(client *sdkcontainer.Client, f file, r *result) error {
	body := make([]byte, f.Size)
	blobserver.SyntheticContent(f.Name)(body, 0)
	_, err := client.NewBlockBlobClient(f.Name).Upload(context.Background(), streaming.NopCloser(bytes.NewReader(body)), nil)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	r.Bytes += f.Size
	r.Reads++
	return nil
}
