package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"blobmount/blobcache/blob"
	"blobmount/blobcache/blobtest"
)

// Commits whose answer is lost, when the questions that would tell what became of them fail too.

// commits are the requests that make a version.
var commits = []string{"Upload", "CommitBlockList", "AppendBlock", "Copy"}

// commitWays is each way to commit.
var commitWays = append(writings[1:len(writings):len(writings)],
	writing{"append", 0, func(t *testing.T, f *File, base []byte) []byte {
		return append(bytes.Clone(base), put(t, f, content(8, 100*kib), int64(len(base)))...)
	}},
	writing{"copy", 0, func(t *testing.T, f *File, base []byte) []byte { return base }},
)

// begin is start for each way to commit.
func (w writing) begin(t *testing.T, c *Cache, s *service) (f *File, base, want []byte) {
	t.Helper()
	switch w.name {
	case "append":
		base = content(10, 70*kib)
		if _, err := s.store.PutAppend("a", bytes.Clone(base), blob.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		f = c.OpenFile(s, s.properties(t, "a"), noHooks)
	case "copy":
		p, b := s.put(t, "source", 300*kib, 10)
		f, want = c.CreateFile(s, blob.Properties{Name: "a"}, noHooks), b
		f.Acquire(true)
		if n, err := f.CopyFrom(t.Context(), c.OpenFile(s, p, noHooks), 0, 0, p.Size); n != p.Size || err != nil {
			t.Fatal(n, err)
		}
		return f, nil, want
	default:
		return w.start(t, c, s)
	}
	f.Acquire(true)
	return f, base, w.change(t, f, base)
}

// loseCommit lets the next commit be made, and its answer be lost.
func (s *service) loseCommit(t *testing.T, f *File) {
	t.Helper()
	for _, op := range commits {
		s.faults.Add(blobtest.Fault{Op: op, Name: "a", Err: errService, After: true})
	}
	if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
		t.Fatal(err)
	}
	s.faults.Clear()
}

// made returns how many requests were sent that make a version of a.
func (s *service) made() (n int) {
	for _, op := range commits {
		n += s.Count(op)
	}
	return n
}

// TestLostAndNotTold: the answer to a commit is lost, and a question that would tell what became of it fails. That is the
// error of the next commit: nothing is sent, and the one after it finds its own version. So does the next process.
func TestLostAndNotTold(t *testing.T) {
	failures := map[string]func(s *service, op string) (context.Context, func() int){
		"fails": func(s *service, op string) (context.Context, func() int) {
			return context.Background(), s.faults.Add(blobtest.Fault{Op: op, Err: errService})
		},
		"given up": func(s *service, op string) (context.Context, func() int) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return ctx, s.faults.Add(blobtest.Fault{Op: op, Wait: make(chan struct{})})
		},
		"throttled later": func(s *service, op string) (context.Context, func() int) {
			return context.Background(), s.faults.Add(blobtest.Fault{Op: op, Nth: 2, Err: blobtest.Err("ServerBusy")})
		},
	}
	asked := 0
	for _, w := range commitWays {
		for how, fail := range failures {
			for _, op := range []string{"Properties", "BlockList", "ReadAt"} {
				for _, dies := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s %s/%v", w.name, op, how, dies), func(t *testing.T) {
						s, cfg := newService(), config(t.TempDir())
						c := openCache(t, cfg)
						f, _, want := w.begin(t, c, s)
						s.loseCommit(t, f)
						if dies {
							crash(c)
							c = openCache(t, cfg)
						}
						before := s.made()
						ctx, hits := fail(s, op)
						var err error
						if dies {
							if e := c.Recover(ctx, s, noHooks); e != nil && !errors.Is(e, context.Canceled) {
								t.Fatal(e)
							}
						} else {
							err = f.Commit(ctx)
						}
						asked += hits()
						if n := s.made() - before; n > 0 {
							t.Errorf("%d more versions were sent before it was known what became of the first", n)
						}
						switch {
						case dies && hits() > 0 && len(c.Unsaved()) != 1:
							t.Error("it was given up")
						case !dies && (err != nil) != (hits() > 0 || ctx.Err() != nil && err != nil):
							t.Errorf("%d questions failed, the error is %v", hits(), err)
						case !dies && f.State().Dirty != (err != nil):
							t.Errorf("dirty is %v, the error %v", f.State().Dirty, err)
						}
						s.faults.Clear()
						if dies {
							shut(t, c)
							theNone(t, cfg.Dir)
							c = openCache(t, cfg)
						} else if err := f.Commit(t.Context()); err != nil {
							t.Fatal(err)
						} else {
							expectAll(t, f, want)
							f.Release(true)
						}
						if n := s.made() - before; n > 0 {
							t.Errorf("%d more versions were sent for nothing", n)
						}
						same(t, s.content(t, "a"), want)
						expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
					})
				}
			}
		}
	}
	if asked < 2*len(commitWays) {
		t.Errorf("only %d questions failed", asked)
	}
}

