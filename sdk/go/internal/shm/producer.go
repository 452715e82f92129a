//go:build linux && (amd64 || arm64)

package shm

import "fmt"

type producerState uint8

const (
	producerUnlinked producerState = iota
	producerOpen
	producerClosed
	producerDetached
	producerGivenUp
	producerFaulty
)

// reuseLooks is how many outstanding frames are looked at when the walk is only there to find warm memory.
const reuseLooks = 64

// slot is what is in a slot of the ring: 0 when free, else position + 1 of the frame whose extent it keeps.
type slot struct {
	stamp       uint64
	run, object uint32
	prev, next  uint32
}

// A Producer is the producing end of one stage of a route: it owns the RING and reads the CREDIT. All state that decides
// is private; the consumer's words are compared with it and never followed. A consumer that writes wrong values loses
// only its route. Everything is called with the Sender's lock.
type Producer struct {
	Route   string
	Header  Header
	LimitNS uint64
	Resume  uint64 // the highest input_seq that a predecessor had committed here
	Tap     bool
	Later   bool // its link is to come: until then frames wait

	ring, credit mapping
	arena        *arena
	bell         *Bell
	line         *Line
	slots        []slot
	mask         uint64

	position, committed, reclaimed, peak, seen, base uint64
	head, tail                                       uint32
	reserved                                         uint32 // credits promised to open loans
	shortSince                                       uint64
	state                                            producerState
	fault                                            *Fault
	told                                             bool
}

func newProducer(a *arena, bell *Bell, header Header) (*Producer, error) {
	if header.Credits < 1 || header.Credits > MaxCredits {
		return nil, fmt.Errorf("credits must be from 1 to %d, not %d", MaxCredits, header.Credits)
	}
	if err := header.checkMarks(); err != nil {
		return nil, err
	}
	ring, err := makeWords(kindRing, header)
	if err != nil {
		return nil, err
	}
	slots := uint64(1) << slotsLog2(header.Credits)
	return &Producer{Header: header, ring: ring, credit: mapping{fd: -1}, arena: a, bell: bell,
		slots: make([]slot, slots), mask: slots - 1, head: none, tail: none}, nil
}

// Descriptor of the sealed RING.
func (p *Producer) Descriptor() int { return p.ring.fd }

// Linked tells whether the consumer's CREDIT is mapped.
func (p *Producer) Linked() bool { return p.credit.data != nil }

func (p *Producer) latest() bool        { return p.Header.Policy == Latest }
func (p *Producer) blocks() bool        { return p.Header.Policy == Block }
func (p *Producer) outstanding() uint32 { return uint32(p.committed - p.reclaimed) }
func (p *Producer) awaits() bool        { return p.Later && p.state == producerUnlinked }

// returns tells whether frames can still come back.
func (p *Producer) returns() bool { return p.Linked() && p.state != producerFaulty }

func (p *Producer) attach(creditFD, lineFD int) (mapping, *Line, error) {
	credit, theirs, err := attachPeer(creditFD, kindCredit)
	if err != nil {
		return credit, nil, err
	}
	if err = p.Header.match(theirs); err == nil {
		var line *Line
		if line, err = p.bell.adopt(lineFD, false); err == nil {
			return credit, line, nil
		}
	}
	credit.unmap()
	return credit, nil, err
}

// link maps the consumer's CREDIT, and keeps this end of the line to it. The descriptors stay the caller's.
func (p *Producer) link(creditFD, lineFD int) error {
	credit, line, err := p.attach(creditFD, lineFD)
	if err != nil {
		return err
	}
	p.credit, p.line, p.state = credit, line, producerOpen
	return nil
}

// relink goes on with the CREDIT of the consumer's successor (SPEC.md, 10.3). A fault changes nothing.
func (p *Producer) relink(creditFD, lineFD int) error {
	if !p.returns() {
		return faultf("a route that is not linked has no succession")
	}
	credit, line, err := p.attach(creditFD, lineFD)
	if err != nil {
		return err
	}
	if credit.load(atReturned) != 0 {
		credit.unmap()
		p.bell.drop(line)
		return faultf("the consumer's successor has returned frames before it was linked")
	}
	p.credit.unmap()
	p.bell.drop(p.line)
	p.credit, p.line = credit, line
	if !p.latest() {
		for at := p.head; at != none; {
			next := p.slots[at].next
			if p.credit.load(atStamps+8*uintptr(at)) == p.slots[at].stamp {
				p.free(at)
			}
			at = next
		}
		p.base, p.seen = p.reclaimed, p.reclaimed
		p.ring.note(atReturnedBefore, p.base)
	}
	p.ring.store(atWakeAt, 0)
	if p.state == producerDetached {
		p.state = producerOpen
	}
	if p.state == producerOpen {
		p.told = false
	}
	p.line.Ring()
	return nil
}

// -- returned frames -----------------------------------------------------------------------------------------------

