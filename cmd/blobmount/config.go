package main

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"blobmount/auth"
	"blobmount/blobcache"
	"blobmount/blobcache/azure"
	"blobmount/blobcache/blob"
	"blobmount/cmd/source"
)

// fsType is the type in the mount table, after "fuse.".
const fsType = "blobmount"

// Config is everything that the command line says about a mount. Paths are absolute once it was parsed.
type Config struct {
	Source     source.Source
	MountPoint string
	// Datastore is the definition of the datastore that the source names, nil when it names none.
	Datastore *source.Definition

	ReadOnly, AllowOther, NonEmpty bool
	UID, GID                       idValue
	FileMode, DirMode, Umask       modeValue
	NoPosixMetadata                bool
	ContentTypes                   contentTypesValue
	KernelOptions                  []string // such as noexec, in the order given

	CacheDir         string
	CacheSize        sizeValue // 0: chosen by the free space
	Memory           sizeValue // 0: chosen by the limit of memory
	NamesMemory      sizeValue // 0: as Memory
	BlockSize        sizeValue
	BlobCacheTimeout secondsValue // negative: for ever
	Open             wordValue
	Passthrough      wordValue
	Prefetch         countValue // negative: the default

	WriteBack                     wordValue
	WriteBackDelay                durationValue
	LastWriterWins, ConvertAppend bool
	Leases                        bool
	RetryFor, DrainTimeout        durationValue

	credentialFlags
	Datastores                      []string // files and directories of definitions
	SkipValidation, CreateContainer bool

	Foreground          bool
	LogLevel, LogFormat wordValue
	LogFile             string
	CoreDumps           bool

	help, version bool
	rawSource     string   // as given, with the SAS that it may have
	fsname        string   // of -o fsname=, only compared
	helper        bool     // called by mount(8)
	fake          bool     // as a mount helper: check, do not mount
	sloppy        bool     // as a mount helper: do not fail for unknown options
	verbose       bool     // as a mount helper: say what was mounted
	ignored       []string // the unknown options, when sloppy
}

// usageError is a mistake in the arguments themselves: exit status 1 of mount(8).
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// section is a group of flags in the help, in the order shown.
type section struct {
	title string
	flags []string
}

var sections = []section{
	{"Mount", []string{"options", "read-only", "allow-other", "nonempty", "foreground"}},
	{"Ownership and modes of what has none of its own", []string{"uid", "gid", "file-mode", "dir-mode", "umask", "no-posix-metadata"}},
	{"Storage account and credential", append(slices.Clone(credentialNames), "datastore", "skip-validation", "create-container", "retry-for")},
	{"Writing", []string{"content-type", "write-back", "write-back-delay", "last-writer-wins", "leases", "convert-append-blobs", "drain-timeout"}},
	{"Cache", []string{"cache-dir", "cache-size", "memory", "names-memory", "block-size", "blob-cache-timeout", "open", "passthrough", "prefetch"}},
	{"Log", []string{"log-level", "log-format", "log-file", "core-dumps"}},
	{"Other", []string{"help", "version"}},
}

// minCacheSize, in bytes, holds a few blocks of the default size. The cache itself would take less, and then be of
// no use.
const minCacheSize = 64 << 20

// maxRetryFor keeps a request well within the half hour for which addresses of copies are signed, less the quarter
// by which clocks may differ.
const maxRetryFor = 15 * time.Minute

