// Command blobserver runs the embedded Blob service on a loopback address, until it gets SIGTERM or SIGINT. It
// prints the connection string on standard output when it answers, and with --admin the URL of its counters on a
// second line. Everything is kept in memory and gone with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
	"blobmount/integration/blobserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, errUsage): // flag has said what is wrong
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

// sampleContainer is where --sample puts its blobs.
const sampleContainer = "demo"

// run serves until ctx is done.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var o blobserver.Options
	flags := flag.NewFlagSet("blobserver", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.Listen, "listen", "127.0.0.1:10000", "`address` to listen on, loopback only; port 0 takes a free one")
	flags.Func("container", "`name` of a container to create; repeatable", func(name string) error {
		o.Containers = append(o.Containers, name)
		return nil
	})
	flags.DurationVar(&o.Shape.Latency, "latency", 0, "time before each request acts, such as 20ms")
	flags.DurationVar(&o.Shape.Jitter, "jitter", 0, "random time added to the latency, at most this")
	flags.Int64Var(&o.Shape.ConnBandwidth, "conn-bandwidth", 0, "`bytes` a second of each connection in each direction; 0 is unlimited")
	flags.Int64Var(&o.Shape.TotalBandwidth, "total-bandwidth", 0, "`bytes` a second of all connections in each direction; 0 is unlimited")
	flags.BoolVar(&o.Anonymous, "anonymous", false, "let anybody on this machine read and list without credentials")
	sample := flags.Bool("sample", false, "create the container "+sampleContainer+" with a small data set")
	var sets []blobserver.Synthetic
	flags.Func("synthetic", "`CONTAINER/PREFIX:COUNT:SIZE` of blobs to create that cost no memory, named by the prefix and six digits; COUNT may be 10000x100 for directories with so many each, and end with %10 to give every tenth a mode and a time; repeatable", func(text string) error {
		set, err := blobserver.ParseSynthetic(text)
		sets = append(sets, set)
		return err
	})
	admin := flags.String("admin", "", "`address` to serve the counters on, loopback only: GET /-/stats, POST /-/reset")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return errUsage
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("blobserver: unexpected argument %q", flags.Arg(0))
	}
	if o.Shape.Latency < 0 || o.Shape.Jitter < 0 || o.Shape.ConnBandwidth < 0 || o.Shape.TotalBandwidth < 0 {
		return errors.New("blobserver: latency, jitter and bandwidths must not be negative")
	}
	s, err := blobserver.Start(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if *sample {
		if err := fillSample(s); err != nil {
			return err
		}
	}
	for _, set := range sets {
		if err := s.AddSynthetic(set); err != nil {
			return err
		}
	}
	lines := s.ConnectionString() + "\n"
	if *admin != "" {
		url, stop, err := startAdmin(*admin, s)
		if err != nil {
			return err
		}
		defer stop()
		lines += url + "\n"
	}
	if _, err := io.WriteString(stdout, lines); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// fillSample makes a data set that shows what a mount does: text to read, directories to walk, a large file to
// stream.
func fillSample(s *blobserver.Server) error {
	store := s.Store(sampleContainer)
	if store == nil {
		if err := s.CreateContainer(sampleContainer); err != nil {
			return err
		}
		store = s.Store(sampleContainer)
	}
	texts := map[string]string{
		"hello.txt": "This file is a blob named hello.txt in the container " + sampleContainer + ".\n",
		"notes/what-is-this.txt": "A container has no directories. This blob is named notes/what-is-this.txt,\n" +
			"and the mount shows what is before the slash as a directory.\n",
		"notes/2026/january/plan.txt":   "1. Read a file.\n2. Write a file.\n3. Look at the container with another tool.\n",
		"notes/2026/february/done.txt":  "Nothing yet.\n",
		"names with spaces/100% ü?.txt": "Any name that is a path works.\n",
		"data/weather.csv":              weather(),
	}
	for name, text := range texts {
		o := blob.WriteOptions{Headers: blob.Headers{ContentType: "text/plain; charset=utf-8"}}
		if _, err := store.Put(name, []byte(text), o); err != nil {
			return fmt.Errorf("blobserver: %s: %w", name, err)
		}
	}
	// Synthetic: 64 MiB that cost no memory.
	if _, err := store.PutSynthetic("data/random-64MiB.bin", 64<<20, blobtest.Random(64), blob.WriteOptions{}); err != nil {
		return fmt.Errorf("blobserver: sample: %w", err)
	}
	return nil
}

// weather returns a table of a year's invented temperatures.
func weather() string {
	table := "day,low_celsius,high_celsius\n"
	for day := range 365 {
		season := min(day, 365-day) / 9 // 0 in winter, 20 in summer
		table += fmt.Sprintf("%d,%d,%d\n", day+1, season-5+day%3, season+3+day%5)
	}
	return table
}
