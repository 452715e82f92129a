package chronetix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

// reattachment is how a worker comes back after its daemon has died: it waits for the next one, says who it is and shows
// its memory. The data plane needs no daemon and runs on meanwhile. Nothing is said or shown to another user than the one
// that the daemon ran as, or root. Only the reader waits here.
type reattachment struct {
	w          *Worker
	path       string
	daemonUser uint32
	streams    *streams
	over       chan struct{}
	once       sync.Once

	mu      sync.Mutex
	present chan struct{} // closed while a daemon is there
}

const (
	firstPause   = 10 * time.Millisecond
	longestPause = time.Second
	answerTime   = 10 * time.Second
	readPause    = time.Millisecond
	longestRead  = 100 * time.Millisecond
)

func newReattachment(w *Worker) (*reattachment, error) {
	user, err := w.link.conn.PeerUser()
	if err != nil {
		return nil, err
	}
	r := &reattachment{w: w, path: w.wired.Socket, daemonUser: user, over: make(chan struct{}), present: make(chan struct{})}
	close(r.present)
	if r.streams, err = newStreams(w.attached); err != nil {
		return nil, err
	}
	return r, nil
}

// armed: it was told to start. Before that it has done nothing that a later daemon would have to know of.
func (r *reattachment) armed() bool {
	r.w.link.mu.Lock()
	defer r.w.link.mu.Unlock()
	return r.w.link.survives
}

func (r *reattachment) arm() {
	r.w.link.mu.Lock()
	defer r.w.link.mu.Unlock()
	r.w.link.survives = true
}

// settle waits until a daemon is there and has read what was sent last, or none will be.
func (r *reattachment) settle(ctx context.Context) error {
	pause := readPause
	for {
		r.mu.Lock()
		present := r.present
		r.mu.Unlock()
		select {
		case <-r.over:
			return ErrDaemonGone
		case <-ctx.Done():
			return ctx.Err()
		case <-present:
		}
		if r.w.link.delivered() {
			return nil
		}
		if _, _, lost := r.w.mail.state(); lost != nil {
			return lost
		}
		time.Sleep(pause)
		pause = min(2*pause, longestRead)
	}
}

func (r *reattachment) giveUp() { r.once.Do(func() { close(r.over) }) }

// wait returns when a daemon has taken the worker back; ErrDaemonGone when it was told to give up, or was refused.
func (r *reattachment) wait() (err error) {
	away := make(chan struct{})
	r.mu.Lock()
	r.present = away
	r.mu.Unlock()
	r.w.link.detach()
	defer func() {
		if err != nil {
			r.streams.silence()
		}
		close(away)
	}()
	pause := time.Duration(0)
	for {
		r.streams.begin()
		select {
		case <-r.over:
			return ErrDaemonGone
		case <-time.After(pause):
		}
		pause = min(max(firstPause, 2*pause), longestPause)
		back, err := r.attempt()
		if err != nil {
			return err
		}
		if back {
			return r.streams.hold()
		}
	}
}

// attempt: an error is one that another attempt would not change.
func (r *reattachment) attempt() (back bool, err error) {
	conn, err := wire.Dial(r.path)
	if err != nil {
		return false, nil
	}
	if user, err := conn.PeerUser(); err != nil || (user != 0 && user != r.daemonUser) {
		conn.Close()
		return false, nil
	}
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	r.w.link.attach(conn)
	err = r.introduce(conn)
	_ = conn.SetDeadline(time.Time{})
	if errors.Is(err, ErrDaemonGone) {
		return false, err
	}
	if err != nil {
		r.w.link.detach()
		return false, nil
	}
	r.w.link.resume()
	return true, nil
}

