package blobserver

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// leaseBlob is Lease Blob: acquire, renew, release and break. Its leases have an end, and keep their ids.
func (q *request) leaseBlob() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	id := strings.ToLower(q.r.Header.Get("x-ms-lease-id"))
	var w blob.Written
	status := http.StatusOK
	switch q.r.Header.Get("x-ms-lease-action") {
	case "acquire":
		status = http.StatusCreated
		w, id, err = q.acquireLease(store)
	case "renew":
		w, err = store.RenewLease(q.blob, id, q.condition(""))
	case "release":
		w, err = store.ReleaseLease(q.blob, id, q.condition(""))
		if err == nil {
			id = ""
		}
	case "break":
		status = http.StatusAccepted
		w, err = q.breakLease(store)
	case "change":
		err = blobtest.Err("NotImplemented")
	default:
		err = blobtest.Err("InvalidHeaderValue")
	}
	if err != nil {
		return err
	}
	if id != "" {
		q.w.Header().Set("x-ms-lease-id", id)
	}
	q.answerWritten(status, w)
	return nil
}

func (q *request) acquireLease(store *blobtest.Store) (blob.Written, string, error) {
	h := q.r.Header
	seconds, err := strconv.Atoi(h.Get("x-ms-lease-duration"))
	if err != nil {
		return blob.Written{}, "", blobtest.Err("InvalidHeaderValue")
	}
	if seconds == -1 {
		return blob.Written{}, "", blobtest.Err("UnsupportedHeader") // a lease without end
	}
	id := strings.ToLower(h.Get("x-ms-proposed-lease-id"))
	if id == "" {
		id = requestID() // as good as any UUID
	}
	w, err := store.AcquireLease(q.blob, id, time.Duration(seconds)*time.Second, q.condition(""))
	return w, id, err
}

func (q *request) breakLease(store *blobtest.Store) (blob.Written, error) {
	period := -time.Second // when the lease ends by itself
	if text := q.r.Header.Get("x-ms-lease-break-period"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil || seconds < 0 || seconds > 60 {
			return blob.Written{}, blobtest.Err("InvalidHeaderValue")
		}
		period = time.Duration(seconds) * time.Second
	}
	w, left, err := store.BreakLease(q.blob, period, q.condition(""))
	if err == nil {
		q.w.Header().Set("x-ms-lease-time", strconv.Itoa(int((left+time.Second-1)/time.Second)))
	}
	return w, err
}

func leaseStatus(s blobtest.LeaseState) string {
	if s.Locked() {
		return "locked"
	}
	return "unlocked"
}
