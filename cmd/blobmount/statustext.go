package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"blobmount/fs"
)

// writeStatus writes for people.
func writeStatus(w io.Writer, all []mountStatus, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "There is no blobmount mount on this machine.")
		return err
	}
	for i, m := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if m.Status == nil {
			fmt.Fprintf(w, "%s\n  %s\n", m.MountPoint, m.Error)
			continue
		}
		if err := writeMount(w, m.MountPoint, m.Status, now); err != nil {
			return err
		}
	}
	return nil
}

// writeWords are what the words of --write-back mean to a program.
var writeWords = map[string]string{
	"off":         "close and fsync wait for the service",
	"close":       "close waits for the local disk, fsync for the service (--write-back)",
	"fsync-local": "close and fsync wait for the local disk (--write-back=fsync-local)",
}

func writeMount(w io.Writer, path string, s *fs.Status, now time.Time) error {
	fmt.Fprintf(w, "%s  from %s\n", path, s.Source)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "  %s\t"+format+"\n", append([]any{name}, args...)...)
	}
	line("daemon", "process %d, version %s", s.PID, s.Version)
	line("account", "%s, by the %s", s.Account, s.Credential.Origin)
	line("credential", "%s", credentialText(s.Credential, now))
	if s.Problem != "" {
		line("", "%s", s.Problem)
	}
	writes := writeWords[s.WriteBack]
	if s.ReadOnly {
		writes = "read-only"
	}
	line("writes", "%s", writes)
	passthrough := "off"
	if s.Passthrough {
		passthrough = "on"
	}
	line("opens", "%s, passthrough %s", s.Open, passthrough)
	names := s.BlobCacheTimeout + " s"
	if s.BlobCacheTimeout == "none" {
		names = "for ever"
	}
	line("names known", "%s", names)
	line("names", "%d in %d directories, %s of %s; %d nodes", s.Names, s.Directories, humanSize(s.NamesUsed), humanSize(s.NamesMemory), s.Nodes)
	line("cache", "%s of %s in %s, %d evicted", humanSize(s.CacheUsed), humanSize(s.CacheSize), s.CacheDir, s.Evicted)
	line("memory", "at most %s", humanSize(s.Memory))
	if s.Hidden > 0 {
		line("not shown", "%d blobs, whose names no path can express", s.Hidden)
	}
	if s.Shadowed > 0 {
		line("not shown", "%d blobs, beside directories of their names", s.Shadowed)
	}
	if s.UnsavedFiles == 0 {
		line("not saved", "nothing")
	} else {
		line("not saved", "%s, %s", files(s.UnsavedFiles), humanSize(s.UnsavedBytes))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if s.UnsavedFiles > 0 {
		if err := writeUnsaved(w, s, now); err != nil {
			return err
		}
	}
	if s.UnfinishedRenames > 0 {
		return writeRenames(w, s, now)
	}
	return nil
}

// writeRenames writes a table of the renames of directories that are not finished, and what to do.
func writeRenames(w io.Writer, s *fs.Status, now time.Time) error {
	fmt.Fprintf(w, "  renames of directories that are not finished: %d\n", s.UnfinishedRenames)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	idle := false
	for _, r := range s.Renames {
		state := r.State
		if !r.Active {
			idle = true
			state += ", nobody works on it"
		}
		if r.Error != "" {
			state += ": " + r.Error
		}
		fmt.Fprintf(t, "    %q\tto %q\tfor %s\t%d blobs\t%s\n", r.From, r.To, durationText(now.Sub(r.Began).Round(time.Second)), r.Blobs, state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more := s.UnfinishedRenames - len(s.Renames); more > 0 {
		fmt.Fprintf(w, "    and %d more\n", more)
	}
	if !idle {
		_, err := fmt.Fprintln(w, "  Leave it mounted: they end by themselves.")
		return err
	}
	_, err := fmt.Fprintf(w, "  What nobody works on is finished by the next mount of %s with --cache-dir %s and without --read-only.\n", s.Source, s.CacheDir)
	return err
}

// credentialText says how old the credential is, when it was looked for, and when it ends.
func credentialText(c fs.Credential, now time.Time) string {
	ago := func(t time.Time) string { return durationText(max(0, now.Sub(t)).Round(time.Second)) + " ago" }
	text := fmt.Sprintf("in use since %s, last read %s", c.Since.Local().Format(time.DateTime), ago(c.Read))
	switch {
	case c.Expires == nil:
	case now.Before(*c.Expires):
		text += fmt.Sprintf(", expires in %s", durationText(c.Expires.Sub(now).Round(time.Second)))
	default:
		text += fmt.Sprintf(", EXPIRED %s", ago(*c.Expires))
	}
	return text
}

// writeUnsaved writes a table of the files that are not saved, and what to do.
func writeUnsaved(w io.Writer, s *fs.Status, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	failed, lost := false, false
	for _, u := range s.Unsaved {
		failed, lost = failed || u.Error != "" && !u.Lost, lost || u.Lost
		fmt.Fprintf(t, "    %q\t%s\tfor %s\t%s\n", u.Name, humanSize(u.Bytes), durationText(now.Sub(u.Since).Round(time.Second)), stateOf(u))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more := s.UnsavedFiles - len(s.Unsaved); more > 0 {
		fmt.Fprintf(w, "    and %d more\n", more)
	}
	switch {
	case failed:
		fmt.Fprintf(w, "  Leave it mounted: what is closed is tried again until the service takes it. What remains at an unmount is kept in %s.\n", s.CacheDir)
	default:
		fmt.Fprintln(w, "  Leave it mounted: what is closed is sent by itself, what is open when it is closed or synced.")
	}
	if lost {
		fmt.Fprintf(w, "  Another writer was faster for some: when they are closed, see blobmount recover --cache-dir %s list\n", s.CacheDir)
	}
	return nil
}

// stateOf says why a file is not saved.
func stateOf(u fs.Unsaved) string {
	state := "closed"
	switch {
	case u.Lost:
		state = "changed by another writer"
	case u.Acked:
		state = "closed, on the local disk"
	case u.Open:
		state = "open"
	}
	if u.Error != "" {
		state += ": " + u.Error
	}
	return state
}
