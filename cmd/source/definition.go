package source

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"blobmount/auth"
)

// Definition is a datastore as Azure Machine Learning defines it in YAML (Microsoft Learn, "CLI (v2) Azure Blob
// datastore YAML schema", and the one of Azure Data Lake Gen2), with a few keys of our own: prefix, read_only,
// blob_cache_timeout.
type Definition struct {
	File, Name                           string
	Account, Endpoint, Container, Prefix string // Prefix is empty, or ends with a slash
	Secondary                            bool
	ReadOnly                             bool
	// BlobCacheTimeout is the text of the key, empty when it is not there.
	BlobCacheTimeout string
	// Credential is what the definition says about it, empty for a datastore without.
	Credential []auth.Value
	// Unsupported says of a datastore that cannot be mounted why, and what to do instead. All other fields but File and
	// Name are empty then.
	Unsupported string
	// Warning is for the log: who else can read secrets of the file.
	Warning string
}

// ReadDefinitions reads definitions from files. A directory stands for all *.yml and *.yaml in it. Two definitions of one
// name are refused; names have no case.
func ReadDefinitions(paths []string) ([]Definition, error) {
	var files []string
	for _, path := range paths {
		below, err := definitionFiles(path)
		if err != nil {
			return nil, err
		}
		for _, f := range below {
			if !slices.Contains(files, f) {
				files = append(files, f)
			}
		}
	}
	var all []Definition
	for _, file := range files {
		d, err := ReadDefinition(file)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(o Definition) bool { return strings.EqualFold(o.Name, d.Name) })
		if i >= 0 {
			return nil, fmt.Errorf("%s and %s both define datastore %s: remove one", all[i].File, file, d.Name)
		}
		all = append(all, d)
	}
	return all, nil
}

// definitionFiles returns the files that a path stands for, in the order of their names.
func definitionFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("datastore definition %s does not exist", path)
	case err != nil:
		return nil, fmt.Errorf("cannot read datastore definition %s: %w", path, cause(err))
	case !info.IsDir():
		return []string{filepath.Clean(path)}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read directory %s of datastore definitions: %w", path, cause(err))
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); (ext == ".yml" || ext == ".yaml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("directory %s has no datastore definition, no *.yml or *.yaml", path)
	}
	return files, nil
}

// ReadDefinition reads one file, which gets the checks of a secret file. Errors name keys, and never show a value but
// those of name and type.
func ReadDefinition(file string) (Definition, error) {
	text, found, warning, err := auth.ReadFile("datastore definition", file)
	if err != nil {
		return Definition{}, err
	}
	if !found {
		return Definition{}, fmt.Errorf("datastore definition %s does not exist", file)
	}
	d, err := parseDefinition(file, []byte(text.Reveal()))
	if err != nil {
		return Definition{}, fmt.Errorf("datastore definition %s: %w", file, err)
	}
	// Others may read where a datastore is, and only that.
	if len(d.Credential) > 0 {
		d.Warning = warning
	}
	return d, nil
}

// unsupported are the types of datastores that are not containers of blobs.
var unsupported = map[string]string{
	"azurefile": "Azure Files (type azure_file) is no blob service: mount the share by SMB or NFS, " +
		"mount -t cifs //ACCOUNT.file.core.windows.net/SHARE",
	"azuredatalakegen1": "Azure Data Lake Storage Gen1 (type azure_data_lake_gen1) was retired by Azure in 2024: " +
		"define the Gen2 account that the data was moved to, type azure_data_lake_gen2",
	"onelake": "OneLake (type one_lake) is no storage account: write its address, " +
		"abfss://WORKSPACE@onelake.dfs.fabric.microsoft.com/ITEM",
}

func parseDefinition(file string, text []byte) (Definition, error) {
	top, err := decode(text)
	if err != nil {
		return Definition{}, err
	}
	d := Definition{File: file}
	kind, err := top.required("type")
	if err != nil {
		return Definition{}, err
	}
	if d.Name, err = top.required("name"); err != nil {
		return Definition{}, err
	}
	if !datastoreName.MatchString(d.Name) {
		return Definition{}, errors.New("name must be letters, digits, '_' and '-'")
	}
	// Azure Machine Learning takes azure_blob and AzureBlob.
	bare := strings.ReplaceAll(strings.ToLower(kind), "_", "")
	if d.Unsupported = unsupported[bare]; d.Unsupported != "" {
		return d, nil
	}
	container := map[string]string{"azureblob": "container_name", "azuredatalakegen2": "filesystem"}[bare]
	if container == "" {
		return Definition{}, fmt.Errorf("type must be azure_blob or azure_data_lake_gen2, not %s", printable(kind))
	}
	if d.Container, err = top.required(container); err != nil {
		return Definition{}, err
	}
	if err := checkContainer(d.Container); err != nil {
		return Definition{}, fmt.Errorf("%s: %w", container, err)
	}
	if err := d.locate(top); err != nil {
		return Definition{}, err
	}
	if err := d.extensions(top); err != nil {
		return Definition{}, err
	}
	if err := d.credentials(top); err != nil {
		return Definition{}, err
	}
	// What says nothing about a mount. The last two are in what `az ml datastore show` prints.
	for _, key := range []string{"$schema", "description", "tags", "id", "resourceGroup"} {
		delete(top.nodes, key)
	}
	return d, top.unknown("")
}