// newFlags returns the one set of flags, which sets c, and fills c with the defaults.
func newFlags(c *Config, uid, gid int) *pflag.FlagSet {
	*c = Config{
		UID:              idValue{id: uint32(uid), lookup: userID, kind: "user"},
		GID:              idValue{id: uint32(gid), lookup: groupID, kind: "group"},
		FileMode:         0o644,
		DirMode:          0o755,
		BlockSize:        8 << 20,
		BlobCacheTimeout: secondsValue(60 * time.Second),
		Open:             wordValue{"auto", []string{"auto", "files", "none"}, "HOW"},
		Passthrough:      wordValue{"auto", []string{"auto", "off"}, "HOW"},
		Prefetch:         -1,
		WriteBack:        wordValue{"off", []string{"off", "close", "fsync-local"}, "HOW"},
		WriteBackDelay:   durationValue(5 * time.Second),
		RetryFor:         durationValue(azure.DefaultRetryFor),
		DrainTimeout:     durationValue(2 * time.Minute),
		LogLevel:         wordValue{"info", []string{"debug", "info", "warn", "error"}, "LEVEL"},
		LogFormat:        wordValue{"text", []string{"text", "json"}, "FORMAT"},
	}
	f := pflag.NewFlagSet("blobmount", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})

	f.VarP(&optionList{flags: f, config: c}, "options", "o", "comma-separated options as in fstab(5): every flag without its dashes ('_' and '-' are the same), "+
		"ro, and the kernel's nosuid, noexec, noatime, sync, ... May be repeated")
	f.BoolVarP(&c.ReadOnly, "read-only", "r", false, "refuse every change")
	f.BoolVar(&c.AllowOther, "allow-other", false, "let other users use the mount (users other than root need user_allow_other in /etc/fuse.conf)")
	f.BoolVar(&c.NonEmpty, "nonempty", false, "mount over a directory that has files in it")
	f.BoolVarP(&c.Foreground, "foreground", "f", false, "do not go to the background; log to standard error")

	f.Var(&c.UID, "uid", "owner, by number or name (default: you)")
	f.Var(&c.GID, "gid", "group, by number or name (default: yours)")
	f.Var(&c.FileMode, "file-mode", "permission bits of files")
	f.Var(&c.DirMode, "dir-mode", "permission bits of directories")
	f.Var(&c.Umask, "umask", "permission bits to take away from both")
	f.BoolVar(&c.NoPosixMetadata, "no-posix-metadata", false, "neither read nor write mode, owner and time in the metadata of blobs: everything shows the above, "+
		"and the service's time; chmod, chown and utimens to anything else fail with EPERM")

	c.credentialFlags.register(f)
	f.StringArrayVar(&c.Datastores, "datastore", nil, "definition `FILE` of an Azure Machine Learning datastore, or a directory of *.yml and *.yaml, "+
		"for a source azureml://datastores/NAME/paths/PREFIX. May be repeated")
	f.BoolVar(&c.SkipValidation, "skip-validation", false, "mount without asking the service whether the container is there and may be listed")

	f.BoolVar(&c.CreateContainer, "create-container", false, "create the container if it is not there")

	f.Var(&c.RetryFor, "retry-for", "how long a request that fails for no lasting reason is tried again before the operation fails; 0 tries once")

	f.Var(&c.ContentTypes, "content-type", "content type of new blobs whose names end so, as .parquet=application/vnd.apache.parquet; nothing after the = for none; "+
		"@FILE reads a file of lines with a type and its ends, as /etc/mime.types. May be repeated; the rest is built in")
	f.Var(&c.WriteBack, "write-back", "off: close and fsync return when the service has the file; close: close returns when the file is "+
		"durable on the local disk, and the service gets it later; fsync-local: fsync too")
	f.Lookup("write-back").NoOptDefVal = "close"
	f.Var(&c.WriteBackDelay, "write-back-delay", "with --write-back, how long after the close a file is sent")
	f.BoolVar(&c.LastWriterWins, "last-writer-wins", false, "replace what another writer has made of a blob meanwhile, instead of failing with ESTALE")
	f.BoolVar(&c.Leases, "leases", false, "lease a blob while a file is open for writing, so that a second writer on any host fails at its open with EBUSY; "+
		"new files are made in the service at once")
	f.BoolVar(&c.ConvertAppend, "convert-append-blobs", false, "let writes that are no appends replace an append blob by a block blob, instead of failing with EPERM")
	f.Var(&c.DrainTimeout, "drain-timeout", "how long the daemon goes on sending what is left after an unmount")

	f.StringVar(&c.CacheDir, "cache-dir", "", "`DIR` for cached data; mounts may share one (default: /var/cache/blobmount for root, else "+
		"blobmount below $XDG_CACHE_HOME or $HOME/.cache)")
	f.Var(&c.CacheSize, "cache-size", "most bytes of cached data on disk (default: a fifth of the space that is free at the start, at most 100GiB)")
	f.Var(&c.Memory, "memory", "most bytes of data in memory (default: a quarter of the memory of the machine or control group, at most 192MiB)")
	f.Var(&c.NamesMemory, "names-memory", "most bytes of names and attributes in memory, about 100 for each file (default: as --memory)")
	f.Var(&c.BlockSize, "block-size", "bytes of one block of a blob that is written; a blob has at most 50,000")
	f.Var(&c.BlobCacheTimeout, "blob-cache-timeout", "how long names, sizes and times may be used without asking the service; "+
		"0 asks at every open, none never asks again")

	f.Var(&c.Open, "open", "files: opens and closes are messages to blobmount; none: the kernel opens files by itself, which makes small files "+
		"many times faster, on a read-only mount with a blob-cache timeout; auto: none where it can be and most blobs are below 256KiB")
	f.Var(&c.Passthrough, "passthrough", "auto: the kernel reads cached files of 256KiB and more by itself, where it can; off: never")
	f.Var(&c.Prefetch, "prefetch", "how many small files are fetched ahead at once when a program opens the files of a directory one by one: "+
		"auto (48), off, or a number")

	f.Var(&c.LogLevel, "log-level", "debug, info, warn or error")
	f.Var(&c.LogFormat, "log-format", "text or json")
	f.StringVar(&c.LogFile, "log-file", "", "append the log to `FILE` (default: log/MOUNTPOINT.log in the cache directory; standard error with --foreground)")

	f.BoolVar(&c.CoreDumps, "core-dumps", false, "let a crash write a core dump, as far as the limits allow one (ulimit -c); it has keys and tokens in it")

	f.BoolVarP(&c.help, "help", "h", false, "show this text")
	f.BoolVar(&c.version, "version", false, "show the version")
	return f
}

