// Package identity is a small identity service for one machine: what of Microsoft Entra ID and of the managed-identity
// endpoints of Azure's hosts azidentity v1.15 uses to get a token for Azure Storage. It exists so that tests can prove,
// without an account, that each kind of identity reaches a blob service that checks tokens.
//
// Two listeners on loopback addresses serve it. One is https, with a certificate of an authority that is made at the
// start: the endpoints of a tenant, under the listener's own address (an AZURE_AUTHORITY_HOST that no Microsoft server
// knows) and, through the proxy, under login.microsoftonline.com. The other one is http: the managed-identity endpoints,
// and a proxy that leads the authority of the public cloud here.
//
// What a client must prove is really checked: secrets, signatures, audiences, lifetimes, headers of the hosts'
// endpoints. What is refused is refused in Entra's words ("Microsoft Entra authentication and authorization error
// codes"). Nothing is kept on disk, but for the challenge files of Azure Arc.
package identity

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Tenant is the only tenant there is.
const Tenant = "5f1d3a52-9f0e-4d5c-8a66-0c6d2c1e7b10"

// Path is a way to a token, or to the description of the service.
type Path string

// The paths whose requests are counted.
const (
	Instance          Path = "instance discovery"
	OpenID            Path = "OpenID configuration"
	ClientSecret      Path = "client secret"
	ClientCertificate Path = "client certificate"
	Federated         Path = "federated token"
	AppService        Path = "App Service"
	IMDS              Path = "IMDS"
	AzureML           Path = "Azure ML"
	Arc               Path = "Azure Arc"
)

// DefaultLife is how long a token holds until SetLife says otherwise: what Entra gives at least.
const DefaultLife = time.Hour

// Server is a running service. All methods may be called in parallel.
type Server struct {
	ca      *authority
	key     []byte // signs access tokens
	tls     *http.Server
	plain   *http.Server
	address string // of the https listener
	managed string // of the http listener
	header  string // what the hosts' endpoints want to see
	stop    context.CancelFunc
	serving sync.WaitGroup

	mu       sync.Mutex // guards what follows
	apps     map[string]*application
	assigned []ManagedIdentity
	arc      string // where challenge files are written
	arcKeys  map[string]string
	life     time.Duration
	stated   time.Duration
	refusal  *Refusal
	held     chan struct{} // closed when requests may go on; nil when none is held
	requests map[Path]int
	used     map[string]int
	ends     map[int64]bool // Unix times
	rejected int
	secrets  map[string]bool
}

// Refusal is an answer to every request for a token.
type Refusal struct {
	// Status is the HTTP status, Error the OAuth 2.0 error, such as 401 and invalid_client.
	Status int
	Error  string
	// Code is the number behind AADSTS, and Text follows it.
	Code int
	Text string
}

// Start runs a service until Close.
func Start() (*Server, error) {
	ca, err := newAuthority()
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	certificate, err := ca.issue("localhost", "127.0.0.1", "::1", publicHost)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	s := &Server{
		ca: ca, key: random(32), header: text(random(24)), life: DefaultLife, stated: DefaultLife,
		apps: map[string]*application{}, arcKeys: map[string]string{},
		requests: map[Path]int{}, used: map[string]int{}, ends: map[int64]bool{}, secrets: map[string]bool{},
	}
	s.secrets[s.header] = true
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("identity: %w", err), secure.Close())
	}
	s.address, s.managed = secure.Addr().String(), plain.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	serve := func(l net.Listener, h http.Handler) *http.Server {
		server := &http.Server{
			Handler: h, BaseContext: func(net.Listener) context.Context { return ctx },
			ReadHeaderTimeout: time.Minute,
			ErrorLog:          log.New(io.Discard, "", 0), // a client that does not know the authority is part of some tests
		}
		// Serve returns when Close is called, and its error says no more than that.
		s.serving.Go(func() { _ = server.Serve(l) })
		return server
	}
	s.tls = serve(tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}}), s.entra())
	s.plain = serve(plain, s.hosts())
	return s, nil
}

// Close ends the service, and requests that are held.
func (s *Server) Close() error {
	s.stop()
	err := errors.Join(s.tls.Close(), s.plain.Close())
	s.serving.Wait()
	return err
}

// URL is the authority host: https, without a slash at the end. A client needs the CA for it, and must not look the
// host up in the public cloud, which does not know it (instance discovery).
func (s *Server) URL() string { return "https://" + s.address }

// Authority is the tenant's address, as a challenge of the blob service names it.
func (s *Server) Authority() string { return s.URL() + "/" + Tenant }

// CA returns the certificate of the authority, in PEM.
func (s *Server) CA() []byte { return slices.Clone(s.ca.pem) }

// Roots trusts the authority and no other.
func (s *Server) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.cert)
	return pool
}

// TLS returns the configuration of another server on a loopback address, such as the blob service, with a certificate of
// the same authority.
func (s *Server) TLS() (*tls.Config, error) {
	certificate, err := s.ca.issue("localhost", "127.0.0.1", "::1")
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}}, nil
}

// SetLife sets for how long the tokens from now on hold, and for how long the answer says that they do. When the latter
// is longer, clients are refused by the blob service with a token that they take for good, as after a revocation. Both
// are rounded up to seconds.
func (s *Server) SetLife(holds, stated time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.stated = holds, stated
}

// Refuse answers all requests for tokens by r, nil ends that.
func (s *Server) Refuse(r *Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = r
}

// Hold lets requests for tokens wait until release is called, which may be called again.
func (s *Server) Hold() (release func()) {
	held := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held == held {
			s.held = nil
		}
		close(held)
	})
}

// Requests returns how many requests of a kind came, refused ones and held ones too.
func (s *Server) Requests(p Path) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[p]
}

// Secrets returns every value that must not be seen anywhere: client secrets, the hosts' headers, assertions, and tokens
// that were given out. Of what is signed these are the parts that identify it, so that a shortened copy is found too.
func (s *Server) Secrets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.secrets))
}

// keep notes a secret; of a JWT its content and its signature, without the header that all have.
func (s *Server) keep(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if parts := strings.Split(secret, "."); len(parts) == 3 {
		s.secrets[parts[1]], s.secrets[parts[2]] = true, true
		return
	}
	s.secrets[secret] = true
}

// admit counts a request for a token, lets it wait if it is to wait, and returns how it is to be refused.
func (s *Server) admit(r *http.Request, p Path) *Refusal {
	s.mu.Lock()
	s.requests[p]++
	held := s.held
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler) // the client has gone
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal
}

func (s *Server) count(p Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[p]++
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error: the client has gone
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}
