package chronetix

import (
	"sync"

	"golang.org/x/sys/unix"

	"chronetix.local/sdk/go/internal/wire"
)

// link is the control connection as the worker's goroutines see it: a message is written whole before the next begins,
// and writing waits where the daemon is slow to read.
//
// A link that survives may lose its connection and get another one. Meanwhile messages are kept, up to maxKept bytes, and
// those that find no room are counted. What tells of a state is not kept, because the next daemon is told how everything
// stands; from renew on what changes after that is kept, too.
type link struct {
	mu       sync.Mutex
	conn     *wire.Conn
	survives bool
	away     bool
	renewed  bool
	closed   bool
	kept     []keptMessage
	bytes    int
	lost     uint64
}

const maxKept = 4 << 20

type keptMessage struct {
	pieces []wire.Piece
	size   int
	state  bool
}

func tellsState(message wire.Message) bool {
	switch message.(type) {
	case wire.Started, wire.Finished, wire.Linked, wire.Drained, wire.Offer, wire.Segment, wire.SegmentMapped,
		wire.SegmentDropped, wire.Subscribe, wire.Unsubscribe, wire.Pong:
		return true
	}
	return false
}

// send writes the message; the descriptors stay the caller's. ErrDaemonGone where nobody is there and nothing is kept.
func (l *link) send(message wire.Message, descriptors ...int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	pieces, err := wire.Pieces(message, descriptors, l.conn.MaxFrame.Load())
	if err != nil {
		return of(err)
	}
	if l.closed {
		return ErrDaemonGone
	}
	if l.away {
		l.keep(message, pieces)
		return nil
	}
	if err := l.conn.Write(pieces); err != nil {
		if !l.survives {
			return ErrDaemonGone
		}
		l.away = true
		l.keep(message, pieces)
	}
	return nil
}

func (l *link) maxFrame() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn.MaxFrame.Load()
}

func (l *link) keep(message wire.Message, pieces []wire.Piece) {
	state := tellsState(message)
	if state && !l.renewed {
		return
	}
	size := 0
	for i, piece := range pieces {
		size += len(piece.Data)
		if len(piece.Descriptors) == 0 {
			continue
		}
		own, err := duplicates(piece.Descriptors)
		if err != nil {
			l.lost++
			return
		}
		pieces[i].Descriptors = own
	}
	made := keptMessage{pieces, size, state}
	if l.bytes+size > maxKept {
		l.lost++
		made.close()
		return
	}
	l.kept = append(l.kept, made)
	l.bytes += size
}

func (k keptMessage) close() {
	for _, piece := range k.pieces {
		wire.CloseAll(piece.Descriptors)
	}
}

// duplicates of descriptors that may be closed before they are sent.
func duplicates(descriptors []int) ([]int, error) {
	own := make([]int, 0, len(descriptors))
	for _, descriptor := range descriptors {
		made, err := unix.FcntlInt(uintptr(descriptor), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			wire.CloseAll(own)
			return nil, err
		}
		own = append(own, made)
	}
	return own, nil
}

// detach: the daemon is gone, what is sent from now on is kept. Half a message that came from it is forgotten.
func (l *link) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away, l.renewed = true, false
	_ = l.conn.Close()
	l.conn.Discard()
	l.dropStates()
}

// renew: the next daemon is about to be told how everything stands.
func (l *link) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropStates()
	l.renewed = true
}

func (l *link) dropStates() {
	rest := l.kept[:0]
	for _, each := range l.kept {
		if each.state {
			l.bytes -= each.size
			each.close()
			continue
		}
		rest = append(rest, each)
	}
	l.kept = rest
}

// attach goes on over another connection; what others send is kept until resume.
func (l *link) attach(conn *wire.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
}

// resume: the new daemon has accepted. What was kept is sent, then everything as ever.
func (l *link) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.kept) > 0 {
		first := l.kept[0]
		if l.conn.Write(first.pieces) != nil {
			return // whoever receives notices that this daemon has died, too
		}
		l.bytes -= first.size
		first.close()
		l.kept = l.kept[1:]
	}
	l.away, l.renewed = false, false
}

// delivered tells whether the daemon lives and has read all that was sent.
func (l *link) delivered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away || l.closed {
		return false
	}
	done, err := l.conn.Delivered()
	return err == nil && done
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	_ = l.conn.Close()
	for _, each := range l.kept {
		each.close()
	}
	l.kept = nil
}
