package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"blobmount/auth"
	"blobmount/blobcache"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/cmd/source"
)

// A file that is left says where it belongs by the URL of the container, with the prefix of the mount. It has to be taken
// apart again: into an endpoint, for which there is a credential, a container, and a prefix.

// place is where a file belongs.
type place struct {
	found             auth.Found
	container, prefix string
}

// locate finds the credential for the URL of a container with a prefix. A URL of the service's own form, or of an IP
// address, says which endpoint and account it means, as the source of a mount does. With --endpoint, or a host name of
// somebody's own, it has to begin with the endpoint that flags and environment name.
func locate(of string, o auth.Options) (place, error) {
	if src, err := source.Parse(of); err == nil && o.Endpoint == "" {
		if o.Account != "" && o.Account != src.Account {
			return place{}, usagef("--account-name says %q, and the file belongs to %q: remove it", o.Account, src.Account)
		}
		o.Account, o.AccountFrom, o.Endpoint = src.Account, "the file", src.Endpoint
		found, err := auth.Find(o)
		return place{found, src.Container, src.Prefix}, err
	}
	found, err := auth.Find(o)
	if err != nil {
		return place{}, err
	}
	rest, ok := strings.CutPrefix(of, found.Endpoint+"/")
	if !ok {
		return place{}, fmt.Errorf("the file belongs to %s, and the %s is for %s: give the --endpoint and the credential that it was mounted with",
			of, found.Origin, found.Endpoint)
	}
	container, escaped, _ := strings.Cut(rest, "/")
	prefix, err := url.PathUnescape(escaped)
	if err != nil {
		return place{}, fmt.Errorf("the file belongs to %s, which is no URL: %w", of, err)
	}
	return place{found, container, prefix}, nil
}

// container opens the container that a file belongs to. The caller calls the function when it is done.
func (c *recoverCommand) container(l blobcache.Left) (blob.Container, func(), error) {
	if l.Container == "" {
		return nil, nil, fmt.Errorf("%s does not say which container it belongs to: %s", l.ID, l.Reason)
	}
	p, err := locate(l.Container, c.options(c.lookupEnv))
	if err != nil {
		return nil, nil, err
	}
	whole, err := openContainer(p.found, p.container, retryFor(c.retryFor), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	cont := blob.Sub(whole, p.prefix)
	if got := cont.URL(""); got != l.Container {
		whole.Close()
		return nil, nil, fmt.Errorf("the file belongs to %s, and flags and environment lead to %s: give the --endpoint that it was mounted with",
			l.Container, got)
	}
	return cont, whole.Close, nil
}

// readFrom is container for save, which most often reads nothing of the service: without a credential, it fails only then.
func (c *recoverCommand) readFrom(l blobcache.Left) (blob.Container, func(), error) {
	cont, done, err := c.container(l)
	if err == nil || l.Container == "" {
		return cont, done, err
	}
	named, nerr := azure.New(azure.Config{URL: strings.TrimSuffix(l.Container, "/")})
	if nerr != nil {
		return nil, nil, err
	}
	return unreadable{named, err}, named.Close, nil
}

// unreadable is a container of which only the address is known.
type unreadable struct {
	blob.Container
	err error
}

// ReadAt fails with the reason.
func (u unreadable) ReadAt(context.Context, string, int64, int64, blob.Condition) (*blob.Body, error) {
	return nil, u.err
}
