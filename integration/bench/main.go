// Command bench measures blobmount: each workload is run on a real mount and compared with a reference in the same run,
// such as a plain file or a program that does nothing but download. It prints a table of the ratios, and says which
// miss their targets. It needs root, for drop_caches, and FUSE.
//
// The service is the embedded one, in a process of its own. Readers and writers are processes of their own too. Everything is on
// one machine, so absolute rates say little; the ratios are what counts.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == asWorker {
		if err := work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt, syscall.SIGHUP)
	// Output that nobody reads any more ends it too, but not by the signal's default, which would leave mounts behind. The
	// signal itself does not say which write it is for: connections to the service break as well.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(ctx)
	err := run(ctx, os.Args[1:], read{os.Stdout, cancel}, read{os.Stderr, cancel})
	cancel(nil)
	stop()
	switch {
	case errors.Is(err, errUsage): // flag has said what is wrong
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// read is output that ends the benchmark when nobody reads it.
type read struct {
	io.Writer
	end context.CancelCauseFunc
}

func (r read) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if err != nil {
		r.end(fmt.Errorf("output: %w", err))
	}
	return n, err
}

var (
	errUsage  = errors.New("usage")
	errMissed = errors.New("rows miss their target")
)

// reportFile is where --write puts the report, seen from the module's directory.
const reportFile = "integration/BENCHMARKS.md"

// byHand stands in the report file above what people have written about it, which stays.
const byHand = "<!-- What follows is written by hand. -->"

// minFree is the disk space that the largest workload takes at full scale: a copy of 10 GiB that goes through the
// cache, which the workload is there to notice, and room for the cache to leave to others.
const minFree = 24 << 30

// all returns what can be measured, in the order of the report.
func all(l *lab) ([]workload, []property) {
	return []workload{
			warmSequential(l), warmRandom(l), warmMapped(l), warmServed(l),
			coldLAN(l), coldAzure(l), coldFour(l), coldRandom(l), coldChunks(l), allColdChunks(l), loader(l), coldTensors(l),
			writeSequential(l), writeLAN(l), writeSmall(l),
		}, []property{
			{"start-up", startUp}, {"eviction", eviction}, {"overwrite", overwrite},
			{"write-middle", writeMiddle}, {"copy-in-mount", copyInMount},
		}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("workloads", "", "`regexp` of the workloads to run; empty for all")
	runs := flags.Int("runs", 3, "`number` of runs, of which the table has the medians")
	scale := flags.Float64("scale", 1, "`factor` for sizes and numbers of files, such as 0.01 for a quick look")
	dir := flags.String("dir", os.TempDir(), "`directory` for scratch files and caches; not a tmpfs")
	write := flags.Bool("write", false, "write the report to "+reportFile+"; only with all workloads at full scale")
	list := flags.Bool("list", false, "list the workloads")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return errUsage
	}
	chosen, err := regexp.Compile(*only)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case err != nil:
		return fmt.Errorf("--workloads: %w", err)
	case *runs < 1 || *scale <= 0 || *scale > 1:
		return errors.New("--runs must be positive, and --scale above 0 and at most 1")
	case *write && (*only != "" || *scale != 1 || *runs < 3):
		return errors.New("--write is for all workloads, at full scale, in at least three runs")
	}
	if *list {
		workloads, properties := all(&lab{scale: *scale})
		for _, w := range workloads {
			if w.byName {
				fmt.Fprintf(stdout, "%s (only by all of its name)\n", w.name)
				continue
			}
			fmt.Fprintln(stdout, w.name)
		}
		for _, p := range properties {
			fmt.Fprintln(stdout, p.name)
		}
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("run as root: the kernel's caches have to be dropped")
	}
	var st unix.Statfs_t
	if err := unix.Statfs(*dir, &st); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	if need := int64(minFree * *scale); int64(st.Bavail)*st.Bsize < need {
		return fmt.Errorf("%s has less than %s free", *dir, size(need))
	}
	l, err := newLab(ctx, *dir, *scale, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()

	r, err := newReport(l, "make bench "+strings.Join(makeVariables(*only, *runs, *scale), " "))
	if err != nil {
		return err
	}
	workloads, properties := all(l)
	var errs []error
	ran := 0
	for _, w := range workloads {
		if !w.chosen(chosen) || ctx.Err() != nil {
			continue
		}
		ran++
		lines, err := measureWorkload(ctx, l, w, *runs)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w.name, err))
			continue
		}
		r.lines = append(r.lines, lines...)
	}
	for _, p := range properties {
		if !chosen.MatchString(p.name) || ctx.Err() != nil {
			continue
		}
		ran++
		found, err := runProperty(ctx, l, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			continue
		}
		r.findings = append(r.findings, found...)
	}
	if ran == 0 && ctx.Err() == nil {
		return fmt.Errorf("no workload matches %q: --list names them", *only)
	}
	errs = append(errs, context.Cause(ctx))
	var text bytes.Buffer
	r.markdown(&text)
	if _, err := stdout.Write(text.Bytes()); err != nil {
		return err
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if *write {
		if err := writeReport(reportFile, text.Bytes()); err != nil {
			return err
		}
	}
	if n := r.missed(); n > 0 {
		return fmt.Errorf("%d of %d %w", n, len(r.lines)+len(r.findings), errMissed)
	}
	return nil
}

// writeReport replaces what the report file has above byHand.
func writeReport(path string, text []byte) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, notes, _ := bytes.Cut(old, []byte(byHand))
	return os.WriteFile(path, slices.Concat(text, []byte("\n"+byHand), notes), 0o644)
}

// makeVariables are the arguments of make that stand for the flags.
func makeVariables(only string, runs int, scale float64) []string {
	v := []string{fmt.Sprintf("RUNS=%d", runs)}
	if only != "" {
		v = append(v, "WORKLOADS='"+only+"'")
	}
	if scale != 1 {
		v = append(v, fmt.Sprintf("SCALE=%g", scale))
	}
	return v
}