func (r *reattachment) introduce(conn *wire.Conn) error {
	w := r.w
	hello := wire.Hello{Protocol: []uint64{ProtocolVersion}, Role: "worker", Software: "chronetix-go " + Version,
		Features: []string{wire.FeatureReattach, wire.FeatureHandover, wire.FeatureAccuse}, PID: uint64(os.Getpid())}
	if err := conn.Send(hello); err != nil {
		return err
	}
	welcome, _, err := expect[wire.Welcome](conn)
	if err != nil {
		return err
	}
	conn.MaxFrame.Store(welcome.MaxFrame)
	message, own, further, err := w.describe()
	if err != nil {
		return err
	}
	defer wire.CloseAll(own)
	descriptors := own
	if shown := r.streams.shown(); shown != nil {
		message.Pipes = true
		descriptors = append(append([]int(nil), own...), shown...)
	}
	if err := conn.Send(message, descriptors...); err != nil {
		return err
	}
	_, pipes, err := expect[wire.Reattached](conn)
	if err != nil {
		return err
	}
	r.streams.end()
	for i, descriptor := range pipes {
		if !w.attached {
			_ = unix.Dup3(descriptor, i+1, 0)
		}
		_ = unix.Close(descriptor)
	}
	for name, count := range r.streams.takeLost() {
		further = append(further, wire.Log{Level: "warning", UnixNS: uint64(time.Now().UnixNano()),
			Message: fmt.Sprintf("%d bytes that were printed to %s while no daemon was there are lost, the oldest", count, name),
			Fields:  map[string]any{"lost_bytes": count, "stream": name}})
	}
	for _, each := range further {
		if err := conn.Send(each); err != nil {
			return err
		}
	}
	return nil
}

func expect[M wire.Message](conn *wire.Conn) (M, []int, error) {
	var none M
	received, err := conn.Receive()
	if err != nil {
		return none, nil, err
	}
	if message, isOne := received.Message.(M); isOne {
		return message, received.Descriptors, nil
	}
	wire.CloseAll(received.Descriptors)
	if failure, isFailure := received.Message.(wire.Failure); isFailure {
		return none, nil, fmt.Errorf("%w: it does not take this worker back: %w", ErrDaemonGone, fromFailure(failure))
	}
	return none, nil, unexpected(received.Message, "where "+none.Kind()+" is due")
}

func (r *reattachment) close() { r.streams.close() }

// describe tells who this is, how far it is, and all its memory; and what a daemon would know from before. The
// descriptors are the caller's.
func (w *Worker) describe() (message wire.Reattach, own []int, further []wire.Message, err error) {
	w.mu.Lock()
	w.link.renew()
	message = wire.Reattach{Flow: w.wired.Flow, Node: w.wired.Node, Token: w.wired.Token, State: "starting",
		Incarnation: w.wired.Incarnation}
	if w.started {
		message.State = "started"
		if drained, _, _ := w.mail.state(); drained || w.finishing.Load() {
			message.State = "draining"
		}
	}
	for topic, wanted := range w.topics {
		if wanted {
			further = append(further, wire.Subscribe{Topic: topic})
		} else {
			further = append(further, wire.Unsubscribe{Topic: topic})
		}
	}
	if w.finished != nil {
		further = append(further, *w.finished)
	}
	w.mu.Unlock()
	keep := func(descriptors ...int) {
		var made []int
		if err == nil {
			made, err = duplicates(descriptors)
		}
		own = append(own, made...)
	}
	var segments []int
	if w.sender != nil {
		w.sender.Inventory(func(stages []shm.Stage, indices, unconfirmed, dropped []uint64, descriptors []int) {
			for _, stage := range stages {
				message.Outputs = append(message.Outputs, reattachedOf(stage))
				keep(stage.Descriptor)
			}
			message.Segments, message.Unconfirmed, message.Dropped = indices, unconfirmed, dropped
			var made []int
			if err == nil {
				made, err = duplicates(descriptors)
			}
			segments = made
		})
	}
	w.receiver.Inventory(func(stages []shm.Stage) {
		for _, stage := range stages {
			message.Inputs = append(message.Inputs, reattachedOf(stage))
			keep(stage.Descriptor)
		}
	})
	own = append(own, segments...)
	if err != nil {
		wire.CloseAll(own)
	}
	return message, own, further, err
}

func reattachedOf(stage shm.Stage) wire.ReattachedStage {
	made := wire.ReattachedStage{Route: stage.Route, Epoch: stage.Epoch, Segments: stage.Segments, Resume: stage.Resume}
	if !stage.Linked {
		made.Linked = new(bool)
	}
	return made
}
