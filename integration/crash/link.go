package crash

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Link passes connections on to a service. It can be cut, as when the service is not there: then it refuses
// connections until it is mended. All methods may be called in parallel.
type Link struct {
	target  string
	address string

	mu       sync.Mutex // guards all below
	listener net.Listener
	conns    map[net.Conn]bool // both ends of each connection
	closed   bool
	wg       sync.WaitGroup
}

// NewLink returns a link to host:port, on an address of its own.
func NewLink(target string) (*Link, error) {
	l := &Link{target: target, address: "127.0.0.1:0", conns: map[net.Conn]bool{}}
	return l, l.Mend()
}

// Address is host:port of the link. It stays the same.
func (l *Link) Address() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.address
}

// Mend takes connections again.
func (l *Link) Mend() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != nil || l.closed {
		return nil
	}
	listener, err := net.Listen("tcp", l.address)
	if err != nil {
		return err
	}
	l.listener, l.address = listener, listener.Addr().String()
	l.wg.Go(func() { l.accept(listener) })
	return nil
}

// Cut breaks all connections and refuses new ones. What the service has received whole it may still act on.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != nil {
		_ = l.listener.Close()
		l.listener = nil
	}
	for c := range l.conns {
		_ = c.Close()
	}
}

// Close cuts the link for good, and returns when nothing of it is left.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.Cut()
	l.wg.Wait()
}

// AwaitIdle waits until no connection is left: what a client that has ended sent before, the service has acted on or
// never will. It fails when that takes longer than the bound.
func (l *Link) AwaitIdle(bound time.Duration) error {
	for deadline := time.Now().Add(bound); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		n := len(l.conns)
		l.mu.Unlock()
		if n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the client has ended, and its connections to the service have not")
		}
	}
}

func (l *Link) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return // closed
		}
		service, err := net.Dial("tcp", l.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		if !l.add(listener, client, service) {
			_ = client.Close()
			_ = service.Close()
			return
		}
		l.wg.Go(func() {
			pass(client, service)
			l.remove(client, service)
		})
	}
}

// add keeps the ends of a connection, unless the link was cut since.
func (l *Link) add(listener net.Listener, ends ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != listener {
		return false
	}
	for _, c := range ends {
		l.conns[c] = true
	}
	return true
}

func (l *Link) remove(ends ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range ends {
		_ = c.Close()
		delete(l.conns, c)
	}
}

// pass copies in both directions until both have ended. A client that has gone gets no answer, but what it sent is
// served, and the service is heard out: so that the link is not idle before the service is.
func pass(client, service net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(service, client) // an error: the client was reset
		_ = service.(*net.TCPConn).CloseWrite()
	})
	both.Go(func() {
		_, err := io.Copy(client, service)
		if _, later := io.Copy(io.Discard, service); err == nil && later == nil {
			_ = client.(*net.TCPConn).CloseWrite()
			return
		}
		_ = client.(*net.TCPConn).SetLinger(0) // the service was reset, and so is the client
		_ = client.Close()
	})
	both.Wait()
}
