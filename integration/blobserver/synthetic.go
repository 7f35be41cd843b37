package blobserver

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"blobmount/blobcache/blobtest"
)

// maxLevels bounds the directories above a synthetic blob.
const maxLevels = 12

// Synthetic is a set of blobs of one size that cost no memory. Their names are the prefix and six digits, from 000000
// on, below directories that are named alike: a/ with 2 directories of 3 blobs has a/000000/000000 to a/000001/000002.
type Synthetic struct {
	Container, Prefix string
	// Count is how many blobs there are in each directory of the last level.
	Count int
	Size  int64 // bytes
	// Dirs has the number of directories in the prefix, in each of these, and so on; 0 ends it.
	Dirs [maxLevels]int
	// Every says that every how manieth blob has the metadata of a file that was copied with mode and time; 0: none.
	Every int
}

// ParseSynthetic reads CONTAINER/PREFIX:COUNT:SIZE, the size in bytes. The prefix may be empty, and may have colons.
// COUNT may be DIRSxCOUNT, DIRSxDIRSxCOUNT and so on for directories, and end with %EVERY for metadata.
func ParseSynthetic(s string) (Synthetic, error) {
	bad := fmt.Errorf("%q is not CONTAINER/PREFIX:COUNT:SIZE with COUNT such as 1000, 10x100 or 1000%%10", s)
	rest, size, ok := cutLast(s, ":")
	name, count, ok2 := cutLast(rest, ":")
	container, prefix, ok3 := strings.Cut(name, "/")
	if !ok || !ok2 || !ok3 {
		return Synthetic{}, bad
	}
	d := Synthetic{Container: container, Prefix: prefix}
	count, every, marked := strings.Cut(count, "%")
	levels := strings.Split(count, "x")
	if len(levels) > maxLevels+1 {
		return Synthetic{}, bad
	}
	total := 1
	for i, text := range levels {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1e6 { // six digits
			return Synthetic{}, bad
		}
		if total *= n; total > maxSynthetic {
			return Synthetic{}, fmt.Errorf("%q has more than %d blobs", s, int(maxSynthetic))
		}
		if i < len(levels)-1 {
			d.Dirs[i] = n
		} else {
			d.Count = n
		}
	}
	var err error
	if marked {
		if d.Every, err = strconv.Atoi(every); err != nil || d.Every < 1 {
			return Synthetic{}, bad
		}
	}
	if d.Size, err = strconv.ParseInt(size, 10, 64); err != nil || d.Size < 0 {
		return Synthetic{}, bad
	}
	return d, nil
}

// maxSynthetic keeps the time bounded in which the names are checked.
const maxSynthetic = 1e8

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// String is what ParseSynthetic reads.
func (d Synthetic) String() string {
	var count strings.Builder
	for _, n := range d.Dirs {
		if n > 0 {
			fmt.Fprintf(&count, "%dx", n)
		}
	}
	fmt.Fprint(&count, d.Count)
	if d.Every > 0 {
		fmt.Fprintf(&count, "%%%d", d.Every)
	}
	return fmt.Sprintf("%s/%s:%s:%d", d.Container, d.Prefix, count.String(), d.Size)
}

// Total returns the number of all blobs.
func (d Synthetic) Total() int {
	n := d.Count
	for _, dirs := range d.Dirs {
		n *= max(dirs, 1)
	}
	return n
}

// Name returns the name of the i-th blob.
func (d Synthetic) Name(i int) string {
	const digits = 6
	levels := 1
	for levels <= maxLevels && d.Dirs[levels-1] > 0 {
		levels++
	}
	text := make([]byte, len(d.Prefix)+levels*(digits+1)-1)
	copy(text, d.Prefix)
	end, size := len(text), d.Count
	for level := levels - 1; level >= 0; level-- {
		n := i % size
		i /= size
		for range digits { // by hand: a listing of a million names searches among them
			end--
			text[end] = byte('0' + n%10)
			n /= 10
		}
		if level > 0 {
			end--
			text[end] = '/'
			size = d.Dirs[level-1]
		}
	}
	return string(text)
}

// Metadata returns that of the i-th blob, as cp -a on a mount writes it; nil for none.
func (d Synthetic) Metadata(i int) map[string]string {
	if d.Every == 0 || i%d.Every != 0 {
		return nil
	}
	modified := time.Date(2020, 1, 1, 0, 0, i%1e6, 123456789, time.UTC)
	return map[string]string{"mode": "0600", "mtime": modified.Format(time.RFC3339Nano)}
}

// SyntheticContent returns the content of the synthetic blob of this name: random bytes that the name decides, so
// that another process knows what it has to read.
func SyntheticContent(name string) blobtest.Generator {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return blobtest.Random(h.Sum64())
}

// AddSynthetic creates the blobs of a set, and the container if it is missing. A blob that is there under one of the
// names stays.
func (s *Server) AddSynthetic(d Synthetic) error {
	store := s.Store(d.Container)
	if store == nil {
		if err := s.CreateContainer(d.Container); err != nil {
			return err
		}
		store = s.Store(d.Container)
	}
	err := store.AddSet(blobtest.Set{
		Count: d.Total(), Name: d.Name, Size: d.Size, Content: SyntheticContent, Metadata: d.Metadata,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	return nil
}
