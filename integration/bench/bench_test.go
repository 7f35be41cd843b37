package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"blobmount/integration/blobserver"
)

// TestMain lets the test binary be the workers' processes too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asWorker {
		if err := work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needsMounts(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and FUSE: %v", err)
	}
	f.Close()
}

// The program measures: a few workloads of each kind, as small as they get, on real mounts.
func TestSmall(t *testing.T) {
	needsMounts(t)
	t.Chdir("../..")
	dir := t.TempDir()
	var out bytes.Buffer
	err := run(t.Context(), []string{"--scale=0.001", "--runs=1", "--workloads=^(warm-random|warm-served|cold-four|loader|start-up|eviction|overwrite)$", "--dir", dir}, &out, io.Discard)
	if err != nil && !errors.Is(err, errMissed) { // at this scale a ratio says nothing
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, row := range []string{"random 4 KiB, page cache warm, 4 threads", "four readers of four files, 4 MiB each, --memory", "first epoch, --memory=64MiB", "zero-message opens", "after a remount"} {
		if strings.Count(out.String(), row) != 1 {
			t.Errorf("no row %q", row)
		}
	}
	for row, of := range map[string]string{"warm without passthrough": "the same plain file", "after a remount": "its own second epoch before its remount"} {
		checkCeiling(t, out.String(), row, "bare FUSE, of "+of)
	}
	if text := cell(t, out.String(), "zero-message opens", "at best"); text != "" {
		t.Errorf("a row without a ceiling has one: %q", text)
	}
	// These hold at every scale.
	if s := out.String(); strings.Contains(s, "does not hold") || !strings.Contains(s, "ended by ESTALE) | 0 | holds") || !strings.Contains(s, "could not be read | 0 | 0 | holds") {
		t.Errorf("%s", s)
	}
}

// cell returns what the report has in a column of the row whose name contains a text.
func cell(t *testing.T, report, row, column string) string {
	t.Helper()
	_, table, _ := strings.Cut(report, "\n| workload |")
	head, rows, _ := strings.Cut(table, "\n")
	at := slices.IndexFunc(strings.Split(head, "|"), func(s string) bool { return strings.TrimSpace(s) == column })
	for line := range strings.Lines(rows) {
		cells := strings.Split(line, "|")
		if at >= 0 && len(cells) > at+2 && strings.Contains(cells[1], row) {
			return strings.TrimSpace(cells[at+2]) // beside the empty one before the first bar, and the one that was cut off
		}
	}
	t.Fatalf("no column %q in a row %q:\n%s", column, row, report)
	return ""
}

// Output that nobody reads any more ends the benchmark, and a broken connection does not.
func TestNobodyReads(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	w := read{out, cancel}
	if _, err := io.WriteString(w, "report"); err != nil || ctx.Err() != nil {
		t.Fatalf("%v, %v", err, ctx.Err())
	}
	in.Close()
	if _, err := io.WriteString(w, "report"); !errors.Is(err, syscall.EPIPE) || !errors.Is(context.Cause(ctx), syscall.EPIPE) {
		t.Errorf("%v, %v", err, context.Cause(ctx))
	}
}

// checkCeiling looks at what the report says was reached at best.
func checkCeiling(t *testing.T, report, row, what string) {
	t.Helper()
	text := cell(t, report, row, "at best")
	number, found := strings.CutSuffix(text, ": "+what)
	if ratio, err := strconv.ParseFloat(number, 64); !found || err != nil || ratio <= 0 { // it says nothing at this scale
		t.Errorf("%s: the ceiling is %q", row, text)
	}
}

// A workload that takes very long is run only when it is asked for by all of its name.
func TestChosen(t *testing.T) {
	for only, want := range map[string]string{
		"^cold-chunks":     "cold-chunks",
		"cold-chunks":      "cold-chunks",
		"cold-chunks-full": "cold-chunks-full",
		"cold-(four|c.*)$": "cold-four cold-chunks",
	} {
		var got []string
		workloads, _ := all(&lab{scale: 1})
		for _, w := range workloads {
			if w.chosen(regexp.MustCompile(only)) {
				got = append(got, w.name)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%q chooses %q, want %q", only, s, want)
		}
	}
	workloads, _ := all(&lab{scale: 1})
	for _, w := range workloads {
		if w.byName == w.chosen(regexp.MustCompile("")) {
			t.Errorf("%s is by name: %v, and without a name it is the other way round", w.name, w.byName)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"extra"}, "extra"},
		{[]string{"--runs=0"}, "--runs"},
		{[]string{"--scale=2"}, "--scale"},
		{[]string{"--workloads=("}, "--workloads"},
		{[]string{"--write", "--scale=0.1"}, "--write"},
		{[]string{"--no-such-flag"}, "no-such-flag"},
	} {
		var stderr bytes.Buffer
		err := run(t.Context(), c.args, io.Discard, &stderr)
		if err == nil || !strings.Contains(err.Error()+stderr.String(), c.says) {
			t.Errorf("%q: %v, %s", c.args, err, stderr.String())
		}
	}
}

// A reader finds a wrong byte, a file that is too short, and a wrong checksum.
func TestReadersCompare(t *testing.T) {
	f := file{Path: filepath.Join(t.TempDir(), "f"), Name: "name", Size: 64 << 10}
	if err := writeCopy(f); err != nil {
		t.Fatal(err)
	}
	tasks := map[string]task{
		"in blocks": {Op: opRead, Block: 8 << 10, CheckEvery: 1},
		"by spans":  {Op: opRead, Spans: []span{{100, 50}, {60 << 10, 4 << 10}}, CheckEvery: 1},
		"mapped":    {Op: opRead, Block: 4 << 10, MMap: true, CheckEvery: 1},
		"at random": {Op: opRandom, Block: 4 << 10, Count: 200, Threads: 2, CheckEvery: 1},
	}
	do := func(x task) (result, error) {
		t.Helper()
		x.Files = []file{f}
		_, r, err := runTasks(t.Context(), nil, x)
		return r, err
	}
	for name, x := range tasks {
		r, err := do(x)
		want := map[string]result{"in blocks": {64 << 10, 8, 0, ""}, "by spans": {50 + 4<<10, 2, 0, ""}, "mapped": {64 << 10, 16, 0, ""}, "at random": {400 * 4 << 10, 400, 0, ""}}[name]
		if err != nil || r != want {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	content := make([]byte, f.Size)
	blobserver.SyntheticContent(f.Name)(content, 0)
	zeros := make([]byte, f.Size)
	if err := os.WriteFile(f.Path, zeros, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, x := range tasks {
		if _, err := do(x); err == nil || !strings.Contains(err.Error(), "wrong bytes") {
			t.Errorf("zeros, %s: %v", name, err)
		}
	}
	if _, err := do(task{Op: opFiles}); err == nil || !strings.Contains(err.Error(), "wrong checksum") {
		t.Errorf("zeros, checksum: %v", err)
	}
	if err := os.WriteFile(f.Path, content[:f.Size-1], 0o600); err != nil {
		t.Fatal(err)
	}
	x := tasks["in blocks"]
	if _, err := do(x); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("too short: %v", err)
	}
	x.Survey = true
	if r, err := do(x); err != nil || r.Failed != 1 {
		t.Errorf("a survey of a file that is too short: %+v, %v", r, err)
	}
}

// The reference downloads what the service has, to where it belongs.
func TestDownload(t *testing.T) {
	s, err := blobserver.Start(blobserver.Options{Anonymous: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := blobserver.Synthetic{Container: "data", Prefix: "x/", Count: 3, Size: 100_000}
	if err := s.AddSynthetic(d); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	blobs := (&service{url: s.URL()}).blobs(d)
	_, r, err := runTasks(t.Context(), nil, task{Op: opDownload, Files: blobs, Block: 30_000, Threads: 4, Out: out})
	if err != nil || r.Bytes != 300_000 || r.Reads != 12 {
		t.Fatalf("%+v, %v", r, err)
	}
	want := make([]byte, 300_000)
	for i := range d.Count {
		blobserver.SyntheticContent(d.Name(i))(want[i*100_000:][:100_000], 0)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other content, %v", err)
	}
	spans := []span{{50_000, 1000}, {10, 70_000}}
	if _, r, err = runTasks(t.Context(), nil, task{Op: opDownload, Files: blobs[:1], Spans: spans, Block: 30_000, Threads: 2, Out: out}); err != nil || r.Bytes != 71_000 || r.Reads != 4 {
		t.Fatalf("%+v, %v", r, err)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got[10:70_010], want[10:70_010]) {
		t.Errorf("spans: other content, %v", err)
	}
	blobs[0].Path += "-missing"
	if _, _, err := runTasks(t.Context(), nil, task{Op: opDownload, Files: blobs, Block: 30_000, Threads: 2, Out: out}); err == nil {
		t.Error("a missing blob is no error")
	}
}

// Each condition of a row can fail it.
func TestMisses(t *testing.T) {
	sec := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	ref := measure{took: sec(1), asked: 100}
	good := line{
		row: row{unit: mibRate, target: 0.5, maxRSS: 1000, maxFetched: 2, maxWrites: 7},
		samples: []sample{
			{ref: ref, got: measure{took: sec(4), asked: 100}},
			{ref: ref, got: measure{took: sec(2), asked: 100, rss: 1000, counted: true, fetched: 200, writes: 7}},
			{ref: ref, got: measure{took: sec(1), asked: 100}},
		},
	}
	if m := good.misses(); m != nil || good.ratio() != 0.5 {
		t.Errorf("%v, ratio %v", m, good.ratio())
	}
	for want, change := range map[string]func(*line){
		"ratio":                   func(l *line) { l.samples[1].got.took = sec(2.1) },
		"RSS above 0 MiB":         func(l *line) { l.samples[0].got.rss = 1001 },
		"more than 2 bytes":       func(l *line) { l.samples[2].got.fetched = 201 },
		"more than 7 write":       func(l *line) { l.samples[2].got.writes = 8 },
		"asked the service for d": func(l *line) { l.noData = true },
		"the daemon was busy":     func(l *line) { l.kernel, l.samples[0].got.cpu = true, sec(0.4) },
	} {
		bad := good
		bad.samples = slices.Clone(good.samples)
		change(&bad)
		if m := bad.misses(); len(m) != 1 || !strings.HasPrefix(m[0], want) || !strings.Contains(bad.markdown(), "**missed**: "+want) {
			t.Errorf("%s: %v", want, m)
		}
	}
	// What is reached at best is shown, with the median of its ratios, and decides nothing.
	bare := good
	bare.ceiling = "the same"
	bare.samples = slices.Clone(good.samples)
	for i, s := range []float64{10, 40, 20} {
		bare.samples[i].bareRef, bare.samples[i].bare = measure{took: sec(1), asked: 50}, measure{took: sec(s), asked: 100}
	}
	if m := bare.misses(); m != nil || !strings.Contains(bare.markdown(), "| 0.50 | 0.10: the same |") {
		t.Errorf("%v, %s", m, bare.markdown())
	}
	r := report{lines: []line{good}, findings: []finding{{holds: true}, {holds: false}}}
	if r.missed() != 1 {
		t.Errorf("%d are missed", r.missed())
	}
}

func TestAlternate(t *testing.T) {
	var order string
	side := func(s string) func() error { return func() error { order += s; return nil } }
	for run := range 3 {
		if err := alternate(run, side("a"), side("b"), side("c")); err != nil {
			t.Fatal(err)
		}
	}
	if order != "abccbaabc" {
		t.Error(order)
	}
	stop := errors.New("stop")
	if err := alternate(0, func() error { return stop }, func() error { t.Error("went on"); return nil }); err != stop {
		t.Error(err)
	}
}

// Every part of the file is read once, in order.
func TestTensors(t *testing.T) {
	for _, n := range []int64{4 << 20, 2 << 30} {
		at := int64(0)
		for _, s := range tensors(n) {
			if s.Off != at || s.Len <= 0 {
				t.Fatalf("%+v after %d", s, at)
			}
			at += s.Len
		}
		if at != n {
			t.Errorf("%d of %d bytes", at, n)
		}
	}
}

// A handle that sees two versions is found, in whichever way it is read.
func TestReadOnceFindsMixtures(t *testing.T) {
	o := &overwriter{dir: t.TempDir()}
	write := func(gens ...int) {
		t.Helper()
		size := generationSize(gens[0])
		content := make([]byte, size)
		for i, n := range gens {
			from := size * int64(i) / int64(len(gens))
			generation(0, n)(content[from:], from)
		}
		if err := os.WriteFile(filepath.Join(o.dir, blobName(0)), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const handles = 20 // half of them read sequentially, half at random
	read := func() int64 {
		t.Helper()
		o.mixed.Store(0)
		for i := range uint64(handles) {
			if version, err := o.readOnce(0, rand.New(rand.NewPCG(5, i))); err != nil || version != 3 {
				t.Fatalf("version %d, %v", version, err)
			}
		}
		return o.mixed.Load()
	}
	write(3)
	if n := read(); n != 0 {
		t.Errorf("%d mixtures of one version", n)
	}
	write(3, 4)
	if n := read(); n != handles {
		t.Errorf("%d of %d mixtures are found", n, handles)
	}
}

// Disk space is counted as du(1) does it: holes take none.
func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	empty, err := onDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sparse")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	if n, err := onDisk(dir); err != nil || n-empty < 1<<20 || n-empty > 2<<20 {
		t.Errorf("%d bytes, %v", n-empty, err)
	}
}

// A reader that is told to stop does.
func TestRunTasksEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := file{Path: "/dev/zero", Name: "zero", Size: 1 << 50}
	if _, _, err := runTasks(ctx, nil, task{Op: opRandom, Files: []file{f}, Block: 1 << 20, Count: 1 << 40}); err == nil {
		t.Error("it ended without an error")
	}
}

// A new report takes the place of the old one, and what people wrote below it stays.
func TestWriteReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.md")
	for _, text := range []string{"first\n", "second\n"} {
		if err := writeReport(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		notes := ""
		if text == "second\n" {
			notes = "\n\nA note.\n"
		}
		if want := text + "\n" + byHand + notes; string(got) != want {
			t.Errorf("the file holds %q, want %q", got, want)
		}
		if err := os.WriteFile(path, append(got, "\n\nA note.\n"...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
