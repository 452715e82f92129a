package chronetix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

// A Worker is this process as one node of a flow, from its control socket to its end.
//
// Most programs hand a Node to Main or Run, which do everything below. A program with a loop of its own calls Inherited,
// Start, Take and Send, and at the end Finish, or Fault, and always Close. Methods may be called from any goroutine; the
// callbacks of the Node are called by whoever is in Take.
type Worker struct {
	node   Node
	link   *link
	bell   *shm.Bell
	mail   mailbox
	logger workerLog

	sender   *shm.Sender // nil where the node has no outputs
	receiver *shm.Receiver

	mu          sync.Mutex
	wired       wire.Configure // the last configure; unchanged from Start on
	config      Config         // Inputs and Outputs as they are now
	handover    any
	started     bool
	finished    *wire.Finished
	read        chan struct{} // closed when the reader has ended
	reattach    *reattachment
	trim        *arenaTrim
	inputs      map[string]bool // every route that was an input
	topics      map[string]bool // asked for at run time: to be subscribed to, or not any more
	requests    map[string]chan wire.Message
	lastRequest uint64
	waiters     int // of nodes without inputs, who sleep on the bell

	draining   context.Context // ends when the node is told to end
	stopping   context.CancelFunc
	phase      atomic.Pointer[string]
	events     atomic.Uint64
	finishing  atomic.Bool
	ending     atomic.Bool
	attached   bool // nobody started this process as a worker
	accuses    bool // the daemon takes accusations
	leftToTake int  // of one that leaves: how many frames it may still take; -1 before that
	seenCount  uint64
	seenAt     uint64
}

const fdVariable = "CHRONETIX_FD"

// firstSegment is enough for small frames and cheap to make; larger frames make the arena grow at once.
const firstSegment = 1 << 18

// Inherited makes the worker of the control socket that the daemon has left to this process, says hello and waits to be
// told which node it is. The variable that names the socket is removed, so that no child inherits it. ErrNotAWorker: the
// program was not started by a daemon.
func Inherited(node Node) (*Worker, error) {
	number, err := strconv.Atoi(os.Getenv(fdVariable))
	if err != nil || number < 0 {
		return nil, ErrNotAWorker
	}
	os.Unsetenv(fdVariable)
	conn, err := wire.NewConn(number)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNotAWorker, err)
	}
	return newWorker(conn, node)
}

