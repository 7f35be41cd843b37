package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"blobmount/auth"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
)

// What a failed check means, in one line that says what to do. Codes of the service are those of the REST reference:
// "Common REST API error codes", "Shared access signature error codes", "Blob Storage error codes".

// The roles that a mount needs (Microsoft Learn, "Azure built-in roles for Storage").
const (
	readerRole      = "Storage Blob Data Reader"
	contributorRole = "Storage Blob Data Contributor"
)

// maxSkew is how far the clock of a request with an account key may be from that of the service ("Authorize with Shared
// Key": 15 minutes).
const maxSkew = 15 * time.Minute

// explain says what is wrong: what is the verb of what was tried, such as "list".
func (v *validation) explain(what string, err error) string {
	if token := new(auth.TokenError); errors.As(err, &token) {
		switch {
		case token.Rejected:
			return fmt.Sprintf("%v: %s (the log has the whole answer)", token, token.Advice)
		case token.Temporary():
			return fmt.Sprintf("%v: check --authority-host, the network and the proxy, or use --skip-validation", token)
		case token.Reason != "":
			return token.Error()
		}
		return fmt.Sprintf("no usable credential was found: set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, "+
			"use --secret-dir, or --anonymous for public access (%v; the log has the reasons)", token)
	}
	var e *blob.Error
	if !errors.As(err, &e) {
		e = &blob.Error{}
	}
	if e.Status == 0 && (e.Code == blob.Unavailable || e.Code == blob.Other) {
		return v.unreached(what, err)
	}
	if e.ServiceCode == "" && e.RequestID == "" {
		return fmt.Sprintf("%s answered with status %d, and not as a blob service does: check --endpoint, and whether a proxy or gateway answers instead "+
			"(HTTPS_PROXY, NO_PROXY)", v.host(), e.Status)
	}
	if text := v.byCode(what, e); text != "" {
		return text
	}
	switch e.Code {
	case blob.ContainerNotFound, blob.NotFound:
		return fmt.Sprintf("there is no %s%s: check the names of container and account, or use --create-container", v.where(), code(e))
	case blob.Unauthenticated:
		return v.unauthenticated(e)
	case blob.Forbidden:
		return v.forbidden(what, e)
	case blob.Throttled, blob.Unavailable:
		return fmt.Sprintf("cannot %s %s: the service answers %s, status %d: try again later, or use --skip-validation", what, v.where(), e.ServiceCode, e.Status)
	}
	return fmt.Sprintf("cannot %s %s: %s", what, v.where(), oneLine(err.Error()))
}

func (v *validation) host() string { return hostOf(v.found.Endpoint) }

func (v *validation) where() string {
	return fmt.Sprintf("container %s of %s", v.src.Container, v.found.Endpoint)
}

// code is the service's own word for it, for those who look for help.
func code(e *blob.Error) string {
	if e.ServiceCode == "" {
		return ""
	}
	return " (" + e.ServiceCode + ")"
}

// byCode explains the codes that say more than their class; empty for others.
func (v *validation) byCode(what string, e *blob.Error) string {
	sas := readSAS(v.found.SAS.Reveal())
	switch e.ServiceCode {
	case "AccountIsDisabled":
		return fmt.Sprintf("account %s is disabled%s: see the portal of Azure for the reason", v.found.Account, code(e))
	case "ContainerBeingDeleted":
		return fmt.Sprintf("container %s is being deleted%s: wait a minute, or use another name", v.src.Container, code(e))
	case "KeyBasedAuthenticationNotPermitted":
		return fmt.Sprintf("account %s does not allow access by keys%s, which the %s is or was made with: use an identity with the role %s, or a user delegation SAS",
			v.found.Account, code(e), v.found.Origin, v.role())
	case "InsufficientAccountPermissions":
		return fmt.Sprintf("account %s does not allow to %s %s now%s, whoever asks", v.found.Account, what, v.where(), code(e))
	case "AuthorizationSourceIPMismatch":
		return fmt.Sprintf("the %s does not allow the address of this machine%s%s: sign for other addresses, or mount from one of those",
			v.found.Origin, sas.field("sip"), code(e))
	case "AuthorizationProtocolMismatch":
		return fmt.Sprintf("the %s is for https only%s, and the endpoint is %s", v.found.Origin, code(e), v.found.Endpoint)
	case "AuthorizationServiceMismatch":
		return fmt.Sprintf("the %s is not for blobs%s%s: sign with b among the services (ss)", v.found.Origin, sas.field("ss"), code(e))
	case "AuthorizationResourceTypeMismatch":
		return fmt.Sprintf("the %s is not for containers and their blobs%s%s: sign with c and o among the resource types (srt)", v.found.Origin, sas.field("srt"), code(e))
	}
	return ""
}

