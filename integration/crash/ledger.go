package crash

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Ledger remembers what was begun and what was acknowledged, outside of the file system under test. All methods may
// be called in parallel; the operations on one path must come one after the other.
type Ledger struct {
	mu    sync.Mutex // guards all below
	files map[string]*history
	acked int
	bytes int64
	parts bool
}

// history is what may be found under one path.
type history struct {
	last     int     // the number of the last version
	versions []state // in the order in which they were begun
	acked    int     // index of the last one that was acknowledged
	appends  bool    // each version is a prefix of the next one
}

// state is one state of a path: a file with content, or no file.
type state struct {
	version int
	gone    bool
	image   Image
	// writing: all its bytes were written, and neither close nor fsync was called yet.
	writing bool
	// moved is where a rename took the file, nil if it was not renamed: that it is gone here is right only if it
	// is there.
	moved *claimed
	// renamed: a rename brought the file.
	renamed bool
	// inPlace: it came out of the state before it without ever being shorter.
	inPlace bool
}

// AllowParts says that of what was begun and not acknowledged a part may be found: the bytes that were written first, as on
// a local file system after a crash. It comes before all else.
func (l *Ledger) AllowParts() { l.parts = true }

// NewLedger returns a ledger in which no path exists.
func NewLedger() *Ledger { return &Ledger{files: map[string]*history{}} }

// history returns that of a path. l.mu is held.
func (l *Ledger) history(path string) *history {
	h := l.files[path]
	if h == nil {
		h = &history{versions: []state{{gone: true}}}
		l.files[path] = h
	}
	return h
}

// Next returns the stamp of the next version of a path.
func (l *Ledger) Next(path string) Stamp {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history(path)
	h.last++
	return Stamp{path, h.last}
}

// Current returns what was begun last under a path, and whether that is a file.
func (l *Ledger) Current(path string) (Image, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history(path)
	s := h.versions[len(h.versions)-1]
	return s.image, !s.gone
}

// Claim is an operation that was begun.
type Claim struct {
	l     *Ledger
	parts []claimed
	bytes int64
}

// claimed is one path of an operation: the index of the state that it leads to.
type claimed struct {
	h  *history
	at int
}

// Begin notes that path is about to become this content. It comes before the first system call that could make it so.
func (l *Ledger) Begin(path string, image Image) *Claim {
	return l.begin(image.Size(), map[string]state{path: {image: image}})
}

// BeginInPlace is Begin for a change that leaves the other bytes of the file alone, and begins at its first new byte.
func (l *Ledger) BeginInPlace(path string, image Image) *Claim {
	return l.begin(image.Size(), map[string]state{path: {image: image, inPlace: true}})
}

// BeginAppend is Begin for a file that only grows: any length from what was acknowledged is whole.
func (l *Ledger) BeginAppend(path string, image Image) *Claim {
	c := l.BeginInPlace(path, image)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.history(path).appends = true
	return c
}

// BeginUnlink notes that path is about to be removed.
func (l *Ledger) BeginUnlink(path string) *Claim {
	return l.begin(0, map[string]state{path: {gone: true}})
}

// BeginRename notes that a file is about to get another name, over what is there.
func (l *Ledger) BeginRename(from, to string) *Claim {
	image, _ := l.Current(from)
	target := l.begin(image.Size(), map[string]state{to: {image: image, renamed: true}})
	source := l.begin(0, map[string]state{from: {gone: true, moved: &target.parts[0]}})
	return &Claim{l: l, bytes: image.Size(), parts: append(target.parts, source.parts...)}
}

func (l *Ledger) begin(bytes int64, states map[string]state) *Claim {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Claim{l: l, bytes: bytes}
	for path, s := range states {
		h := l.history(path)
		s.version = h.last
		h.versions = append(h.versions, s)
		h.appends = false
		c.parts = append(c.parts, claimed{h, len(h.versions) - 1})
	}
	return c
}

// Written notes that all bytes were written, and that nothing was called yet that commits them.
func (c *Claim) Written() { c.set(func(h *history, at int) { h.versions[at].writing = true }) }

// Closing notes that what commits the bytes is about to be called.
func (c *Claim) Closing() { c.set(func(h *history, at int) { h.versions[at].writing = false }) }

// Acknowledge notes that the operation has succeeded: nothing older may be found from now on.
func (c *Claim) Acknowledge() {
	c.set(func(h *history, at int) { h.versions[at].writing, h.acked = false, at })
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.l.acked++
	c.l.bytes += c.bytes
}

func (c *Claim) set(f func(h *history, at int)) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	for _, p := range c.parts {
		f(p.h, p.at)
	}
}

// Verdict is what a path was found to be.
type Verdict uint8

