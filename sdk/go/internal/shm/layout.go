// Package shm is the data plane of shm/SPEC.md: rings, credits, arenas and doorbells, without a lock that a peer can
// hold.
//
// Every memory has one writer. What a peer has written is loaded once, by an atomic load, into a local, and the local is
// checked before it is used; no offset, length or count is read twice. Memory orders: sync/atomic is sequentially
// consistent, which is at least as strong as each release, acquire and fence that the specification asks for, so the
// store of a stamp followed by the load of wait_for needs no fence of its own. Statistics are plain stores, as their
// specification allows. Nothing here is safe to be called from two goroutines at a time unless it says so: the Sender
// and the Receiver hold a lock around it.
//
//go:build linux && (amd64 || arm64)

package shm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// The numbers of abi.h.
const (
	ABI = 1

	pageSize   = 4096
	lineSize   = 64
	MaxCredits = 65536
	// MaxSegments bounds the indices of an arena's segments.
	MaxSegments = 65535
	// maxPosition is one that no route reaches; a peer that claims it is at fault.
	maxPosition = 1 << 62

	kindRing   = 1
	kindCredit = 2

	flagRedelivered = 1
	flagNoted       = 2
	noteBytes       = 16
	bucketCount     = 608

	headerBytes = 64

	// of both memories
	atClosed = 64

	// RING
	atWakeAt         = 128
	atCommitted      = 192
	atBytes          = 200
	atWouldBlock     = 208
	atBlockedNS      = 216
	atSleeps         = 224
	atWakes          = 232
	atDropped        = 240
	atSkipped        = 248
	atMaxOutstanding = 256
	atBlockedSince   = 264
	atReturnedBefore = 272
	atOldest         = 320
	atNoRoom         = 384
	atGivenUp        = 392
	atGaveUpAfter    = 400
	atNap            = 448
	atDescriptors    = 512
	descriptorBytes  = 64

	// CREDIT
	atWaitFor        = 128
	atReturned       = 192
	atTaken          = 256
	atNext           = 264
	atConsumerSleeps = 272
	atConsumerWakes  = 280
	atLatencySum     = 288
	atLatencyMax     = 296
	atAgain          = 304
	atLost           = 312
	atLatency        = 512
	atStamps         = 5376
)

// Policy is what a route does with a frame that finds no credit.
type Policy uint32

// The policies.
const (
	Block Policy = iota
	DropNewest
	Latest
)

// Header is what the first line of RING and CREDIT says.
type Header struct {
	Epoch, BaseSeq                uint64
	Credits, Watermark, CreditLow uint32
	Policy                        Policy
}

// A Fault is a rule that a peer has broken: its route is lost.
type Fault struct {
	Why   string
	alone bool
}

func (f *Fault) Error() string { return f.Why }

// Shown tells whether the route's RING and CREDIT show it to whoever else reads them. Notes, what comes on a line, and
// what this end holds are seen by this end alone.
func (f *Fault) Shown() bool { return !f.alone }

func seenAlone(format string, arguments ...any) *Fault {
	return &Fault{fmt.Sprintf(format, arguments...), true}
}

func faultf(format string, arguments ...any) *Fault {
	return &Fault{Why: fmt.Sprintf(format, arguments...)}
}

func kindName(kind uint32) string {
	if kind == kindRing {
		return "ring"
	}
	return "credit"
}

func magic(kind uint32) string {
	if kind == kindRing {
		return "CHXRING\x00"
	}
	return "CHXCRED\x00"
}

// slotsLog2 is that of the least power of two that is at least twice the credits and at least 8.
func slotsLog2(credits uint32) uint32 {
	log2 := uint32(bits.Len32(2*credits - 1))
	return max(log2, 3)
}

func wholePages(size uint64) uint64 { return (size + pageSize - 1) &^ (pageSize - 1) }

func memorySize(kind, log2 uint32) uint64 {
	if kind == kindRing {
		return wholePages(atDescriptors + (descriptorBytes+8)<<log2)
	}
	return wholePages(atStamps + 8<<log2)
}

func (h Header) encode(kind uint32) (line [headerBytes]byte) {
	copy(line[:], magic(kind))
	order := binary.LittleEndian
	order.PutUint32(line[8:], ABI)
	order.PutUint32(line[12:], kind)
	order.PutUint64(line[16:], h.Epoch)
	order.PutUint64(line[24:], h.BaseSeq)
	order.PutUint32(line[32:], slotsLog2(h.Credits))
	order.PutUint32(line[36:], h.Credits)
	if kind == kindRing {
		order.PutUint32(line[40:], h.Watermark)
		order.PutUint32(line[44:], h.CreditLow)
		order.PutUint32(line[48:], uint32(h.Policy))
	}
	order.PutUint32(line[60:], crc32.ChecksumIEEE(line[:60]))
	return line
}