func (v *validation) unauthenticated(e *blob.Error) string {
	if v.anonymous() {
		return fmt.Sprintf("%s is not open to anonymous access%s: give a credential instead of --anonymous", v.where(), code(e))
	}
	refused := fmt.Sprintf("%s did not accept the %s%s", v.host(), v.found.Origin, code(e))
	service := e.Date
	if service.IsZero() {
		service = v.now()
	}
	switch ahead := v.now().Sub(service); {
	case v.found.SharedKey != nil && ahead.Abs() >= maxSkew-time.Minute:
		word := "ahead of"
		if ahead < 0 {
			word = "behind"
		}
		return fmt.Sprintf("%s: the clock of this machine is %s %s that of the service, which takes no more than %s: set it", refused,
			durationText(ahead.Abs().Round(time.Second)), word, durationText(maxSkew))
	case v.found.HasSAS:
		return refused + ": " + readSAS(v.found.SAS.Reveal()).whyRefused(service)
	case v.found.Token != nil:
		return fmt.Sprintf("%s: the account may belong to another tenant than the identity, or to another cloud (--cloud, --authority-host)", refused)
	}
	return fmt.Sprintf("%s: check that it is a key of account %q, and was not replaced by a new one", refused, v.found.Account)
}

func (v *validation) forbidden(what string, e *blob.Error) string {
	if v.anonymous() {
		return fmt.Sprintf("%s is not open to anonymous listing%s: give a credential instead of --anonymous", v.where(), code(e))
	}
	may := fmt.Sprintf("the %s may not %s %s%s", v.found.Origin, what, v.where(), code(e))
	if v.found.SharedKey != nil && auth.PathStyle(v.found.Endpoint) {
		return may + ": the key is wrong, as emulators say it"
	}
	// Network rules answer AuthorizationFailure (Microsoft Learn, "Troubleshoot 403 in Azure Blob Storage").
	if e.ServiceCode == "AuthorizationFailure" || v.found.SharedKey != nil {
		return fmt.Sprintf("%s: the firewall of the account (its network rules) most likely does not let this machine in: add its address or network there, "+
			"or come through a private endpoint", may)
	}
	if v.found.Token != nil {
		return fmt.Sprintf("%s: give it the role %s on the container or the account; a new role takes up to 10 minutes", may, v.role())
	}
	if missing := readSAS(v.found.SAS.Reveal()).missing(v.readOnly); missing != "" {
		return v.lacks(missing)
	}
	return fmt.Sprintf("%s: its stored access policy needs the permissions %s", may, needed(v.readOnly))
}

// role is the least one that the mount needs.
func (v *validation) role() string {
	if v.readOnly {
		return readerRole
	}
	return contributorRole
}

// lacks says which permissions a SAS has not.
func (v *validation) lacks(missing string) string {
	text := fmt.Sprintf("the %s lacks the permissions %s%s", v.found.Origin, missing, readSAS(v.found.SAS.Reveal()).field("sp"))
	if strings.Trim(missing, writing) == "" {
		return text + ": sign with them, or use --read-only"
	}
	return text + ": sign with them"
}

// unreached says why there was no answer.
func (v *validation) unreached(what string, err error) string {
	host := v.host()
	var (
		op        *net.OpError
		dns       *net.DNSError
		refused   *azure.ProxyError
		unknown   x509.UnknownAuthorityError
		otherName x509.HostnameError
		invalid   x509.CertificateInvalidError
		header    tls.RecordHeaderError
		alert     tls.AlertError
		verify    *tls.CertificateVerificationError
	)
	const proxies = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
	switch {
	case errors.As(err, &refused):
		return fmt.Sprintf("cannot reach %s: %v: %s", host, refused, proxies)
	case errors.As(err, &op) && op.Op == "proxyconnect":
		return fmt.Sprintf("cannot reach the proxy for %s: %v: %s", host, op.Err, proxies)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("there is no host %s: check the account name %q, and --endpoint; a new account, or one with a private endpoint only, "+
			"must be known to the DNS of this machine", host, v.found.Account)
	case errors.As(err, &dns):
		return fmt.Sprintf("cannot look up %s: the DNS of this machine does not answer (%s): check /etc/resolv.conf and the network", host, dns.Err)
	case errors.As(err, &unknown):
		return fmt.Sprintf("the certificate of %s is signed by an authority that this machine does not trust: trust it by --ca-file FILE, if it is that of "+
			"your proxy or emulator", host)
	case errors.As(err, &otherName) && strings.Contains(host, ".privatelink."):
		return fmt.Sprintf("the certificate of %s is for the name without privatelink: use that, which your DNS leads to the private endpoint", host)
	case errors.As(err, &otherName):
		return fmt.Sprintf("the certificate of %s is for another name: check --endpoint", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the certificate of %s is not valid at this time: is the clock of this machine right? It says %s", host, v.now().UTC().Format(time.RFC3339))
	case errors.As(err, &verify):
		return fmt.Sprintf("the certificate of %s is not valid (%s): check --endpoint and --ca-file", host, oneLine(verify.Err.Error()))
	case errors.As(err, &header):
		return fmt.Sprintf("%s does not speak TLS: is it http:// instead of https://?", host)
	case errors.As(err, &alert):
		return fmt.Sprintf("%s refused the TLS connection (%v): a proxy or firewall may stand between", host, alert)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Sprintf("there is no route to %s: check the network of this machine (%s)", host, reachable(err))
	}
	if blob.CodeOf(err) == blob.Unavailable {
		return fmt.Sprintf("cannot reach %s: %s: check --endpoint, the network and the proxy, or use --skip-validation", host, reachable(err))
	}
	return fmt.Sprintf("cannot %s %s: %s", what, v.where(), oneLine(err.Error()))
}

// reachable is the shortest true reason why a service was not reached: the system's own error when there is one.
func reachable(err error) string {
	if op := new(net.OpError); errors.As(err, &op) {
		return op.Error()
	}
	return oneLine(err.Error())
}
