package auth

import (
	"net/url"
	"time"
)

// validity is the time for which a SAS is good. A zero time means that it does not say: then a stored access policy of the
// container does, or nothing.
type validity struct{ start, end time.Time }

// validityOf reads the times of a SAS: st and se, and skt and ske, those of the key that signs a user delegation SAS
// (Microsoft Learn, "Create a user delegation SAS"). What it cannot read it takes as not said: the service judges.
func validityOf(sas Secret) validity {
	q, err := url.ParseQuery(sas.Reveal())
	if err != nil {
		return validity{}
	}
	var v validity
	for _, name := range []string{"st", "skt"} {
		if t := sasTime(q.Get(name)); t.After(v.start) {
			v.start = t
		}
	}
	for _, name := range []string{"se", "ske"} {
		if t := sasTime(q.Get(name)); !t.IsZero() && (v.end.IsZero() || t.Before(v.end)) {
			v.end = t
		}
	}
	return v
}

// sasTime reads the forms of ISO 8601 that a SAS may have ("Create a service SAS", specify the signature validity
// interval). A date is its midnight.
func sasTime(text string) time.Time {
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// phase is where in its life a credential is.
type phase uint8

const (
	good phase = iota
	endsSoon
	notYet
	ended
)

// endWarning is how long before its end a SAS is warned of.
const endWarning = time.Hour

// warnBefore is how long before the end of a SAS that came into use at that time there is a warning. One that replaces
// another while mounted is likely to be replaced in turn: if it lives for hours, or seconds, a warning an hour before its
// end would come with each. So it is a tenth of its life at most, except for the first, whose owner should know at once.
func (v validity) warnBefore(used time.Time, first bool) time.Duration {
	if life := v.end.Sub(used); !first && life/10 < endWarning {
		return max(0, life/10)
	}
	return endWarning
}

func (v validity) phase(now time.Time, warnBefore time.Duration) phase {
	switch {
	case !v.end.IsZero() && !now.Before(v.end):
		return ended
	case now.Before(v.start):
		return notYet
	case !v.end.IsZero() && v.end.Sub(now) <= warnBefore:
		return endsSoon
	}
	return good
}
