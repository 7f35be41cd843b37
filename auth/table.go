package auth

import "path/filepath"

// Kind says what a value is.
type Kind uint8

// The kinds of value. Those that make a credential stand in the order in which they are preferred when one group
// of names holds several (the order of adlfs, see fsspec/adlfs, adlfs/spec.py).
const (
	AccountName Kind = iota
	ConnectionString
	AccountKey
	SASToken
	TenantID
	ClientID
	ClientSecret
)

var kindTexts = [...]string{
	AccountName:      "account name",
	ConnectionString: "connection string",
	AccountKey:       "account key",
	SASToken:         "SAS token",
	TenantID:         "tenant id",
	ClientID:         "client id",
	ClientSecret:     "client secret",
}

// String returns the kind in words.
func (k Kind) String() string { return kindTexts[k] }

// group is a set of names that come from one tool and are used together. Groups are asked in the order of their
// numbers; the first one that holds a credential is taken.
type group uint8

const (
	givenValues group = iota // flags, -o, the source itself, and what it names; not in the table
	zenMLFiles               // a secret directory, with the keys of a ZenML secret
	adlfsNames               // the environment, with the names of adlfs and ZenML
	groupCount
)

// place is where the values of a group are read.
func (g group) place() place {
	switch g {
	case givenValues:
		return onCommandLine
	case zenMLFiles:
		return inSecretDir
	default:
		return inEnvironment
	}
}

type place uint8

const (
	onCommandLine place = iota
	inSecretDir
	inEnvironment
)

// row gives a kind of value one of its names.
type row struct {
	kind  Kind
	group group
	name  string
}

// table holds every name that is accepted. More names are more rows: nothing else knows a name.
var table = []row{
	{AccountName, zenMLFiles, "account_name"},
	{ConnectionString, zenMLFiles, "connection_string"},
	{AccountKey, zenMLFiles, "account_key"},
	{SASToken, zenMLFiles, "sas_token"},
	{TenantID, zenMLFiles, "tenant_id"},
	{ClientID, zenMLFiles, "client_id"},
	{ClientSecret, zenMLFiles, "client_secret"},

	{AccountName, adlfsNames, "AZURE_STORAGE_ACCOUNT_NAME"},
	{ConnectionString, adlfsNames, "AZURE_STORAGE_CONNECTION_STRING"},
	{AccountKey, adlfsNames, "AZURE_STORAGE_ACCOUNT_KEY"},
	{SASToken, adlfsNames, "AZURE_STORAGE_SAS_TOKEN"},
}

// Source names the place that a value came from. It never holds the value.
type Source struct {
	place place
	name  string // flag, environment name, or path of the file
}

// String returns the source in words, such as "environment AZURE_STORAGE_ACCOUNT_KEY".
func (s Source) String() string {
	switch s.place {
	case inEnvironment:
		return "environment " + s.name
	case inSecretDir:
		return "secret file " + s.name
	default:
		return s.name
	}
}

func (r row) source(secretDir string) Source {
	name := r.name
	if r.group.place() == inSecretDir {
		name = filepath.Join(secretDir, name)
	}
	return Source{r.group.place(), name}
}
