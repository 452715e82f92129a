//go:build linux && (amd64 || arm64)

package shm

import (
	"fmt"
	"slices"
)

// What is done after a death, at the consuming end (SPEC.md, 10.2 and 10.5). Nothing here trusts what the dead end has
// counted: which frames have come back is decided by stamps alone.

func (c *Consumer) inSlot(stamp, slot uint64) bool { return stamp == 0 || (stamp-1)&c.mask == slot }

// inherit makes this end the successor of the dead consumer whose CREDIT is given. After link, before the first take.
func (c *Consumer) inherit(creditFD int) error {
	dead, theirs, err := attachPeer(creditFD, kindCredit)
	if err == nil {
		defer dead.unmap()
		err = c.Header.match(theirs)
	}
	if fault, isFault := err.(*Fault); isFault {
		return c.broken(faultf("predecessor: %s", fault.Why))
	}
	if err != nil {
		return err
	}
	if fault := c.inheritFrom(dead.memory); fault != nil {
		return c.broken(fault)
	}
	return nil
}

func (c *Consumer) inheritFrom(dead memory) *Fault {
	if c.latest { // nothing is returned there, and nothing redelivered
		next := dead.load(atNext)
		if next > maxPosition {
			return faultf("predecessor: says that it took up to position %d", next)
		}
		c.position = next
		c.reach()
		return nil
	}
	var last uint64
	for slot := range c.slots {
		stamp := dead.load(atStamps + 8*uintptr(slot))
		if !c.inSlot(stamp, slot) {
			return faultf("predecessor: stamp %d in slot %d", stamp, slot)
		}
		c.credit.store(atStamps+8*uintptr(slot), stamp)
		last = max(last, stamp)
	}
	for slot := range c.slots {
		sent, returned := c.stampOf(slot), c.credit.own(atStamps+8*uintptr(slot))
		switch {
		case !c.inSlot(sent, slot):
			return faultf("stamp %d in slot %d", sent, slot)
		case returned > sent:
			return faultf("predecessor: position %d was returned, but never sent", returned-1)
		case returned != sent && sent <= last:
			c.again = append(c.again, sent)
		}
	}
	slices.Sort(c.again)
	next := max(dead.load(atNext), last)
	if next-last > c.slots {
		return faultf("predecessor: says that it took up to position %d and returned up to %d", next, last)
	}
	c.position, c.known = last, next
	c.reach()
	c.settle()
	return nil
}

// endAt sets the end of a stage whose producer has left it. The same end again has no effect; another one is a fault.
func (c *Consumer) endAt(end uint64) *Fault {
	if c.state == consumerFaulty || c.state == consumerDetached {
		return nil
	}
	if end > maxPosition || (c.end != noEnd && c.end != end) || (c.state == consumerEnded && c.position != end) {
		return c.broken(faultf("its dead producer's end at position %d does not fit", end))
	}
	c.end = end
	if c.state == consumerUnlinked && end == 0 {
		c.state = consumerEnded // it died before it had sent a frame
	}
	c.settle()
	return nil
}

// succeed: this stage ends where next begins.
func (c *Consumer) succeed(next *Consumer) error {
	mine, theirs := c.Header, next.Header
	if c.next != nil || theirs.Epoch <= mine.Epoch || theirs.BaseSeq < mine.BaseSeq {
		return fmt.Errorf("route %s: a stage of epoch %d that begins at %d cannot follow one of epoch %d that began at %d",
			c.Route, theirs.Epoch, theirs.BaseSeq, mine.Epoch, mine.BaseSeq)
	}
	if fault := c.endAt(theirs.BaseSeq - mine.BaseSeq); fault != nil {
		c.told = true
		return &RouteError{Route: c.Route, Err: fault}
	}
	c.next = next
	return nil
}
