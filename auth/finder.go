package auth

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"slices"
	"strings"
)

// finder chooses among the values, which are in the order of places and groups.
type finder struct {
	Options
	values   []value
	rootCAs  *x509.CertPool
	content  hash.Hash // of everything that was read
	warnings []string
	// taken are the values that the credential is made of.
	taken []Source
}

// note adds to the checksum of what was found.
func (f *finder) note(texts ...string) {
	for _, t := range texts {
		fmt.Fprintf(f.content, "%d %s", len(t), t) // a hash does not fail
	}
}

// take marks a value as a part of the credential.
func (f *finder) take(v value) value {
	f.taken = append(f.taken, v.source)
	return v
}

// get returns the value of a kind in one group of one place.
func (f *finder) get(p place, g group, k Kind) (value, bool) {
	return f.where(func(v value) bool { return v.place == p && v.group == g && v.kind == k })
}

// first returns the value of a kind that is preferred.
func (f *finder) first(k Kind) (value, bool) {
	return f.where(func(v value) bool { return v.kind == k })
}

// at returns the value of a kind in a place: all that are there agree, but for names of accounts when one was given.
func (f *finder) at(p place, k Kind) (value, bool) {
	return f.where(func(v value) bool { return v.place == p && v.kind == k })
}

func (f *finder) where(is func(value) bool) (value, bool) {
	i := slices.IndexFunc(f.values, is)
	if i < 0 {
		return value{}, false
	}
	return f.values[i], true
}

// beside returns what stands beside a value: what the user gave comes first, and completes what is in other places.
func (f *finder) beside(k Kind, v value) (value, bool) {
	if p, ok := f.at(given, k); ok {
		return p, true
	}
	if v.place == given {
		return f.first(k)
	}
	return f.get(v.place, v.group, k)
}

// part is beside for what the credential is then made of.
func (f *finder) part(k Kind, v value) (value, bool) {
	p, ok := f.beside(k, v)
	if ok {
		f.take(p)
	}
	return p, ok
}

// methodAt returns the kind of credential that is wanted of a place, and who wants it. A variable does not speak about
// what comes before the environment.
func (f *finder) methodAt(p place) (m Method, from string, err error) {
	if f.Auth != Auto {
		return f.Auth, "--auth=" + string(f.Auth), nil
	}
	if v, ok := f.first(MethodWord); ok && p == inEnvironment {
		return v.method, v.source.String(), v.refuse
	}
	return Auto, "", nil
}

// credential makes the credential of the first group that has one.
func (f *finder) credential() (Found, error) {
	if f.Auth == Anonymous {
		from := "--anonymous"
		if !f.Anonymous {
			from = "--auth=anonymous"
		}
		return f.locate(Found{Origin: "anonymous access from " + from}, false)
	}
	var half error // a part of a credential, in a group that has no other
	for p := range placeCount {
		m, _, err := f.methodAt(p)
		if err != nil {
			return Found{}, err
		}
		for g := range groupCount {
			if v, ok := f.get(p, g, AnonymousWord); ok && m == Auto && v.secret.Reveal() == "true" {
				return f.locate(Found{Origin: "anonymous access from " + v.source.String(), place: p}, false)
			}
			if _, chosen := f.lookup(chainName); g == processNames && chosen && (m == Auto || m == Login) {
				continue // it says which of these names the default chain is to use
			}
			found, ok, err := f.ofGroup(p, g, m)
			if ok || err != nil {
				found.place = p
				return found, err
			}
			if half == nil && p != given && g != processNames && m.allows(ClientSecret) {
				half = f.halfPrincipal(p, g)
			}
		}
	}
	if half != nil {
		return Found{}, half
	}
	found, err := f.lastResort()
	found.place = placeCount
	return found, err
}

