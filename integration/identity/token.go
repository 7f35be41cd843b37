package identity

import (
	"errors"
	"maps"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Audience is what a token for Azure Storage is for.
const Audience = "https://storage.azure.com"

// Claims are what a token says of its holder.
type Claims struct {
	// Client is the client id of the application or managed identity, Object the id of its service principal.
	Client string `json:"appid"`
	Object string `json:"oid"`
	Tenant string `json:"tid"`
	jwt.RegisteredClaims
}

func (s *Server) issuer() string { return "https://sts.windows.net/" + Tenant + "/" }

// grant is a token with what the answer says of it.
type grant struct {
	token   string
	stated  time.Duration
	expires time.Time // as stated
}

// grant issues a token for the holder.
func (s *Server) grant(client, object, audience string) (grant, error) {
	s.mu.Lock()
	holds, stated := ceil(s.life), ceil(s.stated)
	s.mu.Unlock()
	// Tokens count in seconds. What is rounded up is the end, so that none holds for less than was asked for.
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, Claims{client, object, Tenant, jwt.RegisteredClaims{
		Issuer: s.issuer(), Audience: jwt.ClaimStrings{audience}, ID: text(random(16)),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(holds + time.Second - 1)),
	}}).SignedString(s.key)
	if err != nil {
		return grant{}, err
	}
	s.keep(token)
	return grant{token, stated, now.Add(stated)}, nil
}

func ceil(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// reason says in the words of the blob service what is wrong with a token.
type reason string

func (r reason) Error() string { return string(r) }

// Check returns who holds a token, if it is one of this service for Azure Storage and has not expired. The error has
// the words of the blob service.
func (s *Server) Check(token string) (Claims, error) {
	var c Claims
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithIssuer(s.issuer()),
		jwt.WithAudience(Audience), jwt.WithExpirationRequired())
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, jwt.ErrTokenExpired):
		return c, reason("Lifetime validation failed. The token is expired.")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return c, reason("Audience validation failed. Audience did not match.")
	}
	return c, reason("Signature validation failed. The token was not issued here.")
}

// Bearer is Check for the blob service. It notes what came, see Used, Ended and Rejected.
func (s *Server) Bearer(token string) error {
	c, err := s.Check(token)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.rejected++
		return err
	}
	s.used[c.Client]++
	s.ends[c.ExpiresAt.Unix()] = true
	return nil
}

// Used returns how many requests came to the blob service with a good token, by client id.
func (s *Server) Used() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.used)
}

// Ended returns at how many different times a token has expired that the blob service has seen while it was good.
func (s *Server) Ended() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, n := time.Now().Unix(), 0
	for end := range s.ends {
		if end <= now {
			n++
		}
	}
	return n
}

// Rejected returns how many requests came to the blob service with a token that was not good.
func (s *Server) Rejected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rejected
}
