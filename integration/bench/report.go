package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a run has found.
type report struct {
	command  string
	machine  string
	lines    []line
	findings []finding
}

// newReport describes the machine, without its name.
func newReport(l *lab, command string) (*report, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(l.dir, &st); err != nil {
		return nil, err
	}
	// What follows the numbers of a release is the builder's own.
	release, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	disk := fmt.Sprintf("file system %#x", st.Type)
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		disk = "ext4"
	case unix.XFS_SUPER_MAGIC:
		disk = "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		disk = "btrfs"
	}
	return &report{
		command: command,
		machine: fmt.Sprintf("%d cores, %s of memory, Linux %s, %s, %s, %s", runtime.NumCPU(), size(int64(info.Totalram)*int64(info.Unit)), release, disk, runtime.Version(), time.Now().UTC().Format(time.DateOnly)),
	}, nil
}

// missed counts the rows that miss something.
func (r *report) missed() (n int) {
	for _, l := range r.lines {
		if len(l.misses()) > 0 {
			n++
		}
	}
	for _, f := range r.findings {
		if !f.holds {
			n++
		}
	}
	return n
}

// markdown writes the report.
func (r *report) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Benchmarks\n\nMade by `%s`\non %s.\n", r.command, r.machine)
	if len(r.lines) > 0 {
		fmt.Fprintf(w, `
Each row compares a workload on a mount with a reference in the same run. Service, daemon, readers and writers share
the machine, so the rates say little and the ratios much. Rates, ratios, requests and processor time are medians of the
runs, with the least and greatest ratio in brackets; peak RSS, bytes fetched or uploaded for each byte asked, and the
requests that change something (in brackets) are the worst of the runs. The service is the embedded one: `+"`lan`"+` has no
delay; `+"`azure`"+` waits %v to %v before each first byte, and sends %d MiB/s over one connection and %d MiB/s over all.
Rows with other delays name them; bandwidths bound uploads as they bound downloads.

Where the machine itself is a limit, "at best" is the median ratio that the same workload reached in the same runs on what does
nothing else: "bare FUSE" is a file system that only answers the same messages from memory, and a plain file is one on the
disk of the cache. What these fall short of is the cost of the kernel, of go-fuse and of the machine; what blobmount falls
short of them is blobmount's own.

A write has ended when the last close has returned. Then what the service holds is compared with what was written. The
references of writes are what azblob reaches alone, without a disk in between.

| workload | reference | reference rate | rate | ratio | at least | at best | peak RSS | CPU of the daemon | requests (writes) | fetched / asked | uploaded / asked | |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
`, azure.shape.Latency, azure.shape.Latency+azure.shape.Jitter, azure.shape.ConnBandwidth>>20, azure.shape.TotalBandwidth>>20)
	}
	for _, l := range r.lines {
		fmt.Fprintln(w, l.markdown())
	}
	if len(r.findings) == 0 {
		return
	}
	fmt.Fprint(w, "\n## What must hold\n\n| | seen | allowed | |\n|---|---|---|---|\n")
	for _, f := range r.findings {
		verdict := "holds"
		if !f.holds {
			verdict = "**does not hold**"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", f.what, f.seen, f.bound, verdict)
	}
}

func (l line) markdown() string {
	least, most := l.samples[0].ratio(), l.samples[0].ratio()
	for _, s := range l.samples {
		least, most = min(least, s.ratio()), max(most, s.ratio())
	}
	requests, fetched, uploaded := "", "", ""
	if l.asksService() {
		requests = fmt.Sprintf("%.0f", median(l.samples, func(s sample) float64 { return float64(s.got.requests) }))
		if n := l.writes(); n > 0 {
			requests += fmt.Sprintf(" (%d)", n)
		}
		fetched = fmt.Sprintf("%.2f", l.fetchedPerAsked())
		uploaded = fmt.Sprintf("%.2f", l.uploadedPerAsked())
	}
	verdict := "met"
	if m := l.misses(); len(m) > 0 {
		verdict = "**missed**: " + strings.Join(m, ", ")
	}
	cells := []string{
		l.name, l.reference,
		rate(median(l.samples, func(s sample) float64 { return l.rate(s.ref) })) + " " + l.unit.name,
		rate(median(l.samples, func(s sample) float64 { return l.rate(s.got) })) + " " + l.unit.name,
		fmt.Sprintf("%.2f (%.2f–%.2f)", l.ratio(), least, most), fmt.Sprintf("%.2f", l.target), l.atBest(),
		size(l.peakRSS()),
		fmt.Sprintf("%.2f s", median(l.samples, func(s sample) float64 { return s.got.cpu.Seconds() })),
		requests, fetched, uploaded, verdict,
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// rate shows three digits or more.
func rate(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// size shows bytes in whole units of 1024.
func size(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20)
}
