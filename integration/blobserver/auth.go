package blobserver

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// authorize decides whether a request may do what it asks.
func (s *Server) authorize(q *request) error {
	header := q.r.Header.Get("Authorization")
	scheme, credential, _ := strings.Cut(header, " ")
	switch {
	case header == "" && q.query.Get("sig") != "":
		return s.checkSAS(q)
	case header == "":
		if s.opts.Anonymous && q.op.reads {
			return nil
		}
		return blobtest.Err("NoAuthenticationInformation")
	case scheme == "SharedKey":
		return s.checkSharedKey(q, credential)
	case scheme == "Bearer" && s.opts.Bearer != nil && credential != "":
		return s.checkBearer(credential)
	}
	return blobtest.Err("AuthenticationFailed")
}

// checkBearer answers for a token that is not good as the service does: 401, where a bad signature gets 403.
func (s *Server) checkBearer(token string) error {
	err := s.opts.Bearer(token)
	if err == nil || errors.As(err, new(*blob.Error)) {
		return err
	}
	e := blobtest.Err("InvalidAuthenticationInfo")
	e.Err = err
	return e
}

// challenge tells a client without a good token where to get one, in the form of the service: "Authorize with
// Microsoft Entra ID".
func (s *Server) challenge(h http.Header) {
	if s.opts.Authority != "" {
		h.Set("WWW-Authenticate", "Bearer authorization_uri="+s.opts.Authority+"/oauth2/authorize resource_id=https://storage.azure.com")
	}
}

// SetKeys replaces the keys (base64) of the account: from now on requests and SAS tokens signed with any of them are
// accepted, and no others. An account of the service has two keys, so that one can be replaced while the other is in use.
func (s *Server) SetKeys(keys ...string) error {
	var all [][]byte
	for _, k := range keys {
		key, err := base64.StdEncoding.DecodeString(k)
		if err != nil || len(key) == 0 {
			return errors.New("blobserver: a key is base64")
		}
		all = append(all, key)
	}
	s.keys.Store(&all)
	return nil
}

// signedBy reports whether a signature of a text is by one of the account's keys.
func (s *Server) signedBy(signature, text string) bool {
	return slices.ContainsFunc(*s.keys.Load(), func(key []byte) bool {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return hmac.Equal([]byte(signature), []byte(base64.StdEncoding.EncodeToString(h.Sum(nil))))
	})
}

// maxClockSkew is how old a signed request may be ("Authorize with Shared Key": 15 minutes).
const maxClockSkew = 15 * time.Minute

// checkSharedKey follows "Authorize with Shared Key", version 2015-02-21 and later.
func (s *Server) checkSharedKey(q *request, credential string) error {
	account, signature, _ := strings.Cut(credential, ":")
	h := q.r.Header
	date, err := http.ParseTime(h.Get("x-ms-date"))
	if err != nil || s.opts.Clock.Now().Sub(date).Abs() > maxClockSkew {
		return blobtest.Err("AuthenticationFailed")
	}
	length := ""
	if q.r.ContentLength > 0 {
		length = strconv.FormatInt(q.r.ContentLength, 10)
	}
	text := strings.Join([]string{
		q.r.Method, h.Get("Content-Encoding"), h.Get("Content-Language"), length, h.Get("Content-MD5"),
		h.Get("Content-Type"), "", // Date: x-ms-date is required above
		h.Get("If-Modified-Since"), h.Get("If-Match"), h.Get("If-None-Match"), h.Get("If-Unmodified-Since"),
		h.Get("Range"), canonicalHeaders(h) + s.canonicalResource(q),
	}, "\n")
	if account != s.opts.Account || !s.signedBy(signature, text) {
		return blobtest.Err("AuthenticationFailed")
	}
	return nil
}

// canonicalHeaders lists the x-ms- headers in the order that the service sorts them in: hyphens do not count, and
// the underscore comes before digits and those before letters. Bytes would sort the underscore of a metadata name
// after the digits.
func canonicalHeaders(h http.Header) string {
	type field struct{ order, name, value string }
	var fields []field
	for name, values := range h {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-ms-") {
			order := strings.NewReplacer("-", "", "_", "!").Replace(name)
			fields = append(fields, field{order, name, strings.Join(values, ",")})
		}
	}
	slices.SortFunc(fields, func(a, b field) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.name, b.name))
	})
	var text strings.Builder
	for _, f := range fields {
		text.WriteString(f.name + ":" + f.value + "\n")
	}
	return text.String()
}

func (s *Server) canonicalResource(q *request) string {
	text := "/" + s.opts.Account + q.r.URL.EscapedPath()
	for _, name := range sortedKeys(q.query) {
		values := slices.Sorted(slices.Values(q.query[name]))
		text += "\n" + strings.ToLower(name) + ":" + strings.Join(values, ",")
	}
	return text
}

func sortedKeys(v url.Values) []string {
	keys := make([]string, 0, len(v))
	for k := range v {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// checkSAS follows "Create an account SAS" and "Create a service SAS", version 2020-12-06 and later. A user
// delegation SAS is refused: there is no directory that could have issued it.
func (s *Server) checkSAS(q *request) error {
	g := q.query.Get
	var text string
	if g("ss") != "" {
		text = strings.Join([]string{
			s.opts.Account, g("sp"), g("ss"), g("srt"), g("st"), g("se"), g("sip"), g("spr"), g("sv"), g("ses"), "",
		}, "\n")
	} else {
		resource := "/blob/" + s.opts.Account + "/" + q.container
		if g("sr") == "b" {
			resource += "/" + strings.ReplaceAll(q.blob, `\`, "/")
		}
		text = strings.Join([]string{
			g("sp"), g("st"), g("se"), resource, g("si"), g("sip"), g("spr"), g("sv"), g("sr"), g("snapshot"), g("ses"),
			g("rscc"), g("rscd"), g("rsce"), g("rscl"), g("rsct"),
		}, "\n")
	}
	if !s.signedBy(g("sig"), text) || g("sv") < "2020-12-06" {
		return blobtest.Err("AuthenticationFailed")
	}
	now := s.opts.Clock.Now()
	if end, err := sasTime(g("se")); err != nil || !now.Before(end) {
		return blobtest.Err("AuthenticationFailed")
	}
	if g("st") != "" {
		if start, err := sasTime(g("st")); err != nil || now.Before(start) {
			return blobtest.Err("AuthenticationFailed")
		}
	}
	if spr := g("spr"); spr != "" && !slices.Contains(strings.Split(spr, ","), s.scheme()) {
		return blobtest.Err("AuthorizationFailure") // signed for https only
	}
	kind := "o" // object, container or service
	switch {
	case q.container == "":
		kind = "s"
	case q.blob == "":
		kind = "c"
	}
	if g("ss") != "" && (!strings.Contains(g("ss"), "b") || !strings.Contains(g("srt"), kind)) {
		return blobtest.Err("AuthorizationFailure")
	}
	if !strings.ContainsAny(g("sp"), q.op.permission) {
		return blobtest.Err("AuthorizationPermissionMismatch")
	}
	return nil
}

// sasTime parses the formats of "Specify the signature validity interval".
func sasTime(text string) (time.Time, error) {
	var t time.Time
	var err error
	for _, format := range []string{time.RFC3339Nano, "2006-01-02T15:04Z", time.DateOnly} {
		if t, err = time.Parse(format, text); err == nil {
			return t, nil
		}
	}
	return t, err
}
