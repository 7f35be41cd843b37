// Package source reads what a user calls the data to mount: URIs in all the forms that Azure Blob Storage, Azure
// Machine Learning, ZenML and Hadoop have for a container, and the definitions of Azure Machine Learning datastores.
//
// Nothing here uses the network. Errors are one line, say which form would work, and never show a secret that a text
// may hold.
package source

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"blobmount/auth"
	"blobmount/blobcache/blob"
)

// Source is a container, or the part of it below a prefix.
type Source struct {
	// Verbatim is the text as given, without the SAS of a URL. It becomes the source in the mount table, which
	// everybody can read. Nothing else of it is changed: `mount -a` compares it with /etc/fstab, and would mount a second
	// time over a changed one.
	Verbatim string
	// Datastore is the name of a datastore, of a source that names one; Resolve fills in the container.
	Datastore string
	Container string
	Prefix    string // empty, or ends with a slash
	// Account and Endpoint are set by a source that says which service it means; else both are empty.
	Account, Endpoint string
	// Secondary says that the endpoint is the secondary location of the account, which can only be read.
	Secondary bool
	// SAS is the shared access signature of a URL that has one, without '?'.
	SAS    auth.Secret
	HasSAS bool
}

// Parse reads a source. The forms, in which C is a container, A an account and P a prefix:
//
//   - az://C/P; also with the schemes abfs, abfss, azure, azblob and adl. Configuration says which account it is. The
//     prefix is taken letter by letter, as fsspec does: a '%' or '?' is one in the names of blobs.
//   - abfss://C@A.dfs.SUFFIX/P; also with the other schemes, and wasb and wasbs, of which only a name without '@' means
//     the container $root (org.apache.hadoop.fs.azure.NativeAzureFileSystem)
//   - abfs://A.dfs.SUFFIX/C/P, abfs://C@dfs.core.windows.net/P (fsspec/adlfs, AzureBlobFileSystem._strip_protocol)
//   - https://A.blob.SUFFIX/C/P, with a SAS behind '?' or without, and percent-encoded as URLs are
//   - http://HOST:PORT/A/C/P for an IP address or a name of a local network, as emulators have it
//   - azureml://datastores/NAME/paths/P, and the long form with subscription, resource group and workspace
//
// The host may have blob or dfs in it, any suffix, and be that of a secondary location, a DNS zone or a private link;
// what is used is the blob service by https.
func Parse(s string) (Source, error) {
	src, err := parse(s)
	if err != nil {
		if showable.MatchString(s) && !hasPassword.MatchString(s) {
			return Source{}, fmt.Errorf("source %s: %w", s, err)
		}
		return Source{}, err
	}
	src.Verbatim = s
	if src.HasSAS {
		src.Verbatim, _, _ = strings.Cut(s, "?")
	}
	return src, nil
}

// showable matches text that is safe to repeat in a message: a mistyped source can be a connection string or carry a
// SAS, and those need '=' and '?'.
var (
	showable    = regexp.MustCompile(`^[A-Za-z0-9$._~/:@-]{1,200}$`)
	hasPassword = regexp.MustCompile(`//[^/]*:[^/]*@`)
)

// errors that several forms share.
var (
	errForm = errors.New("the source must look like az://CONTAINER[/PREFIX] or https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]")
	errSAS  = errors.New("the source holds a SAS token in a form that cannot have one: write https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]?SAS, " +
		"or give the token in AZURE_STORAGE_SAS_TOKEN or in the file sas_token of --secret-dir")
	errConnection = errors.New("the source is a connection string: give that in AZURE_STORAGE_CONNECTION_STRING or in the file connection_string of " +
		"--secret-dir, and az://CONTAINER[/PREFIX] as the source")
	errHost = errors.New("the host must be that of a storage account, such as ACCOUNT.dfs.core.windows.net")
	errGen1 = errors.New("this is Azure Data Lake Storage Gen1, which Azure retired in 2024, and no blob service: " +
		"use the Gen2 account that the data was moved to, as abfss://CONTAINER@ACCOUNT.dfs.core.windows.net[/PREFIX]")
)

func parse(s string) (Source, error) {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return Source{}, errors.New("the source has control characters in it")
	}
	if lower := strings.ToLower(s); strings.Contains(lower, "accountname=") || strings.Contains(lower, "sharedaccesssignature=") {
		return Source{}, errConnection
	}
	scheme, rest, ok := strings.Cut(s, "://")
	scheme = strings.ToLower(scheme)
	if !ok {
		return Source{}, errOther(s)
	}
	if scheme == "https" || scheme == "http" {
		return parseURL(s)
	}
	if inner, ok := strings.CutPrefix(scheme, "azureml:"); ok {
		return parse(inner + "://" + rest) // the command line of Azure Machine Learning puts this before any URI
	}
	if _, query, ok := strings.Cut(s, "?"); ok && strings.Contains(strings.ToLower(query), "sig=") {
		return Source{}, errSAS
	}
	switch scheme {
	case "az", "abfs", "abfss", "azure", "azblob", "adl":
		return parseName(scheme, rest)
	case "wasb", "wasbs":
		return parseWASB(rest)
	case "azureml":
		return parseAzureML(rest)
	case "runs":
		return Source{}, errWorkspace
	default:
		return Source{}, errOther(s)
	}
}

