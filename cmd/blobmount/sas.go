package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// sasFields are the parts of a shared access signature that say what it is for ("Create an account SAS", "Create a service
// SAS", "Create a user delegation SAS").
type sasFields struct{ url.Values }

func readSAS(query string) sasFields {
	values, _ := url.ParseQuery(query) // auth has checked it
	return sasFields{values}
}

// reading and writing are the permissions that a mount needs: read and list, write and delete. Write implies create, and
// add.
const (
	reading = "rl"
	writing = "wd"
)

func needed(readOnly bool) string {
	if readOnly {
		return reading
	}
	return reading + writing
}

// byPolicy reports whether a stored access policy says what the SAS may do, or may say a part of it.
func (s sasFields) byPolicy() bool { return s.Get("si") != "" }

// missing returns the letters of the permissions that a mount needs and the SAS has not.
func (s sasFields) missing(readOnly bool) string {
	if s.byPolicy() {
		return ""
	}
	return without(needed(readOnly), s.Get("sp"))
}

// without returns the letters that are not among others.
func without(letters, others string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(others, r) {
			return -1
		}
		return r
	}, letters)
}

// field shows a part of the SAS that is no secret; empty when it has not got it.
func (s sasFields) field(name string) string {
	value := s.Get(name)
	if value == "" || len(value) > 64 || strings.Trim(value, "abcdefghijklmnopqrstuvwxyz0123456789.-:TZ") != "" {
		return ""
	}
	return fmt.Sprintf(" (%s=%s)", name, value)
}

// whyRefused says why the service, at its time, did not take the signature.
func (s sasFields) whyRefused(now time.Time) string {
	if end := sasTime(s.Get("se")); !end.IsZero() && !now.Before(end) {
		return fmt.Sprintf("it expired at %s", s.Get("se"))
	}
	if start := sasTime(s.Get("st")); !start.IsZero() && now.Before(start) {
		return fmt.Sprintf("it is not valid before %s, and the service has %s: wait, or sign with an earlier start", s.Get("st"), now.UTC().Format(time.RFC3339))
	}
	if kind := s.Get("sr"); kind != "" && kind != "c" && kind != "d" {
		return fmt.Sprintf("it is signed for one blob (sr=%s): sign for the container (sr=c)", printableName(kind))
	}
	if s.byPolicy() {
		return "its stored access policy may have ended or been removed, or the key that signed it was replaced"
	}
	return "the key that signed it may have been replaced, or it is for another container, or a part of it was lost on the way"
}

// sasTime reads the formats of "Specify the signature validity interval"; zero for none.
func sasTime(text string) time.Time {
	for _, format := range []string{time.RFC3339Nano, "2006-01-02T15:04Z", time.DateOnly} {
		if t, err := time.Parse(format, text); err == nil {
			return t
		}
	}
	return time.Time{}
}
