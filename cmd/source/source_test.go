package source

import (
	"strings"
	"testing"
)

// planted is a secret that must not appear in any output.
const planted = "cGxhbnRlZC1zZWNyZXQtdmFsdWU="

const (
	acct1 = "https://acct1.blob.core.windows.net"
	azurl = "http://azurite:10000/devstoreaccount1"
)

func TestParse(t *testing.T) {
	tests := []struct{ in, container, prefix, account, endpoint string }{
		{"az://data", "data", "", "", ""},
		{"az://data/", "data", "", "", ""},
		{"az://data/a/b", "data", "a/b/", "", ""},
		{"az://data/a/b/", "data", "a/b/", "", ""},
		{"AZ://data", "data", "", "", ""},
		{"abfs://data/a", "data", "a/", "", ""},
		{"abfss://data/a", "data", "a/", "", ""},
		{"azure://data/a", "data", "a/", "", ""},
		{"adl://data/a", "data", "a/", "", ""},
		{"azblob://data", "data", "", "", ""},
		{"az://my-data-1", "my-data-1", "", "", ""},
		{"az://$root", "$root", "", "", ""},
		{"az://$web/site", "$web", "site/", "", ""},
		{"az://$logs/blob", "$logs", "blob/", "", ""},
		// No decoding, as in fsspec.
		{"az://data/100%25/ü x#1?", "data", "100%25/ü x#1?/", "", ""},

		{"abfss://data@acct1.dfs.core.windows.net", "data", "", "acct1", acct1},
		{"abfss://data@acct1.dfs.core.windows.net/a/b", "data", "a/b/", "acct1", acct1},
		{"abfs://data@acct1.dfs.core.windows.net/a%20b", "data", "a%20b/", "acct1", acct1},
		{"abfss://data@acct1.blob.core.windows.net/a", "data", "a/", "acct1", acct1},
		{"az://data@acct1.dfs.core.windows.net/a", "data", "a/", "acct1", acct1},
		{"abfss://$web@acct1.dfs.core.windows.net", "$web", "", "acct1", acct1},
		{"abfss://data@acct1.dfs.core.chinacloudapi.cn/a", "data", "a/", "acct1", "https://acct1.blob.core.chinacloudapi.cn"},
		{"abfss://data@acct1.dfs.core.usgovcloudapi.net", "data", "", "acct1", "https://acct1.blob.core.usgovcloudapi.net"},
		{"abfss://data@acct1.z12.dfs.storage.azure.net/a", "data", "a/", "acct1", "https://acct1.z12.blob.storage.azure.net"},
		{"abfs://acct1.dfs.core.windows.net/data/a", "data", "a/", "acct1", acct1},
		{"abfs://acct1.dfs.core.windows.net/data", "data", "", "acct1", acct1},
		{"abfs://data@dfs.core.windows.net/a", "data", "a/", "", ""},

		{"wasbs://data@acct1.blob.core.windows.net/a", "data", "a/", "acct1", acct1},
		{"wasb://data@acct1.blob.core.windows.net", "data", "", "acct1", acct1},
		{"wasbs://acct1.blob.core.windows.net/a", "$root", "a/", "acct1", acct1},
		{"wasbs://acct1.blob.core.windows.net", "$root", "", "acct1", acct1},
		{"azureml:wasbs://data@acct1.blob.core.windows.net/a", "data", "a/", "acct1", acct1},

		{"https://acct1.blob.core.windows.net/data", "data", "", "acct1", acct1},
		{"https://ACCT1.blob.core.windows.net/data/a%20b%3F/", "data", "a b?/", "acct1", acct1},
		{"https://acct1.dfs.core.windows.net/data/a", "data", "a/", "acct1", acct1},
		{"https://acct1.blob.core.windows.net:443/data", "data", "", "acct1", acct1},
		{"https://acct1.blob.core.windows.net/$root", "$root", "", "acct1", acct1},
		{"https://acct1.blob.core.windows.net/%24web/a", "$web", "a/", "acct1", acct1},
		{"https://acct1.privatelink.blob.core.windows.net/data", "data", "", "acct1", "https://acct1.privatelink.blob.core.windows.net"},
		{"https://acct1.z12.blob.storage.azure.net/data", "data", "", "acct1", "https://acct1.z12.blob.storage.azure.net"},
		{"https://acct1.blob.core.chinacloudapi.cn/$logs", "$logs", "", "acct1", "https://acct1.blob.core.chinacloudapi.cn"},
		{"https://acct1.blob.core.cloudapi.de/data", "data", "", "acct1", "https://acct1.blob.core.cloudapi.de"},
		{"https://acct1.blob.core.sovcloud-api.fr/data", "data", "", "acct1", "https://acct1.blob.core.sovcloud-api.fr"},
		{"azureml:https://acct1.blob.core.windows.net/data", "data", "", "acct1", acct1},

		{"http://127.0.0.1:10000/devstoreaccount1/data/p", "data", "p/", "devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1"},
		{"http://localhost:10000/devstoreaccount1/data", "data", "", "devstoreaccount1", "http://localhost:10000/devstoreaccount1"},
		{"http://azurite:10000/devstoreaccount1/data/p", "data", "p/", "devstoreaccount1", azurl},
		{"http://azurite.ns.svc.cluster.local:10000/devstoreaccount1/data", "data", "", "devstoreaccount1", "http://azurite.ns.svc.cluster.local:10000/devstoreaccount1"},
		{"https://[::1]:8443/acct1/data", "data", "", "acct1", "https://[::1]:8443/acct1"},
	}
	for _, tt := range tests {
		got, err := Parse(tt.in)
		want := Source{Verbatim: tt.in, Container: tt.container, Prefix: tt.prefix, Account: tt.account, Endpoint: tt.endpoint}
		if err != nil || got != want {
			t.Errorf("%s gives %+v, %v", tt.in, got, err)
		}
	}
}

