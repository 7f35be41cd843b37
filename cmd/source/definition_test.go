package source

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// define writes a definition.
func define(t *testing.T, dir, name, text string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// secrets are the values of a definition's credential, as "kind=value".
func secrets(d Definition) []string {
	var s []string
	for _, v := range d.Credential {
		s = append(s, v.Kind.String()+"="+v.Secret.Reveal())
	}
	return s
}

func TestReadDefinition(t *testing.T) {
	blob := func(more ...string) string {
		return "type: azure_blob\nname: store_1\naccount_name: acct1\ncontainer_name: data\n" + strings.Join(more, "\n") + "\n"
	}
	lake := func(more ...string) string {
		return "$schema: https://azuremlschemas.azureedge.net/latest/azureDataLakeGen2.schema.json\ntype: azure_data_lake_gen2\n" +
			"name: store_1\ndescription: a lake\naccount_name: acct1\nfilesystem: data\n" + strings.Join(more, "\n") + "\n"
	}
	plain := Definition{Name: "store_1", Account: "acct1", Endpoint: acct1, Container: "data"}
	with := func(change func(*Definition)) Definition {
		d := plain
		change(&d)
		return d
	}
	tests := []struct {
		name, text string
		want       Definition
		secrets    []string
	}{
		{"without credentials", blob(), plain, nil},
		{"empty credentials", blob("credentials:"), plain, nil},
		{"empty mapping of credentials", blob("credentials: {}"), plain, nil},
		{"key", blob("credentials:", "  account_key: "+planted), plain, []string{"account key=" + planted}},
		{"SAS", blob("credentials:", "  sas_token: ?sv=2024-11-04&sig="+planted), plain, []string{"SAS token=?sv=2024-11-04&sig=" + planted}},
		{"service principal", lake("credentials:", "  tenant_id: t", "  client_id: c", "  client_secret: "+planted), plain,
			[]string{"tenant id=t", "client id=c", "client secret=" + planted}},
		{"service principal of a blob datastore", blob("credentials: {tenant_id: t, client_id: c, client_secret: s, resource_url: 'https://storage.azure.com/'}"), plain,
			[]string{"tenant id=t", "client id=c", "client secret=s"}},
		{"authority", lake("credentials: {tenant_id: t, client_id: c, client_secret: s, authority_url: 'https://login.chinacloudapi.cn'}"), plain,
			[]string{"tenant id=t", "client id=c", "client secret=s", "authority host=https://login.chinacloudapi.cn"}},
		{"certificate", lake("credentials:", "  tenant_id: t", "  client_id: c", "  thumbprint: 0C:7A:62:3F:D2:BB:C0:5B:06:42:3B:E3:59:E4:02:1D:36:E7:21:AD", "  certificate: |",
			"    -----BEGIN CERTIFICATE-----", "    AAEC", "    -----END CERTIFICATE-----"), plain,
			[]string{"tenant id=t", "client id=c", "client certificate=-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----"}},
		{"lake without credentials", lake("protocol: abfss", "endpoint: core.windows.net"), plain, nil},
		{"everything else that the schema has", blob("protocol: wasbs", "endpoint: core.windows.net", "tags: {a: b}", "id: x", "resourceGroup: g", "description: d"), plain, nil},
		{"type as the SDK writes it", strings.Replace(blob(), "azure_blob", "AzureBlob", 1), plain, nil},
		{"JSON", `{"type": "azure_blob", "name": "store_1", "account_name": "acct1", "container_name": "data"}`, plain, nil},
		{"sovereign cloud", blob("endpoint: core.chinacloudapi.cn"), with(func(d *Definition) { d.Endpoint = "https://acct1.blob.core.chinacloudapi.cn" }), nil},
		{"emulator", blob("endpoint: http://127.0.0.1:10000/acct1/"), with(func(d *Definition) { d.Endpoint = "http://127.0.0.1:10000/acct1" }), nil},
		{"our own keys", blob("prefix: /a/b/", "read_only: True", "blob_cache_timeout: 30"),
			with(func(d *Definition) { d.Prefix, d.ReadOnly, d.BlobCacheTimeout = "a/b/", true, "30" }), nil},
		{"our own keys, unset", blob("prefix:", "read_only: false", "blob_cache_timeout: null"), plain, nil},
		{"file share", "type: azure_file\nname: store_1\naccount_name: acct1\nfile_share_name: s\ncredentials: {account_key: " + planted + "}",
			Definition{Name: "store_1", Unsupported: unsupported["azurefile"]}, nil},
		{"lake of the first generation", "type: azure_data_lake_gen1\nname: store_1\nstore_name: s", Definition{Name: "store_1", Unsupported: unsupported["azuredatalakegen1"]}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := define(t, t.TempDir(), "d.yml", tt.text)
			got, err := ReadDefinition(file)
			if err != nil {
				t.Fatal(err)
			}
			if s := secrets(got); !reflect.DeepEqual(s, tt.secrets) {
				t.Errorf("secrets are %q", s)
			}
			for _, v := range got.Credential {
				if v.From != "datastore definition "+file {
					t.Errorf("origin is %q", v.From)
				}
			}
			got.Credential = nil
			tt.want.File = file
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestReadDefinitionRefuses(t *testing.T) {
	const base = "type: azure_blob\nname: d\naccount_name: acct1\ncontainer_name: data\n"
	tests := []struct{ name, text, want string }{
		{"empty", " \n", "it is empty"},
		{"a list", "- a\n", "it is not a YAML mapping"},
		{"a connection string", "AccountName=acct1;AccountKey=" + planted, "it is not a YAML mapping"},
		{"no YAML", base + "credentials: {account_key: " + planted, "it is not valid YAML, near line"},
		{"tabs", base + "credentials:\n\taccount_key: " + planted, "it is not valid YAML, near line"},
		{"alias", base + "description: &a " + planted + "\ntags: *a\n", "aliases are not supported"},
		{"two documents", base + "---\n" + base, "one YAML document"},
		{"twice", base + "name: e\n", "name is there twice"},
		{"no type", "name: d\n", "type is missing"},
		{"no name", "type: azure_blob\n", "name is missing"},
		{"no account", "type: azure_blob\nname: d\n", "container_name is missing"},
		{"no container", "type: azure_blob\nname: d\ncontainer_name: data\n", "account_name is missing"},
		{"lake with a container", "type: azure_data_lake_gen2\nname: d\naccount_name: acct1\ncontainer_name: data\n", "filesystem is missing"},
		{"unknown type", "type: azure_table\nname: d\n", "not azure_table"},
		{"type is something else", "type: " + planted + "\nname: d\n", "type must be azure_blob"},
		{"name", strings.Replace(base, "name: d", "name: a.b", 1), "name must be letters"},
		{"container", strings.Replace(base, "data", "Data", 1), "container_name: the container name is not valid"},
		{"account", strings.Replace(base, "acct1", "acct1.blob.core.windows.net", 1), "account_name must be"},
		{"endpoint", base + "endpoint: 'core windows'\n", "endpoint a domain"},
		{"endpoint of another account", base + "endpoint: https://other.blob.core.windows.net\n", "another account"},
		{"endpoint with a signature", base + "endpoint: https://acct1.blob.core.windows.net?sig=" + planted + "\n", "endpoint must be"},
		{"protocol", base + "protocol: http\n", "protocol must be https"},
		{"prefix", base + "prefix: a//b\n", "two slashes"},
		{"read_only", base + "read_only: maybe\n", "read_only must be true or false"},
		{"read_only is a mapping", base + "read_only: {a: b}\n", "read_only must be a single value"},
		{"unknown key", base + "blob_cache_timeut: 3\n", "unknown key blob_cache_timeut"},
		{"two unknown keys", base + "zone: a\nread_onl: true\n", "unknown key read_onl, zone"},
		{"unknown key that may be a secret", base + planted + ": a\n", "unknown key (not shown)"},
		{"unknown credential", base + "credentials: {account_keys: " + planted + "}\n", "unknown key credentials.account_keys"},
		{"credentials are a text", base + "credentials: " + planted + "\n", "credentials is not a YAML mapping"},
		{"key and SAS", base + "credentials: {account_key: " + planted + ", sas_token: " + planted + "}\n", "credentials must be one of"},
		{"key and principal", base + "credentials: {account_key: " + planted + ", client_id: c}\n", "credentials must be one of"},
		{"two secrets", base + "credentials: {tenant_id: t, client_id: c, client_secret: " + planted + ", certificate: " + planted + "}\n", "credentials must be one of"},
		{"two authorities", base + "credentials: {authority_url: a, authority_uri: b}\n", "remove one"},
		{"tenant alone", base + "credentials: {tenant_id: t}\n", "credentials must be one of"},
		{"thumbprint alone", base + "credentials: {thumbprint: t}\n", "needs credentials.certificate"},
		{"certificate in another form", base + "credentials: {tenant_id: t, client_id: c, certificate: " + planted + "}\n", "in PEM form"},
		{"certificate with another thumbprint", base + "credentials:\n  tenant_id: t\n  client_id: c\n  thumbprint: 00\n  certificate: |\n    -----BEGIN CERTIFICATE-----\n    AAEC\n    -----END CERTIFICATE-----\n", "thumbprint is not that"},
		{"resource", base + "credentials: {tenant_id: t, client_id: c, client_secret: s, resource_url: 'https://datalake.azure.net/'}\n", "resource_url must be"},
	}
	for _, tt := range tests {
		file := define(t, t.TempDir(), "d.yml", tt.text)
		got, err := ReadDefinition(file)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %+v, %v, want %q", tt.name, got, err, tt.want)
			continue
		}
		if strings.Contains(err.Error(), planted) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error has several lines or shows the secret: %v", tt.name, err)
		}
	}
}

// A definition gets the checks of a secret file: whoever may write it chooses where tokens are sent.
func TestDefinitionPermissions(t *testing.T) {
	const base = "type: azure_blob\nname: d\naccount_name: acct1\ncontainer_name: data\n"
	dir, err := os.MkdirTemp("/var/tmp", "blobmount") // not in memory, where reading is not warned of
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := define(t, dir, "d.yml", base+"credentials: {account_key: "+planted+"}\n")
	chmod := func(mode os.FileMode) {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(0o644)
	if d, err := ReadDefinition(file); err != nil || !strings.Contains(d.Warning, "can be read by everybody") {
		t.Errorf("readable: %q, %v", d.Warning, err)
	}
	chmod(0o620)
	if _, err := ReadDefinition(file); err == nil || !strings.Contains(err.Error(), "datastore definition "+file+" can be written by other users: run chmod go-w") {
		t.Errorf("writable: %v", err)
	}
	file = define(t, dir, "e.yml", base)
	chmod(0o644)
	if d, err := ReadDefinition(file); err != nil || d.Warning != "" {
		t.Errorf("readable, without a secret: %q, %v", d.Warning, err)
	}
}

func TestReadDefinitions(t *testing.T) {
	text := func(name string) string {
		return "type: azure_blob\nname: " + name + "\naccount_name: acct1\ncontainer_name: data\n"
	}
	dir, other := t.TempDir(), t.TempDir()
	first := define(t, dir, "b.yaml", text("beta"))
	define(t, dir, "a.yml", text("alpha"))
	define(t, dir, ".hidden.yml", "no definition")
	define(t, dir, "notes.txt", "no definition")
	share := define(t, other, "c.yml", "type: azure_file\nname: share\n")

	all, err := ReadDefinitions([]string{dir, first, share})
	if err != nil || len(all) != 3 || all[0].Name != "alpha" || all[1].Name != "beta" {
		t.Fatalf("%+v, %v", all, err)
	}
	src, d, err := Source{Datastore: "BETA", Prefix: "a/"}.Resolve(all)
	if err != nil || d.Name != "beta" || src.Container != "data" || src.Account != "acct1" || src.Endpoint != acct1 || src.Prefix != "a/" {
		t.Errorf("%+v, %v", src, err)
	}
	all[1].Prefix = "below/"
	if src, _, err := (Source{Datastore: "beta", Prefix: "a/"}).Resolve(all); err != nil || src.Prefix != "below/a/" {
		t.Errorf("%+v, %v", src, err)
	}
	for name, want := range map[string]string{"gamma": "--datastore has alpha, beta, share", "share": share + ": Azure Files"} {
		if _, _, err := (Source{Datastore: name}).Resolve(all); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := (Source{Datastore: "alpha"}).Resolve(nil); err == nil || !strings.Contains(err.Error(), "--datastore FILE") {
		t.Errorf("%v", err)
	}
	if src, d, err := (Source{Container: "data"}).Resolve(all); err != nil || d != nil || src.Container != "data" {
		t.Errorf("%+v, %+v, %v", src, d, err)
	}

	twice := define(t, other, "d.yml", text("Alpha"))
	for want, paths := range map[string][]string{
		"both define datastore Alpha":  {dir, twice},
		"does not exist":               {filepath.Join(dir, "no.yml")},
		"has no datastore definition":  {t.TempDir()},
		"it is not a YAML mapping":     {filepath.Join(dir, "notes.txt")},
		twice + " both define":         {dir, other},
		"x.yml does not exist":         {"x.yml"},
		"can be written by other user": {writable(t)},
	} {
		if _, err := ReadDefinitions(paths); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", paths, err, want)
		}
	}
}

func writable(t *testing.T) string {
	t.Helper()
	file := define(t, t.TempDir(), "d.yml", "type: azure_file\nname: d\n")
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	return file
}

func FuzzDefinition(f *testing.F) {
	const base = "type: azure_blob\nname: d\naccount_name: acct1\ncontainer_name: data\n"
	for _, s := range []string{base, base + "credentials: {account_key: " + planted + "}\n", base + "endpoint: http://127.0.0.1:1/acct1\nprefix: a/b\n",
		"type: azure_file\nname: d\n", base + "tags: &a {b: *a}\n", "{\"type\": \"azure_data_lake_gen2\"}", base + "? " + planted + "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDefinition("d.yml", []byte(s))
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x00") || strings.Contains(err.Error(), planted) {
				t.Errorf("error is not one line, or shows the secret: %q", err)
			}
			return
		}
		if !datastoreName.MatchString(d.Name) || d.Unsupported == "" && (checkContainer(d.Container) != nil || d.Account == "" || d.Endpoint == "") {
			t.Errorf("%q gives %+v", s, d)
		}
	})
}
