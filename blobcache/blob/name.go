package blob

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// CheckName returns an error with the code InvalidName for a name that cannot be carried to the service unchanged, nil
// for others. op is for the error.
//
// The rules are those of "Naming and Referencing Containers, Blobs, and Metadata"; where it only advises against a name,
// the service stores another one than was sent: a backslash becomes a slash, and a dot at the end of a segment is dropped
// ("." and ".." are resolved). A file must not appear under a name that somebody else may own, so these are refused too.
func CheckName(op, name string) error {
	reason := ""
	switch {
	case name == "":
		reason = "is empty"
	case !utf8.ValidString(name):
		reason = "is not UTF-8"
	case utf8.RuneCountInString(name) > MaxNameLength:
		reason = fmt.Sprintf("is longer than %d characters", MaxNameLength)
	case strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 }):
		reason = "contains a control character"
	case strings.Contains(name, `\`):
		reason = "contains a backslash"
	case strings.HasSuffix(name, "."), strings.Contains(name, "./"):
		reason = "has a segment that ends with a dot"
	}
	if reason == "" {
		return nil
	}
	return &Error{Code: InvalidName, Op: op, Name: name, Err: errors.New("name " + reason)}
}