// errOther says what to write instead of a text that is none of the forms.
func errOther(s string) error {
	scheme, rest, ok := strings.Cut(s, ":")
	switch strings.ToLower(scheme) {
	case "azureml", "runs":
		return errWorkspace
	case "azure", "azureblob", "az", "abfs", "abfss":
		// The repositories of restic are azure:CONTAINER:/PREFIX, the remotes of rclone most often azureblob:CONTAINER/PREFIX.
		container, prefix, _ := strings.Cut(strings.Replace(strings.TrimLeft(rest, "/"), ":/", "/", 1), "/")
		if ok && checkContainer(container) == nil && (prefix == "" || showable.MatchString(prefix)) {
			return fmt.Errorf("write %s", strings.TrimSuffix("az://"+container+"/"+prefix, "/"))
		}
	}
	return errForm
}

// parseName reads the forms with the names of fsspec and Hadoop: C/P, C@HOST/P and HOST/C/P.
func parseName(scheme, rest string) (Source, error) {
	authority, path, _ := strings.Cut(rest, "/")
	if strings.HasSuffix(strings.ToLower(authority), ".azuredatalakestore.net") {
		return Source{}, errGen1
	}
	container, host, at := strings.Cut(authority, "@")
	if !at && !strings.Contains(authority, ".") {
		return within(Source{}, authority, path)
	}
	if !at {
		host = authority
		container, path, _ = strings.Cut(path, "/")
		if container == "" {
			return Source{}, fmt.Errorf("the URI names no container: write %s://CONTAINER@ACCOUNT.dfs.SUFFIX[/PREFIX]", scheme)
		}
	}
	switch strings.ToLower(host) {
	case "dfs.core.windows.net", "blob.core.windows.net":
		return within(Source{}, container, path) // adlfs: the account comes from configuration
	}
	src, err := service(host)
	if err != nil {
		return Source{}, err
	}
	return within(src, container, path)
}

// parseWASB reads [C@]HOST/P.
func parseWASB(rest string) (Source, error) {
	authority, path, _ := strings.Cut(rest, "/")
	container, host, at := strings.Cut(authority, "@")
	if !at {
		container, host = "$root", authority
	}
	src, err := service(host)
	if err != nil {
		return Source{}, err
	}
	return within(src, container, path)
}

// notBlobs are the other services of a storage account, and what to do with them.
var notBlobs = map[string]string{
	"web":   "this is the host of a static website: its files are in the container $web of https://ACCOUNT.blob.SUFFIX/$web",
	"file":  "Azure Files is no blob service: mount a share by SMB or NFS, mount -t cifs //ACCOUNT.file.SUFFIX/SHARE",
	"queue": "queues are not files",
	"table": "tables are not files",
}

// service returns the service that a host name stands for.
func service(host string) (Source, error) {
	h, ok := auth.ParseHost(host)
	if !ok {
		return Source{}, errHost
	}
	if reason, no := notBlobs[h.Service]; no {
		return Source{}, errors.New(reason)
	}
	return Source{Account: h.Account, Endpoint: "https://" + h.Blob, Secondary: h.Secondary}, nil
}

// within puts container and path into a source.
func within(src Source, container, path string) (Source, error) {
	if err := checkContainer(container); err != nil {
		return Source{}, err
	}
	prefix, err := cleanPrefix(path)
	if err != nil {
		return Source{}, err
	}
	src.Container, src.Prefix = container, prefix
	return src, nil
}

// containerName is the rule of the service (Microsoft Learn, "Naming and referencing containers, blobs, and
// metadata"): 3 to 63 lower-case letters, digits and single hyphens, a letter or digit at both ends.
var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])+$`)

// systemContainers are the names that the service itself uses.
var systemContainers = map[string]bool{"$root": true, "$web": true, "$logs": true}

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

// cleanPrefix makes the prefix end with a slash, and refuses one below which no path could lead to a blob, or to one of another
// name: see blob.CheckName.
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
		if strings.HasSuffix(segment, ".") {
			return "", errors.New("the prefix has a part that ends with a dot, which the service drops")
		}
	}
	if strings.Contains(prefix, `\`) {
		return "", errors.New("the prefix has a backslash, which the service makes a slash: write a slash")
	}
	// One character is for the slash, one for the shortest name below.
	if blob.NameLength(prefix)+2 > blob.MaxNameLength {
		return "", fmt.Errorf("the prefix is longer than %d characters, the most that the name of a blob can have", blob.MaxNameLength-2)
	}
	if strings.Count(prefix, "/")+1 >= blob.MaxSegments {
		return "", fmt.Errorf("the prefix has more than %d parts, the most that the name of a blob can have above its last", blob.MaxSegments-1)
	}
	if blob.CheckName("", prefix) != nil {
		return "", errors.New("the prefix has a character that names of blobs cannot have")
	}
	return prefix + "/", nil
}
