//go:build linux && (amd64 || arm64)

package shm

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

type consumerState uint8

const (
	consumerUnlinked consumerState = iota
	consumerOpen
	consumerEnded    // the producer closed or died, and everything was taken
	consumerDetached // closed at this end
	consumerFaulty
)

type status uint8

const (
	statusOK status = iota
	statusEmpty
	statusEnded
	statusFault
	statusAgain // policy latest: overwritten again and again, come back
)

const noEnd = ^uint64(0)

// noBytes is the payload of an empty frame, which is there all the same.
var noBytes = []byte{}

// A Consumer is the consuming end of one stage of a route: it owns the CREDIT and reads the RING and the producer's
// segments. A descriptor is copied, checked, and only then used; a wrong one detaches the route. Everything is called
// with the Receiver's lock.
type Consumer struct {
	Route, Peer, ContentType string
	Header                   Header
	Resume                   uint64

	receiver     *Receiver
	credit, ring mapping
	bell         *Bell
	line         *Line
	segments     []mapping // by index; no data: not mapped
	mapped       uint64    // bytes of all of them
	held         []uint64  // by slot: 0, or the stamp of the frame that is held
	heldIn       []uint32  // its segment + 1; 0: none
	heldCount    int
	slots, mask  uint64

	position, taken, returned uint64
	known                     uint64   // a predecessor had taken the frames at positions below it
	end                       uint64   // where a dead producer's stage ends
	again                     []uint64 // stamps: a predecessor had taken these frames, and returned later ones
	special                   bool     // one of the three above matters
	torn                      int
	fence                     atomic.Uint64 // policy latest
	latest, blocks            bool
	state                     consumerState
	class                     int
	fault                     *Fault
	told                      bool
	next                      *Consumer // the stage behind this one
	left                      bool      // the receiver has gone on to the next one
	empty                     bool      // unmapped; not told yet
}

func newConsumer(bell *Bell, header Header) (*Consumer, error) {
	if header.Credits < 1 || header.Credits > MaxCredits {
		return nil, fmt.Errorf("credits must be from 1 to %d, not %d", MaxCredits, header.Credits)
	}
	credit, err := makeWords(kindCredit, header)
	if err != nil {
		return nil, err
	}
	slots := uint64(1) << slotsLog2(header.Credits)
	return &Consumer{Header: header, credit: credit, ring: mapping{fd: -1}, bell: bell, slots: slots, mask: slots - 1,
		held: make([]uint64, slots), heldIn: make([]uint32, slots), end: noEnd}, nil
}

func (c *Consumer) linked() bool { return c.ring.data != nil || c.state == consumerEnded }

// link maps the producer's RING and keeps this end of the line to it. The descriptors stay the caller's.
func (c *Consumer) link(ringFD, lineFD int) error {
	ring, theirs, err := attachPeer(ringFD, kindRing)
	if err != nil {
		return err
	}
	if err = c.Header.match(theirs); err == nil {
		c.line, err = c.bell.adopt(lineFD, true)
	}
	if err != nil {
		ring.unmap()
		return err
	}
	c.ring, c.state = ring, consumerOpen
	c.latest, c.blocks = theirs.Policy == Latest, theirs.Policy == Block
	return nil
}

// mapSegment maps a segment of the producer's arena. A stage that is drained needs none.
func (c *Consumer) mapSegment(index uint64, fd int) error {
	if c.credit.data == nil {
		return nil
	}
	if index >= MaxSegments {
		return faultf("segment %d: at most %d", index, MaxSegments)
	}
	if index < uint64(len(c.segments)) && c.segments[index].data != nil {
		return faultf("segment %d is mapped already", index)
	}
	m, err := openPeer(fd)
	if err != nil {
		return err
	}
	for uint64(len(c.segments)) <= index {
		c.segments = append(c.segments, mapping{fd: -1})
	}
	c.segments[index] = m
	c.mapped += m.size()
	return nil
}

// dropSegment unmaps a segment that the producer has given back. If a frame of it has not come back, the producer has
// broken the protocol: the route ends, and the memory stays mapped under its readers.
func (c *Consumer) dropSegment(index uint64) *Fault {
	if c.credit.data == nil {
		return nil
	}
	if index >= uint64(len(c.segments)) || c.segments[index].data == nil {
		return c.broken(seenAlone("segment %d was dropped, but is not mapped", index))
	}
	for _, in := range c.heldIn {
		if in == uint32(index)+1 {
			return c.broken(seenAlone("segment %d was dropped while a frame of it is held", index))
		}
	}
	c.mapped -= c.segments[index].size()
	c.segments[index].unmap()
	return nil
}

