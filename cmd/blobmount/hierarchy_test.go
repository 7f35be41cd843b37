package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"blobmount/auth"
	"blobmount/blobcache/blob"
)

// Without a check nothing is asked before the answer is needed; then it is asked until there is one, and not again.
func TestAsksLateForHierarchy(t *testing.T) {
	const busy, refused = "ServerBusy", "AuthorizationPermissionMismatch"
	for _, test := range []struct {
		name    string
		late    bool
		answers []string // in turn: a code, or whether the account has a hierarchical namespace
		begin   int64    // requests before anything is needed
		settle  []bool   // whether each call finds it out
		renamer bool
		logged  string
	}{
		{"late", true, []string{"true"}, 0, []bool{true, true}, true, "INFO"},
		{"late and flat", true, []string{"false"}, 0, []bool{true, true}, false, ""},
		{"late and away", true, []string{busy, busy, "true"}, 0, []bool{false, false, true, true}, true, "INFO"},
		{"late and not known", true, []string{"InvalidQueryParameterValue"}, 0, []bool{true, true}, false, "WARN"},
		{"late and not allowed", true, []string{refused}, 0, []bool{true, true}, false, "WARN"},
		{"at once", false, []string{"true"}, 1, []bool{true, true}, true, "INFO"},
		{"at once and away", false, []string{busy, "true"}, 1, []bool{true}, true, "WARN"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var requests atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := int(requests.Add(1))
				if n > len(test.answers) {
					t.Error("asked again after an answer")
					n = len(test.answers)
				}
				switch a := test.answers[n-1]; a {
				case "true", "false":
					w.Header().Set("x-ms-is-hns-enabled", a)
				case busy:
					w.Header().Set("x-ms-error-code", a)
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
					w.Header().Set("x-ms-error-code", a)
					w.WriteHeader(http.StatusForbidden)
				}
			}))
			defer s.Close()
			var text strings.Builder
			found := auth.Found{Account: "acct1", Endpoint: s.URL + "/acct1"}
			c, err := openContainer(found, "data", -1, nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			cont := blob.Sub(withHierarchy(t.Context(), c, test.late, slog.New(slog.NewTextHandler(&text, nil))), "dir/")
			if blob.Prefix(cont) != "dir/" {
				t.Errorf("prefix %q", blob.Prefix(cont))
			}
			if n := requests.Load(); n != test.begin {
				t.Errorf("%d requests at the beginning, want %d", n, test.begin)
			}
			for i, want := range test.settle {
				if err := blob.SettleRenamer(t.Context(), cont); (err == nil) != want {
					t.Errorf("call %d: %v", i+1, err)
				}
			}
			if _, ok := blob.AsRenamer(cont); ok != test.renamer || requests.Load() != int64(len(test.answers)) {
				t.Errorf("renamer: %v, after %d requests", ok, requests.Load())
			}
			if !strings.Contains(text.String(), test.logged) {
				t.Errorf("log: %s", &text)
			}
		})
	}
}
