package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"blobmount/auth"
	"blobmount/cmd/source"
)

// What a mount is of, and with which credential: the source, the definition of a datastore that it may name, and the
// flags that go before both.

// locate finds out what the source means, and takes over what the definition of a datastore says and no flag does.
func (c *Config) locate(f *pflag.FlagSet) error {
	src := &c.Source
	if src.Datastore == "" && len(c.Datastores) > 0 {
		return usagef("--datastore is for a source that names one: use azureml://datastores/NAME/paths/PREFIX as the source, or remove --datastore")
	}
	definitions, err := source.ReadDefinitions(c.Datastores)
	if err != nil {
		return err
	}
	resolved, definition, err := src.Resolve(definitions)
	if err != nil {
		return &usageError{err}
	}
	*src, c.Datastore = resolved, definition
	if err := c.checkSAS(f); err != nil {
		return err
	}
	if definition != nil {
		if err := c.adopt(definition, f); err != nil {
			return err
		}
	}
	if src.Endpoint == "" {
		return nil
	}
	if c.AccountName != "" && c.AccountName != src.Account {
		return usagef("--account-name says %q, %s %q: remove one", c.AccountName, c.accountFrom(), src.Account)
	}
	if err := c.checkEndpoint(); err != nil {
		return err
	}
	if src.Secondary && c.Endpoint == "" && !c.ReadOnly {
		return usagef("the secondary location of an account can only be read: add --read-only, or name the primary one, %s",
			strings.Replace(src.Endpoint, "-secondary", "", 1))
	}
	return nil
}

// checkEndpoint refuses an --endpoint of another account than that of the source. One that names no account is where
// that of the source is reached: an emulator, a proxy, or a domain of somebody's own.
func (c *Config) checkEndpoint() error {
	if c.Endpoint == "" {
		return nil
	}
	other := auth.AccountOf(c.Endpoint)
	if other != "" && other != c.Source.Account {
		return usagef("--endpoint is of account %q, and %s of %q: remove one", other, c.accountFrom(), c.Source.Account)
	}
	host := hostOf(c.Endpoint)
	if _, known := auth.ParseHost(host); known && c.Datastore == nil && !strings.EqualFold(host, hostOf(c.Source.Endpoint)) {
		return usagef("--endpoint and the URL of the source differ: remove one")
	}
	return nil
}

// checkSAS refuses a signature where everybody would go on reading it. On the command line of a person it is taken out
// of what is shown (see hideArgument). In a mount table it would have to stay: mount(8) compares the source there with
// the line in /etc/fstab letter by letter, and mounts a second time over another one.
func (c *Config) checkSAS(f *pflag.FlagSet) error {
	if !c.Source.HasSAS {
		return nil
	}
	const instead = "remove it there, and give it in the file sas_token of --secret-dir, or in AZURE_STORAGE_SAS_TOKEN"
	switch {
	case c.helper:
		return usagef("the source holds a SAS token, which everybody could read in /etc/fstab and in the mount table: %s", instead)
	case f.Lookup("options").Changed:
		// mount.fuse(8) calls programs this way, through a shell that keeps the line too.
		return usagef("a source with a SAS token cannot be mounted with -o, as from /etc/fstab, where everybody could read it: %s; or use flags instead of -o", instead)
	}
	return nil
}

// adopt takes over what a definition says, where no flag says something else.
func (c *Config) adopt(d *source.Definition, f *pflag.FlagSet) error {
	if d.ReadOnly && !f.Lookup("read-only").Changed {
		c.ReadOnly = true
	}
	timeout := f.Lookup("blob-cache-timeout")
	if timeout.Changed {
		return nil
	}
	text := d.BlobCacheTimeout
	if text == "" && c.ReadOnly {
		text = "none" // what Azure Machine Learning means by leaving it out
	}
	if text == "" {
		return nil
	}
	if err := timeout.Value.Set(text); err != nil {
		return fmt.Errorf("datastore definition %s: blob_cache_timeout %w", d.File, err)
	}
	return nil
}

// accountFrom is what messages call the origin of the account that the source means; empty when it means none.
func (c *Config) accountFrom() string {
	switch {
	case c.Source.Account == "":
		return ""
	case c.Datastore != nil:
		return "datastore definition " + c.Datastore.File
	default:
		return "the source"
	}
}

// authOptions says where the credential is looked for. Flags go before the source: locate has refused those that say
// something else than where the service is reached.
func (c *Config) authOptions(lookupEnv func(string) (string, bool)) auth.Options {
	o := c.credentialFlags.options(lookupEnv)
	if c.Source.Account != "" {
		o.Account, o.AccountFrom = c.Source.Account, c.accountFrom()
	}
	if o.Endpoint == "" {
		o.Endpoint = c.Source.Endpoint
	}
	flags, more := o.Given, c.given()
	o.Given = func() ([]auth.Value, error) {
		all, err := flags()
		if err != nil || more == nil {
			return all, err
		}
		values, err := more()
		for _, v := range values {
			if !slices.ContainsFunc(all, func(f auth.Value) bool { return f.Kind == v.Kind }) {
				all = append(all, v)
			}
		}
		return all, err
	}
	return o
}

// given returns what the source, or the definition of a datastore, has of a credential. A definition is read again each
// time, so that a new secret in it is found.
func (c *Config) given() func() ([]auth.Value, error) {
	switch {
	case c.Source.HasSAS:
		sas := auth.Value{Kind: auth.SASToken, Secret: c.Source.SAS, From: "the source"}
		return func() ([]auth.Value, error) { return []auth.Value{sas}, nil }
	case c.Datastore != nil:
		first := *c.Datastore
		return func() ([]auth.Value, error) {
			d, err := source.ReadDefinition(first.File)
			if err != nil {
				return nil, err
			}
			if !strings.EqualFold(d.Name, first.Name) || d.Endpoint != first.Endpoint || d.Container != first.Container {
				return nil, fmt.Errorf("datastore definition %s is of another datastore now: unmount, and mount again", first.File)
			}
			return d.Credential, nil
		}
	}
	return nil
}
