package auth

import (
	"encoding"
	"fmt"
	"io"
	"log/slog"
)

// redacted stands for every secret value in text.
const redacted = "REDACTED"

// Secret holds a value that must not be seen: it prints as REDACTED by every verb of fmt, by encoding/json and by
// log/slog. Only Reveal gives the value.
//
// The value sits behind a pointer because fmt cannot call methods on unexported fields: a struct that holds a
// Secret in one prints an address.
type Secret struct{ value *string }

var (
	_ fmt.Formatter          = Secret{}
	_ fmt.Stringer           = Secret{}
	_ encoding.TextMarshaler = Secret{}
	_ slog.LogValuer         = Secret{}
)

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{&value} }

// Reveal returns the value, for the code that signs or sends it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// Equal reports whether both hold the same value.
func (s Secret) Equal(t Secret) bool { return s.Reveal() == t.Reveal() }

// String returns REDACTED.
func (s Secret) String() string { return redacted }

// Format writes REDACTED for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText returns REDACTED.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns REDACTED.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
