package main

import (
	"context"
	"errors"
	"sync"

	"blobmount/auth"
	"blobmount/blobcache"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/fs"
)

// rotation replaces the credential of a mount when its source has another one.
type rotation struct {
	watcher   *auth.Watcher
	container *azure.Container // both are set by start
	cache     *blobcache.Cache
}

// findCredential finds the credential. Nothing is watched before rotation.start.
func (p *parts) findCredential(o auth.Options) (auth.Found, error) {
	p.rotation = &rotation{}
	var err error
	p.rotation.watcher, p.found, err = auth.NewWatcher(auth.WatcherConfig{Options: o, Try: p.rotation.try, Use: p.rotation.use, Log: p.log})
	return p.found, err
}

// start watches until the returned function is called.
func (r *rotation) start(container *azure.Container, cache *blobcache.Cache) (stop func()) {
	r.container, r.cache = container, cache
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.watcher.Run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// try asks the service whether it accepts a credential.
func (r *rotation) try(ctx context.Context, found auth.Found) auth.Verdict {
	credential, err := credentialOf(found)
	if err != nil {
		return auth.Refused
	}
	return verdict(r.container.TryCredential(ctx, credential))
}

// verdict reads an answer to a listing. A credential that may not list can be good for all else that a mount does.
func verdict(err error) auth.Verdict {
	if err == nil {
		return auth.Accepted
	}
	if token := new(auth.TokenError); errors.As(err, &token) && !token.Rejected {
		return auth.Unknown
	}
	var e *blob.Error
	switch blob.CodeOf(err) {
	case blob.Unauthenticated:
		return auth.Refused
	case blob.Forbidden:
		// Azurite says so of a wrong key, and the service of a machine that its firewall does not let in.
		if errors.As(err, &e) && e.ServiceCode == "AuthorizationFailure" {
			return auth.Refused
		}
		return auth.Accepted
	case blob.NotFound, blob.ContainerNotFound:
		return auth.Accepted // who asks is judged before what is asked for
	}
	return auth.Unknown
}

// use puts a credential into use. What could not be saved with the one before is sent at once.
func (r *rotation) use(found auth.Found) {
	credential, err := credentialOf(found)
	if err == nil {
		err = r.container.SetCredential(credential)
	}
	if err == nil { // it was tried
		r.cache.RetryNow()
	}
}

// about is what the status says of the credential.
func (r *rotation) about() fs.Credential {
	a := r.watcher.Access()
	c := fs.Credential{Origin: a.Origin, Since: a.Since, Read: a.Read, Problem: a.Problem}
	if !a.Expires.IsZero() {
		c.Expires = &a.Expires
	}
	return c
}