// broken ends the route: the producer has written false values.
func (c *Consumer) broken(reason *Fault) *Fault {
	c.state, c.fault = consumerFaulty, reason
	c.credit.store(atClosed, 1)
	if c.line != nil {
		c.line.Ring()
	}
	return reason
}

// -- take ----------------------------------------------------------------------------------------------------------

// A Frame is one that was taken. Data and Meta lie in shared memory until Release.
type Frame struct {
	Data, Meta                               []byte
	Seq, TimeNS, DeadlineNS, Trace, InputSeq uint64
	StampNS                                  int64
	Schema                                   uint32
	Redelivered                              bool
	end                                      *Consumer
	stamp                                    uint64
	segment                                  uint32 // + 1
	copied                                   *copyRoom
	turn                                     uint64
}

// possible tells whether a stamp of this position's slot is one that a correct producer may have written.
func (c *Consumer) possible(stamp uint64) bool {
	awaited := c.position + 1
	return stamp == 0 || (stamp <= awaited && (stamp^awaited)&c.mask == 0)
}

func (c *Consumer) stampOf(position uint64) uint64 {
	return c.ring.load(atDescriptors + descriptorBytes*uintptr(position&c.mask))
}

func (c *Consumer) skipOf(position uint64) uint64 {
	return c.ring.load(atDescriptors + descriptorBytes*uintptr(c.slots) + 8*uintptr(position&c.mask))
}

func (c *Consumer) refuseAlone(format string, arguments ...any) status {
	c.fault = seenAlone(format, arguments...)
	return statusFault
}

func (c *Consumer) refuse(format string, arguments ...any) status {
	c.fault = faultf(format, arguments...)
	return statusFault
}

// describe copies and checks the descriptor of position, whose stamp was seen. statusEmpty: its segment is not mapped
// yet.
func (c *Consumer) describe(position uint64, f *Frame) status {
	where := atDescriptors + descriptorBytes*uintptr(position&c.mask)
	offset, length, packed := c.ring.load(where+8), c.ring.load(where+16), c.ring.load(where+24)
	f.TimeNS, f.DeadlineNS = c.ring.load(where+32), c.ring.load(where+40)
	f.Trace, f.InputSeq = c.ring.load(where+48), c.ring.load(where+56)
	index, flags := packed&0xffff, packed>>16&0xffff
	f.Schema, f.Redelivered = uint32(packed>>32), flags&flagRedelivered != 0
	if flags&^(flagRedelivered|flagNoted) != 0 {
		return c.refuse("frame at %d: unknown flags 0x%x", position, flags)
	}
	if c.held[position&c.mask] != 0 {
		return c.refuseAlone("frame at %d: its slot has a frame that is still held", position)
	}
	f.Data, f.Meta, f.StampNS, f.segment = noBytes, nil, 0, 0
	if length == 0 {
		if flags&flagNoted != 0 {
			return c.refuseAlone("frame at %d: no bytes, but notes among them", position)
		}
		return statusOK
	}
	if index >= uint64(len(c.segments)) || c.segments[index].data == nil {
		return statusEmpty
	}
	memory := c.segments[index].data
	if size := uint64(len(memory)); offset%lineSize != 0 || offset > size || length > size-offset {
		return c.refuse("frame at %d: %d bytes at offset %d of segment %d, which has %d", position, length, offset, index, size)
	}
	f.Data, f.segment = memory[offset:offset+length:offset+length], uint32(index)+1
	if flags&flagNoted != 0 {
		return c.notes(position, f)
	}
	return statusOK
}

// notes reads the notes behind the payload, once.
func (c *Consumer) notes(position uint64, f *Frame) status {
	length := len(f.Data)
	if length < noteBytes {
		return c.refuseAlone("frame at %d: %d bytes, fewer than notes have", position, length)
	}
	note := [noteBytes]byte(f.Data[length-noteBytes:])
	stamp, meta := binary.LittleEndian.Uint64(note[:]), binary.LittleEndian.Uint32(note[8:])
	before := length - noteBytes
	if reserved := binary.LittleEndian.Uint32(note[12:]); reserved != 0 || uint64(meta) > uint64(before) {
		return c.refuseAlone("frame at %d: notes of %d bytes (and 0x%x) behind %d", position, meta, reserved, before)
	}
	f.StampNS = int64(stamp)
	payload := before - int(meta)
	f.Meta = f.Data[payload:before:before]
	f.Data = f.Data[:payload:payload]
	return statusOK
}