func (p *Producer) free(at uint32) {
	entry := &p.slots[at]
	if entry.next != none {
		p.slots[entry.next].prev = entry.prev
	} else {
		p.tail = entry.prev
	}
	if entry.prev != none {
		p.slots[entry.prev].next = entry.next
	} else {
		p.head = entry.next
	}
	entry.stamp = 0
	p.arena.drop(entry.run, entry.object)
	p.reclaimed++
}

// broken ends the route: the consumer has written false values. Frames that it has not returned are freed.
func (p *Producer) broken(reason *Fault) *Fault {
	if p.state != producerFaulty {
		p.state, p.fault = producerFaulty, reason
	}
	for p.head != none {
		p.free(p.head)
	}
	return p.fault
}

// look reads how many frames have come back that were not reclaimed.
func (p *Producer) look() (due uint64, fault *Fault) {
	p.seen = p.base + p.credit.load(atReturned)
	if p.latest() && p.seen < p.reclaimed {
		return 0, nil
	}
	due = p.seen - p.reclaimed
	if due > p.committed-p.reclaimed {
		return 0, p.broken(faultf("the consumer claims %d frames returned of %d sent", p.seen, p.committed))
	}
	if p.line.spoilt() {
		return 0, p.broken(seenAlone("the consumer has sent descriptors where only rings may come"))
	}
	return due, nil
}

// reclaim takes back what has been returned, in any order, looking at no more than so many frames.
func (p *Producer) reclaim(looks uint64) *Fault {
	due, fault := p.look()
	if fault != nil || due == 0 {
		return fault
	}
	if p.latest() { // `returned` is a position there, and frames are committed and freed in order
		for ; due > 0; due-- {
			p.free(p.head)
		}
		return nil
	}
	for at := p.head; at != none && due > 0 && looks > 0; looks-- {
		next := p.slots[at].next
		if p.credit.load(atStamps+8*uintptr(at)) == p.slots[at].stamp {
			p.free(at)
			due--
		}
		at = next
	}
	if due == 0 || looks == 0 {
		return nil
	}
	return p.broken(faultf("the consumer claims %d frames returned, but the stamps show %d", p.seen, p.reclaimed))
}

// revoke (policy latest) takes the oldest frame back, read or not. Whatever is written into its extent and its
// descriptor comes after the store: it is followed by a load, which later writes cannot pass, as they could pass a store.
func (p *Producer) revoke() {
	p.ring.store(atOldest, p.slots[p.head].stamp)
	p.ring.load(atOldest)
	p.free(p.head)
}

func (p *Producer) left() uint32 {
	used := p.reserved
	if !p.latest() {
		used += p.outstanding()
	}
	return p.Header.Credits - min(used, p.Header.Credits)
}

// check tells whether frames may be sent.
func (p *Producer) check() bool {
	if p.state == producerOpen && p.credit.load(atClosed) != 0 {
		p.state = producerDetached
	}
	return p.state == producerOpen
}

// -- commit --------------------------------------------------------------------------------------------------------

// Tags are the application's part of a descriptor.
type Tags struct {
	DeadlineNS, Trace, InputSeq uint64
	Schema                      uint32
	Redelivered, Noted          bool
	Step                        uint64 // of InputSeq from one frame of a run to the next
}

func (t *Tags) flags() uint64 {
	var flags uint64
	if t.Redelivered {
		flags = flagRedelivered
	}
	if t.Noted {
		flags |= flagNoted
	}
	return flags
}

// put writes the next frame's descriptor without its stamp, which is p.position afterwards, and returns where.
func (p *Producer) put(e *extent, inside, length uint64, tags *Tags, inputSeq, now uint64) *uint64 {
	if p.latest() && p.outstanding() >= p.Header.Credits {
		p.reclaim(^uint64(0))
		for p.outstanding() >= p.Header.Credits {
			p.revoke()
		}
	}
	if p.slots[p.position&p.mask].stamp != 0 {
		p.reclaim(^uint64(0)) // a fault shows at the next check; until then only own memory is written
		for p.slots[p.position&p.mask].stamp != 0 {
			p.ring.store(atDescriptors+descriptorBytes*uintptr(len(p.slots))+8*uintptr(p.position&p.mask), p.position+1)
			p.position++
			p.ring.count(atSkipped, 1)
		}
	}
	at := uint32(p.position & p.mask)
	flags := tags.flags()
	if inputSeq-1 < p.Resume {
		flags |= flagRedelivered
	}
	where := atDescriptors + descriptorBytes*uintptr(at)
	fields := (*[8]uint64)(p.ring.at(where))
	fields[1] = e.offset + inside
	fields[2] = length
	fields[3] = uint64(e.segment) | flags<<16 | uint64(tags.Schema)<<32
	fields[4] = now
	fields[5] = tags.DeadlineNS
	fields[6] = tags.Trace
	fields[7] = inputSeq
	p.position++
	p.slots[at] = slot{stamp: p.position, run: e.run, object: e.object, prev: p.tail, next: none}
	if p.tail != none {
		p.slots[p.tail].next = at
	} else {
		p.head = at
	}
	p.tail = at
	p.committed++
	return &fields[0]
}