// The secondary location is told apart, and the key still is that of the account.
func TestParseSecondary(t *testing.T) {
	for in, endpoint := range map[string]string{
		"https://acct1-secondary.blob.core.windows.net/data":             "https://acct1-secondary.blob.core.windows.net",
		"abfss://data@acct1-secondary.dfs.core.windows.net":              "https://acct1-secondary.blob.core.windows.net",
		"https://acct1-secondary.z5.blob.storage.azure.net/data":         "https://acct1-secondary.z5.blob.storage.azure.net",
		"http://127.0.0.1:10000/acct1-secondary/data":                    "http://127.0.0.1:10000/acct1-secondary",
		"https://acct1-secondary.privatelink.blob.core.windows.net/data": "https://acct1-secondary.privatelink.blob.core.windows.net",
	} {
		got, err := Parse(in)
		if err != nil || got.Account != "acct1" || got.Endpoint != endpoint || !got.Secondary {
			t.Errorf("%s gives %+v, %v", in, got, err)
		}
	}
}

// A SAS is taken out of what is shown.
func TestParseSAS(t *testing.T) {
	const sas = "sp=rl&st=2026-01-01T00:00:00Z&se=2027-01-01T00:00:00Z&spr=https&sv=2024-11-04&sr=c&sig=" + planted
	for in, verbatim := range map[string]string{
		acct1 + "/data?" + sas:              acct1 + "/data",
		acct1 + "/data/a%20b/?" + sas:       acct1 + "/data/a%20b/",
		azurl + "/data?" + sas:              azurl + "/data",
		"azureml:" + acct1 + "/data?" + sas: "azureml:" + acct1 + "/data",
	} {
		got, err := Parse(in)
		if err != nil || !got.HasSAS || got.SAS.Reveal() != sas || got.Verbatim != verbatim || got.Container != "data" {
			t.Errorf("%s gives %+v, %v", verbatim, got, err)
		}
	}
}

