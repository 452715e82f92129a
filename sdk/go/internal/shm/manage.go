//go:build linux && (amd64 || arm64)

package shm

import (
	"fmt"
	"slices"
)

// What becomes of a Sender's routes while it runs: links, successors, taps, changed routes, growth, and the end.

// Stage names one stage of a route, with the memory that belongs to it.
type Stage struct {
	Route      string
	Epoch      uint64
	Linked     bool
	Resume     uint64
	Segments   []uint64
	Descriptor int
}

// Offered are the ends of the present stages, and the arena's segments.
func (s *Sender) Offered() (rings []Stage, segments []uint64, descriptors []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.outputs {
		rings = append(rings, p.stage())
	}
	for i := range s.arena.segments {
		if each := &s.arena.segments[i]; each.fd >= 0 {
			segments = append(segments, uint64(i))
			descriptors = append(descriptors, each.fd)
			each.announced = true
		}
	}
	return rings, segments, descriptors
}

func (p *Producer) stage() Stage {
	return Stage{Route: p.Route, Epoch: p.Header.Epoch, Linked: p.Linked(), Resume: p.Resume, Descriptor: p.ring.fd}
}

// Inventory is all that the next daemon has to be shown. Taps are over: who listened did so by way of the daemon that is
// gone.
func (s *Sender) Inventory(act func(stages []Stage, segments, unconfirmed, dropped []uint64, descriptors []int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for route := range s.taps {
		s.dropTap(route)
	}
	var stages []Stage
	for _, p := range s.outputs {
		stages = append(stages, p.stage())
	}
	for _, p := range s.ends {
		present := slices.ContainsFunc(s.outputs, func(each *Producer) bool { return each.Route == p.Route })
		if present && !slices.Contains(s.outputs, p) {
			stages = append(stages, p.stage())
		}
	}
	var segments, unconfirmed, dropped []uint64
	var descriptors []int
	for i := range s.arena.segments {
		each := &s.arena.segments[i]
		if each.fd >= 0 {
			segments, descriptors = append(segments, uint64(i)), append(descriptors, each.fd)
			each.announced = true
		}
		switch each.state {
		case segmentMade:
			unconfirmed = append(unconfirmed, uint64(i))
		case segmentDropped:
			dropped = append(dropped, uint64(i))
			each.announced = true
		}
	}
	act(stages, segments, unconfirmed, dropped, descriptors)
}

// find returns that stage of an output; nil for one that is over. The present one is meant without an epoch.
func (s *Sender) find(route string, epoch uint64, named bool) (*Producer, error) {
	if each, isTap := s.taps[route]; isTap {
		return each.end, nil
	}
	for _, p := range s.outputs {
		if p.Route == route && (!named || p.Header.Epoch == epoch) {
			return p, nil
		}
	}
	known := false
	for _, p := range s.ends {
		if p.Route != route {
			continue
		}
		if known = true; named && p.Header.Epoch == epoch {
			return p, nil
		}
	}
	if named || known {
		return nil, nil
	}
	return nil, &RouteError{Route: route, Err: ErrUnknownRoute}
}

// ErrUnknownRoute: a message of the daemon names a route that this node does not have.
var ErrUnknownRoute = fmt.Errorf("it is not a route of this node")

// Link maps the consumer's CREDIT and keeps the line to it; where the route is linked already, they are its successor's.
// The descriptors stay the caller's.
func (s *Sender) Link(route string, epoch uint64, named bool, creditFD, lineFD int) error {
	s.mu.Lock()
	defer s.unlock()
	p, err := s.find(route, epoch, named)
	if err != nil || p == nil {
		return err
	}
	if p.Linked() {
		err = p.relink(creditFD, lineFD)
	} else {
		err = p.link(creditFD, lineFD)
	}
	if err != nil {
		return &RouteError{Route: route, Err: err}
	}
	if _, isTap := s.taps[route]; isTap {
		s.changed()
	}
	s.bell.Ring()
	return nil
}

// Unlinked is an output that no link has named.
func (s *Sender) Unlinked() (route string, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.outputs {
		if !p.Linked() {
			return p.Route, true
		}
	}
	return "", false
}

// Confirm: every consumer has mapped the segment.
func (s *Sender) Confirm(index uint64) error {
	return s.ofSegment(index, func(each *segment) error {
		s.arena.confirm(uint32(index))
		return nil
	})
}

// Forget: every consumer has unmapped the segment.
func (s *Sender) Forget(index uint64) error {
	return s.ofSegment(index, func(each *segment) error {
		if each.state != segmentDropped {
			return fmt.Errorf("segment %d was not dropped", index)
		}
		s.arena.forget(uint32(index))
		return nil
	})
}

func (s *Sender) ofSegment(index uint64, act func(*segment) error) error {
	s.mu.Lock()
	defer s.unlock()
	if index >= uint64(len(s.arena.segments)) || s.arena.segments[index].state == segmentNone {
		return fmt.Errorf("segment %d does not exist", index)
	}
	defer s.bell.Ring()
	return act(&s.arena.segments[index])
}

// Detach: nobody takes from this route any more.
func (s *Sender) Detach(route string) error {
	s.mu.Lock()
	defer s.unlock()
	p, err := s.find(route, 0, false)
	if p != nil {
		p.close()
	}
	s.bell.Ring()
	return err
}

// Retract ends an output, or a tap, without a word to whoever sends.
func (s *Sender) Retract(route string) {
	s.mu.Lock()
	defer s.unlock()
	for _, p := range s.outputs {
		if p.Route == route {
			p.told = true
			p.close()
		}
	}
	s.dropTap(route)
	s.bell.Ring()
}

func (s *Sender) dropTap(route string) {
	each, found := s.taps[route]
	if !found {
		return
	}
	each.end.close()
	delete(s.taps, route)
	s.changed()
	s.letGo(each.end)
}

// letGo gives up an end whose memory nobody needs any more. A loan may still have a credit of it: then later.
func (s *Sender) letGo(p *Producer) {
	if p.reserved > 0 {
		return
	}
	if i := slices.Index(s.ends, p); i >= 0 {
		s.ends = slices.Delete(s.ends, i, i+1)
		p.release()
	}
}

// Tap adds an output that gets what is sent to the route `of`, once it is linked.
func (s *Sender) Tap(route, of string, credits uint32, baseSeq uint64) (descriptor int, err error) {
	s.mu.Lock()
	defer s.unlock()
	if p, _ := s.find(of, 0, false); p == nil {
		return -1, &RouteError{Route: of, Err: ErrUnknownRoute}
	}
	if p, _ := s.find(route, 0, false); p != nil {
		return -1, fmt.Errorf("this node has an output %q already", route)
	}
	header := Header{Credits: credits, Watermark: credits, CreditLow: credits - min(credits, 1), BaseSeq: baseSeq, Policy: Latest}
	p, err := s.make(route, header, 0, 0)
	if err != nil {
		return -1, err
	}
	p.Tap = true
	s.taps[route] = tap{of, p}
	return p.ring.fd, nil
}

// A Change is what an extend makes of an output.
type Change struct {
	Names   Names
	Header  Header
	LimitNS uint64
}

// Reroute changes outputs between two frames: those in leave are closed, a higher epoch replaces an output and goes on
// where it was, and further ones begin. done is called with the descriptors of the RINGs, at once or, where a frame is
// being filled, when it is committed.
func (s *Sender) Reroute(leave []string, changes []Change, done func(rings []Stage, err error)) {
	s.mu.Lock()
	defer s.unlock()
	act := func() {
		s.mu.Lock()
		rings, err := s.reroute(leave, changes)
		s.mu.Unlock()
		s.bell.Ring()
		done(rings, err)
	}
	if earlier := s.deferred; earlier != nil {
		s.deferred = func() { earlier(); act() }
	} else {
		s.deferred = act
	}
}

func (s *Sender) reroute(leave []string, changes []Change) (rings []Stage, err error) {
	sent := s.item
	for _, p := range s.outputs {
		if s.source {
			sent = max(sent, p.Resume)
		}
	}
	for _, route := range leave {
		i := s.indexOf(route)
		if i < 0 {
			return nil, &RouteError{Route: route, Err: ErrUnknownRoute}
		}
		s.outputs[i].close()
		s.outputs, s.names = slices.Delete(s.outputs, i, i+1), slices.Delete(s.names, i, i+1)
	}
	for _, change := range changes {
		i := s.indexOf(change.Names.Route)
		header, resume := change.Header, sent
		if i >= 0 {
			before := s.outputs[i]
			if header.Epoch <= before.Header.Epoch {
				return nil, fmt.Errorf("epoch %d of output %q is not behind %d", header.Epoch, before.Route, before.Header.Epoch)
			}
			header.BaseSeq = before.Header.BaseSeq + before.position
			resume = max(s.item, before.Resume)
		}
		p, err := s.make(change.Names.Route, header, change.LimitNS, resume)
		if err != nil {
			return nil, err
		}
		p.Later = true
		if i >= 0 {
			s.outputs[i], s.names[i] = p, change.Names
		} else {
			s.outputs, s.names = append(s.outputs, p), append(s.names, change.Names)
		}
		rings = append(rings, p.stage())
	}
	s.changed()
	return rings, nil
}

func (s *Sender) indexOf(route string) int {
	return slices.IndexFunc(s.outputs, func(p *Producer) bool { return p.Route == route })
}

// Drained: a stage that was left is over, what is in it will not come back.
func (s *Sender) Drained(route string, epoch uint64) {
	s.mu.Lock()
	defer s.unlock()
	for _, p := range s.ends {
		if p.Route == route && p.Header.Epoch == epoch && !slices.Contains(s.outputs, p) {
			s.letGo(p)
			break
		}
	}
	s.bell.Ring()
}

// High tells whether the frames in use of some output have reached its watermark.
func (s *Sender) High() bool {
	s.mu.Lock()
	defer s.unlock()
	for _, p := range s.outputs {
		used := uint64(p.outstanding()) + uint64(p.reserved)
		if p.returns() {
			if due, fault := p.look(); fault == nil {
				used -= due
			}
		}
		if used >= uint64(p.Header.Watermark) {
			return true
		}
	}
	return false
}

// Item is the number of a source's last item; from reads on it is at least that.
func (s *Sender) Item(least uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.item = max(s.item, least)
	return s.item
}

// Activity is how many frames were sent and how often a peer was rung.
func (s *Sender) Activity() (commits, rung uint64) {
	if s == nil {
		return 0, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits, s.rung
}

// Waiting tells whether somebody waits for credits or room.
func (s *Sender) Waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sleepers > 0
}

// Size of all segments in bytes, and of the first one.
func (s *Sender) Size() (size, first uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arena.size, s.arena.first
}

// TakePeak is the most that was in use since the last call.
func (s *Sender) TakePeak() uint64 {
	s.mu.Lock()
	defer s.unlock()
	s.reclaimAll()
	peak := s.arena.peak
	s.arena.peak = s.arena.used
	return peak
}

// Shrink gives segments back as long as keep bytes stay; how many bytes went at once.
func (s *Sender) Shrink(keep uint64) uint64 {
	s.mu.Lock()
	defer s.unlock()
	s.reclaimAll()
	given := s.arena.shrink(keep)
	s.tellDrops()
	return given
}

// CloseRoutes is the end of the stream on every route. Idempotent.
func (s *Sender) CloseRoutes() {
	s.mu.Lock()
	defer s.unlock()
	for _, p := range s.outputs {
		p.close()
	}
	for _, each := range s.taps {
		each.end.close()
	}
}

// Fail has every later Send return err, and wakes those that wait.
func (s *Sender) Fail(err error) {
	s.mu.Lock()
	defer s.unlock()
	if s.failed == nil {
		s.failed = err
	}
	s.bell.Ring()
}

// Close gives back every mapping and descriptor, without a word to the peers. Room that was reserved and not committed
// stays mapped.
func (s *Sender) Close() {
	s.mu.Lock()
	defer s.unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.failed == nil {
		s.failed = ErrClosed
	}
	s.pending, s.deferred = nil, nil
	for _, p := range s.ends {
		if s.loans > 0 && p.reserved > 0 {
			continue
		}
		// What is outstanding stays where it is: its consumers may still read it.
		p.head = none
		p.release()
	}
	s.ends = nil
	if s.loans == 0 {
		for i := range s.arena.segments {
			s.arena.segments[i].unmap()
		}
	}
}
