package auth

import (
	"strings"
	"testing"
)

func TestParseConnectionString(t *testing.T) {
	tests := []struct {
		in                          string
		account, endpoint, key, sas string
	}{
		{"DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey=a2V5;EndpointSuffix=core.windows.net",
			"acct1", "https://acct1.blob.core.windows.net", "a2V5", ""},
		{"defaultendpointsprotocol=HTTP;ACCOUNTNAME=acct1;accountkey=a2V5==;endpointsuffix=core.chinacloudapi.cn;",
			"acct1", "http://acct1.blob.core.chinacloudapi.cn", "a2V5==", ""},
		{" AccountName = acct1 ; AccountKey = a2V5 \n", "acct1", "https://acct1.blob.core.windows.net", "a2V5", ""},
		{"AccountName=acct1;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:7777/acct1/", "acct1", "http://127.0.0.1:7777/acct1", "a2V5", ""},
		{"BlobEndpoint=https://acct1.blob.core.windows.net/;QueueEndpoint=https://acct1.queue.core.windows.net/;" +
			"SharedAccessSignature=sv=2024&sig=x%3D", "", "https://acct1.blob.core.windows.net", "", "sv=2024&sig=x%3D"},
		{"AccountName=acct1;SharedAccessSignature=?sv=2024&sig=x", "acct1", "https://acct1.blob.core.windows.net", "", "?sv=2024&sig=x"},
		// Both: the key wins, as in the SDKs and in adlfs.
		{"AccountName=acct1;AccountKey=a2V5;SharedAccessSignature=sig=x", "acct1", "https://acct1.blob.core.windows.net", "a2V5", "sig=x"},
		{"UseDevelopmentStorage=true", emulatorAccount, "http://127.0.0.1:10000/devstoreaccount1", emulatorKey, ""},
		{"usedevelopmentstorage=True;DevelopmentStorageProxyUri=http://azurite", emulatorAccount, "http://azurite:10000/devstoreaccount1", emulatorKey, ""},
		{"UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://[::1]/", emulatorAccount, "http://[::1]:10000/devstoreaccount1", emulatorKey, ""},
		{"UseDevelopmentStorage=false;AccountName=acct1;AccountKey=a2V5", "acct1", "https://acct1.blob.core.windows.net", "a2V5", ""},
	}
	for _, tt := range tests {
		c, err := parseConnectionString(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if c.account != tt.account || c.endpoint != tt.endpoint || c.key.Reveal() != tt.key || c.sas.Reveal() != tt.sas {
			t.Errorf("%q gives %q %q %q %q", tt.in, c.account, c.endpoint, c.key.Reveal(), c.sas.Reveal())
		}
	}
}

func TestParseConnectionStringRefuses(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "empty"},
		{" ; ;", "empty"},
		{planted, "setting 1"},
		{"AccountKey:" + planted, "setting 1"},
		{"AccountName=acct1;" + planted + "=x", "setting 2 has a name that is not known"},
		{"AccountName=acct1;AccountKey=" + planted + ";accountkey=" + planted, "setting 3 is there twice"},
		{"AccountKey=" + planted, "AccountKey needs AccountName"},
		{"AccountName=acct1", "neither AccountKey nor SharedAccessSignature"},
		{"SharedAccessSignature=sig=" + planted, "neither AccountName nor BlobEndpoint"},
		{"AccountName=Not_Valid;AccountKey=" + planted, "account name is not valid"},
		{"AccountName=acct1;AccountKey=" + planted + ";EndpointSuffix=evil/x", "EndpointSuffix"},
		{"AccountName=acct1;AccountKey=" + planted + ";DefaultEndpointsProtocol=ftp", "DefaultEndpointsProtocol"},
		{"AccountName=acct1;AccountKey=" + planted + ";BlobEndpoint=acct1.example", "BlobEndpoint must be a URL"},
		{"AccountName=acct1;AccountKey=" + planted + ";BlobEndpoint=https://acct1.example/?sig=" + planted, "BlobEndpoint must be a URL without"},
		{"UseDevelopmentStorage=yes", "UseDevelopmentStorage must be"},
		{"UseDevelopmentStorage=true;DevelopmentStorageProxyUri=azurite", "DevelopmentStorageProxyUri must be"},
		{"DevelopmentStorageProxyUri=http://azurite", "needs UseDevelopmentStorage"},
	}
	for _, tt := range tests {
		_, err := parseConnectionString(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error is %v, want %q", tt.in, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), planted) {
			t.Errorf("error shows the secret: %v", err)
		}
	}
}

func FuzzParseConnectionString(f *testing.F) {
	f.Add("DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey=a2V5;EndpointSuffix=core.windows.net")
	f.Add("AccountName=acct1;AccountKey=0;EndpointSuffix=EXAMPLE")
	f.Add("UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://azurite")
	f.Add("BlobEndpoint=https://a.example/;SharedAccessSignature=?sig=x")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseConnectionString(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("error has several lines: %q", err)
			}
			return
		}
		if clean, err := cleanEndpoint(c.endpoint); err != nil || clean != c.endpoint {
			t.Errorf("endpoint %q: %q, %v", c.endpoint, clean, err)
		}
	})
}
