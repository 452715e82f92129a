package chronetix

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/fxamacker/cbor/v2"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

// A Frame is one that was taken. It is a value; its Data and Meta lie in shared memory, are not to be written, and are
// valid until Release, which every frame needs once: it gives the frame's credit back to the producer.
//
// Its fields are Data (the payload), Meta (metadata in CBOR, mostly none), Seq (the sequence number on its route), TimeNS
// (when it was committed, on CLOCK_MONOTONIC), DeadlineNS (when it is due; 0: whenever), Trace, InputSeq (the number of
// what it was made from), StampNS (a time of the sender's own; 0: none), Schema and Redelivered (it may be one that was
// delivered before). Route returns the route's name, its producer and its content type.
type Frame = shm.Frame

// Release gives frames back that were taken together, with one step for all of a route.
func Release(frames []Frame) { shm.ReleaseAll(frames) }

// Out says how a frame is sent. The zero Out sends to every output.
type Out struct {
	// To names the routes: a route, its topic or the node at its other end. Empty: every output.
	To string
	// From is the frame that the new one was made from: its number, deadline and mark of redelivery go along.
	From *Frame
	// Try has the call return ErrWouldBlock where it would have to wait for credit or room.
	Try bool
	// DeadlineNS is when the frame is due, on CLOCK_MONOTONIC; it never comes later than that of From.
	DeadlineNS uint64
	Trace      uint64
	Schema     uint32
	// StampNS is a time of the sender's own, Meta a map of what CBOR can carry. Both are notes behind the payload.
	StampNS int64
	Meta    map[string]any
}

func (o *Out) tags() shm.Tags {
	tags := shm.Tags{DeadlineNS: o.DeadlineNS, Trace: o.Trace, Schema: o.Schema}
	if o.From != nil {
		tags.InputSeq, tags.Redelivered = o.From.Seq, o.From.Redelivered
		if due := o.From.DeadlineNS; due != 0 && (tags.DeadlineNS == 0 || due < tags.DeadlineNS) {
			tags.DeadlineNS = due
		}
	}
	return tags
}

// trailer is the notes as they lie behind the payload (shm/SPEC.md, 3.1).
func (o *Out) trailer() ([]byte, error) {
	if o.StampNS == 0 && o.Meta == nil {
		return nil, nil
	}
	var meta []byte
	if o.Meta != nil {
		made, err := cbor.Marshal(o.Meta)
		if err != nil {
			return nil, fromCatalogue(CodePayloadUnencodable.Error(), map[string]any{"type": "map",
				"content_type": "metadata", "route": o.To, "reason": err.Error()})
		}
		meta = made
	}
	note := binary.LittleEndian.AppendUint64(meta, uint64(o.StampNS))
	note = binary.LittleEndian.AppendUint32(note, uint32(len(meta)))
	return binary.LittleEndian.AppendUint32(note, 0), nil
}

// errNoOutputs is what a node without outputs gets from Send.
var errNoOutputs = errors.New("this node has no data outputs: give it a data route, or publish")

// Send copies data into a frame of its own and sends it to every output, all or none. It waits for credit and room.
// ErrRouteClosed: nobody takes what this node sends.
func (w *Worker) Send(ctx context.Context, data []byte) error {
	if w.sender == nil {
		return errNoOutputs
	}
	return w.sent(w.sender.Send(ctx, "", data, shm.Tags{}, true))
}

// SendOut is Send with all that can be said about a frame.
func (w *Worker) SendOut(ctx context.Context, data []byte, out Out) error {
	if w.sender == nil {
		return errNoOutputs
	}
	if out.Meta != nil || out.StampNS != 0 {
		loan, err := w.Reserve(ctx, len(data), out)
		if err != nil {
			return err
		}
		copy(loan.Data, data)
		return loan.Commit()
	}
	return w.sent(w.sender.Send(ctx, out.To, data, out.tags(), !out.Try))
}

// SendMany sends each size bytes of data as a frame of its own, many in one step, and returns how many were sent: fewer
// than there are only with an error.
func (w *Worker) SendMany(ctx context.Context, data []byte, size int, out Out) (int, error) {
	if w.sender == nil {
		return 0, errNoOutputs
	}
	count, err := w.sender.SendMany(ctx, out.To, data, size, out.tags(), !out.Try)
	return count, w.sent(err)
}

func (w *Worker) sent(err error) error {
	if err == nil {
		return nil
	}
	return w.accused(err)
}

// accused reports a peer that broke a rule, before the node is told: the daemon finds the lie in the route's memory, and
// the one who told it fails. What that memory does not show (notes, descriptors on a line) is no accusation.
func (w *Worker) accused(err error) error {
	var route *shm.RouteError
	var fault *shm.Fault
	if w.accuses && errors.As(err, &route) && errors.As(err, &fault) && fault.Shown() {
		w.tell(wire.Accuse{Route: route.Route, Rule: clip(fault.Why, 1024), Epoch: route.Epoch})
	}
	return of(err)
}

