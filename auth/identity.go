package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// clientOptions are what every request to an identity service has in common.
func (f *finder) clientOptions(endpoint string) (azcore.ClientOptions, authority, error) {
	a, err := f.authority(endpoint)
	if err != nil {
		return azcore.ClientOptions{}, a, err
	}
	client, err := f.identityClient()
	if err != nil {
		return azcore.ClientOptions{}, a, err
	}
	f.note("authority", a.host)
	return azcore.ClientOptions{
		Transport: client, Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: a.host}, PerRetryPolicies: []policy.Policy{observer{}},
	}, a, nil
}

// withToken completes what was found by a credential that gives tokens.
func (f *finder) withToken(found Found, token azcore.TokenCredential, chain bool) Found {
	n := named{TokenCredential: token, origin: found.Origin, chain: chain, settled: new(atomic.Bool)}
	if v, ok := f.first(Audience); ok {
		n.scope = strings.TrimRight(f.take(v).secret.Reveal(), "/") + "/.default"
	}
	found.Token = n
	return found
}

// tokenLocation is locate for an identity, which belongs to no account.
func (f *finder) tokenLocation(origin string) (Found, azcore.ClientOptions, authority, error) {
	found, err := f.locate(Found{Origin: origin}, false)
	if err != nil {
		return Found{}, azcore.ClientOptions{}, authority{}, err
	}
	options, a, err := f.clientOptions(found.Endpoint)
	return found, options, a, err
}

var errNoPrincipal = errors.New("tenant id or client id is not valid")

// servicePrincipal makes a credential of what proves that the program is a service principal, and of the tenant and
// client that stand beside it.
func (f *finder) servicePrincipal(v value) (Found, error) {
	if v.kind == FederatedTokenFile {
		if _, err := v.path(); err != nil {
			return Found{}, err
		}
	}
	parts := map[Kind]string{}
	for _, k := range []Kind{TenantID, ClientID} {
		p, ok := f.part(k, v)
		if !ok {
			return Found{}, fmt.Errorf("service principal is not complete: there is %s, but no %s beside it", v.source, k)
		}
		parts[k] = p.secret.Reveal()
	}
	what := "service principal from "
	switch v.kind {
	case ClientCertificate:
		what = "service principal by certificate from "
	case FederatedToken, FederatedTokenFile:
		what = "service principal by federated token from "
	}
	found, options, a, err := f.tokenLocation(what + f.take(v).source.String())
	if err != nil {
		return Found{}, err
	}
	// Whoever needs the token repeats its request, see TokenError.Temporary. With azidentity's three repetitions in each of
	// those, a wrong host would be noticed late.
	options.Retry.MaxRetries = -1
	tenant, client := parts[TenantID], parts[ClientID]
	var token azcore.TokenCredential
	switch v.kind {
	case ClientSecret:
		token, err = azidentity.NewClientSecretCredential(tenant, client, v.secret.Reveal(),
			&azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: !a.known})
	case ClientCertificate:
		token, err = f.certificate(v, tenant, client, options, a)
		if err != nil {
			return Found{}, err
		}
	default:
		token, err = azidentity.NewClientAssertionCredential(tenant, client, assertion(v),
			&azidentity.ClientAssertionCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: !a.known})
	}
	if err != nil {
		return Found{}, fmt.Errorf("%s: %w", found.Origin, errNoPrincipal)
	}
	return f.withToken(found, token, false), nil
}

// certificate makes the credential of a certificate, which is read now: it counts as a value.
func (f *finder) certificate(v value, tenant, client string, options azcore.ClientOptions, a authority) (azcore.TokenCredential, error) {
	secret := v.secret
	inline := v.place == given && strings.Contains(secret.Reveal(), "-----BEGIN ") // of a datastore definition
	if (v.place == given || v.place == inEnvironment) && !inline {
		path, err := v.path()
		if err != nil {
			return nil, err
		}
		data, found, warning, err := readBinary("certificate file", path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.source, err)
		}
		if warning != "" {
			f.warnings = append(f.warnings, warning)
		}
		if !found {
			return nil, fmt.Errorf("%s: there is no file %s", v.source, path)
		}
		secret = data
		f.note("certificate", data.Reveal())
	}
	password, _ := f.part(CertificatePassword, v)
	certs, key, err := parseCertificate([]byte(secret.Reveal()), password.secret.Reveal())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", origin(v), err)
	}
	chain, _ := f.part(SendCertificateChain, v)
	token, err := azidentity.NewClientCertificateCredential(tenant, client, certs, key, &azidentity.ClientCertificateCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: !a.known, SendCertificateChain: chain.secret.Reveal() == "true"})
	if err != nil {
		// The constructor says no to the ids and to kinds of keys (it wants RSA), and its words tell which.
		return nil, fmt.Errorf("%s cannot be used: %w", origin(v), err)
	}
	return token, nil
}

