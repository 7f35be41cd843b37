package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"blobmount/auth"
	"blobmount/blobcache"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/fs"
)

// mountCommand is `blobmount SOURCE MOUNTPOINT`, and the mount helper.
type mountCommand struct {
	process
	config Config
}

func (m *mountCommand) run(ctx context.Context) error {
	if m.ready != nil {
		if err := becomeDaemon(); err != nil {
			return err
		}
		return m.serve(ctx)
	}
	if m.config.Foreground || m.config.fake {
		return m.serve(ctx)
	}
	if err := m.spawn(ctx); err != nil {
		return err
	}
	m.say()
	return nil
}

// say tells a user of mount -v what was done, and one of mount -s what was not.
func (m *mountCommand) say() {
	for _, o := range m.config.ignored {
		fmt.Fprintf(m.stderr, "blobmount: ignored unknown option %s\n", printableName(o))
	}
	if m.config.verbose {
		fmt.Fprintf(m.stdout, "blobmount: %s mounted on %s\n", m.config.Source.Verbatim, m.config.MountPoint)
	}
}

// parts is what a mount consists of before it is in the tree.
type parts struct {
	mountPoint string // without symbolic links
	container  blob.Container
	cache      *blobcache.Cache
	found      auth.Found // of the mount; see rotation
	rotation   *rotation
	lock       *daemonLock // nil before the mount was announced
	heap       *heapLimit
	log        *slog.Logger
	logFile    *os.File // nil when the log goes to standard error
	close      []func()
}

// release closes everything, the last opened first.
func (p *parts) release() {
	for i := len(p.close) - 1; i >= 0; i-- {
		p.close[i]()
	}
	p.close = nil
}

// serve mounts, and returns when the mount is gone, in the foreground or as the background process.
func (m *mountCommand) serve(ctx context.Context) (err error) {
	p, err := m.prepareOrStop(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			logEnd(p.log, err)
		}
		p.release()
	}()
	if m.config.fake {
		return nil
	}
	mount, err := m.mount(p)
	if err != nil {
		return err
	}
	if err := m.announce(p); err != nil {
		_ = m.system.detach(p.mountPoint, true)
		mount.Wait()
		return err
	}
	h := holder{
		mount: mount, log: p.log,
		detach: func() error { return m.system.detach(p.mountPoint, true) },
	}
	h.hold(ctx, m.signals)
	return m.drain(ctx, p)
}

// logEnd logs why a mount ended, with what is behind a message that was shortened for the user.
func logEnd(log *slog.Logger, err error) {
	var d *drainError
	if errors.As(err, &d) {
		log.Error("ended", "error", err, "cause", d.err)
		return
	}
	log.Error("ended", "error", err)
}

// prepareOrStop is prepare, which a signal ends early.
func (m *mountCommand) prepareOrStop(ctx context.Context) (*parts, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		parts *parts
		err   error
	}
	done := make(chan result, 1)
	go func() {
		p, err := m.prepare(ctx)
		done <- result{p, err}
	}()
	select {
	case r := <-done:
		if r.err != nil && ctx.Err() != nil {
			return nil, &statusError{exitInterrupt, errors.New("ended before the mount was there")}
		}
		return r.parts, r.err
	case s := <-m.signals:
		cancel()
		if r := <-done; r.parts != nil {
			r.parts.release()
		}
		return nil, &statusError{exitInterrupt, fmt.Errorf("%v came before the mount was there", s)}
	}
}

