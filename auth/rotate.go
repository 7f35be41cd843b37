package auth

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Verdict is what the service says of a credential that is not in use yet.
type Verdict uint8

const (
	Accepted Verdict = iota
	Refused          // the service, or the identity service, does not know it
	Unknown          // nobody could be asked
)

// WatcherConfig says what a Watcher watches, and what it does with a credential.
type WatcherConfig struct {
	Options
	// Try asks the service whether it accepts a credential in the place of the one that is used. It is bounded by ctx and by
	// itself. why says in one line, without secrets, what is wrong with one that is Refused, or is empty.
	Try func(ctx context.Context, candidate, used Found) (v Verdict, why string)
	// Use puts a credential that was accepted into use.
	Use func(Found)
	Log *slog.Logger
}

// Watcher keeps a credential up to date with the sources it was found in: files of a secret directory, the definition of
// a datastore, files that flags and environment name. The environment itself does not change. Tokens that an identity
// gives for an hour, and federated tokens, are renewed by the credential itself.
//
// When the sources have changed, Find is asked again, and what it finds takes the place of the credential in use if the
// service accepts it. What is half written, contradicts itself, is refused, or is of a later place (flags, secret
// directory, credentials directory, environment, default chain) does not: the credential in use stays, also if it does not
// work itself, and the log says so once. It is tried again as long as it is there.
//
// All methods may be called in parallel.
type Watcher struct {
	cfg   WatcherConfig
	every time.Duration // pollEvery
	// reading is held, as its one element, while the sources are read and a credential is tried.
	reading chan struct{}
	// life is what credentials are tried with: it ends with Run, and has no values. What a refused request carries in its
	// context is about that request.
	life context.Context
	end  context.CancelFunc

	mu      sync.Mutex // guards what is below; never held over I/O
	state   Access
	valid   validity
	warn    time.Duration // before the end
	said    phase         // the last that the log told of
	used    Found         // the credential in use
	refused Found         // the one that was refused last, or could not be judged, if it is still there
	unknown bool          // it could not be judged
	next    time.Time     // no earlier than that is the same tried again
	begun   time.Time     // when the sources were read last

	problemAt time.Time // when state.Problem, of the sources, was found first
	logged    bool      // the log has it
}

// Access is what is known of the credential in use, without any secret.
type Access struct {
	Origin  string    // as Found.Origin
	Since   time.Time // when it came into use
	Read    time.Time // when its sources were read last, with success
	Expires time.Time // of a SAS that says so, else zero
	Problem string    // what is wrong with it or with its sources, one line; empty for nothing
}

// NewWatcher finds the credential, as Find does, and returns it with the Watcher that keeps it up to date. Nothing is
// watched before Run.
func NewWatcher(cfg WatcherConfig) (*Watcher, Found, error) {
	found, err := Find(cfg.Options)
	if err != nil {
		return nil, Found{}, err
	}
	w := &Watcher{cfg: cfg, every: pollEvery, reading: make(chan struct{}, 1)}
	w.life, w.end = context.WithCancel(context.Background())
	w.inUse(found, true)
	return w, found, nil
}

// Access returns what is known of the credential in use.
func (w *Watcher) Access() Access {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// The waits of a Watcher.
const (
	// renewGap is between two looks at the sources because of refused requests, of which there can be hundreds a second.
	renewGap = 200 * time.Millisecond
	// refusedGap is between two tries of a credential that was refused: it may be good for the service a little later.
	refusedGap = time.Second
	// lasting is how long something has to be wrong with the sources before it is logged. A file that is just being
	// written is not worth a line.
	lasting = time.Second
	// tryBound is for one try. A service that throttles may take long to say anything.
	tryBound = 10 * time.Second
)

// Renew is to be called when the service has refused the credential in use. It returns when the sources were read, by a
// look that began after the call, and what was found there has come into use, or will not, or, if undecided is set, is
// another credential that nobody could be asked about: then it is worth to call again later. Many calls at once cost one
// look.
func (w *Watcher) Renew(ctx context.Context) (undecided bool) {
	called := time.Now()
	if !w.acquire(ctx) {
		return false
	}
	defer w.release()
	w.mu.Lock()
	begun, undecided := w.begun, w.unknown
	w.mu.Unlock()
	if begun.After(called) {
		return undecided
	}
	if wait := time.Until(begun.Add(renewGap)); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
	}
	// What the look finds is for everybody: it does not end with the one request that asked for it.
	w.look(w.life)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unknown
}

