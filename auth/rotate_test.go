package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ofRequest is the key of a value that a request carries.
type ofRequest struct{}

// watched is a secret directory with a Watcher, and a service that answers for it.
type watched struct {
	t   *testing.T
	dir string
	env map[string]string
	w   *Watcher
	log bytes.Buffer // not for parallel use

	mu      sync.Mutex // guards what is below
	verdict func(Found) Verdict
	tried   int
	used    []Found
	changed chan struct{} // gets a value for each credential that came into use, when it is not nil
}

func newWatched(t *testing.T, files map[string]string) *watched {
	t.Helper()
	x := &watched{t: t, dir: t.TempDir(), env: map[string]string{}}
	x.put(files)
	return x
}

func (x *watched) start() Found {
	x.t.Helper()
	w, found, err := NewWatcher(WatcherConfig{
		Options: Options{SecretDir: x.dir, LookupEnv: func(name string) (string, bool) { v, ok := x.env[name]; return v, ok }},
		Log:     slog.New(slog.NewTextHandler(&x.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Try: func(ctx context.Context, f, _ Found) (Verdict, string) {
			if ctx.Value(ofRequest{}) != nil {
				x.t.Error("the try has the values of a request")
			}
			x.mu.Lock()
			defer x.mu.Unlock()
			x.tried++
			if x.verdict == nil {
				return Accepted, ""
			}
			return x.verdict(f), ""
		},
		Use: func(f Found) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.used = append(x.used, f)
			if x.changed != nil {
				x.changed <- struct{}{}
			}
		},
	})
	if err != nil {
		x.t.Fatal(err)
	}
	x.w = w
	return found
}

func (x *watched) put(files map[string]string) {
	x.t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(x.dir, name), []byte(text), 0o600); err != nil {
			x.t.Fatal(err)
		}
	}
}

// last returns the key in use, of those that Use was given.
func (x *watched) last() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.used) == 0 {
		return ""
	}
	return x.used[len(x.used)-1].SharedKey.Key.Reveal()
}

func key64(n int) string {
	return base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("PLANTED key %d", n)))
}

func account(n int) map[string]string {
	return map[string]string{"account_name": "acct1", "account_key": key64(n)}
}

// A changed key comes into use when the service has accepted it, once.
func TestWatcherReplaces(t *testing.T) {
	x := newWatched(t, account(0))
	x.start()
	x.w.poll(t.Context())
	if x.tried != 0 {
		t.Error("the service was asked though nothing has changed")
	}
	before := x.w.Access()
	x.put(account(1))
	x.w.poll(t.Context())
	x.w.poll(t.Context())
	if x.last() != key64(1) || len(x.used) != 1 || x.tried != 1 {
		t.Errorf("%d credentials came into use, %d tries, the last is %q", len(x.used), x.tried, x.last())
	}
	a := x.w.Access()
	if !a.Since.After(before.Since) || a.Problem != "" || !strings.Contains(a.Origin, "account_key") {
		t.Errorf("access: %+v", a)
	}
	if n := strings.Count(x.log.String(), "the credential was replaced"); n != 1 || strings.Contains(x.log.String(), key64(1)) {
		t.Errorf("log: %s", &x.log)
	}
}

