package auth

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Value is a value that was given.
type Value struct {
	Kind   Kind
	Secret Secret
	// From says in messages where it was given, such as "--tenant-id" or "datastore definition /etc/d.yml"; it holds no
	// secret.
	From string
	// Needed makes it an error when the credential has no use for the value, as for a flag, which is there for one mount.
	Needed bool
}

// value is one value that was found.
type value struct {
	kind   Kind
	place  place
	group  group
	secret Secret
	source Source
	method Method // of a MethodWord
	refuse error  // why a MethodWord cannot be followed
	needed bool
}

// collect reads every name of the table, in the order in which they are preferred, and refuses two that mean the same
// and differ.
func collect(o Options, rows []row) (values []value, warnings []string, err error) {
	all, err := o.givenValues()
	if err != nil {
		return nil, nil, err
	}
	for _, g := range all {
		values = append(values, value{kind: g.Kind, place: given, secret: g.Secret, source: Source{given, g.From}, needed: g.Needed})
	}
	dirs := []struct {
		place place
		path  string
	}{{inSecretDir, o.SecretDir}, {inCredentialsDir, ""}}
	dirs[1].path, _ = o.lookup(credentialsDirName)
	for _, d := range dirs {
		if d.path == "" {
			continue
		}
		if d.place == inCredentialsDir && !looksLikePath(d.path) {
			return nil, nil, fmt.Errorf("environment %s must hold the absolute path of a directory; what it holds is not shown", credentialsDirName)
		}
		found, warn, err := readDir(d.place, d.path, rows)
		if err != nil {
			return nil, nil, err
		}
		values, warnings = append(values, found...), append(warnings, warn...)
	}
	for _, r := range rows {
		if r.group == secretFiles {
			continue
		}
		if text, ok := o.lookup(r.name); ok {
			values = append(values, value{kind: r.kind, place: inEnvironment, group: r.group, secret: NewSecret(text), source: Source{inEnvironment, r.name}})
		}
	}
	for i := range values {
		if err := values[i].normalise(rows); err != nil {
			return nil, nil, err
		}
	}
	if err := checkAgree(values); err != nil {
		return nil, nil, err
	}
	// Rows of one group stand in the order of the documentation; what is preferred is a matter of place and group.
	slices.SortStableFunc(values, func(a, b value) int {
		if a.place != b.place {
			return int(a.place) - int(b.place)
		}
		return int(a.group) - int(b.group)
	})
	return values, warnings, nil
}

// path returns the path of a file that a value is. A relative one would mean another file in the background, whose working
// directory is /. What is no path at all may be the secret itself, and is not shown.
func (v value) path() (string, error) {
	path := v.secret.Reveal()
	if !looksLikePath(path) {
		return "", fmt.Errorf("%s must hold the absolute path of a file; what it holds is not shown", v.source)
	}
	return path, nil
}

// maxNameLen is NAME_MAX of Linux (limits.h), in bytes.
const maxNameLen = 255

// looksLikePath reports whether a text can be an absolute path, and is nothing that has a form of secrets.
func looksLikePath(text string) bool {
	if !filepath.IsAbs(text) || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) || strings.Contains(text, "-----BEGIN") {
		return false
	}
	for part := range strings.SplitSeq(text, "/") {
		// A token begins with {" in base64, and has dots between its three parts (RFC 7519).
		if len(part) > maxNameLen || strings.HasPrefix(part, "eyJ") && strings.Count(part, ".") >= 2 {
			return false
		}
	}
	return true
}

