// Package auth finds the credential for a storage account.
//
// It looks in four places, and takes the first one that holds a credential: what the user gave (flags, -o, the source, a
// datastore definition), a secret directory (one file per value), the credentials directory of systemd, the environment.
// The names in files and environment are one table (see table.go; README.md has it in full). Those of the environment
// belong to groups, one for each tool that has them, which are asked in turn. Where one group holds several credentials,
// the preferred kind is taken: connection string, account key, SAS token, service principal (by secret, by certificate),
// federated token, managed identity. When there is none anywhere, azidentity's default chain is used: its own
// environment names, workload identity, managed identity, developer tools. Anonymous access happens only on request. A
// Method asks for one kind of credential, and all others are passed over.
//
// The order of groups: names that speak of storage come before those of azidentity. These are the identity of a whole
// process, and in a Kubernetes pod nobody chose them for storage. Among the storage names adlfs and ZenML come first, then
// blobfuse2 and the Azure CLI, whose users mount and copy, then the others.
//
// Two names of the same meaning with different values in one place are an error, whatever their groups; only the names of
// azidentity may differ from the storage names. So is a key or SAS whose own place pairs it with another account than the
// one that was asked for: the service would refuse it.
//
// Secret values never appear in errors or in Found.Origin: messages name where a value came from.
//
// mount(8) removes PATH and HOME from the environment of a mount helper: the default chain then finds no Azure
// CLI. All other credentials work from /etc/fstab.
package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
)

// Options say where to look.
type Options struct {
	// Account and Endpoint are what the user gave on the command line or in the source, each may be empty.
	// Endpoint is a service URL; it wins over the one of a connection string.
	Account, Endpoint string
	// AccountFrom is what messages call the origin of Account; empty means --account-name.
	AccountFrom string
	// Given returns more values that the user gave, such as those of the definition of a datastore. They come before all
	// others. It is called by each Find; nil is none.
	Given func() ([]Value, error)
	// SecretDir is the secret directory; empty for none.
	SecretDir string
	// Auth is the kind of credential that is wanted; empty means Auto.
	Auth Method
	// Anonymous asks for no credential at all, whatever there is, as Auth does.
	Anonymous bool
	// Cloud is where the account is, unless the endpoint says so; empty means that nothing was said.
	Cloud Cloud
	// CAFile names a file of certificate authorities, in PEM form, that are trusted beside those of the system.
	CAFile string
	// Proxy chooses the proxy of a request to an identity service as in http.Transport; nil means none.
	Proxy func(*http.Request) (*url.URL, error)
	// LookupEnv reads the environment. An empty value counts as not set. azidentity reads some names by itself: those
	// of managed identities, and those of its default chain.
	LookupEnv func(name string) (string, bool)
}

func (o *Options) lookup(name string) (string, bool) {
	if text, ok := o.LookupEnv(name); ok && text != "" {
		return text, true
	}
	return "", false
}

// givenValues returns all that the user gave, as values.
func (o *Options) givenValues() ([]Value, error) {
	var all []Value
	if o.Account != "" {
		from := o.AccountFrom
		if from == "" {
			from = "--account-name"
		}
		all = append(all, Value{Kind: AccountName, Secret: NewSecret(o.Account), From: from})
	}
	if o.Endpoint != "" {
		all = append(all, Value{Kind: ServiceEndpoint, Secret: NewSecret(o.Endpoint), From: "--endpoint"})
	}
	if o.Given == nil {
		return all, nil
	}
	more, err := o.Given()
	return append(all, more...), err
}

// Found is a credential and what it is for. At most one of SharedKey, Token and SAS is set; none means anonymous.
type Found struct {
	Account   string // empty when the endpoint does not tell and the credential does not need it
	Endpoint  string // service URL, without a slash at its end
	SharedKey *SharedKey
	Token     azcore.TokenCredential
	SAS       Secret // query without '?'; ask HasSAS
	HasSAS    bool
	// RootCAs verify the certificate of the endpoint; nil means the system's authorities.
	RootCAs *x509.CertPool
	// Origin says what the credential is and where it came from, without its value, such as
	// "account key from environment AZURE_STORAGE_ACCOUNT_KEY".
	Origin string
	// Unused are the origins of other credentials that were found and not taken.
	Unused []string
	// Warnings are one line each, for the log.
	Warnings []string

	// place is where the credential is: placeCount for what the machine has of its own, and no name speaks of.
	place place
	// content is a checksum of everything that was found, and empty if Find did not make this.
	content Secret
}

// Same reports whether two calls of Find with the same Options found the same values, so that nothing is gained by using
// the other credential. Files that are read whenever a token is asked for (federated tokens) are not compared.
func (f Found) Same(other Found) bool {
	return f.content.Reveal() != "" && f.content.Equal(other.content)
}

// Find finds the credential. It reads files and environment, and does not use the network. Parallel calls are
// allowed. Errors are one line.
func Find(o Options) (Found, error) { return find(o, table) }

func find(o Options, rows []row) (Found, error) {
	if o.Anonymous {
		o.Auth = Anonymous
	}
	if o.Auth == "" {
		o.Auth = Auto
	}
	if _, err := cloudNamed(o.Cloud); err != nil {
		return Found{}, err
	}
	values, warnings, err := collect(o, rows)
	if err != nil {
		return Found{}, err
	}
	f := finder{Options: o, values: values, warnings: warnings, content: sha256.New()}
	for _, v := range values {
		f.note(fmt.Sprint(v.kind), v.source.String(), v.secret.Reveal())
	}
	if o.CAFile != "" {
		var text Secret
		if f.rootCAs, text, err = readCAs(o.CAFile); err != nil {
			return Found{}, err
		}
		f.note("authorities", o.CAFile, text.Reveal())
	}
	found, err := f.credential()
	if err != nil {
		return Found{}, err
	}
	if !pathAccount.MatchString(found.Account) {
		return Found{}, fmt.Errorf("the account name that stands beside the %s is not valid, and not shown: "+
			"it must be 3 to 24 lower-case letters and digits", found.Origin)
	}
	// azcore refuses to send a bearer token without TLS, at the first request and in words about its policies.
	if found.Token != nil && !strings.HasPrefix(found.Endpoint, "https://") {
		why := fmt.Sprintf("the %s gives tokens, which are only sent over https, and the endpoint is %s", found.Origin, found.Endpoint)
		if n, ok := found.Token.(named); ok && n.chain {
			why = "no account key, SAS token or connection string was found, and identity tokens are only sent over https"
		}
		return Found{}, fmt.Errorf("%s: set one of %s, or use --anonymous", why, strings.Join(firstNames(methodKinds[shared]), ", "))
	}
	if err := f.checkCloud(found.Endpoint); err != nil {
		return Found{}, err
	}
	if err := f.checkUsed(found); err != nil {
		return Found{}, err
	}
	found.RootCAs, found.Warnings, found.Unused = f.rootCAs, f.warnings, f.unused()
	found.content = NewSecret(hex.EncodeToString(f.content.Sum(nil)))
	return found, nil
}
