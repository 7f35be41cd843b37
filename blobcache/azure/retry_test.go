package azure

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// Failures that are safe to repeat are repeated, with the whole body each time.
func TestRepeats(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 300_000)
	for what, fail := range map[string]func(w http.ResponseWriter, r *http.Request){
		"500":          func(w http.ResponseWriter, r *http.Request) { refuse(w, r, 500, "InternalError", "") },
		"503":          func(w http.ResponseWriter, r *http.Request) { refuse(w, r, 503, "ServerBusy", "") },
		"429":          func(w http.ResponseWriter, r *http.Request) { refuse(w, r, 429, "", "") },
		"hang up":      func(w http.ResponseWriter, r *http.Request) { hangUp(w) },
		"damaged once": func(w http.ResponseWriter, r *http.Request) { refuse(w, r, 400, "Crc64Mismatch", "") },
	} {
		t.Run(what, func(t *testing.T) {
			s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n <= 2 {
					fail(w, r) // without reading the body
					return
				}
				if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes arrived: %v", len(got), err)
				}
				created(w)
			})
			if err := s.container(t, nil).StageBlock(t.Context(), "a", "id", bytes.NewReader(content), int64(len(content))); err != nil {
				t.Error(err)
			}
			if s.requests() != 3 {
				t.Errorf("%d requests, want 3", s.requests())
			}
		})
	}
}

// After a method returned, and between two tries, nothing reads the body any more, although the server answered
// before it had all of it. The race detector watches the buffer.
func TestBodyIsLetGo(t *testing.T) {
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n%2 == 1 {
			refuse(w, r, 503, "ServerBusy", "")
			return
		}
		refuse(w, r, 409, "InvalidBlobType", "")
	})
	c := s.container(t, nil)
	content := make([]byte, 4<<20)
	for range 5 {
		if err := c.StageBlock(t.Context(), "a", "id", bytes.NewReader(content), int64(len(content))); !blob.Is(err, blob.Unsupported) && !blob.Is(err, blob.Unavailable) {
			t.Fatal(err)
		}
		clear(content)
	}
}

func TestDoesNotRepeat(t *testing.T) {
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) { refuse(w, r, 409, "InvalidBlobType", "") })
	s.container(t, nil).StageBlock(t.Context(), "a", "id", strings.NewReader("x"), 1)
	if s.requests() != 1 {
		t.Errorf("%d requests", s.requests())
	}
}

// A body that the service finds damaged each time is given up soon.
func TestDamagedIsBounded(t *testing.T) {
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) { refuse(w, r, 400, "Md5Mismatch", "") })
	if err := s.container(t, nil).StageBlock(t.Context(), "a", "id", strings.NewReader("x"), 1); !blob.Is(err, blob.Damaged) {
		t.Errorf("got %v", err)
	}
	if s.requests() != 1+maxDamaged {
		t.Errorf("%d requests", s.requests())
	}
}

// RetryFor bounds the whole; the last answer is what the caller gets.
func TestRetryFor(t *testing.T) {
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) { refuse(w, r, 503, "ServerBusy", "busy") })
	c := s.container(t, func(cfg *Config) { cfg.RetryFor = 500 * time.Millisecond })
	began := time.Now()
	_, err := c.Properties(t.Context(), "a", blob.Condition{})
	if !blob.Is(err, blob.Throttled) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(began); d > 5*time.Second || s.requests() < 2 {
		t.Errorf("%d requests in %v", s.requests(), d)
	}
	one := s.requests()
	c = s.container(t, func(cfg *Config) { cfg.RetryFor = -1 })
	c.Properties(t.Context(), "a", blob.Condition{})
	if got := s.requests() - one; got != 1 {
		t.Errorf("RetryFor -1: %d requests", got)
	}
}

