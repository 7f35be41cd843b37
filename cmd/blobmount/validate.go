package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"blobmount/auth"
	"blobmount/blobcache/blob"
	"blobmount/cmd/source"
)

// Bounds of the check before the mount. A failing or unreachable service is asked again for probeRetry, so that
// its last answer is known, and is not only late, when the whole check is over.
const (
	probeRetry = 8 * time.Second
	probeBound = 30 * time.Second
)

// probeName is the blob that is asked for, below the prefix of the mount, to learn what the credential may do. No such
// blob is ever made.
const probeName = ".blobmount-check"

// noETag is what no version of a blob has: a write under the condition that it is current cannot succeed.
const noETag blob.ETag = `"0x0"`

// check asks the service whether the mount can work, and creates the container where that is asked for.
func (m *mountCommand) check(ctx context.Context, p *parts) error {
	c := &m.config
	if c.SkipValidation && !c.CreateContainer {
		return nil
	}
	container, err := openContainer(p.found, c.Source.Container, probeRetry, nil, p.log)
	if err != nil {
		return err
	}
	defer container.Close()
	v := validation{found: p.found, src: c.Source, readOnly: c.ReadOnly, now: time.Now}
	if !c.SkipValidation {
		err := v.validate(ctx, container)
		if !c.CreateContainer || !blob.Is(err, blob.ContainerNotFound) {
			return err
		}
	}
	err = v.ask(ctx, "create", func(ctx context.Context) error {
		created, err := container.Create(ctx)
		if created {
			p.log.Info("container created", "container", c.Source.Container, "endpoint", p.found.Endpoint)
		}
		return err
	})
	if err != nil || c.SkipValidation {
		return err
	}
	return v.validate(ctx, container)
}

// validation is what a check knows of the mount.
type validation struct {
	found    auth.Found
	src      source.Source
	readOnly bool
	now      func() time.Time
}

func (v *validation) anonymous() bool {
	return v.found.SharedKey == nil && v.found.Token == nil && !v.found.HasSAS
}

// validate asks the service for one name of what is to be mounted, and finds out whether the credential may do what a
// mount needs. The error says what to do.
//
// An account key may do everything. A SAS says what it may, unless it leaves that to a policy in the service. An identity
// may read what it may list: both are one action of a role (Microsoft.Storage/.../blobs/read). Whether it may write is
// found out by a write that must fail, since its condition is never met.
func (v *validation) validate(ctx context.Context, c blob.Container) error {
	if v.anonymous() && !v.readOnly {
		return errors.New("anonymous access can only read: add --read-only, or give a credential")
	}
	err := v.ask(ctx, "list", func(ctx context.Context) error {
		_, err := c.List(ctx, blob.ListOptions{Prefix: v.src.Prefix, MaxResults: 1})
		return err
	})
	if err != nil {
		return err
	}
	name := v.src.Prefix + probeName
	byPolicy := false
	if v.found.HasSAS {
		sas := readSAS(v.found.SAS.Reveal())
		if byPolicy = sas.byPolicy(); !byPolicy {
			if missing := sas.missing(v.readOnly); missing != "" {
				return errors.New(v.lacks(missing))
			}
		}
	}
	if byPolicy {
		err := v.ask(ctx, "read", func(ctx context.Context) error {
			_, err := c.Properties(ctx, name, blob.Condition{})
			return err
		})
		if blob.Is(err, blob.Forbidden) || blob.Is(err, blob.Unauthenticated) {
			return err
		}
	}
	if v.readOnly || v.found.Token == nil && !byPolicy {
		return nil
	}
	err = v.ask(ctx, "write to", func(ctx context.Context) error {
		w, err := c.Upload(ctx, name, strings.NewReader(""), 0, blob.WriteOptions{Condition: blob.Condition{IfMatch: noETag}})
		if err == nil { // never, in a service that knows conditions
			err = c.Delete(ctx, name, blob.Condition{IfMatch: w.ETag})
		}
		return err
	})
	if blob.Is(err, blob.Forbidden) || blob.Is(err, blob.Unauthenticated) {
		return err
	}
	return nil // the condition was not met, as it must be; what else may be wrong now is not for ever
}

// ask asks one question, within a bound, and says what is wrong if the answer is an error.
func (v *validation) ask(ctx context.Context, what string, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeBound, errProbeTime)
	defer cancel()
	err := do(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errProbeTime):
		return fmt.Errorf("no answer from %s within %v: check the network, the proxy and --endpoint, or use --skip-validation",
			hostOf(v.found.Endpoint), probeBound)
	case ctx.Err() != nil:
		return err
	}
	return &validationError{v.explain(what, err), err}
}

var errProbeTime = errors.New("the check took too long")

// validationError is one line for the user, with the service's own error behind it for the log.
type validationError struct {
	text string
	err  error
}

func (e *validationError) Error() string { return e.text }
func (e *validationError) Unwrap() error { return e.err }

func hostOf(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		return u.Host
	}
	return endpoint
}
