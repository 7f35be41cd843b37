package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"blobmount/integration/blobserver"
	"blobmount/integration/identity"
	"blobmount/integration/mounttest"
)

// readComeFrom reads the lines of README.md for users of Azure Machine Learning and ZenML: what they used, and the command.
func readComeFrom(t *testing.T) [][2]string {
	t.Helper()
	_, rest, _ := strings.Cut(read(t, "README.md"), "<!-- come from: each line is run by TestComeFrom -->")
	table, _, ok := strings.Cut(rest, "<!-- end of come from -->")
	if !ok {
		t.Fatal("README.md has no such table")
	}
	command := regexp.MustCompile("^`([^`]*\\bblobmount [^`]*)`")
	var lines [][2]string
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 2 || strings.TrimSpace(cells[1]) == "Here" {
			continue
		}
		m := command.FindStringSubmatch(strings.TrimSpace(cells[1]))
		if m == nil {
			t.Errorf("no command to run: %s", line)
			continue
		}
		lines = append(lines, [2]string{strings.TrimSpace(cells[0]), m[1]})
	}
	return lines
}

// Each line of README.md for those who come from Azure Machine Learning and ZenML works, on a service that checks keys,
// SAS tokens and identities. Its requests go to --endpoint instead of the names of Azure.
func TestComeFrom(t *testing.T) {
	mounttest.NeedFUSE(t)
	s, id := mounttest.WithIdentity(t)
	const client, secret = "11111111-2222-3333-4444-555555555555", "the-secret-of-an-application"
	id.AddSecret(client, secret)
	base := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(base, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	ca := write("ca.pem", string(id.CA()))
	lines := readComeFrom(t)
	if len(lines) < 26 {
		t.Errorf("only %d lines", len(lines))
	}
	for i, line := range lines {
		t.Run(fmt.Sprint("line ", i+1), func(t *testing.T) {
			used, command := line[0], line[1]
			t.Log(used)
			c := s.NewContainer(t)
			c.Put("part/blob", []byte("content"))
			p := s.NewPoint(t, c)
			p.Setenv(noCredential)
			p.Setenv("AZURE_AUTHORITY_HOST=" + id.URL())
			name := fmt.Sprintf("line%d", i)
			target := filepath.Join(base, name, "target")
			values := map[string]string{
				"ACCOUNT": blobserver.DefaultAccount, "KEY": blobserver.DefaultKey, "CONTAINER": c.Name, "SAS": sasOf(t, c, everything),
				"CONNECTION_STRING": s.ConnectionString(), "TENANT": identity.Tenant, "CLIENT": client, "SECRET": secret,
				"DIR": p.Dir, "PREFIX": "part", "NAME": name, "TARGET": target, "SOURCE": filepath.Dir(write(name+"/source/new", "new")),
				"ID": "s", "GROUP": "g", "WORKSPACE": "w",
			}
			values["FILE.yml"] = write(name+"/"+name+".yml", fmt.Sprintf("type: azure_blob\nname: %s\naccount_name: %s\ncontainer_name: %s\ncredentials:\n  account_key: %s\n",
				name, values["ACCOUNT"], c.Name, values["KEY"]))
			values["FILES"] = filepath.Join(base, name, "files")
			files := map[string]string{
				"account_name": "ACCOUNT", "account_key": "KEY", "sas_token": "SAS", "connection_string": "CONNECTION_STRING",
				"tenant_id": "TENANT", "client_id": "CLIENT", "client_secret": "SECRET",
			}
			for _, m := range regexp.MustCompile(`--([a-z]+_[a-z]+)\b`).FindAllStringSubmatch(used, -1) {
				if of, ok := files[m[1]]; ok {
					write(name+"/files/"+m[1], values[of])
				}
			}
			place := regexp.MustCompile(`\b(FILE\.yml|[A-Z][A-Z_]+)\b`)
			fill := func(text string) string {
				return place.ReplaceAllStringFunc(text, func(word string) string {
					if v, ok := values[word]; ok {
						return v
					}
					return word
				})
			}

			mount, after, _ := strings.Cut(command, " && ")
			words := strings.Fields(mount)
			at := slices.Index(words, "blobmount")
			for _, variable := range words[:at] {
				name, value, _ := strings.Cut(variable, "=")
				p.Setenv(name + "=" + fill(value))
			}
			args := []string{"--cache-dir", p.Cache, "--log-file", p.Log, "--log-format=json", "--ca-file=" + ca, "--endpoint=" + s.URL()}
			for _, w := range words[at+1:] {
				args = append(args, fill(w))
			}
			switch {
			case strings.Contains(mount, "--auth=login"): // who the process is
				for _, v := range []string{"AZURE_TENANT_ID=" + identity.Tenant, "AZURE_CLIENT_ID=" + client, "AZURE_CLIENT_SECRET=" + secret} {
					p.Setenv(v)
				}
			case at == 0 && !strings.Contains(mount, "--datastore") && !strings.Contains(mount, "--secret-dir"):
				p.Setenv("AZURE_STORAGE_ACCOUNT_NAME=" + values["ACCOUNT"])
				p.Setenv("AZURE_STORAGE_ACCOUNT_KEY=" + values["KEY"])
			}
			created := strings.Contains(mount, "--create-container")
			if created {
				_, err := c.Client.Delete(t.Context(), nil)
				must(t, err)
			}
			if r := p.Run(args...); r.Status != 0 || r.Stdout+r.Stderr != "" {
				t.Fatalf("%q: %+v", args, r)
			}
			p.PID()

			path := filepath.Join(p.Dir, "part", "blob")
			if strings.Contains(mount, "PREFIX") {
				path = filepath.Join(p.Dir, "blob")
			}
			if !created {
				got, err := os.ReadFile(path)
				must(t, err)
				equal(t, "blob", got, []byte("content"))
			}
			err := os.WriteFile(filepath.Join(p.Dir, "new"), nil, 0o644)
			if strings.Contains(mount, "--read-only") {
				wantErrno(t, "write", err, syscall.EROFS)
			} else {
				must(t, err)
			}
			if m := regexp.MustCompile(`--blob-cache-timeout=(\w+)`).FindStringSubmatch(mount); m != nil {
				if st := p.Run("status", "--json", p.Dir); !strings.Contains(st.Stdout, `"blob_cache_timeout": "`+m[1]+`"`) {
					t.Errorf("status: %+v", st)
				}
			}
			if after != "" {
				if out, err := exec.Command("sh", "-ec", "mkdir -p "+target+"; "+fill(after)).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v, %s", after, err, out)
				}
				if strings.Contains(after, "TARGET") {
					got, err := os.ReadFile(filepath.Join(target, "blob"))
					must(t, err)
					equal(t, "copy", got, []byte("content"))
				} else {
					equal(t, "copy", c.Get("part/new"), []byte("new"))
				}
			}
			p.Unmount()
		})
	}
}
