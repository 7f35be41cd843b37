package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/blobcache/blob"
	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
	"blobmount/integration/mounttest"
)

// secretVolume is a directory in which secrets are replaced as Kubernetes does it: each file is a link to one below
// ..data, which is a link to a directory that is replaced by a rename.
type secretVolume struct {
	t       *testing.T
	dir     string
	version int
}

func newSecretVolume(t *testing.T, files map[string]string) *secretVolume {
	t.Helper()
	v := &secretVolume{t: t, dir: t.TempDir()}
	v.replace(files)
	for name := range files {
		must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(v.dir, name)))
	}
	return v
}

func (v *secretVolume) replace(files map[string]string) {
	v.t.Helper()
	v.version++
	name := fmt.Sprintf("..2026_01_01_00_00_00.%d", v.version)
	must(v.t, os.Mkdir(filepath.Join(v.dir, name), 0o755))
	for file, text := range files {
		must(v.t, os.WriteFile(filepath.Join(v.dir, name, file), []byte(text), 0o600))
	}
	before, _ := os.Readlink(filepath.Join(v.dir, "..data"))
	must(v.t, os.Symlink(name, filepath.Join(v.dir, "..data_tmp")))
	must(v.t, os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, "..data")))
	if before != "" {
		must(v.t, os.RemoveAll(filepath.Join(v.dir, before)))
	}
}

// testKey returns a key that nothing else has.
func testKey(n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "key %3d of a test, which looks like one of 64 bytes and is shown", n))
}

// keyFiles is a secret with an account key.
func keyFiles(n int) map[string]string {
	return map[string]string{"account_name": blobserver.DefaultAccount, "account_key": testKey(n)}
}

// sasFiles is a secret with a SAS for a container, signed with the emulators' key, which ends after a time.
func sasFiles(t *testing.T, containerName string, life time.Duration) map[string]string {
	t.Helper()
	return sasUntil(t, containerName, time.Now().Add(life))
}

func sasUntil(t *testing.T, containerName string, end time.Time) map[string]string {
	t.Helper()
	key, err := container.NewSharedKeyCredential(blobserver.DefaultAccount, blobserver.DefaultKey)
	must(t, err)
	permissions := sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true, Tag: true}
	q, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: end.UTC(), Permissions: permissions.String(), ContainerName: containerName,
	}.SignWithSharedKey(key)
	must(t, err)
	return map[string]string{"account_name": blobserver.DefaultAccount, "sas_token": "?" + q.Encode()}
}

// rotated is a mount by a credential of a secret volume, and programs that use it.
type rotated struct {
	*world
	service *mounttest.Service
	secrets *secretVolume

	stop    chan struct{}
	running sync.WaitGroup
	mu      sync.Mutex // guards what is below
	reads   int
	written int
	writes  map[string][]byte // by name, what was closed with success
	failed  []error
}

// fileSize is that of the files that are read, each of which costs requests.
const fileSize = 100 << 10

func newRotated(t *testing.T, files func(s *mounttest.Service, containerName string) map[string]string, flags ...string) *rotated {
	t.Helper()
	return newRotatedWith(t, blobserver.Options{}, files, flags...)
}

func newRotatedWith(t *testing.T, o blobserver.Options, files func(s *mounttest.Service, containerName string) map[string]string, flags ...string) *rotated {
	t.Helper()
	mounttest.NeedFUSE(t)
	mounttest.Binary(t) // before a SAS begins to live
	s := mounttest.EmbeddedWith(t, o)
	c := s.NewContainer(t)
	// The test's own access, by the emulators' key, ends with the first rotation: what is in the service is seen in its
	// store. The container is deleted by that key again.
	t.Cleanup(func() { must(t, s.Embedded.SetKeys(blobserver.DefaultKey)) })
	for i := range 50 {
		_, err := s.Embedded.Store(c.Name).Put(fmt.Sprintf("read/%d", i), bytes.Repeat([]byte{byte(i)}, fileSize), blob.WriteOptions{})
		must(t, err)
	}
	p := s.NewPoint(t, c)
	p.Setenv("AZURE_STORAGE_CONNECTION_STRING=")
	v := newSecretVolume(t, files(s, c.Name))
	r := &rotated{world: &world{p, c, t}, service: s, secrets: v, stop: make(chan struct{}), writes: map[string][]byte{}}
	// Each open asks the service, and what was read is soon evicted, or nothing would depend on the credential.
	p.Mount(append([]string{"--secret-dir", v.dir, "--endpoint", s.URL(), "--blob-cache-timeout=0", "--block-size=64KiB"}, flags...)...)
	return r
}

