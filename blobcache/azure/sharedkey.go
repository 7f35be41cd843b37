package azure

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

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// SharedKey is an account with one of its keys. It never prints the key.
type SharedKey struct {
	account string
	mac     func(text string) string // the key is in here, where fmt does not see it
	sdk     *container.SharedKeyCredential
}

// NewSharedKey returns the key of an account, as the portal shows it, in base64. The error does not repeat it.
func NewSharedKey(account, key string) (*SharedKey, error) {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) == 0 {
		return nil, errors.New("the account key is not base64")
	}
	sdk, err := container.NewSharedKeyCredential(account, key)
	if err != nil {
		return nil, errors.New("the account key is not base64")
	}
	mac := func(text string) string {
		h := hmac.New(sha256.New, raw)
		h.Write([]byte(text))
		return base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
	return &SharedKey{account, mac, sdk}, nil
}

// sign signs a request, as "Authorize with Shared Key" says, version 2015-02-21 and later. The SDK has this too, but only
// for a client that keeps one key for its life.
func (k *SharedKey) sign(r *http.Request, now time.Time) {
	h := r.Header
	h.Set("x-ms-date", now.UTC().Format(http.TimeFormat))
	length := ""
	if r.ContentLength > 0 {
		length = strconv.FormatInt(r.ContentLength, 10)
	}
	text := strings.Join([]string{
		r.Method, h.Get("Content-Encoding"), h.Get("Content-Language"), length,
		contentMD5(h),
		h.Get("Content-Type"),
		"", // Date, in place of which there is x-ms-date
		h.Get("If-Modified-Since"), h.Get("If-Match"), h.Get("If-None-Match"), h.Get("If-Unmodified-Since"), h.Get("Range"),
		canonicalHeaders(h) + k.canonicalResource(r.URL),
	}, "\n")
	h.Set("Authorization", "SharedKey "+k.account+":"+k.mac(text))
}

// contentMD5 finds the header in the SDK's spelling of it, which is not that of net/http.
func contentMD5(h http.Header) string {
	for name, values := range h {
		if strings.EqualFold(name, "Content-MD5") {
			return strings.Join(values, ",")
		}
	}
	return ""
}

// canonicalHeaders lists the x-ms- headers in the order that the service sorts them in: hyphens do not count, and the
// underscore, which names of metadata may have, comes before digits, and those before letters.
func canonicalHeaders(h http.Header) string {
	type field struct{ order, line string }
	fields := make([]field, 0, len(h))
	for name, values := range h {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-ms-") {
			fields = append(fields, field{headerOrder.Replace(name), name + ":" + strings.Join(values, ",") + "\n"})
		}
	}
	slices.SortFunc(fields, func(a, b field) int { return cmp.Compare(a.order, b.order) })
	var text strings.Builder
	for _, f := range fields {
		text.WriteString(f.line)
	}
	return text.String()
}

var headerOrder = strings.NewReplacer("-", "", "_", "!") // '!' is below the digits

func (k *SharedKey) canonicalResource(u *url.URL) string {
	var text strings.Builder
	text.WriteString("/" + k.account + cmp.Or(u.EscapedPath(), "/"))
	query := u.Query()
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := slices.Sorted(slices.Values(query[name]))
		text.WriteString("\n" + strings.ToLower(name) + ":" + strings.Join(values, ","))
	}
	return text.String()
}