func (c *Consumer) reach() { c.credit.note(atNext, max(c.position, c.known)) }

// peek tells whether something is at the next position, and steps over skipped ones on the way.
func (c *Consumer) peek() status {
	if c.latest {
		return c.peekLatest()
	}
	for steps := uint64(0); steps <= c.slots; steps++ {
		stamp := c.stampOf(c.position)
		if stamp == c.position+1 {
			return statusOK
		}
		skip := c.skipOf(c.position)
		if skip != c.position+1 {
			if c.possible(stamp) && c.possible(skip) {
				return statusEmpty
			}
			return c.refuse("position %d: impossible stamps %d and %d", c.position, stamp, skip)
		}
		c.position++
		c.reach()
	}
	return c.refuse("more skipped positions than slots")
}

// over tells whether the stream has ended, where no frame was found.
func (c *Consumer) over() status {
	closed := c.ring.load(atClosed)
	end := c.end
	if closed != 0 {
		end = closed - 1
	}
	if end == noEnd {
		return statusEmpty
	}
	if found := c.peek(); found != statusEmpty { // what was committed before the close is visible now
		return found
	}
	if end != c.position || (c.end != noEnd && c.end != end) {
		return c.refuse("the stream ends at position %d, but frames end at %d", end, c.position)
	}
	c.state = consumerEnded
	return statusEnded
}

// look finds the next frame without taking it.
func (c *Consumer) look(f *Frame) status {
	switch c.state {
	case consumerUnlinked:
		return statusEmpty
	case consumerOpen:
	case consumerFaulty:
		return statusFault
	default:
		return statusEnded
	}
	var found status
	switch {
	case c.latest:
		found = c.lookLatest(f)
	case c.special:
		found = c.lookSpecial(f)
	default:
		if found = c.peek(); found == statusEmpty {
			found = c.over()
		}
		if found == statusOK {
			found = c.describe(c.position, f)
		}
	}
	if found == statusEmpty && c.line.spoilt() {
		found = c.refuseAlone("the producer has sent descriptors where only rings may come")
	}
	if found == statusFault {
		c.broken(c.fault)
	}
	return found
}

// lookSpecial is look for a consumer that repeats frames of its predecessor, or whose stage has a known end.
func (c *Consumer) lookSpecial(f *Frame) status {
	position, found := c.position, statusOK
	if len(c.again) > 0 {
		position = c.again[0] - 1
		if c.stampOf(position) != position+1 {
			return c.refuse("position %d: its frame was not returned, and is gone", position)
		}
	} else {
		if found = c.peek(); found == statusEmpty {
			found = c.over()
		}
		position = c.position
		if found == statusOK && position >= c.end {
			return c.refuse("a frame at position %d, but its dead producer's end at %d", position, c.end)
		}
	}
	if found == statusOK {
		found = c.describe(position, f)
	}
	if found == statusOK && position < c.known {
		f.Redelivered = true
	}
	return found
}

func (c *Consumer) settle() {
	c.special = len(c.again) > 0 || c.position < c.known || c.end != noEnd
}

// step takes the frame that was looked at.
func (c *Consumer) step(f *Frame) {
	c.taken++
	if c.special {
		if len(c.again) > 0 {
			f.stamp, c.again = c.again[0], c.again[1:]
		} else {
			c.position++
			f.stamp = c.position
		}
		if f.stamp <= c.known {
			c.credit.count(atAgain, 1)
		}
		c.settle()
	} else {
		c.position++
		f.stamp = c.position
	}
	f.Seq = c.Header.BaseSeq + f.stamp - 1
	f.end, f.copied = c, nil
	at := (f.stamp - 1) & c.mask
	c.held[at], c.heldIn[at] = f.stamp, f.segment
	c.heldCount++
}

// note is called before a caller sees the frames: a successor counts positions below `next` as seen.
func (c *Consumer) note() {
	c.credit.note(atTaken, c.taken)
	c.reach()
}

func (c *Consumer) latency(committed, now, frames uint64) {
	ns := max(now, committed) - committed
	c.credit.count(atLatency+8*bucket(ns), frames)
	c.credit.count(atLatencySum, ns*frames)
	if ns > c.credit.own(atLatencyMax) {
		c.credit.note(atLatencyMax, ns)
	}
}