// ofGroup makes the credential that the values of one group are preferred for. ok is false when they make none.
func (f *finder) ofGroup(p place, g group, m Method) (found Found, ok bool, err error) {
	for k := ConnectionString; k.credential(); k++ {
		v, there := f.get(p, g, k)
		if !there || !m.allows(k) {
			continue
		}
		if f.forChain(v, m) {
			continue
		}
		switch k {
		case ConnectionString:
			found, ok, err = f.connectionString(v, m)
			if !ok && err == nil {
				continue // it has not what is wanted
			}
		case AccountKey:
			found, err = f.sharedKey(v)
		case SASToken:
			found, err = f.sas(v)
		case ClientSecret, ClientCertificate, FederatedTokenFile, FederatedToken:
			found, err = f.servicePrincipal(v)
		default:
			found, err = f.managedIdentity(v)
		}
		return found, err == nil, err
	}
	return Found{}, false, nil
}

// forChain reports whether a federated token is left to the default chain: Kubernetes names one in every pod of a service
// account with a label, and an identity only where the account has one.
func (f *finder) forChain(v value, m Method) bool {
	if v.group != processNames || v.kind != FederatedTokenFile || m != Auto && m != Login {
		return false
	}
	_, tenant := f.beside(TenantID, v)
	_, client := f.beside(ClientID, v)
	return !tenant || !client
}

// lastResort is for when no name says anything about a credential.
func (f *finder) lastResort() (Found, error) {
	m, from, err := f.methodAt(inEnvironment)
	if err != nil {
		return Found{}, err
	}
	switch m {
	case Auto, Login:
		return f.defaultChain()
	case ManagedIdentity:
		return f.managedIdentity(value{})
	case CLI:
		return f.azureCLI()
	}
	kinds := slices.Clone(methodKinds[m])
	what := map[Method]string{
		Key: "account key", SAS: "SAS token", shared: "account key or SAS token",
		ServicePrincipal: "secret, certificate or federated token of a service principal", Workload: "federated token",
	}[m]
	return Found{}, fmt.Errorf("there is no %s, which %s asks for: set one of %s, or use --secret-dir", what, from, strings.Join(firstNames(kinds), ", "))
}

// unused returns the credentials that were found and not taken.
func (f *finder) unused() []string {
	var names []string
	for _, v := range f.values {
		if v.kind.credential() && !slices.Contains(f.taken, v.source) {
			names = append(names, origin(v))
		}
	}
	return names
}

// checkUsed refuses a flag for a credential that has no use for it. What is in other places may be for others.
func (f *finder) checkUsed(found Found) error {
	for _, v := range f.values {
		if v.needed && !slices.Contains(f.taken, v.source) {
			return fmt.Errorf("%s is of no use to the %s: remove it, or choose the credential that needs it by --auth", v.source, found.Origin)
		}
	}
	return nil
}

// account returns the account to use and where it comes from: the one given, else the first of the places, else
// the one that the endpoint names. ok is false when there is none.
func (f *finder) account() (name string, s Source, ok bool) {
	if v, ok := f.first(AccountName); ok {
		return v.secret.Reveal(), v.source, true
	}
	if v, ok := f.first(ServiceEndpoint); ok {
		if a := AccountOf(v.secret.Reveal()); a != "" {
			return a, v.source, true
		}
	}
	return "", Source{}, false
}

var errNoAccount = errors.New("no storage account is named: use --account-name, AZURE_STORAGE_ACCOUNT_NAME, " +
	"or a source such as https://ACCOUNT.blob.core.windows.net/CONTAINER")

// locate fills in account and service URL for a credential that does not bring its own.
func (f *finder) locate(found Found, needAccount bool) (Found, error) {
	account, source, ok := f.account()
	v, named := f.first(ServiceEndpoint)
	if !ok && (needAccount || !named) {
		return Found{}, errNoAccount
	}
	var err error
	if named {
		found.Endpoint, err = f.endpointOf(v, account, source)
	} else {
		found.Endpoint, err = accountEndpoint("https", account, f.suffix())
		if err != nil {
			err = fmt.Errorf("%s: %w", source, err)
		}
	}
	found.Account = strings.TrimSuffix(account, secondary)
	return found, err
}