// work runs a reader and two writers until finish.
func (r *rotated) work() {
	loop := func(act func(n int) error) {
		r.running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-r.stop:
					return
				default:
				}
				if err := act(n); err != nil {
					r.mu.Lock()
					r.failed = append(r.failed, err)
					r.mu.Unlock()
				}
			}
		})
	}
	loop(r.readOne)
	for w := range 2 {
		loop(func(n int) error { return r.writeOne(w, n) })
	}
}

func (r *rotated) readOne(n int) error {
	i := rand.IntN(50)
	path := r.path(fmt.Sprintf("read/%d", i))
	got, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, fileSize)) {
		err = fmt.Errorf("%s has other bytes", path)
	}
	if err == nil && n%20 == 0 {
		_, err = os.ReadDir(r.path("read"))
	}
	if err == nil {
		// The next reader fetches it anew.
		_, err = r.service.Embedded.Store(r.Name).Put(fmt.Sprintf("read/%d", i), got, blob.WriteOptions{})
		r.mu.Lock()
		r.reads++
		r.mu.Unlock()
	}
	return err
}

// writeOne writes a file of several blocks, slowly enough that a rotation can come in between, and now and then copies
// or renames it.
func (r *rotated) writeOne(writer, n int) error {
	name := fmt.Sprintf("written-%d-%d", writer, n%40)
	content := noise(200<<10 + n%7)
	f, err := os.Create(r.path(name))
	if err != nil {
		return err
	}
	_, err = f.Write(content[:100<<10])
	if err == nil && n%3 == 0 {
		err = f.Sync()
	}
	if err == nil {
		_, err = f.Write(content[100<<10:])
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if n%10 == 9 { // a copy in the service
		if err := os.Rename(r.path(name), r.path(name+"-renamed")); err != nil {
			return err
		}
		r.mu.Lock()
		delete(r.writes, name)
		r.mu.Unlock()
		name += "-renamed"
	}
	r.mu.Lock()
	r.writes[name] = content
	r.written++
	r.mu.Unlock()
	return nil
}

// operations is how many succeeded so far, and how many failed.
func (r *rotated) operations() (good, bad int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads + r.written, len(r.failed)
}

// finish ends the programs, and compares all that was written with what is in the service.
func (r *rotated) finish() {
	r.t.Helper()
	close(r.stop)
	r.running.Wait()
	for _, err := range r.failed[:min(5, len(r.failed))] {
		r.t.Error(err)
	}
	for name, want := range r.writes {
		got, err := stored(r.service, r.Name, name)
		if err != nil || !bytes.Equal(got, want) {
			r.t.Errorf("%s was closed, and is not in the service as it was written: %v", name, err)
		}
	}
	r.t.Logf("%d reads and %d files written, %d failed; the service refused %v", r.reads, r.written, len(r.failed), r.service.Embedded.Stats().Codes)
}

// replacements counts in the log how often a credential was replaced.
func (r *rotated) replacements() (n int) {
	for _, l := range r.LogLines() {
		if l.Message == "the credential was replaced" {
			n++
		}
	}
	return n
}

// stored returns the content of a blob as the service has it, whatever the keys are.
func stored(s *mounttest.Service, containerName, name string) ([]byte, error) {
	_, content, err := s.Embedded.Store(containerName).Get(name, 0, math.MaxInt64, blob.Condition{})
	if err != nil {
		return nil, err
	}
	var all []byte
	for chunk := range content.Chunks(1 << 20) {
		all = append(all, chunk...)
	}
	return all, nil
}

// goOn waits for a time that is a part of the test, and until operations have succeeded in it.
func (r *rotated) goOn(d time.Duration) {
	r.t.Helper()
	before, _ := r.operations()
	for until := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		good, _ := r.operations()
		if time.Now().After(until) && good > before {
			return
		}
		if time.Now().After(until.Add(drainBound)) {
			r.t.Fatalf("no operation has succeeded in %v", d+drainBound)
		}
	}
}

// A reader and writers notice nothing of a key that is rotated ten times, with a service that accepts the present key and
// the one before.
func TestMountKeyRotation(t *testing.T) {
	every := 400 * time.Millisecond
	if mounttest.Long() {
		every = 6 * time.Second
	}
	var service *blobserver.Server
	r := newRotated(t, func(s *mounttest.Service, _ string) map[string]string {
		service = s.Embedded
		must(t, service.SetKeys(testKey(0)))
		return keyFiles(0)
	})
	r.work()
	const rotations = 10
	for n := 1; n <= rotations; n++ {
		must(t, service.SetKeys(testKey(n), testKey(n-1)))
		r.secrets.replace(keyFiles(n))
		r.goOn(every)
	}
	// Also when the key before is refused at once: whoever is refused waits until the new one was read.
	const atOnce = 3
	for n := rotations + 1; n <= rotations+atOnce; n++ {
		r.secrets.replace(keyFiles(n))
		must(t, service.SetKeys(testKey(n)))
		r.goOn(every)
	}
	r.finish()
	if n := r.replacements(); n != rotations+atOnce {
		t.Errorf("the credential was replaced %d times, want %d", n, rotations+atOnce)
	}
}

