package auth

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// certificate is a key pair for a service principal, made once.
var certificate = sync.OnceValues(func() (*rsa.PrivateKey, *x509.Certificate) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "principal"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, cert
})

// pemText is the certificate as a PEM file has it.
func pemText(t *testing.T) string {
	t.Helper()
	key, cert := certificate()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// pfxText is the certificate as a PFX file has it, in the form of today's OpenSSL.
func pfxText(t *testing.T, password string) string {
	t.Helper()
	key, cert := certificate()
	data, err := pkcs12.Modern2023.Encode(key, cert, nil, password)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sample returns two values of a kind that are valid and differ, as they are written for a row.
func sample(t *testing.T, r row) [2]string {
	t.Helper()
	asPath := func(s string) string {
		if r.group == secretFiles {
			return s
		}
		return writeFile(t, s)
	}
	switch r.kind {
	case AccountName:
		return [2]string{"acct1", "acct2"}
	case ServiceEndpoint:
		return [2]string{"https://acct1.blob.core.chinacloudapi.cn/", "acct1.dfs.core.usgovcloudapi.net"}
	case EndpointSuffix:
		return [2]string{"core.chinacloudapi.cn", "core.usgovcloudapi.net"}
	case ConnectionString:
		return [2]string{"AccountName=acct1;AccountKey=" + planted, "AccountName=acct1;AccountKey=AAAA" + planted}
	case AccountKey:
		return [2]string{planted, "AAAA" + planted}
	case SASToken:
		return [2]string{goodSAS, goodSAS + planted}
	case ClientCertificate:
		if r.group == secretFiles {
			return [2]string{pemText(t), pemText(t) + "\n"}
		}
		return [2]string{asPath(pemText(t)), asPath(pemText(t))}
	case FederatedTokenFile:
		return [2]string{asPath(planted), asPath(planted)}
	case AuthorityHost:
		return [2]string{"https://login.microsoftonline.us/", "login.example.com"}
	case SendCertificateChain, AnonymousWord:
		return [2]string{"true", "False"}
	case MethodWord:
		var words []string
		for w, m := range r.words {
			if m != "" {
				words = append(words, w)
			}
		}
		slices.Sort(words)
		return [2]string{words[0], strings.ToUpper(words[1])}
	default:
		return [2]string{"11111111-2222-3333-4444-555555555555", "66666666-2222-3333-4444-555555555555"}
	}
}

// beside returns the rows that a row needs to make a credential.
func beside(t *testing.T, r row) []row {
	t.Helper()
	of := func(kinds ...Kind) (rows []row) {
		for _, k := range kinds {
			i := slices.IndexFunc(table, func(s row) bool { return s.group == r.group && s.kind == k })
			if i < 0 {
				t.Fatalf("group of %s has no %s", r.name, k)
			}
			rows = append(rows, table[i])
		}
		return rows
	}
	switch r.kind {
	case ClientSecret, ClientCertificate, FederatedTokenFile, FederatedToken:
		return of(TenantID, ClientID)
	case TenantID:
		return of(ClientID, ClientSecret)
	case ClientID:
		return of(TenantID, ClientSecret)
	case CertificatePassword, SendCertificateChain:
		return of(TenantID, ClientID, ClientCertificate)
	case AuthorityHost, Audience:
		if r.group == cliNames || r.group == otherNames {
			return nil
		}
		return of(TenantID, ClientID, ClientSecret)
	case AccountName, ServiceEndpoint, EndpointSuffix:
		return []row{{kind: AccountKey, group: adlfsNames, name: envKey}}
	}
	return nil
}

// setup writes values under their names, and returns where to look.
func setup(t *testing.T, values map[string]string) Options {
	t.Helper()
	e, files := env{}, map[string]string(nil)
	for name, text := range values {
		i := slices.IndexFunc(table, func(r row) bool { return r.name == name })
		if i >= 0 && table[i].group == secretFiles {
			if files == nil {
				files = map[string]string{}
			}
			// Names of files have no case.
			if table[i].kind != ClientCertificate { // which may be binary
				text += "\n"
			}
			files[strings.ToUpper(name[:1])+name[1:]] = text
			continue
		}
		e[name] = text
	}
	return Options{SecretDir: secretDir(t, files), LookupEnv: e.lookup}
}

// "A test walks it: each name alone" gives a credential, with what it needs beside it, and the credential is made of it.
func TestEveryNameAlone(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table {
		t.Run(r.name, func(t *testing.T) {
			if seen[strings.ToLower(r.name)] {
				t.Error("the name is there twice")
			}
			seen[strings.ToLower(r.name)] = true
			value := sample(t, r)[0]
			values := map[string]string{r.name: value}
			for _, b := range beside(t, r) {
				values[b.name] = sample(t, b)[0]
				if r.kind == CertificatePassword && b.kind == ClientCertificate {
					values[b.name] = pfxText(t, value)
					if b.group != secretFiles {
						values[b.name] = writeFile(t, values[b.name])
					}
				}
			}
			if r.kind == MethodWord {
				everyWord(t, r)
				return
			}
			o := setup(t, values)
			if r.kind != AccountName && r.kind != ServiceEndpoint && r.kind != ConnectionString {
				o.Account = "acct1"
			}
			found, err := Find(o)
			if r.kind == unsupported {
				if err == nil || !strings.Contains(err.Error(), " is not supported: "+r.advice) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(r.name)) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if found.Account != "acct1" {
				t.Errorf("account is %q", found.Account)
			}
			named := strings.HasSuffix(strings.ToLower(found.Origin), strings.ToLower(r.name))
			switch r.kind {
			case AccountName:
				if found.SharedKey == nil || found.Endpoint != "https://acct1.blob.core.windows.net" {
					t.Errorf("found %+v", found)
				}
			case ServiceEndpoint, EndpointSuffix:
				if found.SharedKey == nil || found.Endpoint != "https://acct1.blob.core.chinacloudapi.cn" {
					t.Errorf("found %+v", found)
				}
			case ConnectionString, AccountKey:
				if found.SharedKey == nil || !named {
					t.Errorf("found %+v", found)
				}
			case SASToken:
				if found.SAS.Reveal() != goodSAS || !named {
					t.Errorf("found %+v", found)
				}
			case ClientSecret, ClientCertificate, FederatedToken, FederatedTokenFile, ManagedClientID, ManagedObjectID, ManagedResourceID:
				if found.Token == nil || !named {
					t.Errorf("found %+v", found)
				}
			case AnonymousWord:
				if found.Token != nil || found.SharedKey != nil || found.HasSAS || !named {
					t.Errorf("found %+v", found)
				}
			default: // what stands beside
				if found.Token == nil {
					t.Errorf("found %+v", found)
				}
			}
			// Whatever the value is for: another one is noticed.
			values[r.name] = sample(t, r)[1]
			if r.kind == CertificatePassword {
				return // another one does not open the file
			}
			other := setup(t, values)
			other.Account = o.Account
			if r.kind == ServiceEndpoint || r.kind == AccountName {
				other.Account = ""
			}
			changed, err := Find(other)
			if err != nil {
				t.Fatal(err)
			}
			if found.Same(changed) || !found.Same(found) {
				t.Error("a change is not noticed")
			}
		})
	}
}

// everyWord tries each word of a name that chooses, with every kind of credential there.
func everyWord(t *testing.T, r row) {
	all := map[string]string{
		envAccount: "acct1", envKey: planted, envSAS: goodSAS,
		"AZURE_STORAGE_CLIENT_SECRET": planted, "AZURE_STORAGE_CLIENT_ID": "c", "AZURE_STORAGE_TENANT_ID": "t",
		"AZURE_FEDERATED_TOKEN_FILE": "/token", "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t",
		"AZURE_STORAGE_IDENTITY_CLIENT_ID": "m",
	}
	want := map[Method]string{
		Key: "account key from environment " + envKey, shared: "account key from environment " + envKey,
		SAS:              "SAS token from environment " + envSAS,
		ServicePrincipal: "service principal from environment AZURE_STORAGE_CLIENT_SECRET",
		Login:            "service principal from environment AZURE_STORAGE_CLIENT_SECRET",
		Workload:         "service principal by federated token from environment AZURE_FEDERATED_TOKEN_FILE",
		ManagedIdentity:  "managed identity from environment AZURE_STORAGE_IDENTITY_CLIENT_ID",
		CLI:              "login of the Azure CLI",
	}
	for word, m := range r.words {
		for _, w := range []string{word, strings.ToUpper(word)} {
			values := maps.Clone(all)
			values[r.name] = w
			found, err := Find(setup(t, values))
			switch {
			case m == "" && (err == nil || !strings.Contains(err.Error(), "environment "+r.name+" asks for a kind of credential that blobmount does not have")):
				t.Errorf("%s: error is %v", w, err)
			case m != "" && (err != nil || found.Origin != want[m]):
				t.Errorf("%s: found %q, want %q, %v", w, found.Origin, want[m], err)
			}
		}
	}
	all[r.name] = planted
	if _, err := Find(setup(t, all)); err == nil || !strings.Contains(err.Error(), "environment "+r.name+" must be one of ") || strings.Contains(err.Error(), planted) {
		t.Errorf("another word: %v", err)
	}
}

// "Each conflicting pair is refused", by an error that names both and neither value. Pairs that agree are not.
func TestEveryPairThatDisagrees(t *testing.T) {
	pairs := 0
	for i, r := range table {
		for _, s := range table[:i] {
			if r.kind != s.kind || r.kind == unsupported || (r.group == secretFiles) != (s.group == secretFiles) {
				continue
			}
			a, b := sample(t, s), sample(t, r)
			first, second := a[0], b[1]
			if r.kind == MethodWord {
				first, second = differing(s, r)
			}
			if r.kind == ClientCertificate && r.group != secretFiles {
				second = b[0] // another path
			}
			values := map[string]string{s.name: first, r.name: second}
			o := setup(t, values)
			o.Account = "acct1"
			if r.kind == AccountName {
				o.Account = ""
			}
			_, _, err := collect(o, table)
			apart := (r.group == processNames) != (s.group == processNames)
			if apart {
				if err != nil {
					t.Errorf("%s and %s: %v", s.name, r.name, err)
				}
				continue
			}
			pairs++
			if err == nil || !strings.Contains(err.Error(), " are both the "+r.kind.String()+" and differ: unset one") ||
				!containsFold(err.Error(), s.name) || !containsFold(err.Error(), r.name) {
				t.Errorf("%s and %s: error is %v", s.name, r.name, err)
			}
			if err != nil && (strings.Contains(err.Error(), planted) || strings.Contains(err.Error(), second)) {
				t.Errorf("%s and %s: a value is in the error: %v", s.name, r.name, err)
			}
			if r.kind == MethodWord {
				continue
			}
			values[r.name] = first
			if o := setup(t, values); true {
				if _, _, err := collect(o, table); err != nil {
					t.Errorf("%s and %s agree: %v", s.name, r.name, err)
				}
			}
		}
	}
	if pairs < 60 {
		t.Errorf("only %d pairs", pairs)
	}
}

func containsFold(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

// differing returns words of two names that mean different methods.
func differing(r, s row) (string, string) {
	for _, v := range slices.Sorted(maps.Keys(r.words)) {
		for _, w := range slices.Sorted(maps.Keys(s.words)) {
			if r.words[v] != "" && s.words[w] != "" && r.words[v] != s.words[w] {
				return v, w
			}
		}
	}
	panic(fmt.Sprint(r, s))
}