// parseConfig reads the arguments after the program's name, as typed by a user. Errors are usage errors.
func parseConfig(args []string, c *Config, f *pflag.FlagSet) error {
	if err := f.Parse(args); err != nil {
		return &usageError{flagError(err, f)}
	}
	if c.help || c.version {
		return nil
	}
	switch n := f.NArg(); {
	case n == 0:
		return usagef("SOURCE and MOUNTPOINT are missing: blobmount [flags] az://CONTAINER[/PREFIX] MOUNTPOINT")
	case n == 1:
		return usagef("MOUNTPOINT is missing: blobmount [flags] az://CONTAINER[/PREFIX] MOUNTPOINT")
	case n > 2:
		return usagef("too many arguments: %d instead of SOURCE and MOUNTPOINT", n)
	}
	return c.complete(f.Arg(0), f.Arg(1), f)
}

// parseHelper reads the arguments that mount(8) gives to /sbin/mount.TYPE: spec dir [-sfnv] [-N ns] [-o options]
// [-t type]. Here -f means: do everything but the mount.
func parseHelper(args []string, c *Config, f *pflag.FlagSet) error {
	h := pflag.NewFlagSet("mount helper", pflag.ContinueOnError)
	h.Usage = func() {}
	h.SortFlags = false
	options := h.StringArrayP("options", "o", nil, "")
	h.BoolVarP(&c.sloppy, "sloppy", "s", false, "")
	h.BoolVarP(&c.fake, "fake", "f", false, "")
	h.BoolVarP(&c.verbose, "verbose", "v", false, "")
	h.BoolP("no-mtab", "n", false, "") // nothing to do: /etc/mtab is the kernel's table today
	namespace := h.StringP("namespace", "N", "", "")
	kind := h.StringP("types", "t", "", "")
	if err := h.Parse(args); err != nil {
		return &usageError{flagError(err, h)}
	}
	if h.NArg() != 2 {
		return usagef("mount helper needs SOURCE and DIRECTORY, as mount(8) gives them")
	}
	if *namespace != "" {
		return usagef("-N is not supported: run nsenter --mount=NAMESPACE mount ... instead")
	}
	if t := strings.TrimPrefix(*kind, "fuse."); t != "" && t != fsType {
		return usagef("type must be %s or fuse.%s", fsType, fsType)
	}
	for _, o := range *options {
		if err := f.Set("options", o); err != nil {
			return &usageError{flagError(err, f)}
		}
	}
	c.helper = true
	return c.complete(h.Arg(0), h.Arg(1), f)
}

