package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
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

// check asks the service whether the mount can work, and creates the container where that is asked for.
func (m *mountCommand) check(ctx context.Context, p *parts) error {
	c := &m.config
	if c.SkipValidation && !c.CreateContainer {
		return nil
	}
	probe, err := openContainer(p.found, c.Source.Container, probeRetry, nil, p.log)
	if err != nil {
		return err
	}
	defer probe.Close()
	if !c.SkipValidation {
		err := validate(ctx, probe, p.found, c.Source)
		if !c.CreateContainer || !blob.Is(err, blob.ContainerNotFound) {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, probeBound, errProbeTime)
	defer cancel()
	created, err := probe.Create(ctx)
	if err != nil {
		return &validationError{fmt.Sprintf("cannot create container %s: %s", c.Source.Container, explain(err, p.found, c.Source)), err}
	}
	if created {
		p.log.Info("container created", "container", c.Source.Container, "endpoint", p.found.Endpoint)
	}
	if c.SkipValidation {
		return nil
	}
	return validate(ctx, probe, p.found, c.Source)
}

// validate asks the service for one name of what is to be mounted. The error says what to do.
func validate(ctx context.Context, c blob.Container, found auth.Found, src source.Source) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeBound, errProbeTime)
	defer cancel()
	_, err := c.List(ctx, blob.ListOptions{Prefix: src.Prefix, MaxResults: 1})
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), errProbeTime) {
		return fmt.Errorf("no answer from %s within %v: check the network, the proxy and --endpoint, or use --skip-validation",
			hostOf(found.Endpoint), probeBound)
	}
	if ctx.Err() != nil {
		return err
	}
	return &validationError{explain(err, found, src), err}
}

var errProbeTime = errors.New("the check took too long")

// validationError is one line for the user, with the service's own error behind it for the log.
type validationError struct {
	text string
	err  error
}

func (e *validationError) Error() string { return e.text }
func (e *validationError) Unwrap() error { return e.err }

// explain says what is wrong and what to do, by the class of the error.
func explain(err error, found auth.Found, src source.Source) string {
	host := hostOf(found.Endpoint)
	where := fmt.Sprintf("container %s of %s", src.Container, found.Endpoint)

	if token := new(auth.TokenError); errors.As(err, &token) {
		if token.Rejected {
			return fmt.Sprintf("%v: check tenant, client and secret (the log has the whole answer)", token)
		}
		return fmt.Sprintf("no usable credential was found: set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, "+
			"use --secret-dir, or --anonymous for public access (%v; the log has the reasons)", token)
	}
	if dns := new(net.DNSError); errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Sprintf("there is no host %s: check the account name %q, and --endpoint", host, found.Account)
	}
	service := ""
	if e := new(blob.Error); errors.As(err, &e) && e.ServiceCode != "" {
		service = " (" + e.ServiceCode + ")"
	}
	switch blob.CodeOf(err) {
	case blob.ContainerNotFound, blob.NotFound:
		return fmt.Sprintf("there is no %s%s: check the names of container and account, or create it", where, service)
	case blob.Unauthenticated:
		if found.SharedKey == nil && found.Token == nil && !found.HasSAS {
			return fmt.Sprintf("%s is not open to anonymous access%s: give a credential instead of --anonymous", where, service)
		}
		return fmt.Sprintf("%s did not accept the %s%s: check that it belongs to account %q, has not expired, and that the clock is right",
			host, found.Origin, service, found.Account)
	case blob.Forbidden:
		if found.SharedKey == nil && found.Token == nil && !found.HasSAS {
			return fmt.Sprintf("%s is not open to anonymous listing%s: give a credential instead of --anonymous", where, service)
		}
		need := "the permission to list and read"
		if found.Token != nil {
			need = "the role Storage Blob Data Reader or Contributor"
		} else if found.HasSAS {
			need = "the permissions r and l (and w, c, d to write)"
		}
		return fmt.Sprintf("the %s may not list %s%s: it needs %s, and the account's firewall must let this machine in; or use --skip-validation",
			found.Origin, where, service, need)
	case blob.Throttled, blob.Unavailable:
		return fmt.Sprintf("cannot reach %s: %s: check --endpoint, the network and the proxy, or use --skip-validation", host, reachable(err))
	default:
		return fmt.Sprintf("cannot list %s: %s", where, oneLine(err.Error()))
	}
}

// reachable is the shortest true reason why a service was not reached: the system's own error when there is one.
func reachable(err error) string {
	if op := new(net.OpError); errors.As(err, &op) {
		return op.Error()
	}
	if e := new(blob.Error); errors.As(err, &e) && e.ServiceCode != "" {
		return fmt.Sprintf("it answers %s, status %d", e.ServiceCode, e.Status)
	}
	return oneLine(err.Error())
}

func hostOf(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		return u.Host
	}
	return endpoint
}
