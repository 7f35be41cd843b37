package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// lateWriter keeps what is written until it is told where to write. The log's default place is below the cache
// directory, which is checked and made by code that wants to log.
type lateWriter struct {
	mu     sync.Mutex   // guards all below
	out    io.Writer    // nil until known
	buffer bytes.Buffer // what was written before
}

func (w *lateWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out == nil {
		return w.buffer.Write(p)
	}
	return w.out.Write(p)
}

// to sets where to write, and writes what was kept.
func (w *lateWriter) to(out io.Writer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = out
	_, err := w.buffer.WriteTo(out)
	return err
}

// newLogger returns a logger of the configured level and format.
func newLogger(c *Config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel.word)); err != nil {
		panic("blobmount: --log-level accepts a word that slog does not know: " + c.LogLevel.word)
	}
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat.word == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// logPath returns where the log of a background mount goes.
func logPath(c *Config, mountPoint string) string {
	if c.LogFile != "" {
		return c.LogFile
	}
	return filepath.Join(c.CacheDir, "log", escapePath(mountPoint)+".log")
}

// openLog opens a log file to append to, so that several processes and logrotate's copytruncate can share it.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// escapePath makes a file name of a path in the way of systemd's mount units: /mnt/my-data is mnt-my\x2ddata.
func escapePath(path string) string {
	name := strings.ReplaceAll(strings.Trim(path, "/"), "-", `\x2d`)
	name = strings.ReplaceAll(name, "/", "-")
	if name == "" {
		name = "-"
	}
	if len(name) > 200 { // a file name has at most 255 bytes
		sum := sha256.Sum256([]byte(path))
		name = name[:150] + "-" + hex.EncodeToString(sum[:16])
	}
	return name
}
