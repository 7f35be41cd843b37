package identity

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ManagedIdentity is an identity of the host that the program runs on.
type ManagedIdentity struct {
	ClientID, ObjectID, ResourceID string
}

// System is the system-assigned identity, which is taken when a request names none.
var System = ManagedIdentity{ClientID: "0a1b6f3c-77b2-4f5f-93a4-2f6d3b0f9d01", ObjectID: "7d2b54b7-5c55-41a5-a0a5-70b2f3a7c402"}

// Assign gives the host a user-assigned identity.
func (s *Server) Assign(i ManagedIdentity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assigned = append(s.assigned, i)
}

// Paths of the hosts' endpoints. That of IMDS is the one of the real service.
const (
	appServicePath = "/msi/token"
	azureMLPath    = "/azureml/msi/token"
	imdsPath       = "/metadata/identity/oauth2/token"
	arcPath        = "/arc/metadata/identity/oauth2/token"
)

// arcTokens is where the agent of Azure Arc writes challenge files; a client refuses any other place.
const arcTokens = "/var/opt/azcmagent/tokens"

// ManagedURL is the address of the managed-identity endpoints, http and without a slash at the end. IMDS has its own path
// there, so that it can be AZURE_POD_IDENTITY_AUTHORITY_HOST.
func (s *Server) ManagedURL() string { return "http://" + s.managed }

// AppServiceEnv returns the environment of a process in App Service.
func (s *Server) AppServiceEnv() []string {
	return []string{"IDENTITY_ENDPOINT=" + s.ManagedURL() + appServicePath, "IDENTITY_HEADER=" + s.header}
}

// AzureMLEnv returns the environment of a job on a compute of Azure Machine Learning.
func (s *Server) AzureMLEnv() []string {
	return []string{"MSI_ENDPOINT=" + s.ManagedURL() + azureMLPath, "MSI_SECRET=" + s.header}
}

// ArcEnv returns the environment of a process on a machine with the agent of Azure Arc, whose challenge files are written
// into dir. The client must see dir at /var/opt/azcmagent/tokens.
func (s *Server) ArcEnv(dir string) []string {
	s.mu.Lock()
	s.arc = dir
	s.mu.Unlock()
	return []string{"IDENTITY_ENDPOINT=" + s.ManagedURL() + arcPath, "IMDS_ENDPOINT=" + s.ManagedURL()}
}

// host is one kind of managed-identity endpoint.
type host struct {
	path Path
	// version is the api-version that clients ask for.
	version string
	// selectors are the parameters that name an identity by client id, object id and resource id; empty where it cannot.
	client, object, resource string
	// admits answers a request that may not be made, and reports whether it may.
	admits func(*Server, http.ResponseWriter, *http.Request) bool
	// echoes: the answer repeats the selector, without which a client would not believe it.
	echoes bool
}

var (
	appServiceHost = &host{path: AppService, version: "2019-08-01", client: "client_id", object: "object_id", resource: "mi_res_id",
		admits: wantsHeader("X-IDENTITY-HEADER")}
	azureMLHost = &host{path: AzureML, version: "2017-09-01", client: "clientid", admits: wantsHeader("secret")}
	imdsHost    = &host{path: IMDS, version: "2018-02-01", client: "client_id", object: "object_id", resource: "msi_res_id",
		admits: wantsMetadata}
	arcHost = &host{path: Arc, version: "2020-06-01", client: "client_id", object: "object_id", resource: "msi_res_id",
		admits: (*Server).challengeArc, echoes: true}
)

// hosts serves the managed-identity endpoints, and the proxy.
func (s *Server) hosts() http.Handler {
	mux := http.NewServeMux()
	for path, h := range map[string]*host{appServicePath: appServiceHost, azureMLPath: azureMLHost, imdsPath: imdsHost, arcPath: arcHost} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { s.managedToken(h, w, r) })
	}
	return s.proxy(mux)
}