// What cannot be used does not replace what works, is logged once, and is forgotten when it is mended.
func TestWatcherKeepsWhatWorks(t *testing.T) {
	for what, bad := range map[string]func(x *watched){
		"half written": func(x *watched) { x.put(map[string]string{"account_key": "PLAN"[:3]}) },
		"empty":        func(x *watched) { x.put(map[string]string{"account_key": ""}) },
		"gone":         func(x *watched) { _ = os.Remove(filepath.Join(x.dir, "account_key")) },
		"all gone":     func(x *watched) { _ = os.RemoveAll(x.dir) },
		"a dangling link": func(x *watched) {
			_ = os.Remove(filepath.Join(x.dir, "account_key"))
			_ = os.Symlink("no", filepath.Join(x.dir, "account_key"))
		},
		"contradiction": func(x *watched) {
			x.put(map[string]string{"connection_string": "AccountName=other;AccountKey=" + key64(5)})
		},
		"another account":    func(x *watched) { x.put(map[string]string{"account_name": "acct2", "account_key": key64(1)}) },
		"writable by others": func(x *watched) { x.put(account(1)); _ = os.Chmod(filepath.Join(x.dir, "account_key"), 0o666) },
	} {
		t.Run(what, func(t *testing.T) {
			x := newWatched(t, account(0))
			x.start()
			bad(x)
			x.w.poll(t.Context())
			if x.log.Len() > 0 {
				t.Errorf("logged at once, though it may be half written: %s", &x.log)
			}
			x.w.mu.Lock()
			x.w.problemAt = x.w.problemAt.Add(-lasting) // as if the time had passed
			x.w.mu.Unlock()
			for range 3 {
				x.w.poll(t.Context())
				x.w.Renew(t.Context())
			}
			if len(x.used) != 0 {
				t.Fatalf("came into use: %+v", x.used)
			}
			if n := strings.Count(x.log.String(), "\n"); n != 1 || !strings.Contains(x.log.String(), "WARN") {
				t.Errorf("%d lines: %s", n, &x.log)
			}
			if strings.Contains(x.log.String(), key64(5)) || strings.Contains(x.log.String(), "PLA") {
				t.Errorf("the log shows a secret: %s", &x.log)
			}
			if x.w.Access().Problem == "" {
				t.Error("the problem is not told")
			}
			_ = os.RemoveAll(x.dir)
			if err := os.Mkdir(x.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			x.put(account(0))
			x.w.poll(t.Context())
			if p := x.w.Access().Problem; p != "" || len(x.used) != 0 {
				t.Errorf("after it was mended: %q, %d came into use", p, len(x.used))
			}
			x.put(account(2))
			x.w.poll(t.Context())
			if x.last() != key64(2) {
				t.Error("a good one after a bad one did not come into use")
			}
		})
	}
}

// A credential whose file is missing for a moment is not replaced by one of a later place, which is another identity; one of
// an earlier place, or of the same, takes over.
func TestWatcherKeepsThePlace(t *testing.T) {
	env := map[string]string{"AZURE_STORAGE_ACCOUNT_NAME": "acct1", "AZURE_STORAGE_ACCOUNT_KEY": key64(7)}
	credentials := t.TempDir()
	for what, change := range map[string]func(x *watched){
		"environment":           func(x *watched) {},
		"credentials directory": func(x *watched) { x.env[credentialsDirName] = credentials },
		"managed identity": func(x *watched) {
			x.env["AZURE_STORAGE_AUTH_MODE"] = "login"
			delete(x.env, "AZURE_STORAGE_ACCOUNT_KEY")
		},
	} {
		t.Run(what, func(t *testing.T) {
			x := newWatched(t, account(0))
			maps.Copy(x.env, env)
			must(t, os.WriteFile(filepath.Join(credentials, "account_key"), []byte(key64(8)), 0o600))
			change(x)
			x.start()
			must(t, os.Remove(filepath.Join(x.dir, "account_key")))
			x.w.poll(t.Context())
			if len(x.used) != 0 || x.tried != 0 {
				t.Fatalf("came into use: %v, after %d tries", x.used, x.tried)
			}
			if p := x.w.Access().Problem; p != "the credential is not there any more" {
				t.Errorf("problem: %q", p)
			}
			x.put(account(1))
			x.w.poll(t.Context())
			if x.last() != key64(1) {
				t.Error("the file came back, and is not used")
			}
		})
	}
	x := newWatched(t, map[string]string{"account_name": "acct1"})
	maps.Copy(x.env, env)
	x.start()
	x.put(account(2))
	x.w.poll(t.Context())
	if x.last() != key64(2) {
		t.Error("what comes first does not take over")
	}
}

// A credential that the service refuses, or cannot be asked about, waits, and is tried again until it is good.
func TestWatcherTriesAgain(t *testing.T) {
	for _, verdict := range []Verdict{Refused, Unknown} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			x := &watched{t: t, dir: dir, env: map[string]string{}}
			x.put(account(0))
			x.start()
			x.verdict = func(Found) Verdict { return verdict }
			x.put(account(1))
			for range 100 {
				if undecided := x.w.Renew(context.WithValue(t.Context(), ofRequest{}, true)); undecided != (verdict == Unknown) {
					t.Fatalf("verdict %d: undecided is %v", verdict, undecided)
				}
			}
			// 100 looks take 20 s: one a second is tried.
			if x.tried < 18 || x.tried > 22 || len(x.used) != 0 {
				t.Errorf("verdict %d: %d tries, %d came into use", verdict, x.tried, len(x.used))
			}
			if n := strings.Count(x.log.String(), "\n"); n != 1 {
				t.Errorf("%d lines: %s", n, &x.log)
			}
			x.verdict = nil
			time.Sleep(refusedGap)
			if x.w.Renew(t.Context()) {
				t.Error("undecided though it was accepted")
			}
			if x.last() != key64(1) {
				t.Error("it did not come into use when it was good")
			}
		})
	}
}