func TestParseAzureML(t *testing.T) {
	const long = "azureml://subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/workspaces/ws/datastores/My_Store/paths/"
	for in, want := range map[string]Source{
		"azureml://datastores/My_Store/paths/a/b": {Datastore: "My_Store", Prefix: "a/b/"},
		"azureml://datastores/my-store/paths/":    {Datastore: "my-store"},
		"azureml://datastores/mystore/paths":      {Datastore: "mystore"},
		"azureml://datastores/mystore":            {Datastore: "mystore"},
		"azureml:azureml://datastores/d/paths/p":  {Datastore: "d", Prefix: "p/"},
		long:                                      {Datastore: "My_Store"},
		long + "a b":                              {Datastore: "My_Store", Prefix: "a b/"},
		strings.Replace(long, "resourceGroups", "resourcegroups", 1) + "a":                                     {Datastore: "My_Store", Prefix: "a/"},
		strings.Replace(long, "workspaces/ws", "providers/Microsoft.MachineLearningServices/workspaces/ws", 1): {Datastore: "My_Store"},
	} {
		want.Verbatim = in
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("%s gives %+v, %v", in, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "must look like az://CONTAINER"},
		{"data", "source data: the source must look like az://CONTAINER"},
		{"/srv/data", "must look like az://CONTAINER"},
		{"s3://data", "must look like az://CONTAINER"},
		{"az:data", "write az://data"},
		{"azure:data:/p", "write az://data/p"},
		{"azureblob:data/p/q", "write az://data/p/q"},
		{"az://", "container name is not valid"},
		{"az:///a", "container name is not valid"},
		{"az://Data", "lower-case"},
		{"az://ab", "3 to 63"},
		{"az://" + strings.Repeat("a", 64), "3 to 63"},
		{"az://a--b", "single hyphens"},
		{"az://-ab", "begin and end"},
		{"az://ab-", "begin and end"},
		{"az://da_ta", "container name"},
		{"az://$other", "container name"},
		{"az://data/a//b", "two slashes"},
		{"az://data//a", "two slashes"},
		{"az://data/../a", "'.' or '..'"},
		{"az://data/" + strings.Repeat("a", 1023), "longer than 1022"},
		{"az://data/a\nb", "control characters"},
		{`az://data/a\b`, "backslash, which the service makes a slash: write a slash"},
		{"az://data/a./b", "a part that ends with a dot, which the service drops"},
		{"az://data/a.", "a part that ends with a dot, which the service drops"},
		{"az://data/\ue000", "a character that names of blobs cannot have"},
		{"az://data/\xff", "a character that names of blobs cannot have"},
		{"az://data/" + strings.Repeat("a/", 254), "more than 253 parts"},
		{"azblob://data?prefix=a", "container name"},

		{"abfss://@acct1.dfs.core.windows.net/a", "container name"},
		{"abfss://data@acct1/a", "must be that of a storage account"},
		{"abfss://data@127.0.0.1:10000/a", "must be that of a storage account"},
		{"abfss://data@dfs.core.chinacloudapi.cn/a", "must be that of a storage account"},
		{"abfs://acct1.dfs.core.windows.net/", "names no container"},
		{"abfss://data:" + planted + "@acct1.dfs.core.windows.net/a", "container name"},
		{"adl://acct1.azuredatalakestore.net/a", "Gen1, which Azure retired"},
		{"wasbs://data", "must be that of a storage account"},
		{"wasbs://@acct1.blob.core.windows.net/a", "container name"},

		{"azureml:name:1", "does not ask an Azure ML workspace"},
		{"azureml:name@latest", "does not ask an Azure ML workspace"},
		{"runs:/1234/model", "does not ask an Azure ML workspace"},
		{"azureml://jobs/j/outputs/o/paths/p", "does not ask an Azure ML workspace"},
		{"azureml://locations/l/workspaces/w/data/d/versions/1", "does not ask an Azure ML workspace"},
		{"azureml://subscriptions/s/resourcegroups/g/workspaces/w/data/d", "must look like azureml://datastores/NAME"},
		{"azureml://stores/d", "must look like azureml://datastores/NAME"},
		{"azureml://datastores/d/path/p", "must look like azureml://datastores/NAME"},
		{"azureml://datastores/", "name of the datastore is not valid"},
		{"azureml://datastores/a.b/paths/p", "name of the datastore is not valid"},
		{"azureml://datastores/d/paths/a//b", "two slashes"},
		{`azureml://datastores/d/paths/a\b`, "backslash"},

		{"https://acct1.blob.core.windows.net/", "names no container"},
		{"https://acct1.blob.core.windows.net/page.html", "container name"},
		{"https://acct1.file.core.windows.net/share", "Azure Files is no blob service"},
		{"https://acct1.z13.web.core.windows.net/", "container $web"},
		{"http://acct1.blob.core.windows.net/data", "write https://"},
		{"https://acct1-other.blob.core.windows.net/data", "host does not name an account"},
		{"https://blobs.example.com/data", "--endpoint URL and --account-name"},
		{"https://user:" + planted + "@acct1.blob.core.windows.net/data", "must not have a user"},
		{"https://user:plain@acct1.blob.core.windows.net/data", "the URL of the source must not have a user"},
		{"https://acct1.blob.core.windows.net/data?restype=container&comp=list", "remove "},
		{"https://acct1.blob.core.windows.net/data?sv=1", "with a signature"},
		{"https://acct1.blob.core.windows.net/data?", "with a signature"},
		{"https://acct1.blob.core.windows.net/data#a", "fragment"},
		{"https://acct1.blob.core.windows.net/data/a?versionid=2026-01-01T00:00:00Z", "remove versionid"},
		{"https://acct1.blob.core.windows.net/data/a?snapshot=2026-01-01T00:00:00Z&sig=" + planted, "remove snapshot"},
		{"https://acct1.blob.core.windows.net/data?sig=" + planted + "&x=%zz", "is not valid"},
		{"http://127.0.0.1:10000/devstoreaccount1", "must look like http://127.0.0.1:10000/ACCOUNT/CONTAINER"},
		{"http://azurite:10000/devstoreaccount1/", "must look like http://azurite:10000/ACCOUNT/CONTAINER"},
		{"az://data/p?sv=1&SIG=" + planted, "AZURE_STORAGE_SAS_TOKEN"},
		{"abfss://data@acct1.dfs.core.windows.net/p?sv=1&sig=" + planted, "write https://ACCOUNT.blob"},
		{"AccountName=acct1;SharedAccessSignature=" + planted, "is a connection string"},
		{"DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey=" + planted, "is a connection string"},
		{"https://%zz/", "not a valid URL"},
	}
	for _, tt := range tests {
		got, err := Parse(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q gives %+v, %v, want %q", tt.in, got, err, tt.want)
			continue
		}
		if strings.Contains(err.Error(), planted) || strings.Contains(err.Error(), "user:plain") {
			t.Errorf("error shows the secret: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"az://data/a/b", acct1 + "/data/a%20b", "http://[::1]:1/acct1/data", azurl + "/data?sig=x", acct1 + "/data?sv=1&sig=x%2B",
		"abfss://data@acct1.dfs.core.windows.net/a", "abfs://acct1-secondary.z1.dfs.storage.azure.net/data/a", "wasb://acct1.blob.core.windows.net/a",
		"azureml://datastores/d/paths/p", "azureml:azureml://subscriptions/s/resourceGroups/g/workspaces/w/datastores/d/paths/p", "azure:data:/p", "az://data?sig=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		src, err := Parse(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("error is not one line: %q", err)
			}
			if _, sig, ok := strings.Cut(strings.ToLower(s), "sig="); ok && len(sig) > 8 && strings.Contains(strings.ToLower(err.Error()), sig) {
				t.Errorf("error shows the signature: %q", err)
			}
			return
		}
		if strings.Contains(strings.ToLower(src.Verbatim), "sig=") && src.HasSAS {
			t.Errorf("%q is shown as %q", s, src.Verbatim)
		}
		if !src.HasSAS && src.Verbatim != s || !strings.HasPrefix(s, src.Verbatim) {
			t.Errorf("%q is shown as %q", s, src.Verbatim)
		}
		if src.Prefix != "" && !strings.HasSuffix(src.Prefix, "/") || strings.HasPrefix(src.Prefix, "/") || strings.Contains(src.Prefix, "//") {
			t.Errorf("%q gives prefix %q", s, src.Prefix)
		}
		if (src.Account == "") != (src.Endpoint == "") {
			t.Errorf("%q gives %+v", s, src)
		}
		if src.Datastore != "" {
			if again, err := Parse("azureml://datastores/" + src.Datastore + "/paths/" + src.Prefix); err != nil || again.Datastore != src.Datastore || again.Prefix != src.Prefix {
				t.Errorf("%q gives %+v, its short form %+v, %v", s, src, again, err)
			}
			return
		}
		if checkContainer(src.Container) != nil {
			t.Errorf("%q gives %+v", s, src)
		}
		// What was understood means the same in the plain form.
		again, err := Parse("az://" + src.Container + "/" + src.Prefix)
		if err == nil && (again.Container != src.Container || again.Prefix != src.Prefix) {
			t.Errorf("%q gives %+v, its plain form %+v", s, src, again)
		}
	})
}