// decodeHeader checks a private copy of the first line of a memory of size bytes.
func decodeHeader(line [headerBytes]byte, kind uint32, size uint64) (Header, error) {
	order, name := binary.LittleEndian, kindName(kind)
	if string(line[:8]) != magic(kind) {
		return Header{}, faultf("not a %s: wrong magic", name)
	}
	if order.Uint32(line[60:]) != crc32.ChecksumIEEE(line[:60]) {
		return Header{}, faultf("%s header: checksum does not match", name)
	}
	if abi := order.Uint32(line[8:]); abi != ABI {
		return Header{}, faultf("%s header: ABI %d, this side speaks %d", name, abi, ABI)
	}
	if found := order.Uint32(line[12:]); found != kind {
		return Header{}, faultf("%s header: kind %d", name, found)
	}
	h := Header{
		Epoch:     order.Uint64(line[16:]),
		BaseSeq:   order.Uint64(line[24:]),
		Credits:   order.Uint32(line[36:]),
		Watermark: order.Uint32(line[40:]),
		CreditLow: order.Uint32(line[44:]),
		Policy:    Policy(order.Uint32(line[48:])),
	}
	if h.Credits < 1 || h.Credits > MaxCredits {
		return Header{}, faultf("%s header: %d credits, allowed are 1 to %d", name, h.Credits, MaxCredits)
	}
	log2 := order.Uint32(line[32:])
	if log2 != slotsLog2(h.Credits) {
		return Header{}, faultf("%s header: 2^%d slots for %d credits", name, log2, h.Credits)
	}
	if kind == kindRing {
		if err := h.checkMarks(); err != nil {
			return Header{}, err
		}
	}
	if expected := memorySize(kind, log2); size != expected {
		return Header{}, faultf("%s of %d credits has %d bytes instead of %d", name, h.Credits, size, expected)
	}
	return h, nil
}

func (h Header) checkMarks() error {
	switch {
	case h.Watermark < 1 || h.Watermark > h.Credits:
		return faultf("ring header: watermark %d of %d credits", h.Watermark, h.Credits)
	case h.CreditLow >= h.Credits:
		return faultf("ring header: credit_low %d of %d credits", h.CreditLow, h.Credits)
	case h.Policy > Latest:
		return faultf("ring header: unknown policy %d", h.Policy)
	}
	return nil
}

// match tells whether the headers of the two ends of a route agree.
func (h Header) match(theirs Header) error {
	switch {
	case h.Credits != theirs.Credits:
		return faultf("this end was made for %d credits, the other for %d", h.Credits, theirs.Credits)
	case h.Epoch != theirs.Epoch:
		return faultf("this end is of epoch %d, the other of %d", h.Epoch, theirs.Epoch)
	case h.BaseSeq != theirs.BaseSeq:
		return faultf("this end starts at frame %d, the other at %d", h.BaseSeq, theirs.BaseSeq)
	}
	return nil
}

// bucket is that of a latency in ns: 16 for each octave, everything from 2^41 on in the last one.
func bucket(ns uint64) uintptr {
	if ns < 16 {
		return uintptr(ns)
	}
	octave := uint64(63 - bits.LeadingZeros64(ns))
	if octave > 40 {
		return bucketCount - 1
	}
	return uintptr((octave-4)*16 + ns>>(octave-4))
}

// memory is the base of a mapping. The accessors do no check: offsets come from this file, and slots are masked.
type memory struct{ base unsafe.Pointer }

func (m memory) word(offset uintptr) *uint64 { return (*uint64)(unsafe.Add(m.base, offset)) }

// load reads a word of a peer's, once.
func (m memory) load(offset uintptr) uint64 { return atomic.LoadUint64(m.word(offset)) }

// store writes a word of our own that a peer acts upon.
func (m memory) store(offset uintptr, value uint64) { atomic.StoreUint64(m.word(offset), value) }

// note writes a statistic.
func (m memory) note(offset uintptr, value uint64) { *m.word(offset) = value }

// count adds to a statistic of our own.
func (m memory) count(offset uintptr, more uint64) { *m.word(offset) += more }

// own reads a statistic of our own.
func (m memory) own(offset uintptr) uint64 { return *m.word(offset) }

// at is the address of a struct of words.
func (m memory) at(offset uintptr) unsafe.Pointer { return unsafe.Add(m.base, offset) }

// publish stores a stamp: everything before it is visible to whoever sees it.
func publish(word *uint64, value uint64) { atomic.StoreUint64(word, value) }
