package blobcache

// Statistics are counts of a cache, for people.
type Statistics struct {
	Bytes   int64 // of disk that cached and staged data take, of all processes that use the directory
	Limit   int64 // most bytes that cached data may take, from Config.Size
	Evicted int64 // versions that this process has removed to make room
}

// Statistics returns the counts of now. It takes no lock, and asks neither the disk nor the service.
func (c *Cache) Statistics() Statistics {
	return Statistics{Bytes: c.space.inUse(), Limit: c.space.limit, Evicted: c.evicted.Load()}
}
