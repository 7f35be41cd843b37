package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"blobmount/integration/azurite"
	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
	"blobmount/integration/mounttest"
)

// nameGroup is a line of the table of names in README.md: names in the order in which they are preferred, by what they
// mean. The table is that of package auth, which a test there keeps true.
type nameGroup struct {
	place string
	names map[string][]string
}

// file reports whether the names are those of files in a secret directory.
func (g nameGroup) file() bool { return strings.HasPrefix(g.place, "`--secret-dir") }

// readNames reads the table.
func readNames(t *testing.T) []nameGroup {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	must(t, err)
	_, rest, _ := strings.Cut(string(text), "<!-- names: generated from auth/table.go -->")
	table, _, ok := strings.Cut(rest, "<!-- end of names -->")
	if !ok {
		t.Fatal("README.md has no table of names")
	}
	var groups []nameGroup
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 4 || !strings.HasPrefix(cells[1], "environment: ") && !strings.HasPrefix(cells[1], "`--secret-dir") {
			continue
		}
		g := nameGroup{cells[1], map[string][]string{}}
		for _, part := range strings.Split(cells[2]+"; "+cells[3], ";") {
			what, names, _ := strings.Cut(strings.TrimSpace(part), " `")
			for name := range strings.SplitSeq(strings.Trim(names, "`"), "`, `") {
				if name != "" {
					g.names[what] = append(g.names[what], name)
				}
			}
		}
		groups = append(groups, g)
	}
	if len(groups) != 9 {
		t.Fatalf("the table of names has %d groups", len(groups))
	}
	return groups
}

// naming is a mount point whose program is given values under names, and nothing else.
type naming struct {
	*world
	helper string
	group  nameGroup
	files  string   // the secret directory, when there is one
	set    []string // variables
	flags  []string // of every run
}

func newNaming(t *testing.T, s *mounttest.Service) *naming {
	t.Helper()
	c := s.NewContainer(t)
	c.Put("blob", []byte("content"))
	n := &naming{world: &world{s.NewPoint(t, c), c, t}, helper: filepath.Join(t.TempDir(), "mount.blobmount")}
	must(t, os.Symlink(mounttest.Binary(t), n.helper))
	n.Setenv("AZURE_STORAGE_CONNECTION_STRING=")
	return n
}

// give takes back what was given before, and gives values under their names.
func (n *naming) give(g nameGroup, values map[string]string) {
	n.t.Helper()
	for _, name := range n.set {
		n.Setenv(name + "=")
	}
	n.group, n.set, n.files = g, nil, ""
	for name, value := range values {
		if !g.file() || strings.ToUpper(name) == name {
			n.Setenv(name + "=" + value)
			n.set = append(n.set, name)
			continue
		}
		if n.files == "" {
			n.files = n.t.TempDir()
		}
		must(n.t, os.WriteFile(filepath.Join(n.files, name), []byte(value), 0o600))
	}
}

// options are the flags of a run.
func (n *naming) options(more ...string) []string {
	flags := slices.Concat(n.flags, more)
	if n.files != "" {
		flags = append(flags, "--secret-dir="+n.files)
	}
	return flags
}

// checks runs the program up to the point where it would mount: the service has then taken the credential.
func (n *naming) checks(more ...string) mounttest.Result {
	n.t.Helper()
	list := "rw,cache_dir=" + n.Cache
	for _, f := range n.options(more...) {
		list += "," + strings.TrimPrefix(f, "--")
	}
	return n.RunAs(n.helper, n.Source(), n.Dir, "-f", "-o", list)
}

// mounts mounts, reads, and asks the status for who won.
func (n *naming) mounts(kind, name string, more ...string) {
	n.t.Helper()
	n.Mount(n.options(more...)...)
	n.read("blob", []byte("content"))
	source := "environment " + name
	if n.group.file() {
		source = "secret file " + filepath.Join(n.files, name)
	}
	if r := n.Run("status", n.Dir); r.Status != 0 || !strings.Contains(r.Stdout, ", by the "+kind+" from "+source+"\n") {
		n.t.Errorf("status does not name %s from %s: %+v", kind, source, r)
	}
	named := slices.ContainsFunc(n.LogLines(), func(l mounttest.Line) bool {
		return l.Message == "credential found" && strings.Contains(l.Text, `"origin":"`+kind+" from "+source+`"`)
	})
	if !named {
		n.t.Errorf("the log does not name %s from %s", kind, source)
	}
	n.Unmount()
	n.EmptyCache()
}

