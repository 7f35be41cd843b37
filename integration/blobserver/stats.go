package blobserver

import (
	"maps"
	"sync"
)

// Stats count what was asked of a Server since the start or the last ResetStats.
type Stats struct {
	// Requests by REST operation: GetBlob, GetBlobProperties, PutBlob, PutBlock, PutBlockFromURL, PutBlockList,
	// GetBlockList, AppendBlock, CopyBlob, SetBlobMetadata, SetBlobProperties, SetBlobTier, DeleteBlob, ListBlobs,
	// CreateContainer, GetContainerProperties, DeleteContainer, GetAccountInformation, and Unknown. Refused and
	// broken requests count too.
	Requests map[string]int64
	// Codes by error code, of answers that were errors.
	Codes map[string]int64
	// BytesIn and BytesOut are the bodies of blobs and blocks.
	BytesIn, BytesOut int64
}

// Total returns the number of all requests.
func (s Stats) Total() int64 {
	var n int64
	for c := range maps.Values(s.Requests) {
		n += c
	}
	return n
}

type stats struct {
	mu sync.Mutex // guards s
	s  Stats
}

// Stats returns a copy of the counters. A request is counted when it arrives, bytes when they passed.
func (s *Server) Stats() Stats {
	s.stats.mu.Lock()
	defer s.stats.mu.Unlock()
	c := s.stats.s
	c.Requests = maps.Clone(c.Requests)
	c.Codes = maps.Clone(c.Codes)
	return c
}

// ResetStats sets all counters to zero.
func (s *Server) ResetStats() {
	s.stats.mu.Lock()
	defer s.stats.mu.Unlock()
	s.stats.s = Stats{Requests: map[string]int64{}, Codes: map[string]int64{}}
}

func (s *stats) request(op string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s.Requests[op]++
}

func (s *stats) failure(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s.Codes[code]++
}

func (s *stats) bytes(in, out int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s.BytesIn += int64(in)
	s.s.BytesOut += int64(out)
}
