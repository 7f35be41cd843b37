// Package blobserver is a small Blob service for one machine: an HTTP server that speaks the part of the REST
// dialect that azblob v1.8 uses, over the in-memory stores of package blobtest, in the path style of Azurite
// (http://127.0.0.1:PORT/devstoreaccount1/CONTAINER/BLOB).
//
// It exists so that tests, benchmarks and a first try need neither an account nor Node: it streams at gigabytes a
// second, and can be slowed down and broken on purpose. It keeps nothing on disk, and listens on loopback
// addresses only. What it does not know (snapshots, versions, leases without end, structured bodies, customer keys,
// dates as conditions) it refuses with UnsupportedHeader, UnsupportedQueryParameter or NotImplemented; it ignores no
// header that changes what a request means.
package blobserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// The account that storage emulators share ("Use the Azurite emulator", well-known storage account and key). The
// key is public and protects nothing.
const (
	DefaultAccount = "devstoreaccount1"
	DefaultKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Options configure a Server. The zero value is a server as fast as the machine, on a free port, with the
// emulators' account, that wants a signature.
type Options struct {
	// Listen is host:port, the host a loopback address; empty is 127.0.0.1 and a free port.
	Listen string
	// Account and Key (base64) are the credential; both empty for the emulators' own.
	Account, Key string
	// Containers exist from the start.
	Containers []string
	// Anonymous allows reading and listing without credentials, as a container with public access does.
	Anonymous bool
	// Bearer decides about the bearer token of a request; nil accepts none. An error that is a *blob.Error is the
	// answer, such as that of an identity without a role; any other one says what is wrong with the token, which the
	// service answers by 401 and a challenge. Parallel calls are made.
	Bearer func(token string) error
	// Authority is where the challenge sends a client for a token, https://HOST/TENANT; empty: no challenge.
	Authority string
	// TLS has the certificate to serve https with; nil serves http, over which azcore sends no bearer token.
	TLS *tls.Config
	// Store configures the stores of new containers. Its clock is Clock's when Store.Now is nil.
	Store blobtest.StoreOptions
	// Clock times latency, bandwidth and the expiry of signatures; nil is the machine's.
	Clock Clock
	// Seed makes jitter and probabilities repeatable.
	Seed uint64
	// Shape can be changed later by SetShape.
	Shape Shape
	// Log gets one line a request at debug level, without credentials; nil is none.
	Log *slog.Logger
}

// Server is a running service. All methods may be called in parallel.
type Server struct {
	opts Options
	keys atomic.Pointer[[][]byte] // of the account
	url  string
	http *http.Server
	stop context.CancelFunc // ends the context of all requests
	done chan struct{}      // closed when Serve has returned

	containers struct {
		sync.RWMutex
		m map[string]*container
	}
	shaper   shaper
	faults   faults
	stats    stats
	listings listings
}

// container is immutable.
type container struct {
	store    *blobtest.Store
	etag     blob.ETag
	modified time.Time
}

// Start runs a service until Close.
func Start(o Options) (*Server, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if err := checkLoopback(o.Listen); err != nil {
		return nil, err
	}
	if o.Account == "" && o.Key == "" {
		o.Account, o.Key = DefaultAccount, DefaultKey
	}
	if o.Clock == nil {
		o.Clock = machineClock{}
	}
	if o.Store.Now == nil {
		o.Store.Now = o.Clock.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, done: make(chan struct{}), listings: make(listings, keptListings)}
	if err := s.SetKeys(o.Key); err != nil || o.Account == "" {
		return nil, errors.New("blobserver: an account needs a name and a key in base64")
	}
	s.containers.m = map[string]*container{}
	s.shaper.init(o.Clock, o.Seed)
	s.faults.init(o.Seed)
	s.SetShape(o.Shape)
	s.ResetStats()
	for _, name := range o.Containers {
		if err := s.CreateContainer(name); err != nil {
			return nil, fmt.Errorf("blobserver: %w", err)
		}
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("blobserver: %w", err)
	}
	s.url = s.scheme() + "://" + l.Addr().String() + "/" + o.Account
	if o.TLS != nil {
		l = tls.NewListener(l, o.TLS)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.http = &http.Server{
		BaseContext:       func(net.Listener) context.Context { return ctx },
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, &connLimits{})
		},
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("blobserver stopped", "error", err)
		}
	}()
	return s, nil
}

func checkLoopback(listen string) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("blobserver: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("blobserver: %q is not a loopback address: the account's key is public", host)
	}
	return nil
}

// Close ends the service and all its connections, stalled requests too.
func (s *Server) Close() error {
	s.stop()
	err := s.http.Close()
	<-s.done
	return err
}

// URL returns the address of the account, without a slash at the end. A container's is URL()+"/"+name.
func (s *Server) URL() string { return s.url }

// ConnectionString returns what azblob and other tools need to use the account, its key included.
func (s *Server) ConnectionString() string {
	return fmt.Sprintf("DefaultEndpointsProtocol=%s;AccountName=%s;AccountKey=%s;BlobEndpoint=%s;", s.scheme(), s.opts.Account, s.opts.Key, s.url)
}

func (s *Server) scheme() string {
	if s.opts.TLS != nil {
		return "https"
	}
	return "http"
}

// containerName is the rule of "Naming and referencing containers, blobs, and metadata"; two hyphens in a row,
// which it forbids too, are checked apart.
var (
	containerName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{1,61}[a-z0-9])|\$root|\$web|\$logs)$`)
	doubleHyphen  = regexp.MustCompile(`--`)
)

// CreateContainer creates an empty container.
func (s *Server) CreateContainer(name string) error {
	if !containerName.MatchString(name) || doubleHyphen.MatchString(name) {
		return containerError("InvalidResourceName", name)
	}
	s.containers.Lock()
	defer s.containers.Unlock()
	if s.containers.m[name] != nil {
		return containerError("ContainerAlreadyExists", name)
	}
	now := s.opts.Store.Now()
	s.containers.m[name] = &container{
		store: blobtest.NewStore(s.opts.Store), modified: now.UTC().Truncate(time.Second),
		etag: blob.ETag(fmt.Sprintf(`"0x%X"`, now.UnixNano())),
	}
	return nil
}

func containerError(code, name string) error {
	e := blobtest.Err(code)
	e.Op, e.Name = "CreateContainer", name
	return e
}

// Store returns the blobs of a container, nil when there is none of that name. What is changed there is seen by
// the next request.
func (s *Server) Store(name string) *blobtest.Store {
	c, err := s.container(name)
	if err != nil {
		return nil
	}
	return c.store
}

func (s *Server) container(name string) (*container, error) {
	s.containers.RLock()
	defer s.containers.RUnlock()
	c := s.containers.m[name]
	if c == nil {
		return nil, blobtest.Err("ContainerNotFound")
	}
	return c, nil
}

func (s *Server) deleteContainer(name string) error {
	s.containers.Lock()
	defer s.containers.Unlock()
	if s.containers.m[name] == nil {
		return blobtest.Err("ContainerNotFound")
	}
	delete(s.containers.m, name)
	return nil
}
