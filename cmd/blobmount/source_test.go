package main

import (
	"strings"
	"testing"
)

func TestParseSource(t *testing.T) {
	tests := []struct{ in, container, prefix, account, endpoint string }{
		{"az://data", "data", "", "", ""},
		{"az://data/", "data", "", "", ""},
		{"az://data/a/b", "data", "a/b/", "", ""},
		{"az://data/a/b/", "data", "a/b/", "", ""},
		{"AZ://data", "data", "", "", ""},
		{"abfs://data/a", "data", "a/", "", ""},
		{"az://my-data-1", "my-data-1", "", "", ""},
		{"az://$root", "$root", "", "", ""},
		{"az://$web/site", "$web", "site/", "", ""},
		// No decoding, as in fsspec.
		{"az://data/100%25/ü x#1?", "data", "100%25/ü x#1?/", "", ""},
		{"https://acct1.blob.core.windows.net/data", "data", "", "acct1", "https://acct1.blob.core.windows.net"},
		{"https://ACCT1.blob.core.windows.net/data/a%20b%3F/", "data", "a b?/", "acct1", "https://acct1.blob.core.windows.net"},
		{"https://acct1.privatelink.blob.core.windows.net/data", "data", "", "acct1", "https://acct1.privatelink.blob.core.windows.net"},
		{"https://acct1.z12.blob.storage.azure.net/data", "data", "", "acct1", "https://acct1.z12.blob.storage.azure.net"},
		{"https://acct1.blob.core.chinacloudapi.cn/$logs", "$logs", "", "acct1", "https://acct1.blob.core.chinacloudapi.cn"},
		{"http://127.0.0.1:10000/devstoreaccount1/data/p", "data", "p/", "devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1"},
		{"http://localhost:10000/devstoreaccount1/data", "data", "", "devstoreaccount1", "http://localhost:10000/devstoreaccount1"},
		{"https://[::1]:8443/acct1/data", "data", "", "acct1", "https://[::1]:8443/acct1"},
	}
	for _, tt := range tests {
		got, err := ParseSource(tt.in)
		want := Source{tt.in, tt.container, tt.prefix, tt.account, tt.endpoint}
		if err != nil || got != want {
			t.Errorf("%s gives %+v, %v", tt.in, got, err)
		}
	}
}

func TestParseSourceRefuses(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "must look like az://CONTAINER"},
		{"data", "source data: the source must look like az://CONTAINER"},
		{"/srv/data", "must look like az://CONTAINER"},
		{"s3://data", "must look like az://CONTAINER"},
		{"az:data", "must look like az://CONTAINER"},
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
		{"az://data@acct1.blob.core.windows.net/a", "use az://data/a with --account-name acct1"},
		{"abfs://data@acct1.dfs.core.windows.net/a", "use az://data/a with --account-name acct1"},
		{"abfss://data@acct1.dfs.core.windows.net", "use az://data with --account-name acct1"},
		{"wasbs://data@acct1.blob.core.windows.net/a/b", "use az://data/a/b with --account-name acct1"},
		{"wasb://acct1.blob.core.windows.net/a", "use az://CONTAINER[/PREFIX]"},
		{"azureml://datastores/d/paths/p", "look up the account and the container"},
		{"azureml:name:1", "look up the account and the container"},
		{"https://acct1.blob.core.windows.net/", "names no container"},
		{"https://acct1.blob.core.windows.net/page.html", "container name"},
		{"https://acct1.dfs.core.windows.net/data", "must be that of the blob service"},
		{"http://acct1.blob.core.windows.net/data", "https://"},
		{"https://acct1-secondary.blob.core.windows.net/data", "source https://acct1-secondary"},
		{"https://blobs.example.com/", "host does not name an account"},
		{"https://user:" + planted + "@acct1.blob.core.windows.net/data", "must not have a user"},
		{"https://acct1.blob.core.windows.net/data?restype=container", "must not have"},
		{"http://127.0.0.1:10000/devstoreaccount1", "must look like http://127.0.0.1:10000/ACCOUNT/CONTAINER"},
		{"https://acct1.blob.core.windows.net/data?sv=1&sig=" + planted, "AZURE_STORAGE_SAS_TOKEN"},
		{"az://data/p?sv=1&SIG=" + planted, "AZURE_STORAGE_SAS_TOKEN"},
		{"AccountName=acct1;SharedAccessSignature=" + planted, "AZURE_STORAGE_SAS_TOKEN"},
		{"DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey=" + planted, "must look like az://CONTAINER"},
		{"https://%zz/", "not a valid URL"},
	}
	for _, tt := range tests {
		got, err := ParseSource(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q gives %+v, %v, want %q", tt.in, got, err, tt.want)
			continue
		}
		if strings.Contains(err.Error(), planted) {
			t.Errorf("error shows the secret: %v", err)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"az://data/a/b", "https://acct1.blob.core.windows.net/data/a%20b", "http://[::1]:1/acct1/data",
		"abfss://data@acct1.dfs.core.windows.net/a", "azureml://datastores/d/paths/p", "az://data?sig=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		src, err := ParseSource(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("error is not one line: %q", err)
			}
			return
		}
		if src.Verbatim != s || checkContainer(src.Container) != nil {
			t.Errorf("%q gives %+v", s, src)
		}
		if src.Prefix != "" && !strings.HasSuffix(src.Prefix, "/") || strings.HasPrefix(src.Prefix, "/") || strings.Contains(src.Prefix, "//") {
			t.Errorf("%q gives prefix %q", s, src.Prefix)
		}
		// What was understood means the same in the plain form.
		again, err := ParseSource("az://" + src.Container + "/" + src.Prefix)
		if err == nil && (again.Container != src.Container || again.Prefix != src.Prefix) {
			t.Errorf("%q gives %+v, its plain form %+v", s, src, again)
		}
	})
}
