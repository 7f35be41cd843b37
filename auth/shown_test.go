package auth

import (
	"encoding/base64"
	"strings"
	"testing"
)

// A variable that should hold a path and holds the secret itself, or a relative path, is refused with its name and without
// what it holds.
func TestVariablesThatHoldNoPath(t *testing.T) {
	jwt := "eyJ" + planted + ".eyJ" + planted + "." + planted
	texts := map[string]string{
		"private key":      "-----BEGIN PRIVATE KEY-----\n" + planted + "\n-----END PRIVATE KEY-----",
		"base64":           strings.Repeat(base64.StdEncoding.EncodeToString([]byte(planted)), 20),
		"token":            jwt,
		"token as path":    "/" + jwt,
		"long":             "/a/" + strings.Repeat(planted, 100),
		"control":          "/a\n" + planted,
		"relative":         "certs/" + planted,
		"relative, upward": "../" + planted,
	}
	for what, text := range texts {
		ids := env{"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}
		for name, more := range map[string]env{
			"AZURE_CLIENT_CERTIFICATE_PATH": ids,
			"AZURE_FEDERATED_TOKEN_FILE":    ids,
			"AZCOPY_SPA_CERT_PATH":          {"AZCOPY_TENANT_ID": "t", "AZCOPY_SPA_APPLICATION_ID": "c"},
			credentialsDirName:              {},
		} {
			for _, chain := range []string{"", "prod"} { // which leaves the names of azidentity to the chain
				e := env{name: text, chainName: chain}
				for k, v := range more {
					e[k] = v
				}
				_, err := Find(Options{Account: "acct1", LookupEnv: e.lookup})
				if err == nil || !strings.Contains(err.Error(), "environment "+name+" must hold the absolute path of a ") || strings.Contains(err.Error(), planted) ||
					strings.Contains(err.Error(), text[:10]) {
					t.Errorf("%s in %s: %v", what, name, err)
				}
			}
		}
	}
	// What nobody uses does no harm.
	e := env{"AZURE_CLIENT_CERTIFICATE_PATH": "relative", envKey: planted, "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}
	if _, err := Find(Options{Account: "acct1", LookupEnv: e.lookup}); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/var/run/secrets/azure/tokens/azure-identity-token", "/a b/ü", "/" + strings.Repeat("a", maxNameLen), "/eyJ.d"} {
		if !looksLikePath(path) {
			t.Errorf("%s is a path", path)
		}
	}
}

// Who swaps the name of an account and its key does not see the key in any message.
func TestSwappedNameAndKey(t *testing.T) {
	key := base64.StdEncoding.EncodeToString([]byte(strings.Repeat(planted, 8))[:64])
	for what, e := range map[string]env{
		"variables":                    {"AZURE_STORAGE_ACCOUNT_NAME": key, envKey: "acct1234"},
		"variables and an endpoint":    {"AZURE_STORAGE_ACCOUNT_NAME": key, envKey: "acct1234", "AZURE_STORAGE_ENDPOINT": "https://acct1234.blob.core.windows.net"},
		"variables and an emulator":    {"AZURE_STORAGE_ACCOUNT_NAME": key, envKey: "acct1234", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:10000"},
		"connection string":            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=" + key + ";AccountKey=acct1234"},
		"connection string, endpoint":  {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=" + key + ";AccountKey=acct1234;BlobEndpoint=http://127.0.0.1:10000/a"},
		"connection string and a name": {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acct1;AccountKey=" + key, "AZURE_STORAGE_ACCOUNT_NAME": key},
	} {
		for _, account := range []string{"", "acct1234", key} {
			found, err := Find(Options{Account: account, LookupEnv: e.lookup})
			if err == nil && what != "connection string and a name" {
				t.Errorf("%s, account %q: found %+v", what, account, found)
			}
			if err != nil && (strings.Contains(err.Error(), key) || strings.Contains(err.Error(), key[:20])) {
				t.Errorf("%s, account %q: %v", what, account, err)
			}
			if strings.Contains(found.Account+found.Endpoint, key[:20]) {
				t.Errorf("%s, account %q: %q, %q", what, account, found.Account, found.Endpoint)
			}
		}
	}
	for name, want := range map[string]string{"acct1": `"acct1"`, "acct1-secondary": `"acct1-secondary"`, "": `""`, key: "(not shown)", "Upper": "(not shown)"} {
		if got := shown(name); got != want {
			t.Errorf("%q is shown as %s", name, got)
		}
	}
}

// The examples of Azure ML have variables for two accounts. Which one is meant is asked only of who has not said it.
func TestTwoAccountsOfAzureML(t *testing.T) {
	e := env{"BLOB_ACCOUNTNAME": "one11", "BLOB_ACCOUNT_KEY": "a2V5", "ADLSGEN2_ACCOUNTNAME": "two22",
		"ADLSGEN2_TENANT": "t", "ADLSGEN2_CLIENTID": "c", "ADLSGEN2_CLIENT_SECRET": planted}
	for _, test := range []struct {
		o    Options
		want string // origin, or a part of the error
	}{
		{Options{}, "are both the account name and differ"},
		{Options{Account: "one11"}, "account key from environment BLOB_ACCOUNT_KEY"},
		{Options{Account: "two22", Auth: ServicePrincipal}, "service principal from environment ADLSGEN2_CLIENT_SECRET"},
		{Options{Account: "two22"}, `belongs to account "one11" (environment BLOB_ACCOUNTNAME)`},
	} {
		test.o.LookupEnv = e.lookup
		found, err := Find(test.o)
		got := found.Origin
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, test.want) || err == nil && found.Account != test.o.Account {
			t.Errorf("%+v: %q of %q, want %q", test.o.Account, got, found.Account, test.want)
		}
	}
}
