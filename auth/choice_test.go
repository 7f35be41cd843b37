package auth

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// flags gives values as flags do.
func flags(values ...Value) func() ([]Value, error) {
	return func() ([]Value, error) { return values, nil }
}

// everything is an environment with a credential of each kind.
var everything = env{
	envString: goodString, "AZURE_STORAGE_ACCESS_KEY": planted, envSAS: goodSAS,
	"AZURE_STORAGE_CLIENT_SECRET": planted, "AZURE_STORAGE_CLIENT_ID": "c", "AZURE_STORAGE_TENANT_ID": "t",
	"AZURE_FEDERATED_TOKEN_FILE": "/token", "AZURE_CLIENT_ID": "c2", "AZURE_TENANT_ID": "t2",
	"AZCOPY_MSI_RESOURCE_STRING": "/r",
}

// "A way to choose the kind explicitly, so that a user with several can say which."
func TestMethods(t *testing.T) {
	both := env{envString: goodString + ";SharedAccessSignature=?" + goodSAS}
	dir := map[string]string{"account_key": planted, "client_id": "d", "client_secret": planted, "tenant_id": "t"}
	id := func(k Kind, flag string) Value {
		return Value{k, NewSecret("11111111-2222-3333-4444-555555555555"), flag, true}
	}
	tests := []struct {
		name  string
		m     Method
		env   env
		files map[string]string
		given []Value
		want  string // origin, or the error
	}{
		{"first of all", Auto, everything, nil, nil, "connection string from environment " + envString},
		{"key of a string", Key, everything, nil, nil, "connection string from environment " + envString},
		{"SAS, the string has none", SAS, everything, nil, nil, "SAS token from environment " + envSAS},
		{"SAS of a string", SAS, both, nil, nil, "connection string from environment " + envString},
		{"principal", ServicePrincipal, everything, nil, nil, "service principal from environment AZURE_STORAGE_CLIENT_SECRET"},
		{"federated token", Workload, everything, nil, nil, "service principal by federated token from environment AZURE_FEDERATED_TOKEN_FILE"},
		{"managed identity", ManagedIdentity, everything, nil, nil, "managed identity from environment AZCOPY_MSI_RESOURCE_STRING"},
		{"CLI", CLI, everything, nil, nil, "login of the Azure CLI"},
		{"any identity", Login, everything, nil, nil, "service principal from environment AZURE_STORAGE_CLIENT_SECRET"},
		{"any identity, none named", Login, env{envKey: planted}, nil, nil, "identity from azidentity's default chain"},
		{"anonymous", Anonymous, everything, dir, nil, "anonymous access from --auth=anonymous"},
		{"principal of a directory", ServicePrincipal, everything, dir, nil, "service principal from secret file DIR/client_secret"},
		{"string in the environment, directory without", SAS, everything, dir, nil, "SAS token from environment " + envSAS},

		{"identity of the machine", ManagedIdentity, env{envKey: planted}, nil, nil, "managed identity of this machine"},
		{"identity by the process's client", ManagedIdentity, env{"AZURE_CLIENT_ID": "c"}, nil, nil, "managed identity from environment AZURE_CLIENT_ID"},
		{"identity, not by a principal's client", ManagedIdentity, env{"AZURE_STORAGE_CLIENT_ID": "c"}, nil, nil, "managed identity of this machine"},
		{"identity by flag", ManagedIdentity, everything, nil, []Value{id(ManagedObjectID, "--object-id")}, "managed identity from --object-id"},
		{"identity by flag, without being asked for", Auto, everything, nil, []Value{id(ManagedResourceID, "--resource-id")}, "managed identity from --resource-id"},
		{"identity by client", ManagedIdentity, env{"AZURE_CLIENT_ID": "c"}, nil, []Value{id(ClientID, "--client-id")}, "managed identity from --client-id"},
		{"two identities", ManagedIdentity, nil, nil, []Value{id(ManagedResourceID, "--resource-id"), id(ManagedObjectID, "--object-id")},
			"--object-id and --resource-id both name a managed identity: unset one"},
		{"two identities by variables", Auto, env{"AZURE_STORAGE_IDENTITY_CLIENT_ID": "c", "AZCOPY_MSI_OBJECT_ID": "o"}, nil, nil,
			"environment AZURE_STORAGE_IDENTITY_CLIENT_ID and environment AZCOPY_MSI_OBJECT_ID both name a managed identity: unset one"},

		{"flags complete the environment", Auto, env{"AZURE_CLIENT_SECRET": planted}, nil, []Value{id(ClientID, "--client-id"), id(TenantID, "--tenant-id")},
			"service principal from environment AZURE_CLIENT_SECRET"},
		{"the environment completes flags", Auto, env{"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}, nil, []Value{{FederatedTokenFile, NewSecret("/t"), "--federated-token-file", true}},
			"service principal by federated token from --federated-token-file"},
		{"a flag of no use", Auto, env{envKey: planted}, nil, []Value{id(TenantID, "--tenant-id")},
			"--tenant-id is of no use to the account key from environment " + envKey + ": remove it, or choose the credential that needs it by --auth"},
		{"an authority of no use", Key, env{envKey: planted}, nil, []Value{{AuthorityHost, NewSecret("login.example.com"), "--authority-host", true}}, "--authority-host is of no use"},
		{"an authority of no use to the machine", ManagedIdentity, nil, nil, []Value{{AuthorityHost, NewSecret("login.example.com"), "--authority-host", true}}, "--authority-host is of no use"},
		{"a client for nothing", Auto, nil, nil, []Value{id(ClientID, "--client-id")}, "--client-id is of no use to the identity from azidentity's default chain"},
		{"a definition of no use", ManagedIdentity, nil, nil, []Value{{Kind: SASToken, Secret: NewSecret(goodSAS), From: "datastore definition d.yml"}}, "managed identity of this machine"},
		{"tenant of the CLI", CLI, nil, nil, []Value{id(TenantID, "--tenant-id")}, "login of the Azure CLI"},

		{"no key", Key, env{envSAS: goodSAS}, nil, nil,
			"there is no account key, which --auth=key asks for: set one of " + envString + ", " + envKey + ", or use --secret-dir"},
		{"no SAS", SAS, env{envString: goodString}, nil, nil, "there is no SAS token, which --auth=sas asks for"},
		{"no principal", ServicePrincipal, env{envKey: planted}, nil, nil, "which --auth=spn asks for: set one of AZURE_STORAGE_CLIENT_SECRET, "},
		{"no federated token", Workload, env{"AZURE_CLIENT_SECRET": planted}, nil, nil, "there is no federated token, which --auth=workload asks for"},
		{"half a principal", ServicePrincipal, env{"AZURE_STORAGE_CLIENT_ID": "c"}, nil, nil, "there is environment AZURE_STORAGE_CLIENT_ID, but no client secret beside it"},
		{"half a principal beside a key", Auto, env{"AZURE_STORAGE_CLIENT_ID": "c", "BLOB_ACCOUNT_KEY": planted}, nil, nil, "account key from environment BLOB_ACCOUNT_KEY"},
		{"half a federated token", Workload, env{"AZURE_FEDERATED_TOKEN_FILE": "/t", "AZURE_TENANT_ID": "t"}, nil, nil, "no client id beside it"},
		{"a pod without an identity", Auto, env{"AZURE_FEDERATED_TOKEN_FILE": "/t", "AZURE_TENANT_ID": "t"}, nil, nil, "identity from azidentity's default chain"},
		{"the chain's own choice", Auto, env{"AZURE_CLIENT_SECRET": planted, "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", chainName: "prod"}, nil, nil, "identity from azidentity's default chain"},
		{"a choice wins over the chain's", ServicePrincipal, env{"AZURE_CLIENT_SECRET": planted, "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", chainName: "prod"}, nil, nil, "service principal from environment AZURE_CLIENT_SECRET"},

		{"a variable chooses in the environment", Auto, env{envKey: planted, envSAS: goodSAS, "AZURE_STORAGE_AUTH_TYPE": "SAS"}, nil, nil, "SAS token from environment " + envSAS},
		{"a variable does not choose in a directory", Auto, env{"AZURE_STORAGE_AUTH_MODE": "login"}, dir, nil, "account key from secret file DIR/account_key"},
		{"a flag wins over a variable", Key, env{envKey: planted, "AZURE_STORAGE_AUTH_MODE": "login"}, nil, nil, "account key from environment " + envKey},
		{"a flag wins over a variable that cannot be followed", Key, env{envKey: planted, "AZCOPY_AUTO_LOGIN_TYPE": "DEVICE"}, nil, nil, "account key from environment " + envKey},
		{"so does a directory", Auto, env{"AZCOPY_AUTO_LOGIN_TYPE": "DEVICE"}, dir, nil, "account key from secret file DIR/account_key"},
		{"nothing wins over it in the environment", Auto, env{envKey: planted, "AZCOPY_AUTO_LOGIN_TYPE": "DEVICE"}, nil, nil,
			"environment AZCOPY_AUTO_LOGIN_TYPE asks for a kind of credential that blobmount does not have: use one of azcli, msi, spn, workload, or unset it"},
		{"a variable chooses what is not there", Auto, env{"AZURE_STORAGE_AUTH_MODE": "key"}, nil, nil, "there is no account key or SAS token, which environment AZURE_STORAGE_AUTH_MODE asks for"},
		{"login of a variable", Auto, env{envKey: planted, "AZURE_STORAGE_AUTH_MODE": "login"}, nil, nil, "identity from azidentity's default chain"},

		{"anonymous by variable", Auto, env{"AZURE_STORAGE_ANON": "1", "AZURE_CLIENT_SECRET": planted}, nil, nil, "anonymous access from environment AZURE_STORAGE_ANON"},
		{"anonymous by variable comes after keys", Auto, env{"AZURE_STORAGE_ANON": "True", "BLOB_ACCOUNT_KEY": planted}, nil, nil, "account key from environment BLOB_ACCOUNT_KEY"},
		{"not anonymous", Auto, env{"AZURE_STORAGE_ANON": "F"}, nil, nil, "identity from azidentity's default chain"},
		{"perhaps anonymous", Auto, env{"AZURE_STORAGE_ANON": planted}, nil, nil, "environment AZURE_STORAGE_ANON must be true or false"},

		{"Key Vault", Auto, nil, map[string]string{"azurestorageaccountkey": "?" + goodSAS}, nil, "SAS token from secret file DIR/azurestorageaccountkey"},
		{"Key Vault, and another", Auto, nil, map[string]string{"azurestorageaccountkey": "?" + goodSAS, "sas_token": goodSAS + "x"}, nil, "are both the SAS token and differ"},
		{"with a question mark and without", Auto, nil, map[string]string{"azurestorageaccountsastoken": "?" + goodSAS, "sas_token": goodSAS}, nil, "SAS token from secret file DIR/sas_token"},
		{"two spellings of a file", Auto, nil, map[string]string{"ACCOUNT_KEY": planted, "account_key": "AAAA" + planted}, nil, "are both the account key and differ: unset one"},
		{"order of groups", Auto, env{"BLOB_ACCOUNT_KEY": planted, envSAS: goodSAS}, nil, nil, "SAS token from environment " + envSAS},
		{"storage names before those of the process", Auto,
			env{"AZURE_CLIENT_SECRET": planted, "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "ADLSGEN2_CLIENT_SECRET": planted + "x", "ADLSGEN2_CLIENTID": "d", "ADLSGEN2_TENANT": "u"},
			nil, nil, "service principal from environment ADLSGEN2_CLIENT_SECRET"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Account: "strname", Auth: tt.m, LookupEnv: tt.env.lookup, SecretDir: secretDir(t, tt.files), Given: flags(tt.given...)}
			found, err := Find(o)
			text := found.Origin
			if err != nil {
				text = err.Error()
			}
			if want := strings.ReplaceAll(tt.want, "DIR", o.SecretDir); text != want && (err == nil || !strings.Contains(text, want)) {
				t.Errorf("got %q, want %q", text, want)
			}
			if strings.Contains(text, planted) || strings.Contains(text, "\n") {
				t.Errorf("a secret or several lines: %q", text)
			}
			if found.HasSAS && found.SAS.Reveal() != goodSAS {
				t.Errorf("SAS is %q", found.SAS.Reveal())
			}
		})
	}
}

