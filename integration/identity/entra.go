package identity

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// publicHost is the authority host of the public cloud.
const publicHost = "login.microsoftonline.com"

// application is what a client may prove itself with. Its object id is made of its client id.
type application struct {
	secrets      []string
	certificates []*x509.Certificate
	trusts       []trust
}

// app returns the application of a client id. The caller holds mu.
func (s *Server) app(client string) *application {
	a := s.apps[client]
	if a == nil {
		a = &application{}
		s.apps[client] = a
	}
	return a
}

// AddSecret lets a client prove itself by a secret, beside the ones that it has.
func (s *Server) AddSecret(client, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.app(client)
	a.secrets = append(a.secrets, secret)
	s.secrets[secret] = true
}

// RemoveSecret ends what AddSecret began. Tokens that were given out hold on.
func (s *Server) RemoveSecret(client, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.app(client)
	a.secrets = slices.DeleteFunc(a.secrets, func(x string) bool { return x == secret })
}

// AddCertificate lets a client prove itself by assertions that were signed with the key of a certificate.
func (s *Server) AddCertificate(client string, c *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.app(client)
	a.certificates = append(a.certificates, c)
}

// RemoveCertificate ends what AddCertificate began. Tokens that were given out hold on.
func (s *Server) RemoveCertificate(client string, c *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.app(client)
	a.certificates = slices.DeleteFunc(a.certificates, c.Equal)
}

// entra serves the endpoints of an authority host.
func (s *Server) entra() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /common/discovery/instance", s.instance)
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", s.openID)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", s.token)
	return mux
}

// instance answers instance discovery, by which a client asks the public cloud whether an authority host is one. It knows
// itself only: a loopback address is nobody's authority there.
func (s *Server) instance(w http.ResponseWriter, r *http.Request) {
	s.count(Instance)
	endpoint, err := url.Parse(r.URL.Query().Get("authorization_endpoint"))
	if err != nil || endpoint.Host != publicHost {
		refuse(w, Refusal{http.StatusBadRequest, "invalid_instance", 50049, "Unknown or invalid instance."})
		return
	}
	tenant, _, _ := strings.Cut(strings.TrimPrefix(endpoint.Path, "/"), "/")
	answer(w, http.StatusOK, map[string]any{
		"tenant_discovery_endpoint": "https://" + publicHost + "/" + tenant + "/v2.0/.well-known/openid-configuration",
		"api-version":               "1.1",
		"metadata":                  []map[string]any{{"preferred_network": publicHost, "preferred_cache": publicHost, "aliases": []string{publicHost}}},
	})
}

func (s *Server) openID(w http.ResponseWriter, r *http.Request) {
	s.count(OpenID)
	if !knownTenant(w, r) {
		return
	}
	base := "https://" + r.Host + "/" + Tenant
	answer(w, http.StatusOK, map[string]any{
		"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token", "authorization_endpoint": base + "/oauth2/v2.0/authorize",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt"},
	})
}

func knownTenant(w http.ResponseWriter, r *http.Request) bool {
	tenant := r.PathValue("tenant")
	if tenant == Tenant {
		return true
	}
	refuse(w, Refusal{http.StatusBadRequest, "invalid_tenant", 90002,
		fmt.Sprintf("Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", tenant)})
	return false
}

// token is the token endpoint: "Microsoft identity platform and the OAuth 2.0 client credentials flow".
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		refuse(w, Refusal{http.StatusBadRequest, "invalid_request", 900144, "The request body is not a form."})
		return
	}
	proof := s.proof(r)
	if refused := s.admit(r, proof.path); refused != nil {
		refuse(w, *refused)
		return
	}
	if !knownTenant(w, r) {
		return
	}
	if refused := s.judge(r, proof); refused != nil {
		refuse(w, *refused)
		return
	}
	client := r.PostForm.Get("client_id")
	g, err := s.grant(client, objectOf(client), audience(r.PostForm.Get("scope")))
	if err != nil {
		refuse(w, Refusal{http.StatusInternalServerError, "server_error", 90033, err.Error()})
		return
	}
	seconds := int(g.stated / time.Second)
	answer(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": g.token})
}

// objectOf returns the object id of the service principal of an application.
func objectOf(client string) string { return "object-of-" + client }

// audience returns the resource of a scope: https://storage.azure.com/.default, among those of OpenID Connect.
func audience(scope string) string {
	for s := range strings.FieldsSeq(scope) {
		if resource, ok := strings.CutSuffix(s, "/.default"); ok {
			return resource
		}
	}
	return ""
}

// proof is what a client proves itself with.
type proof struct {
	path              Path
	secret, assertion string
}

// proof reads it. An assertion whose header names a certificate is signed by the client itself, any other one by
// somebody whom the client's registration trusts.
func (s *Server) proof(r *http.Request) proof {
	p := proof{ClientSecret, r.PostForm.Get("client_secret"), r.PostForm.Get("client_assertion")}
	switch {
	case p.assertion == "":
		if p.secret != "" {
			s.keep(p.secret)
		}
	case thumbprint(p.assertion) != "":
		p.path = ClientCertificate
		s.keep(p.assertion)
	default:
		p.path = Federated
		s.keep(p.assertion)
	}
	return p
}

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// judge returns why a client gets no token, nil if it does.
func (s *Server) judge(r *http.Request, p proof) *Refusal {
	form, client := r.PostForm, r.PostForm.Get("client_id")
	switch {
	case form.Get("grant_type") != "client_credentials":
		return &Refusal{http.StatusBadRequest, "unsupported_grant_type", 70003, "The app requested an unsupported grant type."}
	case !strings.HasPrefix(audience(form.Get("scope")), "https://"):
		return &Refusal{http.StatusBadRequest, "invalid_scope", 1002012, "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier."}
	case p.assertion != "" && form.Get("client_assertion_type") != assertionType:
		return &Refusal{http.StatusBadRequest, "invalid_request", 900144, "The request body must contain the parameter client_assertion_type."}
	}
	s.mu.Lock()
	a, known := s.apps[client]
	var registered application
	if known {
		registered = application{slices.Clone(a.secrets), slices.Clone(a.certificates), slices.Clone(a.trusts)}
	}
	s.mu.Unlock()
	if !known {
		return &Refusal{http.StatusBadRequest, "unauthorized_client", 700016, fmt.Sprintf("Application with identifier '%s' was not found in the directory.", client)}
	}
	switch {
	case p.path == ClientCertificate:
		return registered.checkCertificate(p.assertion, client, "https://"+r.Host+r.URL.Path)
	case p.path == Federated:
		return registered.checkFederated(p.assertion)
	case p.secret == "":
		return &Refusal{http.StatusUnauthorized, "invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."}
	case !slices.Contains(registered.secrets, p.secret):
		return &Refusal{http.StatusUnauthorized, "invalid_client", 7000215, fmt.Sprintf("Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", client)}
	}
	return nil
}

// refuse answers as Entra does.
func refuse(w http.ResponseWriter, r Refusal) {
	trace := text(random(16))
	answer(w, r.Status, map[string]any{
		"error":             r.Error,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Timestamp: %s", r.Code, r.Text, trace, time.Now().UTC().Format("2006-01-02 15:04:05Z")),
		"error_codes":       []int{r.Code},
		"trace_id":          trace,
	})
}
