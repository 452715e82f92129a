package chronetix

import (
	"time"

	"chronetix.local/sdk/go/internal/shm"
)

// arenaTrim decides when an arena gives memory back: what it has beyond twice its recent peak, after a quiet time.
//
// It is looked at once a span, and only while it is larger than at first. Having to grow again soon after giving back
// makes it wait longer the next time. While nothing changes the pauses between looks grow to a minute.
type arenaTrim struct {
	arena    trimmed
	first    uint64
	size     uint64
	peaks    []uint64
	patience int
	pause    time.Duration
	at       time.Time
	since    int // looks since it gave something back; -1: it has not
}

type trimmed interface {
	Size() (size, first uint64)
	TakePeak() uint64
	Shrink(keep uint64) uint64
}

const (
	trimSpan     = time.Second
	trimLongest  = 64 * time.Second
	trimPatience = 2
	trimMost     = 64
)

func newArenaTrim(s *shm.Sender) *arenaTrim { return trimOf(s) }

func trimOf(arena trimmed) *arenaTrim {
	size, first := arena.Size()
	return &arenaTrim{arena: arena, first: first, size: size, patience: trimPatience, pause: trimSpan, since: -1}
}

// due is when the next look is; the zero time: there is nothing to look for.
func (t *arenaTrim) due(now time.Time) time.Time {
	if size, _ := t.arena.Size(); size <= t.first {
		t.at = time.Time{}
		return t.at
	}
	if t.at.IsZero() {
		t.at = now.Add(trimSpan)
	}
	return t.at
}

// look gives back what is too much.
func (t *arenaTrim) look(now time.Time) {
	size, _ := t.arena.Size()
	grown := size > t.size
	if grown {
		t.repent()
	}
	peak := t.arena.TakePeak()
	changed := grown || len(t.peaks) == 0 || peak != t.peaks[len(t.peaks)-1]
	t.peaks = append(t.peaks, peak)
	if len(t.peaks) > t.patience {
		t.peaks = t.peaks[len(t.peaks)-t.patience:]
	}
	full := len(t.peaks) == t.patience
	var most, given uint64
	for _, each := range t.peaks {
		most = max(most, each)
	}
	if full {
		given = t.arena.Shrink(max(t.first, 2*most))
		if size, _ := t.arena.Size(); most == 0 && given == 0 && size > t.first {
			given = t.arena.Shrink(0) // what is left is one large segment
		}
	}
	switch {
	case given > 0:
		t.since = 0
	case t.since >= 0:
		t.since++
	}
	t.size, _ = t.arena.Size()
	if full && !changed && given == 0 {
		t.pause = min(2*t.pause, trimLongest)
	} else {
		t.pause = trimSpan
	}
	t.at = now.Add(t.pause)
}

// repent: it grew. Was that so soon after giving back that it was better kept?
func (t *arenaTrim) repent() {
	if t.since < 0 {
		return
	}
	if t.since <= 4*t.patience {
		t.patience = min(2*t.patience, trimMost)
	} else {
		t.patience = trimPatience
	}
	t.since = -1
}