// Attach makes this process the worker of a node with the artifact attach://name, which waits for one: it connects to the
// daemon's control socket and shows the flow's token (`chronetixctl attach-token`). Nothing is said to a socket on which
// another user than this process's or root listens.
func Attach(ctx context.Context, socket, name, token string, node Node) (*Worker, error) {
	conn, err := wire.Dial(socket)
	if err != nil {
		return nil, err
	}
	user, err := conn.PeerUser()
	if err == nil && user != 0 && int(user) != os.Geteuid() {
		err = fromCatalogue(CodeServerNotTrusted.Error(), map[string]any{"socket": socket, "uid": user, "own": os.Geteuid()})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return greet(conn, node, wire.Hello{Attach: name, Token: token})
}

func newWorker(conn *wire.Conn, node Node) (*Worker, error) { return greet(conn, node, wire.Hello{}) }

func greet(conn *wire.Conn, node Node, hello wire.Hello) (*Worker, error) {
	w := &Worker{node: node, link: &link{conn: conn}, inputs: map[string]bool{}, topics: map[string]bool{}, requests: map[string]chan wire.Message{},
		leftToTake: -1, attached: hello.Attach != ""}
	w.logger.worker = w
	w.draining, w.stopping = context.WithCancel(context.Background())
	w.enter("init")
	hello.Protocol, hello.Role, hello.Software = []uint64{ProtocolVersion}, "worker", "chronetix-go "+Version
	hello.Features, hello.PID = []string{wire.FeatureHandover, wire.FeatureAccuse}, uint64(os.Getpid())
	err := w.link.send(hello)
	if err == nil {
		err = w.greeted()
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// greeted waits for the welcome and the configure behind it.
func (w *Worker) greeted() error {
	message, err := w.receive()
	if assign, isAssign := message.(wire.Assign); err == nil && isAssign {
		if err := adopt(assign); err != nil {
			return err
		}
		message, err = w.receive()
	}
	if err != nil {
		return err
	}
	welcome, isWelcome := message.(wire.Welcome)
	if !isWelcome || welcome.Protocol != ProtocolVersion {
		return unexpected(message, "where the welcome is due")
	}
	w.link.conn.MaxFrame.Store(welcome.MaxFrame)
	w.accuses = slices.Contains(welcome.Features, wire.FeatureAccuse)
	message, err = w.receive()
	if err != nil {
		return err
	}
	configure, isConfigure := message.(wire.Configure)
	if !isConfigure {
		return unexpected(message, "where configure is due")
	}
	w.configured(configure)
	return nil
}

func adopt(place wire.Assign) error {
	for name, value := range place.Env {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if place.Cwd == "" {
		return nil
	}
	return os.Chdir(place.Cwd)
}

func unexpected(message wire.Message, when string) error {
	return fromCatalogue(CodeUnexpectedMessage.Error(), map[string]any{"type": message.Kind(), "when": when})
}

func (w *Worker) configured(c wire.Configure) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wired, w.config = c, configOf(c)
	for _, port := range c.Inputs {
		w.inputs[port.Route] = true
	}
}

// receive is for the time before the reader runs. What the daemon refuses is the error.
func (w *Worker) receive() (wire.Message, error) {
	received, err := w.receiveAll()
	wire.CloseAll(received.Descriptors)
	return received.Message, err
}

func (w *Worker) receiveAll() (wire.Received, error) {
	received, err := w.link.conn.Receive()
	switch {
	case errors.Is(err, io.EOF):
		return received, ErrDaemonGone
	case err != nil:
		return received, of(err)
	}
	if failure, isFailure := received.Message.(wire.Failure); isFailure {
		return received, fromFailure(failure)
	}
	return received, nil
}

// await returns the next message of type M; what comes before it for the node is kept.
func await[M wire.Message](w *Worker) (M, []int, error) {
	for {
		var none M
		received, err := w.receiveAll()
		if err != nil {
			return none, nil, err
		}
		switch message := received.Message.(type) {
		case M:
			return message, received.Descriptors, nil
		case wire.Drain:
			return none, nil, ErrDrained
		case wire.Ping:
			if err := w.link.send(wire.Pong{ID: message.ID}); err != nil {
				return none, nil, err
			}
		case wire.Tick:
			w.mail.tick(message)
		case wire.Deliver:
			w.mail.deliver(message)
		default:
			wire.CloseAll(received.Descriptors)
			return none, nil, unexpected(message, "while the worker waits for "+none.Kind())
		}
	}
}

// Config is the node as the daemon has described it; routes as they are now.
func (w *Worker) Config() Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.config
}

// Handover is the result of the worker that this one replaces, from Start on; nil if it replaces none.
func (w *Worker) Handover() any {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.handover
}

// ResumeAfter is the number of the last item that all outputs of a restarted or replaced source have got, else 0. Items
// are numbered from 1, one for each frame sent. For a source that calls this the numbering goes on after that item, so it
// should go on there, too. For one that does not it begins anew, and frames that it repeats are marked as redelivered.
func (w *Worker) ResumeAfter() uint64 {
	resume := w.Config().resumeAfter
	if w.sender != nil {
		w.sender.Item(resume)
	}
	return resume
}

// Draining is closed when the node is told to end: a source stops, and a callback that takes long should return.
func (w *Worker) Draining() <-chan struct{} { return w.draining.Done() }

// Stop has the node finish by itself: Take returns io.EOF from now on. Idempotent.
func (w *Worker) Stop() {
	w.finishing.Store(true)
	w.stopping()
	if _, _, bell, _ := w.made(); bell != nil {
		bell.Ring()
	}
}

// made is what Start has made so far; for those who may call before it is over.
func (w *Worker) made() (*shm.Sender, *shm.Receiver, *shm.Bell, chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sender, w.receiver, w.bell, w.read
}

func (w *Worker) enter(phase string) { w.phase.Store(&phase) }

// Start makes the node's memory, links it with its peers, calls Init, waits until the flow starts, and calls OnStart.
// The context bounds the waiting.
func (w *Worker) Start(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.lose(context.Cause(ctx)) })
	defer stop()
	if w.wired.Standby {
		if err := w.standby(ctx); err != nil {
			return w.reason(err)
		}
	}
	w.enter("wiring")
	if err := w.wire(); err != nil {
		return w.reason(of(err))
	}
	if err := w.linkUp(); err != nil {
		return w.reason(of(err))
	}
	if !w.wired.Standby && w.node.Init != nil {
		w.enter("init")
		if err := w.node.Init(ctx, w); err != nil {
			return err
		}
	}
	w.enter("wiring")
	if err := w.ready(); err != nil {
		return w.reason(err)
	}
	if err := w.awaitStart(ctx); err != nil {
		return err
	}
	if w.node.OnStart != nil {
		w.enter("start")
		if err := w.node.OnStart(ctx, w); err != nil {
			return err
		}
	}
	w.enter("frame")
	w.mu.Lock()
	w.started = true
	err := w.link.send(wire.Started{})
	w.mu.Unlock()
	return err
}

// reason is why the worker was lost, if it was: what fails then fails because of that.
func (w *Worker) reason(err error) error {
	if _, _, lost := w.mail.state(); lost != nil {
		return lost
	}
	return err
}