// poll looks at the sources, and at the clock.
func (w *Watcher) poll(ctx context.Context) {
	if !w.acquire(ctx) {
		return
	}
	defer w.release()
	w.look(ctx)
	w.tell(time.Now())
}

func (w *Watcher) acquire(ctx context.Context) bool {
	select {
	case w.reading <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *Watcher) release() { <-w.reading }

// look reads the sources, and puts into use what they have if that is another credential, and a good one. w.reading is
// held.
func (w *Watcher) look(ctx context.Context) {
	w.mu.Lock()
	w.begun = time.Now()
	used, refused, next, unknown := w.used, w.refused, w.next, w.unknown
	w.unknown = false
	w.mu.Unlock()
	found, err := Find(w.cfg.Options)
	switch {
	case err != nil:
		w.problem("the changed credential cannot be used: " + err.Error())
		return
	case found.Same(used):
		w.unchanged()
		return
	case found.Same(refused) && time.Now().Before(next):
		w.mu.Lock()
		w.unknown = unknown
		w.mu.Unlock()
		return
	case found.place > used.place:
		// What somebody gave is missing, most likely for a moment. Another place is another identity.
		w.problem("the credential is not there any more")
		return
	case found.Endpoint != used.Endpoint || found.Account != used.Account:
		w.problem(fmt.Sprintf("the changed %s is for account %s of %s, and this mount is of account %s of %s: mount again to change it",
			found.Origin, shown(found.Account), found.Endpoint, shown(used.Account), used.Endpoint))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tryBound)
	defer cancel()
	verdict, why := w.cfg.Try(ctx, found, used)
	switch verdict {
	case Accepted:
		w.cfg.Use(found)
		w.inUse(found, false)
		return
	case Refused:
		w.problem(cmp.Or(why, "the service refuses the changed "+found.Origin))
	default:
		w.problem("the service cannot be asked whether it accepts the changed " + found.Origin)
	}
	w.mu.Lock()
	w.refused, w.next, w.unknown = found, time.Now().Add(refusedGap), verdict == Unknown
	w.mu.Unlock()
}

// inUse notes a credential that has come into use.
func (w *Watcher) inUse(found Found, first bool) {
	now := time.Now()
	var v validity
	if found.HasSAS {
		v = validityOf(found.SAS)
	}
	w.mu.Lock()
	w.state = Access{Origin: found.Origin, Since: now, Read: now, Expires: v.end}
	w.valid, w.warn, w.said = v, v.warnBefore(now, first), good
	w.used, w.refused = found, Found{}
	w.mu.Unlock()
	if first {
		return // the mount says what it has found
	}
	attrs := []any{"origin", found.Origin}
	if !v.end.IsZero() {
		attrs = append(attrs, "expires", v.end)
	}
	w.cfg.Log.Info("the credential was replaced", attrs...)
	for _, text := range found.Warnings {
		w.cfg.Log.Warn(text)
	}
}

// unchanged notes that the sources are those of the credential in use.
func (w *Watcher) unchanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Read = time.Now()
	w.refused = Found{}
	if w.said == good || w.said == endsSoon {
		w.state.Problem = ""
	}
}

// problem notes why the sources give no credential, and logs it once when it lasts.
func (w *Watcher) problem(text string) {
	now := time.Now()
	w.mu.Lock()
	if w.state.Problem != text {
		w.state.Problem, w.problemAt, w.logged = text, now, false
	}
	due := !w.logged && now.Sub(w.problemAt) >= lasting
	w.logged = w.logged || due
	origin := w.state.Origin
	w.mu.Unlock()
	if due {
		w.cfg.Log.Warn(text, "in_use", origin)
	}
}

// tell logs that a SAS ends soon, has ended, or has not begun, once each.
func (w *Watcher) tell(now time.Time) {
	w.mu.Lock()
	p := w.valid.phase(now, w.warn)
	again := p == w.said
	w.said = p
	origin, v := w.state.Origin, w.valid
	text := ""
	switch p {
	case ended:
		text = "the " + origin + " has expired: put a new one there, and the mount goes on"
	case notYet:
		text = "the " + origin + " is not valid yet"
	case endsSoon:
		text = "the " + origin + " expires soon"
	}
	if p == ended || p == notYet {
		w.state.Problem = cmp.Or(w.state.Problem, text)
	}
	w.mu.Unlock()
	switch {
	case again:
	case p == notYet:
		w.cfg.Log.Warn(text, "begins", v.start)
	case p == ended || p == endsSoon:
		w.cfg.Log.Warn(text, "expires", v.end)
	}
}
