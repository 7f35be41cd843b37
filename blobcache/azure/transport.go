package azure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

// TransportConfig says how connections are made.
type TransportConfig struct {
	// MaxConnections bounds the connections to the endpoint, and so the requests under way, from before they are
	// sent until the body of the answer was read to the end or closed; further ones wait their turn. While the
	// service throttles the bound is lower. 0 means DefaultMaxConnections.
	MaxConnections int
	// StallTimeout is how long a connection with a request under way may go without moving a byte in either
	// direction before it counts as broken. There is no bound on a whole request: a slow line that keeps
	// moving is not a failure. 0 means DefaultStallTimeout.
	StallTimeout time.Duration
	// Proxy chooses the proxy of a request as in http.Transport; nil means none. Nothing is read from the
	// environment here.
	Proxy func(*http.Request) (*url.URL, error)
	// RootCAs verifies the endpoint's certificate; nil means the system's authorities.
	RootCAs *x509.CertPool
}

// ProxyError says that an HTTP proxy refused to connect to the service. It is in the chain of the error of an operation.
type ProxyError struct {
	Proxy  string // host and port
	Status int    // of its answer
}

// Error returns one line.
func (e *ProxyError) Error() string {
	return fmt.Sprintf("the proxy %s answered %d %s", e.Proxy, e.Status, http.StatusText(e.Status))
}

// Defaults of TransportConfig.
const (
	DefaultMaxConnections = 64
	// DefaultStallTimeout is twice the 30 seconds after which the service itself gives up most requests.
	DefaultStallTimeout = 60 * time.Second
)

const (
	dialTimeout = 15 * time.Second
	// bufferSize of reading and of writing, per connection. Larger reads go from the socket straight into the
	// caller's memory; uploads are written in pieces of this size. The default of net/http, 4 KiB, costs a
	// system call for each 4 KiB that is uploaded.
	bufferSize = 128 << 10
)

// transport sends one request. It is a http.Transport without the client around it: redirects are not followed,
// since the service never sends any and following one would carry the credential elsewhere.
type transport struct{ *http.Transport }

func newTransport(cfg TransportConfig) transport {
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = DefaultStallTimeout
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	// HTTP/1.1 only: the service speaks nothing else, and where a proxy offers HTTP/2 all streams would share
	// one connection and its flow control.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return transport{&http.Transport{
		Proxy: cfg.Proxy,
		OnProxyConnectResponse: func(_ context.Context, proxy *url.URL, _ *http.Request, answer *http.Response) error {
			if answer.StatusCode != http.StatusOK {
				return &ProxyError{Proxy: proxy.Host, Status: answer.StatusCode}
			}
			return nil
		},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &stallConn{Conn: conn, limit: cfg.StallTimeout}, nil
		},
		TLSClientConfig:     &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           protocols,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		// Blobs with Content-Encoding: gzip must arrive as they are stored.
		DisableCompression:  true,
		MaxConnsPerHost:     cfg.MaxConnections,
		MaxIdleConnsPerHost: cfg.MaxConnections,
		// Shorter than the stall timeout, which runs on idle connections too: so none is taken from the pool
		// at the moment when it expires.
		IdleConnTimeout: min(90*time.Second, cfg.StallTimeout/2),
		ReadBufferSize:  bufferSize,
		WriteBufferSize: bufferSize,
	}}
}

// Do implements policy.Transporter.
func (t transport) Do(req *http.Request) (*http.Response, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return t.RoundTrip(req)
	}
	if fromFile(req) {
		return t.RoundTrip(req)
	}
	g := &gate{body: req.Body}
	defer func() { g.shut() }()
	req.Body = g
	// net/http repeats a request by itself when the connection that it took from the pool turns out to have
	// been closed by the server before anything was sent.
	if rewind := req.GetBody; rewind != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			g.shut()
			body, err := rewind()
			if err != nil {
				return nil, err
			}
			g = &gate{body: body}
			return g, nil
		}
	}
	return t.RoundTrip(req)
}

// gate stands before the body of a request. net/http may go on reading it after RoundTrip returned, when the
// answer came before everything was sent or the attempt failed. By then the body may be rewound for the next
// attempt, or the caller may have reused the memory: so the gate is shut first.
type gate struct {
	mu     sync.Mutex // guards closed, and is held while the body is read
	closed bool
	body   io.ReadCloser
}

var errGateShut = errors.New("request is over")

func (g *gate) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, errGateShut
	}
	return g.body.Read(p)
}

func (g *gate) shut() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
}

// Close is net/http's; the body belongs to the caller, who may still want to repeat the request.
func (g *gate) Close() error {
	g.shut()
	return nil
}

// stallConn breaks when no byte moves for limit. Each write moves the deadline of the answer too, so that the
// time a server may take begins when it has the whole request.
type stallConn struct {
	net.Conn
	limit time.Duration
}

// errStalled stands for the deadline error of the connection. That one must not reach a caller, who would take
// it for a deadline of his own.
var errStalled = errors.New("connection stalled")

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	return n, stalled(err)
}

// extend moves both deadlines, since something is about to be sent.
func (c *stallConn) extend() error { return c.SetDeadline(time.Now().Add(c.limit)) }

func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.extend(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	return n, stalled(err)
}

func stalled(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStalled
	}
	return err
}
