package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// refusal is what an identity service has answered instead of a token. It is the zero value when there was no answer.
type refusal struct {
	status int
	code   string // of OAuth 2.0, such as invalid_client
	aadsts []int  // Entra's own, which say more
}

// refusalOf reads the answer that an error holds. The words of an answer are left alone: codes are what does not change.
func refusalOf(err error) refusal {
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) || failed.RawResponse == nil {
		return refusal{}
	}
	r := refusal{status: failed.RawResponse.StatusCode}
	body, err := runtime.Payload(failed.RawResponse)
	if err != nil {
		return r
	}
	var answer struct {
		Code   json.RawMessage `json:"error"` // not always text
		AADSTS []int           `json:"error_codes"`
	}
	if json.Unmarshal(body, &answer) == nil {
		r.aadsts = answer.AADSTS
		_ = json.Unmarshal(answer.Code, &r.code) // what is not text has no code in it
	}
	return r
}

// passes reports whether the same question may be answered in another way soon: the service is overloaded or failing.
func passes(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
}

// String returns the codes, or the status when there are none.
func (r refusal) String() string {
	var codes []string
	if r.code != "" {
		codes = append(codes, r.code)
	}
	for _, c := range r.aadsts {
		codes = append(codes, fmt.Sprintf("AADSTS%d", c))
	}
	if len(codes) == 0 {
		return fmt.Sprintf("status %d", r.status)
	}
	return strings.Join(codes, ", ")
}

// advice says what Entra's codes mean for the user (Microsoft Learn, "Microsoft Entra authentication and authorization
// error codes").
var advice = map[int]string{
	7000215: "the client secret is wrong: give the secret's value, not its id",
	7000222: "the client secret has expired: make a new one",
	7000112: "the application is disabled",
	700016:  "the tenant has no application of this client id: check both ids",
	90002:   "there is no such tenant: check the tenant id, and the cloud",
	700027:  "the certificate is not registered for the application, or its key is another one",
	700024:  "the assertion is too old or too new: check the clock, and that the file of a federated token is renewed",
	700023:  "the token was not made for this purpose: its audience must be api://AzureADTokenExchange",
	70021:   noFederation,
	700211:  noFederation,
	700212:  noFederation,
	700213:  noFederation,
}

const noFederation = "no federated credential of the application has issuer, subject and audience of the token"

func (r refusal) advice() string {
	for _, c := range r.aadsts {
		if text := advice[c]; text != "" {
			return text
		}
	}
	return "check the ids, and that this identity exists here"
}
