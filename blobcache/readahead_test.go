package blobcache

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the transcripts in testdata anew")

// TestReadahead replays transcripts: each line of testdata/readahead/*.txt that begins with a command is given to a
// machine, and the lines with a tab under it are what comes out. Commands:
//
//	blob SIZE                     a new machine, with the sizes that Open chooses for 256 MiB of memory
//	read OFFSET LENGTH            one read
//	reads N FROM STEP LENGTH      N reads, STEP apart
//	refused FROM TO               there was no memory for a part of the plan before
//
// "total" is written at the end of each blob: the bytes that were asked for, those that were fetched, and in how many
// stretches. -update writes the answers anew; the difference is then for a reader to judge.
func TestReadahead(t *testing.T) {
	paths, err := filepath.Glob("testdata/readahead/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			now := replay(t, old)
			if bytes.Equal(old, now) {
				return
			}
			if *update {
				if err := os.WriteFile(path, now, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			was, is := strings.Split(string(old), "\n"), strings.Split(string(now), "\n")
			for i := range min(len(was), len(is)) {
				if was[i] != is[i] {
					t.Fatalf("line %d is\n%s\nwant\n%s\n(-update if that is better)", i+1, is[i], was[i])
				}
			}
			t.Fatalf("%d lines, want %d", len(is), len(was))
		})
	}
}

// replayer is one machine under replay.
type replayer struct {
	t       *testing.T
	out     bytes.Buffer
	r       *readahead
	asked   extents
	fetched extents
}

func replay(t *testing.T, in []byte) []byte {
	p := &replayer{t: t}
	lines := bufio.NewScanner(bytes.NewReader(in))
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "\t") {
			continue // an answer
		}
		word := strings.Fields(line)
		if len(word) == 0 || word[0] == "blob" || word[0] == "#" && p.r != nil {
			p.total()
		}
		fmt.Fprintln(&p.out, line)
		if len(word) == 0 || word[0] == "#" {
			continue
		}
		var arg []int64
		for _, w := range word[1:] {
			arg = append(arg, number(t, w))
		}
		switch {
		case word[0] == "blob" && len(arg) == 1:
			p.r = &readahead{size: arg[0], whole: sumMax, maxWindow: 64 * mib, piece: 4 * mib}
		case word[0] == "read" && len(arg) == 2:
			p.read(arg[0], arg[1])
		case word[0] == "reads" && len(arg) == 4:
			for i := range arg[0] {
				p.read(arg[1]+i*arg[2], arg[3])
			}
		case word[0] == "refused" && len(arg) == 2:
			p.r.refused(arg[0], arg[1])
			p.fetched.remove(arg[0], arg[1])
		default:
			t.Fatalf("unknown command %q", line)
		}
	}
	p.total()
	return p.out.Bytes()
}

func (p *replayer) read(off, n int64) {
	p.t.Helper()
	plan := p.r.read(off, n)
	end := min(off+n, p.r.size)
	p.asked.add(off, end)
	fmt.Fprintf(&p.out, "\t%s+%s: %s", text(off), text(n), p.fetch(plan.demand))
	for i, x := range plan.ahead {
		if i == 0 {
			fmt.Fprint(&p.out, " ahead")
		}
		fmt.Fprintf(&p.out, " %s", p.fetch(x))
	}
	fmt.Fprintln(&p.out)
	if d := plan.demand; d.off > off || d.end < end {
		p.t.Errorf("read %d+%d: %v does not hold it", off, n, d)
	}
}

func (p *replayer) fetch(x extent) string {
	p.t.Helper()
	if x.off >= x.end || x.off < 0 || x.end > p.r.size || x.off%grain != 0 || x.end%grain != 0 && x.end != p.r.size {
		p.t.Errorf("%v is not a range of whole grains in the blob", x)
	}
	p.fetched.add(x.off, x.end)
	return text(x.off) + "-" + text(x.end)
}

func (p *replayer) total() {
	if len(p.asked) > 0 {
		fmt.Fprintf(&p.out, "\ttotal asked %s, fetched %s in %d\n", text(p.asked.total()), text(p.fetched.total()), len(p.fetched))
	}
	p.asked, p.fetched, p.r = nil, nil, nil
}

func text(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "G"}, {mib, "M"}, {kib, "K"}} {
		if n != 0 && n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	return fmt.Sprint(n)
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	sign := int64(1)
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		sign, s = -1, rest
	}
	unit := int64(1)
	for name, size := range map[string]int64{"K": kib, "M": mib, "G": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, name); ok {
			unit, s = size, rest
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return sign * n * unit
}