// standby constructs the node while its predecessor still runs, and waits until it is its turn, perhaps for ever.
func (w *Worker) standby(ctx context.Context) error {
	if w.node.Init != nil {
		if err := w.node.Init(ctx, w); err != nil {
			return err
		}
	}
	if err := w.link.send(wire.Ready{}); err != nil {
		return err
	}
	configure, _, err := await[wire.Configure](w)
	if err != nil {
		return err
	}
	configure.Standby = true // Init was called
	w.configured(configure)
	return nil
}

// wire makes the ends of the routes.
func (w *Worker) wire() error {
	c := w.wired
	bell, err := shm.NewBell()
	if err != nil {
		return err
	}
	var sender *shm.Sender
	if len(c.Outputs) > 0 {
		first := min(uint64(firstSegment), c.ArenaLimit)
		sender, err = shm.NewSender(bell, notices{w}, c.ArenaLimit, first, c.BudgetNS, len(c.Inputs) == 0)
		if err != nil {
			bell.Close()
			return err
		}
		w.trim = newArenaTrim(sender)
	}
	receiver := shm.NewReceiver(bell, sender, w.emptied)
	receiver.Other = w.mail.anything
	w.mu.Lock()
	w.sender, w.receiver, w.bell = sender, receiver, bell
	w.mu.Unlock()
	for _, port := range c.Outputs {
		if err := sender.Add(namesOf(port), headerOf(port), port.LimitNS, port.Resume); err != nil {
			return err
		}
	}
	if c.HugePages {
		w.Log().Warn("huge pages were asked for; this worker's memory has small ones")
	}
	return nil
}

// linkUp offers what this worker has made, and maps what its peers have.
func (w *Worker) linkUp() error {
	offer := wire.Offer{}
	var rings, credits, segments []int
	if w.sender != nil {
		stages, indices, descriptors := w.sender.Offered()
		for _, stage := range stages {
			offer.Rings, rings = append(offer.Rings, stage.Route), append(rings, stage.Descriptor)
		}
		offer.Segments, segments = indices, descriptors
	}
	defer func() { wire.CloseAll(credits) }()
	for _, port := range w.wired.Inputs {
		credit, err := w.receiver.Add(inputOf(port))
		if err != nil {
			return err
		}
		offer.Credits, credits = append(offer.Credits, port.Route), append(credits, credit)
	}
	if err := w.link.send(offer, append(append(rings, credits...), segments...)...); err != nil {
		return err
	}
	message, descriptors, err := await[wire.Link](w)
	if err != nil {
		return err
	}
	if err := w.linked(message, descriptors); err != nil {
		return err
	}
	if w.sender != nil {
		if route, found := w.sender.Unlinked(); found {
			return fromCatalogue(CodeRouteDetached.Error(), map[string]any{"route": route,
				"reason": "the daemon's link message left it out"})
		}
	}
	return nil
}

// linked maps what a link message brings, and closes its descriptors.
func (w *Worker) linked(message wire.Link, descriptors []int) error {
	defer wire.CloseAll(descriptors)
	rest := descriptors
	for i, route := range message.Outputs {
		epoch, named := uint64(0), len(message.Epochs) > 0
		if named {
			if len(message.Epochs) != len(message.Outputs) {
				return fromCatalogue(CodeMalformedMessage.Error(), map[string]any{"type": "link", "reason": "epochs do not fit outputs"})
			}
			epoch = message.Epochs[i]
		}
		credit, line := rest[0], rest[1]
		rest = rest[2:]
		if w.sender == nil {
			return fromCatalogue(CodeRouteUnknown.Error(), map[string]any{"route": route, "node": w.wired.Node})
		}
		if err := w.sender.Link(route, epoch, named, credit, line); err != nil {
			return err
		}
	}
	for _, input := range message.Inputs {
		ring, line := rest[0], rest[1]
		segments := rest[2 : 2+len(input.Segments)]
		rest = rest[2+len(input.Segments):]
		predecessor := -1
		if input.Predecessor {
			predecessor, rest = rest[0], rest[1:]
		}
		if err := w.receiver.Link(input.Route, input.Epoch, ring, line, input.Segments, segments, predecessor); err != nil {
			return err
		}
	}
	return nil
}

// ready says so, and has the reader read from now on.
func (w *Worker) ready() error {
	if w.wired.OnDaemonLoss == "survive" {
		made, err := newReattachment(w)
		if err != nil {
			return err
		}
		w.reattach = made
	} else {
		dieWithParent()
	}
	if err := w.link.send(wire.Ready{}); err != nil {
		return err
	}
	w.mu.Lock()
	w.read = make(chan struct{})
	w.mu.Unlock()
	go w.readAll()
	return nil
}

