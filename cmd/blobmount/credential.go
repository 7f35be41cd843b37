package main

import (
	"net/http"
	"path/filepath"

	"github.com/spf13/pflag"

	"blobmount/auth"
)

// credentialFlags are the flags that say which account is used, and what proves that one may. They take no secret: every
// user can see arguments.
type credentialFlags struct {
	AccountName, Endpoint string
	Cloud                 wordValue
	SecretDir             string
	Auth                  wordValue
	Anonymous             bool

	TenantID, ClientID, ObjectID, ResourceID         string
	ClientCertificate, FederatedToken, AuthorityHost string
	CAFile                                           string
}

// credentialNames are these flags, in the order of the help.
var credentialNames = []string{"account-name", "endpoint", "cloud", "secret-dir", "auth", "anonymous", "tenant-id", "client-id", "object-id",
	"resource-id", "client-certificate", "federated-token-file", "authority-host", "ca-file"}

// words returns the texts of a list of names.
func words[T ~string](all []T) []string {
	texts := make([]string, len(all))
	for i, w := range all {
		texts[i] = string(w)
	}
	return texts
}

func (c *credentialFlags) register(f *pflag.FlagSet) {
	c.Auth = wordValue{string(auth.Auto), words(auth.Methods()), "KIND"}
	c.Cloud = wordValue{"", words(auth.Clouds()), "CLOUD"}
	f.StringVar(&c.AccountName, "account-name", "", "storage `ACCOUNT` (default: AZURE_STORAGE_ACCOUNT_NAME and other names)")
	f.StringVar(&c.Endpoint, "endpoint", "", "`URL` of the blob service (default: that of the connection string, else https://ACCOUNT.blob.core.windows.net)")
	f.Var(&c.Cloud, "cloud", "public, china or usgovernment: where the account and its identities are (default: as the endpoint says, else public)")
	f.StringVar(&c.SecretDir, "secret-dir", "", "`DIR` with one file for each of account_name, account_key, sas_token, connection_string, "+
		"tenant_id, client_id, client_secret, client_certificate. It comes before the environment")
	f.Var(&c.Auth, "auth", "use no other kind of credential than key, sas, spn (service principal), workload (federated token), msi (managed identity), "+
		"cli (Azure CLI), login (any identity) or anonymous; auto takes the first that is found")
	f.BoolVar(&c.Anonymous, "anonymous", false, "use no credential, for a container with public access; the same as --auth=anonymous")
	f.StringVar(&c.TenantID, "tenant-id", "", "tenant `ID` of a service principal")
	f.StringVar(&c.ClientID, "client-id", "", "client (application) `ID` of a service principal, or with --auth=msi of a managed identity")
	f.StringVar(&c.ObjectID, "object-id", "", "object `ID` of a managed identity")
	f.StringVar(&c.ResourceID, "resource-id", "", "resource `ID` of a managed identity")
	f.StringVar(&c.ClientCertificate, "client-certificate", "", "PEM or PFX `FILE` with certificate and private key of a service principal")
	f.StringVar(&c.FederatedToken, "federated-token-file", "", "`FILE` with a federated token of a service principal (workload identity)")
	f.StringVar(&c.AuthorityHost, "authority-host", "", "`URL` of the identity service (default: AZURE_AUTHORITY_HOST, else that of the cloud)")
	f.StringVar(&c.CAFile, "ca-file", "", "PEM `FILE` with certificate authorities to trust beside those of the system, for the blob service and "+
		"for identity services")
}

// complete checks the flags, and makes paths absolute.
func (c *credentialFlags) complete(f *pflag.FlagSet) error {
	for _, path := range []*string{&c.SecretDir, &c.ClientCertificate, &c.FederatedToken, &c.CAFile} {
		if *path == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return usagef("the working directory is not there any more: use absolute paths")
		}
	}
	// A flag that was given without a value is a variable of a script that was not set, not a wish for the default.
	for _, name := range credentialNames {
		if fl := f.Lookup(name); fl.Changed && fl.Value.String() == "" {
			return usagef("--%s is empty", name)
		}
	}
	if c.Anonymous && f.Lookup("auth").Changed && c.Auth.word != string(auth.Anonymous) {
		return usagef("--anonymous and --auth=%s exclude each other: remove one", c.Auth.word)
	}
	if anonymous := c.Anonymous || c.Auth.word == string(auth.Anonymous); anonymous && c.SecretDir != "" {
		return usagef("--anonymous uses no credential: remove --secret-dir")
	}
	return nil
}

// options says where to look for the credential.
func (c *credentialFlags) options(lookupEnv func(string) (string, bool)) auth.Options {
	o := auth.Options{
		Account: c.AccountName, Endpoint: c.Endpoint, Cloud: auth.Cloud(c.Cloud.word), SecretDir: c.SecretDir,
		Auth: auth.Method(c.Auth.word), Anonymous: c.Anonymous, CAFile: c.CAFile,
		Proxy: http.ProxyFromEnvironment, LookupEnv: lookupEnv,
	}
	var all []auth.Value
	for _, v := range []struct {
		kind        auth.Kind
		value, flag string
	}{
		{auth.TenantID, c.TenantID, "--tenant-id"},
		{auth.ClientID, c.ClientID, "--client-id"},
		{auth.ManagedObjectID, c.ObjectID, "--object-id"},
		{auth.ManagedResourceID, c.ResourceID, "--resource-id"},
		{auth.ClientCertificate, c.ClientCertificate, "--client-certificate"},
		{auth.FederatedTokenFile, c.FederatedToken, "--federated-token-file"},
		{auth.AuthorityHost, c.AuthorityHost, "--authority-host"},
	} {
		if v.value != "" {
			all = append(all, auth.Value{Kind: v.kind, Secret: auth.NewSecret(v.value), From: v.flag, Needed: true})
		}
	}
	o.Given = func() ([]auth.Value, error) { return all, nil }
	return o
}