func (s *Server) managedToken(h *host, w http.ResponseWriter, r *http.Request) {
	refused := s.admit(r, h.path)
	if !h.admits(s, w, r) {
		return
	}
	q := r.URL.Query()
	identity, found := s.find(h, q)
	switch {
	case refused != nil:
		refuseManaged(w, refused.Status, refused.Error, fmt.Sprintf("AADSTS%d: %s", refused.Code, refused.Text))
		return
	case q.Get("api-version") != h.version:
		refuseManaged(w, http.StatusBadRequest, "invalid_request", "The api-version is not supported.")
		return
	case q.Get("resource") == "":
		refuseManaged(w, http.StatusBadRequest, "invalid_request", "Required query variable 'resource' is missing")
		return
	case !found:
		refuseManaged(w, http.StatusBadRequest, "invalid_request", "Identity not found")
		return
	}
	g, err := s.grant(identity.ClientID, identity.ObjectID, q.Get("resource"))
	if err != nil {
		refuseManaged(w, http.StatusInternalServerError, "server_error", err.Error())
		return
	}
	body := map[string]any{
		"token_type": "Bearer", "access_token": g.token, "resource": q.Get("resource"), "client_id": identity.ClientID,
		"expires_on": strconv.FormatInt(g.expires.Unix(), 10), // text everywhere
	}
	if h.echoes {
		for _, name := range []string{h.client, h.object, h.resource} {
			if value := q.Get(name); value != "" {
				body[name] = value
			}
		}
	}
	answer(w, http.StatusOK, body)
}

// find returns the identity that a request asks for. A parameter that the host does not know does not count, as with the
// real ones.
func (s *Server) find(h *host, q url.Values) (ManagedIdentity, bool) {
	get := func(name string) string {
		if name == "" {
			return ""
		}
		return q.Get(name)
	}
	client, object, resource := get(h.client), get(h.object), get(h.resource)
	if client == "" && object == "" && resource == "" {
		return System, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.assigned, func(m ManagedIdentity) bool {
		return (client == "" || strings.EqualFold(client, m.ClientID)) && (object == "" || strings.EqualFold(object, m.ObjectID)) &&
			(resource == "" || strings.EqualFold(resource, m.ResourceID))
	})
	if i < 0 {
		return ManagedIdentity{}, false
	}
	return s.assigned[i], true
}

// wantsHeader admits those who know the value that the host put into the environment.
func wantsHeader(name string) func(*Server, http.ResponseWriter, *http.Request) bool {
	return func(s *Server, w http.ResponseWriter, r *http.Request) bool {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get(name)), []byte(s.header)) == 1 {
			return true
		}
		refuseManaged(w, http.StatusUnauthorized, "unauthorized", "The header "+name+" is missing or wrong.")
		return false
	}
}

// wantsMetadata admits those who can set a header, and did not come through somebody else's server.
func wantsMetadata(_ *Server, w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Metadata") == "true" && r.Header.Get("X-Forwarded-For") == "" {
		return true
	}
	refuseManaged(w, http.StatusBadRequest, "invalid_request", "Required metadata header not specified")
	return false
}

// challengeArc admits those who can read what was written into a file that only members of a group may read: the first
// request is answered with its path.
func (s *Server) challengeArc(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Metadata") != "true" {
		return wantsMetadata(s, w, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Basic "); ok {
		if name, known := s.arcKeys[key]; known {
			delete(s.arcKeys, key)
			_ = os.Remove(name) // the test's directory may be gone
			return true
		}
	}
	key, name := text(random(32)), text(random(8))+".key"
	file := filepath.Join(s.arc, name)
	if err := os.WriteFile(file, []byte(key), 0o440); err != nil {
		refuseManaged(w, http.StatusInternalServerError, "server_error", "The challenge cannot be written.")
		return false
	}
	s.arcKeys[key], s.secrets[key] = file, true
	w.Header().Set("WWW-Authenticate", "Basic realm="+filepath.Join(arcTokens, name))
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

func refuseManaged(w http.ResponseWriter, status int, code, text string) {
	answer(w, status, map[string]any{"error": code, "error_description": text})
}