// prepare checks everything and opens everything. The checks of this machine come first: they are quick.
func (m *mountCommand) prepare(ctx context.Context) (p *parts, err error) {
	c := &m.config
	p = &parts{}
	defer func() {
		if err != nil {
			p.release()
			p = nil
		}
	}()
	if p.mountPoint, err = m.system.checkMachine(c); err != nil {
		return p, err
	}
	if err = c.fill(m.system, m.lookupEnv); err != nil {
		return p, err
	}
	late := &lateWriter{}
	p.log = newLogger(c, late)
	found, err := p.findCredential(c, c.authOptions(m.lookupEnv))
	if err != nil {
		return p, err
	}
	if err = checkProxy(http.ProxyFromEnvironment, found.Endpoint); err != nil {
		return p, err
	}
	if auth.Secondary(found.Endpoint) && !c.ReadOnly {
		return p, fmt.Errorf("%s is the copy of an account in another region, which takes no writes: use --read-only", found.Endpoint)
	}
	p.heap = newHeapLimit(int64(c.Memory), m.lookupEnv)
	p.heap.follow(0)
	p.cache, err = blobcache.Open(blobcache.Config{
		Dir: c.CacheDir, Size: int64(c.CacheSize), Memory: int64(c.Memory), BlockSize: int64(c.BlockSize), Log: p.log,
		WriteBack: writeBacks[c.WriteBack.word], Delay: time.Duration(c.WriteBackDelay),
		LastWriterWins: c.LastWriterWins, ConvertAppend: c.ConvertAppend, Leases: c.Leases,
		// One large file that is written takes at most a sixteenth of the memory from all others.
		Pages: memoryLimit(os.DirFS("/")) / 16,
	})
	if err != nil {
		return p, err
	}
	p.close = append(p.close, func() {
		// Closed by drain before, unless the mount did not come about: then there is nothing to write.
		_ = p.cache.Close(context.WithoutCancel(ctx))
	})
	if err = m.openLog(p, late); err != nil {
		return p, err
	}
	p.log.Info("credential found", "account", found.Account, "endpoint", found.Endpoint, "origin", found.Origin)
	for _, u := range found.Unused {
		p.log.Info("credential not used", "origin", u)
	}
	for _, w := range found.Warnings {
		p.log.Warn(w)
	}
	if c.Datastore != nil && c.Datastore.Warning != "" {
		p.log.Warn(c.Datastore.Warning)
	}

	if err := m.check(ctx, p); err != nil {
		logCause(p.log, err)
		return p, err
	}
	container, err := openContainer(found, c.Source.Container, retryFor(c.RetryFor), p.rotation.watcher.Renew, p.log)
	if err != nil {
		return p, err
	}
	p.close = append(p.close, container.Close, p.rotation.start(container, p.cache))
	p.container = blob.Sub(withHierarchy(ctx, container, c.SkipValidation, p.log), c.Source.Prefix)
	return p, nil
}

// checkProxy refuses a proxy that is no URL: requests would fail with a message that shows it, with its password.
func checkProxy(proxy func(*http.Request) (*url.URL, error), endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil // it is refused elsewhere
	}
	if _, err := proxy(&http.Request{URL: u}); err != nil {
		return errors.New("the proxy that HTTPS_PROXY or HTTP_PROXY names must be a URL such as http://HOST:PORT; what is there is not shown")
	}
	return nil
}

// logCause logs what is behind a message that was shortened for the user.
func logCause(log *slog.Logger, err error) {
	var v *validationError
	if !errors.As(err, &v) {
		return
	}
	log.Error("check of the container failed", "error", v.err)
	var token *auth.TokenError
	if errors.As(v.err, &token) {
		log.Error("no token", "cause", token.Err)
	}
}

// retryFor is --retry-for as the adapter wants it.
func retryFor(d durationValue) time.Duration {
	if d == 0 {
		return -1 // one try
	}
	return time.Duration(d)
}

// openContainer opens a container. renew is called when the service refuses the credential; nil for a credential that is
// not replaced.
func openContainer(found auth.Found, name string, retryFor time.Duration, renew func(context.Context) bool, log *slog.Logger) (*azure.Container, error) {
	credential, err := credentialOf(found)
	if err != nil {
		return nil, err
	}
	return azure.New(azure.Config{
		URL:        found.Endpoint + "/" + name,
		Credential: credential,
		Renew:      renew,
		RetryFor:   retryFor,
		Transport:  azure.TransportConfig{Proxy: http.ProxyFromEnvironment, RootCAs: found.RootCAs},
		Log:        log,
	})
}

// credentialOf is what was found, as the adapter wants it.
func credentialOf(found auth.Found) (azure.Credential, error) {
	switch {
	case found.SharedKey != nil:
		key, err := azure.NewSharedKey(found.SharedKey.AccountName(), found.SharedKey.Key.Reveal())
		return azure.Credential{SharedKey: key}, err
	case found.HasSAS:
		return azure.Credential{SAS: found.SAS.Reveal()}, nil
	}
	return azure.Credential{Token: found.Token}, nil
}

