package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// thumbprint returns the certificate that the header of an assertion names, as the SHA-256 of its DER form in base64 of
// either alphabet; empty when it names none or is no JWT.
func thumbprint(assertion string) string {
	token, _, err := jwt.NewParser().ParseUnverified(assertion, &jwt.RegisteredClaims{})
	if err != nil {
		return ""
	}
	name, _ := token.Header["x5t#S256"].(string)
	return name
}

func thumbprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return text(sum[:])
}

// checkCertificate follows "Microsoft identity platform application authentication certificate credentials": the
// assertion is signed with the key of a registered certificate, says that the client is both issuer and subject, and is
// for this token endpoint.
func (a *application) checkCertificate(assertion, client, endpoint string) *Refusal {
	name := strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(thumbprint(assertion)), "=")
	var cert *x509.Certificate
	for _, c := range a.certificates {
		if thumbprintOf(c.Raw) == name {
			cert = c
		}
	}
	if cert == nil {
		return refusedAssertion(700027, "The certificate used to sign the client assertion is not registered on application.")
	}
	_, err := jwt.ParseWithClaims(assertion, &jwt.RegisteredClaims{}, func(*jwt.Token) (any, error) { return cert.PublicKey, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodPS256.Alg(), jwt.SigningMethodRS256.Alg()}),
		jwt.WithIssuer(client), jwt.WithSubject(client), jwt.WithAudience(endpoint), jwt.WithExpirationRequired())
	return judgeAssertion(err)
}

func judgeAssertion(err error) *Refusal {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrTokenExpired), errors.Is(err, jwt.ErrTokenNotValidYet):
		return refusedAssertion(700024, "Client assertion is not within its valid time range.")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return refusedAssertion(700023, "Client assertion audience claim does not match Realm issuer.")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer), errors.Is(err, jwt.ErrTokenInvalidSubject):
		return refusedAssertion(700021, "Client assertion application identifier doesn't match 'client_id' parameter.")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return refusedAssertion(700027, "Client assertion failed signature validation.")
	}
	return refusedAssertion(50027, "JWT token is invalid or malformed.")
}

func refusedAssertion(code int, text string) *Refusal {
	return &Refusal{http.StatusUnauthorized, "invalid_client", code, text}
}

// trust is a federated credential of an application: whose tokens stand for it.
type trust struct {
	cluster *Cluster
	subject string
}

// Cluster issues federated tokens, as a Kubernetes cluster does for its service accounts. It is immutable.
type Cluster struct {
	issuer string
	key    *rsa.PrivateKey
	server *Server
}

// FederatedAudience is what a federated token must be for.
const FederatedAudience = "api://AzureADTokenExchange"

// NewCluster makes an issuer with a key of its own.
func (s *Server) NewCluster() (*Cluster, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return &Cluster{"https://oidc.example/" + text(random(16)) + "/", key, s}, nil
}

// Token issues a token for a subject, such as system:serviceaccount:NAMESPACE:NAME. The life may be negative.
func (c *Cluster) Token(subject, audience string, life time.Duration) (string, error) {
	now := time.Now()
	t, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer: c.issuer, Subject: subject, Audience: jwt.ClaimStrings{audience}, ID: text(random(16)),
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(life)),
	}).SignedString(c.key)
	if err != nil {
		return "", fmt.Errorf("identity: %w", err)
	}
	c.server.keep(t)
	return t, nil
}

// Trust lets the subject's tokens of a cluster stand for a client.
func (s *Server) Trust(client string, c *Cluster, subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.app(client)
	a.trusts = append(a.trusts, trust{c, subject})
}

// checkFederated follows "Workload identity federation": issuer, subject and audience must be those of a federated
// credential of the application, and the signature that of the issuer.
func (a *application) checkFederated(assertion string) *Refusal {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(assertion, &claims); err != nil {
		return judgeAssertion(err)
	}
	for _, t := range a.trusts {
		if t.cluster.issuer != claims.Issuer || t.subject != claims.Subject {
			continue
		}
		_, err := jwt.ParseWithClaims(assertion, &jwt.RegisteredClaims{}, func(*jwt.Token) (any, error) { return t.cluster.key.Public(), nil },
			jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}), jwt.WithAudience(FederatedAudience), jwt.WithExpirationRequired())
		return judgeAssertion(err)
	}
	return refusedAssertion(700213, "No matching federated identity record found for presented assertion subject.")
}
