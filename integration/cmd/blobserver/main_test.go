package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/integration/blobserver"
)

func TestRunServesUntilStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"--listen", "127.0.0.1:0", "--sample", "--container", "first", "--container", "second"}, w, io.Discard)
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`^DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=[^;]+;BlobEndpoint=([^;]+);\n$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("printed %q", line)
	}
	res, err := http.Get(m[1] + "/demo/hello.txt")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without credentials: %s", res.Status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if res, err := http.Get(m[1]); err == nil {
		_ = res.Body.Close()
		t.Error("still answers")
	}
}

// The counters are served beside the service, and asking for them does not count.
func TestAdmin(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--anonymous", "--synthetic", "data/x:2:1000"}, w, io.Discard)
	}()
	var service, admin string
	lines := bufio.NewScanner(r)
	if lines.Scan() {
		_, url, _ := strings.Cut(lines.Text(), "BlobEndpoint=")
		service = strings.TrimSuffix(url, ";")
	}
	if lines.Scan() {
		admin = lines.Text()
	}
	stats := func() (s blobserver.Stats) {
		t.Helper()
		res, err := http.Get(admin + "/-/stats")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, name := range []string{"x000000", "x000001"} {
		res, err := http.Get(service + "/data/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != 1000 || err != nil {
			t.Fatalf("%s: %d bytes, %v", name, n, err)
		}
		res.Body.Close()
	}
	if s := stats(); s.Total() != 2 || s.BytesOut != 2000 {
		t.Errorf("%+v", s)
	}
	res, err := http.Post(admin+"/-/reset", "", nil)
	if err != nil || res.StatusCode != http.StatusNoContent {
		t.Fatalf("%v, %v", res, err)
	}
	res.Body.Close()
	if s := stats(); s.Total() != 0 || s.BytesOut != 0 {
		t.Errorf("after the reset: %+v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := http.Get(admin + "/-/stats"); err == nil {
		t.Error("still answers")
	}
}

func TestRunRefuses(t *testing.T) {
	for _, c := range []struct {
		args  []string
		usage bool
		says  string
	}{
		{[]string{"--listen", "0.0.0.0:0"}, false, "loopback"},
		{[]string{"--listen", "127.0.0.1"}, false, "port"},
		{[]string{"--listen", "127.0.0.1:0", "--container", "Bad"}, false, "Bad"},
		{[]string{"--listen", "127.0.0.1:0", "--latency", "-1s"}, false, "negative"},
		{[]string{"--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"}, false, "loopback"},
		{[]string{"--listen", "127.0.0.1:0", "--synthetic", "Bad/x:1:1"}, false, "Bad"},
		{[]string{"--synthetic", "data/x:1"}, true, "COUNT"},
		{[]string{"extra"}, false, "extra"},
		{[]string{"--no-such-flag"}, true, "no-such-flag"},
		{[]string{"--latency", "fast"}, true, "latency"},
	} {
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), c.args, &stdout, &stderr)
		if err == nil || errors.Is(err, errUsage) != c.usage || !strings.Contains(err.Error()+stderr.String(), c.says) {
			t.Errorf("%q: %v, %s", c.args, err, stderr.String())
		}
		if stdout.Len() != 0 {
			t.Errorf("%q printed %q", c.args, stdout.String())
		}
	}
}

// What make demo prints to look at a blob without a mount.
func TestRunAnonymous(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"--listen", "127.0.0.1:0", "--sample", "--anonymous"}, w, io.Discard)
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, endpoint, _ := strings.Cut(strings.TrimSuffix(line, ";\n"), "BlobEndpoint=")
	res, err := http.Get(endpoint + "/demo/hello.txt")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), "hello.txt") {
		t.Errorf("%s, %q, %v", res.Status, body, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, endpoint+"/demo/hello.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("delete without credentials: %s", res.Status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSample(t *testing.T) {
	s, err := blobserver.Start(blobserver.Options{Containers: []string{sampleContainer}}) // there already: it is filled
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := fillSample(s); err != nil {
		t.Fatal(err)
	}
	page, err := s.Store(sampleContainer).List(blob.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, b := range page.Blobs {
		sizes[b.Name] = b.Size
	}
	if len(sizes) != 7 || sizes["data/random-64MiB.bin"] != 64<<20 || sizes["data/weather.csv"] == 0 {
		t.Errorf("sample: %v", sizes)
	}
	if rows := strings.Count(weather(), "\n"); rows != 366 {
		t.Errorf("%d rows of weather", rows)
	}
}