// lostChanges are what a program does to a file after a commit whose answer was lost.
var lostChanges = map[string]func(t *testing.T, f *File, b []byte) []byte{
	"over": func(t *testing.T, f *File, b []byte) []byte {
		copy(b[100:], put(t, f, content(30, 700), 100))
		return b
	},
	"little more": func(t *testing.T, f *File, b []byte) []byte {
		return append(b, put(t, f, content(31, 900), int64(len(b)))...)
	},
	"blocks more": func(t *testing.T, f *File, b []byte) []byte {
		return append(b, put(t, f, content(32, 300*kib), int64(len(b)))...)
	},
	"cut and grown": func(t *testing.T, f *File, b []byte) []byte {
		n := int64(len(b))
		for _, size := range []int64{n / 2, n} {
			if err := f.Truncate(t.Context(), size); err != nil {
				t.Fatal(err)
			}
		}
		clear(b[n/2:])
		return b
	},
	"attributes": func(t *testing.T, f *File, b []byte) []byte {
		if err := setMetadata(t.Context(), f, map[string]string{"mode": "0600"}); err != nil {
			t.Fatal(err)
		}
		return b
	},
}

// mayChange reports whether a change can be made after a way to commit.
func (w writing) mayChange(how string) bool {
	return w.name != "append" || how != "over" && how != "cut and grown"
}

// TestLostThenChanged: after a lost answer the file is changed, and a commit in between is interrupted. None of both makes
// our own version another writer's, and what is committed in the end is what was written.
func TestLostThenChanged(t *testing.T) {
	for _, w := range commitWays {
		for how, change := range lostChanges {
			if !w.mayChange(how) {
				continue
			}
			t.Run(w.name+"/"+how, func(t *testing.T) {
				for range 4 { // what is ready in a select is taken at random
					s := newService()
					c := openCache(t, config(t.TempDir()))
					f, _, want := w.begin(t, c, s)
					s.loseCommit(t, f)
					want = change(t, f, bytes.Clone(want))
					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					s.faults.Add(blobtest.Fault{Op: "Properties", Wait: make(chan struct{})})
					if err := f.Commit(ctx); !errors.Is(err, context.Canceled) {
						t.Fatal(err)
					}
					s.faults.Clear()
					if err := f.Commit(t.Context()); err != nil {
						t.Fatal(err)
					}
					same(t, s.content(t, "a"), want)
					expectAll(t, f, want)
					if how == "attributes" && s.properties(t, "a").Metadata["mode"] != "0600" {
						t.Error("the attributes are not in the service")
					}
					f.Release(true)
					expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
				}
			})
		}
	}
}