// locate reads account, endpoint and protocol. The endpoint of Azure Machine Learning is a suffix, core.windows.net; the
// URL of a service is taken too, for emulators.
func (d *Definition) locate(top mapping) error {
	account, err := top.required("account_name")
	if err != nil {
		return err
	}
	endpoint, err := top.text("endpoint")
	if err != nil {
		return err
	}
	protocol, err := top.text("protocol")
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"", "https", "wasbs", "abfss"}, strings.ToLower(protocol)) {
		return errors.New("protocol must be https: the service is not reached by another one")
	}
	if strings.Contains(endpoint, "://") {
		src, err := parseURL(strings.TrimRight(endpoint, "/") + "/" + d.Container)
		if err != nil || src.HasSAS || src.Prefix != "" || src.Container != d.Container {
			return errors.New("endpoint must be a domain such as core.windows.net, or the URL of a blob service, such as http://127.0.0.1:10000/ACCOUNT")
		}
		if src.Account != account {
			return errors.New("endpoint is the URL of another account than account_name: correct one")
		}
		d.Account, d.Endpoint, d.Secondary = account, src.Endpoint, src.Secondary
		return nil
	}
	src, err := service(account + ".blob." + cmp.Or(endpoint, "core.windows.net"))
	if err != nil || src.Account != strings.TrimSuffix(account, "-secondary") {
		return errors.New("account_name must be 3 to 24 lower-case letters and digits, and endpoint a domain such as core.windows.net")
	}
	d.Account, d.Endpoint, d.Secondary = src.Account, src.Endpoint, src.Secondary
	return nil
}

// extensions reads the keys of our own.
func (d *Definition) extensions(top mapping) error {
	prefix, err := top.text("prefix")
	if err != nil {
		return err
	}
	if d.Prefix, err = cleanPrefix(strings.TrimPrefix(prefix, "/")); err != nil {
		return err
	}
	readOnly, err := top.text("read_only")
	if err != nil {
		return err
	}
	switch strings.ToLower(readOnly) {
	case "true":
		d.ReadOnly = true
	case "", "false":
	default:
		return errors.New("read_only must be true or false")
	}
	d.BlobCacheTimeout, err = top.text("blob_cache_timeout")
	return err
}

// credentialKeys are the keys of the secrets and of what belongs to them, and what they are. The name of the authority is
// authority_url in the documentation, and authority_uri in what the SDK of Azure Machine Learning reads.
var credentialKeys = []struct {
	key  string
	kind auth.Kind
}{
	{"account_key", auth.AccountKey},
	{"sas_token", auth.SASToken},
	{"tenant_id", auth.TenantID},
	{"client_id", auth.ClientID},
	{"client_secret", auth.ClientSecret},
	{"certificate", auth.ClientCertificate},
	{"authority_url", auth.AuthorityHost},
	{"authority_uri", auth.AuthorityHost},
}

// storageResource is what tokens are asked for in all clouds (Microsoft Learn, "Authorize with Microsoft Entra ID").
const storageResource = "https://storage.azure.com"

func (d *Definition) credentials(top mapping) error {
	node, ok := top.nodes["credentials"]
	delete(top.nodes, "credentials")
	if !ok || isNull(node) {
		return nil
	}
	m, err := asMapping(node, "credentials")
	if err != nil {
		return err
	}
	text := func(key string) (string, error) {
		value, err := m.text(key)
		if err != nil {
			err = fmt.Errorf("credentials.%w", err)
		}
		return value, err
	}
	from := "datastore definition " + d.File
	has := map[auth.Kind]string{}
	for _, c := range credentialKeys {
		value, err := text(c.key)
		if err != nil {
			return err
		}
		if value == "" {
			continue
		}
		if has[c.kind] != "" {
			return errors.New("credentials.authority_url and credentials.authority_uri are the same: remove one")
		}
		has[c.kind] = value
		d.Credential = append(d.Credential, auth.Value{Kind: c.kind, Secret: auth.NewSecret(value), From: from})
	}
	if err := oneCredential(has); err != nil {
		return err
	}
	thumbprint, err := text("thumbprint")
	if err != nil {
		return err
	}
	if err := checkCertificate(has[auth.ClientCertificate], thumbprint); err != nil {
		return err
	}
	resource, err := text("resource_url")
	if err != nil {
		return err
	}
	if r := strings.TrimRight(resource, "/"); r != "" && !strings.EqualFold(r, storageResource) {
		return errors.New("credentials.resource_url must be " + storageResource + "/: tokens are asked for no other resource")
	}
	return m.unknown("credentials.")
}