// A Loan is room for a frame in shared memory, which is filled in place: no copy is made. It holds a credit of each of
// its routes, so that Commit never waits. One of the two, Commit or Cancel, has to be called.
type Loan struct {
	// Data is the room. It must not be touched after Commit or Cancel.
	Data    []byte
	worker  *Worker
	loan    shm.Loan
	tags    shm.Tags
	trailer []byte
	whole   []byte
}

// Reserve returns room for a frame of so many bytes.
func (w *Worker) Reserve(ctx context.Context, size int, out Out) (Loan, error) {
	if w.sender == nil {
		return Loan{}, errNoOutputs
	}
	trailer, err := out.trailer()
	if err != nil {
		return Loan{}, err
	}
	made, room, err := w.sender.Reserve(ctx, out.To, size+len(trailer), !out.Try)
	if err != nil {
		return Loan{}, w.accused(err)
	}
	loan := Loan{worker: w, Data: room[:size:size], loan: made, tags: out.tags(), trailer: trailer, whole: room}
	loan.tags.Noted = trailer != nil
	return loan, nil
}

// Commit sends the frame.
func (l Loan) Commit() error { return l.CommitSize(len(l.Data)) }

// CommitSize sends the first size bytes of it.
func (l Loan) CommitSize(size int) error {
	if size < 0 || size > len(l.Data) {
		return fmt.Errorf("the loan has %d bytes, not %d", len(l.Data), size)
	}
	copy(l.whole[size:], l.trailer)
	if l.worker == nil {
		return ErrLoanOver
	}
	return l.worker.sent(l.loan.Commit(size+len(l.trailer), l.tags))
}

// Cancel gives the room back unsent. After Commit it does nothing, so that it can be deferred.
func (l Loan) Cancel() { l.loan.Cancel() }

// High tells whether the outstanding frames of some output have reached its watermark: its consumer is slower than this
// node.
func (w *Worker) High() bool { return w.sender != nil && w.sender.High() }

// -- taking --------------------------------------------------------------------------------------------------------

// Take returns the next frame. It sleeps until there is one; ticks and messages that come meanwhile are handed to the
// Node's callbacks, here. io.EOF: the inputs have ended, or the node was told to end and has taken what was there. The
// frame has to be released. A *PeerFault is told once, and the other routes go on.
func (w *Worker) Take(ctx context.Context) (Frame, error) {
	var one [1]Frame
	_, err := w.TakeMany(ctx, one[:])
	return one[0], err
}

// TakeMany takes as many frames of one route as are there, at least one and at most len(frames).
func (w *Worker) TakeMany(ctx context.Context, frames []Frame) (int, error) {
	for {
		drained, leaves, err := w.serve(ctx)
		if err != nil {
			return 0, err
		}
		count := 0
		switch {
		case w.finishing.Load():
			return 0, io.EOF
		case leaves:
			count, err = w.takeLeft(frames)
		case drained:
			if count, err = w.receiver.Poll(frames); count == 0 && err == nil {
				err = io.EOF
			}
		case len(w.wired.Inputs) == 0:
			if err = w.sleep(ctx); err == nil {
				continue
			}
		default:
			if count, err = w.receiver.Take(ctx, frames); err == shm.ErrRung {
				continue
			}
		}
		if err != nil && err != io.EOF {
			err = w.reason(w.accused(err))
		}
		return count, err
	}
}

// takeLeft: no more than can have been there when the node was told to leave.
func (w *Worker) takeLeft(frames []Frame) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leftToTake < 0 {
		w.leftToTake = 0
		for _, port := range w.config.Inputs {
			w.leftToTake += int(port.Credits)
		}
	}
	if w.leftToTake == 0 {
		return 0, io.EOF
	}
	count, err := w.receiver.Poll(frames[:min(len(frames), w.leftToTake)])
	if count == 0 && err == nil {
		err = io.EOF
	}
	w.leftToTake -= count
	return count, err
}

// sleep is that of a node without inputs.
func (w *Worker) sleep(ctx context.Context) error {
	ticket := w.bell.Enter()
	if w.mail.anything() || w.finishing.Load() {
		return nil
	}
	w.mu.Lock()
	w.waiters++
	w.mu.Unlock()
	_, err := w.bell.Sleep(ctx, ticket, shm.Forever)
	w.mu.Lock()
	w.waiters--
	w.mu.Unlock()
	return err
}

