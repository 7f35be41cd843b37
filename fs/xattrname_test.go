package fs

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestXattrNames(t *testing.T) {
	for name, want := range map[string]string{
		"project": "project", "mime_type": "mime_type", "_x9": "_x9", "xattr": "xattr",
		"Project": "xattr__50roject", "xdg.origin.url": "xattr_xdg_2eorigin_2eurl", "9a": "xattr_9a", "": "xattr_",
		"mode": "xattr_mode", "uid": "xattr_uid", "mtime": "xattr_mtime", "is_symlink": "xattr_is_5fsymlink", "hdi_isfolder": "xattr_hdi_5fisfolder",
		"xattr_a": "xattr_xattr_5fa", "\xff\n": "xattr__ff_0a", "ü": "xattr__c3_bc",
	} {
		got := metadataName(name)
		if got != want {
			t.Errorf("%q is kept as %q, want %q", name, got, want)
		}
		if back, ok := xattrName(got); !ok || back != name {
			t.Errorf("%q is kept as %q and comes back as %q, %v", name, got, back, ok)
		}
	}
	// What is not written so stands for no attribute, else two would be one.
	for _, key := range []string{"mode", "mtime", "hdi_isfolder", "xattr_project", "xattr_a_2", "xattr_a_", "xattr__2E", "xattr__61", "xattr_a_zz", "xattr_xattr_a"} {
		if name, ok := xattrName(key); ok {
			t.Errorf("metadata %q is shown as %q", key, name)
		}
	}
}

func TestXattrValues(t *testing.T) {
	for value, want := range map[string]string{
		"plain": "plain", "a b, c=\"d\"; ~": "a b, c=\"d\"; ~", "base64": "base64",
		"": "base64:", " a": "base64:IGE=", "a ": "base64:YSA=", "a  b": "base64:YSAgYg==", "a\tb": "base64:YQli", "\x00\xff": "base64:AP8=",
		"ü": "base64:w7w=", "base64:YQ==": "base64:YmFzZTY0OllRPT0=",
	} {
		got := metadataValue(value)
		if got != want {
			t.Errorf("%q is kept as %q, want %q", value, got, want)
		}
		if back := xattrValue(got); back != value {
			t.Errorf("%q is kept as %q and comes back as %q", value, got, back)
		}
	}
	for _, theirs := range []string{"base64:!", "base64:YQ", "base64:YR==", "text"} {
		if got := xattrValue(theirs); got != theirs {
			t.Errorf("another tool's %q is shown as %q", theirs, got)
		}
	}
}

// Different names stay different, any name and value come back, and metadata can express what is kept.
func TestXattrReversible(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	letters := "aZ09_.: x\x00\xff\xc3"
	seen := map[string]string{}
	for range 20_000 {
		var b strings.Builder
		for range rnd.IntN(8) {
			b.WriteByte(letters[rnd.IntN(len(letters))])
		}
		name := strings.ReplaceAll(b.String(), "x", []string{"x", "xattr_", "base64:", "mode"}[rnd.IntN(4)])
		key := metadataName(name)
		if other, ok := seen[key]; ok && other != name {
			t.Fatalf("%q and %q are both kept as %q", name, other, key)
		}
		seen[key] = name
		if back, ok := xattrName(key); !ok || back != name || slices.Contains(reserved, key) || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Fatalf("%q is kept as %q and comes back as %q, %v", name, key, back, ok)
		}
		if value := metadataValue(name); xattrValue(value) != name || value == "" {
			t.Fatalf("value %q is kept as %q", name, value)
		}
	}
	if len(seen) < 1000 {
		t.Errorf("only %d names were tried", len(seen))
	}
}

func TestXattrChanges(t *testing.T) {
	m := map[string]string{"mode": "0600", "theirs": "x"}
	if err := putXattr(m, "theirs", "y", 0); err != nil || m["theirs"] != "y" {
		t.Errorf("%v, %v", m, err)
	}
	if got, want := xattrNames(m), []string{"theirs"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if err := putXattr(m, "mode", "z", 0); err != nil || m["mode"] != "0600" {
		t.Errorf("%v, %v", m, err)
	}
	if got, want := xattrNames(m), []string{"mode", "theirs"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	before := maps.Clone(m)
	full := strings.Repeat("v", maxXattrs)
	if err := putXattr(m, "full", full, 0); err == nil || !maps.Equal(m, before) {
		t.Errorf("8 KiB more than there were: %v", err)
	}
	clear(m)
	if err := putXattr(m, "full", full[:maxXattrs-4], 0); err != nil {
		t.Error(err)
	}
	if err := putXattr(m, "a", "b", 0); err == nil {
		t.Error("more than fits was taken")
	}
	if err := putXattr(m, "full", "less", 0); err != nil {
		t.Error(err)
	}
}
