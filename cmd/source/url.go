package source

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"blobmount/auth"
)

// parseURL reads https://HOST/C[/P][?SAS], and http[s]://HOST[:PORT]/A/C[/P][?SAS] for a host that cannot name the
// account.
func parseURL(s string) (Source, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return Source{}, errors.New("the source is not a valid URL")
	}
	if u.User != nil || u.Fragment != "" || strings.HasSuffix(s, "#") {
		return Source{}, errors.New("the URL of the source must not have a user or fragment ('#' in a name is written %23)")
	}
	src, path, err := urlHost(u)
	if err != nil {
		return Source{}, err
	}
	if src, err = within(src, path[0], path[1]); err != nil {
		return Source{}, err
	}
	if u.RawQuery == "" && !u.ForceQuery {
		return src, nil
	}
	if err := checkQuery(u.RawQuery); err != nil {
		return Source{}, err
	}
	src.SAS, src.HasSAS = auth.NewSecret(strings.Clone(u.RawQuery)), true
	return src, nil
}

// urlHost returns the service that a URL is of, and container and prefix in it.
func urlHost(u *url.URL) (src Source, path [2]string, err error) {
	endpoint := u.Scheme + "://" + strings.ToLower(u.Host)
	rest := strings.TrimPrefix(u.Path, "/")
	switch host, known := auth.ParseHost(u.Hostname()); {
	case known && host.Service != "blob" && host.Service != "dfs":
		return Source{}, path, errors.New(notBlobs[host.Service])
	case known && u.Scheme == "http":
		return Source{}, path, errors.New("the service is reached by https: write https:// instead of http://")
	case known:
		src = Source{Account: host.Account, Endpoint: "https://" + host.Blob, Secondary: host.Secondary}
		if port := u.Port(); port != "" && port != "443" {
			src.Endpoint += ":" + port
		}
	case auth.PathStyle(endpoint):
		account, below, _ := strings.Cut(rest, "/")
		if account == "" || below == "" {
			return Source{}, path, fmt.Errorf("a URL of this host must look like %s/ACCOUNT/CONTAINER[/PREFIX]", endpoint)
		}
		endpoint += "/" + url.PathEscape(account)
		src = Source{Account: auth.AccountOf(endpoint), Endpoint: endpoint, Secondary: strings.HasSuffix(account, "-secondary")}
		rest = below
	default:
		return Source{}, path, errors.New("the host does not name an account: use az://CONTAINER[/PREFIX] with --endpoint URL and --account-name ACCOUNT")
	}
	if rest == "" {
		return Source{}, path, fmt.Errorf("the URL names no container: it must look like %s/CONTAINER[/PREFIX]", src.Endpoint)
	}
	path[0], path[1], _ = strings.Cut(rest, "/")
	return src, path, nil
}

// refusedParameters are those that say something else about a request than who may make it.
var refusedParameters = map[string]string{
	"versionid": "a mount shows the current versions of blobs: remove versionid",
	"snapshot":  "a mount shows the current versions of blobs: remove snapshot",
	"restype":   "the address of a request is no source: remove restype",
	"comp":      "the address of a request is no source: remove comp",
}

// checkQuery accepts a shared access signature only. It does not ask for names that it knows: signatures get new fields.
func checkQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil || strings.ContainsAny(query, "? ") {
		return errors.New("the query of the source is not valid: it must be a SAS token, such as sv=VERSION&sig=SIGNATURE")
	}
	for name := range values {
		if reason, no := refusedParameters[strings.ToLower(name)]; no {
			return errors.New(reason)
		}
	}
	if values.Get("sig") == "" {
		return errors.New("the query of the source must be a SAS token, with a signature sig ('?' in a name is written %3F)")
	}
	return nil
}
