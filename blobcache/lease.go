package blobcache

import (
	"context"
	"time"

	"blobmount/blobcache/blob"
)

// With leases a File that is open for writing holds a lease on its blob, so that another writer, on any host, fails when
// it opens the file and not when it closes it. A lease lasts a minute and is renewed every 20 seconds: two renewals may
// fail before others get in, and a host that is gone blocks them for a minute.
const (
	leaseTime  = blob.MaxLease
	leaseRenew = leaseTime / 3
)

// lease is what a File knows of its lease. Guarded by File.commit, since a lease belongs to the blob's name.
type lease struct {
	name string // of the blob that is leased, empty if none is
	stop func() // ends the renewals
}

// Lease takes a lease on the blob until nobody has the File open for writing and it is clean. It fails with Leased when
// another writer has one. Without Config.Leases it does nothing; for a blob that the service does not have yet too.
func (f *File) Lease(ctx context.Context) error {
	if !f.c.leases {
		return nil
	}
	f.commit.Lock()
	defer f.commit.Unlock()
	return f.takeLease(ctx)
}

// takeLease is Lease with f.commit held.
func (f *File) takeLease(ctx context.Context) error {
	f.mu.RLock()
	name, isNew := f.props.Name, f.isNew
	f.mu.RUnlock()
	if isNew || f.lease.name == name {
		return nil
	}
	f.dropLease()
	if err := f.cont.AcquireLease(ctx, name, leaseTime); err != nil {
		return err
	}
	renewing, stop := context.WithCancel(f.c.ctx)
	f.lease = lease{name, stop}
	go f.renew(renewing, name)
	return nil
}

// renew renews a lease until ctx ends. One that another writer has broken is not taken again: writes fail from then on.
func (f *File) renew(ctx context.Context, name string) {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := f.cont.RenewLease(ctx, name); err != nil && ctx.Err() == nil {
			f.c.log.Warn("lease could not be renewed: another writer may change the blob, and then the next commit fails",
				"blob", name, "error", err)
		}
	}
}

// dropLease gives the lease back. f.commit is held.
func (f *File) dropLease() {
	l := f.lease
	if l.name == "" {
		return
	}
	f.lease = lease{}
	l.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.c.ctx), leaseTime) // then it is over anyway
	defer cancel()
	if err := f.cont.ReleaseLease(ctx, l.name); err != nil && !blob.Is(err, blob.NotFound) {
		f.c.log.Debug("lease could not be given back, it ends by itself", "blob", l.name, "error", err)
	}
}

// endLease gives the lease back if still nobody has the File open for writing.
func (f *File) endLease() {
	f.commit.Lock()
	defer f.commit.Unlock()
	f.mu.RLock()
	used := f.writing > 0 || f.dirty()
	f.mu.RUnlock()
	if !used {
		f.dropLease()
	}
}