// Each refused request waits for a look at the sources that began after it, and many share one.
func TestRenewIsShared(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		x := &watched{t: t, dir: dir, env: map[string]string{}}
		x.put(account(0))
		x.start()
		x.w.Renew(t.Context()) // the next has to wait
		x.put(account(1))
		asked := 0
		x.verdict = func(Found) Verdict {
			asked++
			time.Sleep(50 * time.Millisecond)
			return Accepted
		}
		began := time.Now()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				x.w.Renew(t.Context())
				if x.last() != key64(1) {
					t.Error("came back before the new credential was in use")
				}
			})
		}
		wg.Wait()
		if d := time.Since(began); d != renewGap+50*time.Millisecond || asked != 1 {
			t.Errorf("took %v, with %d tries", d, asked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		x.w.reading <- struct{}{} // somebody looks, for ever
		x.w.Renew(ctx)            // and the caller went away
		<-x.w.reading
	})
}

// sasFor returns a SAS with these times.
func sasFor(start, end time.Time) string {
	return fmt.Sprintf("?sv=2024-11-04&sr=c&sp=rl&st=%s&se=%s&sig=PLANTED", start.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
}

// A SAS is warned of an hour before its end, once, and its end is told with the source and the time.
func TestWatcherTellsTheEnd(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		x := &watched{t: t, dir: dir, env: map[string]string{}}
		end := time.Now().Add(3 * time.Hour).Truncate(time.Second)
		x.put(map[string]string{"account_name": "acct1", "sas_token": sasFor(time.Now().Add(-time.Minute), end)})
		x.start()
		pass := func(d time.Duration) { // as Run does, less often and without the events, which have no place in a bubble
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
				x.w.poll(t.Context())
			}
		}
		lines := func(want int, after time.Duration) string {
			t.Helper()
			pass(after)
			all := x.log.String()
			if n := strings.Count(all, "\n"); n != want {
				t.Errorf("%d lines, want %d: %s", n, want, all)
			}
			return all
		}
		lines(0, 2*time.Hour-time.Minute)
		if a := x.w.Access(); !a.Expires.Equal(end) || a.Problem != "" {
			t.Errorf("access: %+v", a)
		}
		lines(1, 2*time.Minute)
		all := lines(2, time.Hour)
		for _, text := range []string{"expires soon", "has expired", filepath.Join(dir, "sas_token"), end.UTC().Format("2006-01-02T15:04:05")} {
			if !strings.Contains(all, text) {
				t.Errorf("no %q in %s", text, all)
			}
		}
		if p := x.w.Access().Problem; !strings.Contains(p, "has expired") {
			t.Errorf("problem: %q", p)
		}
		if strings.Contains(all, "PLANTED") {
			t.Error("the log shows the signature")
		}
		// A short-lived one that is replaced in time is not warned of.
		for range 20 {
			x.put(map[string]string{"sas_token": sasFor(time.Now().Add(-time.Minute), time.Now().Add(time.Hour))})
			pass(50 * time.Minute)
		}
		if n := strings.Count(x.log.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings: %s", n, &x.log)
		}
		if p := x.w.Access().Problem; p != "" {
			t.Errorf("problem: %q", p)
		}
	})
}