// complete checks what was parsed, and fills in what follows from it.
func (c *Config) complete(text, mountPoint string, f *pflag.FlagSet) error {
	var err error
	if c.Source, err = source.Parse(text); err != nil {
		return &usageError{err}
	}
	c.rawSource = text
	if mountPoint == "" {
		return usagef("MOUNTPOINT is empty")
	}
	paths := []*string{&mountPoint, &c.CacheDir, &c.LogFile}
	for i := range c.Datastores {
		if c.Datastores[i] == "" {
			return usagef("--datastore is empty")
		}
		paths = append(paths, &c.Datastores[i])
	}
	for _, path := range paths {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return usagef("the working directory is not there any more: use absolute paths")
		}
	}
	c.MountPoint = mountPoint
	// A flag that was given without a value is a variable of a script that was not set, not a wish for the default.
	for _, name := range []string{"cache-dir", "log-file"} {
		if fl := f.Lookup(name); fl.Changed && fl.Value.String() == "" {
			return usagef("--%s is empty", name)
		}
	}
	if err := c.credentialFlags.complete(f); err != nil {
		return err
	}

	if err := c.locate(f); err != nil {
		return err
	}
	if c.Open.word == "none" && (!c.ReadOnly || c.BlobCacheTimeout == 0) {
		return usagef("--open=none needs --read-only and a --blob-cache-timeout that is not 0")
	}
	for _, name := range []string{"write-back", "last-writer-wins", "leases", "convert-append-blobs", "content-type", "create-container"} {
		if v := f.Lookup(name).Value.String(); c.ReadOnly && v != "off" && v != "false" && v != "" {
			return usagef("--%s and --read-only exclude each other: remove one", name)
		}
	}
	if f.Lookup("write-back-delay").Changed && c.WriteBack.word == "off" {
		return usagef("--write-back-delay needs --write-back")
	}
	if time.Duration(c.RetryFor) > maxRetryFor {
		return usagef("--retry-for must be at most %s", durationText(maxRetryFor))
	}
	if c.Anonymous || c.Auth.word == string(auth.Anonymous) {
		switch {
		case c.Source.HasSAS:
			return usagef("--anonymous uses no credential, and the source has one: remove --anonymous, or the SAS token")
		case c.Datastore != nil && len(c.Datastore.Credential) > 0:
			return usagef("--anonymous uses no credential, and datastore definition %s has one: remove --anonymous", c.Datastore.File)
		}
	}
	if c.fsname != "" && c.fsname != c.Source.Verbatim {
		return usagef("option fsname is not supported: the name in the mount table is the source, or mount -a would mount twice")
	}

	sizes := []struct {
		name     string
		v        sizeValue
		min, max int64
	}{
		{"block-size", c.BlockSize, blobcache.MinBlockSize, blob.MaxBlockSize},
		{"memory", cmp.Or(c.Memory, blobcache.MinMemory), blobcache.MinMemory, 1 << 50},
		{"names-memory", cmp.Or(c.NamesMemory, blobcache.MinNamesMemory), blobcache.MinNamesMemory, 1 << 50},
		{"cache-size", cmp.Or(c.CacheSize, minCacheSize), minCacheSize, 1 << 60},
	}
	for _, s := range sizes {
		if int64(s.v) < s.min || int64(s.v) > s.max {
			return usagef("--%s must be from %s to %s", s.name, formatSize(s.min), formatSize(s.max))
		}
	}
	if c.BlockSize%blobcache.MinBlockSize != 0 {
		return usagef("--block-size must be a multiple of %s", formatSize(blobcache.MinBlockSize))
	}
	return nil
}

