package blobcache

// The read-ahead machine decides what to fetch, and does nothing else: reads go in, ranges come out. It knows
// neither time nor what is cached; the caller skips what is there.

const (
	// firstWindow is how far a stream that was just recognised is read ahead: one FUSE request more than asked
	// for, so that a program which looks only at the head of a file costs little.
	firstWindow = 1 << 20
	// maxStreams bounds how many interleaved sequential readers of one file are told apart.
	maxStreams = 16
	// promote is how many reads must continue each other before a stream that did not begin at the start of
	// the file is read ahead, and how many equal steps make a strided reader.
	promote = 2
	// maxSteps bounds how many steps a strided reader is read ahead.
	maxSteps = 32
)

// plan is what to fetch for one read.
type plan struct {
	demand extent   // must be fetched for the read itself, whole grains; empty never
	ahead  []extent // worth fetching now in addition, the most urgent first
}

// stream is one sequential reader.
type stream struct {
	next   int64  // where it is expected to read next
	hits   int    // reads that continued it
	window int64  // how far to be ahead of next
	issued int64  // fetched or being fetched up to here
	used   uint64 // when it was read last, in reads
}

// stride is a reader that makes equal steps, forwards or backwards, between reads of equal length.
type stride struct {
	off, n int64 // the last read
	step   int64
	hits   int // steps that were equal to the one before
	depth  int // how many steps to be ahead
	issued int // steps fetched ahead and not read yet
}

// readahead is the machine of one version. It is not safe for parallel use.
type readahead struct {
	size      int64 // bytes of the blob
	whole     int64 // a blob up to this size is fetched at once
	maxWindow int64
	piece     int64 // a window past this size is fetched in pieces that end at its multiples
	clock     uint64
	streams   []stream
	stride    stride
}

// read returns what to fetch for a read of n bytes at off. off lies inside the blob and n is positive.
func (r *readahead) read(off, n int64) plan {
	r.clock++
	end := min(off+n, r.size)
	p := plan{demand: r.grains(off, end)}
	if r.size <= r.whole {
		p.demand = extent{0, r.size}
		return p
	}
	s := r.find(off, end)
	switch {
	case s == nil:
		s = r.begin(off, end)
		p.ahead = r.steps(off, end-off)
	case end <= s.next:
		// The same again, a step back, or a request that was overtaken: the stream is where it was.
		s.used = r.clock
		p.ahead = r.steps(off, end-off)
		return p
	default:
		s.hits++
	}
	s.used = r.clock
	s.next = max(s.next, end)
	if s.window == 0 {
		if s.hits < promote && off != 0 {
			return p
		}
		s.window = firstWindow
	} else {
		s.window = min(s.window*2, r.maxWindow)
	}
	s.issued = max(s.issued, p.demand.end)
	to := r.grains(s.next, min(s.next+s.window, r.size)).end
	if to < r.size && to-s.issued > r.piece {
		to -= to % r.piece // whole pieces, so that a fetch is never a splinter
	}
	if to-s.issued < min(r.piece, s.window/2) && to < r.size {
		return p // too little to be worth a request yet
	}
	if to > s.issued {
		p.ahead = append(p.ahead, extent{s.issued, to})
		s.issued = to
	}
	return p
}

// steps returns what to fetch ahead for a read that continues no stream, if it continues a stride.
func (r *readahead) steps(off, n int64) []extent {
	t := &r.stride
	step := off - t.off
	if step != t.step || n != t.n || step == 0 {
		*t = stride{off: off, n: n, step: step}
		return nil
	}
	t.off = off
	if t.hits++; t.hits < promote {
		return nil
	}
	t.issued = max(0, t.issued-1)
	most := max(1, min(maxSteps, int(r.maxWindow/(n+2*grain))))
	t.depth = min(max(1, 2*t.depth), most)
	var out []extent
	for t.issued < t.depth {
		at := off + int64(t.issued+1)*step
		if at < 0 || at >= r.size {
			break
		}
		x := r.grains(at, min(at+n, r.size))
		if last := len(out) - 1; last >= 0 && x.end >= out[last].off && x.off <= out[last].end {
			out[last] = extent{min(x.off, out[last].off), max(x.end, out[last].end)} // a reader going backwards
		} else {
			out = append(out, x)
		}
		t.issued++
	}
	return out
}

// refused tells that [from, to) of the last plan's ahead was not fetched. A sequential reader gets it proposed again;
// for a strided one it is fetched when it is read.
func (r *readahead) refused(from, to int64) {
	for i := range r.streams {
		if s := &r.streams[i]; s.issued == to {
			s.issued = from
		}
	}
}

// find returns the stream that a read continues. Requests of one reader arrive a little out of order, and the
// kernel's own read-ahead makes them large: so a read counts as near if it is within four of its own lengths.
func (r *readahead) find(off, end int64) *stream {
	slack := 4 * (end - off)
	for i := range r.streams {
		s := &r.streams[i]
		if off >= s.next-slack && off <= s.next+slack && end > s.next-slack/2 {
			return s
		}
	}
	return nil
}

// begin returns a new stream, in the place of the one that was not used for longest when there are too many.
func (r *readahead) begin(off, end int64) *stream {
	s := stream{next: end, issued: off}
	if len(r.streams) < maxStreams {
		r.streams = append(r.streams, s)
		return &r.streams[len(r.streams)-1]
	}
	oldest := 0
	for i := range r.streams {
		if r.streams[i].used < r.streams[oldest].used {
			oldest = i
		}
	}
	r.streams[oldest] = s
	return &r.streams[oldest]
}

// grains rounds a range outwards to whole grains.
func (r *readahead) grains(off, end int64) extent {
	return extent{off &^ (grain - 1), min((end+grain-1)&^(grain-1), r.size)}
}
