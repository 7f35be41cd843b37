package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// accountName is the rule of the service (Microsoft Learn, "Storage account overview"): 3 to 24 characters,
// digits and lower-case letters. It is checked only where the name becomes part of a host name.
var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

// pathAccount is what an account may be called where it is a part of a path, as emulators have it. No key looks like that:
// whoever has swapped name and key hears of it before the key is in addresses and logs.
var pathAccount = regexp.MustCompile(`^[A-Za-z0-9._~-]{0,63}$`)

// shown is how messages show the name of an account. What the service would not take as one may be a key.
func shown(account string) string {
	if account != "" && !accountName.MatchString(strings.TrimSuffix(account, secondary)) {
		return "(not shown)"
	}
	return strconv.Quote(account)
}

var hostSuffix = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?$`)

// serviceHost matches the host names under which the service offers an account: plain, through a private link, in a
// DNS zone (Microsoft Learn, "Storage account endpoints"), and, for accounts with read access to it, the secondary
// location ("Azure Storage redundancy").
var serviceHost = regexp.MustCompile(`^([a-z0-9]{3,24})(-secondary)?((?:\.z[0-9]{1,2})?(?:\.privatelink)?)\.(blob|dfs|file|queue|table|web)\.([a-z0-9][a-z0-9.-]*)$`)

// Host is what the host name of a storage service says.
type Host struct {
	Account   string
	Service   string // blob, dfs, file, queue, table or web
	Secondary bool   // the secondary location, which can only be read
	// Blob is the host of the blob service at the same place.
	Blob string
}

// ParseHost reads a host name without a port, such as ACCOUNT.dfs.core.windows.net. Any suffix is taken: besides the
// public and the sovereign clouds there are installations of Azure Stack. ok is false for names of another form.
func ParseHost(host string) (h Host, ok bool) {
	m := serviceHost.FindStringSubmatch(strings.ToLower(host))
	if m == nil {
		return Host{}, false
	}
	return Host{Account: m[1], Service: m[4], Secondary: m[2] != "", Blob: m[1] + m[2] + m[3] + ".blob." + m[5]}, true
}

// secondary follows the name of an account at its copy in another region, as the Azure CLI and emulators have it.
const secondary = "-secondary"

// Secondary reports whether a service URL is that of the secondary location, which can only be read.
func Secondary(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	h, _ := ParseHost(u.Hostname())
	account, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	return h.Secondary || strings.HasSuffix(account, secondary)
}

// accountEndpoint returns the service URL of an account.
func accountEndpoint(scheme, account, suffix string) (string, error) {
	if !accountName.MatchString(strings.TrimSuffix(account, secondary)) {
		return "", errors.New("account name is not valid: it must be 3 to 24 lower-case letters and digits")
	}
	if !hostSuffix.MatchString(suffix) {
		return "", errors.New("EndpointSuffix must be a domain such as " + publicCloudSuffix)
	}
	return cleanEndpoint(scheme + "://" + account + ".blob." + suffix)
}

// cleanEndpoint checks a service URL and returns it without a slash at its end. The error begins with a verb and
// does not repeat the text, which may hold a SAS.
func cleanEndpoint(endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return "", errors.New("must be a URL such as https://ACCOUNT.blob.core.windows.net")
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return "", errors.New("must be a URL without user, query or fragment")
	}
	u.Host = strings.ToLower(u.Host)
	return strings.TrimRight(u.String(), "/"), nil
}

// AccountOf returns the account that a service URL names: the first label of the service's own host names
// (https://ACCOUNT.blob.core.windows.net), or the first segment of the path (http://127.0.0.1:10000/ACCOUNT, as
// emulators have it). It is empty when the URL names none.
func AccountOf(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	if h, ok := ParseHost(u.Hostname()); ok {
		if h.Service == "blob" {
			return h.Account
		}
		return ""
	}
	account, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	return strings.TrimSuffix(account, secondary) // as emulators have it; no account has a hyphen in its name
}

// accountOfHost returns the account that the host of a URL names, if it is of the service's own form; else nothing.
func accountOfHost(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	h, _ := ParseHost(u.Hostname())
	return h.Account
}

// privateDomains are those that the public name service never has: RFC 6761, RFC 6762, the reservation of .internal by
// ICANN, and .svc of Kubernetes.
var privateDomains = []string{".localhost", ".local", ".internal", ".test", ".svc"}

// PathStyle reports whether the host of a service URL cannot name the account, so that the path does: an IP address,
// or a name that only a local network has, such as localhost, azurite, or azurite.default.svc.cluster.local. Other
// names may be an account's own domain.
func PathStyle(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	if _, err = netip.ParseAddr(host); err == nil {
		return true
	}
	return host != "" && (!strings.Contains(host, ".") ||
		slices.ContainsFunc(privateDomains, func(d string) bool { return strings.HasSuffix(host, d) }))
}

// serviceURL checks an endpoint, and adds the account where the path has to name it.
func serviceURL(endpoint, account string) (string, error) {
	endpoint, err := cleanEndpoint(endpoint)
	if err != nil {
		return "", fmt.Errorf("endpoint %w", err)
	}
	if u, err := url.Parse(endpoint); err == nil && u.Path == "" && PathStyle(endpoint) && account != "" {
		endpoint += "/" + url.PathEscape(account)
	}
	return endpoint, nil
}
