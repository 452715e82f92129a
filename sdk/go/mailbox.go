package chronetix

import (
	"sync"
	"sync/atomic"

	"chronetix.local/sdk/go/internal/wire"
)

// mailbox is what the reader has for the node: ticks and messages, and words about its life. It is bounded, so that a
// slow callback costs messages and never memory. A tick that finds others waiting is withheld and counts as missed by
// the next one of its timer; a message that finds too many bytes waiting is dropped, counted and reported.
type mailbox struct {
	// waiting is set while there is something to look at, so that a look costs one load.
	waiting  atomic.Bool
	mu       sync.Mutex
	events   []any // wire.Tick, wire.Deliver
	bytes    int
	withheld map[string]uint64
	dropped  map[string]uint64
	start    *wire.Start
	drained  bool
	leaves   bool
	lost     error
}

const (
	maxWaitingTicks = 16
	maxWaitingBytes = 8 << 20
	reportedAtOnce  = 1000
	messageOverhead = 1024
)

// anything tells whether the node's goroutine has something to look at.
func (m *mailbox) anything() bool { return m.waiting.Load() }

// changed is called with the lock, after each change.
func (m *mailbox) changed() {
	m.waiting.Store(len(m.events) > 0 || m.lost != nil || m.drained)
}

func (m *mailbox) tick(tick wire.Tick) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.events) >= maxWaitingTicks {
		if m.withheld == nil {
			m.withheld = map[string]uint64{}
		}
		m.withheld[tick.ID] += tick.Missed + 1
		return false
	}
	tick.Missed += m.withheld[tick.ID]
	delete(m.withheld, tick.ID)
	m.events = append(m.events, tick)
	m.changed()
	return true
}

func (m *mailbox) deliver(message wire.Deliver) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := len(message.Payload) + messageOverhead
	if m.bytes+size > maxWaitingBytes && len(m.events) > 0 {
		if m.dropped == nil {
			m.dropped = map[string]uint64{}
		}
		topic, _ := message.Envelope["topic"].(string)
		m.dropped[topic]++
		return false
	}
	m.bytes += size
	m.events = append(m.events, message)
	m.changed()
	return true
}

// next takes the oldest event; nil: there is none.
func (m *mailbox) next() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.events) == 0 {
		return nil
	}
	first := m.events[0]
	m.events[0] = nil
	m.events = m.events[1:]
	m.changed()
	if message, isMessage := first.(wire.Deliver); isMessage {
		m.bytes -= len(message.Payload) + messageOverhead
	}
	return first
}

// report is what was dropped of each topic: once there is room again, before that whenever they are many, and at the end.
func (m *mailbox) report(atEnd bool) map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var total uint64
	for _, count := range m.dropped {
		total += count
	}
	if total == 0 || (!atEnd && total < reportedAtOnce && m.bytes > maxWaitingBytes/2) {
		return nil
	}
	told := m.dropped
	m.dropped = nil
	return told
}

// state reads the words about the node's life.
func (m *mailbox) state() (drained, leaves bool, lost error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.drained, m.leaves, m.lost
}
