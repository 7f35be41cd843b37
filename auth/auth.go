// Package auth finds the credential for a storage account.
//
// It looks in three places, and takes the first one that holds a credential: what the user gave on the command
// line (a SAS in the source, the definition of a datastore), a secret directory (one file per value), the environment. Where one place holds several credentials, the
// preferred kind is taken: connection string, account key, SAS token, service principal. When there is none
// anywhere, azidentity's default chain is used: its own environment names, workload identity, managed identity,
// developer tools. Anonymous access happens only on request. The names in files and environment are one table
// (see table.go).
//
// Two names of the same meaning with different values in one place are an error. So is a key or SAS whose own
// place pairs it with another account than the one that was asked for: the service would refuse it.
//
// Secret values never appear in errors or in Found.Origin: messages name where a value came from.
//
// mount(8) removes PATH and HOME from the environment of a mount helper: the default chain then finds no Azure
// CLI. All other credentials work from /etc/fstab.
package auth

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// Options say where to look.
type Options struct {
	// Account and Endpoint are what the user gave on the command line or in the source, each may be empty.
	// Endpoint is a service URL; it wins over the one of a connection string.
	Account, Endpoint string
	// AccountFrom is what messages call the origin of Account; empty means --account-name.
	AccountFrom string
	// Given returns values that the user gave in a form of its own, such as the definition of a datastore. They come
	// before the secret directory. It is called by each Find; nil is none.
	Given func() ([]Value, error)
	// SecretDir is the secret directory; empty for none.
	SecretDir string
	// Anonymous asks for no credential at all, whatever there is.
	Anonymous bool
	// LookupEnv reads the environment. An empty value counts as not set.
	LookupEnv func(name string) (string, bool)
}

// Found is a credential and what it is for. At most one of SharedKey, Token and SAS is set; none means anonymous.
type Found struct {
	Account   string // empty when the endpoint does not tell and the credential does not need it
	Endpoint  string // service URL, without a slash at its end
	SharedKey *SharedKey
	Token     azcore.TokenCredential
	SAS       Secret // query without '?'; ask HasSAS
	HasSAS    bool
	// Origin says what the credential is and where it came from, without its value, such as
	// "account key from environment AZURE_STORAGE_ACCOUNT_KEY".
	Origin string
	// Warnings are one line each, for the log.
	Warnings []string
}

// Find finds the credential. It reads files and environment, and does not use the network. Parallel calls are
// allowed. Errors are one line.
func Find(o Options) (Found, error) { return find(o, table) }

func find(o Options, rows []row) (Found, error) {
	values, warnings, err := collect(o, rows)
	if err != nil {
		return Found{}, err
	}
	f := finder{Options: o, values: values}
	found, err := f.credential()
	if err != nil {
		return Found{}, err
	}
	found.Warnings = warnings
	// azcore refuses to send a bearer token without TLS, at the first request and in words about its policies.
	if found.Token != nil && !strings.HasPrefix(found.Endpoint, "https://") {
		return Found{}, fmt.Errorf("no account key, SAS token or connection string was found, and identity tokens are only "+
			"sent over https: set one (%s), or use --anonymous", strings.Join(environmentNames(rows), ", "))
	}
	return found, nil
}

func environmentNames(rows []row) []string {
	var names []string
	for _, r := range rows {
		if r.group.place() == inEnvironment && r.kind >= ConnectionString && r.kind <= SASToken {
			names = append(names, r.name)
		}
	}
	return names
}

// Value is a value that was given.
type Value struct {
	Kind   Kind
	Secret Secret
	// From says in messages where it was given, such as "datastore definition /etc/d.yml"; it holds no secret.
	From string
}

// value is one value that was found.
type value struct {
	kind   Kind
	group  group
	secret Secret
	source Source
}

