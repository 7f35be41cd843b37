package auth

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Cloud is the name of an Azure cloud, as users write it.
type Cloud string

// The clouds that have a name. Others are known by the domain of the endpoint, or by the authority host.
const (
	PublicCloud       Cloud = "public"
	ChinaCloud        Cloud = "china"
	USGovernmentCloud Cloud = "usgovernment"
)

// Clouds returns the clouds that have a name.
func Clouds() []Cloud { return []Cloud{PublicCloud, ChinaCloud, USGovernmentCloud} }

// cloudFacts are the domain of a cloud's storage endpoints, and where its identity service is.
type cloudFacts struct {
	name      Cloud // empty when it has none
	suffix    string
	authority string // empty when it is not public knowledge
}

// clouds: the first three are those of azcore (azcore/cloud), the next three are on the list of authorities of the
// Microsoft Authentication Library for Go, the last two have no published authority.
var clouds = []cloudFacts{
	{PublicCloud, publicCloudSuffix, "https://login.microsoftonline.com"},
	{ChinaCloud, "core.chinacloudapi.cn", "https://login.chinacloudapi.cn"},
	{USGovernmentCloud, "core.usgovcloudapi.net", "https://login.microsoftonline.us"},
	{"", "core.sovcloud-api.fr", "https://login.sovcloud-identity.fr"},
	{"", "core.sovcloud-api.de", "https://login.sovcloud-identity.de"},
	{"", "core.sovcloud-api.sg", "https://login.sovcloud-identity.sg"},
	{"", "core.microsoft.scloud", ""},
	{"", "core.eaglex.ic.gov", ""},
}

// cloudNamed returns the facts of a cloud that has a name; public for an empty name.
func cloudNamed(name Cloud) (cloudFacts, error) {
	if name == "" {
		name = PublicCloud
	}
	for _, c := range clouds {
		if c.name == name {
			return c, nil
		}
	}
	return cloudFacts{}, errors.New("the cloud must be one of public, china, usgovernment")
}

// cloudOf returns the cloud that a service URL belongs to. ok is false for a domain of nobody's cloud, such as that of
// an emulator or of a user's own, and for those of DNS zones, which do not tell.
func cloudOf(endpoint string) (c cloudFacts, ok bool) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return c, false
	}
	for _, c := range clouds {
		if strings.HasSuffix(strings.ToLower(u.Hostname()), ".blob."+c.suffix) {
			return c, true
		}
	}
	return c, false
}

// authority is the identity service that tokens are asked of.
type authority struct {
	host string // URL without a slash at its end
	// known is false for a service that is none of Microsoft's clouds. It is used as it is: the question whether it is
	// genuine, which azidentity would ask of the public cloud, has no answer there ("disconnected clouds, or private
	// clouds such as Azure Stack", azidentity's DisableInstanceDiscovery).
	known bool
}

// cleanAuthority checks the URL of an identity service. The scheme may be left out.
func cleanAuthority(text string) (string, error) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", errors.New("must be a URL such as https://login.microsoftonline.com")
	}
	u.Host = strings.ToLower(u.Host)
	return strings.TrimRight(u.String(), "/"), nil
}

// authority returns where tokens for an endpoint are to be had: what flags say, then the environment, then the cloud that
// the endpoint belongs to, then the public cloud.
func (f *finder) authority(endpoint string) (authority, error) {
	v, named := f.first(AuthorityHost)
	if named && (v.place == given || f.Cloud == "") {
		host := f.take(v).secret.Reveal()
		for _, c := range clouds {
			if c.authority == host {
				return authority{host, true}, nil
			}
		}
		return authority{host, false}, nil
	}
	c, err := cloudNamed(f.Cloud)
	if err != nil {
		return authority{}, err
	}
	if of, ok := cloudOf(endpoint); ok && f.Cloud == "" {
		c = of
	}
	if c.authority == "" {
		return authority{}, fmt.Errorf("the identity service of cloud %s is not known: name it by --authority-host or AZURE_AUTHORITY_HOST", c.suffix)
	}
	return authority{c.authority, true}, nil
}

// checkCloud refuses an endpoint that belongs to another cloud than the one that was asked for.
func (f *finder) checkCloud(endpoint string) error {
	if of, ok := cloudOf(endpoint); ok && f.Cloud != "" && of.name != f.Cloud {
		return fmt.Errorf("endpoint %s is not in the cloud that --cloud=%s names: remove one", endpoint, f.Cloud)
	}
	return nil
}
