package main

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// planted is a secret that must not appear in any output.
const planted = "cGxhbnRlZC1zZWNyZXQtdmFsdWU="

func parse(helper bool, args ...string) (Config, error) {
	var c Config
	flags := newFlags(&c, 1000, 1001)
	p := parseConfig
	if helper {
		p = parseHelper
	}
	err := p(args, &c, flags)
	return c, err
}

func TestConfigDefaults(t *testing.T) {
	c, err := parse(false, "az://data", "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	file, dir := c.permissions()
	if c.UID.id != 1000 || c.GID.id != 1001 || file != 0o644 || dir != 0o755 || c.BlockSize != 8<<20 ||
		time.Duration(c.BlobCacheTimeout) != time.Minute || c.WriteBack.word != "off" || c.LastWriterWins || c.ConvertAppend ||
		time.Duration(c.WriteBackDelay) != 5*time.Second || time.Duration(c.RetryFor) != 90*time.Second || time.Duration(c.DrainTimeout) != 2*time.Minute || c.LogLevel.word != "info" || c.LogFormat.word != "text" ||
		c.ReadOnly || c.AllowOther || c.Foreground || c.MountPoint != "/mnt" {
		t.Errorf("%+v", c)
	}
}

// "-o a,b=c sets the same flags": each flag, given either way, makes the same configuration.
func TestOptionsAreFlags(t *testing.T) {
	values := map[string]string{
		"uid": "7", "gid": "8", "file-mode": "0600", "dir-mode": "0700", "umask": "027", "account-name": "acct1",
		"endpoint": "https://blobs.example.com", "secret-dir": "/s", "cache-dir": "/c", "cache-size": "1GiB", "memory": "64MiB", "names-memory": "32MiB",
		"block-size": "4MiB", "blob-cache-timeout": "none", "log-level": "debug", "log-format": "json", "log-file": "/l",
		"cloud": "china", "auth": "msi", "tenant-id": "t", "client-id": "c", "object-id": "o", "resource-id": "/r", "client-certificate": "/cert",
		"federated-token-file": "/token", "authority-host": "https://login.example.com", "ca-file": "/ca",
		"content-type": ".x=text/x; charset=utf-8", "open": "files", "passthrough": "off", "prefetch": "7", "datastore": definition(t, ""),
		"write-back": "fsync-local", "write-back-delay": "30s", "retry-for": "5m", "drain-timeout": "1h30m",
	}
	newFlags(new(Config), 0, 0).VisitAll(func(f *pflag.Flag) {
		if notInOptions[f.Name] {
			return
		}
		t.Run(f.Name, func(t *testing.T) {
			arg := f.Name
			if f.Value.Type() != "bool" {
				v, ok := values[f.Name]
				if !ok {
					t.Fatal("the test has no value for it")
				}
				arg += "=" + v
			}
			// What it makes no sense without.
			with := map[string][]string{"write-back-delay": {"-o", "write_back"}}[f.Name]
			source := "az://data"
			if f.Name == "datastore" {
				source = "azureml://datastores/store1/paths/a"
			}
			want, err := parse(false, append([]string{"--" + arg, source, "/mnt"}, with...)...)
			if err != nil {
				t.Fatal(err)
			}
			none, err := parse(false, append([]string{source, "/mnt"}, with...)...)
			if err != nil && f.Name != "datastore" {
				t.Fatal(err)
			}
			if reflect.DeepEqual(text(want), text(none)) {
				t.Error("it changes nothing")
			}
			name, value, hasValue := strings.Cut(arg, "=")
			under := strings.ReplaceAll(name, "-", "_")
			if hasValue {
				under += "=" + value
			}
			for _, o := range []string{arg, under, "--" + arg, "rw," + under + ",_netdev"} {
				for _, args := range [][]string{{"-o", o, source, "/mnt"}, {source, "/mnt", "-o" + o}, {"--options=" + o, source, "/mnt"}} {
					if got, err := parse(false, append(args, with...)...); err != nil || !reflect.DeepEqual(text(got), text(want)) {
						t.Errorf("%q gives\n%v, %v, want\n%v", args, text(got), err, text(want))
					}
				}
				if got, err := parse(true, append([]string{source, "/mnt", "-o", o}, with...)...); err != nil || !reflect.DeepEqual(text(got), text(want)) {
					t.Errorf("helper with %q gives\n%v, %v", o, text(got), err)
				}
			}
		})
	})
}

// text is a configuration without its functions, which cannot be compared, and without the way that it came.
func text(c Config) Config {
	c.UID.lookup, c.GID.lookup, c.helper = nil, nil, false
	return c
}

func TestOptions(t *testing.T) {
	tests := []struct {
		in     string
		check  func(Config) bool
		kernel []string
	}{
		{"", func(c Config) bool { return true }, nil},
		{"rw,_netdev,nofail,noauto,auto,user,users,defaults,x-systemd.automount,X-mount.mkdir=0755,comment=a b,user=me", func(c Config) bool { return !c.ReadOnly }, nil},
		{"ro", func(c Config) bool { return c.ReadOnly }, nil},
		{"rw,ro", func(c Config) bool { return c.ReadOnly }, nil},
		{"ro,rw", func(c Config) bool { return !c.ReadOnly }, nil},
		{"ro,rw,ro", func(c Config) bool { return c.ReadOnly }, nil},
		{"read_only,rw", func(c Config) bool { return c.ReadOnly }, nil},
		{"read_only,ro,rw", func(c Config) bool { return c.ReadOnly }, nil},
		{"noexec,nosuid,nodev,noatime", func(c Config) bool { return true }, []string{"noexec", "nosuid", "nodev", "noatime"}},
		{"dev,suid", func(c Config) bool { return true }, []string{"dev", "suid"}},
		{"allow_other,default_permissions,nonempty", func(c Config) bool { return c.AllowOther && c.NonEmpty }, nil},
		{`cache_dir="/a,b",ro`, func(c Config) bool { return c.CacheDir == "/a,b" && c.ReadOnly }, nil},
		{`"cache_dir=/a,b",log_file=/x=y`, func(c Config) bool { return c.CacheDir == "/a,b" && c.LogFile == "/x=y" }, nil},
		{"uid=root,gid=root,umask=077", func(c Config) bool {
			f, d := c.permissions()
			return c.UID.id == 0 && c.GID.id == 0 && f == 0o600 && d == 0o700
		}, nil},
		{"umask=022,umask=002", func(c Config) bool { return c.Umask == 2 }, nil},
		{"fsname=az://data,subtype=blobmount", func(c Config) bool { return true }, nil},
		{"write_back", func(c Config) bool {
			return c.WriteBack.word == "close" && c.WriteBackDelay == durationValue(5*time.Second)
		}, nil},
		{"write-back=fsync-local,write_back_delay=0", func(c Config) bool { return c.WriteBack.word == "fsync-local" && c.WriteBackDelay == 0 }, nil},
		{"write_back,write_back=off,ro", func(c Config) bool { return c.WriteBack.word == "off" && c.ReadOnly }, nil},
		{"retry_for=300,drain_timeout=5m", func(c Config) bool {
			return c.RetryFor == durationValue(5*time.Minute) && c.DrainTimeout == c.RetryFor
		}, nil},
		{"read_only=false", func(c Config) bool { return !c.ReadOnly }, nil},
		{"--block-size=1MiB,--allow-other", func(c Config) bool { return c.BlockSize == 1<<20 && c.AllowOther }, nil},
	}
	for _, tt := range tests {
		c, err := parse(false, "-o", tt.in, "az://data", "/mnt")
		if err != nil || !tt.check(c) || !slices.Equal(c.KernelOptions, tt.kernel) {
			t.Errorf("%q gives %+v, %v", tt.in, c, err)
		}
	}
}

func TestLastOneWins(t *testing.T) {
	if c, err := parse(false, "--umask=022", "-o", "umask=002", "az://data", "/mnt"); err != nil || c.Umask != 2 {
		t.Errorf("%v, %v", c.Umask, err)
	}
	if c, err := parse(false, "-o", "umask=002", "--umask=022", "az://data", "/mnt"); err != nil || c.Umask != 0o22 {
		t.Errorf("%v, %v", c.Umask, err)
	}
}

func TestHelper(t *testing.T) {
	c, err := parse(true, "az://data", "/mnt", "-s", "-f", "-n", "-v", "-o", "rw,nonsense=1,uid=5", "-t", "fuse.blobmount")
	if err != nil || !c.fake || !c.sloppy || !c.verbose || c.Foreground || c.UID.id != 5 || !slices.Equal(c.ignored, []string{"nonsense"}) {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := parse(true, "az://data/a b", "/mnt", "-o", "rw"); err != nil || c.Source.Verbatim != "az://data/a b" || c.Source.Prefix != "a b/" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestConfigRefuses(t *testing.T) {
	both := func(args ...string) []string { return append(args, "az://data", "/mnt") }
	tests := []struct {
		helper bool
		args   []string
		want   string
	}{
		{false, nil, "SOURCE and MOUNTPOINT are missing"},
		{false, []string{"az://data"}, "MOUNTPOINT is missing"},
		{false, []string{"az://data", "/mnt", planted}, "too many arguments: 3"},
		{false, []string{"az://data", ""}, "MOUNTPOINT is empty"},
		{false, []string{"/srv", "/mnt"}, "must look like az://"},
		{false, both("--cache-sise=1GiB"), "unknown flag --cache-sise: did you mean --cache-size?"},
		{false, both("--zzzzzz=" + planted), "unknown flag --zzzzzz"},
		{false, both("--" + planted), "unknown flag --(not shown)"},
		{false, both("--account-key=" + planted), "unknown flag --account-key: secrets are not taken as arguments"},
		{false, both("--sas-token", planted), "use the file sas_token"},
		{false, both("-account-key=" + planted), "unknown flag -a"},
		{false, both("-read-only"), "--read-only"},
		{false, both("-x" + planted), "unknown flag -x"},
		{false, both("--uid"), "--uid there is no user of that name"},
		{false, []string{"az://data", "/mnt", "--uid"}, "flag --uid needs a value"},
		{false, both("--uid=nobody-at-all"), "--uid there is no user of that name"},
		{false, both("--file-mode=999"), "--file-mode must be octal"},
		{false, both("--cache-size=10G"), "--cache-size unit G is ambiguous"},
		{false, both("--cache-size=1MiB"), "--cache-size must be from 64MiB"},
		{false, both("--memory=1MiB"), "--memory must be from 32MiB"},
		{false, both("--open=none"), "--open=none needs --read-only"},
		{false, both("--open=none", "--read-only", "--blob-cache-timeout=0"), "a --blob-cache-timeout that is not 0"},
		{false, both("--open=sometimes"), "--open must be one of auto, files, none"},
		{false, both("--passthrough=on"), "--passthrough must be one of auto, off"},
		{false, both("--content-type=json"), "--content-type must be the end of a name and a content type"},
		{false, both("--content-type=.x=text"), `--content-type "text" is no content type`},
		{false, both("--content-type=.x=text/x", "--read-only"), "--content-type and --read-only exclude each other"},
		{false, both("--prefetch=-1"), "--prefetch must be auto, off or a number"},
		{false, both("--write-back=always"), "--write-back must be one of off, close, fsync-local"},
		{false, both("--write-back="), "--write-back must be one of"},
		{false, both("--write-back", "--read-only"), "--write-back and --read-only exclude each other"},
		{false, both("-o", "ro,write_back=fsync-local"), "--write-back and --read-only exclude each other"},
		{false, both("--last-writer-wins", "-r"), "--last-writer-wins and --read-only exclude each other"},
		{false, both("--leases", "-r"), "--leases and --read-only exclude each other"},
		{false, both("--convert-append-blobs", "-r"), "--convert-append-blobs and --read-only exclude each other"},
		{false, both("--write-back-delay=1"), "--write-back-delay needs --write-back"},
		{false, both("--write-back-delay=soon"), "--write-back-delay must be a number of seconds from 0, or a span such as 90s or 5m"},
		{false, both("--write-back-delay=none"), "--write-back-delay must be a number of seconds"},
		{false, both("--drain-timeout=-1s"), "--drain-timeout must be a number of seconds"},
		{false, both("--retry-for=16m"), "--retry-for must be at most 15m"},
		{false, both("--block-size=1KiB"), "--block-size must be from 64KiB to 4000MiB"},
		{false, both("--block-size=5000MiB"), "--block-size must be from"},
		{false, both("--block-size=1000000"), "multiple of 64KiB"},
		{false, both("--blob-cache-timeout=1m"), "number of seconds"},
		{false, both("--log-level=loud"), "--log-level must be one of debug"},
		{false, both("--log-format=xml"), "--log-format must be one of"},
		{false, both("--read-only=maybe"), "--read-only must be true or false"},
		{false, both("--cache-dir="), "--cache-dir is empty"},
		{false, both("--account-name="), "--account-name is empty"},
		{false, both("--anonymous", "--secret-dir=/s"), "--anonymous uses no credential"},
		{false, both("--auth=anonymous", "--secret-dir=/s"), "--anonymous uses no credential"},
		{false, both("--anonymous", "--auth=key"), "--anonymous and --auth=key exclude each other"},
		{false, both("--auth=password"), "--auth must be one of auto, key, sas, spn, workload, msi, cli, login, anonymous"},
		{false, both("--cloud=mooncake"), "--cloud must be one of public, china, usgovernment"},
		{false, both("--ca-file="), "--ca-file is empty"},
		{false, []string{"--account-name=other", "https://acct1.blob.core.windows.net/data", "/mnt"}, `--account-name says "other"`},
		{false, []string{"--endpoint=https://acct1.blob.core.chinacloudapi.cn", "https://acct1.blob.core.windows.net/data", "/mnt"}, "--endpoint and the URL"},
		{false, []string{"--endpoint=http://127.0.0.1:10000/other", "https://acct1.blob.core.windows.net/data", "/mnt"}, `--endpoint is of account "other"`},
		{false, []string{"--account-name=other", "--datastore", definition(t, ""), "azureml://datastores/store1/paths/", "/mnt"}, `store1.yml "acct1"`},
		{false, both("--datastore=d.yml"), "--datastore is for a source that names one"},
		{false, both("--datastore="), "--datastore is empty"},
		{false, []string{"azureml://datastores/d/paths/a", "/mnt"}, "--datastore FILE"},
		{false, []string{"--datastore", definition(t, ""), "azureml://datastores/d/paths/a", "/mnt"}, "--datastore has store1"},
		{false, []string{"--anonymous", "--datastore", definition(t, "credentials: {account_key: "+planted+"}"), "azureml://datastores/store1", "/mnt"}, "--anonymous uses no credential"},
		{false, []string{"--anonymous", "https://acct1.blob.core.windows.net/data?sv=1&sig=" + planted, "/mnt"}, "--anonymous uses no credential"},
		{false, []string{"-o", "ro", "https://acct1.blob.core.windows.net/data?sv=1&sig=" + planted, "/mnt"}, "cannot be mounted with -o"},
		{true, []string{"https://acct1.blob.core.windows.net/data?sv=1&sig=" + planted, "/mnt", "-o", "rw"}, "in /etc/fstab and in the mount table"},
		{false, []string{"https://acct1-secondary.blob.core.windows.net/data", "/mnt"}, "add --read-only, or name the primary one, https://acct1.blob.core.windows.net"},
		{false, both("--create-container", "-r"), "--create-container and --read-only exclude each other"},
		{false, both("-o", "allow_othr"), "unknown option allow_othr: did you mean allow-other?"},
		{false, both("-o", "noexe"), "unknown option noexe: did you mean noexec?"},
		{false, both("-o", "account_key="+planted), "unknown option account_key: secrets are not taken as arguments"},
		{false, both("-o", "foo="+planted), "unknown option foo"},
		{false, both("-o", planted), "unknown option"},
		{false, both("-o", "remount,ro"), "option remount is not supported: a mount cannot be changed"},
		{false, both("-o", "attr_timeout=5"), "use blob-cache-timeout"},
		{false, both("-o", "vfs_write_back=5s"), "use write-back and write-back-delay"},
		{false, both("-o", "allow_root"), "use allow_other"},
		{false, both("-o", "foreground"), "option foreground can only be given as a flag"},
		{false, both("-o", "o=ro"), "unknown option o"},
		{false, both("-o", "options=ro"), "can only be given as a flag"},
		{false, both("-o", "ro=1"), "option ro takes no value"},
		{false, both("-o", "noexec=1"), "option noexec takes no value"},
		{false, both("-o", "uid"), "option uid needs a value"},
		{false, both("-o", "uid=x y"), "option uid there is no user"},
		{false, both("-o", "allow_other=maybe"), "option allow_other must be true or false"},
		{false, both("-o", "cache_size=10G"), "option cache_size unit G is ambiguous"},
		{false, both("-o", `cache_dir="/a`), `--options has a " without its partner`},
		{false, both("-o", "fsname=other"), "option fsname is not supported"},
		{false, both("-o", "subtype=s3"), "option subtype must be blobmount"},
		{true, []string{"az://data"}, "mount helper needs SOURCE and DIRECTORY"},
		{true, []string{"az://data", "/mnt", "-N", "1"}, "-N is not supported"},
		{true, []string{"az://data", "/mnt", "-t", "ext4"}, "type must be blobmount"},
		{true, []string{"az://data", "/mnt", "-o", "nonsense=" + planted}, "unknown option nonsense"},
		{true, []string{"az://data", "/mnt", "-s", "-o", "remount"}, "not supported"},
		{true, []string{"az://data", "/mnt", "-s", "-o", "uid=x y"}, "there is no user"},
		{true, []string{"az://data", "/mnt", "--read-only"}, "unknown flag --read-only"},
	}
	for _, tt := range tests {
		_, err := parse(tt.helper, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error is %v, want %q", tt.args, err, tt.want)
			continue
		}
		if got := exitStatus(err); got != exitUsage {
			t.Errorf("%q: exit status %d", tt.args, got)
		}
		if strings.Contains(err.Error(), planted) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error shows the secret or has several lines: %q", tt.args, err)
		}
	}
}

// "No option parsed and ignored", and none without its line in the help.
func TestHelpHasEveryFlag(t *testing.T) {
	flags := newFlags(new(Config), 0, 0)
	seen := map[string]int{}
	for _, s := range sections {
		for _, n := range s.flags {
			seen[n]++
		}
	}
	help := usage(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		if seen[f.Name] != 1 {
			t.Errorf("--%s is in %d sections", f.Name, seen[f.Name])
		}
		if !strings.Contains(help, "--"+f.Name+" ") {
			t.Errorf("--%s is not in the help", f.Name)
		}
	})
	for line := range strings.Lines(help) {
		if len(line) > 115 || strings.TrimRight(line, " \n") != strings.TrimRight(line, "\n") {
			t.Errorf("line %q", line)
		}
	}
}

func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c, err := parse(false, "--cache-dir=c", "--log-file=./l", "--secret-dir=../s", "az://data", "m")
	wd, _ := os.Getwd()
	if err != nil || c.CacheDir != wd+"/c" || c.LogFile != wd+"/l" || c.MountPoint != wd+"/m" || strings.Contains(c.SecretDir, "..") {
		t.Errorf("%+v, %v", c, err)
	}
}