// collect reads every name of the table, and refuses two of one place that mean the same and differ.
func collect(o Options, rows []row) (values []value, warnings []string, err error) {
	if o.SecretDir != "" {
		if err := checkSecretDir(o.SecretDir); err != nil {
			return nil, nil, err
		}
	}
	if o.Given != nil {
		given, err := o.Given()
		if err != nil {
			return nil, nil, err
		}
		for _, v := range given {
			values = append(values, value{v.Kind, givenValues, v.Secret, Source{onCommandLine, v.From}})
		}
	}
	inDir := false
	for _, r := range rows {
		source := r.source(o.SecretDir)
		var secret Secret
		var ok bool
		switch source.place {
		case inSecretDir:
			if o.SecretDir == "" {
				continue
			}
			var warning string
			if secret, ok, warning, err = readSecret(source.name); err != nil {
				return nil, nil, err
			}
			if warning != "" {
				warnings = append(warnings, warning)
			}
			inDir = inDir || ok
		case inEnvironment:
			var text string
			text, ok = o.LookupEnv(r.name)
			ok = ok && text != ""
			secret = NewSecret(text)
		}
		if !ok {
			continue
		}
		// No value of any kind begins or ends with white space, and base64 would fail on it with no hint why.
		secret = NewSecret(strings.TrimSpace(secret.Reveal()))
		for _, v := range values {
			if v.kind == r.kind && v.source.place == source.place && !v.secret.Equal(secret) {
				return nil, nil, fmt.Errorf("%s and %s are both the %s and differ: unset one", v.source, source, r.kind)
			}
		}
		values = append(values, value{r.kind, r.group, secret, source})
	}
	if o.SecretDir != "" && !inDir {
		var names []string
		for _, r := range rows {
			if r.group.place() == inSecretDir {
				names = append(names, r.name)
			}
		}
		return nil, nil, fmt.Errorf("secret directory %s has none of the files %s", o.SecretDir, strings.Join(names, ", "))
	}
	return values, warnings, nil
}

// finder chooses among the values.
type finder struct {
	Options
	values []value
}

func (f *finder) get(g group, k Kind) (value, bool) {
	i := slices.IndexFunc(f.values, func(v value) bool { return v.group == g && v.kind == k })
	if i < 0 {
		return value{}, false
	}
	return f.values[i], true
}

// account returns the account to use and where it comes from: the one given, else the first of the groups, else
// the one that the given endpoint names. ok is false when there is none.
func (f *finder) account() (name string, s Source, ok bool) {
	if f.Account != "" {
		return f.Account, Source{onCommandLine, cmp.Or(f.AccountFrom, "--account-name")}, true
	}
	for g := range groupCount {
		if v, ok := f.get(g, AccountName); ok {
			return v.secret.Reveal(), v.source, true
		}
	}
	if a := AccountOf(f.Endpoint); a != "" {
		return a, Source{onCommandLine, "--endpoint"}, true
	}
	return "", Source{}, false
}

var errNoAccount = errors.New("no storage account is named: use --account-name, AZURE_STORAGE_ACCOUNT_NAME, " +
	"or a source such as https://ACCOUNT.blob.core.windows.net/CONTAINER")

// locate fills in account and service URL for a credential that does not bring its own.
func (f *finder) locate(found Found, needAccount bool) (Found, error) {
	account, source, ok := f.account()
	if !ok && (needAccount || f.Endpoint == "") {
		return Found{}, errNoAccount
	}
	endpoint, err := serviceURL(f.Endpoint, account)
	if err != nil {
		if f.Endpoint == "" {
			return Found{}, fmt.Errorf("%s: %w", source, err)
		}
		return Found{}, err
	}
	found.Account, found.Endpoint = account, endpoint
	return found, nil
}

func (f *finder) credential() (Found, error) {
	if f.Anonymous {
		return f.locate(Found{Origin: "anonymous access from --anonymous"}, false)
	}
	for g := range groupCount {
		if v, ok := f.get(g, ConnectionString); ok {
			return f.connectionString(v)
		}
		if v, ok := f.get(g, AccountKey); ok {
			return f.sharedKey(v)
		}
		if v, ok := f.get(g, SASToken); ok {
			return f.sas(v)
		}
		if found, ok, err := f.servicePrincipal(g); ok || err != nil {
			return found, err
		}
	}
	return f.defaultChain()
}

func origin(v value) string { return v.kind.String() + " from " + v.source.String() }

func (f *finder) connectionString(v value) (Found, error) {
	c, err := parseConnectionString(v.secret.Reveal())
	if err != nil {
		return Found{}, fmt.Errorf("%s is not valid: %w", origin(v), err)
	}
	if c.account == "" {
		c.account = AccountOf(c.endpoint)
	}
	// A connection string is complete. What an earlier or the same place says about the account must agree.
	if account, source, ok := f.account(); ok && account != c.account && c.account != "" {
		if other, named := f.get(v.group, AccountName); source.place <= v.source.place || named && other.source == source {
			return Found{}, fmt.Errorf("%s is for account %q, but %s says %q: unset one", origin(v), c.account, source, account)
		}
	}
	if f.Endpoint != "" {
		if c.endpoint, err = serviceURL(f.Endpoint, c.account); err != nil {
			return Found{}, err
		}
	}
	found := Found{Account: c.account, Endpoint: c.endpoint, Origin: origin(v)}
	if c.hasKey {
		found.SharedKey, err = sharedKey(c.account, c.key, origin(v))
	} else {
		found.SAS, err = cleanSAS(c.sas, origin(v))
		found.HasSAS = true
	}
	if err != nil {
		return Found{}, err
	}
	return found, nil
}

