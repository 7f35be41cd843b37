package main

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"blobmount/auth"
	"blobmount/blobcache/blob"
)

// Source is what is mounted: a container, or the part of it below a prefix.
type Source struct {
	// Verbatim is the text as given. It becomes the source in the mount table without any change: `mount -a`
	// compares it with /etc/fstab, and would mount a second time over a changed one.
	Verbatim  string
	Container string
	Prefix    string // empty, or ends with a slash
	// Account and Endpoint are set by a source that is the URL of a service; else both are empty.
	Account, Endpoint string
}

// containerName is the rule of the service (Microsoft Learn, "Naming and referencing containers, blobs, and
// metadata"): 3 to 63 lower-case letters, digits and single hyphens, a letter or digit at both ends.
var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])+$`)

// systemContainers are the names that the service itself uses.
var systemContainers = map[string]bool{"$root": true, "$web": true, "$logs": true}

// showable matches text that is safe to repeat in a message: a mistyped source can be a connection string or
// carry a SAS, and those need '=' and '?'.
var showable = regexp.MustCompile(`^[A-Za-z0-9$._~/:@-]{1,200}$`)

var errForm = errors.New("the source must look like az://CONTAINER[/PREFIX]")

// ParseSource reads a source. Errors are one line and show no secret that the text may hold.
func ParseSource(s string) (Source, error) {
	src, err := parseSource(s)
	if err != nil {
		if showable.MatchString(s) {
			return Source{}, fmt.Errorf("source %s: %w", s, err)
		}
		return Source{}, err
	}
	src.Verbatim = s
	return src, nil
}

func parseSource(s string) (Source, error) {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return Source{}, errors.New("the source has control characters in it")
	}
	if hasSAS(s) {
		return Source{}, errors.New("the source holds a SAS token, which everybody could read in the mount table: " +
			"remove it there, and give it in AZURE_STORAGE_SAS_TOKEN or in the file sas_token of --secret-dir")
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		if strings.HasPrefix(strings.ToLower(s), "azureml:") {
			return Source{}, errAzureML
		}
		return Source{}, errForm
	}
	switch strings.ToLower(scheme) {
	case "az", "abfs":
		return parseContainer(rest)
	case "https", "http":
		return parseURL(s)
	case "abfss", "wasb", "wasbs":
		return Source{}, errOtherForm(rest)
	case "azureml":
		return Source{}, errAzureML
	default:
		return Source{}, errForm
	}
}

var errAzureML = errors.New("blobmount does not ask an Azure ML workspace: look up the account and the container of the " +
	"datastore, and use az://CONTAINER[/PREFIX] with --account-name ACCOUNT")

// errOtherForm says how to write CONTAINER@ACCOUNT.HOST/PREFIX.
func errOtherForm(rest string) error {
	authority, prefix, _ := strings.Cut(rest, "/")
	container, host, ok := strings.Cut(authority, "@")
	account, _, _ := strings.Cut(host, ".")
	form := "az://CONTAINER[/PREFIX] with --account-name ACCOUNT"
	if ok && checkContainer(container) == nil && account != "" && showable.MatchString(account+prefix+"/") {
		form = fmt.Sprintf("%s with --account-name %s", strings.TrimSuffix("az://"+container+"/"+prefix, "/"), account)
	}
	return errors.New("this form is not accepted: use " + form)
}

// hasSAS finds a signature in the query of any form of source.
func hasSAS(s string) bool {
	_, query, ok := strings.Cut(s, "?")
	return ok && strings.Contains(strings.ToLower(query), "sig=") || strings.Contains(strings.ToLower(s), "sharedaccesssignature=")
}

// parseContainer reads CONTAINER[/PREFIX]. The text is taken as it is, without any decoding, as fsspec does for
// the same form: a '%' or '?' in the prefix is a '%' or '?' in the names of blobs.
func parseContainer(rest string) (Source, error) {
	container, prefix, _ := strings.Cut(rest, "/")
	if strings.Contains(container, "@") {
		return Source{}, errOtherForm(rest)
	}
	if err := checkContainer(container); err != nil {
		return Source{}, err
	}
	prefix, err := cleanPrefix(prefix)
	if err != nil {
		return Source{}, err
	}
	return Source{Container: container, Prefix: prefix}, nil
}

// parseURL reads https://ACCOUNT.blob.SUFFIX/CONTAINER[/PREFIX] and http[s]://IP[:PORT]/ACCOUNT/CONTAINER[/PREFIX].
func parseURL(s string) (Source, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return Source{}, errors.New("the source is not a valid URL")
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return Source{}, errors.New("the URL of the source must not have a user, query or fragment ('?' in a name is written %3F)")
	}
	if strings.Contains(u.Hostname(), ".dfs.") {
		return Source{}, errors.New("the host must be that of the blob service: ACCOUNT.blob.core.windows.net instead of ACCOUNT.dfs.core.windows.net")
	}
	endpoint := u.Scheme + "://" + strings.ToLower(u.Host)
	path := strings.TrimPrefix(u.Path, "/")
	switch {
	case strings.Contains(u.Hostname(), "-secondary."):
		return Source{}, errors.New("the secondary location can only be read: use the primary one")
	case auth.PathStyle(endpoint):
		account, rest, _ := strings.Cut(path, "/")
		if account == "" || rest == "" {
			return Source{}, fmt.Errorf("a URL of this host must look like %s/ACCOUNT/CONTAINER[/PREFIX]", endpoint)
		}
		endpoint += "/" + url.PathEscape(account)
		path = rest
	case auth.AccountOf(endpoint) == "":
		return Source{}, errors.New("the host does not name an account: use az://CONTAINER[/PREFIX] with --endpoint URL and --account-name ACCOUNT")
	case u.Scheme == "http":
		return Source{}, errors.New("the service is reached by https: write https:// instead of http://")
	case path == "":
		return Source{}, fmt.Errorf("the URL names no container: it must look like %s/CONTAINER[/PREFIX]", endpoint)
	}
	src, err := parseContainer(path)
	if err != nil {
		return Source{}, err
	}
	src.Account, src.Endpoint = auth.AccountOf(endpoint), endpoint
	return src, nil
}

func checkContainer(name string) error {
	if systemContainers[name] {
		return nil
	}
	if len(name) < 3 || len(name) > 63 || !containerName.MatchString(name) {
		return errors.New("the container name is not valid: it must be 3 to 63 lower-case letters, digits and single hyphens, " +
			"and begin and end with a letter or digit")
	}
	return nil
}

// cleanPrefix makes the prefix end with a slash, and refuses one below which no path could lead to a blob.
func cleanPrefix(prefix string) (string, error) {
	prefix = strings.TrimSuffix(prefix, "/")
	if prefix == "" {
		return "", nil
	}
	for segment := range strings.SplitSeq(prefix, "/") {
		switch segment {
		case "":
			return "", errors.New("the prefix has an empty part (two slashes)")
		case ".", "..":
			return "", errors.New("the prefix has a part that is '.' or '..'")
		}
	}
	// One character is for the slash, one for the shortest name below.
	if blob.NameLength(prefix)+2 > blob.MaxNameLength {
		return "", fmt.Errorf("the prefix is longer than %d characters, the most that the name of a blob can have", blob.MaxNameLength-2)
	}
	return prefix + "/", nil
}
