package identity

import (
	"io"
	"net"
	"net/http"
	"sync"
)

// Proxy is the address of an HTTP proxy that knows one host, the public cloud's authority, and leads it to this service.
// Other hosts it refuses; IMDS too, requests for which must not go through a proxy.
func (s *Server) Proxy() string { return "http://" + s.managed }

// proxy serves requests that were meant for a proxy, and passes on others.
func (s *Server) proxy(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect && r.Host == publicHost+":443":
			s.tunnel(w)
		case r.Method == http.MethodConnect, r.URL.IsAbs():
			http.Error(w, "this proxy does not know "+r.Host, http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// tunnel joins the connection to the https listener, until one side ends.
func (s *Server) tunnel(w http.ResponseWriter) {
	there, err := net.Dial("tcp", s.address)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the client has gone
	}
	defer here.Close()
	if _, err := io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	var both sync.WaitGroup
	pass := func(to net.Conn, from io.Reader) {
		_, _ = io.Copy(to, from) // an error ends the tunnel like the end
		here.Close()
		there.Close()
	}
	both.Go(func() { pass(there, buffered) })
	both.Go(func() { pass(here, there) })
	both.Wait()
}
