package auth

import (
	"fmt"
	"slices"
	"strings"
)

// Method is a kind of credential that a user asks for, so that no other one is used.
type Method string

// The methods. Their texts are what users write.
const (
	Auto             Method = "auto" // the first that is found; also the meaning of an empty Method
	Key              Method = "key"
	SAS              Method = "sas"
	ServicePrincipal Method = "spn"      // by secret, certificate or federated token
	Workload         Method = "workload" // by federated token
	ManagedIdentity  Method = "msi"
	CLI              Method = "cli"
	Login            Method = "login" // any identity
	Anonymous        Method = "anonymous"

	// shared is what --auth-mode key of the Azure CLI means: no identity.
	shared Method = "key or sas"
)

// Methods returns the methods in the order in which they are documented.
func Methods() []Method {
	return []Method{Auto, Key, SAS, ServicePrincipal, Workload, ManagedIdentity, CLI, Login, Anonymous}
}

// methodKinds are the kinds of value that make a credential of the method. A connection string is judged by what is in it.
var methodKinds = map[Method][]Kind{
	Key:              {ConnectionString, AccountKey},
	SAS:              {ConnectionString, SASToken},
	shared:           {ConnectionString, AccountKey, SASToken},
	ServicePrincipal: {ClientSecret, ClientCertificate, FederatedTokenFile, FederatedToken},
	Workload:         {FederatedTokenFile, FederatedToken},
	ManagedIdentity:  {ManagedClientID, ManagedObjectID, ManagedResourceID},
	Login: {ClientSecret, ClientCertificate, FederatedTokenFile, FederatedToken,
		ManagedClientID, ManagedObjectID, ManagedResourceID},
}

// allows reports whether a value of the kind may be used.
func (m Method) allows(k Kind) bool { return m == Auto || slices.Contains(methodKinds[m], k) }

// accepts reports whether the method may use a connection string with these parts.
func (m Method) accepts(key, sas bool) bool {
	return (m == Auto || m == Key || m == shared) && key || (m == Auto || m == SAS || m == shared) && sas
}

// methodOf returns what a word of a tool means. The error does not repeat the word, which can be anything.
func methodOf(r row, word string) (Method, error) {
	m, known := r.words[strings.ToLower(word)]
	if m != "" {
		return m, nil
	}
	var words []string
	for w, m := range r.words {
		if m != "" {
			words = append(words, w)
		}
	}
	slices.Sort(words)
	if known {
		return "", fmt.Errorf("environment %s asks for a kind of credential that blobmount does not have: use one of %s, or unset it",
			r.name, strings.Join(words, ", "))
	}
	return "", fmt.Errorf("environment %s must be one of %s", r.name, strings.Join(words, ", "))
}
