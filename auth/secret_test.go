package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const planted = "cGxhbnRlZHNlY3JldA=="

// "Secret values live in a type that prints as redacted": by every way that Go has to print.
func TestSecretNeverPrints(t *testing.T) {
	s := NewSecret(planted)
	type holder struct{ hidden Secret }
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "s", s, "p", &s, "h", holder{s})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "s", s, "p", &s, "h", holder{s})
	js, err := json.Marshal(map[string]any{"s": s, "p": &s})
	if err != nil {
		t.Fatal(err)
	}
	out := []string{log.String(), string(js), s.String(), errors.New(fmt.Sprint(s)).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%p", "%10.3s"} {
		out = append(out, fmt.Sprintf(verb, s), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, holder{s}), fmt.Sprintf(verb, []Secret{s}))
	}
	for _, o := range out {
		if strings.Contains(o, planted) || strings.Contains(o, fmt.Sprintf("%x", planted)) {
			t.Errorf("value seen in %q", o)
		}
	}
	if got := fmt.Sprintf("%v %s", s, &s); got != "REDACTED REDACTED" {
		t.Errorf("prints %q", got)
	}
	if s.Reveal() != planted {
		t.Errorf("Reveal gives %q", s.Reveal())
	}
}
