//go:build linux && (amd64 || arm64)

package shm

import (
	"runtime"
	"sync/atomic"
)

// How long to look before sleeping: at most what sleeping costs, less when looking has not paid lately. The rules are
// those of spin.h: a spin that finds nothing halves the next one; a sleep that a full spin would have spared is evidence
// that restores it; each restored spin that finds nothing doubles the evidence that the next restoring takes. After
// waking a peer and sleeping briefly one long spin is tried, and a few more while they find something.
const (
	spinCap       = 64000
	spinFloor     = 500
	spinDoubtMax  = 255
	spinLong      = 90000
	spinLongTries = 4
	wakeFirst     = 8000
)

// wakeCost is what a wake-up costs in this process, in ns: a moving average. 0: there is one processor, and no spin.
var wakeCost = func() *atomic.Uint32 {
	cost := new(atomic.Uint32)
	if runtime.NumCPU() > 1 {
		cost.Store(wakeFirst)
	}
	return cost
}()

func wakeTook(ns uint64) {
	cost := wakeCost.Load()
	if cost != 0 {
		wakeCost.Store(cost - cost/8 + uint32(min(ns, spinCap))/8 + 1)
	}
}

// spinLimit is the longest spin that is worth it.
func spinLimit() uint32 { return min(wakeCost.Load()*2, spinCap) }

type spin struct {
	ns              uint32
	evidence, doubt uint16
	restored        bool
	tries           uint8
}

func (s *spin) distrust() {
	s.ns, s.tries = 0, 0
	if s.doubt < spinDoubtMax {
		s.doubt = s.doubt*2 + 1
	}
}

// found after so many ns.
func (s *spin) found(limit uint32, took uint64) {
	s.restored = false
	if took > uint64(limit) {
		if s.tries++; s.tries >= spinLongTries {
			s.distrust()
		}
		return
	}
	*s = spin{ns: min(max(s.ns*2, spinFloor), limit)}
}

func (s *spin) missed(limit uint32) {
	switch {
	case s.restored || s.ns > limit:
		ns := s.ns
		s.distrust()
		s.restored = false
		if ns <= limit {
			s.ns = ns / 2
		}
	case s.ns/2 < spinFloor:
		s.ns = 0
	default:
		s.ns /= 2
	}
}

// slept: what was waited for happened after so many ns. answered: a peer was woken before the sleep.
func (s *spin) slept(limit uint32, after uint64, answered bool) {
	enough := uint64(limit)
	if answered {
		enough = spinLong
	}
	if limit == 0 || after >= enough {
		return
	}
	if s.evidence++; s.evidence <= s.doubt {
		return
	}
	s.evidence = 0
	s.ns = limit
	if after >= uint64(limit) {
		s.ns = spinLong
	}
	s.restored = true
}

// pause lets the other hardware thread run for a moment.
//
//go:noinline
func pause(rounds int) (sum int) {
	for i := range rounds {
		sum += i
	}
	return sum
}

// pace is of one sending end: whether its frames come so quickly after a ring that its consumer should let some gather
// (pace.h).
type pace struct {
	rungAt, ringNS uint64
	score          uint32
	rapid          bool
}

const (
	napNS     = 250000
	napMaxNS  = 4000000
	napFrames = 4
	paceSure  = 4
)

func (p *pace) nap(routes int) uint64 {
	if !p.rapid {
		return 0
	}
	return napNS * uint64(1+routes/8)
}

func (p *pace) rang(began, ended uint64) { p.rungAt, p.ringNS = ended, ended-began }

// waited: the sender has slept, so the time until its next frame says nothing.
func (p *pace) waited() { p.rungAt = 0 }

// commit at now; true: rapid has changed.
func (p *pace) commit(now uint64) bool {
	if p.rungAt == 0 {
		return false
	}
	after := max(now, p.rungAt) - p.rungAt
	p.rungAt = 0
	switch {
	case after >= p.ringNS:
		p.score -= min(p.score, 2)
	case p.score < paceSure:
		p.score++
	}
	rapid := p.rapid
	switch p.score {
	case paceSure:
		rapid = true
	case 0:
		rapid = false
	}
	changed := rapid != p.rapid
	p.rapid = rapid
	return changed
}
