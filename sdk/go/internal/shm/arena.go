//go:build linux && (amd64 || arm64)

package shm

import (
	"errors"
	"math/bits"
)

// The arena is payload memory in sealed segments; how it is divided is private, so no peer can break it. Extents are
// multiples of a line. Small ones are objects of a class in a slab of 8 pages; larger ones are runs of whole pages. What
// was freed last is handed out first, because it is still in the cache.
//
//	segment  | run (slab of one class) | run (one extent) | run (free) …
//	pageRun  | first and last page of every run name it: that is how neighbours are found and merged
//	quick    | the runs freed last, not merged: an exact size is taken from here, newest first
//	bins     | free runs by size, four steps an octave
//
// A segment that is leaving hands out nothing: its free runs are in no list and merge as extents come back, until one
// run is the whole segment.

// ErrTooLarge means that a frame can never fit the arena's limit.
var ErrTooLarge = errors.New("the frame can never fit the node's memory")

const (
	none       = ^uint32(0)
	smallMax   = 3584
	slabPages  = 8
	binCount   = 128
	quickMax   = 16
	binLooks   = 8
	classCount = 19
)

var classLines = [classCount]uint32{1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56}

// classOf is by the number of lines.
var classOf = func() (table [smallMax/lineSize + 1]uint8) {
	class := uint8(0)
	for lines := range table {
		if uint32(lines) > classLines[class] {
			class++
		}
		table[lines] = class
	}
	return table
}()

type runState uint8

const (
	runFree runState = iota
	runQuick
	runWhole
	runSlab
)

type slab struct {
	refs  []uint32 // by object: routes that still read it
	stack []uint16 // the free ones
}

type run struct {
	page, pages uint32
	next, prev  uint32
	refs        uint32
	segment     uint32
	state       runState
	class       uint8
	leaving     bool
	slab        *slab
}

type segmentState uint8

const (
	segmentNone    segmentState = iota // the index is free
	segmentMade                        // not every consumer has mapped it yet
	segmentUsed                        // extents come from it
	segmentLeaving                     // it is given back as soon as every extent of it has come back
	segmentDropped                     // unmapped; not every consumer has done so yet
)

type segment struct {
	mapping
	pageRun   []uint32 // run + 1 at the first and the last page of each run
	pages     uint32
	state     segmentState
	announced bool // consumers were told of what state says
}

// extent is a piece of payload memory; no bytes, no memory.
type extent struct {
	run, object uint32
	segment     uint32
	offset      uint64
	data        []byte
}

type arena struct {
	limit, size, used, first, peak uint64
	frees                          uint64 // counts what may make room
	segments                       []segment
	runs                           []run
	spare                          uint32
	quick                          []uint32
	bins                           [binCount]uint32
	binUsed                        [2]uint64
	classes                        [classCount]uint32
}

func newArena(limit, first uint64) (*arena, error) {
	a := &arena{limit: limit &^ (pageSize - 1), spare: none}
	for i := range a.bins {
		a.bins[i] = none
	}
	for i := range a.classes {
		a.classes[i] = none
	}
	index, err := a.addSegment(min(wholePages(first), a.limit))
	if err != nil {
		return nil, err
	}
	a.first = a.size
	a.confirm(index)
	return a, nil
}

// -- lists ---------------------------------------------------------------------------------------------------------

func (a *arena) push(head *uint32, at uint32) {
	a.runs[at].prev, a.runs[at].next = none, *head
	if *head != none {
		a.runs[*head].prev = at
	}
	*head = at
}

func (a *arena) unlink(head *uint32, at uint32) {
	entry := &a.runs[at]
	if entry.next != none {
		a.runs[entry.next].prev = entry.prev
	}
	if entry.prev != none {
		a.runs[entry.prev].next = entry.next
	} else {
		*head = entry.next
	}
}

func binOf(pages uint32) uint32 {
	octave := uint32(31 - bits.LeadingZeros32(pages))
	return octave*4 + uint32(uint64(pages)<<2>>octave)&3
}

func (a *arena) binPush(at uint32) {
	a.runs[at].state = runFree
	if a.runs[at].leaving {
		return
	}
	bin := binOf(a.runs[at].pages)
	a.push(&a.bins[bin], at)
	a.binUsed[bin/64] |= 1 << (bin % 64)
}

