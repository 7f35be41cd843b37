package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"blobmount/blobcache"
)

// leftJSON is an element of `recover list --json`.
type leftJSON struct {
	ID        string    `json:"id"`
	State     string    `json:"state"`
	Reason    string    `json:"reason,omitempty"`
	URL       string    `json:"url"`
	Container string    `json:"container"` // URL, with the prefix of the mount
	Name      string    `json:"name"`      // of the blob, relative to that
	Size      int64     `json:"size"`
	Here      int64     `json:"bytes_here"`            // that are in the staging file; the others are those of the blob, or zeros
	Only      int64     `json:"bytes_in_service_only"` // in blocks that are not committed
	Changed   time.Time `json:"changed"`
	PID       int       `json:"pid"` // of the process that wrote it
}

// renameJSON is an element of `recover list --json` too: the rename of a directory, whose state begins with "rename".
type renameJSON struct {
	State     string    `json:"state"`
	Reason    string    `json:"reason,omitempty"`
	Container string    `json:"container"` // URL, with the prefix of the mount
	From      string    `json:"from"`      // relative to that
	To        string    `json:"to"`
	Blobs     int64     `json:"blobs"` // to rename, as far as they were listed
	Began     time.Time `json:"began"`
	PID       int       `json:"pid"` // of the process that began it
	Journal   string    `json:"journal"`
}

// stepAdvice says what each step of a rename means and what to do.
var stepAdvice = []struct {
	step blobcache.RenameStep
	text string
}{
	{blobcache.RenameCopying, "all is under the old name, and some of it is copied: the next mount copies the rest, and deletes the old names"},
	{blobcache.RenameDeleting, "all is under the new name, and some is under the old one too: the next mount deletes that"},
	{blobcache.RenameGoingBack, "it failed, all is under the old name, and copies are under the new one: the next mount deletes them"},
	{blobcache.RenameUnreadable, "its journal is damaged, or of another version of blobmount: use that version, or compare both names and delete the journal"},
}

// adviceOn says what each state means and what to do.
var adviceOn = []struct {
	state blobcache.LeftState
	text  string
}{
	{blobcache.LeftInUse, "a mount works with it, and sends it by itself"},
	{blobcache.LeftFinished, "closed or synced, and not sent: the next mount of its container with this cache directory sends it, or retry ID"},
	{blobcache.LeftUnfinished, "the daemon ended while it was being written: look at it by save ID PATH, then retry ID or discard ID"},
	{blobcache.LeftConflict, "another writer has changed the blob: save ID PATH and discard ID, or replace theirs by retry ID --last-writer-wins"},
	{blobcache.LeftDamaged, "its bytes are not those that were written, as after a loss of power: look at it by save ID PATH, then discard ID"},
	{blobcache.LeftUnreadable, "its journal is damaged, or of another version of blobmount, or a file cannot be opened: use that version, mend it, or discard ID"},
}

func (c *recoverCommand) list(_ context.Context, _ []string) error {
	all, err := c.left()
	if err != nil {
		return err
	}
	renames, err := blobcache.ListRenames(c.cacheDir)
	if err != nil {
		return fmt.Errorf("cannot read which renames are left in %s: %w", c.cacheDir, err)
	}
	if c.json {
		out := make([]any, 0, len(all)+len(renames))
		for _, l := range all {
			out = append(out, leftJSON{l.ID, l.State.String(), l.Reason, blobURL(l), l.Container, l.Name, l.Size, l.Here, l.Only, l.Changed, l.PID})
		}
		for _, r := range renames {
			out = append(out, renameJSON{"rename " + stepText(r), r.Reason, r.Container, r.From, r.To, r.Blobs, r.Began, r.PID, r.Journal})
		}
		return writeJSON(c.stdout, out)
	}
	if len(all)+len(renames) == 0 {
		_, err := fmt.Fprintf(c.stdout, "Nothing is left in %s.\n", c.cacheDir)
		return err
	}
	if len(all) > 0 {
		if err := writeLeft(c.stdout, all); err != nil || len(renames) == 0 {
			return err
		}
		fmt.Fprintln(c.stdout)
	}
	return writeLeftRenames(c.stdout, renames)
}

// stepText says how far a rename is, and whether somebody works on it.
func stepText(r blobcache.Rename) string {
	if r.InUse {
		return r.Step.String() + ", in use"
	}
	return r.Step.String()
}

// writeLeftRenames writes a table of renames of directories, and a line for each step that occurs in it.
func writeLeftRenames(w io.Writer, all []blobcache.Rename) error {
	fmt.Fprintln(w, "Renames of directories that are not finished:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STATE\tBEGUN\tBLOBS\tCONTAINER\tFROM\tTO\tJOURNAL")
	used, idle := false, map[blobcache.RenameStep]bool{}
	for _, r := range all {
		if used = used || r.InUse; !r.InUse {
			idle[r.Step] = true
		}
		from, to := fmt.Sprintf("%q", r.From), fmt.Sprintf("%q", r.To)
		if r.Step == blobcache.RenameUnreadable {
			from, to = "-", "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", stepText(r), r.Began.Local().Format(time.DateTime), r.Blobs,
			cmp.Or(r.Container, "-"), from, to, r.Journal)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if used {
		fmt.Fprintln(w, "in use: a mount works on it, and finishes it by itself")
	}
	for _, a := range stepAdvice {
		if idle[a.step] {
			fmt.Fprintf(w, "%s: %s\n", a.step, a.text)
		}
	}
	delete(idle, blobcache.RenameUnreadable)
	if len(idle) > 0 {
		if _, err := fmt.Fprintln(w, "The next mount is one of the container with this cache directory and without --read-only."); err != nil {
			return err
		}
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// writeLeft writes a table, and a line for each state that occurs in it.
func writeLeft(w io.Writer, all []blobcache.Left) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSTATE\tSIZE\tCHANGED\tBLOB\tREASON")
	occurs := map[blobcache.LeftState]bool{}
	for _, l := range all {
		occurs[l.State] = true
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.State, humanSize(l.Size), l.Changed.Format(time.DateTime),
			cmp.Or(blobURL(l), "-"), cmp.Or(oneLine(l.Reason), "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, a := range adviceOn {
		if occurs[a.state] {
			if _, err := fmt.Fprintf(w, "%s: %s\n", a.state, a.text); err != nil {
				return err
			}
		}
	}
	return nil
}

// blobURL is the address of the blob; empty when the journal does not say.
func blobURL(l blobcache.Left) string {
	if l.Container == "" {
		return ""
	}
	return strings.TrimSuffix(l.Container, "/") + "/" + strings.ReplaceAll(url.PathEscape(l.Name), "%2F", "/")
}

// humanSize writes a number of bytes with three digits, in binary units.
func humanSize(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 999.5 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	switch {
	case f < 9.995:
		return fmt.Sprintf("%.2f%s", f, units[i])
	case f < 99.95:
		return fmt.Sprintf("%.1f%s", f, units[i])
	}
	return fmt.Sprintf("%.0f%s", f, units[i])
}
