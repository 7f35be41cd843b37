package blobserver

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// Synthetic is a set of blobs of one size that cost no memory for their bytes. Their names are the prefix and six
// digits, from 000000 on.
type Synthetic struct {
	Container, Prefix string
	Count             int
	Size              int64
}

// ParseSynthetic reads CONTAINER/PREFIX:COUNT:SIZE, the size in bytes. The prefix may be empty, and may have colons.
func ParseSynthetic(s string) (Synthetic, error) {
	bad := fmt.Errorf("%q is not CONTAINER/PREFIX:COUNT:SIZE", s)
	rest, size, ok := cutLast(s, ":")
	name, count, ok2 := cutLast(rest, ":")
	container, prefix, ok3 := strings.Cut(name, "/")
	if !ok || !ok2 || !ok3 {
		return Synthetic{}, bad
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > 1e6 { // six digits
		return Synthetic{}, bad
	}
	bytes, err := strconv.ParseInt(size, 10, 64)
	if err != nil || bytes < 0 {
		return Synthetic{}, bad
	}
	return Synthetic{container, prefix, n, bytes}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// String is what ParseSynthetic reads.
func (d Synthetic) String() string {
	return fmt.Sprintf("%s/%s:%d:%d", d.Container, d.Prefix, d.Count, d.Size)
}

// Name returns the name of the i-th blob.
func (d Synthetic) Name(i int) string { return fmt.Sprintf("%s%06d", d.Prefix, i) }

// SyntheticContent returns the content of the synthetic blob of this name: random bytes that the name decides, so
// that another process knows what it has to read.
func SyntheticContent(name string) blobtest.Generator {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return blobtest.Random(h.Sum64())
}

// AddSynthetic creates the blobs of a set, and the container if it is missing.
func (s *Server) AddSynthetic(d Synthetic) error {
	store := s.Store(d.Container)
	if store == nil {
		if err := s.CreateContainer(d.Container); err != nil {
			return err
		}
		store = s.Store(d.Container)
	}
	for i := range d.Count {
		name := d.Name(i)
		if _, err := store.PutSynthetic(name, d.Size, SyntheticContent(name), blob.WriteOptions{}); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
