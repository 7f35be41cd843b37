package blob

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"sync"
)

// Leases is what an implementation of Container remembers of the leases that it acquired. All methods may be called in
// parallel.
type Leases struct {
	secret [16]byte
	mu     struct {
		sync.Mutex
		held map[string]struct{} // blobs whose writes carry the id of a lease
	}
}

// NewLeases returns the memory of a new Container.
func NewLeases() *Leases {
	l := &Leases{}
	_, _ = rand.Read(l.secret[:]) // never fails (crypto/rand)
	l.mu.held = map[string]struct{}{}
	return l
}

// ID returns the id, in the form of a UUID, under which the Container leases a blob. It is the same at every call, so
// that an AcquireLease which is repeated because its answer was lost finds its own lease and not somebody else's.
func (l *Leases) ID(name string) string {
	h := sha256.New()
	h.Write(l.secret[:])
	h.Write([]byte(name))
	s := hex.EncodeToString(h.Sum(nil)[:16])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Held returns the id that writes of the blob carry, empty for none.
func (l *Leases) Held(name string) string {
	l.mu.Lock()
	_, held := l.mu.held[name]
	l.mu.Unlock()
	if !held {
		return ""
	}
	return l.ID(name)
}

// Set notes that writes of the blob carry the id from now on.
func (l *Leases) Set(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.held[name] = struct{}{}
}

// Forget notes that they do not any more.
func (l *Leases) Forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.held, name)
}
