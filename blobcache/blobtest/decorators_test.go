package blobtest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"blobmount/blobcache/blob"
)

func TestConformanceOfDecorators(t *testing.T) {
	Conformance(t, func(*testing.T) Subject {
		return subject(StoreOptions{}, func(m *Mem) blob.Container { return NewTrace(NewFaults(m)) })
	})
}

func upload(t *testing.T, c blob.Container, name, body string) error {
	t.Helper()
	_, err := c.Upload(t.Context(), name, strings.NewReader(body), int64(len(body)), blob.WriteOptions{})
	return err
}

func TestFaultsChooseCalls(t *testing.T) {
	f := NewFaults(newMem(StoreOptions{}))
	hits := f.Add(Fault{Op: "Upload", Name: "a/*", Nth: 2, Err: Err("ServerBusy")})
	for i, want := range []struct {
		name string
		fail bool
	}{{"a/1", false}, {"b/1", false}, {"a/x/y", true}, {"a/2", false}} {
		err := upload(t, f, want.name, "x")
		if got := blob.Is(err, blob.Throttled); got != want.fail {
			t.Errorf("call %d, Upload %q: error %v", i, want.name, err)
		}
	}
	if hits() != 1 {
		t.Errorf("%d hits, want 1", hits())
	}
	if _, err := f.Properties(t.Context(), "a/x/y", blob.Condition{}); !blob.Is(err, blob.NotFound) {
		t.Errorf("the call that failed before acting has acted: %v", err)
	}
	f.Clear()
	if err := upload(t, f, "a/x/y", "x"); err != nil {
		t.Errorf("after Clear: %v", err)
	}
}

func TestFaultsLoseReplies(t *testing.T) {
	f := NewFaults(newMem(StoreOptions{}))
	lost := errors.New("connection reset")
	f.Add(Fault{Op: "Upload", Err: lost, After: true})
	f.Add(Fault{Op: "ReadAt", Nth: 1, Err: lost, After: true})
	if err := upload(t, f, "a", "x"); !errors.Is(err, lost) {
		t.Errorf("error %v, want the lost reply", err)
	}
	if _, err := f.Properties(t.Context(), "a", blob.Condition{}); err != nil {
		t.Errorf("the call whose reply was lost has not acted: %v", err)
	}
	if _, err := f.ReadAt(t.Context(), "a", 0, 1, blob.Condition{}); !errors.Is(err, lost) {
		t.Errorf("error %v, want the lost reply", err)
	}
}

func TestFaultsBreakBodies(t *testing.T) {
	f := NewFaults(newMem(StoreOptions{}))
	if err := upload(t, f, "a", "0123456789"); err != nil {
		t.Fatal(err)
	}
	reset := errors.New("connection reset")
	for _, at := range []int64{0, 4, 10, 100} {
		f.Clear()
		f.Add(Fault{Op: "ReadAt", BreakBody: true, BodyBytes: at, Err: reset})
		b, err := f.ReadAt(t.Context(), "a", 0, 100, blob.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if want := "0123456789"[:min(at, 10)]; string(got) != want || !errors.Is(err, reset) {
			t.Errorf("broken after %d: got %q and %v", at, got, err)
		}
	}
}

func TestFaultsWait(t *testing.T) {
	f := NewFaults(newMem(StoreOptions{}))
	gate := make(chan struct{})
	hits := f.Add(Fault{Op: "Upload", Wait: gate})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Upload(ctx, "a", strings.NewReader("x"), 1, blob.WriteOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call that waits: %v", err)
	}
	done := make(chan error)
	go func() {
		_, err := f.Upload(context.Background(), "a", strings.NewReader("x"), 1, blob.WriteOptions{})
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("the call did not wait: %v", err)
		return
	default:
	}
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if hits() != 2 {
		t.Errorf("%d hits, want 2", hits())
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*", "a/b", true}, {"a*", "a/b", true},
		{"*b", "a/b", true}, {"a*c", "abc", true}, {"a*c", "ac", true}, {"a*a", "a", false},
		{"*/x/*.bin", "d/x/y/z.bin", true}, {"*/x/*.bin", "d/y/z.bin", false}, {"**", "x", true},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestTrace(t *testing.T) {
	tr := NewTrace(newMem(StoreOptions{}))
	ctx := t.Context()
	if err := upload(t, tr, "a/b", "0123456789"); err != nil {
		t.Fatal(err)
	}
	p, err := tr.Properties(ctx, "a/b", blob.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := tr.ReadAt(ctx, "a/b", 2, 4, blob.Condition{IfMatch: p.ETag})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(b); err != nil {
		t.Fatal(err)
	}
	_, exists := tr.Upload(ctx, "a/b", strings.NewReader("x"), 1, blob.WriteOptions{Condition: blob.Condition{IfNoneMatch: blob.Any}})
	if !blob.Is(exists, blob.Exists) {
		t.Fatal(exists)
	}
	if err := tr.StageBlock(ctx, "a/b", "1", strings.NewReader("xyz"), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.CommitBlockList(ctx, "a/b", []string{"1"}, blob.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Copy(ctx, "c", "a/b", blob.CopyOptions{Source: blob.Condition{IfMatch: blob.Any}}); err != nil {
		t.Fatal(err)
	}
	part := blob.Range{Name: "a/b", Offset: 1, Size: 2, Condition: blob.Condition{IfMatch: blob.Any}}
	if err := tr.StageBlockFrom(ctx, "c", "1", part); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Upload(ctx, "log", strings.NewReader(""), 0, blob.WriteOptions{Kind: blob.AppendBlob}); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.AppendBlock(ctx, "log", strings.NewReader("12345"), 5, 0, blob.Condition{IfMatch: blob.Any}); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Tags(ctx, "log"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{tr.AcquireLease(ctx, "c", blob.MaxLease), tr.RenewLease(ctx, "c"), tr.ReleaseLease(ctx, "c")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tr.List(ctx, blob.ListOptions{Prefix: "a/", Delimiter: "/", MaxResults: 2}); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := tr.Delete(cancelled, "c", blob.Condition{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	want := []string{
		"Upload a/b 10",
		"Properties a/b",
		"ReadAt a/b 2+4 if-match",
		"Upload a/b 1 if-none-match=* = blob already exists",
		"StageBlock a/b 3",
		"CommitBlockList a/b blocks=1",
		"Copy c from a/b source-if-match=*",
		"StageBlockFrom c from a/b 1+2 source-if-match=*",
		"Upload log 0",
		"AppendBlock log 0+5 if-match=*",
		"Tags log",
		"AcquireLease c 1m0s",
		"RenewLease c",
		"ReleaseLease c",
		"List a/ delimiter=/ max=2",
		"Delete c = context canceled",
	}
	if got := tr.Lines(); !slices.Equal(got, want) {
		t.Errorf("lines:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if tr.Count("Upload") != 3 || tr.Count("") != len(want) {
		t.Errorf("counts: %d uploads, %d in all", tr.Count("Upload"), tr.Count(""))
	}
	if tr.Bytes("Upload") != 10 || tr.Bytes("ReadAt") != 4 || tr.Bytes("StageBlock") != 3 || tr.Bytes("AppendBlock") != 5 {
		t.Errorf("bytes: %d uploaded, %d read, %d staged", tr.Bytes("Upload"), tr.Bytes("ReadAt"), tr.Bytes("StageBlock"))
	}
	tr.Reset()
	if len(tr.Lines()) != 0 || tr.Count("") != 0 || tr.Bytes("ReadAt") != 0 {
		t.Error("Reset left something")
	}
}
