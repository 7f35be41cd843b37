package auth

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

type env map[string]string

func (e env) lookup(name string) (string, bool) { v, ok := e[name]; return v, ok }

// secretDir writes files into a new directory; a nil map gives no directory.
func secretDir(t *testing.T, files map[string]string) string {
	t.Helper()
	if files == nil {
		return ""
	}
	dir := filepath.Join(t.TempDir(), "secret")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	envString  = "AZURE_STORAGE_CONNECTION_STRING"
	envAccount = "AZURE_STORAGE_ACCOUNT_NAME"
	envKey     = "AZURE_STORAGE_ACCOUNT_KEY"
	envSAS     = "AZURE_STORAGE_SAS_TOKEN"
	goodSAS    = "sv=2024-11-04&sig=" + planted
	goodString = "AccountName=strname;AccountKey=" + planted
)

// What cannot be read is not passed over in favour of another place.
func TestFindGivenFails(t *testing.T) {
	broken := errors.New("datastore definition d.yml is not there")
	_, err := Find(Options{Account: "acct1", Given: func() ([]Value, error) { return nil, broken }, LookupEnv: env{envKey: planted}.lookup})
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestParseHost(t *testing.T) {
	for in, want := range map[string]Host{
		"acct1.blob.core.windows.net":                  {"acct1", "blob", false, "acct1.blob.core.windows.net"},
		"ACCT1.DFS.core.windows.net":                   {"acct1", "dfs", false, "acct1.blob.core.windows.net"},
		"acct1.dfs.core.chinacloudapi.cn":              {"acct1", "dfs", false, "acct1.blob.core.chinacloudapi.cn"},
		"acct1.blob.core.usgovcloudapi.net":            {"acct1", "blob", false, "acct1.blob.core.usgovcloudapi.net"},
		"acct1.blob.core.cloudapi.de":                  {"acct1", "blob", false, "acct1.blob.core.cloudapi.de"},
		"acct1.blob.core.sovcloud-api.fr":              {"acct1", "blob", false, "acct1.blob.core.sovcloud-api.fr"},
		"acct1.blob.core.eaglex.ic.gov":                {"acct1", "blob", false, "acct1.blob.core.eaglex.ic.gov"},
		"acct1.z7.dfs.storage.azure.net":               {"acct1", "dfs", false, "acct1.z7.blob.storage.azure.net"},
		"acct1.z99.blob.storage.azure.net":             {"acct1", "blob", false, "acct1.z99.blob.storage.azure.net"},
		"acct1-secondary.blob.core.windows.net":        {"acct1", "blob", true, "acct1-secondary.blob.core.windows.net"},
		"acct1-secondary.z01.dfs.storage.azure.net":    {"acct1", "dfs", true, "acct1-secondary.z01.blob.storage.azure.net"},
		"acct1.privatelink.dfs.core.windows.net":       {"acct1", "dfs", false, "acct1.privatelink.blob.core.windows.net"},
		"acct1.z7.privatelink.blob.storage.azure.net":  {"acct1", "blob", false, "acct1.z7.privatelink.blob.storage.azure.net"},
		"onelake.dfs.fabric.microsoft.com":             {"onelake", "dfs", false, "onelake.blob.fabric.microsoft.com"},
		"acct1.file.core.windows.net":                  {"acct1", "file", false, "acct1.blob.core.windows.net"},
		"":                                             {},
		"blob.core.windows.net":                        {},
		"ab.blob.core.windows.net":                     {},
		"acct1-other.blob.core.windows.net":            {},
		"acct1.z123.blob.storage.azure.net":            {},
		"acct1.blob.":                                  {},
		"x.acct1.blob.core.windows.net":                {},
		"acct1.blob.core.windows.net@evil.example.com": {},
	} {
		if got, ok := ParseHost(in); got != want || ok != (want != Host{}) {
			t.Errorf("%s gives %+v, %v", in, got, ok)
		}
	}
}

func TestPathStyle(t *testing.T) {
	for in, want := range map[string]bool{
		"http://127.0.0.1:10000": true, "https://[::1]:10": true, "http://localhost": true, "http://a.localhost:1": true, "http://azurite:10000": true,
		"http://azurite.default.svc.cluster.local:10000": true, "http://azurite.default.svc": true, "http://host.docker.internal:10000": true,
		"https://acct1.blob.core.windows.net": false, "https://blobs.example.com:8443": false, "": false, "http://": false, "://": false,
	} {
		if got := PathStyle(in); got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
	for in, want := range map[string]string{
		"http://127.0.0.1:10000/devstoreaccount1-secondary": "devstoreaccount1", "https://acct1-secondary.blob.core.windows.net": "acct1",
		"https://acct1.dfs.core.windows.net/data": "", "http://azurite:10000/acct1/data": "acct1",
	} {
		if got := AccountOf(in); got != want {
			t.Errorf("%s: %q", in, got)
		}
	}
}

// DIR in wanted texts stands for the secret directory.
func TestFind(t *testing.T) {
	sp := map[string]string{"tenant_id": "11111111-2222-3333-4444-555555555555\n", "client_id": "c", "client_secret": planted}
	tests := []struct {
		name   string
		o      Options
		env    env
		files  map[string]string
		want   string // kind of credential
		acct   string
		url    string
		origin string
	}{
		{"connection string", Options{}, env{envString: goodString}, nil,
			"key", "strname", "https://strname.blob.core.windows.net", "connection string from environment " + envString},
		{"emulator", Options{}, env{envString: "UseDevelopmentStorage=true"}, nil,
			"key", emulatorAccount, "http://127.0.0.1:10000/devstoreaccount1", "connection string from environment " + envString},
		{"key", Options{}, env{envAccount: "acct1", envKey: planted}, nil,
			"key", "acct1", "https://acct1.blob.core.windows.net", "account key from environment " + envKey},
		{"key, account from flag", Options{Account: "flagacct"}, env{envKey: planted}, nil,
			"key", "flagacct", "https://flagacct.blob.core.windows.net", "account key from environment " + envKey},
		{"key, account from path of endpoint", Options{Endpoint: "http://127.0.0.1:7/acct1/"}, env{envKey: planted}, nil,
			"key", "acct1", "http://127.0.0.1:7/acct1", "account key from environment " + envKey},
		{"key, account from host of endpoint", Options{Endpoint: "https://acct1.blob.core.usgovcloudapi.net"}, env{envKey: planted}, nil,
			"key", "acct1", "https://acct1.blob.core.usgovcloudapi.net", "account key from environment " + envKey},
		{"account is added to an emulator's address", Options{Account: "acct1", Endpoint: "http://127.0.0.1:7"}, env{envKey: planted}, nil,
			"key", "acct1", "http://127.0.0.1:7/acct1", "account key from environment " + envKey},
		{"custom domain is left alone", Options{Account: "acct1", Endpoint: "https://Blobs.Example.com/"}, env{envKey: planted}, nil,
			"key", "acct1", "https://blobs.example.com", "account key from environment " + envKey},
		{"SAS", Options{Account: "acct1"}, env{envSAS: "?" + goodSAS}, nil,
			"sas", "acct1", "https://acct1.blob.core.windows.net", "SAS token from environment " + envSAS},
		{"SAS in connection string", Options{}, env{envString: "BlobEndpoint=https://acct1.blob.core.windows.net;SharedAccessSignature=?" + goodSAS}, nil,
			"sas", "acct1", "https://acct1.blob.core.windows.net", "connection string from environment " + envString},
		{"key before SAS", Options{Account: "acct1"}, env{envSAS: goodSAS, envKey: planted}, nil,
			"key", "acct1", "https://acct1.blob.core.windows.net", "account key from environment " + envKey},
		{"connection string before key", Options{}, env{envString: goodString, envKey: planted}, nil,
			"key", "strname", "https://strname.blob.core.windows.net", "connection string from environment " + envString},
		{"secret directory before environment", Options{}, env{envString: goodString}, map[string]string{"account_name": "dirname", "sas_token": goodSAS + "\n"},
			"sas", "dirname", "https://dirname.blob.core.windows.net", "SAS token from secret file DIR/sas_token"},
		{"secret directory with the account only", Options{}, env{envKey: planted}, map[string]string{"account_name": "dirname"},
			"key", "dirname", "https://dirname.blob.core.windows.net", "account key from environment " + envKey},
		{"service principal", Options{Account: "acct1"}, nil, sp,
			"token", "acct1", "https://acct1.blob.core.windows.net", "service principal from secret file DIR/client_secret"},
		{"key before service principal", Options{Account: "acct1"}, nil, map[string]string{"client_id": "c", "account_key": planted},
			"key", "acct1", "https://acct1.blob.core.windows.net", "account key from secret file DIR/account_key"},
		{"endpoint before connection string", Options{Endpoint: "http://127.0.0.1:7/strname"}, env{envString: goodString}, nil,
			"key", "strname", "http://127.0.0.1:7/strname", "connection string from environment " + envString},
		{"connection string in a file, account in environment", Options{}, env{envAccount: "other"}, map[string]string{"connection_string": goodString},
			"key", "strname", "https://strname.blob.core.windows.net", "connection string from secret file DIR/connection_string"},
		{"anonymous before all", Options{Anonymous: true, Account: "acct1"}, env{envKey: planted}, nil,
			"", "acct1", "https://acct1.blob.core.windows.net", "anonymous access from --anonymous"},
		{"given before all places", Options{Account: "acct1", Given: func() ([]Value, error) {
			return []Value{{Kind: SASToken, Secret: NewSecret(goodSAS), From: "datastore definition d.yml"}}, nil
		}}, env{envString: goodString, envKey: planted}, map[string]string{"connection_string": goodString},
			"sas", "acct1", "https://acct1.blob.core.windows.net", "SAS token from datastore definition d.yml"},
		{"given without a credential", Options{Account: "acct1", Given: func() ([]Value, error) { return nil, nil }}, env{envKey: planted}, nil,
			"key", "acct1", "https://acct1.blob.core.windows.net", "account key from environment " + envKey},
		{"default chain", Options{Account: "acct1"}, env{envKey: "", envSAS: ""}, nil,
			"token", "acct1", "https://acct1.blob.core.windows.net", "identity from azidentity's default chain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.LookupEnv, tt.o.SecretDir = tt.env.lookup, secretDir(t, tt.files)
			got, err := Find(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			kind := ""
			if got.SharedKey != nil {
				kind += "key"
				if got.SharedKey.AccountName() != tt.acct {
					t.Errorf("key signs for %q", got.SharedKey.AccountName())
				}
			}
			if got.HasSAS {
				kind += "sas"
				if got.SAS.Reveal() != goodSAS {
					t.Errorf("SAS is %q", got.SAS.Reveal())
				}
			}
			if got.Token != nil {
				kind += "token"
			}
			origin := strings.ReplaceAll(tt.origin, "DIR", tt.o.SecretDir)
			if kind != tt.want || got.Account != tt.acct || got.Endpoint != tt.url || got.Origin != origin {
				t.Errorf("found %q for %q at %q, origin %q", kind, got.Account, got.Endpoint, got.Origin)
			}
		})
	}
}

func TestFindRefuses(t *testing.T) {
	tests := []struct {
		name  string
		o     Options
		env   env
		files map[string]string
		want  string
	}{
		{"nothing", Options{}, nil, nil, "no storage account is named"},
		{"key without account", Options{}, env{envKey: planted}, nil, "no storage account is named"},
		{"SAS without account", Options{}, env{envSAS: goodSAS}, nil, "no storage account is named"},
		{"key is not base64", Options{Account: "acct1"}, env{envKey: planted + "!"}, nil,
			"account key from environment " + envKey + ": the account key is not valid base64"},
		{"key in string is not base64", Options{}, env{envString: goodString + "!"}, nil,
			"connection string from environment " + envString + ": the account key is not valid base64"},
		{"malformed string", Options{}, env{envString: planted}, nil, "connection string from environment " + envString + " is not valid: setting 1"},
		{"not a SAS", Options{Account: "acct1"}, env{envSAS: planted}, nil, "SAS token from environment " + envSAS},
		{"SAS with a whole URL", Options{Account: "acct1"}, env{envSAS: "https://a.example/?" + goodSAS}, nil, "must be a query"},
		{"account name", Options{Account: "Not/Valid"}, env{envKey: planted}, nil, "--account-name: account name is not valid"},
		{"endpoint with SAS", Options{Account: "acct1", Endpoint: "https://acct1.blob.core.windows.net/?" + goodSAS}, env{envKey: planted}, nil, "endpoint must be a URL without"},
		{"string and account differ", Options{}, env{envString: goodString, envAccount: "other"}, nil, "unset one"},
		{"string and flag differ", Options{Account: "other"}, env{envString: goodString}, nil, `--account-name says "other"`},
		{"string and source differ", Options{Account: "other", AccountFrom: "the source"}, env{envString: goodString}, nil, `the source says "other"`},
		{"string and secret directory differ", Options{}, env{envString: goodString}, map[string]string{"account_name": "other"}, "account_name says"},
		{"key beside another account", Options{Account: "other"}, env{envAccount: "acct1", envKey: planted}, nil, `belongs to account "acct1"`},
		{"SAS beside another account", Options{Account: "other"}, env{envAccount: "acct1", envSAS: goodSAS}, nil, `belongs to account "acct1"`},
		{"half a service principal", Options{Account: "acct1"}, nil, map[string]string{"client_id": "c", "client_secret": planted}, "no tenant id beside it"},
		{"service principal with bad tenant", Options{Account: "acct1"}, nil,
			map[string]string{"client_id": "c", "client_secret": planted, "tenant_id": "a b/c"}, "tenant id or client id is not valid"},
		{"directory with nothing known", Options{Account: "acct1"}, nil, map[string]string{"key": planted}, "has none of the files account_name,"},
		{"empty file", Options{Account: "acct1"}, nil, map[string]string{"account_key": "\n"}, "account_key is empty"},
		{"chain without TLS", Options{Endpoint: "http://127.0.0.1:7/acct1"}, nil, nil, "identity tokens are only sent over https: set one of " + envString + ", "},
		{"identity without TLS", Options{Endpoint: "http://127.0.0.1:7/acct1"}, env{"AZCOPY_MSI_CLIENT_ID": "c"}, nil,
			"the managed identity from environment AZCOPY_MSI_CLIENT_ID gives tokens, which are only sent over https, and the endpoint is http://127.0.0.1:7/acct1: set one of " + envString},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.LookupEnv, tt.o.SecretDir = tt.env.lookup, secretDir(t, tt.files)
			got, err := Find(tt.o)
			if err == nil {
				t.Fatalf("found %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %q, want %q in it", err, tt.want)
			}
			if strings.Contains(err.Error(), planted) || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("error shows the secret or has several lines: %q", err)
			}
		})
	}
}