// paired refuses to use a value for another account than the one that stands beside it.
func (f *finder) paired(v value) error {
	account, source, ok := f.account()
	if !ok {
		return nil
	}
	if beside, ok := f.get(v.group, AccountName); ok && beside.secret.Reveal() != account {
		return fmt.Errorf("%s belongs to account %q (%s), but %s says %q: unset one",
			origin(v), beside.secret.Reveal(), beside.source, source, account)
	}
	return nil
}

func (f *finder) sharedKey(v value) (Found, error) {
	if err := f.paired(v); err != nil {
		return Found{}, err
	}
	found, err := f.locate(Found{Origin: origin(v)}, true)
	if err != nil {
		return Found{}, err
	}
	found.SharedKey, err = sharedKey(found.Account, v.secret, found.Origin)
	return found, err
}

// SharedKey is an account with one of its keys, in base64.
type SharedKey struct {
	account string
	Key     Secret
}

// AccountName returns the account.
func (k *SharedKey) AccountName() string { return k.account }

func sharedKey(account string, key Secret, origin string) (*SharedKey, error) {
	if raw, err := base64.StdEncoding.DecodeString(key.Reveal()); err != nil || len(raw) == 0 {
		return nil, fmt.Errorf("%s: the account key is not valid base64", origin)
	}
	return &SharedKey{account, key}, nil
}

func (f *finder) sas(v value) (Found, error) {
	if err := f.paired(v); err != nil {
		return Found{}, err
	}
	found, err := f.locate(Found{Origin: origin(v), HasSAS: true}, false)
	if err != nil {
		return Found{}, err
	}
	found.SAS, err = cleanSAS(v.secret, found.Origin)
	return found, err
}

// cleanSAS checks that a value is a shared access signature, and returns it without the '?' that the portal and
// several tools put before it.
func cleanSAS(s Secret, origin string) (Secret, error) {
	text := strings.TrimPrefix(s.Reveal(), "?")
	q, err := url.ParseQuery(text)
	if err != nil || strings.ContainsAny(text, "#? \t\r\n") || q.Get("sig") == "" {
		return Secret{}, fmt.Errorf("%s: the SAS token is not valid: it must be a query with a signature, such as sv=VERSION&sig=SIGNATURE", origin)
	}
	return NewSecret(text), nil
}

// servicePrincipal makes a credential of the three values of a service principal. ok is false when the group has
// none of them.
func (f *finder) servicePrincipal(g group) (found Found, ok bool, err error) {
	tenant, hasTenant := f.get(g, TenantID)
	client, hasClient := f.get(g, ClientID)
	secret, hasSecret := f.get(g, ClientSecret)
	if !hasTenant && !hasClient && !hasSecret {
		return Found{}, false, nil
	}
	for _, part := range []struct {
		kind Kind
		has  bool
	}{{TenantID, hasTenant}, {ClientID, hasClient}, {ClientSecret, hasSecret}} {
		if !part.has {
			there := cmp.Or(tenant.source, client.source, secret.source)
			return Found{}, false, fmt.Errorf("service principal is not complete: there is %s, but no %s beside it", there, part.kind)
		}
	}
	found, err = f.locate(Found{Origin: "service principal from " + secret.source.String()}, false)
	if err != nil {
		return Found{}, false, err
	}
	token, err := azidentity.NewClientSecretCredential(tenant.secret.Reveal(), client.secret.Reveal(), secret.secret.Reveal(), nil)
	if err != nil {
		return Found{}, false, fmt.Errorf("%s: tenant id or client id is not valid", found.Origin)
	}
	found.Token = named{token, found.Origin, false}
	return found, true, nil
}

func (f *finder) defaultChain() (Found, error) {
	found, err := f.locate(Found{Origin: "identity from azidentity's default chain"}, false)
	if err != nil {
		return Found{}, err
	}
	token, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return Found{}, &TokenError{Origin: found.Origin, Err: err}
	}
	found.Token = named{token, found.Origin, true}
	return found, nil
}
