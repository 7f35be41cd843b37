package auth

import "slices"

// Kind says what a value is.
type Kind uint8

// The kinds of value.
const (
	// What is reached.
	AccountName     Kind = iota
	ServiceEndpoint      // URL of the blob service
	EndpointSuffix       // domain of a cloud, such as core.windows.net

	// What makes a credential. They stand in the order in which they are preferred when one group of names holds
	// several: that of adlfs (fsspec/adlfs, adlfs/spec.py), and for identities that of azidentity.
	ConnectionString
	AccountKey
	SASToken
	ClientSecret
	ClientCertificate  // path of a file with certificate and private key; in a secret directory, that file; given, also its text in PEM form
	FederatedTokenFile // path
	FederatedToken
	ManagedClientID
	ManagedObjectID
	ManagedResourceID

	// What stands beside a credential.
	TenantID
	ClientID
	CertificatePassword
	SendCertificateChain // true or false
	AuthorityHost        // URL of the identity service
	Audience             // resource that tokens are asked for
	MethodWord           // which kind of credential is wanted
	AnonymousWord        // true or false

	// unsupported values mean something that blobmount does not do. They are refused, since their meaning would be lost.
	unsupported

	kindCount
)

var kindTexts = [kindCount]string{
	AccountName:          "account name",
	ServiceEndpoint:      "endpoint",
	EndpointSuffix:       "endpoint suffix",
	ConnectionString:     "connection string",
	AccountKey:           "account key",
	SASToken:             "SAS token",
	ClientSecret:         "client secret",
	ClientCertificate:    "client certificate",
	FederatedTokenFile:   "federated token file",
	FederatedToken:       "federated token",
	ManagedClientID:      "client id of a managed identity",
	ManagedObjectID:      "object id of a managed identity",
	ManagedResourceID:    "resource id of a managed identity",
	TenantID:             "tenant id",
	ClientID:             "client id",
	CertificatePassword:  "certificate password",
	SendCertificateChain: "choice to send the certificate chain",
	AuthorityHost:        "authority host",
	Audience:             "token resource",
	MethodWord:           "choice of the kind of credential",
	AnonymousWord:        "choice of anonymous access",
	unsupported:          "unsupported setting",
}

// String returns the kind in words.
func (k Kind) String() string { return kindTexts[k] }

// credential reports whether a value of the kind makes a credential, with what stands beside it.
func (k Kind) credential() bool { return k >= ConnectionString && k <= ManagedResourceID }

// place is where values are read. Places are asked in the order of their numbers; the first one that holds a
// credential is taken.
type place uint8

const (
	given            place = iota // flags, -o, the source, a datastore definition; not in the table
	inSecretDir                   // --secret-dir
	inCredentialsDir              // $CREDENTIALS_DIRECTORY, which systemd sets
	inEnvironment
	placeCount
)

// group is a set of names that are used together. Within a place, groups are asked in the order of their numbers.
// Those of the environment that speak of storage come before the names of azidentity, which are the identity of the
// whole process: Kubernetes puts them into every pod.
type group uint8

const (
	noGroup       group = iota // of given values
	secretFiles                // the keys of a ZenML secret, of the Kubernetes driver, and our own
	adlfsNames                 // adlfs and ZenML
	blobfuseNames              // blobfuse2
	cliNames                   // Azure CLI
	otherNames                 // object_store, Go CDK, restic
	azcopyNames                // azcopy
	azureMLNames               // the examples of Azure ML's documentation
	anonymity                  // requests for anonymous access, from adlfs and object_store
	processNames               // azidentity
	groupCount
)

// row gives a kind of value one of its names.
type row struct {
	kind  Kind
	group group
	name  string
	// words are the values of a MethodWord, in lower case. A word without a method is one that is refused.
	words map[string]Method
	// advice says what to use instead of an unsupported one.
	advice string
}

