package blob

import (
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	emoji := "\U0001f60a"
	for name, want := range map[string]bool{
		"a": true, "a b%?#+&\"'<>": true, ".hidden": true, "...a": true, "e\u0301": true, "\u00e9": true, "\u00a0": true, "\u200b": true,
		"": false, "\xff": false, `a\b`: false, "dot.": false, "dots..": false, "a./b": false, ".": false, "./a": false, "a/../b": false,
		"a\x00": false, "a\nb": false, "\x1f": false, "\x7f": false, "\u0081": false, "\ue000": false, "\uf003": false,
		"\ufffd": false, "\ufffe": false, "\uffff": false,
		strings.Repeat("é", 1024): true, strings.Repeat("é", 1025): false,
		strings.Repeat(emoji, 512): true, strings.Repeat(emoji, 512) + "a": false,
		strings.Repeat("a/", 253) + "a": true, strings.Repeat("a/", 254) + "a": false,
	} {
		if err := CheckName("Op", name); (err == nil) != want || err != nil && !Is(err, InvalidName) {
			t.Errorf("%.40q: %v", name, err)
		}
	}
}

func TestPrefix(t *testing.T) {
	if p := Prefix(Sub(Sub(nil, "a/"), "b/")); p != "a/b/" {
		t.Errorf("%q", p)
	}
	if p := Prefix(nil); p != "" {
		t.Errorf("%q", p)
	}
}
