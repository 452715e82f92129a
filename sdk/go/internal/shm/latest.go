//go:build linux && (amd64 || arm64)

package shm

import (
	"sync"
	"sync/atomic"
)

// Policy latest, the consuming end: the producer never waits, so a frame may be overwritten while it is read. It is
// copied, and believed when `oldest` shows afterwards that it was whole; what was torn is forgotten. Reading what the
// producer may be writing is a race by design, as in any seqlock. `returned` is a position here: all before it are done
// with.

const (
	lapsMax   = 65536
	looksMax  = 64
	tornsMax  = 16
	copyAlign = lineSize
)

// copyRoom is where such a frame was copied to. It is used again after the frame's release.
type copyRoom struct {
	room []byte
	turn atomic.Uint64 // changes at each release
}

var copyRooms = sync.Pool{New: func() any { return new(copyRoom) }}

func (c *Consumer) lose(to uint64) {
	c.credit.count(atLost, to-c.position)
	c.position = to
	c.reach()
}

// fall: the frame at the next position was overwritten. After one that was torn the reader is too slow to follow the
// writer closely: it skips up to half of what is there.
func (c *Consumer) fall(oldest uint64) {
	c.lose(oldest)
	if c.torn == 0 {
		return
	}
	for ahead := uint64(c.Header.Credits / 2); ahead > 0; ahead /= 2 {
		if at := oldest + ahead; c.stampOf(at) == at+1 {
			c.lose(at)
			return
		}
	}
}

func (c *Consumer) peekLatest() status {
	for range lapsMax {
		oldest := c.ring.load(atOldest)
		if oldest > maxPosition {
			return c.refuse("frames up to %d are said to be overwritten", oldest)
		}
		if oldest > c.position {
			c.fall(oldest)
		}
		stamp := c.stampOf(c.position)
		if stamp == c.position+1 {
			return statusOK
		}
		if c.possible(stamp) {
			return statusEmpty
		}
		if c.ring.load(atOldest) <= c.position { // it stored that before the stamp
			return c.refuse("position %d: impossible stamp %d", c.position, stamp)
		}
	}
	return c.refuse("the oldest frame moves on and on without an end")
}

func (c *Consumer) lookLatest(f *Frame) status {
	for range looksMax {
		found := c.peekLatest()
		if found == statusEmpty {
			found = c.over()
		}
		if found != statusOK {
			return found
		}
		if c.position >= c.end {
			return c.refuse("a frame at position %d, but its dead producer's end at %d", c.position, c.end)
		}
		found = c.describe(c.position, f)
		if c.ring.load(atOldest) <= c.position {
			return found
		}
	}
	return statusAgain
}

// takeLatest copies the next frame.
func (c *Consumer) takeLatest(f *Frame) status {
	budget := c.mapped
	for torn := range tornsMax {
		if found := c.look(f); found != statusOK {
			return found
		}
		size := uint64(len(f.Data) + len(f.Meta))
		if torn > 0 && size > budget {
			break
		}
		budget -= min(size, budget)
		into := copyRooms.Get().(*copyRoom)
		data, meta := into.copy(f)
		stamp := c.position + 1
		c.position++
		c.fence.Store(stamp) // the copy is read before `oldest` is: a load alone would not keep earlier ones before it
		if c.ring.load(atOldest) >= stamp {
			c.torn++
			c.credit.count(atLost, 1)
			c.doneWith()
			copyRooms.Put(into)
			continue
		}
		c.torn = 0
		c.taken++
		f.Data, f.Meta = data, meta
		f.stamp, f.Seq, f.end, f.copied, f.turn = stamp, c.Header.BaseSeq+stamp-1, c, into, into.turn.Load()
		c.credit.note(atTaken, c.taken)
		c.latency(f.TimeNS, Now(), 1)
		c.doneWith()
		return statusOK
	}
	return statusAgain
}

// doneWith: all positions before the next one are.
func (c *Consumer) doneWith() {
	c.reach()
	c.credit.store(atReturned, c.position)
}

func (r *copyRoom) copy(f *Frame) (data, meta []byte) {
	size := len(f.Data) + len(f.Meta)
	if cap(r.room) < size {
		r.room = make([]byte, size, (size+copyAlign-1)&^(copyAlign-1))
	}
	room := r.room[:size]
	at := copy(room, f.Data)
	copy(room[at:], f.Meta)
	return room[:at:at], room[at:size:size]
}

// release gives the room back; once.
func (r *copyRoom) release(turn uint64) {
	if r.turn.CompareAndSwap(turn, turn+1) {
		copyRooms.Put(r)
	}
}
