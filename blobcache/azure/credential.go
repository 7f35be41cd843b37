package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"blobmount/blobcache/blob"
)

// The credential of a container may be replaced at any time. So no client of the SDK knows it: each try takes the one of
// that moment, and is signed with it (signer), also when an operation began with another one.

// Credential is how requests are authorised. At most one field is set; none means anonymous access. It prints as
// REDACTED.
type Credential struct {
	SharedKey *SharedKey
	Token     azcore.TokenCredential
	SAS       string // the query string of a shared access signature, with or without the leading "?"
}

// Format implements fmt.Formatter.
func (Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "REDACTED") }

// MarshalText implements encoding.TextMarshaler, which encoding/json uses.
func (Credential) MarshalText() ([]byte, error) { return []byte("REDACTED"), nil }

// LogValue implements slog.LogValuer.
func (Credential) LogValue() slog.Value { return slog.StringValue("REDACTED") }

// access is a credential in use. It does not change.
type access struct {
	key   *SharedKey
	token azcore.TokenCredential // nil for none
	// bearer puts the token into requests. It keeps it until shortly before its end.
	bearer policy.Policy
	sas    string // without "?"
}

func newAccess(cred Credential) (*access, error) {
	a := &access{key: cred.SharedKey, sas: strings.TrimPrefix(cred.SAS, "?")}
	if count(cred.SharedKey != nil, cred.Token != nil, a.sas != "") > 1 {
		return nil, errors.New("more than one kind of credential: give a shared key, a token or a SAS")
	}
	if _, err := url.ParseQuery(a.sas); err != nil || strings.ContainsAny(a.sas, "?# \t\r\n") {
		return nil, errors.New("the SAS is not a query string of the form sv=VERSION&sig=SIGNATURE")
	}
	if cred.Token != nil {
		a.token = tokenSource{cred.Token}
		a.bearer = runtime.NewBearerTokenPolicy(a.token, []string{storageScope}, &policy.BearerTokenOptions{
			AuthorizationHandler: policy.AuthorizationHandler{OnChallenge: anotherToken},
		})
	}
	return a, nil
}

// anotherToken answers the challenge of a service that does not take the token, by one that was not used before: it may
// have ended earlier than was said, or the clocks differ. The request is then sent again, once.
func anotherToken(_ *policy.Request, refused *http.Response, authorize func(policy.TokenRequestOptions) error) error {
	_, _ = runtime.Payload(refused) // a body that nobody has read keeps its slot
	return authorize(policy.TokenRequestOptions{Scopes: []string{storageScope}})
}

// SetCredential replaces the credential. Requests that are under way go on; the next try of each operation uses the new
// one. It must be good for the same account: the container's address stays what it is.
func (c *Container) SetCredential(cred Credential) error {
	a, err := newAccess(cred)
	if err != nil {
		return err
	}
	c.access.Store(a)
	return nil
}

// TryCredential asks the service, once, for one name that begins with prefix, with a credential that need not be the one
// in use. The error has the code Unauthenticated if the service does not know it, and Forbidden if it knows it, and does not
// let it list.
func (c *Container) TryCredential(ctx context.Context, cred Credential, prefix string) error {
	a, err := newAccess(cred)
	if err != nil {
		return err
	}
	_, err = c.List(context.WithValue(ctx, accessKey{}, a), blob.ListOptions{Prefix: prefix, MaxResults: 1})
	return err
}

// accessKey is the key under which a request's context has the *access of the try, or of all tries.
type accessKey struct{}

// copySource is the source of a copy in the service. Its address, which a header of the request has, may need a
// signature, and so be another one for each try.
type copySource struct {
	name string
	// asClient is set when the service reads the source as any client would: then the signature on the request does not
	// cover it.
	asClient bool
}

type copySourceKey struct{}

// renameSourceKey is the key under which the context of a rename has its source, which is authorised by itself: a SAS goes
// with its path, and may be another one for each try.
type renameSourceKey struct{}

// signer is the pipeline's policy that authorises each try.
type signer struct {
	c *Container
}

func (s signer) Do(req *policy.Request) (*http.Response, error) {
	raw := req.Raw()
	a, ok := raw.Context().Value(accessKey{}).(*access)
	if !ok {
		a = s.c.access.Load()
	}
	if from, ok := raw.Context().Value(copySourceKey{}).(copySource); ok {
		if err := a.setSource(raw, from, s.c); err != nil {
			return nil, err
		}
	}
	if from, ok := raw.Context().Value(renameSourceKey{}).(string); ok {
		if a.sas != "" {
			from += "?" + a.sas
		}
		raw.Header.Set("x-ms-rename-source", from)
	}
	switch {
	case a.key != nil:
		a.key.sign(raw, time.Now())
	case a.bearer != nil:
		return a.bearer.Do(req)
	case a.sas != "":
		raw.URL.RawQuery = joinQuery(raw.URL.RawQuery, a.sas)
	}
	return req.Next()
}

func joinQuery(query, more string) string {
	if query == "" {
		return more
	}
	return query + "&" + more
}

// setSource writes the headers that say what is copied.
func (a *access) setSource(raw *http.Request, from copySource, c *Container) error {
	address, token := c.URL(from.name), ""
	switch {
	case from.asClient:
		var err error
		if address, token, err = a.readable(raw.Context(), c.base, address, from.name); err != nil {
			return err
		}
	case a.sas != "":
		address += "?" + a.sas
	}
	// As the SDK has written them, in lower case: net/http would send them twice.
	raw.Header["x-ms-copy-source"] = []string{address}
	if token != "" {
		raw.Header["x-ms-copy-source-authorization"] = []string{token}
	}
	return nil
}

// sourceSignedFor is how long the signature on a source's address holds: for one try, and clocks may differ by 15
// minutes, as for every request that a shared key signs.
const sourceSignedFor = 30 * time.Minute

// storageScope is what a token for the Blob service is asked for ("Authorize with Microsoft Entra ID").
const storageScope = "https://storage.azure.com/.default"

// readable returns an address under which the service itself can read a blob, and the token to read it with if it
// needs one. Put Block From URL reads its source as any client would: the signature on the request does not cover it.
// The address holds a secret.
func (a *access) readable(ctx context.Context, base, address, name string) (readable, token string, err error) {
	switch {
	case a.key != nil:
		query, err := a.key.signRead(base, name)
		return address + "?" + query, "", err
	case a.token != nil:
		t, err := a.token.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{storageScope}})
		return address, "Bearer " + t.Token, err
	case a.sas != "":
		return address + "?" + a.sas, "", nil
	}
	return address, "", nil
}

// signRead returns a service SAS to read one blob of the container with that address.
func (k *SharedKey) signRead(containerURL, name string) (string, error) {
	base, err := url.Parse(containerURL)
	if err != nil {
		return "", err
	}
	protocol := sas.ProtocolHTTPS
	if base.Scheme == "http" {
		protocol = sas.ProtocolHTTPSandHTTP
	}
	permissions := sas.BlobPermissions{Read: true}
	q, err := sas.BlobSignatureValues{
		Protocol:      protocol,
		ExpiryTime:    time.Now().UTC().Add(sourceSignedFor),
		Permissions:   permissions.String(),
		ContainerName: path.Base(base.Path),
		BlobName:      name,
	}.SignWithSharedKey(k.sdk)
	return q.Encode(), err
}

// tokenSource marks the failures of a credential, so that they can be told from those of the service.
type tokenSource struct{ azcore.TokenCredential }

func (t tokenSource) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := t.TokenCredential.GetToken(ctx, o)
	if err != nil {
		return token, &credentialError{err}
	}
	return token, nil
}