func TestValidity(t *testing.T) {
	day := func(h, m int) time.Time { return time.Date(2026, 3, 1, h, m, 0, 0, time.UTC) }
	for sas, want := range map[string]validity{
		"sig=x":                               {},
		"sig=x&se=2026-03-01":                 {time.Time{}, day(0, 0)},
		"sig=x&se=2026-03-01T12:30Z":          {time.Time{}, day(12, 30)},
		"sig=x&se=2026-03-01T12%3A30%3A00Z":   {time.Time{}, day(12, 30)},
		"sig=x&st=2026-03-01T10:00:00Z&se=no": {day(10, 0), time.Time{}},
		"sig=x&st=2026-03-01T10:00:00Z&se=2026-03-01T13:00:00Z&skt=2026-03-01T11:00:00Z&ske=2026-03-01T12:00:00.0000000Z": {day(11, 0), day(12, 0)},
	} {
		if got := validityOf(NewSecret(sas)); got != want {
			t.Errorf("%s: %v, want %v", sas, got, want)
		}
	}
	v := validity{day(10, 0), day(14, 0)}
	for at, want := range map[time.Time]phase{day(9, 59): notYet, day(10, 0): good, day(12, 59): good, day(13, 0): endsSoon, day(14, 0): ended} {
		if got := v.phase(at, time.Hour); got != want {
			t.Errorf("at %v: %v, want %v", at, got, want)
		}
	}
}

// Run notices what Kubernetes, Docker and Vault do to a secret directory, without the poll, and by the poll what sends no
// events.
func TestRunSeesChanges(t *testing.T) {
	kubernetes := func(x *watched, n int) {
		version := fmt.Sprintf("..2026_01_01_00_00_%02d.1", n)
		must(t, os.Mkdir(filepath.Join(x.dir, version), 0o755))
		for name, text := range account(n) {
			must(t, os.WriteFile(filepath.Join(x.dir, version, name), []byte(text), 0o600))
		}
		must(t, os.Symlink(version, filepath.Join(x.dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(x.dir, "..data_tmp"), filepath.Join(x.dir, "..data")))
		if n == 0 {
			for name := range account(0) {
				must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(x.dir, name)))
			}
		}
	}
	outside := t.TempDir()
	for what, test := range map[string]struct {
		poll   time.Duration
		change func(x *watched, n int)
	}{
		"behind a link, without events": {10 * time.Millisecond, func(x *watched, n int) {
			for name, text := range account(n) {
				must(t, os.WriteFile(filepath.Join(outside, name), []byte(text), 0o600))
				if n == 0 {
					must(t, os.Symlink(filepath.Join(outside, name), filepath.Join(x.dir, name)))
				}
			}
		}},
		"rewritten": {time.Hour, func(x *watched, n int) { x.put(account(n)) }},
		"renamed": {time.Hour, func(x *watched, n int) {
			for name, text := range account(n) {
				must(t, os.WriteFile(filepath.Join(x.dir, ".new"), []byte(text), 0o600))
				must(t, os.Rename(filepath.Join(x.dir, ".new"), filepath.Join(x.dir, name)))
			}
		}},
		"swapped by Kubernetes": {time.Hour, kubernetes},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			x := newWatched(t, nil)
			test.change(x, 0)
			x.changed = make(chan struct{}, 100)
			x.start()
			x.w.every = test.poll
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { x.w.Run(ctx) })
			defer wg.Wait()
			defer cancel()
			for n := 1; n <= 5; n++ {
				test.change(x, n)
				for x.last() != key64(n) { // two files, two events
					select {
					case <-x.changed:
					case <-time.After(time.Minute):
						t.Fatal("not noticed")
					}
				}
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