func (w *Worker) awaitStart(ctx context.Context) error {
	for {
		ticket := w.bell.Enter()
		w.mail.mu.Lock()
		start, drained, lost := w.mail.start, w.mail.drained, w.mail.lost
		w.mail.mu.Unlock()
		switch {
		case lost != nil:
			return lost
		case start != nil:
			w.mu.Lock()
			w.handover = start.Handover
			w.mu.Unlock()
			return nil
		case drained:
			return ErrDrained
		}
		if _, err := w.bell.Sleep(ctx, ticket, shm.Forever); err != nil {
			return err
		}
	}
}

// lose: the worker can go no further. Everything that waits returns the reason.
func (w *Worker) lose(reason error) {
	w.mail.mu.Lock()
	if w.mail.lost == nil {
		w.mail.lost = reason
	}
	reason = w.mail.lost
	w.mail.changed()
	w.mail.mu.Unlock()
	w.stopping()
	w.abandonRequests()
	sender, receiver, bell, read := w.made()
	if receiver != nil {
		receiver.Fail(reason)
	}
	if sender != nil {
		sender.Fail(reason)
	}
	if read == nil { // nobody but the starting goroutine reads
		w.link.close()
	}
	if bell != nil {
		bell.Ring()
	}
}

// Finish ends the node as one that has done its work: OnStop is called, the outputs end, the daemon is told the result,
// which is what OnStop returns, or else result. With a predecessor's leave the routes stay open for the successor.
func (w *Worker) Finish(ctx context.Context, result any) error {
	if w.node.OnStop != nil {
		w.enter("stop")
		made, err := w.node.OnStop(ctx, w)
		if err != nil {
			return err
		}
		if made != nil {
			result = made
		}
	}
	w.tellDropped(true)
	_, leaves, _ := w.mail.state()
	if !leaves && w.sender != nil {
		w.sender.CloseRoutes()
	}
	w.enter("stop")
	finished := wire.Finished{Result: result}
	if _, err := wire.Encode(finished, w.link.maxFrame()); err != nil {
		if leaves {
			return fmt.Errorf("what is left to the successor cannot be sent: %w", of(err))
		}
		w.Log().Warn("the result cannot be sent, and is shown as text", "reason", err.Error())
		finished.Result = map[string]any{"unsendable": err.Error(), "text": clip(fmt.Sprint(result), 4096)}
	}
	w.mu.Lock()
	w.finished = &finished
	err := w.link.send(finished)
	w.mu.Unlock()
	if err == nil && w.reattach != nil {
		err = w.reattach.settle(ctx)
	}
	return err
}

// Fault tells the daemon that the node failed, in the callback that ran last. A non-zero exit status has to follow.
func (w *Worker) Fault(reason error, traceback string) error {
	return w.link.send(wire.Fault{Phase: *w.phase.Load(), Error: clip(errorName(reason), 256),
		Message: clip(reason.Error(), 4096), Traceback: clipHead(traceback, 64<<10)})
}

// Close gives back every mapping, descriptor and goroutine. After Finish the peers see that this end has gone; otherwise
// they wait for a successor, or for word that there is none. Frames that are held stay readable. Idempotent.
func (w *Worker) Close() {
	if w.ending.Swap(true) {
		return
	}
	w.stopping()
	if w.reattach != nil {
		w.reattach.giveUp()
	}
	if w.read != nil {
		w.link.mu.Lock()
		_ = w.link.conn.SetReadDeadline(longAgo)
		w.link.mu.Unlock()
		<-w.read
	}
	_, leaves, _ := w.mail.state()
	orderly := w.finished != nil && !leaves
	if w.receiver != nil {
		if orderly {
			w.receiver.Close()
		} else {
			w.receiver.Abandon()
		}
	}
	if w.sender != nil {
		w.sender.Close()
	}
	w.link.close()
	w.link.conn.Discard()
	if w.reattach != nil {
		w.reattach.close()
	}
	if w.bell != nil {
		w.bell.Close()
	}
}

func clip(text string, limit int) string {
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return text
}

// clipHead keeps the end of a text.
func clipHead(text string, limit int) string {
	if len(text) > limit {
		return text[len(text)-limit:]
	}
	return text
}

// diesWith is the signal that this process was to get at its parent's end. It belongs to the main thread, on which
// only package initialisation is sure to run: so it is taken away there, in a worker, and asked for again by dieWithParent
// where the worker is not to survive. (A worker that is not told to survive also ends when its control socket does.)
var diesWith = func() int32 {
	var signal int32
	if os.Getenv(fdVariable) != "" && prctlGet(&signal) == nil && signal != 0 {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)
	}
	return signal
}()

func dieWithParent() {
	if diesWith != 0 {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(diesWith), 0, 0, 0)
	}
}
