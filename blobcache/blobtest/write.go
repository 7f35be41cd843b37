package blobtest

import (
	"cmp"
	"slices"

	"blobmount/blobcache/blob"
)

// Put creates or replaces a block blob (Put Blob). The Store owns body from now on. All uncommitted blocks of the
// name are discarded.
func (s *Store) Put(name string, body []byte, o blob.WriteOptions) (blob.Written, error) {
	if int64(len(body)) > blob.MaxUploadSize {
		return blob.Written{}, Err("RequestBodyTooLarge")
	}
	o.Kind = blob.BlockBlob
	return s.replace(name, bytesContent(body), o)
}

// PutSynthetic creates or replaces a block blob of any size whose bytes gen makes when they are read.
func (s *Store) PutSynthetic(name string, size int64, gen Generator, o blob.WriteOptions) (blob.Written, error) {
	o.Kind = blob.BlockBlob
	return s.replace(name, syntheticContent(size, gen), o)
}

// PutAppend creates or replaces an append blob with the given first content (Put Blob, and Append Block).
func (s *Store) PutAppend(name string, body []byte, o blob.WriteOptions) (blob.Written, error) {
	o.Kind = blob.AppendBlob
	return s.replace(name, bytesContent(body), o)
}

// PutPage creates or replaces a page blob (Put Blob, and Put Page). Its size must be a multiple of 512 bytes.
func (s *Store) PutPage(name string, body []byte, o blob.WriteOptions) (blob.Written, error) {
	if len(body)%512 != 0 {
		return blob.Written{}, Err("InvalidHeaderValue")
	}
	o.Kind = blob.PageBlob
	return s.replace(name, bytesContent(body), o)
}

