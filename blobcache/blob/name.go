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
// The rules are those of "Naming and Referencing Containers, Blobs, and Metadata". Where that only advises against a name,
// the service stores another one than was sent, as people found who tried it: a backslash becomes a slash
// (github.com/versity/versitygw/issues/845, Azure/azure-sdk-for-js/pull/5405), a dot at the end of a segment is dropped
// (Azure/azure-sdk-for-java/issues/36674), and the segments "." and ".." are resolved, also when they are escaped
// (Azure/azure-sdk-for-rust/issues/5275). A file must not appear under a name that somebody else may own, so these are
// refused too. rclone encodes the same characters.
func CheckName(op, name string) error {
	reason := ""
	switch {
	case name == "":
		reason = "is empty"
	case !utf8.ValidString(name):
		reason = "is not UTF-8"
	case NameLength(name) > MaxNameLength:
		reason = fmt.Sprintf("is longer than %d characters", MaxNameLength)
	case strings.Count(name, "/") >= MaxSegments:
		reason = fmt.Sprintf("has more than %d segments", MaxSegments)
	case strings.ContainsFunc(name, unsent):
		reason = "contains a control character, or one that URLs of the service cannot carry"
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

// NameLength returns the length of a name as the service counts it: in units of UTF-16, so that a letter beyond the basic
// plane, such as an emoji, counts twice (github.com/Azure/azure-storage-cpp/issues/291).
func NameLength(name string) int {
	n := utf8.RuneCountInString(name)
	for _, r := range name {
		if r > 0xffff {
			n++
		}
	}
	return n
}

// unsent reports whether a name with this character is refused before the service looks at it: control characters
// (0 to 0x1f, 0x7f, and the C1 set), and private ones of the basic plane, of which "Naming and Referencing" names U+0081
// and U+E000; U+FFFD (github.com/Azure/azure-cli/issues/24623); and what is no character, which no listing could carry
// either, since XML has no form for it.
func unsent(r rune) bool {
	return r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0xe000 && r < 0xf900 || r >= 0xfffd && r <= 0xffff
}