// TestLostThenChangedCrash: with fsync-local the answer to a commit in the background is lost, more is written and a close
// is answered, and the process dies. The next one finds its own version, whether or not it is told at once, and saves all, if need be after another death.
func TestLostThenChangedCrash(t *testing.T) {
	for _, w := range commitWays {
		if w.name == "append" { // see TestLostAppend
			continue
		}
		for how, change := range lostChanges {
			for _, landed := range []bool{true, false} {
				for _, fails := range []string{"", "Properties", "BlockList", "ReadAt", "CommitBlockList"} {
					t.Run(fmt.Sprintf("%s/%s/%v/%s", w.name, how, landed, fails), func(t *testing.T) {
						s, cfg := newService(), writeBackConfig(t.TempDir())
						cfg.WriteBack = WriteBackSync
						c := openCache(t, cfg)
						f, _, want := w.begin(t, c, s)
						for _, op := range commits {
							s.faults.Add(blobtest.Fault{Op: op, Name: "a", Err: errService, After: landed})
						}
						if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
							t.Fatal(err)
						}
						s.faults.Clear()
						want = change(t, f, bytes.Clone(want))
						if how == "blocks more" {
							c.background.Wait() // blocks are in the service that are not part of what has landed
						}
						if err := f.Flush(t.Context()); err != nil {
							t.Fatal(err)
						}
						crash(c)
						c = openCache(t, cfg)
						if fails != "" {
							s.faults.Add(blobtest.Fault{Op: fails, Name: "a", Nth: 1, Err: errService})
						}
						sent := s.Count("StageBlock")
						recoverAll(t, c, s)
						if fails == "CommitBlockList" { // and this process dies too
							crash(c)
							s.faults.Clear()
							c = openCache(t, cfg)
							recoverAll(t, c, s)
						}
						shut(t, c)
						s.faults.Clear()
						if sent = s.Count("StageBlock") - sent; landed && fails == "" && (w.name == "new, blocks in order" || w.name == "blocks, changed") && how == "little more" && sent > 1 {
							t.Errorf("%d blocks were sent, though all but the last have landed", sent)
						}
						same(t, s.content(t, "a"), want)
						if how == "attributes" && s.properties(t, "a").Metadata["mode"] != "0600" {
							t.Error("the attributes are not in the service")
						}
						theNone(t, cfg.Dir)
						c = openCache(t, cfg)
						expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
					})
				}
			}
		}
	}
}

// TestLostThenChangedPowerCut is the same for a loss of power that takes bytes whose block the service has: what has landed
// is not what they are, and the block counts until it is part of the blob.
func TestLostThenChangedPowerCut(t *testing.T) {
	boot := bootID
	t.Cleanup(func() { bootID = boot })
	for _, deaths := range []int{1, 2} {
		bootID = boot
		s, cfg := newService(), writeBackConfig(t.TempDir())
		cfg.WriteBack = WriteBackSync
		c := openCache(t, cfg)
		want := content(1, 200*kib)
		f := create(t, c, s, "a", bytes.Clone(want))
		s.loseCommit(t, f)
		want = append(want, put(t, f, content(2, 300*kib), 200*kib)...)
		c.background.Wait()
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		crash(c)
		bootID = func() string { return "the next start" }
		erase(t, cfg, f, 256*kib, 64*kib)
		if deaths == 2 {
			s.faults.Add(blobtest.Fault{Op: "CommitBlockList", Err: errService})
			c = openCache(t, cfg)
			recoverAll(t, c, s)
			crash(c)
			s.faults.Clear()
		}
		c = openCache(t, cfg)
		recoverAll(t, c, s)
		same(t, s.content(t, "a"), want)
		theNone(t, cfg.Dir)
		expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
	}
}

// TestLostConflict: after a lost answer another writer is still another writer, in this process and the next, and also if
// it has come before us, or replaces what has landed.
func TestLostConflict(t *testing.T) {
	for _, w := range commitWays {
		for _, landed := range []bool{true, false} {
			for _, changed := range []bool{true, false} {
				for _, dies := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%v/%v/%v", w.name, landed, changed, dies), func(t *testing.T) {
						s, cfg := newService(), config(t.TempDir())
						cfg.WriteBack = WriteBackSync
						c := openCache(t, cfg)
						f, _, want := w.begin(t, c, s)
						for _, op := range commits {
							s.faults.Add(blobtest.Fault{Op: op, Name: "a", Err: errService, After: landed})
						}
						if err := f.Commit(t.Context()); !blob.Is(err, blob.Unavailable) {
							t.Fatal(err)
						}
						s.faults.Clear()
						if changed {
							put(t, f, content(30, 100), int64(len(want)))
						}
						_, theirs := s.put(t, "a", int64(len(want)), 99) // as long as ours
						if dies {
							if err := f.finish(true, 0); err != nil {
								t.Fatal(err)
							}
							crash(c)
							c = openCache(t, cfg)
							recoverAll(t, c, s)
						} else if err := f.Commit(t.Context()); !blob.Is(err, blob.ConditionNotMet) || f.lost == nil {
							t.Errorf("commit over another writer's version: %v", err)
						}
						same(t, s.content(t, "a"), theirs)
						f.Release(true)
						if dies {
							shut(t, c)
							if l := theLeft(t, cfg.Dir); l.State != LeftConflict {
								t.Errorf("left: %+v", l)
							}
						}
					})
				}
			}
		}
	}
}
