package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"blobmount/integration/blobserver"
)

// workload measures some rows of the table, together because they need the same preparation.
type workload struct {
	name string
	rows []row
	// byName: it takes so long that it is run only when it is asked for by all of its name.
	byName bool
	// start prepares in a lab, and returns what is done once a run. It returns one sample for each row.
	start func(ctx context.Context, l *lab) (func(ctx context.Context, run int) ([]sample, error), error)
}

// chosen reports whether a regular expression asks for the workload.
func (w workload) chosen(only *regexp.Regexp) bool {
	return only.MatchString(w.name) && (!w.byName || only.String() == w.name)
}

// row is a line of the table: what is compared, and what it must reach.
type row struct {
	name, reference string
	unit            unit
	target          float64 // least ratio of the rates
	// ceiling says what does nothing else, and what its rate is compared with; empty where it is not measured.
	ceiling string
	// Further conditions, where they are not zero.
	maxRSS     int64   // bytes, of the daemon at its peak
	maxWrites  int64   // requests that change something in the service
	maxFetched float64 // bytes from the service for each byte asked
	noData     bool    // no byte from the service
	kernel     bool    // the kernel reads by itself: the daemon has next to nothing to do
}

// unit is what a rate counts.
type unit struct {
	name string
	of   func(measure) float64
}

var (
	mibRate  = unit{"MiB/s", func(m measure) float64 { return float64(m.asked) / (1 << 20) }}
	readRate = unit{"reads/s", func(m measure) float64 { return float64(m.reads) }}
	fileRate = unit{"files/s", func(m measure) float64 { return float64(m.reads) }}
)

// measure is what one side did once.
type measure struct {
	took     time.Duration
	asked    int64         // bytes that the readers asked for, or the writers wrote
	reads    int64         // or files written
	rss      int64         // of the daemon, at its peak
	cpu      time.Duration // of the daemon
	counted  bool          // the service counted what follows
	requests int64
	writes   int64 // those of them that change something
	blocks   int64 // those of them that upload a block
	fetched  int64 // bytes of blobs that the service sent
	uploaded int64 // bytes of blobs, blocks and block lists that it got
}

// add counts what was done once more.
func (m *measure) add(n measure) {
	m.took += n.took
	m.asked += n.asked
	m.reads += n.reads
	m.rss = max(m.rss, n.rss)
	m.cpu += n.cpu
	m.counted = m.counted || n.counted
	m.requests += n.requests
	m.writes += n.writes
	m.blocks += n.blocks
	m.fetched += n.fetched
	m.uploaded += n.uploaded
}

// reading are the operations that change nothing in the service.
var reading = []string{"GetBlob", "GetBlobProperties", "GetBlockList", "ListBlobs", "GetContainerProperties", "GetAccountInformation"}

// count notes what the service counted.
func (m *measure) count(s blobserver.Stats) {
	m.counted, m.requests, m.fetched, m.uploaded = true, s.Total(), s.BytesOut, s.BytesIn
	m.blocks, m.writes = s.Requests["PutBlock"], m.requests
	for _, op := range reading {
		m.writes -= s.Requests[op]
	}
}

// sample is one comparison.
type sample struct {
	ref, got measure
	// bare is the same workload on what does nothing else, and bareRef what that is compared with. They are zero in rows
	// without a ceiling.
	bare, bareRef measure
}

// ratio returns how many times as fast as the reference it was.
func (s sample) ratio() float64 { return s.got.times(s.ref) }

// ceiling returns the ratio that was reached by what does nothing else.
func (s sample) ceiling() float64 { return s.bare.times(s.bareRef) }

// times returns how many times as fast as another one it was, by the bytes that either read or wrote.
func (m measure) times(ref measure) float64 {
	return float64(m.asked) / m.took.Seconds() / (float64(ref.asked) / ref.took.Seconds())
}

// line is a measured row.
type line struct {
	row
	samples []sample
}

// median of an even number of values is the lower of the two in the middle.
func median[T any](values []T, key func(T) float64) float64 {
	keys := make([]float64, len(values))
	for i, v := range values {
		keys[i] = key(v)
	}
	slices.Sort(keys)
	return keys[(len(keys)-1)/2]
}

func (l line) ratio() float64 { return median(l.samples, sample.ratio) }

// atBest is what was reached by what does nothing else, as the table shows it.
func (l line) atBest() string {
	if l.ceiling == "" {
		return ""
	}
	return fmt.Sprintf("%.2f: %s", median(l.samples, sample.ceiling), l.ceiling)
}

