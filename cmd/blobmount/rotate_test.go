package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"blobmount/auth"
	"blobmount/cmd/source"
)

// A credential that works is not replaced by one that may do less, whatever the service calls it. What the mount could not
// do before it need not be able to do after.
func TestTryCredential(t *testing.T) {
	// Answers by signature: a code, or nothing for success.
	codes := map[string]string{}
	for _, code := range []string{"AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch", "AuthorizationResourceTypeMismatch",
		"AuthorizationSourceIPMismatch", "AuthorizationProtocolMismatch", "AuthorizationServiceMismatch", "KeyBasedAuthenticationNotPermitted",
		"InsufficientAccountPermissions", "ServerBusy", "ContainerNotFound"} {
		codes[code] = code
	}
	status := map[string]int{"ServerBusy": 503, "ContainerNotFound": 404}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("prefix"); got != "dir/" {
			t.Errorf("prefix %q", got)
		}
		if code := codes[r.URL.Query().Get("sig")]; code != "" {
			w.Header().Set("x-ms-error-code", code)
			w.Header().Set("x-ms-request-id", "r")
			if status[code] != 0 {
				w.WriteHeader(status[code])
			} else {
				w.WriteHeader(http.StatusForbidden)
			}
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>`)
	}))
	defer s.Close()
	sas := func(query string) auth.Found {
		return auth.Found{Account: "acct1", Endpoint: s.URL + "/acct1", SAS: auth.NewSecret(query), HasSAS: true, Origin: "SAS token from secret file /s/sas_token"}
	}
	const all = "sp=rwdl&sig="
	for _, test := range []struct {
		candidate, used string
		readOnly        bool
		want            auth.Verdict
		why             string
	}{
		{all + "good", all + "old", false, auth.Accepted, ""},
		{all + "ContainerNotFound", all + "old", false, auth.Accepted, ""},
		{all + "ServerBusy", all + "old", false, auth.Unknown, ""},
		{all + "AuthenticationFailed", all + "old", false, auth.Refused, ""},
		{all + "AuthorizationFailure", all + "old", false, auth.Refused, ""},
		{all + "AuthorizationFailure", all + "AuthorizationFailure", false, auth.Refused, ""},
		{all + "AuthorizationSourceIPMismatch", all + "AuthorizationSourceIPMismatch", false, auth.Refused, ""},
		{all + "AuthorizationProtocolMismatch", all + "old", false, auth.Refused, ""},
		{all + "AuthorizationServiceMismatch", all + "old", false, auth.Refused, ""},
		{all + "KeyBasedAuthenticationNotPermitted", all + "old", false, auth.Refused, ""},
		{all + "InsufficientAccountPermissions", all + "old", false, auth.Refused, ""},
		{all + "AuthorizationPermissionMismatch", all + "old", false, auth.Refused, "may not list"},
		{all + "AuthorizationPermissionMismatch", all + "AuthorizationPermissionMismatch", false, auth.Accepted, ""},
		{all + "AuthorizationPermissionMismatch", all + "AuthorizationResourceTypeMismatch", false, auth.Refused, "may not list"},
		{all + "AuthorizationResourceTypeMismatch", all + "AuthorizationResourceTypeMismatch", false, auth.Accepted, ""},
		{all + "AuthorizationPermissionMismatch", all + "ServerBusy", false, auth.Unknown, ""},
		{"sp=rl&sig=good", all + "old", false, auth.Refused, "lacks the permissions wd (sp=rl)"},
		{"sp=rl&sig=good", "sp=rl&sig=old", false, auth.Accepted, ""},
		{"sp=rl&sig=good", "sp=rwl&sig=old", false, auth.Refused, "lacks the permissions w "},
		{"sp=d&sig=good", "sp=rwd&sig=old", false, auth.Refused, "lacks the permissions rw "},
		{"sp=rl&sig=good", all + "old", true, auth.Accepted, ""},
		{"si=policy&sig=good", all + "old", false, auth.Accepted, ""},
	} {
		r := &rotation{src: source.Source{Container: "data", Prefix: "dir/"}, readOnly: test.readOnly}
		var err error
		if r.container, err = openContainer(sas(test.used), "data", -1, nil, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		got, why := r.try(t.Context(), sas(test.candidate), sas(test.used))
		r.container.Close()
		if got != test.want || !strings.Contains(why, test.why) || (why == "") != (test.why == "") || strings.Contains(why, "sig=") {
			t.Errorf("%s in place of %s: verdict %d, %q", test.candidate, test.used, got, why)
		}
	}
}
