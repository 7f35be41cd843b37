package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// kernelWords are the mount options that are the kernel's business. They go on to the mount as they are.
var kernelWords = map[string]bool{
	"dev": true, "nodev": true, "suid": true, "nosuid": true, "exec": true, "noexec": true,
	"noatime": true, "nodiratime": true, "relatime": true, "sync": true, "dirsync": true,
}

// droppedWords are for mount(8), systemd and fstab, or say what is so anyway. They mean nothing to the file
// system. (mount(8) removes some itself, but not for a program that mount.fuse starts.)
var droppedWords = map[string]bool{
	"defaults": true, "default_permissions": true, "async": true, "atime": true, "diratime": true,
	"_netdev": true, "nofail": true, "auto": true, "noauto": true,
	"user": true, "nouser": true, "users": true, "owner": true, "group": true,
	"comment": true,
}

// refusedWords are options of other file systems whose users will try them, with what to do instead.
var refusedWords = map[string]string{
	"remount":          "a mount cannot be changed in place: unmount it and mount it again",
	"allow_root":       "use allow_other",
	"auto_unmount":     "the mount ends with the daemon; a daemon that was killed needs blobmount unmount",
	"attr_timeout":     "use blob-cache-timeout",
	"entry_timeout":    "use blob-cache-timeout",
	"negative_timeout": "use blob-cache-timeout",
	"ac_attr_timeout":  "use blob-cache-timeout",
	"kernel_cache":     "pages are always kept, because a changed blob is a new file to the kernel",
	"auto_cache":       "pages are always kept, because a changed blob is a new file to the kernel",
	"max_read":         "the size of requests is chosen by blobmount",
	"fmask":            "use file-mode",
	"dmask":            "use dir-mode",
	"tmp_path":         "use cache-dir",
	"vfs_write_back":   "use write-back and write-back-delay",
	"container_name":   "the container is named by the source, az://CONTAINER",
	"config_file":      "there is no configuration file: every setting is a flag or an option of -o",
	"lazytime":         "access times are not kept",
	"strictatime":      "access times are not kept",
}

// secretWords are settings that other tools take as arguments.
var secretWords = map[string]string{
	"account_key": "account_key", "key": "account_key", "access_key": "account_key", "storage_account_key": "account_key",
	"sas_token": "sas_token", "sas": "sas_token", "sas_url": "sas_token",
	"connection_string": "connection_string", "client_secret": "client_secret", "password": "client_secret",
}

// notInOptions are flags that make no sense in a mount table.
var notInOptions = map[string]bool{"options": true, "foreground": true, "help": true, "version": true}

// optionList is the flag -o. It sets the flags of the same set that it belongs to, so that an option means the
// same on the command line and in /etc/fstab, and the last one given wins.
type optionList struct {
	flags  *pflag.FlagSet
	config *Config
	ro     bool // the word ro has made the mount read-only
}

var _ pflag.Value = (*optionList)(nil)

func (o *optionList) String() string { return "" }
func (o *optionList) Type() string   { return "OPTION,..." }

// Set reads a list such as ro,uid=1000,cache-dir="/a,b". Errors name options, and never the value of one that is
// not known.
func (o *optionList) Set(list string) error {
	words, err := splitOptions(list)
	if err != nil {
		return err
	}
	for _, w := range words {
		name, value, hasValue := strings.Cut(w, "=")
		if err := o.set(name, value, hasValue); err != nil {
			return err
		}
	}
	return nil
}

