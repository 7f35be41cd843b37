package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"blobmount/auth"
	"blobmount/blobcache"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/cmd/source"
	"blobmount/fs"
)

// rotation replaces the credential of a mount when its source has another one.
type rotation struct {
	src       source.Source
	readOnly  bool
	watcher   *auth.Watcher
	container *azure.Container // both are set by start
	cache     *blobcache.Cache
}

// findCredential finds the credential. Nothing is watched before rotation.start.
func (p *parts) findCredential(c *Config, o auth.Options) (auth.Found, error) {
	p.rotation = &rotation{src: c.Source, readOnly: c.ReadOnly}
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

// try asks the service whether it accepts a credential, and whether the mount can do with it what it can do with the one in
// use.
func (r *rotation) try(ctx context.Context, candidate, used auth.Found) (auth.Verdict, string) {
	v := validation{found: candidate, src: r.src, readOnly: r.readOnly, now: time.Now}
	if candidate.HasSAS {
		// A mount without validation may have lacked them before.
		missing := readSAS(candidate.SAS.Reveal()).missing(r.readOnly)
		if used.HasSAS {
			missing = without(missing, readSAS(used.SAS.Reveal()).missing(r.readOnly))
		}
		if missing != "" {
			return auth.Refused, "the change is not used: " + v.lacks(missing)
		}
	}
	answer := r.list(ctx, candidate)
	switch verdict(answer) {
	case auth.Accepted:
		return auth.Accepted, ""
	case auth.Unknown:
		return auth.Unknown, ""
	}
	if !mayNotList(answer) {
		return auth.Refused, ""
	}
	// It can be good for all else that the mount does, if that could not list either.
	switch before := r.list(ctx, used); {
	case mayNotList(before) && serviceCode(before) == serviceCode(answer):
		return auth.Accepted, ""
	case verdict(before) == auth.Unknown:
		return auth.Unknown, ""
	}
	return auth.Refused, "the change is not used: " + v.explain("list", answer)
}

// list asks for one name of what is mounted.
func (r *rotation) list(ctx context.Context, found auth.Found) error {
	credential, err := credentialOf(found)
	if err != nil {
		return &blob.Error{Code: blob.Unauthenticated, Op: "List", Err: err}
	}
	return r.container.TryCredential(ctx, credential, r.src.Prefix)
}

// verdict reads an answer to a listing.
func verdict(err error) auth.Verdict {
	if err == nil {
		return auth.Accepted
	}
	if token := new(auth.TokenError); errors.As(err, &token) && !token.Rejected {
		return auth.Unknown
	}
	switch blob.CodeOf(err) {
	case blob.Unauthenticated, blob.Forbidden:
		return auth.Refused
	case blob.NotFound, blob.ContainerNotFound:
		return auth.Accepted // who asks is judged before what is asked for
	}
	return auth.Unknown
}

// mayNotList reports whether the service knows the credential, and does not let it list. Other codes of the kind say that
// the credential is good for nothing here: keys are not allowed, or the address or protocol is not, or the firewall does
// not let the machine in, which Azurite says of a wrong key.
func mayNotList(err error) bool {
	code := serviceCode(err)
	return code == "AuthorizationPermissionMismatch" || code == "AuthorizationResourceTypeMismatch"
}

func serviceCode(err error) string {
	var e *blob.Error
	if errors.As(err, &e) {
		return e.ServiceCode
	}
	return ""
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