// writeBacks are the words of --write-back.
var writeBacks = map[string]blobcache.WriteBack{
	"off": blobcache.WriteThrough, "close": blobcache.WriteBackClose, "fsync-local": blobcache.WriteBackSync,
}

// permissions returns the bits for files and for directories.
func (c *Config) permissions() (file, dir uint32) {
	return uint32(c.FileMode &^ c.Umask), uint32(c.DirMode &^ c.Umask)
}

// flagError says in one line what is wrong with an argument, without repeating a value that may be secret.
func flagError(err error, f *pflag.FlagSet) error {
	var names []string
	f.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	var (
		notExist *pflag.NotExistError
		required *pflag.ValueRequiredError
		invalid  *pflag.InvalidValueError
		option   *optionError
		unknown  *unknownError
	)
	switch {
	case errors.As(err, &option):
		return option
	case errors.As(err, &unknown):
		return unknown
	case errors.As(err, &notExist):
		if s := notExist.GetSpecifiedShortnames(); s != "" {
			// What follows a single dash is a bundle of letters to pflag, whatever the user meant by it.
			name, _, _ := strings.Cut(s, "=")
			if slices.Contains(names, name) {
				return fmt.Errorf("unknown flag -%s: write --%s", name, name)
			}
			return &unknownError{"flag", "-" + s[:1], adviceFor(name, names, "--")}
		}
		name := notExist.GetSpecifiedName()
		return &unknownError{"flag", "--" + printableName(name), adviceFor(name, names, "--")}
	case errors.As(err, &required):
		return fmt.Errorf("flag --%s needs a value", required.GetFlag().Name)
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %s", invalid.GetFlag().Name, reason(invalid))
	}
	return errors.New("the flags are malformed: see blobmount --help")
}

// reason is why a flag's value was refused, without the value.
func reason(err error) string {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err.Error()
	}
	switch invalid.GetFlag().Value.Type() {
	case "bool":
		return "must be true or false"
	default:
		return invalid.Unwrap().Error()
	}
}

// usage returns the help text.
func usage(f *pflag.FlagSet) string {
	var b strings.Builder
	b.WriteString(`blobmount makes a container of Azure Blob Storage a directory.

  blobmount [flags] SOURCE MOUNTPOINT       mount; returns when the directory can be used
  blobmount unmount [--lazy] MOUNTPOINT     unmount; returns when all is written
  blobmount status [MOUNTPOINT]             show what mounts are doing, and which files are not saved yet
  blobmount recover list                    show what earlier mounts could not save; also save, retry, discard
  blobmount version                         show the version

SOURCE is one of
  az://CONTAINER[/PREFIX]                   the account comes from flags, secret directory or environment
  https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX][?SAS]
  abfss://CONTAINER@ACCOUNT.dfs.core.windows.net[/PREFIX], and the same as abfs, wasb and wasbs
  azureml://datastores/NAME/paths/[PREFIX]  with --datastore FILE
  http://HOST:PORT/ACCOUNT/CONTAINER[/PREFIX]

SIZE is in bytes, or has a unit: KiB, MiB, GiB, TiB (powers of 1024), KB, MB, GB, TB (powers of 1000).
DURATION is in seconds, or has units: 90, 90s, 5m, 1m30s.
`)
	for _, s := range sections {
		fmt.Fprintf(&b, "\n%s:\n", s.title)
		part := pflag.NewFlagSet("", pflag.ContinueOnError)
		part.SortFlags = false
		for _, name := range s.flags {
			part.AddFlag(f.Lookup(name))
		}
		b.WriteString(part.FlagUsagesWrapped(110))
	}
	b.WriteString(`
The credential is the first of: flags, SAS token of the source and datastore definition; secret directory;
environment (AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, in this order,
and the names of other tools, see README.md); the default chain of the Azure SDK (environment, workload
identity, managed identity, Azure CLI).

Exit status: 0 mounted; 1 the arguments are wrong; 32 the mount failed.
`)
	return b.String()
}
