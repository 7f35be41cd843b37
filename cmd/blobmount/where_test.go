package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blobmount/auth"
)

// definition writes the definition of datastore store1, container data of acct1, with more lines.
func definition(t *testing.T, more string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "store1.yml")
	text := "type: azure_blob\nname: store1\naccount_name: acct1\ncontainer_name: data\n" + more + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const noTimeout = -1 * time.Nanosecond

// "flags win over the definition", and an unset timeout of a read-only datastore is none, as in Azure Machine Learning.
func TestDatastoreAndFlags(t *testing.T) {
	tests := []struct {
		name, more string
		flags      []string
		readOnly   bool
		timeout    time.Duration
		endpoint   string
	}{
		{"nothing said", "", nil, false, time.Minute, "https://acct1.blob.core.windows.net"},
		{"read-only", "read_only: true", nil, true, noTimeout, "https://acct1.blob.core.windows.net"},
		{"read-only by flag", "", []string{"--read-only"}, true, noTimeout, "https://acct1.blob.core.windows.net"},
		{"read-only by option", "", []string{"-o", "ro"}, true, noTimeout, "https://acct1.blob.core.windows.net"},
		{"writable by flag", "read_only: true", []string{"--read-only=false"}, false, time.Minute, "https://acct1.blob.core.windows.net"},
		{"rw of fstab is no flag", "read_only: true", []string{"-o", "rw"}, true, noTimeout, "https://acct1.blob.core.windows.net"},
		{"timeout", "read_only: true\nblob_cache_timeout: 30", nil, true, 30 * time.Second, "https://acct1.blob.core.windows.net"},
		{"timeout of a writable one", "blob_cache_timeout: 0", nil, false, 0, "https://acct1.blob.core.windows.net"},
		{"timeout none", "blob_cache_timeout: none", nil, false, noTimeout, "https://acct1.blob.core.windows.net"},
		{"timeout by flag", "blob_cache_timeout: 30", []string{"-o", "blob_cache_timeout=5"}, false, 5 * time.Second, "https://acct1.blob.core.windows.net"},
		{"timeout by flag, unset", "read_only: true", []string{"--blob-cache-timeout=60"}, true, time.Minute, "https://acct1.blob.core.windows.net"},
		{"endpoint by flag", "", []string{"--endpoint=http://127.0.0.1:10000"}, false, time.Minute, "http://127.0.0.1:10000"},
		{"endpoint of another cloud by flag", "", []string{"--endpoint=https://acct1.blob.core.chinacloudapi.cn"}, false, time.Minute, "https://acct1.blob.core.chinacloudapi.cn"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := definition(t, tt.more)
			c, err := parse(false, append(tt.flags, "--datastore", file, "azureml://datastores/STORE1/paths/a", "/mnt")...)
			if err != nil {
				t.Fatal(err)
			}
			o := c.authOptions(nil)
			if c.ReadOnly != tt.readOnly || time.Duration(c.BlobCacheTimeout) != tt.timeout || o.Endpoint != tt.endpoint || o.Account != "acct1" ||
				o.AccountFrom != "datastore definition "+file || c.Source.Container != "data" || c.Source.Prefix != "a/" {
				t.Errorf("%+v, %+v", c, o)
			}
		})
	}
	if _, err := parse(false, "--datastore", definition(t, "blob_cache_timeout: soon"), "azureml://datastores/store1", "/mnt"); err == nil ||
		!strings.Contains(err.Error(), "store1.yml: blob_cache_timeout must be a number of seconds") {
		t.Errorf("%v", err)
	}
}

// A definition is read again by each search, and must go on meaning the same container.
func TestDatastoreCredentialIsReadAgain(t *testing.T) {
	file := definition(t, "credentials: {sas_token: 'sv=1&sig=first'}")
	c, err := parse(false, "--datastore", file, "azureml://datastores/store1/paths/", "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	sas := func() (string, error) {
		found, err := auth.Find(c.authOptions(func(string) (string, bool) { return "", false }))
		if err == nil && found.Origin != "SAS token from datastore definition "+file {
			t.Errorf("origin is %s", found.Origin)
		}
		return found.SAS.Reveal(), err
	}
	if got, err := sas(); got != "sv=1&sig=first" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	second := definition(t, "credentials: {sas_token: 'sv=1&sig=second'}")
	if err := os.Rename(second, file); err != nil {
		t.Fatal(err)
	}
	if got, err := sas(); got != "sv=1&sig=second" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Rename(definition(t, "endpoint: core.chinacloudapi.cn"), file); err != nil {
		t.Fatal(err)
	}
	if _, err := sas(); err == nil || !strings.Contains(err.Error(), "is of another datastore now") {
		t.Errorf("%v", err)
	}
}

// Where the source and --endpoint name the same account, the endpoint is where it is reached.
func TestEndpointOfSource(t *testing.T) {
	for _, tt := range []struct{ flag, source, endpoint string }{
		{"", "https://acct1.blob.core.windows.net/data", "https://acct1.blob.core.windows.net"},
		{"http://127.0.0.1:10000", "https://acct1.blob.core.windows.net/data", "http://127.0.0.1:10000"},
		{"http://127.0.0.1:10000/acct1", "abfss://data@acct1.dfs.core.windows.net", "http://127.0.0.1:10000/acct1"},
		{"https://blobs.example.com", "wasbs://data@acct1.blob.core.windows.net", "https://blobs.example.com"},
		{"https://ACCT1.blob.core.windows.net/", "https://acct1.blob.core.windows.net/data", "https://ACCT1.blob.core.windows.net/"},
	} {
		args := []string{tt.source, "/mnt"}
		if tt.flag != "" {
			args = append(args, "--endpoint="+tt.flag)
		}
		c, err := parse(false, args...)
		if err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		if o := c.authOptions(nil); o.Account != "acct1" || o.Endpoint != tt.endpoint || o.AccountFrom != "the source" {
			t.Errorf("%q: %+v", args, o)
		}
	}
}