func (o *optionList) set(word, value string, hasValue bool) error {
	// fstab lines of other drivers have --flag=value among their options.
	name := strings.TrimPrefix(word, "--")
	under := strings.ReplaceAll(name, "-", "_")
	bare := func(apply func()) error {
		if hasValue {
			return &optionError{word, "takes no value"}
		}
		apply()
		return nil
	}
	switch {
	case strings.HasPrefix(word, "x-"), strings.HasPrefix(word, "X-"), droppedWords[under]:
		return nil
	case under == "ro":
		return bare(func() { o.ro, o.config.ReadOnly = o.ro || !o.config.ReadOnly, true })
	case under == "rw":
		// mount(8) puts it before all others. So it undoes no --read-only, only an ro that was given before.
		return bare(func() { o.ro, o.config.ReadOnly = false, o.config.ReadOnly && !o.ro })
	case kernelWords[under]:
		return bare(func() { o.config.KernelOptions = append(o.config.KernelOptions, under) })
	case under == "fsname":
		o.config.fsname = value
		return nil
	case under == "subtype":
		if value != fsType {
			return &optionError{word, "must be " + fsType}
		}
		return nil
	}
	flag := o.flags.Lookup(strings.ReplaceAll(name, "_", "-"))
	if flag == nil || notInOptions[flag.Name] {
		err := unknownOption(word, o.flags)
		if o.config.sloppy && errors.As(err, new(*unknownError)) {
			o.config.ignored = append(o.config.ignored, word)
			return nil
		}
		return err
	}
	if !hasValue {
		if flag.NoOptDefVal == "" {
			return &optionError{word, "needs a value"}
		}
		value = flag.NoOptDefVal
	}
	if err := o.flags.Set(flag.Name, value); err != nil {
		return &optionError{word, reason(err)}
	}
	return nil
}

// optionError is what is wrong with one option.
type optionError struct{ word, text string }

func (e *optionError) Error() string { return fmt.Sprintf("option %s %s", e.word, e.text) }

// unknownError is a name that means nothing here.
type unknownError struct{ what, name, advice string }

func (e *unknownError) Error() string {
	if e.advice == "" {
		return fmt.Sprintf("unknown %s %s", e.what, e.name)
	}
	return fmt.Sprintf("unknown %s %s: %s", e.what, e.name, e.advice)
}

// unknownOption explains why a word of -o is refused.
func unknownOption(word string, flags *pflag.FlagSet) error {
	name := strings.TrimPrefix(word, "--")
	under := strings.ReplaceAll(name, "-", "_")
	if advice, ok := refusedWords[under]; ok {
		return &optionError{word, "is not supported: " + advice}
	}
	if notInOptions[name] {
		return &optionError{word, "can only be given as a flag"}
	}
	candidates := slices.Collect(maps.Keys(kernelWords))
	candidates = append(candidates, "ro", "rw", "_netdev", "nofail", "noauto", "defaults")
	flags.VisitAll(func(f *pflag.Flag) {
		if !notInOptions[f.Name] {
			candidates = append(candidates, f.Name)
		}
	})
	return &unknownError{"option", printableName(word), adviceFor(name, candidates, "")}
}

// adviceFor is what to write instead of an unknown name.
func adviceFor(name string, candidates []string, dashes string) string {
	if file, ok := secretWords[strings.ReplaceAll(name, "-", "_")]; ok {
		return fmt.Sprintf("secrets are not taken as arguments, which every user can see: use the file %s in --secret-dir, or the environment", file)
	}
	if n := nearest(name, candidates); n != "" {
		return "did you mean " + dashes + n + "?"
	}
	return ""
}

// printableName returns a name as it may be shown. All names there are have lower case; a text in mixed case may be
// anything, also a secret.
func printableName(name string) string {
	if len(name) <= 40 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && name != "" {
		return name
	}
	return "(not shown)"
}

// nearest returns the candidate with the smallest edit distance, empty when none is near: at most a third of its
// letters may differ.
func nearest(name string, candidates []string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	best, bestAt := "", 1<<30
	slices.Sort(candidates)
	for _, c := range candidates {
		d := distance(name, strings.ReplaceAll(c, "_", "-"))
		if d < bestAt && d*3 <= max(len(c), 3) {
			best, bestAt = c, d
		}
	}
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// splitOptions splits at commas outside double quotes, and removes the quotes, as mount(8) understands them. It
// passes them on to helpers as they are.
func splitOptions(list string) ([]string, error) {
	var words []string
	var word strings.Builder
	quoted := false
	flush := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
		}
		word.Reset()
	}
	for _, r := range []byte(list) {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ',' && !quoted:
			flush()
		default:
			word.WriteByte(r)
		}
	}
	if quoted {
		return nil, errors.New(`has a " without its partner`)
	}
	flush()
	return words, nil
}
