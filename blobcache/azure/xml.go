package azure

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// xmlScanner walks through an XML document as the Blob service writes them: elements, attributes and text, no document
// type, comments or CDATA. It checks that tags match, and keeps the first error; then there are no more elements. A page
// of 5,000 blobs costs encoding/xml 130 ms, and this 20. It is not safe for parallel use.
type xmlScanner struct {
	rest  []byte   // what was not read yet
	open  [][]byte // names of the elements that are open, the root first
	attrs []byte   // of the last element that was opened
	empty bool     // the last element that was opened ended in its own tag: <a/>
	err   error
}

// newXMLScanner returns a scanner in front of the root of a document.
func newXMLScanner(doc []byte) *xmlScanner {
	x := &xmlScanner{rest: bytes.TrimPrefix(doc, []byte("\ufeff"))}
	if !utf8.Valid(x.rest) {
		x.fail(errors.New("it is not UTF-8"))
	}
	if bytes.HasPrefix(x.rest, []byte("<?")) {
		_, after, ok := bytes.Cut(x.rest, []byte("?>"))
		if !ok {
			x.fail(io.ErrUnexpectedEOF)
		}
		x.rest = after
	}
	return x
}

func (x *xmlScanner) fail(err error) {
	if x.err == nil {
		x.err = fmt.Errorf("XML cannot be read: %w", err)
	}
}

// next opens the next element in the one that is open, past any text. It returns its name, which is valid until the
// document is, or ends the one that is open and returns nil.
func (x *xmlScanner) next() []byte {
	if x.err != nil {
		return nil
	}
	if x.empty {
		x.close()
		return nil
	}
	at := bytes.IndexByte(x.rest, '<')
	if name, plain := x.plainTag(at); plain {
		return name
	}
	end := x.tagEnd(at)
	if end < 0 {
		x.fail(io.ErrUnexpectedEOF)
		return nil
	}
	tag := x.rest[at+1 : end]
	x.rest = x.rest[end+1:]
	if bytes.HasPrefix(tag, []byte("/")) {
		if name := bytes.TrimSpace(tag[1:]); len(x.open) == 0 || !bytes.Equal(name, x.open[len(x.open)-1]) {
			x.fail(fmt.Errorf("</%s> ends what is not open", name))
			return nil
		}
		x.close()
		return nil
	}
	tag, x.empty = bytes.CutSuffix(tag, []byte("/"))
	name := tag
	if i := bytes.IndexAny(tag, " \t\r\n"); i >= 0 {
		name, x.attrs = tag[:i], tag[i:]
	} else {
		x.attrs = nil
	}
	if len(name) == 0 || name[0] == '!' || name[0] == '?' {
		x.fail(fmt.Errorf("<%s> is not expected", tag))
		return nil
	}
	x.open = append(x.open, name)
	return name
}

// plainTag is next for a tag that begins at a place and is nothing but a name, as nearly all are: it looks at each byte once.
func (x *xmlScanner) plainTag(at int) (name []byte, plain bool) {
	if at < 0 || at+1 == len(x.rest) {
		return nil, false
	}
	tag := x.rest[at+1:]
	if tag[0] == '/' && len(x.open) > 0 {
		name := x.open[len(x.open)-1]
		if len(tag) < len(name)+2 || tag[len(name)+1] != '>' || !bytes.Equal(tag[1:len(name)+1], name) {
			return nil, false
		}
		x.rest = tag[len(name)+2:]
		x.close()
		return nil, true
	}
	for i, c := range tag {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-':
			continue
		case c != '>' || i == 0:
			return nil, false
		}
		x.rest, x.attrs = tag[i+1:], nil
		x.open = append(x.open, tag[:i])
		return tag[:i], true
	}
	return nil, false
}

func (x *xmlScanner) close() {
	x.open, x.empty = x.open[:len(x.open)-1], false
}

// tagEnd returns where the tag ends that begins at a place, -1 if it does not.
func (x *xmlScanner) tagEnd(at int) int {
	if at < 0 {
		return -1
	}
	var quote byte
	for i := at; i < len(x.rest); i++ {
		switch c := x.rest[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i
		}
	}
	return -1
}

// skip ends the element that is open, with all in it.
func (x *xmlScanner) skip() {
	for x.next() != nil {
		x.skip()
	}
}

// text returns the text in the element that is open, which has nothing else in it, and ends it. The bytes may be the
// document's own.
func (x *xmlScanner) text() []byte {
	var raw []byte
	if i := bytes.IndexByte(x.rest, '<'); i > 0 && !x.empty {
		raw = x.rest[:i]
	}
	if name := x.next(); name != nil {
		x.fail(fmt.Errorf("<%s> is not expected in text", name))
	}
	if bytes.IndexByte(raw, '&') < 0 && bytes.IndexByte(raw, '\r') < 0 {
		return raw
	}
	out, err := unescape(raw)
	if err != nil {
		x.fail(err)
	}
	return out
}

// unescape replaces references by what they stand for, and line ends by line feeds (XML 1.0, 2.11 and 4.6).
func unescape(raw []byte) ([]byte, error) {
	out := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		c := raw[0]
		raw = raw[1:]
		switch c {
		case '\r':
			raw = bytes.TrimPrefix(raw, []byte("\n"))
			out = append(out, '\n')
		case '&':
			name, after, ok := bytes.Cut(raw, []byte(";"))
			r, known := reference(string(name))
			if !ok || !known {
				return nil, fmt.Errorf("reference &%.10s is not known", raw)
			}
			out = utf8.AppendRune(out, r)
			raw = after
		default:
			out = append(out, c)
		}
	}
	return out, nil
}

// reference returns the character that a reference without its "&" and ";" stands for.
func reference(name string) (rune, bool) {
	switch name {
	case "amp":
		return '&', true
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "quot":
		return '"', true
	case "apos":
		return '\'', true
	}
	digits, ok := strings.CutPrefix(name, "#")
	base := 10
	if hex, isHex := strings.CutPrefix(digits, "x"); isHex {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 21)
	return rune(n), ok && err == nil && utf8.ValidRune(rune(n))
}