// openLog lets the log go where it belongs.
func (m *mountCommand) openLog(p *parts, late *lateWriter) error {
	if (m.config.Foreground || m.config.fake) && m.config.LogFile == "" {
		var w io.Writer = m.stderr
		if m.config.fake {
			w = io.Discard // the outcome is the only thing to say
		}
		return late.to(w)
	}
	path := logPath(&m.config, p.mountPoint)
	f, err := openLog(path)
	if err != nil {
		return fmt.Errorf("cannot open the log %s: %w: use --log-file", path, plain(err))
	}
	p.logFile = f
	p.close = append(p.close, func() { f.Close() })
	return late.to(f)
}

var openModes = map[string]fs.OpenMode{"auto": fs.OpenAuto, "files": fs.OpenFiles, "none": fs.OpenNone}

// mount puts the mount into the tree.
func (m *mountCommand) mount(p *parts) (served, error) {
	c := &m.config
	file, dir := c.permissions()
	mount, err := fs.Mount(p.mountPoint, fs.Options{
		Container: p.container, Cache: p.cache, Source: c.Source.Verbatim,
		ReadOnly: c.ReadOnly, AllowOther: c.AllowOther,
		UID: c.UID.id, GID: c.GID.id, FileMode: file, DirMode: dir, NoPosixMetadata: c.NoPosixMetadata, ContentTypes: fs.NewContentTypes(c.ContentTypes),
		Timeout: time.Duration(c.BlobCacheTimeout), NamesMemory: int64(c.NamesMemory), MountOptions: c.KernelOptions, Log: p.log,
		About: fs.Status{
			Version: versionText(), PID: os.Getpid(), Source: c.Source.Verbatim, Account: p.found.Account,
			CacheDir: c.CacheDir, BlobCacheTimeout: c.BlobCacheTimeout.String(), WriteBack: c.WriteBack.word,
		},
		Credential: p.rotation.about, Open: openModes[c.Open.word], NoPassthrough: c.Passthrough.word == "off", Prefetch: int(c.Prefetch),
	})
	if errors.Is(err, syscall.EPERM) {
		return nil, fmt.Errorf("cannot mount on %s: %w: a container needs --cap-add SYS_ADMIN and --device /dev/fuse", p.mountPoint, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot mount on %s: %w", p.mountPoint, err)
	}
	done := make(chan struct{})
	go p.heap.run(mount.Memory, done)
	p.close = append(p.close, func() { close(done) })
	return mount, nil
}

// announce makes the daemon known to blobmount unmount, and tells the waiting user that the mount can be used.
func (m *mountCommand) announce(p *parts) error {
	entry, mounted, err := m.system.mountedAt(p.mountPoint)
	if err == nil && !mounted {
		err = errors.New("it is not in the mount table") // somebody was quick to unmount it
	}
	if err != nil {
		return fmt.Errorf("the mount on %s did not appear: %w", p.mountPoint, err)
	}
	info := daemonInfo{
		PID: os.Getpid(), MountPoint: p.mountPoint, Source: m.config.Source.Verbatim, CacheDir: m.config.CacheDir,
		DrainTimeout: time.Duration(m.config.DrainTimeout),
	}
	lock, err := lockDaemon(lockDirs(m.system.euid), m.system.euid, entry.Device, info)
	if err != nil {
		p.log.Warn("blobmount unmount will not be able to wait for this process", "error", err)
	} else {
		p.lock = lock
		p.close = append(p.close, lock.release)
	}
	file, dir := m.config.permissions()
	p.log.Info("mounted", "version", versionText(), "pid", info.PID, "source", info.Source, "mount_point", p.mountPoint,
		"read_only", m.config.ReadOnly, "uid", m.config.UID.id, "gid", m.config.GID.id,
		"file_mode", fmt.Sprintf("%04o", file), "dir_mode", fmt.Sprintf("%04o", dir),
		"cache_dir", m.config.CacheDir, "cache_size", int64(m.config.CacheSize), "memory", int64(m.config.Memory),
		"names_memory", int64(m.config.NamesMemory),
		"block_size", int64(m.config.BlockSize), "blob_cache_timeout", m.config.BlobCacheTimeout.String(),
		"write_back", m.config.WriteBack.word, "retry_for", m.config.RetryFor.String(), "drain_timeout", m.config.DrainTimeout.String())
	if m.ready == nil {
		m.say()
		return nil
	}
	if err := detachStderr(p.logFile); err != nil {
		return fmt.Errorf("cannot let go of standard error: %w", err)
	}
	report(m.ready, exitOK, nil)
	return nil
}
