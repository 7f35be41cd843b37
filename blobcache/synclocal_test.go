package blobcache

import (
	"bytes"
	"path/filepath"
	"testing"

	"blobmount/blobcache/blobtest"
)

// With fsync-local, what was synced stands whatever is written later.

// syncLocal never sends by itself what was synced.
func syncLocal(dir string) Config {
	cfg := writeBackConfig(dir)
	cfg.WriteBack = WriteBackSync
	return cfg
}

// TestKilledAfterSync: what is written after a sync and before the process is killed is saved with what was synced.
func TestKilledAfterSync(t *testing.T) {
	const some = 1000
	for name, change := range map[string]func(t *testing.T, f *File, want []byte) []byte{
		"append": func(t *testing.T, f *File, want []byte) []byte {
			return append(want, put(t, f, content(2, some), int64(len(want)))...)
		},
		"append blocks": func(t *testing.T, f *File, want []byte) []byte {
			return append(want, put(t, f, content(2, 150*kib), int64(len(want)))...)
		},
		"over": func(t *testing.T, f *File, want []byte) []byte {
			copy(want[some/2:], put(t, f, content(2, some), some/2))
			return want
		},
		"zero": func(t *testing.T, f *File, want []byte) []byte {
			if err := f.Zero(t.Context(), some/2, some); err != nil {
				t.Fatal(err)
			}
			clear(want[some/2 : some/2+some])
			return want
		},
		"cut": func(t *testing.T, f *File, want []byte) []byte {
			if err := f.Truncate(t.Context(), some/2); err != nil {
				t.Fatal(err)
			}
			return want[:some/2]
		},
		"grow": func(t *testing.T, f *File, want []byte) []byte {
			if err := f.Truncate(t.Context(), int64(len(want))+some); err != nil {
				t.Fatal(err)
			}
			return append(want, make([]byte, some)...)
		},
		"cut and written again": func(t *testing.T, f *File, want []byte) []byte {
			if err := f.Truncate(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			return put(t, f, content(2, some), 0)
		},
		"second sync": func(t *testing.T, f *File, want []byte) []byte {
			want = append(want, put(t, f, content(2, some), int64(len(want)))...)
			if err := f.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			return append(want, put(t, f, content(3, some), int64(len(want)))...)
		},
		"commit that failed": func(t *testing.T, f *File, want []byte) []byte {
			want = append(want, put(t, f, content(2, some), int64(len(want)))...)
			s := f.cont.(*service)
			for _, op := range []string{"Upload", "CommitBlockList"} {
				s.faults.Add(blobtest.Fault{Op: op, Err: errService})
			}
			if f.Commit(t.Context()) == nil {
				t.Fatal("a commit that failed succeeded")
			}
			s.faults.Clear()
			copy(want[some/2:], put(t, f, content(3, some), some/2))
			return want
		},
	} {
		for _, size := range []int64{2 * some, 200 * kib} {
			for _, records := range []string{"all", "all but the last"} {
				if records != "all" && name != "over" && name != "zero" && name != "cut and written again" {
					continue
				}
				t.Run(name+", records: "+records, func(t *testing.T) {
					s, cfg := newService(), syncLocal(t.TempDir())
					c := openCache(t, cfg)
					want := content(1, size)
					f := create(t, c, s, "a", want)
					if err := f.Sync(t.Context()); err != nil {
						t.Fatal(err)
					}
					want = change(t, f, bytes.Clone(want))
					crash(c)
					if records != "all" { // killed between the bytes and their record
						edit(t, filepath.Join(cfg.Dir, stagingDir, f.stage.id+extJournal), func(b []byte) []byte {
							return b[:len(b)-25]
						})
						if name == "cut and written again" { // nothing said yet how long it is
							want = nil
						}
					}
					if l := theLeft(t, cfg.Dir); l.State != LeftFinished {
						t.Fatalf("left: %+v", l)
					}
					c = openCache(t, cfg)
					recoverAll(t, c, s)
					same(t, s.content(t, "a"), want)
					theNone(t, cfg.Dir)
					expectAll(t, openBlob(t, c, s, s.properties(t, "a")), want)
				})
			}
		}
	}
}

// TestPowerCutAfterCommit: a commit in the background does not sync the disk. After a loss of power, the file is what it
// was at the last sync that did, not what it was at that commit.
func TestPowerCutAfterCommit(t *testing.T) {
	boot := bootID
	t.Cleanup(func() { bootID = boot })
	s, cfg := newService(), syncLocal(t.TempDir())
	c := openCache(t, cfg)
	synced := content(1, 10*kib)
	f := create(t, c, s, "a", synced)
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, f, content(2, 20*kib), 10*kib)
	s.faults.Add(blobtest.Fault{Op: "Upload", Err: errService})
	if f.Commit(t.Context()) == nil {
		t.Fatal("a commit that failed succeeded")
	}
	s.faults.Clear()
	crash(c)
	erase(t, cfg, f, 10*kib, 20*kib)
	bootID = func() string { return "the next start" }
	c = openCache(t, cfg)
	recoverAll(t, c, s)
	same(t, s.content(t, "a"), synced)
	theNone(t, cfg.Dir)
}

