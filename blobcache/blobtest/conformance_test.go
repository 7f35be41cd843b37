package blobtest

import (
	"sync"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

func newMem(o StoreOptions) *Mem {
	return NewContainer(NewStore(o), "https://account.example/container")
}

// clock is a clock that stands still but for Advance.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// subject returns a container in memory, and the same for another host, both wrapped.
func subject(o StoreOptions, wrap func(*Mem) blob.Container) Subject {
	clock := &clock{now: time.Now()}
	o.Now = clock.Now
	m := newMem(o)
	return Subject{wrap(m), wrap(NewContainer(m.Store(), m.URL(""))), clock.Advance}
}

func plain(m *Mem) blob.Container { return m }

func TestConformance(t *testing.T) {
	Conformance(t, func(*testing.T) Subject { return subject(StoreOptions{}, plain) })
}

func TestConformanceWithEmptyPages(t *testing.T) {
	Conformance(t, func(*testing.T) Subject { return subject(StoreOptions{EmptyPages: true}, plain) })
}

func TestConformanceOfSub(t *testing.T) {
	Conformance(t, func(*testing.T) Subject {
		return subject(StoreOptions{}, func(m *Mem) blob.Container { return blob.Sub(m, "some/dir/") })
	},
		Deviation{"Names/Longest", "the prefix is part of the 1,024 characters"},
		Deviation{"Error/Fields", "the error has the whole name, as the service knows it"})
}

// The store keeps the contract of blob.Renamer, and so does a prefix of it.
func TestRenamerConformance(t *testing.T) {
	for name, wrap := range map[string]func(blob.Container) blob.Container{
		"whole":  func(c blob.Container) blob.Container { return c },
		"prefix": func(c blob.Container) blob.Container { return blob.Sub(c, "some/prefix/") },
	} {
		t.Run(name, func(t *testing.T) {
			RenamerConformance(t, func(*testing.T) Subject {
				s := NewStore(StoreOptions{Hierarchical: true})
				const url = "https://account.example/container"
				if _, err := s.Put("some/prefix", nil, blob.WriteOptions{Metadata: map[string]string{folderKey: "true"}}); err != nil {
					t.Fatal(err)
				}
				if name == "whole" {
					s = NewStore(StoreOptions{Hierarchical: true})
				}
				return Subject{Container: wrap(NewHierarchical(s, url)), Other: wrap(NewHierarchical(s, url))}
			})
		})
	}
}