// assertion returns the function that gives a federated token whenever azidentity wants one, about once an hour. A file is
// read each time, since Kubernetes replaces it.
func assertion(v value) func(context.Context) (string, error) {
	if v.kind == FederatedToken {
		return func(context.Context) (string, error) { return v.secret.Reveal(), nil }
	}
	path := v.secret.Reveal()
	return func(ctx context.Context) (string, error) {
		data, found, _, err := ReadFile("federated token file", path)
		if err == nil && !found {
			err = fmt.Errorf("there is no file %s, which %s names", path, v.source)
		}
		return strings.TrimSpace(data.Reveal()), failed(ctx, err)
	}
}

// halfPrincipal says what is missing of a service principal of which a group has only the ids.
func (f *finder) halfPrincipal(p place, g group) error {
	for _, k := range []Kind{TenantID, ClientID} {
		if v, ok := f.get(p, g, k); ok {
			return fmt.Errorf("service principal is not complete: there is %s, but no %s beside it", v.source, ClientSecret)
		}
	}
	return nil
}

// managedIdentity makes the credential of a managed identity: the one that the value names, else the one that the user
// gave the client id of, or the environment of the process, else the one that the machine has of its own.
func (f *finder) managedIdentity(v value) (Found, error) {
	var id azidentity.ManagedIDKind
	what := "managed identity of this machine"
	if v.source == (Source{}) {
		for _, p := range []place{given, inEnvironment} {
			// A client id of storage names means a service principal, that of azidentity either.
			w, ok := f.where(func(w value) bool {
				return w.place == p && w.kind == ClientID && (p == given || w.group == processNames)
			})
			if ok {
				v = w
				break
			}
		}
	}
	if v.source != (Source{}) {
		what = "managed identity from " + f.take(v).source.String()
		for _, w := range f.values {
			if w.place == v.place && w.kind != v.kind && w.kind >= ManagedClientID && w.kind <= ManagedResourceID {
				return Found{}, fmt.Errorf("%s and %s both name a managed identity: unset one", v.source, w.source)
			}
		}
	}
	switch text := v.secret.Reveal(); v.kind {
	case ClientID, ManagedClientID:
		id = azidentity.ClientID(text)
	case ManagedObjectID:
		id = azidentity.ObjectID(text)
	case ManagedResourceID:
		id = azidentity.ResourceID(text)
	}
	found, err := f.locate(Found{Origin: what}, false)
	if err != nil {
		return Found{}, err
	}
	client, err := f.identityClient()
	if err != nil {
		return Found{}, err
	}
	token, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{
		ClientOptions: azcore.ClientOptions{Transport: client}, ID: id})
	if err != nil {
		return Found{}, fmt.Errorf("the %s cannot be used here: %w", what, err)
	}
	return f.withToken(found, token, false), nil
}

// azureCLI makes the credential of who is logged in to the Azure CLI.
func (f *finder) azureCLI() (Found, error) {
	found, err := f.locate(Found{Origin: "login of the Azure CLI"}, false)
	if err != nil {
		return Found{}, err
	}
	token, err := azidentity.NewAzureCLICredential(&azidentity.AzureCLICredentialOptions{TenantID: f.givenTenant()})
	if err != nil {
		return Found{}, fmt.Errorf("the %s cannot be used: %w", found.Origin, err)
	}
	return f.withToken(found, token, false), nil
}

func (f *finder) givenTenant() string {
	v, ok := f.at(given, TenantID)
	if ok {
		f.take(v)
	}
	return v.secret.Reveal()
}

// defaultChain makes azidentity's own chain, which reads the environment by itself.
func (f *finder) defaultChain() (Found, error) {
	// It reads these by itself, from another directory than the one of the start, and shows what it cannot read.
	for _, k := range []Kind{ClientCertificate, FederatedTokenFile} {
		if v, ok := f.get(inEnvironment, processNames, k); ok {
			if _, err := v.path(); err != nil {
				return Found{}, err
			}
		}
	}
	found, options, a, err := f.tokenLocation("identity from azidentity's default chain")
	if err != nil {
		return Found{}, err
	}
	token, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: !a.known, TenantID: f.givenTenant()})
	if err != nil {
		// That is the only thing that it refuses.
		return Found{}, fmt.Errorf("environment %s must be dev, prod, or the name of one credential such as AzureCLICredential", chainName)
	}
	return f.withToken(found, token, true), nil
}
