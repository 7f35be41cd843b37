package azure

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// bench runs a limiter by hand. Passes have names; its clock stands still but for the steps.
type bench struct {
	limiter
	start  time.Time
	names  []string // in the order of arrival
	passes map[string]*pass
	seen   map[string]passState
}

func newBench(maxTries int) *bench {
	return &bench{limiter: newLimiter(maxTries), start: time.Unix(0, 0), passes: map[string]*pass{}, seen: map[string]passState{}}
}

// step does "TIME VERB NAMES" (enter, ok, busy, fail, leave, tick), with an argument as in "enter=5s", and returns what
// changed, then tries under way / limit, and who waits.
func (b *bench) step(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	at, err := time.ParseDuration(words[0])
	if err != nil {
		t.Fatal(err)
	}
	now := b.start.Add(at)
	verb, argument, _ := strings.Cut(words[1], "=")
	d := time.Hour
	if verb == "busy" {
		d = 0
	}
	if argument != "" {
		if d, err = time.ParseDuration(argument); err != nil {
			t.Fatal(err)
		}
	}
	var out []string
	for _, name := range words[2:] {
		became := none
		switch verb {
		case "enter":
			b.names = append(b.names, name)
			b.passes[name] = b.enter(now, d)
		case "ok":
			became = b.succeeded(now, b.passes[name])
			b.leave(now, b.passes[name])
		case "busy":
			became = b.throttled(now, b.passes[name], d)
			b.leave(now, b.passes[name])
		case "fail", "leave":
			b.leave(now, b.passes[name])
		default:
			t.Fatalf("no step %q", verb)
		}
		switch became {
		case fell:
			out = append(out, "fell")
		case back:
			out = append(out, "back")
		}
	}
	if verb == "tick" {
		b.admit(now)
	}
	for _, name := range b.names {
		p := b.passes[name]
		if b.seen[name] == p.state {
			continue
		}
		b.seen[name] = p.state
		switch p.state {
		case granted:
			if p.queued > 0 {
				name += fmt.Sprintf("(queued %v)", p.queued)
			}
			out = append(out, "+"+name)
		case refused:
			out = append(out, fmt.Sprintf("!%s(%v)", name, p.hold))
		}
	}
	out = append(out, fmt.Sprintf("%d/%d", b.used, b.limit))
	for _, name := range b.names {
		if b.passes[name].state == waiting {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// Each line: what happens, then after the arrow what comes of it: "+" granted, "!" refused with the wait that it was
// spared, "fell" and "back" of the limit, tries under way / limit, and those who wait, in order.
func TestLimiter(t *testing.T) {
	for what, test := range map[string]struct {
		max    int
		script string
	}{
		"first come, first served": {2, `
			0s enter a b c d e -> +a +b 2/2 c d e
			1s leave d         -> 2/2 c e
			2s ok b            -> +c(queued 2s) 2/2 e
			3s fail a c        -> +e(queued 3s) 1/2`},
		"one cut per round trip": {8, `
			0s enter a b c d e f g h i j k -> +a +b +c +d +e +f +g +h 8/8 i j k
			1s busy a         -> fell 7/4 i j k
			1s busy b c d     -> 4/4 i j k
			1s busy e         -> +i(queued 1s) 4/4 j k
			2s busy f         -> +j(queued 2s) 4/4 k
			3s busy i         -> 3/2 k
			3s busy j         -> 2/2 k
			4s ok g h         -> +k(queued 4s) 1/2
			5s busy k         -> 0/2`},
		"one more per limit's worth of successes": {4, `
			0s enter a b c d   -> +a +b +c +d 4/4
			1s busy a          -> fell 3/2
			1s ok b c d        -> 0/2
			2s enter e f g h i -> +e +f 2/2 g h i
			3s ok e            -> +g(queued 1s) 2/2 h i
			3s ok f            -> +h(queued 1s) +i(queued 1s) 3/3
			4s ok g h          -> 1/3
			4s ok i            -> back 0/4
			4s enter j         -> +j 1/4
			5s ok j            -> 0/4`},
		"a failure of the connection changes nothing": {4, `
			0s enter a b   -> +a +b 2/4
			1s busy a      -> fell 1/2
			1s enter c d   -> +c 2/2 d
			2s fail c b    -> +d(queued 1s) 1/2
			3s ok d        -> 0/2
			4s enter e     -> +e 1/2
			4s ok e        -> 0/3`},
		"Retry-After holds back all": {8, `
			0s enter a b    -> +a +b 2/8
			1s busy=5s a    -> fell 1/4
			2s enter c d    -> 1/4 c d
			3s ok b         -> 0/4 c d
			5s tick         -> 0/4 c d
			6s tick         -> +c +d 2/4
			6s enter e      -> +e 3/4`},
		"the longest Retry-After counts, the cut is one": {8, `
			0s enter a b c  -> +a +b +c 3/8
			0s busy=5s a    -> fell 2/4
			1s busy=2s b    -> 1/4
			2s busy=9s c    -> 0/4
			6s enter d      -> 0/4 d
			11s tick        -> +d 1/4
			12s busy=1s d   -> 0/2
			13s enter e     -> +e 1/2`},
		"held back beyond its time": {2, `
			0s enter a b    -> +a +b 2/2
			0s enter=10s c  -> 2/2 c
			0s enter=3s d   -> 2/2 c d
			1s busy=4s a    -> !d(4s) 1/2 c
			2s enter=2s e   -> !e(3s) 1/2 c
			2s enter=3s f   -> 1/2 c f
			2s enter=-1s g  -> !g(3s) 1/2 c f
			3s busy=9s b    -> !c(9s) !f(9s) 0/2
			13s enter=-1s h -> +h 1/2`},
		"only holds count, not the queue": {1, `
			0s enter a         -> +a 1/1
			0s enter=5s b c    -> 1/1 b c
			100s busy=3s a     -> 0/1 b c
			103s tick          -> +b(queued 1m40s) 1/1 c
			200s busy=3s b     -> !c(3s) 0/1`},
		"an endless Retry-After": {2, `
			0s enter a         -> +a 1/2
			0s busy=100h a     -> 0/2
			599s enter=1m b    -> 0/2 b
			599s enter=0s c    -> !c(1s) 0/2 b
			600s tick          -> +b 1/2`},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(test.max)
			for line := range strings.SplitSeq(strings.TrimSpace(test.script), "\n") {
				do, want, _ := strings.Cut(line, "->")
				if got := b.step(t, do); got != strings.TrimSpace(want) {
					t.Fatalf("%s\n got %s\nwant %s", strings.TrimSpace(do), got, strings.TrimSpace(want))
				}
			}
		})
	}
}

// Whatever happens in whatever order: nobody overtakes, nobody is forgotten, and the limit keeps within its bounds.
func TestLimiterAlways(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		most := 1 + r.IntN(12)
		l := newLimiter(most)
		now := time.Unix(0, 0)
		var alive, queue []*pass
		for range 500 {
			now = now.Add(time.Duration(r.Int64N(int64(2 * time.Second))))
			l.admit(now)
			switch i := r.IntN(len(alive) + 1); {
			case i == len(alive):
				p := l.enter(now, time.Duration(r.IntN(60)-5)*time.Second)
				alive, queue = append(alive, p), append(queue, p)
			case alive[i].state == granted && r.IntN(3) == 0:
				l.throttled(now, alive[i], time.Duration(r.IntN(5))*time.Second)
				l.leave(now, alive[i])
			case alive[i].state == granted:
				l.succeeded(now, alive[i])
				l.leave(now, alive[i])
			case r.IntN(4) == 0:
				l.leave(now, alive[i])
			}
			waits, used := false, 0
			for _, p := range queue {
				switch {
				case p.state == waiting:
					waits = true
				case p.state == granted && waits:
					t.Fatalf("seed %d: a later one overtook", seed)
				}
			}
			for _, p := range alive {
				select {
				case <-p.ready:
					if p.state == waiting {
						t.Fatalf("seed %d: told while waiting", seed)
					}
				default:
					if p.state != waiting && p.state != gone {
						t.Fatalf("seed %d: not told", seed)
					}
				}
				if p.state == granted {
					used++
				}
				if p.queued < 0 {
					t.Fatalf("seed %d: queued for %v", seed, p.queued)
				}
			}
			queue = slices.DeleteFunc(queue, func(p *pass) bool { return p.state != waiting })
			alive = slices.DeleteFunc(alive, func(p *pass) bool { return p.state == gone || p.state == refused })
			switch {
			case used != l.used:
				t.Fatalf("seed %d: %d under way, counted %d", seed, used, l.used)
			case len(queue) != len(l.queue):
				t.Fatalf("seed %d: %d wait, counted %d", seed, len(queue), len(l.queue))
			case l.limit > most || l.limit < min(minLimit, most) || l.used > most:
				t.Fatalf("seed %d: %d under way, limit %d of %d", seed, l.used, l.limit, most)
			case len(queue) > 0 && l.used < l.limit && !now.Before(l.until):
				t.Fatalf("seed %d: %d wait, though there is room and no hold", seed, len(queue))
			}
		}
	}
}
