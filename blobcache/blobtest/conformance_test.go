package blobtest

import (
	"testing"

	"blobmount/blobcache/blob"
)

func newMem(o StoreOptions) *Mem {
	return NewContainer(NewStore(o), "https://account.example/container")
}

func TestConformance(t *testing.T) {
	Conformance(t, func(*testing.T) blob.Container { return newMem(StoreOptions{}) })
}

func TestConformanceWithEmptyPages(t *testing.T) {
	Conformance(t, func(*testing.T) blob.Container { return newMem(StoreOptions{EmptyPages: true}) })
}

func TestConformanceOfSub(t *testing.T) {
	Conformance(t, func(*testing.T) blob.Container { return blob.Sub(newMem(StoreOptions{}), "some/dir/") },
		Deviation{"Names/Longest", "the prefix is part of the 1,024 characters"},
		Deviation{"Error/Fields", "the error has the whole name, as the service knows it"})
}