// oneCredential refuses what is more or less than one credential.
func oneCredential(has map[auth.Kind]string) error {
	kinds, parts := 0, 0
	for _, k := range []auth.Kind{auth.AccountKey, auth.SASToken, auth.ClientSecret, auth.ClientCertificate} {
		if has[k] != "" {
			kinds++
		}
	}
	for _, k := range []auth.Kind{auth.TenantID, auth.ClientID, auth.AuthorityHost} {
		if has[k] != "" {
			parts++
		}
	}
	if kinds > 1 || kinds == 0 && parts > 0 || parts > 0 && (has[auth.AccountKey] != "" || has[auth.SASToken] != "") {
		return errors.New("credentials must be one of account_key, sas_token, and tenant_id with client_id and client_secret or certificate")
	}
	return nil
}

// checkCertificate wants the certificate in the file itself, with its private key, and compares it with the thumbprint,
// which is the SHA-1 of the certificate.
func checkCertificate(text, thumbprint string) error {
	if text == "" {
		if thumbprint != "" {
			return errors.New("credentials.thumbprint needs credentials.certificate")
		}
		return nil
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("credentials.certificate must be the certificate and its private key in PEM form, as a block of text (certificate: |)")
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		sum := sha1.Sum(block.Bytes)
		if t := strings.NewReplacer(":", "", " ", "").Replace(thumbprint); t != "" && !strings.EqualFold(t, hex.EncodeToString(sum[:])) {
			return errors.New("credentials.thumbprint is not that of the first certificate in credentials.certificate")
		}
		return nil
	}
}

// mapping is a YAML mapping of which the keys are taken away as they are read.
type mapping struct{ nodes map[string]*yaml.Node }

// decode reads the one document of a file. The nodes are looked at one by one, and not decoded into a struct, since
// errors of the library repeat values, which may be secret.
func decode(text []byte) (mapping, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return mapping{}, syntaxError(err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return mapping{}, errors.New("a file must have one YAML document: write each definition into a file of its own")
	}
	if len(doc.Content) != 1 {
		return mapping{}, errors.New("it is not a YAML mapping")
	}
	return asMapping(doc.Content[0], "")
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+):`)

// syntaxError keeps of an error of the library the line only: the rest may quote the text.
func syntaxError(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it is empty")
	}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("it is not valid YAML, near line %s", m[1])
	}
	return errors.New("it is not valid YAML")
}

func asMapping(n *yaml.Node, name string) (mapping, error) {
	if n.Kind != yaml.MappingNode {
		return mapping{}, errors.New(strings.TrimSpace(cmp.Or(name, "it") + " is not a YAML mapping"))
	}
	m := mapping{map[string]*yaml.Node{}}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || value.Kind == yaml.AliasNode {
			return mapping{}, fmt.Errorf("line %d: keys must be words, and aliases are not supported", key.Line)
		}
		if m.nodes[key.Value] != nil {
			return mapping{}, fmt.Errorf("line %d: %s is there twice", key.Line, printable(key.Value))
		}
		m.nodes[key.Value] = value
	}
	return m, nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// text returns the value of a key, and takes the key away. It is empty when the key is not there or null.
func (m mapping) text(key string) (string, error) {
	n, ok := m.nodes[key]
	delete(m.nodes, key)
	switch {
	case !ok || isNull(n):
		return "", nil
	case n.Kind != yaml.ScalarNode:
		return "", fmt.Errorf("%s must be a single value", key)
	}
	return strings.TrimSpace(n.Value), nil
}

func (m mapping) required(key string) (string, error) {
	value, err := m.text(key)
	if err == nil && value == "" {
		err = fmt.Errorf("%s is missing", key)
	}
	return value, err
}

// unknown refuses what was not read: a misspelled key would be a setting that has no effect.
func (m mapping) unknown(prefix string) error {
	var keys []string
	for key := range m.nodes {
		keys = append(keys, prefix+printable(key))
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	return fmt.Errorf("unknown key %s", strings.Join(keys, ", "))
}

// printable returns a name as it may be shown. Text in another form may be anything, also a secret.
func printable(name string) string {
	if name != "" && len(name) <= 40 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzGRUI_-.$") == "" {
		return name
	}
	return "(not shown)"
}

// cause drops the operation and the path that os puts before an error, where the message has them already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