// Retry-After is obeyed: when it reaches beyond RetryFor there is no point in another try, and no earlier one.
func TestRetryAfter(t *testing.T) {
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 {
			w.Header().Set("ETag", etag1)
			return
		}
		w.Header().Set("Retry-After", "1")
		refuse(w, r, 503, "ServerBusy", "")
	})
	began := time.Now()
	if _, err := s.container(t, nil).Properties(t.Context(), "a", blob.Condition{}); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d < time.Second {
		t.Errorf("repeated after %v, the service asked for 1 s", d)
	}
	s = serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3600")
		refuse(w, r, 503, "ServerBusy", "")
	})
	if _, err := s.container(t, nil).Properties(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.Throttled) || s.requests() != 1 {
		t.Errorf("got %v after %d requests", err, s.requests())
	}
}

// Cancelling ends the wait between two tries.
func TestCancelWhileWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "60")
		refuse(w, r, 503, "ServerBusy", "")
		time.AfterFunc(50*time.Millisecond, cancel)
	})
	if _, err := s.container(t, nil).Properties(ctx, "a", blob.Condition{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestBackoff(t *testing.T) {
	for try := 1; try < 100; try++ {
		d := backoff(try)
		full := min(firstDelay<<min(try-1, 20), maxDelay)
		if d < full/2 || d > full {
			t.Errorf("try %d: %v, want %v to %v", try, d, full/2, full)
		}
	}
}

// download serves content in ranges, and breaks each of the first answers after some bytes.
func download(t *testing.T, content string, breaks int, after int, tag func(n int) string) *service {
	return serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if m := r.Header.Get("If-Match"); m != "" && m != tag(n) {
			refuse(w, r, 412, "ConditionNotMet", "")
			return
		}
		var first, last int
		if _, err := fmt.Sscanf(r.Header.Get("x-ms-range"), "bytes=%d-%d", &first, &last); err != nil {
			t.Errorf("range %q: %v", r.Header.Get("x-ms-range"), err)
		}
		last = min(last, len(content)-1)
		w.Header().Set("ETag", tag(n))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
		w.Header().Set("Content-Length", strconv.Itoa(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		part := content[first : last+1]
		if n <= breaks {
			io.WriteString(w, part[:min(after, len(part))])
			w.(http.Flusher).Flush()
			time.Sleep(20 * time.Millisecond) // let the bytes pass before the reset overtakes them
			hangUp(w)
			return
		}
		io.WriteString(w, part)
	})
}

func always(int) string { return etag1 }

// A broken download goes on where it stopped, under the ETag of its first answer.
func TestResumes(t *testing.T) {
	content := strings.Repeat("0123456789", 50_000)
	for _, cond := range []blob.Condition{{}, {IfMatch: etag1}} {
		s := download(t, content, 3, 100_000, always)
		b, err := s.container(t, nil).ReadAt(t.Context(), "a", 5, int64(len(content)), cond)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if err != nil || string(got) != content[5:] {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		b.Close()
		if s.requests() < 2 || s.seen[len(s.seen)-1].Header.Get("If-Match") != etag1 {
			t.Errorf("%d requests, the last with If-Match %q", s.requests(), s.seen[len(s.seen)-1].Header.Get("If-Match"))
		}
	}
}

// The rest of another version is never delivered.
func TestDoesNotResumeAnotherVersion(t *testing.T) {
	s := download(t, strings.Repeat("x", 1000), 1, 100, func(n int) string { return fmt.Sprintf("%q", strconv.Itoa(n)) })
	b, err := s.container(t, nil).ReadAt(t.Context(), "a", 0, 1000, blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, err := io.ReadAll(b)
	if !blob.Is(err, blob.ConditionNotMet) || len(got) > 100 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A download that gets nowhere ends with an error, within RetryFor.
func TestResumeEnds(t *testing.T) {
	s := download(t, strings.Repeat("x", 1000), 1<<30, 0, always)
	c := s.container(t, func(cfg *Config) { cfg.RetryFor = 300 * time.Millisecond })
	b, err := c.ReadAt(t.Context(), "a", 0, 1000, blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := io.ReadAll(b); !blob.Is(err, blob.Unavailable) {
		t.Errorf("got %v", err)
	}
}

// Nor does one that gets a few bytes from each connection go on for ever, while what is enough lets the time begin anew.
func TestTrickleEnds(t *testing.T) {
	const size = 40 * resumeGrain
	for _, test := range []struct {
		each, breaks int
		want         blob.Code // Other: it succeeds
	}{
		{1, 1 << 30, blob.Unavailable},
		{resumeGrain - 1, 1 << 30, blob.Unavailable},
		{resumeGrain + 1000, 12, blob.Other}, // 12 first waits of 50 ms at least are more than RetryFor
	} {
		s := download(t, strings.Repeat("x", size), test.breaks, test.each, always)
		c := s.container(t, func(cfg *Config) { cfg.RetryFor = 500 * time.Millisecond })
		b, err := c.ReadAt(t.Context(), "a", 0, size, blob.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		b.Close()
		if ok := err == nil && len(got) == size; ok != (test.want == blob.Other) || !ok && !blob.Is(err, test.want) {
			t.Errorf("%d bytes each: %d bytes, %v after %d requests", test.each, len(got), err, s.requests())
		}
	}
}

// An answer that is not the range that was asked for is damage, not data.
func TestWrongRange(t *testing.T) {
	for what, answer := range map[string]func(w http.ResponseWriter){
		"another range": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(206)
			io.WriteString(w, "0123456789")
		},
		"a shorter range": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 10-14/100")
			w.WriteHeader(206)
			io.WriteString(w, "01234")
		},
		"an error page": func(w http.ResponseWriter) { io.WriteString(w, "<html>log in to the network</html>") },
		"fewer bytes than it says": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 10-19/100")
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(206)
			io.WriteString(w, "01234")
		},
		"no length": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 10-19/100")
			w.WriteHeader(206)
			w.(http.Flusher).Flush()
			io.WriteString(w, "0123456789")
		},
	} {
		s := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { w.Header().Set("ETag", etag1); answer(w) })
		if _, err := s.container(t, nil).ReadAt(t.Context(), "a", 10, 10, blob.Condition{}); !blob.Is(err, blob.Damaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// lossy is a service with one blob. It acts on the first write, and loses the answer.
type lossy struct {
	content  []byte
	blocks   []string
	header   http.Header
	modified time.Time
	exists   bool
}

func (l *lossy) serve(t *testing.T, lose func(w http.ResponseWriter)) *service {
	return serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.Method == http.MethodDelete:
			if !l.exists {
				refuse(w, r, 404, "BlobNotFound", "")
				return
			}
			l.exists = false
			lose(w)
		case r.Method == http.MethodPut && l.exists:
			refuse(w, r, 409, "BlobAlreadyExists", "")
		case r.Method == http.MethodPut:
			l.exists, l.content, l.header, l.modified = true, body, r.Header, time.Now()
			if r.URL.Query().Get("comp") == "blocklist" {
				var list struct {
					Latest []string `xml:"Latest"`
				}
				if err := xml.Unmarshal(body, &list); err != nil {
					t.Error(err)
				}
				l.blocks = list.Latest
			}
			lose(w)
		case !l.exists:
			refuse(w, r, 404, "BlobNotFound", "")
		default:
			l.answer(w, r)
		}
	})
}

func (l *lossy) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", etag1)
	w.Header().Set("Last-Modified", l.modified.UTC().Format(http.TimeFormat))
	for k, v := range l.header {
		if strings.HasPrefix(strings.ToLower(k), "x-ms-meta-") {
			w.Header()[k] = v
		}
	}
	switch {
	case r.URL.Query().Get("comp") == "blocklist":
		fmt.Fprint(w, "<BlockList><CommittedBlocks>")
		for _, id := range l.blocks {
			fmt.Fprintf(w, "<Block><Name>%s</Name><Size>1</Size></Block>", id)
		}
		fmt.Fprint(w, "</CommittedBlocks></BlockList>")
	case r.Method == http.MethodHead:
		w.Header().Set("Content-Length", strconv.Itoa(len(l.content)))
	default:
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(l.content)-1, len(l.content)))
		w.Header().Set("Content-Length", strconv.Itoa(len(l.content)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(l.content)
	}
}

// A conditional write whose answer was lost is recognised when its repetition is refused; a blob of somebody else
// is not, nor an empty one that must be new.
func TestRecognisesOwnWrite(t *testing.T) {
	none := blob.WriteOptions{Condition: blob.Condition{IfNoneMatch: blob.Any}}
	tagged := none
	tagged.Metadata = map[string]string{"Mode": "0644"}
	upload := func(c *Container, o blob.WriteOptions) (blob.Written, error) {
		return c.Upload(t.Context(), "a", strings.NewReader("mine"), 4, o)
	}
	commit := func(c *Container, o blob.WriteOptions) (blob.Written, error) {
		return c.CommitBlockList(t.Context(), "a", []string{"1", "2"}, o)
	}
	empty := func(c *Container, o blob.WriteOptions) (blob.Written, error) {
		return c.Upload(t.Context(), "a", strings.NewReader(""), 0, o)
	}
	distinct := tagged
	distinct.Distinct, distinct.Metadata = true, map[string]string{"mtime": "12:00:00.123456789"}
	keep := func(*lossy) {}
	for _, test := range []struct {
		what  string
		write func(*Container, blob.WriteOptions) (blob.Written, error)
		o     blob.WriteOptions
		then  func(*lossy) // what somebody else does before the repetition
		ours  bool
	}{
		{"upload", upload, none, keep, true},
		{"upload with metadata", upload, tagged, keep, true},
		{"upload, other content", upload, none, func(l *lossy) { l.content = []byte("them") }, false},
		{"upload, other size", upload, none, func(l *lossy) { l.content = []byte("longer") }, false},
		{"upload, other metadata", upload, tagged, func(l *lossy) { l.header = http.Header{} }, false},
		{"upload, older blob", upload, none, func(l *lossy) { l.modified = l.modified.Add(-time.Minute) }, false},
		{"commit", commit, tagged, keep, true},
		{"commit, other blocks", commit, none, func(l *lossy) { l.blocks = []string{"NA=="} }, false},
		{"empty and new", empty, none, keep, false},
		{"empty, new and distinct", empty, distinct, keep, true},
		{"empty, new and distinct, of another", empty, distinct, func(l *lossy) {
			l.header = http.Header{"X-Ms-Meta-Mtime": {"12:00:00.123456788"}}
		}, false},
	} {
		for how, lose := range map[string]func(http.ResponseWriter){
			"hang up": hangUp,
			"500":     func(w http.ResponseWriter) { w.WriteHeader(500) },
		} {
			l := &lossy{}
			s := l.serve(t, func(w http.ResponseWriter) { test.then(l); lose(w) })
			w, err := test.write(s.container(t, nil), test.o)
			switch {
			case test.ours && (err != nil || w.ETag != etag1 || w.Modified.IsZero()):
				t.Errorf("%s, %s: got %+v, %v", test.what, how, w, err)
			case !test.ours && !blob.Is(err, blob.Exists):
				t.Errorf("%s, %s: got %+v, %v, want Exists", test.what, how, w, err)
			}
		}
	}
}

// A refusal of the first try is final, and so is one after a try that the service did not act on.
func TestRefusalIsFinal(t *testing.T) {
	l := &lossy{exists: true, content: []byte("mine"), modified: time.Now()}
	s := l.serve(t, nil)
	busy := true
	inner := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if busy {
			busy = false
			refuse(w, r, 503, "ServerBusy", "")
			return
		}
		inner.ServeHTTP(w, r)
	})
	o := blob.WriteOptions{Condition: blob.Condition{IfNoneMatch: blob.Any}}
	for range 2 {
		if _, err := s.container(t, nil).Upload(t.Context(), "a", strings.NewReader("mine"), 4, o); !blob.Is(err, blob.Exists) {
			t.Errorf("got %v, want Exists", err)
		}
	}
}

// A deletion whose answer was lost is a success; of a blob that was not there it is not.
func TestRecognisesOwnDelete(t *testing.T) {
	l := &lossy{exists: true}
	s := l.serve(t, hangUp)
	c := s.container(t, nil)
	if err := c.Delete(t.Context(), "a", blob.Condition{}); err != nil {
		t.Error(err)
	}
	if err := c.Delete(t.Context(), "a", blob.Condition{}); !blob.Is(err, blob.NotFound) {
		t.Errorf("got %v, want NotFound", err)
	}
}