// "Two aliases that disagree are an error that names both": within one place, whatever the group.
func TestAliasesThatDisagree(t *testing.T) {
	rows := append([]row{{kind: AccountKey, group: adlfsNames, name: "ALIAS_KEY"}}, table...)
	o := Options{Account: "acct1", LookupEnv: env{envKey: planted, "ALIAS_KEY": "b3RoZXI="}.lookup}
	_, err := find(o, rows)
	want := "environment ALIAS_KEY and environment " + envKey + " are both the account key and differ: unset one"
	if err == nil || err.Error() != want {
		t.Errorf("error is %v, want %q", err, want)
	}
	o.LookupEnv = env{envKey: planted, "ALIAS_KEY": planted}.lookup
	if _, err := find(o, rows); err != nil {
		t.Errorf("aliases that agree: %v", err)
	}
	// Two places may differ: that is what the order of places is for.
	o.LookupEnv, o.SecretDir = env{envKey: planted}.lookup, secretDir(t, map[string]string{"account_key": "b3RoZXI="})
	if got, err := find(o, rows); err != nil || !strings.Contains(got.Origin, "secret file") {
		t.Errorf("two places: %v, %v", got.Origin, err)
	}
}

func TestSecretDirOfKubernetes(t *testing.T) {
	dir := secretDir(t, map[string]string{})
	data := filepath.Join(dir, "..2026_01_01_00_00_00.1")
	for _, err := range []error{
		os.Mkdir(data, 0o755),
		os.WriteFile(filepath.Join(data, "account_key"), []byte(planted), 0o640),
		os.WriteFile(filepath.Join(data, "account_name"), []byte("acct1\r\n"), 0o640),
		os.Symlink(filepath.Base(data), filepath.Join(dir, "..data")),
		os.Symlink("..data/account_key", filepath.Join(dir, "account_key")),
		os.Symlink("..data/account_name", filepath.Join(dir, "account_name")),
		os.Chmod(dir, 0o777|os.ModeSticky),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := Find(Options{SecretDir: dir, LookupEnv: env{}.lookup})
	if err != nil || got.Account != "acct1" || got.SharedKey == nil || len(got.Warnings) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	// What is checked is the file behind the links.
	if err := os.Chmod(filepath.Join(data, "account_key"), 0o660); err != nil {
		t.Fatal(err)
	}
	if _, err = Find(Options{SecretDir: dir, LookupEnv: env{}.lookup}); err == nil ||
		!strings.Contains(err.Error(), "account_key can be written by other users: run chmod go-w "+data) {
		t.Errorf("error is %v", err)
	}
}

func TestSecretDirRefuses(t *testing.T) {
	plain := func(t *testing.T) string {
		return secretDir(t, map[string]string{"account_name": "acct1", "account_key": planted})
	}
	tests := []struct {
		name string
		make func(t *testing.T, dir string) error
		want string
	}{
		{"not there", func(t *testing.T, dir string) error { return os.RemoveAll(dir) }, "does not exist"},
		{"a file", func(t *testing.T, dir string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		}, "is not a directory"},
		{"directory writable by all", func(t *testing.T, dir string) error { return os.Chmod(dir, 0o777) }, "run chmod o-w"},
		{"file writable by group", func(t *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "account_key"), 0o620) }, "run chmod go-w"},
		{"file writable by all", func(t *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "account_key"), 0o602) }, "run chmod go-w"},
		{"value is a directory", func(t *testing.T, dir string) error { return os.Mkdir(filepath.Join(dir, "sas_token"), 0o700) }, "not a regular file"},
		{"link to nothing", func(t *testing.T, dir string) error {
			return os.Symlink("nowhere", filepath.Join(dir, "sas_token"))
		}, "link to nothing"},
		{"too large", func(t *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "sas_token"), make([]byte, maxSecretSize+1), 0o600)
		}, "larger than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := plain(t)
			if err := tt.make(t, dir); err != nil {
				t.Fatal(err)
			}
			_, err := Find(Options{SecretDir: dir, LookupEnv: env{}.lookup})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
		})
	}
	dir := plain(t)
	if err := os.Chmod(filepath.Join(dir, "account_key"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Find(Options{SecretDir: dir, LookupEnv: env{}.lookup})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if want := !inMemory(f); (len(got.Warnings) == 1) != want {
		t.Errorf("warnings for a world-readable file: %q", got.Warnings)
	}
}

type fixedToken struct{ err error }

func (f fixedToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: planted}, f.err
}

