package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// accountName is the rule of the service (Microsoft Learn, "Storage account overview"): 3 to 24 characters,
// digits and lower-case letters. It is checked only where the name becomes part of a host name.
var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

var hostSuffix = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?$`)

// accountHost matches the host names under which the service offers an account: plain, through a private link, and
// in a DNS zone.
var accountHost = regexp.MustCompile(`^([a-z0-9]{3,24})(\.privatelink|\.z[0-9]{1,2})?\.blob\.`)

// accountEndpoint returns the service URL of an account.
func accountEndpoint(scheme, account, suffix string) (string, error) {
	if !accountName.MatchString(account) {
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
	if m := accountHost.FindStringSubmatch(u.Hostname()); m != nil {
		return m[1]
	}
	account, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	return account
}

// PathStyle reports whether the host of a service URL cannot name the account, so that the path does: an IP
// address or localhost.
func PathStyle(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(u.Hostname())
	return err == nil || u.Hostname() == "localhost"
}

// serviceURL returns the service URL: the endpoint when there is one, else the public cloud's for the account.
func serviceURL(endpoint, account string) (string, error) {
	if endpoint == "" {
		return accountEndpoint("https", account, publicCloudSuffix)
	}
	endpoint, err := cleanEndpoint(endpoint)
	if err != nil {
		return "", fmt.Errorf("endpoint %w", err)
	}
	if u, err := url.Parse(endpoint); err == nil && u.Path == "" && PathStyle(endpoint) && account != "" {
		endpoint += "/" + url.PathEscape(account)
	}
	return endpoint, nil
}
