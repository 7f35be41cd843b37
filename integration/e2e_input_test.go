package integration

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blobmount/integration/azurite"
	"blobmount/integration/mounttest"
)

// Each mistake is one line on standard error that says what to do, an exit status as mount(8) defines it, nothing
// mounted, no daemon left; and no line has the key.
func testBadInput(t *testing.T, s *mounttest.Service) {
	c := s.NewContainer(t)
	c.Put("blob", nil)
	p := s.NewPoint(t, c)
	base := filepath.Dir(p.Dir)
	source := p.Source()
	file := filepath.Join(base, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	full := filepath.Join(base, "full")
	must(t, os.MkdirAll(filepath.Join(full, "something"), 0o755))
	open := filepath.Join(base, "open")
	must(t, os.Mkdir(open, 0o755))
	must(t, os.Chmod(open, 0o777))

	wrongKey := base64.StdEncoding.EncodeToString(noise(64))
	connect := func(key, url string) string {
		return fmt.Sprintf("AZURE_STORAGE_CONNECTION_STRING=AccountName=%s;AccountKey=%s;BlobEndpoint=%s", azurite.Account, key, url)
	}
	wrongKeySays := "did not accept the connection string"
	if s.Embedded == nil {
		wrongKeySays = "the connection string" // Azurite answers AuthorizationFailure, as if the key were right and not enough
	}
	for _, c := range []struct {
		name   string
		env    string
		args   []string // after those for cache and log
		status int
		says   string
	}{
		{"unknown flag", "", []string{"--frobnicate", source, p.Dir}, 1, "--frobnicate"},
		{"unknown option", "", []string{"-o", "rw,frobnicate=1", source, p.Dir}, 1, "frobnicate"},
		{"bad value", "", []string{"--uid=nobody-of-this-name", source, p.Dir}, 1, "--uid"},
		{"no arguments", "", nil, 1, "SOURCE"},
		{"no mount point", "", []string{source}, 1, "MOUNTPOINT"},
		{"unknown scheme", "", []string{"s3://bucket", p.Dir}, 1, "az://"},
		{"malformed container", "", []string{"az://Not_A_Container", p.Dir}, 1, "container"},
		{"missing container", "", []string{"az://not-there", p.Dir}, 32, "there is no container not-there"},
		{"wrong key", connect(wrongKey, s.URL()), []string{source, p.Dir}, 32, wrongKeySays},
		{"mount point missing", "", []string{source, filepath.Join(base, "missing")}, 32, "mkdir -p " + filepath.Join(base, "missing")},
		{"mount point is a file", "", []string{source, file}, 32, "is not a directory"},
		{"mount point not empty", "", []string{source, full}, 32, "is not empty"},
		{"cache directory cannot be made", "", []string{"--cache-dir=/proc/no/such", source, p.Dir}, 32, "/proc/no"},
		{"cache directory is a file", "", []string{"--cache-dir=" + file, source, p.Dir}, 32, file},
		{"cache directory world-writable", "", []string{"--cache-dir=" + open, source, p.Dir}, 32, "chmod"},
		{"unmount of nothing", "", nil, 32, "is not mounted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := c.env
			if env == "" {
				env = "AZURE_STORAGE_CONNECTION_STRING=" + s.ConnectionString()
			}
			p.Setenv(env)
			args := append([]string{"--cache-dir", p.Cache, "--log-file", filepath.Join(base, "refused.log")}, c.args...)
			if c.name == "unmount of nothing" {
				args = []string{"unmount", p.Dir}
			}
			refused(t, p, p.Run(args...), c.status, c.says, wrongKey)
		})
	}
	p.Setenv("AZURE_STORAGE_CONNECTION_STRING=" + s.ConnectionString())

	t.Run("unreachable", func(t *testing.T) {
		if s.Embedded == nil {
			t.Skip("takes 8 seconds, and does not depend on the service: the embedded one has it")
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		must(t, l.Close()) // nobody listens there now
		p.Setenv(connect(wrongKey, "http://"+l.Addr().String()+"/"+azurite.Account))
		r := p.Run("--cache-dir", p.Cache, "--log-file", filepath.Join(base, "refused.log"), source, p.Dir)
		refused(t, p, r, 32, "cannot reach "+l.Addr().String(), wrongKey)
		p.Setenv("AZURE_STORAGE_CONNECTION_STRING=" + s.ConnectionString())
	})

	t.Run("no /dev/fuse", func(t *testing.T) {
		script := `mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"`
		if out, err := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", script, "sh", "true").CombinedOutput(); err != nil {
			t.Skipf("needs a mount namespace: %v: %s", err, out)
		}
		r := p.RunAs("unshare", "-m", "sh", "-c", script, "sh", mounttest.Binary(t), "--cache-dir", p.Cache,
			"--log-file", filepath.Join(base, "refused.log"), source, p.Dir)
		refused(t, p, r, 32, "/dev/fuse does not exist", wrongKey)
	})

	t.Run("already mounted", func(t *testing.T) {
		p.Mount()
		pid := p.PID()
		r := p.Run("--cache-dir", p.Cache, "--log-file", filepath.Join(base, "refused.log"), source, p.Dir)
		if r.Status != 32 || r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "is already mounted") {
			t.Errorf("%+v", r)
		}
		if p.PID() != pid {
			t.Error("there is another daemon")
		}
		if names, err := os.ReadDir(p.Dir); err != nil || len(names) != 1 {
			t.Errorf("the mount that was there: %v, %v", names, err)
		}
		p.Signal(syscall.SIGKILL)
		p.AwaitEnd()
		r = p.Run("--cache-dir", p.Cache, "--log-file", filepath.Join(base, "refused.log"), source, p.Dir)
		if r.Status != 32 || r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "is a dead mount") {
			t.Errorf("%+v", r)
		}
		p.Unmount()
	})
}

// refused checks the outcome of a run that must do nothing.
func refused(t *testing.T, p *mounttest.Point, r mounttest.Result, status int, says, secret string) {
	t.Helper()
	if r.Status != status || r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 || !strings.HasPrefix(r.Stderr, "blobmount: ") ||
		!strings.Contains(r.Stderr, says) {
		t.Errorf("%+v, want status %d and one line with %q", r, status, says)
	}
	for _, key := range []string{secret, azurite.Key} {
		if strings.Contains(r.Stderr, key) {
			t.Error("the line has a key in it")
		}
	}
	p.Gone()
}
