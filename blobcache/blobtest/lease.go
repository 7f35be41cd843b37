package blobtest

import (
	"time"

	"blobmount/blobcache/blob"
)

// LeaseState is the state of a blob's lease ("Lease Blob", lease states).
type LeaseState string

// The states.
const (
	LeaseAvailable LeaseState = "available"
	LeaseLeased    LeaseState = "leased"
	LeaseExpired   LeaseState = "expired"
	LeaseBreaking  LeaseState = "breaking"
	LeaseBroken    LeaseState = "broken"
)

// Locked reports whether writes need the lease's id.
func (s LeaseState) Locked() bool { return s == LeaseLeased || s == LeaseBreaking }

// lease is the lease of a name that has a blob. It is kept until it is released, or, when it is over, until the next
// version is made: an expired one can be renewed so long.
type lease struct {
	id       string
	duration time.Duration
	until    time.Time
	broken   bool // breaking before until, broken after it
}

func (l lease) state(now time.Time) LeaseState {
	over := !now.Before(l.until)
	switch {
	case l.id == "":
		return LeaseAvailable
	case l.broken && over:
		return LeaseBroken
	case l.broken:
		return LeaseBreaking
	case over:
		return LeaseExpired
	}
	return LeaseLeased
}

// WithLease returns the same blobs for a caller whose requests carry the id of a lease (x-ms-lease-id); empty for
// none.
func (s *Store) WithLease(id string) *Store { return &Store{s.blobs, id} }

// checkLease applies the lease of name to a write that this caller makes ("Lease Blob", outcomes of use attempts). The
// caller holds mu.
func (s *Store) checkLease(name string) error {
	l := s.mu.leases[name]
	switch state := l.state(s.opts.Now()); {
	case state.Locked() && s.lease == "":
		return Err("LeaseIdMissing")
	case state.Locked() && s.lease != l.id:
		return Err("LeaseIdMismatchWithBlobOperation")
	case state.Locked(), s.lease == "":
		return nil
	case s.lease == l.id:
		return Err("LeaseLost")
	}
	return Err("LeaseNotPresentWithBlobOperation")
}

// LeaseState returns the state of a name's lease. Whether there is a blob of that name it does not tell.
func (s *Store) LeaseState(name string) LeaseState {
	s.mu.RLock()
	defer s.mu.RUnlock()
	l, ok := s.mu.leases[name]
	if !ok {
		return LeaseAvailable
	}
	return l.state(s.opts.Now())
}

// AcquireLease takes a lease under the proposed id. Acquiring a lease that is held under this id sets its time anew.
func (s *Store) AcquireLease(name, id string, d time.Duration, c blob.Condition) (blob.Written, error) {
	if id == "" || d < blob.MinLease || d > blob.MaxLease || d%time.Second != 0 {
		return blob.Written{}, Err("InvalidHeaderValue")
	}
	return s.onLease(name, c, func(l lease) (lease, error) {
		switch state := l.state(s.opts.Now()); {
		case state == LeaseBreaking && l.id == id:
			return l, Err("LeaseIsBreakingAndCannotBeAcquired")
		case state.Locked() && l.id != id:
			return l, Err("LeaseAlreadyPresent")
		}
		return lease{id: id, duration: d, until: s.opts.Now().Add(d)}, nil
	})
}

// RenewLease gives a lease its full time again, also one that is over, if nobody changed or leased the blob since.
func (s *Store) RenewLease(name, id string, c blob.Condition) (blob.Written, error) {
	return s.onLease(name, c, func(l lease) (lease, error) {
		if l.id == "" || l.id != id {
			return l, Err("LeaseIdMismatchWithLeaseOperation")
		}
		if l.broken {
			return l, Err("LeaseIsBrokenAndCannotBeRenewed")
		}
		l.until = s.opts.Now().Add(l.duration)
		return l, nil
	})
}

// ReleaseLease ends a lease.
func (s *Store) ReleaseLease(name, id string, c blob.Condition) (blob.Written, error) {
	return s.onLease(name, c, func(l lease) (lease, error) {
		if l.id == "" || l.id != id {
			return l, Err("LeaseIdMismatchWithLeaseOperation")
		}
		return lease{}, nil
	})
}

// BreakLease ends a lease of anybody after period, or sooner when it ends by itself; a negative period means then. It
// returns the time that is left.
func (s *Store) BreakLease(name string, period time.Duration, c blob.Condition) (blob.Written, time.Duration, error) {
	var left time.Duration
	w, err := s.onLease(name, c, func(l lease) (lease, error) {
		now := s.opts.Now()
		if l.id == "" {
			return l, Err("LeaseNotPresentWithLeaseOperation")
		}
		if left = max(0, l.until.Sub(now)); period >= 0 {
			left = min(left, period)
		}
		l.broken, l.until = true, now.Add(left)
		return l, nil
	})
	return w, left, err
}

// onLease replaces the lease of an existing blob by what f makes of it. The version stays.
func (s *Store) onLease(name string, c blob.Condition, f func(lease) (lease, error)) (blob.Written, error) {
	if err := checkName(name); err != nil {
		return blob.Written{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.get(name)
	if err := checkChange(r, c); err != nil {
		return blob.Written{}, err
	}
	l, err := f(s.mu.leases[name])
	if err != nil {
		return blob.Written{}, err
	}
	if l.id == "" {
		delete(s.mu.leases, name)
	} else {
		s.mu.leases[name] = l
	}
	return r.written(), nil
}
