// Package azurite runs the blob service of Azurite, Microsoft's storage emulator, for tests. The version is the
// one pinned in integration/package.json.
package azurite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Account and Key are Azurite's built-in account. They are public: every installation has the same
// (https://learn.microsoft.com/azure/storage/common/storage-use-azurite#well-known-storage-account-and-key).
const (
	Account = "devstoreaccount1"
	Key     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 10 * time.Second
)

// Server is a running Azurite. Its methods may be called in parallel.
type Server struct {
	// URL is the endpoint of the account, without a slash at the end: http://127.0.0.1:PORT/devstoreaccount1
	URL string
}

// Start runs Azurite on a free port of the loopback interface until the test ends. Its data lie in a temporary
// directory on disk: kept in memory, Azurite bounds them to half of the machine's memory.
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	// The port is free again for a moment before Azurite takes it. When somebody else is faster, Azurite ends
	// at once and another port is tried.
	for try := 1; ; try++ {
		s, err := start(t, program)
		if err == nil {
			return s
		}
		if try == 3 || !errors.Is(err, errEnded) {
			t.Fatal(err)
		}
		t.Log(err)
	}
}

// find returns the path of the installed program.
func find() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the source of package azurite is not known, so Azurite cannot be found beside it")
	}
	program := filepath.Join(filepath.Dir(file), "..", "node_modules", ".bin", "azurite-blob")
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("no Azurite is installed; run: npm ci --prefix integration")
	} else if err != nil {
		return "", err
	}
	return program, nil
}

var errEnded = errors.New("the process of Azurite ended")

func start(t testing.TB, program string) (*Server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "azurite-")
	if err != nil {
		return nil, err
	}
	var output log
	cmd := exec.Command(program,
		"--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(port), "--location", dir,
		"--silent", "--disableTelemetry", "--skipApiVersionCheck")
	cmd.Stdout, cmd.Stderr = &output, &output
	// An end of its own process group, so that an interrupt from the terminal ends the test first, which then
	// stops Azurite.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("start Azurite: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(stopTimeout):
			cmd.Process.Kill()
			<-ended
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
	s := &Server{URL: fmt.Sprintf("http://127.0.0.1:%d/%s", port, Account)}
	if err := s.await(ended); err != nil {
		stop()
		return nil, fmt.Errorf("%w\n%s", err, output.String())
	}
	t.Cleanup(stop)
	return s, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// await waits for the first answer, whatever it is.
func (s *Server) await(ended <-chan error) error {
	deadline := time.After(startTimeout)
	for {
		resp, err := http.Get(s.URL)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%w before it answered: %v", errEnded, err)
		case <-deadline:
			return fmt.Errorf("no answer from Azurite within %v: %w", startTimeout, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ConnectionString returns what the SDKs and the Azure CLI take.
func (s *Server) ConnectionString() string {
	return fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=%s;AccountKey=%s;BlobEndpoint=%s;", Account, Key, s.URL)
}

// Credential returns the account's key as the SDK's credential.
func (s *Server) Credential() *container.SharedKeyCredential {
	cred, err := container.NewSharedKeyCredential(Account, Key)
	if err != nil {
		panic(err) // the key above is a constant
	}
	return cred
}

// CreateContainer makes a container, unless it is there, and returns its URL.
func (s *Server) CreateContainer(ctx context.Context, name string) (string, error) {
	url := s.URL + "/" + name
	client, err := container.NewClientWithSharedKeyCredential(url, s.Credential(), nil)
	if err != nil {
		return "", err
	}
	if _, err := client.Create(ctx, nil); err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return "", err
	}
	return url, nil
}

// log keeps what Azurite says, for a failed start.
type log struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
