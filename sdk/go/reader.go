package chronetix

import (
	"errors"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

// longAgo ends a read at once.
var longAgo = time.Unix(1, 0)

func prctlGet(signal *int32) error {
	return unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(signal)), 0, 0, 0)
}

// readAll is the reader: the one goroutine that a worker has beside the program's. It answers pings, makes and maps ends
// of routes and ends requests; what is for the node goes into the mailbox. It calls no callback, so a node that hangs can
// be told from a busy one. Where the worker survives its daemon, it waits here for the next one. While the arena is
// larger than at first, it also looks from time to time whether memory can be given back.
func (w *Worker) readAll() {
	defer close(w.read)
	for {
		reason := w.readOn()
		if w.ending.Load() {
			return
		}
		if w.reattach == nil || !w.reattach.armed() || !errors.Is(reason, ErrDaemonGone) {
			w.lose(reason)
			return
		}
		w.abandonRequests()
		if err := w.reattach.wait(); err != nil {
			if !w.ending.Load() {
				w.lose(err)
			}
			return
		}
	}
}

// readOn reads until it ends; why.
func (w *Worker) readOn() error {
	for {
		received, err := w.next()
		if err != nil {
			return err
		}
		if err := w.take(received.Message, received.Descriptors); err != nil {
			return of(err)
		}
	}
}

// next is the next message, and gives memory back when that is due.
func (w *Worker) next() (wire.Received, error) {
	for {
		var due time.Time
		if w.trim != nil {
			due = w.trim.due(time.Now())
		}
		conn := w.link.conn
		if w.ending.Load() {
			return wire.Received{}, ErrDaemonGone
		}
		_ = conn.SetReadDeadline(due)
		if w.ending.Load() { // it was set before Close had it end
			_ = conn.SetReadDeadline(longAgo)
		}
		received, err := w.receiveAll()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			var broken *unix.Errno
			if errors.As(err, &broken) {
				err = ErrDaemonGone
			}
			return received, err
		}
		if w.ending.Load() {
			return wire.Received{}, ErrDaemonGone
		}
		w.trim.look(time.Now())
	}
}

func (w *Worker) take(message wire.Message, descriptors []int) error {
	switch message := message.(type) {
	case wire.Ping:
		return w.link.send(w.pong(message))
	case wire.Segment:
		defer wire.CloseAll(descriptors)
		if err := w.receiver.MapSegment(message.Route, message.Epoch, message.Index, descriptors[0]); err != nil {
			return w.unlessForgotten(err, message.Route)
		}
		return w.link.send(wire.SegmentMapped{Index: message.Index, Route: message.Route, Epoch: message.Epoch})
	case wire.SegmentMapped:
		return w.ofSender(func(s *shm.Sender) error { return s.Confirm(message.Index) })
	case wire.SegmentDropped:
		return w.segmentDropped(message)
	case wire.Detach:
		return w.ofSender(func(s *shm.Sender) error { return s.Detach(message.Route) })
	case wire.Retract:
		return w.ofSender(func(s *shm.Sender) error { s.Retract(message.Route); return nil })
	case wire.Drained:
		return w.ofSender(func(s *shm.Sender) error { s.Drained(message.Route, message.Epoch); return nil })
	case wire.Conclude:
		return w.receiver.Conclude(message.Route, message.Seq)
	case wire.Extend:
		return w.extend(message)
	case wire.Link:
		routes := slices.Clone(message.Outputs)
		for _, input := range message.Inputs {
			routes = append(routes, input.Route)
		}
		if err := w.linked(message, descriptors); err != nil {
			return err
		}
		return w.link.send(wire.Linked{Routes: routes})
	case wire.Reply:
		w.resolve(message.CorrID, message)
	case wire.RequestFailure:
		w.resolve(message.CorrID, message)
	case wire.Start:
		if w.reattach != nil {
			w.reattach.arm()
		}
		w.post(func(m *mailbox) { m.start = &message })
	case wire.Drain:
		w.post(func(m *mailbox) { m.drained = true })
		w.stopping()
	case wire.Leave:
		w.post(func(m *mailbox) { m.drained, m.leaves = true, true })
		w.stopping()
	case wire.Tick:
		if w.mail.tick(message) {
			w.bell.Ring()
		}
	case wire.Deliver:
		if w.mail.deliver(message) {
			w.bell.Ring()
		}
		w.tellDropped(false)
	default:
		wire.CloseAll(descriptors)
		return unexpected(message, "while the node runs")
	}
	return nil
}

func (w *Worker) post(change func(*mailbox)) {
	w.mail.mu.Lock()
	change(&w.mail)
	w.mail.changed()
	w.mail.mu.Unlock()
	w.bell.Ring()
}

func (w *Worker) ofSender(act func(*shm.Sender) error) error {
	if w.sender == nil {
		return nil
	}
	return act(w.sender)
}

// unlessForgotten: a message about a route that was concluded may have been under way.
func (w *Worker) unlessForgotten(err error, route string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inputs[route] && errors.Is(err, shm.ErrUnknownRoute) {
		return nil
	}
	return err
}

