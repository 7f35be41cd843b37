package blobtest

import (
	"time"

	"blobmount/blobcache/blob"
)

// CopyOptions go with CopyFrom.
type CopyOptions struct {
	blob.CopyOptions
	Tier string            // of the copy; empty for the account's default
	Tags map[string]string // of the copy: none come along by themselves
}

// Copy copies a blob as blob.Container promises: with the tier that was chosen for it, and with its tags.
func (s *Store) Copy(dst, src string, o blob.CopyOptions) (blob.Written, error) {
	source, err := s.copySource(src, o.Source)
	if err != nil {
		return blob.Written{}, err
	}
	return s.copyRecord(source, dst, src, CopyOptions{CopyOptions: o, Tier: source.tier, Tags: source.tags})
}

// CopyFrom copies a blob, of this or another container, as the service does (Copy Blob): content, headers, metadata
// and committed blocks.
func (s *Store) CopyFrom(from *Store, dst, src string, o CopyOptions) (blob.Written, error) {
	source, err := from.copySource(src, o.Source)
	if err != nil {
		return blob.Written{}, err
	}
	if from.blobs != s.blobs {
		src = ""
	}
	return s.copyRecord(source, dst, src, o)
}

// copySource returns the version to copy. The locks of two containers are never held together: it is immutable.
func (s *Store) copySource(name string, c blob.Condition) (*record, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	r := s.current(name)
	switch {
	case r == nil:
		return nil, Err("BlobNotFound")
	case checkChange(r, c) != nil:
		return nil, Err("SourceConditionNotMet")
	case r.tier == archive:
		return nil, Err("BlobArchived")
	}
	return r, nil
}

// copyRecord makes the copy of a version; copied is its name if it is one of s.
func (s *Store) copyRecord(source *record, dst, copied string, o CopyOptions) (blob.Written, error) {
	if err := checkName(dst); err != nil {
		return blob.Written{}, err
	}
	r := *source
	r.created, r.copied = time.Time{}, copied
	var err error
	if r.tags, err = checkTags(o.Tags); err != nil {
		return blob.Written{}, err
	}
	if r.tier, err = checkTier(r.kind, o.Tier); err != nil {
		return blob.Written{}, err
	}
	if o.Metadata != nil {
		if r.metadata, err = checkMetadata(o.Metadata); err != nil {
			return blob.Written{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.get(dst)
	if err := s.checkReplace(dst, old, o.Condition); err != nil {
		return blob.Written{}, err
	}
	if old != nil {
		if old.kind != r.kind {
			return blob.Written{}, Err("InvalidBlobType")
		}
		r.created = old.created
	}
	delete(s.mu.staged, dst)
	return s.put(dst, &r), nil
}