// take takes up to len(frames) frames that have arrived, in order, of no more bytes than the producer has memory.
func (c *Consumer) take(frames []Frame) (int, status) {
	if found := c.look(&frames[0]); found != statusOK {
		return 0, found
	}
	count, left := 0, c.mapped
	for {
		f := &frames[count]
		left -= min(uint64(len(f.Data)), left)
		c.step(f)
		count++
		if count == len(frames) || c.special {
			break
		}
		next := &frames[count]
		if c.peek() != statusOK || c.describe(c.position, next) != statusOK || uint64(len(next.Data)) > left {
			break // a fault is found by the next call
		}
	}
	c.note()
	now := Now()
	for at := 0; at < count; {
		same := at + 1
		for same < count && frames[same].TimeNS == frames[at].TimeNS {
			same++
		}
		c.latency(frames[at].TimeNS, now, uint64(same-at))
		at = same
	}
	return count, statusOK
}

// -- return --------------------------------------------------------------------------------------------------------

// stampReturn is the first step of a return; false: it was returned before.
func (c *Consumer) stampReturn(f *Frame) bool {
	at := (f.stamp - 1) & c.mask
	if c.credit.data == nil || c.held[at] != f.stamp {
		return false
	}
	c.held[at], c.heldIn[at] = 0, 0
	c.heldCount--
	c.credit.store(atStamps+8*uintptr(at), f.stamp)
	return true
}

// countReturns is the second one, for all stamps since the last; true: the producer is to be rung.
func (c *Consumer) countReturns(frames uint64) bool {
	before := c.returned
	c.returned += frames
	c.credit.store(atReturned, c.returned)
	wakeAt := c.ring.load(atWakeAt)
	if wakeAt <= before {
		return false
	}
	if wakeAt > c.returned && c.credit.own(atWaitFor) == 0 {
		return false
	}
	c.credit.count(atConsumerWakes, 1)
	return true
}

// -- waiting -------------------------------------------------------------------------------------------------------

func (c *Consumer) arm() {
	if c.state == consumerOpen {
		c.credit.store(atWaitFor, c.position+1)
	}
}

func (c *Consumer) mayNap() bool {
	return c.state == consumerOpen && c.blocks && c.ring.load(atNap) != 0
}

// armNap asks for the bell when half of the free credits are used; how long that may last, 0: it rings at the next
// frame.
func (c *Consumer) armNap() uint64 {
	if !c.mayNap() {
		c.arm()
		return 0
	}
	nap := c.ring.load(atNap)
	held := uint64(c.heldCount)
	ahead := uint64(0)
	if credits := uint64(c.Header.Credits); held < credits {
		ahead = (credits - held) / 2
	}
	if ahead < 2 {
		c.arm()
		return 0
	}
	c.credit.store(atWaitFor, c.position+ahead)
	return min(max(nap, 1), napMaxNS)
}

func (c *Consumer) disarm() {
	if c.credit.data != nil && c.credit.own(atWaitFor) != 0 {
		c.credit.store(atWaitFor, 0)
	}
}

// nudge: about to sleep; if the producer sleeps too, for a count that the frames held here keep away, ring it.
func (c *Consumer) nudge() {
	if c.state != consumerOpen {
		return
	}
	c.credit.count(atConsumerSleeps, 1)
	if wakeAt := c.ring.load(atWakeAt); wakeAt > c.returned && c.heldCount < int(c.Header.Credits) {
		c.credit.count(atConsumerWakes, 1)
		c.line.Ring()
	}
}

// -- end -----------------------------------------------------------------------------------------------------------

// close detaches. Frames that are held may still be read and returned.
func (c *Consumer) close() {
	if c.credit.data == nil || c.credit.own(atClosed) != 0 {
		return
	}
	c.state = consumerDetached
	c.credit.store(atClosed, 1)
	if c.line != nil {
		c.line.Ring()
	}
}

// release unmaps everything; no frame may be held.
func (c *Consumer) release() {
	for i := range c.segments {
		c.segments[i].unmap()
	}
	c.segments, c.again, c.mapped = nil, nil, 0
	c.bell.drop(c.line)
	c.line = nil
	c.ring.unmap()
	c.credit.unmap()
	if c.state == consumerOpen {
		c.state = consumerDetached
	}
}