// heldClock is the machine's, but does not come to the end of the newest SAS: who renews it may be held up for as long as
// the machine likes, and is in time all the same. Then, and only then, it is late.
type heldClock struct {
	mu   sync.Mutex // guards what is below
	end  time.Time  // of the newest SAS; zero: there is none yet
	late time.Duration
}

var _ blobserver.Clock = (*heldClock)(nil)

func (c *heldClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.end.IsZero() || now.Before(c.end) {
		return now
	}
	c.late = max(c.late, now.Sub(c.end))
	return c.end.Add(-time.Nanosecond)
}

func (c *heldClock) Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renewed tells that there is a newer SAS.
func (c *heldClock) renewed(end time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = end
}

// The same with SAS tokens that live for 5 seconds, and are renewed every 3.
func TestMountSASRenewal(t *testing.T) {
	renewals := 3
	if mounttest.Long() {
		renewals = 20
	}
	const life, every = 5 * time.Second, 3 * time.Second
	clock := &heldClock{}
	var ends []time.Time
	next := func(name string) map[string]string {
		ends = append(ends, time.Now().Add(life).Truncate(time.Second)) // as it stands in a SAS
		return sasUntil(t, name, ends[len(ends)-1])
	}
	r := newRotatedWith(t, blobserver.Options{Clock: clock}, func(_ *mounttest.Service, name string) map[string]string {
		files := next(name)
		clock.renewed(ends[0])
		return files
	})
	r.work()
	for n := range renewals {
		r.goOn(every)
		r.secrets.replace(next(r.Name))
		clock.renewed(ends[n+1])
		r.awaitLines("the credential was replaced", n+1)
	}
	r.goOn(every)
	r.finish()
	if n := r.replacements(); n != renewals {
		t.Errorf("the credential was replaced %d times, want %d", n, renewals)
	}
	if now := clock.Now(); !now.After(ends[renewals-1]) {
		t.Errorf("it is %v, and the last SAS but one ends at %v: it was never needed to renew it", now, ends[renewals-1])
	}
	t.Logf("a SAS was renewed %v late at most", clock.late)
}

