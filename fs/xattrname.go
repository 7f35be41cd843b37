package fs

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// How extended attributes of programs are kept in metadata.
//
// An attribute user.NAME is the metadata NAME with the same value where metadata can have both: so what other tools have
// put there is seen, and they see what is set here. Metadata names are identifiers without case, and values are what an
// HTTP header carries ("Setting and retrieving properties and metadata for Blob service resources"); blob.Properties has
// the names in lower case. So
//
//   - any other name is "xattr_" and the name, in which each byte that is no lower-case letter and no digit is "_" and two
//     hexadecimal digits;
//   - any other value is "base64:" and its base64.
//
// Names that mean something to a file system (see reserved) are escaped too, and not shown when another tool has set them:
// they are what stat shows.
const (
	escapedName  = "xattr_"
	escapedValue = "base64:"
)

// metadataName returns the metadata name of the extended attribute user.NAME.
func metadataName(name string) string {
	if isPlainName(name) {
		return name
	}
	var b strings.Builder
	b.WriteString(escapedName)
	for i := range len(name) {
		if c := name[i]; isLowerOrDigit(c) {
			b.WriteByte(c)
		} else {
			b.WriteString("_" + hex.EncodeToString([]byte{c}))
		}
	}
	return b.String()
}

// xattrName returns the NAME of the extended attribute user.NAME that a metadata name stands for. It reports false for
// one that stands for none: a reserved one, and one that begins as ours and is not how metadataName writes a name.
func xattrName(key string) (string, bool) {
	escaped, ours := strings.CutPrefix(key, escapedName)
	if !ours {
		return key, isPlainName(key)
	}
	var name []byte
	for i := 0; i < len(escaped); i++ {
		if escaped[i] != '_' {
			name = append(name, escaped[i])
			continue
		}
		if i+3 > len(escaped) {
			return "", false
		}
		c, err := hex.DecodeString(escaped[i+1 : i+3])
		if err != nil {
			return "", false
		}
		name = append(name, c[0])
		i += 2
	}
	return string(name), metadataName(string(name)) == key
}

// isPlainName reports whether a name stands for itself.
func isPlainName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c != '_' && !isLowerOrDigit(c) || i == 0 && c <= '9' {
			return false
		}
	}
	return name != "" && !strings.HasPrefix(name, escapedName) && !slices.Contains(reserved, name)
}

func isLowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// metadataValue returns how a value is kept.
func metadataValue(value string) string {
	if isPlainValue(value) {
		return value
	}
	return escapedValue + base64.StdEncoding.EncodeToString([]byte(value))
}

// xattrValue returns the value that is kept so. What looks as ours and cannot be read is another tool's, and stands for
// itself.
func xattrValue(kept string) string {
	encoded, ours := strings.CutPrefix(kept, escapedValue)
	if !ours {
		return kept
	}
	value, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return kept
	}
	return string(value)
}

// isPlainValue reports whether a value comes back from a header as it was: printable ASCII, neither empty nor with space
// at the ends. Two spaces in a row would be one in the text that a request with an account key signs ("Authorize with
// Shared Key", canonicalized headers).
func isPlainValue(value string) bool {
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return false
		}
	}
	return value != "" && value == strings.Trim(value, " ") && !strings.Contains(value, "  ") && !strings.HasPrefix(value, escapedValue)
}
