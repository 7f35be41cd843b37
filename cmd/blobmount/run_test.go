package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// asBlobmount makes this test binary run as blobmount, so that the background process of a test is the real thing.
const asBlobmount = "BLOBMOUNT_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	switch os.Getenv(asBlobmount) {
	case "1":
		main()
	case "die":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	os.Exit(m.Run())
}

type fakeToken struct{}

func (fakeToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{}, errors.New("no token")
}

// result is what a run left behind.
type result struct {
	status         int
	stdout, stderr string
}

// start runs a command in this process.
func start(t *testing.T, sys system, env map[string]string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	status := run(t.Context(), process{
		args: args, environ: nil,
		lookupEnv: func(n string) (string, bool) { v, ok := env[n]; return v, ok },
		stdout:    &out, stderr: &errs, system: sys,
	})
	return result{status, out.String(), errs.String()}
}

// answers is a service that gives one answer to every request.
func answers(t *testing.T, status int, code string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		if code != "" {
			w.Header().Set("x-ms-error-code", code)
		}
		w.WriteHeader(status)
		if code != "" {
			fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>text</Message></Error>", code)
			return
		}
		io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="data"><Blobs /><NextMarker /></EnumerationResults>`)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/acct1"
}

// "Bad input: each one line on standard error saying what to do, exit status as mount(8) defines it, nothing left
// mounted." What is wrong in the arguments alone is in TestConfigRefuses.
func TestBadInput(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	notFound, wrongKey, forbidden, good := answers(t, 404, "ContainerNotFound"), answers(t, 403, "AuthenticationFailed"),
		answers(t, 403, "AuthorizationPermissionMismatch"), answers(t, 200, "")
	key := map[string]string{"AZURE_STORAGE_ACCOUNT_KEY": planted}
	sas := map[string]string{"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=" + planted}

	tests := []struct {
		name   string
		env    map[string]string
		args   []string // MNT and CACHE are replaced
		change func(t *testing.T, sys *system, mnt, cache string)
		want   string
		status int
	}{
		{"unknown flag", key, []string{"--foo", "az://data", "MNT"}, nil, "unknown flag --foo", exitUsage},
		{"unknown option", key, []string{"-o", "foo", "az://data", "MNT"}, nil, "unknown option foo", exitUsage},
		{"malformed source", key, []string{"data", "MNT"}, nil, "must look like az://", exitUsage},
		{"missing container", key, []string{"--endpoint", notFound, "az://data", "MNT"}, nil, "there is no container data", exitFailure},
		{"wrong key", key, []string{"--endpoint", wrongKey, "az://data", "MNT"}, nil, "did not accept the account key from environment AZURE_STORAGE_ACCOUNT_KEY", exitFailure},
		{"SAS that may not list", sas, []string{"--endpoint", forbidden, "az://data", "MNT"}, nil, "the SAS token from environment AZURE_STORAGE_SAS_TOKEN lacks the permissions rlwd", exitFailure},
		{"key is not base64", map[string]string{"AZURE_STORAGE_ACCOUNT_KEY": planted + "!"}, []string{"--endpoint", good, "az://data", "MNT"}, nil, "not valid base64", exitFailure},
		{"no account", key, []string{"az://data", "MNT"}, nil, "no storage account is named", exitFailure},
		{"no credential", nil, []string{"--endpoint", good, "az://data", "MNT"}, nil, "or use --anonymous", exitFailure},
		{"unreachable", key, []string{"--endpoint", "http://" + closed.Addr().String() + "/acct1", "az://data", "MNT"}, nil, "connection refused", exitFailure},
		{"mount point is not there", key, []string{"--endpoint", good, "az://data", "MNT/x"}, nil, "mkdir -p", exitFailure},
		{"mount point is a file", key, []string{"--endpoint", good, "az://data", "MNT/x"}, func(t *testing.T, _ *system, mnt, _ string) { write(t, mnt+"/x", "") }, "not a directory", exitFailure},
		{"mount point is not empty", key, []string{"--endpoint", good, "az://data", "MNT"}, func(t *testing.T, _ *system, mnt, _ string) { write(t, mnt+"/x", "") }, "--nonempty", exitFailure},
		{"mounted already", key, []string{"--endpoint", good, "az://data", "MNT"}, func(t *testing.T, sys *system, mnt, _ string) {
			addMount(t, *sys, mnt, "fuse.other", "x")
		}, "already mounted (fuse.other from x)", exitFailure},
		{"no /dev/fuse", key, []string{"--endpoint", good, "az://data", "MNT"}, func(t *testing.T, sys *system, _, _ string) { sys.fuseDevice += "x" }, "modprobe fuse", exitFailure},
		{"cache for everybody", key, []string{"--endpoint", good, "az://data", "MNT"}, func(t *testing.T, _ *system, _, cache string) {
			if err := errors.Join(os.Mkdir(cache, 0o700), os.Chmod(cache, 0o777)); err != nil {
				t.Fatal(err)
			}
		}, "chmod go-w", exitFailure},
		{"cache is a file", key, []string{"--endpoint", good, "az://data", "MNT"}, func(t *testing.T, _ *system, _, cache string) { write(t, cache, "") }, "cache directory", exitFailure},
		{"log cannot be written", key, []string{"--endpoint", good, "--log-file=MNT/no/../../x/\x00", "az://data", "MNT"}, nil, "--log-file", exitFailure},
		{"helper that only checks", key, []string{"az://data", "MNT", "-f", "-o", "rw,log_level=error,endpoint=" + notFound}, nil, "there is no container data", exitFailure},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := fakeSystem(t, 0)
			mnt, cache := t.TempDir(), filepath.Join(t.TempDir(), "cache")
			if tt.change != nil {
				tt.change(t, &sys, mnt, cache)
			}
			args := []string{"blobmount", "--foreground", "--cache-dir", cache}
			if strings.HasPrefix(tt.name, "helper") {
				args = []string{"mount.blobmount"}
				tt.args = append(tt.args, "-o", "cache_dir="+cache)
			}
			for _, a := range tt.args {
				args = append(args, strings.ReplaceAll(a, "MNT", mnt))
			}
			r := start(t, sys, tt.env, args...)
			lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
			last := lines[len(lines)-1] // those before are the log, which goes to the same place in the foreground
			if r.status != tt.status || !strings.HasPrefix(last, "blobmount: ") || !strings.Contains(last, tt.want) || r.stdout != "" {
				t.Errorf("status %d, output %q and %q, want status %d and %q", r.status, r.stdout, last, tt.status, tt.want)
			}
			for _, l := range lines[:len(lines)-1] {
				if !strings.HasPrefix(l, "time=") {
					t.Errorf("line %q is not of the log", l)
				}
			}
			if strings.Contains(r.stderr, planted) {
				t.Errorf("a secret is in the output: %s", r.stderr)
			}
		})
	}
}

// As a mount helper, -f checks everything and mounts nothing.
func TestFake(t *testing.T) {
	sys := fakeSystem(t, 0)
	r := start(t, sys, map[string]string{"AZURE_STORAGE_ACCOUNT_KEY": planted}, "/sbin/mount.blobmount", "az://data", t.TempDir(),
		"-f", "-s", "-o", "rw,_netdev,nonsense,cache_dir="+t.TempDir()+"/c,endpoint="+answers(t, 200, ""))
	if r.status != exitOK || r.stdout != "" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"blobmount", "--help"}, {"blobmount", "-h", "--no"}, {"blobmount", "unmount", "--help"}} {
		r := start(t, system{}, nil, args...)
		if args[len(args)-1] == "--no" {
			if r.status != exitUsage {
				t.Errorf("%q: %+v", args, r)
			}
			continue
		}
		if r.status != exitOK || r.stderr != "" || !strings.Contains(r.stdout, "blobmount unmount") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	for _, args := range [][]string{{"blobmount", "version"}, {"blobmount", "--version"}} {
		if r := start(t, system{}, nil, args...); r.status != exitOK || !strings.HasPrefix(r.stdout, "blobmount ") || strings.Count(r.stdout, "\n") != 1 {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := start(t, system{}, nil, "blobmount", "version", "x"); r.status != exitUsage {
		t.Errorf("%+v", r)
	}
}

// The background process passes its one line and its status on, and does not stay.
func TestBackgroundFailure(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(t.TempDir(), "cache")
	cmd := exec.Command(exe, "--cache-dir", cache, "--account-name=acct1", "az://data", filepath.Join(t.TempDir(), "nowhere"))
	cmd.Env = append(os.Environ(), asBlobmount+"=1", "AZURE_STORAGE_ACCOUNT_KEY="+planted)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run() // ends only when no process has the output open any more
	if cmd.ProcessState.ExitCode() != exitFailure || strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "mkdir -p") {
		t.Errorf("%v, %q", err, out.String())
	}
}

// A background process that is killed before the mount is there is not taken for a mount.
func TestBackgroundKilled(t *testing.T) {
	m := mountCommand{process: process{
		args: []string{"blobmount"}, environ: append(os.Environ(), asBlobmount+"=die"), stderr: io.Discard,
	}}
	err := m.spawn(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ended before the mount was there: signal: killed") {
		t.Errorf("%v", err)
	}
}
