//go:build linux && (amd64 || arm64)

package shm

// How an arena's memory is made and given back: whole segments, never resized (SPEC.md, 9).
//
//	none ─▶ made ─▶ used ◀─▶ leaving ─▶ dropped ─▶ none

// confirm lets extents come from a segment that every consumer has mapped.
func (a *arena) confirm(index uint32) {
	s := &a.segments[index]
	if s.state != segmentMade {
		return
	}
	at := a.makeRun(index, 0, s.pages)
	a.mark(at)
	a.binPush(at)
	s.state = segmentUsed
	a.frees++
}

// addSegment makes a further segment, sealed and not confirmed.
func (a *arena) addSegment(size uint64) (uint32, error) {
	index := uint32(len(a.segments))
	for i := range a.segments {
		if a.segments[i].state == segmentNone {
			index = uint32(i)
			break
		}
	}
	if index >= MaxSegments {
		return 0, ErrNoMemory
	}
	m, err := create("chronetix-arena", size)
	if err != nil {
		return 0, err
	}
	if err := m.seal(); err != nil {
		m.unmap()
		return 0, err
	}
	made := segment{mapping: m, pages: uint32(size / pageSize), state: segmentMade}
	made.pageRun = make([]uint32, made.pages)
	if index == uint32(len(a.segments)) {
		a.segments = append(a.segments, made)
	} else {
		a.segments[index] = made
	}
	a.size += size
	return index, nil
}

// eachRun goes through the runs of a segment.
func (a *arena) eachRun(index uint32, act func(at uint32)) {
	s := &a.segments[index]
	for page := uint32(0); page < s.pages; {
		at := s.pageRun[page] - 1
		page += a.runs[at].pages
		act(at)
	}
}

func (a *arena) slabHasRoom(at uint32) bool {
	return a.runs[at].state == runSlab && len(a.runs[at].slab.stack) != 0
}

// leave: no extent is taken from this segment any more.
func (a *arena) leave(index uint32) {
	a.flushQuick(0)
	a.flushSlabs()
	a.eachRun(index, func(at uint32) {
		if a.runs[at].state == runFree {
			a.binRemove(at)
		}
		if a.slabHasRoom(at) {
			a.unlink(&a.classes[a.runs[at].class], at)
		}
		a.runs[at].leaving = true
	})
	a.segments[index].state = segmentLeaving
}

// stay uses a leaving segment again.
func (a *arena) stay(index uint32) {
	a.eachRun(index, func(at uint32) {
		a.runs[at].leaving = false
		if a.runs[at].state == runFree {
			a.binPush(at)
		}
		if a.slabHasRoom(at) {
			a.push(&a.classes[a.runs[at].class], at)
		}
	})
	a.segments[index].state = segmentUsed
	a.frees++
}

// stayAll uses all leaving segments again, and tells whether there was one.
func (a *arena) stayAll() bool {
	stayed := false
	for i := range a.segments {
		if a.segments[i].state == segmentLeaving {
			a.stay(uint32(i))
			stayed = true
		}
	}
	return stayed
}

// empty is exact for a leaving segment, and for others after the flushes of leave.
func (a *arena) empty(s *segment) bool {
	first := &a.runs[s.pageRun[0]-1]
	return first.state == runFree && first.pages == s.pages
}

// dropSegment gives the memory of a leaving, empty segment back to the machine.
func (a *arena) dropSegment(index uint32) {
	s := &a.segments[index]
	a.dropRun(s.pageRun[0] - 1)
	a.size -= s.size()
	s.unmap()
	*s = segment{mapping: mapping{fd: -1}, state: segmentDropped}
}

// forget: every consumer has unmapped it, its index may be used again.
func (a *arena) forget(index uint32) { a.segments[index].state = segmentNone }

func (a *arena) staying() (total uint64) {
	for i := range a.segments {
		if s := &a.segments[i]; s.state == segmentMade || s.state == segmentUsed {
			total += s.size()
		}
	}
	return total
}

// largest of the segments in this state with least to most bytes, the newest of those.
func (a *arena) largestIn(state segmentState, least, most uint64) uint32 {
	found := none
	for i := range a.segments {
		s := &a.segments[i]
		if s.state != state || s.size() < least || s.size() > most {
			continue
		}
		if found == none || s.size() >= a.segments[found].size() {
			found = uint32(i)
		}
	}
	return found
}

// shrink has segments leave, largest first, as long as keep bytes stay, and drops those that are empty.
func (a *arena) shrink(keep uint64) (given uint64) {
	staying, before := a.staying(), a.size
	least := uint64(0)
	if keep >= a.first {
		least = a.first + 1
	}
	for staying < keep {
		index := a.largestIn(segmentLeaving, 0, ^uint64(0))
		if index == none {
			break
		}
		staying += a.segments[index].size()
		a.stay(index)
	}
	for staying > keep {
		index := a.largestIn(segmentUsed, least, staying-keep)
		if index == none {
			break
		}
		staying -= a.segments[index].size()
		a.leave(index)
	}
	for i := range a.segments {
		if s := &a.segments[i]; s.state == segmentLeaving && a.empty(s) {
			a.dropSegment(uint32(i))
		}
	}
	return before - a.size
}

// pending is a segment on its way that will hold length bytes.
func (a *arena) pending(length uint64) uint32 {
	for i := range a.segments {
		if s := &a.segments[i]; s.state == segmentMade && s.size() >= length {
			return uint32(i)
		}
	}
	return none
}

// largest segment: a frame of so many bytes will fit once frames have come back.
func (a *arena) largest() (size uint64) {
	for i := range a.segments {
		size = max(size, a.segments[i].size())
	}
	return size
}

// makeWay drops empty segments where need bytes in one piece then fit below the limit.
func (a *arena) makeWay(need uint64) {
	a.flushQuick(0)
	a.flushSlabs()
	var empty uint64
	for i := range a.segments {
		if s := &a.segments[i]; s.state == segmentUsed && a.empty(s) {
			empty += s.size()
		}
	}
	if a.limit-a.size+empty < need {
		return
	}
	for i := range a.segments {
		if a.limit-a.size >= need {
			return
		}
		if s := &a.segments[i]; s.state == segmentUsed && a.empty(s) {
			a.leave(uint32(i))
			a.dropSegment(uint32(i))
		}
	}
}

// grow doubles the arena, by at least what length needs; the new segment's index, or none: it is at its limit, and room
// will come back. ErrTooLarge: length can never fit; ErrNoMemory: the machine has too little.
func (a *arena) grow(length uint64) (uint32, error) {
	if length > a.limit {
		return none, ErrTooLarge
	}
	need := wholePages(length)
	if length <= smallMax {
		need = slabPages * pageSize
	}
	fits := need <= a.largest()
	if need > a.limit-a.size && !fits {
		a.makeWay(need)
	}
	left := a.limit - a.size
	if need > left {
		return none, nil
	}
	size := min(max(a.size, a.first, need), left)
	index, err := a.addSegment(size)
	if err != nil && size > need {
		index, err = a.addSegment(need)
	}
	if err != nil && fits && a.used > 0 {
		return none, nil
	}
	return index, err
}
