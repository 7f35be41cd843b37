package blobtest

import (
	"maps"

	"blobmount/blobcache/blob"
)

// checkTags returns tags as they are stored, nil for none ("Set Blob Tags", remarks).
func checkTags(tags map[string]string) (map[string]string, error) {
	if len(tags) > blob.MaxTags {
		return nil, Err("TagsTooLarge")
	}
	for key, value := range tags {
		if key == "" || len(key) > 128 || len(value) > 256 || !tagText(key) || !tagText(value) {
			return nil, Err("InvalidTag")
		}
	}
	if len(tags) == 0 {
		return nil, nil
	}
	return maps.Clone(tags), nil
}

// tagText reports whether s has only the characters that keys and values may have.
func tagText(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == ' ', c == '+', c == '-', c == '.', c == '/', c == ':', c == '=', c == '_':
		default:
			return false
		}
	}
	return true
}

// Tags returns the index tags of a blob (Get Blob Tags), nil for none.
func (s *Store) Tags(name string) (map[string]string, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	r := s.current(name)
	if r == nil {
		return nil, Err("BlobNotFound")
	}
	return maps.Clone(r.tags), nil
}

// SetTags replaces the index tags of a blob (Set Blob Tags). ETag and time stay.
func (s *Store) SetTags(name string, tags map[string]string) error {
	tags, err := checkTags(tags)
	if err != nil {
		return err
	}
	return s.amend(name, func(r *record) error {
		if err := s.checkLease(name); err != nil {
			return err
		}
		r.tags = tags
		return nil
	})
}

// amend changes the current version in a way that leaves its ETag and time alone.
func (s *Store) amend(name string, f func(*record) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.get(name)
	if old == nil {
		return Err("BlobNotFound")
	}
	r := *old
	if err := f(&r); err != nil {
		return err
	}
	s.mu.blobs.Set(name, &r)
	return nil
}
