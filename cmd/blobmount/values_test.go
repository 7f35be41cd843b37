package main

import (
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"1": 1, "512": 512, "7B": 7, "1KiB": 1 << 10, "8MiB": 8 << 20, "10GiB": 10 << 30, "2TiB": 2 << 40,
		"1KB": 1000, "5mb": 5e6, "10 GB": 1e10, "3tb": 3e12, "0010": 10, "8388607TiB": 8388607 << 40,
	}
	for in, want := range good {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q gives %d, %v", in, got, err)
		}
	}
	bad := map[string]string{
		"": "number of bytes", "GiB": "number of bytes", "-1": "number of bytes", "1.5GiB": "unit must be",
		"10G": "write GiB (powers of 1024) or GB", "1k": "ambiguous", "1XiB": "unit must be", "0": "larger than 0", "0MiB": "larger than 0",
		"8388608TiB": "too large", "99999999999999999999": "number of bytes", "1 2": "unit must be",
	}
	for in, want := range bad {
		if got, err := parseSize(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %d, %v, want %q", in, got, err, want)
		}
	}
	for n, want := range map[int64]string{1: "1", 1 << 10: "1KiB", 1536: "1536", 8 << 20: "8MiB", 3 << 40: "3TiB", 1e9: "1000000000"} {
		if got := formatSize(n); got != want {
			t.Errorf("%d is written %q", n, got)
		}
	}
}

func TestModeValue(t *testing.T) {
	var m modeValue
	for in, want := range map[string]modeValue{"0644": 0o644, "644": 0o644, "0": 0, "777": 0o777, "0o17": 99} {
		err := m.Set(in)
		if (want == 99) != (err != nil) || err == nil && m != want {
			t.Errorf("%q gives %o, %v", in, uint32(m), err)
		}
	}
	for _, in := range []string{"", "8", "01000", "4755", "-1", "rwx"} {
		if err := m.Set(in); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
}

func TestSecondsValue(t *testing.T) {
	var v secondsValue
	for in, want := range map[string]time.Duration{"0": 0, "60": time.Minute, "0.25": 250 * time.Millisecond, "none": -1, "NONE": -1, "1e3": 1000 * time.Second} {
		if err := v.Set(in); err != nil || time.Duration(v) != want {
			t.Errorf("%q gives %v, %v", in, time.Duration(v), err)
		}
	}
	for _, in := range []string{"", "-1", "60s", "NaN", "inf", "1e30", "never"} {
		if err := v.Set(in); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
}

func TestIDValue(t *testing.T) {
	v := idValue{lookup: userID, kind: "user"}
	for in, want := range map[string]uint32{"0": 0, "1000": 1000, "root": 0, "4294967294": math.MaxUint32 - 1} {
		if err := v.Set(in); err != nil || v.id != want {
			t.Errorf("%q gives %d, %v", in, v.id, err)
		}
	}
	for _, in := range []string{"", "-1", "no such user", "4294967295", "4294967296"} {
		if err := v.Set(in); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	meminfo := file("MemTotal:       1024 kB\nMemFree:  1 kB\n")
	tests := []struct {
		name string
		fs   fstest.MapFS
		want int64
	}{
		{"nothing known", fstest.MapFS{}, math.MaxInt64},
		{"machine", fstest.MapFS{"proc/meminfo": meminfo}, 1 << 20},
		{"group", fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("5000\n")}, 5000},
		{"group above is tighter", fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("max\n"), "sys/fs/cgroup/a/memory.max": file("700\n")}, 700},
		{"group of a container", fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/kubepods/x\n"),
			"sys/fs/cgroup/memory.max": file("800\n")}, 800},
		{"first version", fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("3:cpu:/x\n2:memory,misc:/y\n0::/\n"),
			"sys/fs/cgroup/memory/y/memory.limit_in_bytes": file("900\n")}, 900},
		{"group larger than the machine", fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/\n"),
			"sys/fs/cgroup/memory.max": file("9999999999\n")}, 1 << 20},
	}
	for _, tt := range tests {
		if got := memoryLimit(tt.fs); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	for limit, want := range map[int64]int64{1 << 20: 32 << 20, 512 << 20: 128 << 20, 64 << 30: 192 << 20} {
		if got := defaultMemory(limit); got != want {
			t.Errorf("memory of %d gives %d", limit, got)
		}
	}
	for free, want := range map[int64]int64{0: minCacheSize, 10 << 30: 2 << 30, 10 << 40: 100 << 30} {
		if got := defaultCacheSize(free); got != want {
			t.Errorf("free space of %d gives %d", free, got)
		}
	}
	tests := []struct {
		euid int
		env  map[string]string
		want string
	}{
		{0, map[string]string{"HOME": "/root"}, "/var/cache/blobmount"},
		{1000, map[string]string{"HOME": "/home/u"}, "/home/u/.cache/blobmount"},
		{1000, map[string]string{"HOME": "/home/u", "XDG_CACHE_HOME": "/c"}, "/c/blobmount"},
		{1000, map[string]string{"HOME": "/home/u", "XDG_CACHE_HOME": "relative"}, "/home/u/.cache/blobmount"},
		{1000, nil, ""},
	}
	for _, tt := range tests {
		got, err := defaultCacheDir(tt.euid, func(n string) (string, bool) { v, ok := tt.env[n]; return v, ok })
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("user %d with %v: %q, %v", tt.euid, tt.env, got, err)
		}
	}
	if n, err := freeSpace(t.TempDir() + "/not/there/yet"); err != nil || n <= 0 {
		t.Errorf("free space: %d, %v", n, err)
	}
}

func TestDurations(t *testing.T) {
	tests := []struct {
		in   string
		want time.Duration
		text string
	}{
		{"0", 0, "0s"}, {"90", 90 * time.Second, "1m30s"}, {"1.5", 1500 * time.Millisecond, "1.5s"}, {"90s", 90 * time.Second, "1m30s"},
		{"5m", 5 * time.Minute, "5m"}, {"2h", 2 * time.Hour, "2h"}, {"1h0m30s", time.Hour + 30*time.Second, "1h0m30s"}, {"250ms", 250 * time.Millisecond, "250ms"},
	}
	for _, tt := range tests {
		v := durationValue(-1)
		if err := v.Set(tt.in); err != nil || time.Duration(v) != tt.want || v.String() != tt.text {
			t.Errorf("%q gives %v, %v", tt.in, &v, err)
		}
	}
	for _, in := range []string{"", "none", "-1", "-5m", "5 m", "5M", "1d", "NaN", "1e30"} {
		v := durationValue(7)
		if err := v.Set(in); err == nil || v != 7 {
			t.Errorf("%q gives %v", in, &v)
		}
	}
}
