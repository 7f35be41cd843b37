package integration

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
	"blobmount/integration/azurite"
	"blobmount/integration/blobserver"
)

// azuriteDeviates lists where Azurite 3.35.0 does not do what the service's REST reference says.
var azuriteDeviates = []blobtest.Deviation{
	{Check: "Upload/IfMatchAnyMissing", Reason: "Azurite creates a blob in spite of If-Match: *"},
	{Check: "CommitBlockList/IfMatchAnyMissing", Reason: "Azurite creates a blob in spite of If-Match: *"},
	{Check: "Copy/IfMatchAnyMissing", Reason: "Azurite creates a blob in spite of If-Match: *"},
	{Check: "StageBlock/Invisible", Reason: "Azurite's Get Block List has an ETag before anything was committed"},
	{Check: "Upload/Discards", Reason: "Azurite's Put Blob keeps the uncommitted blocks"},
	{Check: "StageBlockFrom/Range", Reason: noBlockFromURL},
	{Check: "StageBlockFrom/ItsOwnBlob", Reason: noBlockFromURL},
	{Check: "StageBlockFrom/OutlivesSource", Reason: noBlockFromURL},
	{Check: "StageBlockFrom/Condition", Reason: noBlockFromURL},
	{Check: "StageBlockFrom/OutsideRange", Reason: noBlockFromURL},
	{Check: "StageBlockFrom/IDLength", Reason: noBlockFromURL},
	{Check: "Lease/StageBlockFrom", Reason: noBlockFromURL},
	{Check: "Upload/ReplaceRemovesTheRest", Reason: "Azurite compares x-ms-blob-content-md5, which is only to be stored, when Content-MD5 is there too"},
}

const noBlockFromURL = "Azurite does not implement Put Block From URL; it says so, and the adapter answers Unsupported"

// The adapter keeps the contract of blob.Container over Azurite.
func TestConformanceAzurite(t *testing.T) {
	s := azurite.Start(t)
	var n atomic.Int64
	blobtest.Conformance(t, func(t *testing.T) blobtest.Subject {
		url, err := s.CreateContainer(t.Context(), fmt.Sprintf("conformance-%d", n.Add(1)))
		if err != nil {
			t.Fatal(err)
		}
		cfg := azure.Config{URL: url, Credential: azure.Credential{SharedKey: sharedKey(t, azurite.Account, azurite.Key)}}
		return blobtest.Subject{Container: open(t, cfg), Other: open(t, cfg)}
	}, azuriteDeviates...)
}

// The same over the embedded service, which has no deviations: neither from the contract, nor when its pages come
// back empty, as the service's may.
func TestConformanceEmbedded(t *testing.T) {
	for name, store := range map[string]blobtest.StoreOptions{"plain": {}, "empty pages": {EmptyPages: true}} {
		t.Run(name, func(t *testing.T) {
			key := sharedKey(t, blobserver.DefaultAccount, blobserver.DefaultKey)
			blobtest.Conformance(t, func(t *testing.T) blobtest.Subject {
				clock := &movedClock{}
				store.Now = clock.Now
				s, err := blobserver.Start(blobserver.Options{Containers: []string{"conformance"}, Store: store})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				cfg := azure.Config{URL: s.URL() + "/conformance", Credential: azure.Credential{SharedKey: key}}
				return blobtest.Subject{Container: open(t, cfg), Other: open(t, cfg), Advance: clock.Advance}
			})
		})
	}
}

func sharedKey(t *testing.T, account, key string) *azure.SharedKey {
	t.Helper()
	k, err := azure.NewSharedKey(account, key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// movedClock is the machine's clock, moved on.
type movedClock struct{ ahead atomic.Int64 }

func (c *movedClock) Now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *movedClock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

// A block from a range needs the source to be readable for the service itself, also when all that there is is a SAS.
func TestStageBlockFromWithSAS(t *testing.T) {
	key, err := container.NewSharedKeyCredential(blobserver.DefaultAccount, blobserver.DefaultKey)
	if err != nil {
		t.Fatal(err)
	}
	s, err := blobserver.Start(blobserver.Options{Containers: []string{"data"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Store("data").Put("dir/a b", []byte("0123456789"), blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for permissions, want := range map[string]bool{"rw": true, "w": false} {
		query, err := sas.BlobSignatureValues{
			Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().Add(time.Hour), Permissions: permissions, ContainerName: "data",
		}.SignWithSharedKey(key)
		if err != nil {
			t.Fatal(err)
		}
		c := open(t, azure.Config{URL: s.URL() + "/data", Credential: azure.Credential{SAS: query.Encode()}})
		err = c.StageBlockFrom(t.Context(), "new", "1", blob.Range{Name: "dir/a b", Offset: 3, Size: 4})
		switch {
		case want && err != nil:
			t.Error(err)
		case !want && !blob.Is(err, blob.Forbidden):
			t.Errorf("source that the SAS may not read: got %v, want Forbidden", err)
		}
	}
	if l, err := s.Store("data").Blocks("new"); err != nil || len(l.Uncommitted) != 1 || l.Uncommitted[0].Size != 4 {
		t.Errorf("blocks %+v, %v", l, err)
	}
}

// open returns the adapter over a container. It gives up sooner than in production, so that a service that does
// not answer fails a check by its error and not by the check's time limit.
func open(t *testing.T, cfg azure.Config) blob.Container {
	t.Helper()
	cfg.RetryFor = 20 * time.Second
	c, err := azure.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The adapter keeps the contract of blob.Renamer over the embedded service with a hierarchical namespace.
// A flat account has none.
func TestConformanceHierarchical(t *testing.T) {
	key := sharedKey(t, blobserver.DefaultAccount, blobserver.DefaultKey)
	blobtest.RenamerConformance(t, func(t *testing.T) blobtest.Subject {
		s, err := blobserver.Start(blobserver.Options{Containers: []string{"data"}, Store: blobtest.StoreOptions{Hierarchical: true}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		cfg := azure.Config{URL: s.URL() + "/data", Credential: azure.Credential{SharedKey: key}}
		hierarchical := func() blob.Container {
			c, err := azure.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			h, err := c.Hierarchical(t.Context())
			if err != nil || h == nil {
				t.Fatal(h, err)
			}
			return h
		}
		return blobtest.Subject{Container: hierarchical(), Other: hierarchical()}
	})
	flat, err := blobserver.Start(blobserver.Options{Containers: []string{"data"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flat.Close() })
	c, err := azure.New(azure.Config{URL: flat.URL() + "/data", Credential: azure.Credential{SharedKey: key}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if h, err := c.Hierarchical(t.Context()); h != nil || err != nil {
		t.Errorf("a flat account: %v, %v", h, err)
	}
}