// serve hands ticks and messages to the callbacks.
func (w *Worker) serve(ctx context.Context) (drained, leaves bool, err error) {
	for {
		if !w.mail.waiting.Load() {
			return false, false, nil
		}
		event := w.mail.next()
		if event == nil {
			return w.mail.state()
		}
		w.events.Add(1)
		switch event := event.(type) {
		case wire.Tick:
			err = w.call("tick", w.node.OnTick != nil, func() error {
				return w.node.OnTick(ctx, w, Tick{event.ID, event.Sequence, event.DueNS, event.Missed})
			})
		case wire.Deliver:
			w.tellDropped(false)
			err = w.call("message", w.node.OnMessage != nil, func() error {
				return w.node.OnMessage(ctx, w, messageOf(w, event))
			})
		}
		if err != nil {
			return false, false, err
		}
	}
}

func (w *Worker) call(phase string, there bool, callback func() error) error {
	if !there {
		return nil
	}
	before := w.phase.Load()
	w.enter(phase)
	err := callback()
	if err == nil {
		w.phase.Store(before)
	}
	return err
}

// Frames ranges over the frames until the inputs end. Each has to be released. An error is the last that is yielded.
func (w *Worker) Frames(ctx context.Context) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		for {
			frame, err := w.Take(ctx)
			if err == io.EOF {
				return
			}
			if !yield(frame, err) || err != nil {
				return
			}
		}
	}
}

// Lost is how many frames of inputs of policy latest were overwritten before they were read.
func (w *Worker) Lost() uint64 { return w.receiver.Lost() }

// -- values --------------------------------------------------------------------------------------------------------

// Decode reads the frame's payload into v by its route's content type: JSON, CBOR, or bytes into a *[]byte, which is a
// copy. What is not of that type is payload-undecodable.
func Decode(f *Frame, v any) error {
	route, _, contentType := f.Route()
	var err error
	switch contentType {
	case "application/json":
		err = json.Unmarshal(f.Data, v)
	case "application/cbor":
		err = cbor.Unmarshal(f.Data, v)
	default:
		into, isBytes := v.(*[]byte)
		if !isBytes {
			err = fmt.Errorf("this content type is read into a *[]byte, not a %T", v)
			break
		}
		*into = append((*into)[:0], f.Data...)
	}
	if err != nil {
		return fromCatalogue(CodePayloadUndecodable.Error(), map[string]any{"route": route, "content_type": contentType,
			"reason": err.Error()})
	}
	return nil
}

// SendValue encodes v by the content type of each output that out.To names: JSON, CBOR, or a []byte as it is. Nothing is
// sent unless v can be encoded for all of them.
func (w *Worker) SendValue(ctx context.Context, v any, out Out) error {
	if w.sender == nil {
		return errNoOutputs
	}
	type part struct {
		to   []string
		data []byte
	}
	parts := map[string]*part{}
	var order []*part
	for _, port := range w.Config().Outputs {
		if out.To != "" && !namesAre(port, out.To) {
			continue
		}
		each := parts[port.ContentType]
		if each == nil {
			data, err := encodeAs(v, port)
			if err != nil {
				return err
			}
			each = &part{data: data}
			parts[port.ContentType] = each
			order = append(order, each)
		}
		each.to = append(each.to, port.Route)
	}
	if len(order) <= 1 {
		var data []byte
		if len(order) == 1 {
			data = order[0].data
		}
		return w.SendOut(ctx, data, out)
	}
	// Several types: room for all of them first, so that all get the value or none.
	var loans []Loan
	defer func() {
		for _, loan := range loans {
			loan.Cancel()
		}
	}()
	for _, each := range order {
		for _, route := range each.to {
			one := out
			one.To = route
			loan, err := w.Reserve(ctx, len(each.data), one)
			if err != nil {
				return err
			}
			loans = append(loans, loan)
			copy(loan.Data, each.data)
		}
	}
	for i, loan := range loans {
		if i > 0 && out.From == nil {
			loan.tags.InputSeq = w.sender.Item(0) // it is one item of a source
		}
		if err := loan.Commit(); err != nil {
			return err
		}
	}
	return nil
}

func namesAre(port Port, to string) bool {
	return to == port.Route || to == port.Peer || (to != "" && to == port.Topic)
}

func encodeAs(v any, port Port) ([]byte, error) {
	var data []byte
	var err error
	switch port.ContentType {
	case "application/json":
		data, err = json.Marshal(v)
	case "application/cbor":
		data, err = cbor.Marshal(v)
	default:
		bytes, isBytes := v.([]byte)
		if !isBytes {
			err = errors.New("only bytes can be sent as this content type")
		}
		data = bytes
	}
	if err != nil {
		return nil, fromCatalogue(CodePayloadUnencodable.Error(), map[string]any{"type": fmt.Sprintf("%T", v),
			"content_type": port.ContentType, "route": port.Route, "reason": err.Error()})
	}
	return data, nil
}
