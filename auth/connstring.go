package auth

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// The emulator's account. Name and key are public and the same everywhere (Microsoft Learn, "Use the Azurite
// emulator", well-known storage account and key).
const (
	emulatorAccount = "devstoreaccount1"
	emulatorKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	emulatorHost    = "http://127.0.0.1"
	emulatorPort    = "10000" // of the blob service
)

const publicCloudSuffix = "core.windows.net"

// connectionString is what a storage connection string says (Microsoft Learn, "Configure Azure Storage connection
// strings"). Either key or sas is set, or both.
type connectionString struct {
	account  string // empty when only an endpoint is named
	endpoint string // service URL
	key, sas Secret
	hasKey   bool
	hasSAS   bool
}

// parseConnectionString reads the string. Names of settings have no case. Errors name known settings at most,
// never any text of the string: what stands before a '=' need not be a name in a malformed one.
//
// azblob's own parser is not used: it refuses UseDevelopmentStorage=true and lower-case names, and doubles the
// '?' of a SAS that has one.
func parseConnectionString(s string) (connectionString, error) {
	settings, err := splitSettings(s)
	if err != nil {
		return connectionString{}, err
	}
	switch v := settings["usedevelopmentstorage"]; {
	case strings.EqualFold(v, "true"):
		return emulator(settings["developmentstorageproxyuri"])
	case v != "" && !strings.EqualFold(v, "false"):
		return connectionString{}, errors.New("UseDevelopmentStorage must be true or false")
	case settings["developmentstorageproxyuri"] != "":
		return connectionString{}, errors.New("DevelopmentStorageProxyUri needs UseDevelopmentStorage=true")
	}

	c := connectionString{account: settings["accountname"]}
	if key := settings["accountkey"]; key != "" {
		if c.account == "" {
			return connectionString{}, errors.New("AccountKey needs AccountName")
		}
		c.key, c.hasKey = NewSecret(key), true
	}
	if sas := settings["sharedaccesssignature"]; sas != "" {
		c.sas, c.hasSAS = NewSecret(sas), true
	}
	if !c.hasKey && !c.hasSAS {
		return connectionString{}, errors.New("it has neither AccountKey nor SharedAccessSignature")
	}

	if endpoint := settings["blobendpoint"]; endpoint != "" {
		if c.endpoint, err = cleanEndpoint(endpoint); err != nil {
			return connectionString{}, fmt.Errorf("BlobEndpoint %w", err)
		}
		return c, nil
	}
	if c.account == "" {
		return connectionString{}, errors.New("it has neither AccountName nor BlobEndpoint")
	}
	protocol := strings.ToLower(settings["defaultendpointsprotocol"])
	if protocol == "" {
		protocol = "https"
	}
	if protocol != "https" && protocol != "http" {
		return connectionString{}, errors.New("DefaultEndpointsProtocol must be https or http")
	}
	suffix := settings["endpointsuffix"]
	if suffix == "" {
		suffix = publicCloudSuffix
	}
	if c.endpoint, err = accountEndpoint(protocol, c.account, suffix); err != nil {
		return connectionString{}, err
	}
	return c, nil
}

// knownSettings are the names besides those that end in "endpoint": one is there for every service of the
// account, and only that of blobs is of interest.
var knownSettings = map[string]bool{
	"usedevelopmentstorage": true, "developmentstorageproxyuri": true, "defaultendpointsprotocol": true,
	"accountname": true, "accountkey": true, "sharedaccesssignature": true, "endpointsuffix": true,
}

func splitSettings(s string) (map[string]string, error) {
	settings := make(map[string]string)
	n := 0
	for part := range strings.SplitSeq(s, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		n++
		name, value, ok := strings.Cut(part, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" {
			return nil, fmt.Errorf("setting %d has not the form NAME=VALUE", n)
		}
		if !knownSettings[name] && !strings.HasSuffix(name, "endpoint") {
			return nil, fmt.Errorf("setting %d has a name that is not known", n)
		}
		if _, twice := settings[name]; twice {
			return nil, fmt.Errorf("setting %d is there twice", n)
		}
		settings[name] = strings.TrimSpace(value)
	}
	if n == 0 {
		return nil, errors.New("it is empty")
	}
	return settings, nil
}

// emulator is the meaning of UseDevelopmentStorage=true. proxy, when set, is where the emulator runs: scheme and
// host, the port is the emulator's own (as in the .NET client).
func emulator(proxy string) (connectionString, error) {
	host := emulatorHost
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || (u.Scheme != "http" && u.Scheme != "https") {
			return connectionString{}, errors.New("DevelopmentStorageProxyUri must be a URL such as http://HOST")
		}
		name := u.Hostname()
		if strings.Contains(name, ":") {
			name = "[" + name + "]"
		}
		host = u.Scheme + "://" + name
	}
	endpoint, err := cleanEndpoint(host + ":" + emulatorPort + "/" + emulatorAccount)
	if err != nil {
		return connectionString{}, fmt.Errorf("DevelopmentStorageProxyUri %w", err)
	}
	return connectionString{
		account:  emulatorAccount,
		endpoint: endpoint,
		key:      NewSecret(emulatorKey),
		hasKey:   true,
	}, nil
}