// commit publishes frames of length bytes that lie stride(length) apart in the extent; the first stamp is stored last,
// so that a run appears at once. The caller has made sure of their credits. It tells whether the consumer is to be rung.
func (p *Producer) commit(e *extent, length uint64, frames uint32, tags *Tags, now uint64) bool {
	first := p.position
	inputSeq := tags.InputSeq
	head := p.put(e, 0, length, tags, inputSeq, now)
	stamp := p.position
	inside := uint64(0)
	for i := uint32(1); i < frames; i++ {
		inside += stride(length)
		inputSeq += tags.Step
		publish(p.put(e, inside, length, tags, inputSeq, now), p.position)
	}
	publish(head, stamp)
	p.ring.note(atCommitted, p.committed)
	p.ring.count(atBytes, length*uint64(frames))
	waitFor := p.credit.load(atWaitFor)
	if p.committed-p.seen > p.peak {
		p.notePeak()
	}
	if p.state == producerFaulty { // found by put: what came after it is freed too
		p.broken(nil)
	}
	if waitFor-first-1 >= p.position-first {
		return false
	}
	p.ring.count(atWakes, 1)
	return true
}

// notePeak looks at `returned` only when the frame just committed may set a record.
func (p *Producer) notePeak() {
	seen := p.base + p.credit.load(atReturned)
	if seen > p.committed {
		return // a false value: look reports it
	}
	p.seen = seen
	if p.latest() {
		seen = max(seen, p.reclaimed)
	}
	if p.committed-seen > p.peak {
		p.peak = p.committed - seen
		p.ring.note(atMaxOutstanding, p.peak)
	}
}

// stride is the bytes from one frame of a run to the next.
func stride(length uint64) uint64 { return (length + lineSize - 1) &^ (lineSize - 1) }

// -- waiting for credits -------------------------------------------------------------------------------------------

// goal is the count of returned frames that brings the route down to credit_low; 0 when nothing is outstanding.
func (p *Producer) goal() uint64 {
	outstanding := p.outstanding()
	if outstanding == 0 {
		return 0
	}
	floor := p.Header.CreditLow - min(p.Header.CreditLow, p.reserved)
	return p.committed - uint64(min(floor, outstanding-1))
}

// starves: the consumer sleeps for exactly the frame that is not sent yet, while there is a credit for it.
func (p *Producer) starves() bool {
	return p.committed-p.seen+uint64(p.reserved) < uint64(p.Header.Credits) && p.credit.load(atWaitFor) == p.position+1
}

// ready: the producer has to try again.
func (p *Producer) ready(goal uint64) bool {
	if !p.check() {
		return true
	}
	if _, fault := p.look(); fault != nil {
		return true
	}
	return (goal != 0 && p.seen >= goal) || p.starves()
}

// arm asks for the bell at goal; an earlier wish is kept when it comes first.
func (p *Producer) arm(goal uint64) {
	armed := p.base + p.ring.own(atWakeAt)
	if armed > p.seen && armed < goal {
		goal = armed
	}
	p.ring.store(atWakeAt, goal-p.base)
}

func (p *Producer) disarm() {
	if p.ring.own(atWakeAt) != 0 {
		p.ring.store(atWakeAt, 0)
	}
}

// short notes that a frame finds no credit; true: for longer than the route allows.
func (p *Producer) short(now uint64) bool {
	if p.LimitNS == 0 {
		return false
	}
	if p.shortSince == 0 {
		p.shortSince = now
	}
	return now-p.shortSince >= p.LimitNS
}

// -- end -----------------------------------------------------------------------------------------------------------

// close ends the stream: the consumer drains what is there. Idempotent.
func (p *Producer) close() {
	if p.ring.data == nil || p.ring.own(atClosed) != 0 {
		return
	}
	p.ring.store(atClosed, p.position+1)
	if p.state == producerOpen || p.state == producerUnlinked {
		p.state = producerClosed
	}
	if p.line != nil {
		p.line.Ring()
	}
}

func (p *Producer) giveUp(now uint64) (waited uint64) {
	p.close()
	p.state = producerGivenUp
	waited = max(now-p.shortSince, 1)
	p.ring.note(atGaveUpAfter, waited)
	p.told = true
	return waited
}

// release gives up the mappings, and the extents that were never returned.
func (p *Producer) release() {
	for p.head != none {
		if p.latest() {
			p.revoke()
		} else {
			p.free(p.head)
		}
	}
	p.bell.drop(p.line)
	p.line = nil
	p.ring.unmap()
	p.credit.unmap()
}