// An expired SAS: operations fail with EACCES, at once and not after the time for repetitions; the log names the source
// and the time; status shows it. A fresh token in the secret directory heals the mount within 5 seconds, and the data of a
// file that was closed meanwhile is committed, though its next try was further away than that.
func TestMountSASExpires(t *testing.T) {
	const retryFor = "60s"
	r := newRotated(t, func(s *mounttest.Service, name string) map[string]string { return sasFiles(t, name, 5*time.Second) }, "--retry-for="+retryFor)
	must(t, r.readOne(0))
	began := time.Now()
	open := r.open("open", os.O_CREATE|os.O_WRONLY)
	for r.readOne(1) == nil {
		if time.Since(began) > drainBound {
			t.Fatal("the SAS does not expire")
		}
		time.Sleep(10 * time.Millisecond)
	}
	began = time.Now()
	_, err := os.Stat(r.path("read/1"))
	wantErrno(t, "stat", err, syscall.EACCES)
	_, err = os.ReadFile(r.path("read/2"))
	wantErrno(t, "read", err, syscall.EACCES)
	_, err = os.ReadDir(r.path("read"))
	wantErrno(t, "readdir", err, syscall.EACCES)
	wantErrno(t, "mkdir", os.Mkdir(r.path("dir"), 0o755), syscall.EACCES)
	content := noise(200 << 10)
	_, err = open.Write(content)
	must(t, err)
	wantErrno(t, "close", open.Close(), syscall.EACCES)
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("five failures took %v, of a credential that no repetition mends", d)
	}
	r.AwaitLog("has expired")
	for _, l := range r.LogLines() {
		if strings.Contains(l.Message, "has expired") && (!strings.Contains(l.Text, filepath.Join(r.secrets.dir, "sas_token")) || !strings.Contains(l.Text, `"expires":"20`)) {
			t.Errorf("the log names source or time not: %s", l.Text)
		}
	}
	if out := r.Run("status", r.Dir); !strings.Contains(out.Stdout, "EXPIRED") || !strings.Contains(out.Stdout, "sas_token") {
		t.Errorf("status says nothing of it: %+v", out)
	}
	r.awaitLines("file is not saved in the service yet, trying again", 3) // the next is 8 seconds away

	r.secrets.replace(sasFiles(t, r.Name, time.Hour))
	began = time.Now()
	var healed, committed time.Duration
	for healed == 0 || committed == 0 {
		if healed == 0 && r.readOne(1) == nil {
			healed = time.Since(began)
		}
		if got, err := stored(r.service, r.Name, "open"); committed == 0 && err == nil && bytes.Equal(got, content) {
			committed = time.Since(began)
		}
		if time.Since(began) > drainBound {
			t.Fatalf("healed after %v, committed after %v (0: not at all)", healed, committed)
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("healed after %v, committed after %v", healed, committed)
	if max(healed, committed) > 5*time.Second {
		t.Errorf("healed after %v, committed after %v: must be 5 s", healed, committed)
	}
	if out := r.Run("status", r.Dir); !strings.Contains(out.Stdout, "expires in 59m") || strings.Contains(out.Stdout, "EXPIRED") {
		t.Errorf("status after that: %+v", out)
	}
}

// awaitLines waits until the log has n lines with a message.
func (r *rotated) awaitLines(message string, n int) {
	r.t.Helper()
	for deadline := time.Now().Add(drainBound); ; time.Sleep(10 * time.Millisecond) {
		found := 0
		for _, l := range r.LogLines() {
			if l.Message == message {
				found++
			}
		}
		if found >= n {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the log has %d lines with %q, want %d", found, message, n)
		}
	}
}

// What is half written, or the service does not know, does not replace a credential that works.
func TestMountBadRotation(t *testing.T) {
	var service *blobserver.Server
	r := newRotated(t, func(s *mounttest.Service, _ string) map[string]string {
		service = s.Embedded
		must(t, service.SetKeys(testKey(0)))
		return keyFiles(0)
	}, "--core-dumps")
	for _, bad := range []string{testKey(0)[:20], testKey(1)} { // both are base64
		r.secrets.replace(map[string]string{"account_name": blobserver.DefaultAccount, "account_key": bad})
		r.AwaitLog("the service refuses the changed account key")
		must(t, r.readOne(0))
		must(t, r.writeOne(0, 0))
	}
	if n := r.replacements(); n != 0 {
		t.Errorf("a bad key has replaced a good one, %d times", n)
	}
	// The one that was refused is good now, and the other is not.
	must(t, service.SetKeys(testKey(1)))
	must(t, r.readOne(0))
	must(t, r.writeOne(0, 1))
	if n := r.replacements(); n != 1 {
		t.Errorf("the credential was replaced %d times, want 1", n)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", r.PID()))
	must(t, err)
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(strings.TrimPrefix(line, "Max core file size")); strings.HasPrefix(line, "Max core") && f[0] != f[1] {
			t.Errorf("--core-dumps leaves a limit: %s", line)
		}
	}
}

// A client secret that is replaced is used at once, when the identity service refuses the one before.
func TestMountClientSecretRotation(t *testing.T) {
	mounttest.NeedFUSE(t)
	s, id := mounttest.WithIdentity(t)
	const client = "11111111-2222-3333-4444-555555555555"
	id.AddSecret(client, "secret~0")
	principal := func(n int) map[string]string {
		return map[string]string{"account_name": blobserver.DefaultAccount, "tenant_id": identity.Tenant, "client_id": client,
			"client_secret": fmt.Sprintf("secret~%d", n)}
	}
	c := s.NewContainer(t)
	p := s.NewPoint(t, c)
	p.Setenv("AZURE_STORAGE_CONNECTION_STRING=")
	w := &world{p, c, t}
	v := newSecretVolume(t, principal(0))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, id.CA(), 0o600))
	id.SetLife(2*time.Second, 2*time.Second) // so that each request needs a token, and a token the secret
	w.Mount("--secret-dir", v.dir, "--endpoint", s.URL(), "--ca-file", ca, "--authority-host", id.URL(), "--blob-cache-timeout=0")
	w.write("before", []byte("content"))
	for n := 1; n <= 2; n++ {
		id.AddSecret(client, fmt.Sprintf("secret~%d", n))
		v.replace(principal(n))
		id.RemoveSecret(client, fmt.Sprintf("secret~%d", n-1))
		w.write(fmt.Sprint("after", n), []byte("content"))
		w.read("before", []byte("content"))
	}
}
