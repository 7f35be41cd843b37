package blobserver

import (
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"blobmount/blobcache/blobtest"
)

// Action is what a Fault does to a request.
type Action uint8

const (
	// Refuse answers with Status and Code, and does not act.
	Refuse Action = iota
	// LoseReply acts, and resets the connection instead of answering.
	LoseReply
	// Break resets the connection when Bytes of the body went through: of the request, if it has one, which then
	// does not act, else of the answer, whose last byte is never sent. A request with neither body is reset at once
	// and does not act.
	Break
	// Stall lets the request wait until Until is closed, and then act as if nothing was. It ends without an answer
	// when the Server is closed, or when the client has gone, which net/http notices for requests without a body only.
	Stall
)

// Fault breaks requests on purpose.
type Fault struct {
	// Op is the REST operation as in Stats, such as "PutBlock"; empty for all.
	Op string
	// Name is the blob, with * for any characters (blobtest.Match), or the prefix of a listing; empty for all.
	Name string
	// Nth chooses the n-th request, from 1, among those that Op and Name choose; 0 chooses by Probability.
	Nth int
	// Probability is that of each request, when Nth is 0; 0 stands for 1.
	Probability float64

	Action Action
	// Status, Code (of the service, such as "ServerBusy") and RetryAfter are Refuse's answer. With Status 0 the
	// status is the code's own.
	Status     int
	Code       string
	RetryAfter time.Duration // whole seconds
	Bytes      int64
	Until      <-chan struct{}
}

type faults struct {
	mu struct {
		sync.Mutex
		rules []*faultRule
		rand  *rand.Rand
	}
}

type faultRule struct {
	fault       Fault
	calls, hits int
}

func (f *faults) init(seed uint64) { f.mu.rand = rand.New(rand.NewPCG(seed, 2)) }

// AddFault adds a fault for the requests from now on, and returns a function that says how many it has hit. When
// several hit a request, the one that was added first acts; all count the request.
func (s *Server) AddFault(fault Fault) (hits func() int) {
	f := &s.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &faultRule{fault: fault}
	f.mu.rules = append(f.mu.rules, r)
	return func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return r.hits
	}
}

// ClearFaults removes all faults.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.mu.rules = nil
}

func (f *faults) choose(op, name string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hit *Fault
	for _, r := range f.mu.rules {
		if r.fault.Op != "" && r.fault.Op != op || r.fault.Name != "" && !blobtest.Match(r.fault.Name, name) {
			continue
		}
		r.calls++
		switch {
		case r.fault.Nth != 0 && r.fault.Nth != r.calls:
			continue
		case r.fault.Nth == 0 && r.fault.Probability > 0 && f.mu.rand.Float64() >= r.fault.Probability:
			continue
		}
		r.hits++
		if hit == nil {
			hit = &r.fault
		}
	}
	return hit
}

// resetAfter resets the connection when what was written so far was sent.
func resetAfter(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // an error: the client has gone, which is as well
	reset(w)
}

// reset ends the connection with a TCP reset. It does not return: the handler is over.
func reset(w http.ResponseWriter) {
	rc := http.NewResponseController(w)
	if conn, _, err := rc.Hijack(); err == nil {
		if secure, ok := conn.(*tls.Conn); ok {
			conn = secure.NetConn() // without the goodbye of TLS
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // Close then sends RST; when that fails it sends FIN, which breaks the answer too
		}
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}