func (w *Worker) segmentDropped(message wire.SegmentDropped) error {
	if message.Route == "" {
		return w.ofSender(func(s *shm.Sender) error { return s.Forget(message.Index) })
	}
	true_, err := w.receiver.DropSegment(message.Route, message.Epoch, message.Index)
	if err != nil {
		return w.unlessForgotten(err, message.Route)
	}
	if !true_ {
		return nil // the next Take says so
	}
	return w.link.send(message)
}

// extend makes the ends of further routes and stages.
func (w *Worker) extend(message wire.Extend) error {
	offer := wire.Offer{}
	var rings, credits []int
	defer func() { wire.CloseAll(credits) }()
	for _, port := range message.Inputs {
		credit, err := w.receiver.Add(inputOf(port))
		if err != nil {
			return err
		}
		offer.Credits, credits = append(offer.Credits, port.Route), append(credits, credit)
	}
	w.mu.Lock()
	for _, port := range message.Inputs {
		w.inputs[port.Route] = true
	}
	w.config.Inputs = onePerRoute(append(slices.Clone(w.config.Inputs), message.Inputs...))
	w.mu.Unlock()
	var changes []shm.Change
	for _, port := range message.Outputs {
		if w.sender == nil {
			return errors.New("a node that had no outputs cannot get some while it runs")
		}
		if port.TapOf == "" {
			changes = append(changes, shm.Change{Names: namesOf(port), Header: headerOf(port), LimitNS: port.LimitNS})
			continue
		}
		ring, err := w.sender.Tap(port.Route, port.TapOf, headerOf(port).Credits, port.BaseSeq)
		if err != nil {
			return err
		}
		offer.Rings, rings = append(offer.Rings, port.Route), append(rings, ring)
	}
	if len(changes) == 0 && len(message.Leave) == 0 {
		return w.link.send(offer, append(rings, credits...)...)
	}
	own, err := duplicates(append(rings, credits...))
	if err != nil {
		return err
	}
	taps := len(rings)
	w.sender.Reroute(message.Leave, changes, func(made []shm.Stage, err error) {
		defer wire.CloseAll(own)
		descriptors := slices.Clone(own[:taps])
		for _, stage := range made {
			offer.Rings, descriptors = append(offer.Rings, stage.Route), append(descriptors, stage.Descriptor)
		}
		w.rerouted(message)
		if err == nil {
			err = w.link.send(offer, append(descriptors, own[taps:]...)...)
		}
		if err != nil {
			w.lose(of(err))
		}
	})
	return nil
}

// rerouted notes what the outputs are now.
func (w *Worker) rerouted(message wire.Extend) {
	w.mu.Lock()
	defer w.mu.Unlock()
	outputs := slices.DeleteFunc(slices.Clone(w.config.Outputs), func(port Port) bool {
		return slices.Contains(message.Leave, port.Route)
	})
	for _, port := range message.Outputs {
		if port.TapOf != "" {
			continue
		}
		if i := slices.IndexFunc(outputs, func(each Port) bool { return each.Route == port.Route }); i >= 0 {
			outputs[i] = port
		} else {
			outputs = append(outputs, port)
		}
	}
	w.config.Outputs = outputs
}

// emptied: all frames of a stage that its producer has finished were taken and given back.
func (w *Worker) emptied(route string, epoch uint64) {
	if err := w.link.send(wire.Drained{Route: route, Epoch: epoch}); err != nil && !w.ending.Load() {
		w.lose(err)
	}
	left := w.receiver.Stages()
	if slices.ContainsFunc(left, func(stage shm.Stage) bool { return stage.Route == route }) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config.Inputs = slices.DeleteFunc(slices.Clone(w.config.Inputs), func(port Port) bool { return port.Route == route })
}

// pong: busy counts from the first ping that found the node in its present step, a lower bound that costs the node no
// look at the clock.
func (w *Worker) pong(ping wire.Ping) wire.Pong {
	count := w.events.Load()
	waits := w.receiver.Waiting()
	count += w.receiver.Total()
	if w.sender != nil {
		commits, _ := w.sender.Activity()
		count += commits
		waits = waits || w.sender.Waiting()
	}
	w.mu.Lock()
	waits = waits || w.waiters > 0
	w.mu.Unlock()
	now := shm.Now()
	if waits {
		w.seenAt = 0
		return wire.Pong{ID: ping.ID, Progress: count}
	}
	if w.seenAt == 0 || w.seenCount != count {
		w.seenCount, w.seenAt = count, now
	}
	return wire.Pong{ID: ping.ID, Progress: count, BusyNS: max(1, now-w.seenAt), Doing: *w.phase.Load()}
}

// -- what the Sender has to tell -----------------------------------------------------------------------------------

// notices keeps these methods out of the Worker's own.
type notices struct{ w *Worker }

// Grown announces a segment.
func (n notices) Grown(index uint32, descriptor int) {
	n.w.tell(wire.Segment{Index: uint64(index)}, descriptor)
}

// Dropped announces that a segment was given back.
func (n notices) Dropped(index uint32) { n.w.tell(wire.SegmentDropped{Index: uint64(index)}) }

// GaveUp announces that an output was closed.
func (n notices) GaveUp(route string, waitedNS uint64) {
	n.w.tell(wire.GaveUp{Route: route, WaitedNS: waitedNS})
}

func (w *Worker) tell(message wire.Message, descriptors ...int) {
	if err := w.link.send(message, descriptors...); err != nil && !w.ending.Load() {
		w.lose(err)
	}
}
