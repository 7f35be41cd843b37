package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"blobmount/blobcache"
	"blobmount/blobcache/blob"
	"blobmount/fs"
)

// save writes the content of a file to a path.
func (c *recoverCommand) save(ctx context.Context, args []string) error {
	id, path := args[0], args[1]
	l, err := c.find(id)
	if err != nil {
		return err
	}
	cont, closeCont, err := c.readFrom(l)
	if err != nil {
		return err
	}
	defer closeCont()
	var unproven int64
	err = c.withCache(ctx, func(cache *blobcache.Cache) error {
		save := func(w io.Writer) (err error) {
			unproven, err = cache.Save(ctx, id, cont, w)
			return err
		}
		if path == "-" {
			return save(c.stdout)
		}
		return writeFile(path, c.force, save)
	})
	if err == nil {
		c.warn(l, unproven)
	}
	if err != nil || path == "-" {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "Saved %d bytes to %s. They are still kept as %s: blobmount recover --cache-dir %s discard %s --yes\n",
		l.Size, path, id, c.cacheDir, id)
	return err
}

// warn says what is wrong with what was saved of a file.
func (c *recoverCommand) warn(l blobcache.Left, unproven int64) {
	if l.State == blobcache.LeftDamaged {
		fmt.Fprintf(c.stderr, "blobmount: warning: what was saved is damaged: %s\n", oneLine(l.Reason))
	}
	if unproven > 0 {
		fmt.Fprintf(c.stderr, "blobmount: warning: nothing proves %d of the saved bytes: compare them if the machine has lost power; "+
			"blobmount recover --cache-dir %s retry %s sends the file if the service still has these bytes\n", unproven, c.cacheDir, l.ID)
	}
}

// writeFile lets write fill a new file beside path, which gets the name path when all is on disk.
func writeFile(path string, replace bool, write func(io.Writer) error) error {
	if st, err := os.Lstat(path); err == nil && (st.IsDir() || !replace) {
		if st.IsDir() {
			return fmt.Errorf("%s is a directory: name a file", path)
		}
		return existsError(path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".blobmount-save-*")
	if err != nil {
		return fmt.Errorf("cannot write to %s: %w", filepath.Dir(path), plain(err))
	}
	defer os.Remove(f.Name()) // when it has its name, there is nothing to remove
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("nothing is written to %s: %w", path, err)
	}
	return rename(f.Name(), path, replace)
}

func existsError(path string) error {
	return fmt.Errorf("%s is there already: use another path, or --force to replace it", path)
}

// rename gives a file its name, without replacing another unless replace.
func rename(from, to string, replace bool) error {
	if !replace {
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			return existsError(to)
		case !errors.Is(err, unix.EINVAL): // some file systems do not have the flag: it was not there at the start
			return err
		}
	}
	return os.Rename(from, to)
}

// retry sends a file to the service.
func (c *recoverCommand) retry(ctx context.Context, args []string) error {
	l, err := c.find(args[0])
	if err != nil {
		return err
	}
	if l.State == blobcache.LeftDamaged {
		return fmt.Errorf("%s is damaged (%s), and is not sent: look at it by blobmount recover --cache-dir %s save %s PATH",
			l.ID, l.Reason, c.cacheDir, l.ID)
	}
	cont, closeCont, err := c.container(l)
	if err != nil {
		return err
	}
	defer closeCont()
	err = c.withCache(ctx, func(cache *blobcache.Cache) error {
		hooks := blobcache.Hooks{Stamp: fs.Stamp, Committed: func(blob.Properties, bool) {}}
		if err := cache.Retry(ctx, l.ID, cont, hooks); err != nil {
			return c.explain(l, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "Sent %d bytes to %s.\n", l.Size, blobURL(l))
	return err
}

// explain says what became of a file that could not be sent, and what to do.
func (c *recoverCommand) explain(l blobcache.Left, err error) error {
	if blob.Is(err, blob.ConditionNotMet) && !c.lastWriterWins {
		return fmt.Errorf("another writer has changed %s since it was opened: save yours by blobmount recover --cache-dir %s save %s PATH, "+
			"or replace theirs by retry with --last-writer-wins (%w)", blobURL(l), c.cacheDir, l.ID, err)
	}
	return fmt.Errorf("%s is not sent, and still kept: %w", l.ID, err)
}

// discard deletes a file.
func (c *recoverCommand) discard(_ context.Context, args []string) error {
	l, err := c.find(args[0])
	if err != nil {
		return err
	}
	if !c.yes {
		if l.State == blobcache.LeftUnreadable {
			return fmt.Errorf("nobody can tell what %s holds (%s): give --yes to delete it all the same", l.ID, l.Reason)
		}
		if l.Here+l.Only > 0 {
			return fmt.Errorf("%s holds changes to %s that nobody else has (%s): save them first, or give --yes to delete them",
				l.ID, blobURL(l), humanSize(l.Here+l.Only))
		}
	}
	return blobcache.Discard(c.cacheDir, l.ID)
}

// withCache opens the cache directory beside the mounts that use it, for do. They keep their own bounds: a lower one here
// would evict what they may keep.
func (c *recoverCommand) withCache(ctx context.Context, do func(*blobcache.Cache) error) error {
	var config Config
	newFlags(&config, c.uid, c.gid) // for the default size of blocks
	cache, err := blobcache.Open(blobcache.Config{
		Dir: c.cacheDir, Size: math.MaxInt64 / 2, Memory: blobcache.MinMemory, BlockSize: int64(config.BlockSize),
		LastWriterWins: c.lastWriterWins, Log: slog.New(slog.DiscardHandler), // errors say it
	})
	if err != nil {
		return err
	}
	return errors.Join(do(cache), cache.Close(context.WithoutCancel(ctx)))
}
