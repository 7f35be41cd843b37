package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"blobmount/blobcache"
	"blobmount/blobcache/azure"
)

// recoverCommand is `blobmount recover`: it deals with the files that earlier mounts could not save. It works beside
// running mounts, which hold a lock on what they use.
type recoverCommand struct {
	process
	credentialFlags
	cacheDir                         string
	retryFor                         durationValue
	json, force, lastWriterWins, yes bool
	help                             bool
}

const recoverUsage = `blobmount recover shows and saves the files that a mount could not save before it ended, and shows renames of
directories that are not finished, which a mount goes on with.

  blobmount recover [flags] list            show them
  blobmount recover [flags] save ID PATH    write the content to PATH, or to standard output for -
  blobmount recover [flags] retry ID        send it to the service, under the name that it was written to
  blobmount recover [flags] discard ID      delete it

Account and credential are needed by retry, and by save when bytes of a changed file are neither in the cache nor
were written; they are found as for a mount. Exit status: 0 done; 1 the arguments are wrong; 32 it failed.

`

// verb is what recover can do.
type verb struct {
	args  []string // what it takes
	flags []string // beside those of all
	run   func(c *recoverCommand, ctx context.Context, args []string) error
}

var serviceFlags = append(slices.Clone(credentialNames), "retry-for")

var verbs = map[string]verb{
	"list":    {nil, []string{"json"}, (*recoverCommand).list},
	"save":    {[]string{"ID", "PATH"}, append([]string{"force"}, serviceFlags...), (*recoverCommand).save},
	"retry":   {[]string{"ID"}, append([]string{"last-writer-wins"}, serviceFlags...), (*recoverCommand).retry},
	"discard": {[]string{"ID"}, []string{"yes"}, (*recoverCommand).discard},
}

func (c *recoverCommand) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("recover", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	c.retryFor = durationValue(azure.DefaultRetryFor)
	f.StringVar(&c.cacheDir, "cache-dir", "", "the cache `DIR` of the mount (default: as for a mount)")
	f.BoolVar(&c.json, "json", false, "list: as JSON, sizes in bytes")
	f.BoolVar(&c.force, "force", false, "save: replace PATH if it is there")
	f.BoolVar(&c.lastWriterWins, "last-writer-wins", false, "retry: replace what another writer has made of the blob")
	f.BoolVar(&c.yes, "yes", false, "discard: also bytes that nobody else has")
	c.credentialFlags.register(f)
	f.Lookup("account-name").Usage = "storage `ACCOUNT` (default: that of the file)"
	f.Lookup("endpoint").Usage = "`URL` of the blob service (default: that of the file)"
	f.Var(&c.retryFor, "retry-for", "how long a request that fails for no lasting reason is tried again")
	f.BoolVarP(&c.help, "help", "h", false, "show this text")
	return f
}

func (c *recoverCommand) run(ctx context.Context, args []string) error {
	f := c.flags()
	if err := f.Parse(args); err != nil {
		return &usageError{flagError(err, f)}
	}
	if c.help {
		_, err := fmt.Fprint(c.stdout, recoverUsage+f.FlagUsagesWrapped(110))
		return err
	}
	v, err := c.verb(f)
	if err != nil {
		return err
	}
	if err := c.check(f); err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx, c.signals)
	defer stop()
	if err := v.run(c, ctx, f.Args()[1:]); err != nil {
		if cause := context.Cause(ctx); errors.As(cause, new(*statusError)) {
			return cause
		}
		return err
	}
	return nil
}

// verb checks the words of the command line.
func (c *recoverCommand) verb(f *pflag.FlagSet) (verb, error) {
	name := f.Arg(0)
	v, ok := verbs[name]
	if !ok {
		return v, usagef("recover takes one of list, save ID PATH, retry ID, discard ID: see blobmount recover --help")
	}
	if f.NArg() != 1+len(v.args) || slices.Contains(f.Args(), "") {
		return v, usagef("the form is: %s", strings.Join(append([]string{"blobmount recover", name}, v.args...), " "))
	}
	var wrong string
	f.Visit(func(fl *pflag.Flag) {
		if fl.Name != "cache-dir" && !slices.Contains(v.flags, fl.Name) {
			wrong = fl.Name
		}
	})
	if wrong != "" {
		return v, usagef("--%s means nothing to recover %s: remove it", wrong, name)
	}
	return v, nil
}

// check checks the flags, and fills in the cache directory.
func (c *recoverCommand) check(f *pflag.FlagSet) error {
	if fl := f.Lookup("cache-dir"); fl.Changed && c.cacheDir == "" {
		return usagef("--cache-dir is empty")
	}
	if err := c.credentialFlags.complete(f); err != nil {
		return err
	}
	if time.Duration(c.retryFor) > maxRetryFor {
		return usagef("--retry-for must be at most %s", durationText(maxRetryFor))
	}
	if c.cacheDir == "" {
		var err error
		c.cacheDir, err = defaultCacheDir(c.system.euid, c.lookupEnv)
		return err
	}
	dir, err := filepath.Abs(c.cacheDir)
	if err != nil {
		return usagef("the working directory is not there any more: use absolute paths")
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("cannot read cache directory %s: %w", dir, plain(err))
	}
	c.cacheDir = dir
	return nil
}

// untilSignal returns a context that a signal ends, with an error that names it as the cause.
func untilSignal(ctx context.Context, signals <-chan os.Signal) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case s := <-signals:
			cancel(&statusError{exitInterrupt, fmt.Errorf("%v came before it was done; nothing is lost", s)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// left returns all that is left in the cache directory.
func (c *recoverCommand) left() ([]blobcache.Left, error) {
	all, err := blobcache.ListLeft(c.cacheDir)
	if err != nil {
		return nil, fmt.Errorf("cannot read what is left in %s: %w", c.cacheDir, err)
	}
	return all, nil
}

// find returns what an id names.
func (c *recoverCommand) find(id string) (blobcache.Left, error) {
	l, err := blobcache.FindLeft(c.cacheDir, id)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return blobcache.Left{}, fmt.Errorf("nothing in %s has the id %s: blobmount recover --cache-dir %s list shows what there is",
			c.cacheDir, printableID(id), c.cacheDir)
	case err != nil:
		return blobcache.Left{}, err
	case l.State == blobcache.LeftInUse:
		return l, fmt.Errorf("a mount still works with %s: it sends it by itself, or unmount it first", id)
	}
	return l, nil
}

// printableID returns an id as it may be shown: a mistyped one can be anything.
func printableID(id string) string {
	if len(id) <= 40 && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == "" {
		return id
	}
	return "(not shown)"
}