// peakRSS is the highest of all runs.
func (l line) peakRSS() (rss int64) {
	for _, s := range l.samples {
		rss = max(rss, s.got.rss)
	}
	return rss
}

// fetchedPerAsked returns the most bytes that were fetched for a byte asked, of all runs.
func (l line) fetchedPerAsked() (f float64) {
	for _, s := range l.samples {
		f = max(f, float64(s.got.fetched)/float64(s.got.asked))
	}
	return f
}

// uploadedPerAsked returns the most bytes that were uploaded for a byte written, of all runs.
func (l line) uploadedPerAsked() (f float64) {
	for _, s := range l.samples {
		f = max(f, float64(s.got.uploaded)/float64(s.got.asked))
	}
	return f
}

// writes is the highest of all runs.
func (l line) writes() (n int64) {
	for _, s := range l.samples {
		n = max(n, s.got.writes)
	}
	return n
}

// asksService reports whether what was asked of the service was counted.
func (l line) asksService() bool {
	return slices.ContainsFunc(l.samples, func(s sample) bool { return s.got.counted })
}

// misses says which conditions do not hold.
func (l line) misses() []string {
	var m []string
	if l.ratio() < l.target {
		m = append(m, "ratio")
	}
	if l.maxRSS > 0 && l.peakRSS() > l.maxRSS {
		m = append(m, fmt.Sprintf("RSS above %d MiB", l.maxRSS>>20))
	}
	if l.maxWrites > 0 && l.writes() > l.maxWrites {
		m = append(m, fmt.Sprintf("more than %d write requests", l.maxWrites))
	}
	if l.maxFetched > 0 && l.fetchedPerAsked() > l.maxFetched {
		m = append(m, fmt.Sprintf("more than %g bytes fetched for one", l.maxFetched))
	}
	if l.noData && l.fetchedPerAsked() > 0 {
		m = append(m, "asked the service for data")
	}
	if l.kernel && l.daemonBusy() > maxBusy {
		m = append(m, "the daemon was busy")
	}
	return m
}

// maxBusy is the processor time of a daemon that only answers opens, in parts of the time that passed. One that serves
// reads takes more than a third.
const maxBusy = 0.05

// daemonBusy returns how much of the time the daemon was busy, of all runs together.
func (l line) daemonBusy() float64 {
	var sum measure
	for _, s := range l.samples {
		sum.add(s.got)
	}
	return sum.cpu.Seconds() / sum.took.Seconds()
}

// runBound is a bound for one run of a workload at full scale, ten times what the slowest takes.
const runBound = 20 * time.Minute

// measureWorkload runs a workload and returns its lines.
func measureWorkload(ctx context.Context, l *lab, w workload, runs int) (lines []line, err error) {
	defer func() {
		if cleanErr := l.cleanUp(); err == nil {
			err = cleanErr
		}
	}()
	lines = make([]line, len(w.rows))
	for i, r := range w.rows {
		lines[i].row = r
	}
	once, err := w.start(ctx, l)
	if err != nil {
		return nil, err
	}
	for run := range runs {
		ctx, cancel := context.WithTimeout(ctx, runBound)
		samples, err := once(ctx, run)
		cancel()
		if err != nil {
			return nil, err
		}
		for i, s := range samples {
			lines[i].samples = append(lines[i].samples, s)
			fmt.Fprintf(l.log, "%s, run %d: %s: %.0f against %.0f %s, ratio %.2f%s\n", w.name, run+1, w.rows[i].name,
				w.rows[i].rate(s.got), w.rows[i].rate(s.ref), w.rows[i].unit.name, s.ratio(), w.rows[i].ceilingOf(s))
		}
	}
	return lines, nil
}

// ceilingOf says what was reached in a sample by what does nothing else.
func (r row) ceilingOf(s sample) string {
	if r.ceiling == "" {
		return ""
	}
	return fmt.Sprintf("; at best %.0f, ratio %.2f: %s", r.rate(s.bare), s.ceiling(), r.ceiling)
}

// rate returns what a side reached.
func (r row) rate(m measure) float64 { return r.unit.of(m) / m.took.Seconds() }

// alternate calls the sides of a comparison in turn: in order in even runs, in reverse order in odd ones, so that none
// always comes after another.
func alternate(run int, sides ...func() error) error {
	if run%2 == 1 {
		sides = slices.Clone(sides)
		slices.Reverse(sides)
	}
	for _, f := range sides {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}