// "Each name alone mounts": of keys, SAS tokens and connection strings, and of accounts and endpoints beside a key. For each
// group one mount is real, and its status and log name the winner.
func testCredentialNames(t *testing.T, s *mounttest.Service) {
	n := newNaming(t, s)
	token := containerSAS(t, azurite.Key, n.Name, "rcwdl", time.Hour)
	values := map[string]string{"connection string": s.ConnectionString(), "account key": azurite.Key, "SAS token": token}
	bare := "--endpoint=" + strings.TrimSuffix(s.URL(), "/"+azurite.Account)
	count := 0
	for _, g := range readNames(t) {
		mounted := false
		for _, kind := range []string{"connection string", "account key", "SAS token"} {
			for _, name := range g.names[kind] {
				count++
				var flags []string
				if kind != "connection string" {
					flags = []string{"--endpoint=" + s.URL()}
				}
				n.give(g, map[string]string{name: values[kind]})
				if !mounted {
					mounted = true
					n.mounts(kind, name, flags...)
				} else if r := n.checks(flags...); r != (mounttest.Result{}) {
					t.Errorf("%s %s: %+v", kind, name, r)
				}
			}
		}
		for _, name := range g.names["account name"] {
			count++
			n.give(g, map[string]string{name: azurite.Account, "AZURE_STORAGE_ACCOUNT_KEY": azurite.Key})
			if r := n.checks(bare); r != (mounttest.Result{}) {
				t.Errorf("account %s: %+v", name, r)
			}
			n.give(g, map[string]string{name: azurite.Account + "x", "AZURE_STORAGE_ACCOUNT_KEY": azurite.Key})
			if r := n.checks(bare); r.Status != 32 {
				t.Errorf("another account in %s: %+v", name, r)
			}
		}
		for _, name := range g.names["endpoint"] {
			count++
			n.give(g, map[string]string{name: s.URL() + "/", "AZURE_STORAGE_ACCOUNT_KEY": azurite.Key})
			if r := n.checks(); r != (mounttest.Result{}) {
				t.Errorf("endpoint %s: %+v", name, r)
			}
		}
	}
	if count < 28 {
		t.Errorf("only %d names", count)
	}

	// Two names of one group each, that differ: the line names both, and neither value.
	n.give(nameGroup{}, map[string]string{"AZURE_STORAGE_ACCOUNT_KEY": azurite.Key, "AZURE_STORAGE_KEY": "b3RoZXI="})
	refused(t, n.Point, n.checks("--endpoint="+s.URL()), 32,
		"environment AZURE_STORAGE_ACCOUNT_KEY and environment AZURE_STORAGE_KEY are both the account key and differ: unset one", "b3RoZXI=")
	// With several kinds there, the one that was asked for.
	n.give(nameGroup{}, map[string]string{"AZURE_STORAGE_ACCOUNT_KEY": "b3RoZXI=", "AZURE_STORAGE_SAS_TOKEN": token})
	refused(t, n.Point, n.checks("--endpoint="+s.URL()), 32, "the account key from environment AZURE_STORAGE_ACCOUNT_KEY", "b3RoZXI=")
	if r := n.checks("--endpoint="+s.URL(), "--auth=sas"); r != (mounttest.Result{}) {
		t.Errorf("--auth=sas: %+v", r)
	}
	// $CREDENTIALS_DIRECTORY of systemd is a secret directory.
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "connection_string"), []byte(s.ConnectionString()+"\n"), 0o400))
	n.give(nameGroup{}, map[string]string{"CREDENTIALS_DIRECTORY": dir})
	if r := n.checks(); r != (mounttest.Result{}) {
		t.Errorf("CREDENTIALS_DIRECTORY: %+v", r)
	}
}

// "Each name alone mounts", of identities: with the tenant, client and password that the same group has for them.
func TestIdentityNames(t *testing.T) {
	mounttest.NeedFUSE(t)
	s, id := mounttest.WithIdentity(t)
	n := newNaming(t, s)
	const client, secret, subject = "11111111-2222-3333-4444-555555555555", "the-secret-of-an-application", "system:serviceaccount:a:b"
	id.AddSecret(client, secret)
	certificate, pemFile, err := identity.NewClientCertificate("application")
	must(t, err)
	id.AddCertificate(client, certificate)
	cluster, err := id.NewCluster()
	must(t, err)
	id.Trust(client, cluster, subject)
	token, err := cluster.Token(subject, "api://AzureADTokenExchange", time.Hour)
	must(t, err)
	managed := identity.ManagedIdentity{ClientID: "aaaaaaaa-0000-0000-0000-000000000001", ObjectID: "aaaaaaaa-0000-0000-0000-000000000002", ResourceID: "/subscriptions/s/r"}
	id.Assign(managed)

	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(path, content, 0o600))
		return path
	}
	values := map[string]string{
		"tenant id": identity.Tenant, "client id": client, "client secret": secret,
		"client certificate": file(pemFile), "federated token file": file([]byte(token)), "federated token": token,
		"client id of a managed identity": managed.ClientID, "object id of a managed identity": managed.ObjectID,
		"resource id of a managed identity": managed.ResourceID,
	}
	n.flags = []string{"--endpoint=" + s.URL(), "--account-name=" + blobserver.DefaultAccount, "--ca-file=" + file(id.CA())}
	kinds := []string{"client secret", "client certificate", "federated token file", "federated token",
		"client id of a managed identity", "object id of a managed identity", "resource id of a managed identity"}
	count := 0
	for _, g := range readNames(t) {
		// with gives a value under one of its names, and what it needs under the first of theirs.
		with := func(kind, name string, beside ...string) {
			count++
			given := map[string]string{"AZURE_POD_IDENTITY_AUTHORITY_HOST": id.ManagedURL(), "AZURE_AUTHORITY_HOST": id.URL()}
			for _, b := range beside {
				given[g.names[b][0]] = values[b]
			}
			given[name] = values[kind]
			if g.file() && kind == "client certificate" { // the file itself
				given[name] = string(pemFile)
			}
			n.give(g, given)
			if r := n.checks(); r != (mounttest.Result{}) {
				t.Errorf("%s %s: %+v", kind, name, r)
			}
		}
		for _, kind := range kinds {
			for _, name := range g.names[kind] {
				if strings.HasSuffix(kind, "managed identity") {
					with(kind, name)
				} else {
					with(kind, name, "tenant id", "client id")
				}
			}
		}
		i := slices.IndexFunc(kinds[:4], func(k string) bool { return g.names[k] != nil })
		if i < 0 {
			continue
		}
		for _, name := range g.names["tenant id"] {
			with("tenant id", name, "client id", kinds[i])
		}
		for _, name := range g.names["client id"] {
			with("client id", name, "tenant id", kinds[i])
		}
	}
	if count < 33 {
		t.Errorf("only %d names", count)
	}
}