// table holds every name that is accepted. More names are more rows: nothing else knows a name. File names have no case.
var table = []row{
	{kind: AccountName, group: secretFiles, name: "account_name"},
	{kind: AccountName, group: secretFiles, name: "azurestorageaccountname"},
	{kind: AccountName, group: secretFiles, name: "accountname"},
	{kind: ConnectionString, group: secretFiles, name: "connection_string"},
	{kind: AccountKey, group: secretFiles, name: "account_key"},
	{kind: AccountKey, group: secretFiles, name: "azurestorageaccountkey"},
	{kind: AccountKey, group: secretFiles, name: "accountkey"},
	{kind: SASToken, group: secretFiles, name: "sas_token"},
	{kind: SASToken, group: secretFiles, name: "azurestorageaccountsastoken"},
	{kind: ClientSecret, group: secretFiles, name: "client_secret"},
	{kind: ClientSecret, group: secretFiles, name: "azurestoragespnclientsecret"},
	{kind: ClientCertificate, group: secretFiles, name: "client_certificate"},
	{kind: CertificatePassword, group: secretFiles, name: "client_certificate_password"},
	{kind: TenantID, group: secretFiles, name: "tenant_id"},
	{kind: TenantID, group: secretFiles, name: "azurestoragespntenantid"},
	{kind: ClientID, group: secretFiles, name: "client_id"},
	{kind: ClientID, group: secretFiles, name: "azurestoragespnclientid"},
	{kind: unsupported, group: secretFiles, name: "msisecret",
		advice: "set MSI_ENDPOINT and MSI_SECRET in the environment, and use --auth=msi"},

	{kind: AccountName, group: adlfsNames, name: "AZURE_STORAGE_ACCOUNT_NAME"},
	{kind: ConnectionString, group: adlfsNames, name: "AZURE_STORAGE_CONNECTION_STRING"},
	{kind: AccountKey, group: adlfsNames, name: "AZURE_STORAGE_ACCOUNT_KEY"},
	{kind: SASToken, group: adlfsNames, name: "AZURE_STORAGE_SAS_TOKEN"},
	{kind: ClientSecret, group: adlfsNames, name: "AZURE_STORAGE_CLIENT_SECRET"},
	{kind: TenantID, group: adlfsNames, name: "AZURE_STORAGE_TENANT_ID"},
	{kind: ClientID, group: adlfsNames, name: "AZURE_STORAGE_CLIENT_ID"},

	{kind: AccountName, group: blobfuseNames, name: "AZURE_STORAGE_ACCOUNT"},
	{kind: ServiceEndpoint, group: blobfuseNames, name: "AZURE_STORAGE_BLOB_ENDPOINT"},
	{kind: AccountKey, group: blobfuseNames, name: "AZURE_STORAGE_ACCESS_KEY"},
	{kind: ClientSecret, group: blobfuseNames, name: "AZURE_STORAGE_SPN_CLIENT_SECRET"},
	{kind: FederatedTokenFile, group: blobfuseNames, name: "AZURE_OAUTH_TOKEN_FILE"},
	{kind: FederatedToken, group: blobfuseNames, name: "WORKLOAD_IDENTITY_TOKEN"},
	{kind: ManagedClientID, group: blobfuseNames, name: "AZURE_STORAGE_IDENTITY_CLIENT_ID"},
	{kind: ManagedObjectID, group: blobfuseNames, name: "AZURE_STORAGE_IDENTITY_OBJECT_ID"},
	{kind: ManagedResourceID, group: blobfuseNames, name: "AZURE_STORAGE_IDENTITY_RESOURCE_ID"},
	{kind: TenantID, group: blobfuseNames, name: "AZURE_STORAGE_SPN_TENANT_ID"},
	{kind: ClientID, group: blobfuseNames, name: "AZURE_STORAGE_SPN_CLIENT_ID"},
	{kind: AuthorityHost, group: blobfuseNames, name: "AZURE_STORAGE_AAD_ENDPOINT"},
	{kind: Audience, group: blobfuseNames, name: "AZURE_STORAGE_AUTH_RESOURCE"},
	{kind: MethodWord, group: blobfuseNames, name: "AZURE_STORAGE_AUTH_TYPE", words: map[string]Method{
		"key": Key, "sas": SAS, "spn": ServicePrincipal, "msi": ManagedIdentity, "azcli": CLI, "behalf": ""}},
	{kind: unsupported, group: blobfuseNames, name: "AZURE_STORAGE_CLIENT_ASSERTION", advice: "use a client secret, a certificate or a federated token"},
	{kind: unsupported, group: blobfuseNames, name: "AZURE_STORAGE_USER_ASSERTION", advice: "use a client secret, a certificate or a federated token"},
	{kind: unsupported, group: blobfuseNames, name: "AZURE_STORAGE_CPK_ENCRYPTION_KEY", advice: "blobs under a key of the customer cannot be read or written"},
	{kind: unsupported, group: blobfuseNames, name: "AZURE_STORAGE_CPK_ENCRYPTION_KEY_SHA256", advice: "blobs under a key of the customer cannot be read or written"},

	{kind: ServiceEndpoint, group: cliNames, name: "AZURE_STORAGE_SERVICE_ENDPOINT"},
	{kind: AccountKey, group: cliNames, name: "AZURE_STORAGE_KEY"},
	{kind: MethodWord, group: cliNames, name: "AZURE_STORAGE_AUTH_MODE", words: map[string]Method{"login": Login, "key": shared}},

	{kind: AccountName, group: otherNames, name: "AZURE_ACCOUNT_NAME"},
	{kind: ServiceEndpoint, group: otherNames, name: "AZURE_STORAGE_ENDPOINT"},
	{kind: EndpointSuffix, group: otherNames, name: "AZURE_ENDPOINT_SUFFIX"},
	{kind: ConnectionString, group: otherNames, name: "AZURE_STORAGEBLOB_CONNECTIONSTRING"},
	{kind: AccountKey, group: otherNames, name: "AZURE_STORAGE_MASTER_KEY"},
	{kind: AccountKey, group: otherNames, name: "AZURE_ACCOUNT_KEY"},
	{kind: SASToken, group: otherNames, name: "AZURE_STORAGE_SAS_KEY"},
	{kind: SASToken, group: otherNames, name: "AZURE_ACCOUNT_SAS"},

	{kind: ClientSecret, group: azcopyNames, name: "AZCOPY_SPA_CLIENT_SECRET"},
	{kind: ClientCertificate, group: azcopyNames, name: "AZCOPY_SPA_CERT_PATH"},
	{kind: ManagedClientID, group: azcopyNames, name: "AZCOPY_MSI_CLIENT_ID"},
	{kind: ManagedObjectID, group: azcopyNames, name: "AZCOPY_MSI_OBJECT_ID"},
	{kind: ManagedResourceID, group: azcopyNames, name: "AZCOPY_MSI_RESOURCE_STRING"},
	{kind: TenantID, group: azcopyNames, name: "AZCOPY_TENANT_ID"},
	{kind: ClientID, group: azcopyNames, name: "AZCOPY_SPA_APPLICATION_ID"},
	{kind: CertificatePassword, group: azcopyNames, name: "AZCOPY_SPA_CERT_PASSWORD"},
	{kind: AuthorityHost, group: azcopyNames, name: "AZCOPY_ACTIVE_DIRECTORY_ENDPOINT"},
	{kind: MethodWord, group: azcopyNames, name: "AZCOPY_AUTO_LOGIN_TYPE", words: map[string]Method{
		"spn": ServicePrincipal, "msi": ManagedIdentity, "azcli": CLI, "workload": Workload, "device": "", "pscred": ""}},

	{kind: AccountName, group: azureMLNames, name: "BLOB_ACCOUNTNAME"},
	{kind: AccountKey, group: azureMLNames, name: "BLOB_ACCOUNT_KEY"},
	{kind: AccountName, group: azureMLNames, name: "ADLSGEN2_ACCOUNTNAME"},
	{kind: ClientSecret, group: azureMLNames, name: "ADLSGEN2_CLIENT_SECRET"},
	{kind: TenantID, group: azureMLNames, name: "ADLSGEN2_TENANT"},
	{kind: ClientID, group: azureMLNames, name: "ADLSGEN2_CLIENTID"},

	{kind: AnonymousWord, group: anonymity, name: "AZURE_STORAGE_ANON"},
	{kind: AnonymousWord, group: anonymity, name: "AZURE_SKIP_SIGNATURE"},

	{kind: ClientSecret, group: processNames, name: "AZURE_CLIENT_SECRET"},
	{kind: ClientCertificate, group: processNames, name: "AZURE_CLIENT_CERTIFICATE_PATH"},
	{kind: FederatedTokenFile, group: processNames, name: "AZURE_FEDERATED_TOKEN_FILE"},
	{kind: TenantID, group: processNames, name: "AZURE_TENANT_ID"},
	{kind: ClientID, group: processNames, name: "AZURE_CLIENT_ID"},
	{kind: CertificatePassword, group: processNames, name: "AZURE_CLIENT_CERTIFICATE_PASSWORD"},
	{kind: SendCertificateChain, group: processNames, name: "AZURE_CLIENT_SEND_CERTIFICATE_CHAIN"},
	{kind: AuthorityHost, group: processNames, name: "AZURE_AUTHORITY_HOST"},
}

// Names outside of the table, which say where to look and not what to use.
const (
	credentialsDirName = "CREDENTIALS_DIRECTORY"             // systemd.exec(5)
	chainName          = "AZURE_TOKEN_CREDENTIALS"           // which members azidentity's default chain has
	podIdentityName    = "AZURE_POD_IDENTITY_AUTHORITY_HOST" // where the metadata service is reached
)

// Source names the place that a value came from. It never holds the value.
type Source struct {
	place place
	name  string // flag, environment name, or path of the file
}

// String returns the source in words, such as "environment AZURE_STORAGE_ACCOUNT_KEY".
func (s Source) String() string {
	switch s.place {
	case inEnvironment:
		return "environment " + s.name
	case inSecretDir, inCredentialsDir:
		return "secret file " + s.name
	default:
		return s.name
	}
}

// firstNames returns the name in the environment that is preferred for each kind.
func firstNames(kinds []Kind) []string {
	var names []string
	for _, k := range kinds {
		if i := slices.IndexFunc(table, func(r row) bool { return r.kind == k && r.group != secretFiles }); i >= 0 {
			names = append(names, table[i].name)
		}
	}
	return names
}