// readDir reads the files of a secret directory whose names mean something, in the order of the table.
func readDir(p place, dir string, rows []row) (values []value, warnings []string, err error) {
	if err := checkSecretDir(dir); err != nil {
		if p == inCredentialsDir {
			err = fmt.Errorf("environment %s: %w", credentialsDirName, err)
		}
		return nil, nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read secret directory %s: %w", dir, cause(err))
	}
	var names []string
	for _, r := range rows {
		if r.group != secretFiles {
			continue
		}
		names = append(names, r.name)
		for _, e := range entries {
			if !strings.EqualFold(e.Name(), r.name) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			secret, found, warning, err := readBinary("secret file", path)
			if err != nil {
				return nil, nil, err
			}
			if !found {
				continue // removed just now
			}
			if warning != "" {
				warnings = append(warnings, warning)
			}
			values = append(values, value{kind: r.kind, place: p, group: r.group, secret: secret, source: Source{p, path}})
		}
	}
	if len(values) == 0 && p == inSecretDir {
		return nil, nil, fmt.Errorf("secret directory %s has none of the files %s", dir, strings.Join(names, ", "))
	}
	return values, warnings, nil
}

// normalise brings a value into the one form in which it can be compared and used, and refuses what is not supported.
func (v *value) normalise(rows []row) error {
	if v.kind == ClientCertificate && v.place != inEnvironment && v.place != given {
		return nil // the file itself, which may be binary
	}
	// No value of any kind begins or ends with white space, and base64 would fail on it with no hint why.
	text := strings.TrimSpace(v.secret.Reveal())
	switch v.kind {
	case AccountKey:
		// Key Vault has one kind of secret for both, and no key begins with a question mark.
		if strings.HasPrefix(text, "?") {
			v.kind = SASToken
		}
	case SASToken:
		text = strings.TrimPrefix(text, "?")
	case AuthorityHost:
		host, err := cleanAuthority(text)
		if err != nil {
			return fmt.Errorf("%s %w", v.source, err)
		}
		text = host
	case ServiceEndpoint:
		if !strings.Contains(text, "://") {
			text = "https://" + text // as blobfuse2 takes it
		}
		// blobfuse2 takes the Data Lake endpoint too. The same account has one of the Blob service beside it.
		if u, err := url.Parse(text); err == nil {
			if h, ok := ParseHost(u.Hostname()); ok && h.Service == "dfs" {
				u.Host = strings.Replace(strings.ToLower(u.Host), strings.ToLower(u.Hostname()), h.Blob, 1)
				text = u.String()
			}
		}
		text = strings.TrimRight(text, "/")
	case AnonymousWord, SendCertificateChain:
		// What adlfs takes for false, and its opposite.
		switch strings.ToLower(text) {
		case "false", "f", "0", "no", "n", "off":
			text = "false"
		case "true", "t", "1", "yes", "y", "on":
			text = "true"
		default:
			return fmt.Errorf("%s must be true or false", v.source)
		}
	case MethodWord:
		i := slices.IndexFunc(rows, func(r row) bool { return r.name == v.source.name })
		// It is refused when it is followed, and not when --auth or a secret directory comes before it.
		if v.method, v.refuse = methodOf(rows[i], text); v.refuse == nil {
			text = string(v.method)
		}
	case unsupported:
		i := slices.IndexFunc(rows, func(r row) bool { return strings.EqualFold(r.name, filepath.Base(v.source.name)) })
		return fmt.Errorf("%s is not supported: %s", v.source, rows[i].advice)
	}
	v.secret = NewSecret(text)
	return nil
}

// checkAgree refuses two values of one place that mean the same and differ. The names of azidentity may differ from the
// others: they say who the process is, and are put into its environment by Kubernetes, where no user can unset them. The
// storage names say who it is for storage. When the user has said which account it is, nobody asks what else is said: the
// examples of Azure ML have variables for two accounts.
func checkAgree(values []value) error {
	accountGiven := slices.ContainsFunc(values, func(v value) bool { return v.kind == AccountName && v.place == given })
	for i, v := range values {
		if v.kind == AccountName && v.place != given && accountGiven {
			continue
		}
		for _, w := range values[:i] {
			if v.kind == w.kind && v.place == w.place && (v.group == processNames) == (w.group == processNames) && !v.secret.Equal(w.secret) {
				return fmt.Errorf("%s and %s are both the %s and differ: unset one", w.source, v.source, v.kind)
			}
		}
	}
	return nil
}