func TestTokenError(t *testing.T) {
	n := named{TokenCredential: fixedToken{errors.New("line one\nline two " + planted)}, origin: "identity from somewhere"}
	_, err := n.GetToken(t.Context(), policy.TokenRequestOptions{})
	var te *TokenError
	if !errors.As(err, &te) || te.Rejected || err.Error() != "no token from the identity from somewhere" {
		t.Errorf("error is %v", err)
	}
	refused := &azidentity.AuthenticationFailedError{RawResponse: &http.Response{StatusCode: 401, Body: io.NopCloser(strings.NewReader(
		`{"error":"invalid_client","error_description":"AADSTS7000222: ...","error_codes":[7000222]}`))}}
	n = named{TokenCredential: fixedToken{refused}, origin: "service principal from somewhere"}
	if _, err = n.GetToken(t.Context(), policy.TokenRequestOptions{}); !errors.As(err, &te) || !te.Rejected || te.Temporary() ||
		te.Reason != "invalid_client, AADSTS7000222" || !strings.Contains(te.Advice, "expired") {
		t.Errorf("error is %v: %+v", err, te)
	}
	n.chain, n.settled = true, new(atomic.Bool)
	if _, err = n.GetToken(t.Context(), policy.TokenRequestOptions{}); !errors.As(err, &te) || te.Rejected || te.Reason != "" {
		t.Errorf("error of the chain is %v", err)
	}
	n.TokenCredential = fixedToken{}
	if _, err = n.GetToken(t.Context(), policy.TokenRequestOptions{}); err != nil {
		t.Error(err)
	}
	n.TokenCredential = fixedToken{refused}
	if _, err = n.GetToken(t.Context(), policy.TokenRequestOptions{}); !errors.As(err, &te) || !te.Rejected {
		t.Errorf("error of the member that the chain has found is %v", err)
	}
	refused.RawResponse = &http.Response{StatusCode: 503, Body: http.NoBody}
	if _, err = n.GetToken(t.Context(), policy.TokenRequestOptions{}); !errors.As(err, &te) || te.Rejected || !te.Temporary() {
		t.Errorf("error of a failing service is %v", err)
	}
	n.TokenCredential = fixedToken{azidentity.NewCredentialUnavailableError("Azure CLI not found\non path")}
	if _, err = n.GetToken(t.Context(), policy.TokenRequestOptions{}); !errors.As(err, &te) || te.Rejected || te.Temporary() ||
		te.Reason != "Azure CLI not found on path" {
		t.Errorf("error of azidentity itself is %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n = named{TokenCredential: fixedToken{context.Canceled}}
	if _, err = n.GetToken(ctx, policy.TokenRequestOptions{}); errors.As(err, &te) || !errors.Is(err, context.Canceled) {
		t.Errorf("error after the caller went away is %v", err)
	}
	if tok, err := (named{TokenCredential: fixedToken{}}).GetToken(t.Context(), policy.TokenRequestOptions{}); err != nil || tok.Token != planted {
		t.Errorf("%v", err)
	}
}