func (a *arena) binRemove(at uint32) {
	if a.runs[at].leaving {
		return
	}
	bin := binOf(a.runs[at].pages)
	a.unlink(&a.bins[bin], at)
	if a.bins[bin] == none {
		a.binUsed[bin/64] &^= 1 << (bin % 64)
	}
}

// -- runs ----------------------------------------------------------------------------------------------------------

func (a *arena) makeRun(segment, page, pages uint32) uint32 {
	at := a.spare
	if at == none {
		at = uint32(len(a.runs))
		a.runs = append(a.runs, run{})
	} else {
		a.spare = a.runs[at].next
	}
	a.runs[at] = run{page: page, pages: pages, segment: segment}
	return at
}

func (a *arena) dropRun(at uint32) {
	a.runs[at].next = a.spare
	a.spare = at
}

func (a *arena) mark(at uint32) {
	entry := &a.runs[at]
	pageRun := a.segments[entry.segment].pageRun
	pageRun[entry.page] = at + 1
	pageRun[entry.page+entry.pages-1] = at + 1
}

// merge gives a run back to the bins, joined with its free neighbours.
func (a *arena) merge(at uint32) {
	entry := &a.runs[at]
	s := &a.segments[entry.segment]
	if right := entry.page + entry.pages; right < s.pages && a.runs[s.pageRun[right]-1].state == runFree {
		other := s.pageRun[right] - 1
		a.binRemove(other)
		entry.pages += a.runs[other].pages
		a.dropRun(other)
	}
	if entry.page > 0 && a.runs[s.pageRun[entry.page-1]-1].state == runFree {
		other := s.pageRun[entry.page-1] - 1
		a.binRemove(other)
		a.runs[other].pages += entry.pages
		a.dropRun(at)
		at = other
	}
	a.mark(at)
	a.binPush(at)
}

// cut takes pages off the front of a free run of at least that many.
func (a *arena) cut(at, pages uint32) uint32 {
	a.binRemove(at)
	if left := a.runs[at].pages - pages; left > 0 {
		a.runs[at].pages = pages
		rest := a.makeRun(a.runs[at].segment, a.runs[at].page+pages, left)
		a.mark(rest)
		a.binPush(rest)
		a.mark(at)
	}
	return at
}

func (a *arena) binFit(bin, pages uint32, looks int) uint32 {
	for at := a.bins[bin]; at != none && looks > 0; at, looks = a.runs[at].next, looks-1 {
		if a.runs[at].pages >= pages {
			return at
		}
	}
	return none
}

func (a *arena) find(pages uint32) uint32 {
	own := binOf(pages)
	if at := a.binFit(own, pages, binLooks); at != none {
		return at
	}
	next := own + 1
	for half := next / 64; half < 2; half++ {
		used := a.binUsed[half]
		if half == next/64 {
			used &= ^uint64(0) << (next % 64)
		}
		if used != 0 {
			return a.bins[half*64+uint32(bits.TrailingZeros64(used))]
		}
	}
	return a.binFit(own, pages, int(^uint(0)>>1))
}

func (a *arena) flushQuick(keep int) {
	flush := max(len(a.quick)-keep, 0)
	for _, at := range a.quick[:flush] {
		a.merge(at)
	}
	a.quick = append(a.quick[:0], a.quick[flush:]...)
}

func (a *arena) freeRun(at uint32) {
	if a.runs[at].leaving {
		a.merge(at)
		return
	}
	if len(a.quick) == quickMax {
		a.flushQuick(quickMax / 2)
	}
	a.runs[at].state = runQuick
	a.quick = append(a.quick, at)
}

func (a *arena) takeQuick(pages uint32) uint32 {
	for i := len(a.quick) - 1; i >= 0; i-- {
		if at := a.quick[i]; a.runs[at].pages == pages {
			a.quick = append(a.quick[:i], a.quick[i+1:]...)
			return at
		}
	}
	return none
}

func (a *arena) dropSlab(at uint32) {
	if !a.runs[at].leaving {
		a.unlink(&a.classes[a.runs[at].class], at)
	}
	a.runs[at].slab = nil
}

// flushSlabs gives back the empty slabs that are kept for the next object.
func (a *arena) flushSlabs() {
	for class := range a.classes {
		for at := a.classes[class]; at != none; {
			next := a.runs[at].next
			if s := a.runs[at].slab; len(s.stack) == len(s.refs) {
				a.dropSlab(at)
				a.merge(at)
			}
			at = next
		}
	}
}