// azidentity reads this one by itself.
func TestChainOfNothing(t *testing.T) {
	t.Setenv(chainName, planted)
	_, err := Find(Options{Account: "acct1", LookupEnv: os.LookupEnv})
	if err == nil || err.Error() != "environment AZURE_TOKEN_CREDENTIALS must be dev, prod, or the name of one credential such as AzureCLICredential" {
		t.Errorf("error is %v", err)
	}
}

// What was found and not taken is named, so that nobody wonders which of two it was.
func TestUnused(t *testing.T) {
	found, err := Find(Options{Auth: SAS, LookupEnv: everything.lookup})
	if err == nil {
		t.Fatalf("an account without a name: %+v", found)
	}
	if found, err = Find(Options{Account: "strname", Auth: SAS, LookupEnv: everything.lookup}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"connection string from environment " + envString, "client secret from environment AZURE_STORAGE_CLIENT_SECRET",
		"account key from environment AZURE_STORAGE_ACCESS_KEY", "resource id of a managed identity from environment AZCOPY_MSI_RESOURCE_STRING",
		"federated token file from environment AZURE_FEDERATED_TOKEN_FILE",
	}
	if !slices.Equal(found.Unused, want) {
		t.Errorf("%q", found.Unused)
	}
}

// "$CREDENTIALS_DIRECTORY is a secret directory", after the one that was named.
func TestCredentialsDirectory(t *testing.T) {
	dir := secretDir(t, map[string]string{"account_name": "acct1", "account_key": planted, "unit.conf": "x"})
	e := env{credentialsDirName: dir, envSAS: goodSAS}
	found, err := Find(Options{LookupEnv: e.lookup})
	if err != nil || found.Account != "acct1" || found.Origin != "account key from secret file "+filepath.Join(dir, "account_key") {
		t.Errorf("%+v, %v", found, err)
	}
	named := secretDir(t, map[string]string{"sas_token": goodSAS})
	if found, err = Find(Options{SecretDir: named, LookupEnv: e.lookup}); err != nil || found.Origin != "SAS token from secret file "+named+"/sas_token" || found.Account != "acct1" {
		t.Errorf("%+v, %v", found, err)
	}
	// It may be there for other programs.
	e[credentialsDirName] = secretDir(t, map[string]string{"unit.conf": "x"})
	if found, err = Find(Options{Account: "acct1", LookupEnv: e.lookup}); err != nil || !found.HasSAS {
		t.Errorf("%+v, %v", found, err)
	}
	if err := os.Chmod(e[credentialsDirName], 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err = Find(Options{Account: "acct1", LookupEnv: e.lookup}); err == nil || !strings.Contains(err.Error(), "environment CREDENTIALS_DIRECTORY: secret directory ") {
		t.Errorf("%v", err)
	}
}

// What the account is called, and where it is.
func TestWhere(t *testing.T) {
	tests := []struct {
		name     string
		o        Options
		env      env
		acct     string
		endpoint string // or the error
	}{
		{"cloud", Options{Account: "acct1", Cloud: ChinaCloud}, env{envKey: planted}, "acct1", "https://acct1.blob.core.chinacloudapi.cn"},
		{"cloud of the government", Options{Account: "acct1", Cloud: USGovernmentCloud}, env{envKey: planted}, "acct1", "https://acct1.blob.core.usgovcloudapi.net"},
		{"cloud before a suffix of the environment", Options{Account: "acct1", Cloud: PublicCloud}, env{envKey: planted, "AZURE_ENDPOINT_SUFFIX": "core.example.com"}, "acct1", "https://acct1.blob.core.windows.net"},
		{"cloud and endpoint", Options{Account: "acct1", Cloud: ChinaCloud, Endpoint: "https://acct1.blob.core.chinacloudapi.cn"}, env{envKey: planted}, "acct1", "https://acct1.blob.core.chinacloudapi.cn"},
		{"cloud and a domain of one's own", Options{Account: "acct1", Cloud: ChinaCloud, Endpoint: "https://blobs.example.com"}, env{envKey: planted}, "acct1", "https://blobs.example.com"},
		{"cloud and another's endpoint", Options{Cloud: ChinaCloud, Endpoint: "https://acct1.blob.core.windows.net"}, env{envKey: planted}, "", "is not in the cloud that --cloud=china names"},
		{"cloud and another's string", Options{Cloud: ChinaCloud}, env{envString: goodString}, "", "endpoint https://strname.blob.core.windows.net is not in the cloud"},
		{"no cloud", Options{Account: "acct1", Cloud: "moon"}, env{envKey: planted}, "", "the cloud must be one of"},
		{"secondary", Options{Account: "acct1-secondary"}, env{envKey: planted}, "acct1", "https://acct1-secondary.blob.core.windows.net"},
		{"secondary of a variable, and the account", Options{}, env{envKey: planted, "AZURE_STORAGE_ACCOUNT": "acct1-secondary"}, "acct1", "https://acct1-secondary.blob.core.windows.net"},
		{"secondary by URL", Options{Endpoint: "https://acct1-secondary.blob.core.windows.net"}, env{envKey: planted}, "acct1", "https://acct1-secondary.blob.core.windows.net"},
		{"secondary of an emulator", Options{Endpoint: "http://127.0.0.1:7/acct1-secondary"}, env{envKey: planted}, "acct1", "http://127.0.0.1:7/acct1-secondary"},
		{"DNS zone", Options{Endpoint: "https://acct1.z07.blob.storage.azure.net"}, env{envKey: planted}, "acct1", "https://acct1.z07.blob.storage.azure.net"},
		{"private link", Options{Endpoint: "https://acct1.privatelink.blob.core.windows.net"}, env{envKey: planted}, "acct1", "https://acct1.privatelink.blob.core.windows.net"},
		{"endpoint of a variable", Options{Account: "acct1"}, env{envKey: planted, "AZURE_STORAGE_BLOB_ENDPOINT": "acct1.dfs.core.windows.net"}, "acct1", "https://acct1.blob.core.windows.net"},
		{"endpoint of another account", Options{Account: "acct1"}, env{envSAS: goodSAS, "AZURE_STORAGE_SERVICE_ENDPOINT": "https://acct2.blob.core.windows.net/"}, "",
			`belongs to account "acct2" (environment AZURE_STORAGE_SERVICE_ENDPOINT), but --account-name says "acct1"`},
		{"endpoint of another account, for an identity", Options{Account: "acct1", Auth: ManagedIdentity}, env{"AZURE_STORAGE_SERVICE_ENDPOINT": "https://acct2.blob.core.windows.net/"}, "",
			`environment AZURE_STORAGE_SERVICE_ENDPOINT is of account "acct2", but --account-name says "acct1": unset one`},
		{"endpoint of a source, and of a variable", Options{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net"}, env{envKey: planted, "AZURE_STORAGE_BLOB_ENDPOINT": "https://acct2.blob.core.windows.net"}, "",
			`belongs to account "acct2"`},
		{"endpoint beside another string", Options{}, env{envString: goodString, "AZURE_STORAGE_BLOB_ENDPOINT": "https://strname.blob.core.chinacloudapi.cn"}, "",
			"connection string from environment " + envString + " is for https://strname.blob.core.windows.net, but environment AZURE_STORAGE_BLOB_ENDPOINT says https://strname.blob.core.chinacloudapi.cn: unset one"},
		{"endpoint beside its string", Options{}, env{envString: goodString, "AZURE_STORAGE_BLOB_ENDPOINT": "https://strname.blob.core.windows.net/"}, "strname", "https://strname.blob.core.windows.net"},
		{"endpoint that is none", Options{Account: "acct1"}, env{envKey: planted, "AZURE_STORAGE_BLOB_ENDPOINT": "https://acct1.blob.core.windows.net/?" + goodSAS}, "",
			"environment AZURE_STORAGE_BLOB_ENDPOINT: endpoint must be a URL without"},
		{"identity of a closed cloud", Options{Account: "acct1", Endpoint: "https://acct1.blob.core.eaglex.ic.gov", Auth: Login}, nil, "", "is not known: name it by --authority-host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.LookupEnv = tt.env.lookup
			found, err := Find(tt.o)
			if err != nil {
				if tt.acct != "" || !strings.Contains(err.Error(), tt.endpoint) || strings.Contains(err.Error(), planted) {
					t.Errorf("error is %v, want %q", err, tt.endpoint)
				}
				return
			}
			if found.Account != tt.acct || found.Endpoint != tt.endpoint {
				t.Errorf("found %q at %q", found.Account, found.Endpoint)
			}
			if found.SharedKey != nil && found.SharedKey.AccountName() != tt.acct {
				t.Errorf("the key signs for %q", found.SharedKey.AccountName())
			}
			if got := Secondary(found.Endpoint); got != strings.Contains(tt.endpoint, "-secondary") {
				t.Errorf("secondary: %v", got)
			}
		})
	}
}

// Where tokens are asked for.
func TestAuthority(t *testing.T) {
	flag := Value{AuthorityHost, NewSecret("https://login.example.com/"), "--authority-host", true}
	tests := []struct {
		o        Options
		env      env
		endpoint string
		want     authority
	}{
		{Options{}, nil, "https://acct1.blob.core.windows.net", authority{"https://login.microsoftonline.com", true}},
		{Options{}, nil, "https://blobs.example.com", authority{"https://login.microsoftonline.com", true}},
		{Options{}, nil, "https://acct1.z1.blob.storage.azure.net", authority{"https://login.microsoftonline.com", true}},
		{Options{}, nil, "https://acct1.blob.core.chinacloudapi.cn", authority{"https://login.chinacloudapi.cn", true}},
		{Options{}, nil, "https://acct1-secondary.blob.core.usgovcloudapi.net", authority{"https://login.microsoftonline.us", true}},
		{Options{}, nil, "https://acct1.blob.core.sovcloud-api.fr", authority{"https://login.sovcloud-identity.fr", true}},
		{Options{Cloud: USGovernmentCloud}, nil, "https://blobs.example.com", authority{"https://login.microsoftonline.us", true}},
		{Options{Cloud: USGovernmentCloud}, env{"AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/"}, "https://blobs.example.com", authority{"https://login.microsoftonline.us", true}},
		{Options{Cloud: USGovernmentCloud, Given: flags(flag)}, nil, "https://blobs.example.com", authority{"https://login.example.com", false}},
		{Options{Given: flags(flag)}, env{"AZURE_AUTHORITY_HOST": "login.microsoftonline.us"}, "https://acct1.blob.core.windows.net", authority{"https://login.example.com", false}},
		{Options{}, env{"AZURE_AUTHORITY_HOST": "https://LOGIN.microsoftonline.us/"}, "https://acct1.blob.core.windows.net", authority{"https://login.microsoftonline.us", true}},
		{Options{}, env{"AZURE_AUTHORITY_HOST": "https://login.microsoftonline.us/", "AZCOPY_ACTIVE_DIRECTORY_ENDPOINT": "https://login.azurestack.local/adfs"}, "https://acct1.blob.core.windows.net",
			authority{"https://login.azurestack.local/adfs", false}},
	}
	for _, tt := range tests {
		tt.o.LookupEnv = tt.env.lookup
		values, _, err := collect(tt.o, table)
		if err != nil {
			t.Fatal(err)
		}
		f := finder{Options: tt.o, values: values}
		if got, err := f.authority(tt.endpoint); got != tt.want || err != nil {
			t.Errorf("%v at %s: %+v, %v", tt.env, tt.endpoint, got, err)
		}
	}
	for _, bad := range []string{"http://login.example.com", "https://", "https://u:p@login.example.com", "https://login.example.com/?x=" + planted} {
		_, err := Find(Options{Account: "acct1", LookupEnv: env{envKey: planted, "AZURE_AUTHORITY_HOST": bad}.lookup})
		if err == nil || err.Error() != "environment AZURE_AUTHORITY_HOST must be a URL such as https://login.microsoftonline.com" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
