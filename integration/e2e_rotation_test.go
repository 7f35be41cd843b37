package integration

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/blobcache/blob"
	"blobmount/integration/blobserver"
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
	key, err := container.NewSharedKeyCredential(blobserver.DefaultAccount, blobserver.DefaultKey)
	must(t, err)
	permissions := sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true, Tag: true}
	q, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().UTC().Add(life), Permissions: permissions.String(), ContainerName: containerName,
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
	mounttest.NeedFUSE(t)
	s := mounttest.Embedded(t)
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

// The same with SAS tokens that live for 5 seconds, and are renewed every 3.
func TestMountSASRenewal(t *testing.T) {
	renewals := 3
	if mounttest.Long() {
		renewals = 20
	}
	const life, every = 5 * time.Second, 3 * time.Second
	r := newRotated(t, func(s *mounttest.Service, name string) map[string]string { return sasFiles(t, name, life) })
	r.work()
	for range renewals {
		r.goOn(every)
		r.secrets.replace(sasFiles(t, r.Name, life))
	}
	r.goOn(every)
	r.finish()
	if n := r.replacements(); n != renewals {
		t.Errorf("the credential was replaced %d times, want %d", n, renewals)
	}
}