func (a *arena) takeRun(pages uint32) uint32 {
	if at := a.takeQuick(pages); at != none {
		return at
	}
	at := a.find(pages)
	if at == none {
		a.flushQuick(0)
		a.flushSlabs()
		at = a.find(pages)
	}
	if at == none {
		return none
	}
	return a.cut(at, pages)
}

// -- extents -------------------------------------------------------------------------------------------------------

func (a *arena) makeSlab(class uint8) bool {
	size := classLines[class] * lineSize
	total := slabPages * pageSize / size
	at := a.takeRun(slabPages)
	if at == none { // held frames leave no room for a whole slab
		at, total = a.takeRun(1), pageSize/size
	}
	if at == none {
		return false
	}
	made := &slab{refs: make([]uint32, total), stack: make([]uint16, total)}
	for i := range made.stack {
		made.stack[i] = uint16(int(total) - 1 - i)
	}
	a.runs[at].state, a.runs[at].class, a.runs[at].slab = runSlab, class, made
	a.push(&a.classes[class], at)
	return true
}

func (a *arena) place(e *extent, at uint32, inside, length uint64) {
	entry := &a.runs[at]
	e.run, e.segment = at, entry.segment
	e.offset = uint64(entry.page)*pageSize + inside
	e.data = a.segments[entry.segment].data[e.offset : e.offset+length : e.offset+length]
}

func (a *arena) took(size uint64) {
	a.used += size
	a.peak = max(a.peak, a.used)
}

// alloc finds an extent with one reference; false: there is no room now. No bytes need no memory.
func (a *arena) alloc(length uint64, e *extent) bool {
	switch {
	case length == 0:
		*e = extent{run: none}
		return true
	case length <= smallMax:
		return a.allocSmall(length, e)
	case length > a.size:
		return false
	}
	pages := uint32(wholePages(length) / pageSize)
	at := a.takeRun(pages)
	if at == none {
		return false
	}
	a.runs[at].state, a.runs[at].refs = runWhole, 1
	a.took(uint64(pages) * pageSize)
	e.object = 0
	a.place(e, at, 0, length)
	return true
}

func (a *arena) allocSmall(length uint64, e *extent) bool {
	class := classOf[(length+lineSize-1)/lineSize]
	at := a.classes[class]
	if at == none {
		if !a.makeSlab(class) {
			return false
		}
		at = a.classes[class]
	}
	s := a.runs[at].slab
	object := uint32(s.stack[len(s.stack)-1])
	s.stack = s.stack[:len(s.stack)-1]
	s.refs[object] = 1
	if len(s.stack) == 0 {
		a.unlink(&a.classes[class], at)
	}
	size := uint64(classLines[class]) * lineSize
	a.took(size)
	e.object = object
	a.place(e, at, uint64(object)*size, length)
	return true
}

// share adds references: one for each further route that reads the extent.
func (a *arena) share(e extent, more uint32) {
	if e.run == none {
		return
	}
	if entry := &a.runs[e.run]; entry.state == runSlab {
		entry.slab.refs[e.object] += more
	} else {
		entry.refs += more
	}
}

// drop takes one reference; with the last one the extent is free.
func (a *arena) drop(at, object uint32) {
	if at == none {
		return
	}
	entry := &a.runs[at]
	if entry.state == runSlab {
		a.dropSmall(at, object)
		return
	}
	if entry.refs--; entry.refs == 0 {
		a.frees++
		a.used -= uint64(entry.pages) * pageSize
		a.freeRun(at)
	}
}

func (a *arena) dropSmall(at, object uint32) {
	entry := &a.runs[at]
	s, head := entry.slab, &a.classes[entry.class]
	if s.refs[object]--; s.refs[object] != 0 {
		return
	}
	a.frees++
	a.used -= uint64(classLines[entry.class]) * lineSize
	switch {
	case entry.leaving: // in no list
	case len(s.stack) == 0:
		a.push(head, at)
	case *head != at:
		a.unlink(head, at)
		a.push(head, at)
	}
	s.stack = append(s.stack, uint16(object))
	if len(s.stack) == len(s.refs) && (entry.leaving || entry.next != none) {
		a.dropSlab(at)
		a.freeRun(at)
	}
}