const (
	// Right is the last acknowledged state, or one that was begun later, whole.
	Right Verdict = iota
	// Lost is an older state, or none.
	Lost
	// Torn is anything else.
	Torn
)

// Found is a path as somebody has read it.
type Found struct {
	Exists  bool
	Content []byte
}

// Judge compares what was found with what may be there. The message says what is wrong, and is empty for Right.
func (l *Ledger) Judge(path string, f Found) (Verdict, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history(path)
	if i, _ := h.match(f, l.parts); i >= 0 {
		return Right, ""
	}
	want := h.versions[h.acked]
	text := fmt.Sprintf("%s: acknowledged was %s, begun later were %v; found %s", path, want, h.versions[h.acked+1:], l.describe(f))
	older := slices.ContainsFunc(h.versions[:h.acked], func(s state) bool { return s.is(f) })
	if older || !f.Exists {
		return Lost, text
	}
	return Torn, text
}

// JudgeRename is for paths that Judge has found right: a file that a rename took away must be under its other name.
func (l *Ledger) JudgeRename(path string, found func(path string) Found) (Verdict, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history(path)
	i, _ := h.match(found(path), l.parts)
	if i < 0 || h.versions[i].moved == nil {
		return Right, ""
	}
	moved := h.versions[i].moved
	for target, other := range l.files {
		if other != moved.h {
			continue
		}
		if at, _ := other.match(found(target), l.parts); at < moved.at {
			return Lost, fmt.Sprintf("%s is gone, and %s, its new name, is not %s", path, target, other.versions[moved.at])
		}
	}
	return Right, ""
}

// match returns the index of the state that was found, -1 if there is none that may be there, and the content as an Image.
func (h *history) match(f Found, parts bool) (int, Image) {
	for i := len(h.versions) - 1; i >= h.acked; i-- {
		if h.versions[i].is(f) {
			return i, h.versions[i].image
		}
	}
	n, at := int64(len(f.Content)), len(h.versions)-1
	last := h.versions[at].image
	if h.appends && f.Exists && n >= h.versions[h.acked].image.Size() && n <= last.Size() && last.Cut(n).Is(f.Content) {
		return at, last.Cut(n)
	}
	for ; parts && f.Exists && at > h.acked; at-- {
		if image, ok := h.versions[at].partly(h.versions[at-1], f.Content); ok {
			return at, image
		}
	}
	return -1, Image{}
}

// partly reports whether content is a state of which only the first bytes were written, over the state before it.
func (s state) partly(before state, content []byte) (Image, bool) {
	if s.gone || s.renamed {
		return Image{}, false
	}
	var old Image
	if s.inPlace {
		old = before.image
	}
	written := s.image.Bytes()
	n := 0
	for n < min(len(written), len(content)) && written[n] == content[n] {
		n++
	}
	image := old.Over(s.image.Cut(int64(n)))
	return image, image.Is(content)
}

func (s state) is(f Found) bool {
	if s.gone || !f.Exists {
		return s.gone && !f.Exists
	}
	return s.image.Is(f.Content)
}

func (s state) String() string {
	if s.gone {
		return "no file"
	}
	if s.renamed {
		return fmt.Sprintf("a renamed file of %d bytes", s.image.Size())
	}
	return fmt.Sprintf("version %d of %d bytes", s.version, s.image.Size())
}

// describe says what was found. l.mu is held.
func (l *Ledger) describe(f Found) string {
	if !f.Exists {
		return "no file"
	}
	return Describe(f.Content, slices.Collect(maps.Keys(l.files))...)
}

// Settle takes what was found, which must be Right, for the only state of the path from now on.
func (l *Ledger) Settle(path string, f Found) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history(path)
	i, image := h.match(f, l.parts)
	if i < 0 {
		panic("crash: " + path + " is settled on what was not judged right")
	}
	s := h.versions[i]
	if !s.gone {
		s.image = image
	}
	s.writing, s.inPlace, s.moved = false, false, nil
	h.versions, h.acked = []state{s}, 0
}

// Paths returns all paths that were ever begun, sorted.
func (l *Ledger) Paths() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.files))
}

// Unclosed returns the contents that were written and neither closed nor synced, by path.
func (l *Ledger) Unclosed() map[string]Image {
	l.mu.Lock()
	defer l.mu.Unlock()
	open := map[string]Image{}
	for path, h := range l.files {
		if s := h.versions[len(h.versions)-1]; s.writing {
			open[path] = s.image
		}
	}
	return open
}

// Acknowledged returns how many operations were acknowledged, and the size of the files that they left, in bytes.
func (l *Ledger) Acknowledged() (operations int, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked, l.bytes
}