// TestRecordStable: which records of a state that stands count after a loss of power. Journals of before said 1 of all.
func TestRecordStable(t *testing.T) {
	for _, tc := range []struct {
		name            string
		stands, durable bool
		want            bool
	}{{"synced", true, true, true}, {"committed", true, false, false}, {"closed", false, true, false}} {
		t.Run(tc.name, func(t *testing.T) {
			j, read := newTestJournal(t, testHeader())
			if err := j.finish(nil, tc.stands, tc.durable); err != nil {
				t.Fatal(err)
			}
			if r := read(); !r.finished || r.stands != tc.stands || (r.stable != nil) != tc.want {
				t.Errorf("stands %v, stable %v", r.stands, r.stable)
			}
			if err := j.add(recFinished, []byte{1}); err != nil {
				t.Fatal(err)
			}
			if r := read(); !r.stands || r.stable == nil {
				t.Error("a record of before does not stand")
			}
		})
	}
}

// TestPowerCutAfterRename: what was synced has the name after a loss of power that it had got since, or none.
func TestPowerCutAfterRename(t *testing.T) {
	boot := bootID
	t.Cleanup(func() { bootID = boot })
	want := content(1, 10*kib)
	for name, tc := range map[string]struct {
		change func(t *testing.T, f *File)
		under  string // the name that it has; empty for none
	}{
		"stays": {func(*testing.T, *File) {}, "a"},
		"renamed": {func(t *testing.T, f *File) {
			if !f.Rename("b", func() {}) {
				t.Fatal("a new file was not renamed")
			}
		}, "b"},
		"renamed back": {func(t *testing.T, f *File) {
			for _, to := range []string{"b", "a"} {
				if !f.Rename(to, func() {}) {
					t.Fatal("a new file was not renamed")
				}
			}
		}, "a"},
		"deleted": {func(t *testing.T, f *File) {
			if inService, err := f.Detach(t.Context()); err != nil || inService {
				t.Fatal(inService, err)
			}
			f.Gone()
			f.c.track(f, true) // for crash
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			bootID = boot
			s, cfg := newService(), syncLocal(t.TempDir())
			c := openCache(t, cfg)
			f := create(t, c, s, "a", want)
			if err := f.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			tc.change(t, f)
			crash(c)
			bootID = func() string { return "the next start" }
			recoverAll(t, openCache(t, cfg), s)
			for _, at := range []string{"a", "b"} {
				got := s.content(t, at)
				if (got != nil) != (at == tc.under) {
					t.Errorf("%s has %d bytes", at, len(got))
				}
				if got != nil {
					same(t, got, want)
				}
			}
			theNone(t, cfg.Dir)
		})
	}
}