func (s *Store) replace(name string, c content, o blob.WriteOptions) (blob.Written, error) {
	if err := checkName(name); err != nil {
		return blob.Written{}, err
	}
	r, err := newRecord(c, o)
	if err != nil {
		return blob.Written{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.get(name)
	if err := s.checkReplace(name, old, o.Condition); err != nil {
		return blob.Written{}, err
	}
	if old != nil {
		r.created = old.created
	}
	delete(s.mu.staged, name)
	return s.put(name, r), nil
}

// AppendCondition is the condition of AppendBlock.
type AppendCondition struct {
	blob.Condition
	Position int64 // the size before (x-ms-blob-condition-appendpos); negative for any
	MaxSize  int64 // the largest size after (x-ms-blob-condition-maxsize); negative for any
}

// AppendBlock adds to the end of an append blob (Append Block) and returns the offset at which it was added. The Store
// owns body.
func (s *Store) AppendBlock(name string, body []byte, c AppendCondition) (blob.Written, int64, error) {
	if len(body) == 0 {
		return blob.Written{}, 0, Err("InvalidHeaderValue") // "Append Block": Content-Length must not be zero
	}
	if int64(len(body)) > blob.MaxAppendSize {
		return blob.Written{}, 0, Err("RequestBodyTooLarge")
	}
	var at int64
	w, err := s.change(name, c.Condition, func(r *record) error {
		if r.kind != blob.AppendBlob {
			return Err("InvalidBlobType")
		}
		if at = r.content.size(); c.Position >= 0 && c.Position != at {
			return Err("AppendPositionConditionNotMet")
		}
		if c.MaxSize >= 0 && at+int64(len(body)) > c.MaxSize {
			return Err("MaxBlobSizeConditionNotMet")
		}
		r.content = concat([]content{r.content, bytesContent(body)})
		return nil
	})
	return w, at, err
}

// PutBlock stores an uncommitted block (Put Block); id is raw. The Store owns body.
func (s *Store) PutBlock(name, id string, body []byte) error {
	if int64(len(body)) > blob.MaxBlockSize {
		return Err("RequestBodyTooLarge")
	}
	if len(body) == 0 {
		return Err("InvalidHeaderValue") // "Put Block": Content-Length must not be zero
	}
	return s.stage(name, id, bytesContent(body))
}

// PutBlockFrom stores an uncommitted block out of a range of a blob (Put Block From URL); count is at most what
// is there, and -1 takes all to the end.
func (s *Store) PutBlockFrom(name, id string, from *Store, src string, offset, count int64, c blob.Condition) error {
	if err := checkName(src); err != nil {
		return err
	}
	source := from.current(src)
	if source == nil {
		return Err("BlobNotFound")
	}
	if checkChange(source, c) != nil {
		return Err("SourceConditionNotMet")
	}
	_, r, err := from.Get(src, offset, count, blob.Condition{IfMatch: formatETag(source.etag)})
	if err != nil {
		return err
	}
	return s.stage(name, id, r.c.cut(r.offset, r.count))
}

func (s *Store) stage(name, id string, c content) error {
	if err := checkName(name); err != nil {
		return err
	}
	if id == "" || len(id) > 64 {
		return Err("InvalidQueryParameterValue")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.get(name); r != nil && r.kind != blob.BlockBlob {
		return Err("InvalidBlobType")
	}
	if err := s.checkLease(name); err != nil {
		return err
	}
	blocks := s.mu.staged[name]
	for other := range blocks {
		if len(other) != len(id) {
			return Err("InvalidBlobOrBlock")
		}
		break // all of them have the same length
	}
	if _, again := blocks[id]; !again && len(blocks) >= maxUncommitted {
		return Err("BlockCountExceedsLimit")
	}
	if blocks == nil {
		blocks = map[string]content{}
		s.mu.staged[name] = blocks
	}
	blocks[id] = c
	return nil
}

// BlockFrom says in which list a block is looked for.
type BlockFrom uint8

// The elements of a Put Block List body.
const (
	Latest      BlockFrom = iota // uncommitted, else committed
	Committed                    // only committed
	Uncommitted                  // only uncommitted
)

// BlockRef names a block in a Put Block List; ID is raw.
type BlockRef struct {
	ID   string
	From BlockFrom
}

// PutBlockList makes the blob consist of the named blocks (Put Block List) and discards all uncommitted ones. A
// committed id that occurs more than once stands for its first occurrence.
func (s *Store) PutBlockList(name string, refs []BlockRef, o blob.WriteOptions) (blob.Written, error) {
	if err := checkName(name); err != nil {
		return blob.Written{}, err
	}
	if len(refs) > blob.MaxBlocks {
		return blob.Written{}, Err("BlockListTooLong")
	}
	if o.Kind != blob.BlockBlob {
		return blob.Written{}, Err("InvalidBlobType")
	}
	r, err := newRecord(content{}, o)
	if err != nil {
		return blob.Written{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.get(name)
	if err := s.checkReplace(name, old, o.Condition); err != nil {
		return blob.Written{}, err
	}
	have := map[string]content{}
	if old != nil {
		if old.kind != blob.BlockBlob {
			return blob.Written{}, Err("InvalidBlobType")
		}
		r.created = old.created
		var at int64
		for _, b := range old.blocks {
			if _, twice := have[b.id]; !twice {
				have[b.id] = old.content.cut(at, b.size)
			}
			at += b.size
		}
	}
	staged := s.mu.staged[name]
	parts := make([]content, len(refs))
	r.blocks = make([]committed, len(refs))
	for i, ref := range refs {
		c, ok := staged[ref.ID]
		if !ok && ref.From == Latest || ref.From == Committed {
			c, ok = have[ref.ID]
		}
		if !ok {
			return blob.Written{}, Err("InvalidBlockList")
		}
		parts[i] = c
		r.blocks[i] = committed{ref.ID, c.size()}
	}
	r.content = concat(parts)
	delete(s.mu.staged, name)
	return s.put(name, r), nil
}

// Blocks returns the committed and uncommitted blocks of a blob (Get Block List), the uncommitted ones by id.
func (s *Store) Blocks(name string) (blob.BlockList, error) {
	if err := checkName(name); err != nil {
		return blob.BlockList{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, staged := s.get(name), s.mu.staged[name]
	if r == nil && len(staged) == 0 {
		return blob.BlockList{}, Err("BlobNotFound")
	}
	var l blob.BlockList
	if r != nil {
		if r.kind != blob.BlockBlob {
			return blob.BlockList{}, Err("InvalidBlobType")
		}
		l.ETag = formatETag(r.etag)
		for _, b := range r.blocks {
			l.Committed = append(l.Committed, blob.Block{ID: b.id, Size: b.size})
		}
	}
	for id, c := range staged {
		l.Uncommitted = append(l.Uncommitted, blob.Block{ID: id, Size: c.size()})
	}
	slices.SortFunc(l.Uncommitted, func(a, b blob.Block) int { return cmp.Compare(a.ID, b.ID) })
	return l, nil
}