// endpointOf returns the service URL of an endpoint that has a name.
func (f *finder) endpointOf(v value, account string, from Source) (string, error) {
	endpoint, err := serviceURL(v.secret.Reveal(), account)
	if err != nil {
		if v.place == given {
			return "", err
		}
		return "", fmt.Errorf("%s: %w", v.source, err)
	}
	if of := accountOfHost(endpoint); of != "" && account != "" && of != strings.TrimSuffix(account, secondary) {
		return "", fmt.Errorf("%s is of account %s, but %s says %s: unset one", v.source, shown(of), from, shown(account))
	}
	return endpoint, nil
}

// suffix returns the domain of endpoints: what was given, then the cloud's, then that of the environment.
func (f *finder) suffix() string {
	if v, ok := f.first(EndpointSuffix); ok && (v.place == given || f.Cloud == "") {
		return v.secret.Reveal()
	}
	c, _ := cloudNamed(f.Cloud) // find has checked it
	return c.suffix
}

func origin(v value) string { return v.kind.String() + " from " + v.source.String() }

// connectionString makes the credential of a connection string; ok is false when it has not what the method wants.
func (f *finder) connectionString(v value, m Method) (found Found, ok bool, err error) {
	c, err := parseConnectionString(v.secret.Reveal())
	if err != nil {
		return Found{}, false, fmt.Errorf("%s is not valid: %w", origin(v), err)
	}
	if !m.accepts(c.hasKey, c.hasSAS) {
		return Found{}, false, nil
	}
	if c.account == "" {
		c.account = AccountOf(c.endpoint)
	}
	// A connection string is complete. What an earlier or the same place says about the account must agree.
	if account, source, ok := f.account(); ok && c.account != "" && source.place <= v.place && strings.TrimSuffix(account, secondary) != c.account {
		return Found{}, false, fmt.Errorf("%s is for account %s, but %s says %s: unset one", origin(v), shown(c.account), source, shown(account))
	}
	if e, ok := f.first(ServiceEndpoint); ok && e.place <= v.place {
		endpoint, err := f.endpointOf(e, c.account, v.source)
		if err != nil {
			return Found{}, false, err
		}
		if e.place == v.place && endpoint != c.endpoint {
			return Found{}, false, fmt.Errorf("%s is for %s, but %s says %s: unset one", origin(v), c.endpoint, e.source, endpoint)
		}
		c.endpoint = endpoint
	}
	found = Found{Account: c.account, Endpoint: c.endpoint, Origin: origin(f.take(v))}
	if c.hasKey && m != SAS {
		found.SharedKey, err = sharedKey(c.account, c.key, origin(v))
	} else {
		found.SAS, err = cleanSAS(c.sas, origin(v))
		found.HasSAS = true
	}
	return found, err == nil, err
}

// paired refuses to use a value for another account than the one that stands beside it.
func (f *finder) paired(v value) error {
	account, source, ok := f.account()
	if !ok {
		return nil
	}
	beside, ok := f.get(v.place, v.group, AccountName)
	if !ok {
		beside, ok = f.at(v.place, AccountName)
	}
	name := beside.secret.Reveal()
	if !ok {
		if beside, ok = f.at(v.place, ServiceEndpoint); ok {
			name = AccountOf(beside.secret.Reveal())
		}
	}
	if ok && name != "" && strings.TrimSuffix(name, secondary) != strings.TrimSuffix(account, secondary) {
		return fmt.Errorf("%s belongs to account %s (%s), but %s says %s: unset one", origin(v), shown(name), beside.source, source, shown(account))
	}
	return nil
}

func (f *finder) sharedKey(v value) (Found, error) {
	if err := f.paired(v); err != nil {
		return Found{}, err
	}
	found, err := f.locate(Found{Origin: origin(f.take(v))}, true)
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
	found, err := f.locate(Found{Origin: origin(f.take(v)), HasSAS: true}, false)
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
