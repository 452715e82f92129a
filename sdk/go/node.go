package chronetix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// A Node is what a worker does. Every callback may be nil. OnFrame, OnTick and OnMessage are called by one goroutine, one
// after another; Produce runs beside them in another one. The contexts end when the worker has to stop at once; that of
// Produce also when the node is told to end.
type Node struct {
	// Init prepares the node before any frame flows, also while a predecessor still runs.
	Init func(ctx context.Context, w *Worker) error
	// OnStart is called when the consumers of this node have started, before its first frame.
	OnStart func(ctx context.Context, w *Worker) error
	// Produce makes a source's frames and sends them. It returns at its end, or soon after its context has ended.
	Produce func(ctx context.Context, w *Worker) error
	// OnFrame handles one frame of an input. The frame is released when it returns, unless KeepFrames is set; f points to
	// memory that is used for the next one, so a frame that is kept is copied (*f).
	OnFrame func(ctx context.Context, w *Worker, f *Frame) error
	// KeepFrames: OnFrame, or whoever it hands the frame to, releases it.
	KeepFrames bool
	OnTick     func(ctx context.Context, w *Worker, t Tick) error
	OnMessage  func(ctx context.Context, w *Worker, m *Message) error
	// OnStop is called at the end, before the outputs are closed. What it returns is the node's result.
	OnStop func(ctx context.Context, w *Worker) (result any, err error)
}

// Source is a node that sends each item of a sequence to every output. An error that is yielded fails the node. The
// sequence is left when the node is told to end.
func Source(items func(ctx context.Context, w *Worker) iter.Seq2[[]byte, error]) Node {
	return Node{Produce: func(ctx context.Context, w *Worker) error {
		for data, err := range items(ctx, w) {
			if err != nil {
				return err
			}
			// An item that was made is sent, also at the end: its consumers go on until then.
			if err := w.Send(context.WithoutCancel(ctx), data); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
		}
		return nil
	}}
}

// Map is a node that sends what it makes of each frame to every output; nil is not sent, an empty slice is.
func Map(transform func(ctx context.Context, w *Worker, f *Frame) ([]byte, error)) Node {
	return Node{OnFrame: func(ctx context.Context, w *Worker, f *Frame) error {
		data, err := transform(ctx, w, f)
		if err != nil || data == nil {
			return err
		}
		return w.SendOut(ctx, data, Out{From: f})
	}}
}

// Sink is a node that takes each frame.
func Sink(consume func(ctx context.Context, w *Worker, f *Frame) error) Node {
	return Node{OnFrame: consume}
}

// The exit codes of a worker.
const (
	exitFailed     = 1
	exitDaemonGone = 70
	exitTerminated = 143
)

// ErrTerminated: the worker was told to stop at once, by SIGTERM or SIGINT.
var ErrTerminated = errors.New("stopped by a signal")

// Main runs node as this program's worker, and ends the process. SIGTERM and SIGINT end it once the present callback has
// returned; a second signal ends it at once.
func Main(node Node) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-signals
		cancel(ErrTerminated)
		<-signals
		os.Exit(exitTerminated)
	}()
	os.Exit(ExitCode(Run(ctx, node)))
}

// ExitCode is the exit status that belongs to what Run returns. The daemon tells a node that failed from one that ended
// as it was told to by it.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrDaemonGone):
		fmt.Fprintf(os.Stderr, "chronetix worker: %v; stopping\n", err)
		return exitDaemonGone
	case errors.Is(err, ErrTerminated), errors.Is(err, ErrDrained), errors.Is(err, context.Canceled):
		return exitTerminated
	}
	fmt.Fprintf(os.Stderr, "chronetix worker: %v\n", err)
	return exitFailed
}

// Run runs node as this program's worker, from the inherited control socket until the node has finished. What fails it is
// told to the daemon and returned, a panic of a callback included. Exit with ExitCode of it.
func Run(ctx context.Context, node Node) error {
	w, err := Inherited(node)
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Run(ctx)
}

// A panicError is a panic of a callback.
type panicError struct {
	value any
	stack string
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// guarded calls what may panic.
func guarded(callback func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicError{value, string(debug.Stack())}
		}
	}()
	return callback()
}

// Run runs the worker's node from Start to Finish. What fails it is told to the daemon and returned. Close has to follow.
func (w *Worker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		if !w.ending.Load() {
			w.lose(context.Cause(ctx))
		}
	})
	err := guarded(func() error { return w.Start(ctx) })
	if err == nil {
		err = guarded(func() error { return w.loop(ctx) })
		if closed := errors.Is(err, ErrRouteClosed); closed {
			w.Log().Info("the consumers have closed their routes, this node ends")
			err = nil
		}
		if err == nil {
			err = guarded(func() error { return w.Finish(ctx, nil) })
		} else if w.interrupted(err) && w.node.OnStop != nil {
			_ = guarded(func() error { _, err := w.node.OnStop(ctx, w); return err })
		}
	}
	stop()
	if err == nil {
		return nil
	}
	if err = w.reason(err); !w.interrupted(err) {
		w.report(err)
	}
	return err
}

// interrupted tells whether this is no failure of the node.
func (w *Worker) interrupted(err error) bool {
	return errors.Is(err, ErrTerminated) || errors.Is(err, ErrDaemonGone) || errors.Is(err, ErrDrained) ||
		errors.Is(err, context.Canceled)
}

func (w *Worker) report(err error) {
	trace := ""
	var panicked *panicError
	if errors.As(err, &panicked) {
		trace = panicked.stack
		fmt.Fprintf(os.Stderr, "%v\n\n%s", err, trace)
	}
	_ = w.Fault(err, trace)
}

// loop is the node at work.
func (w *Worker) loop(ctx context.Context) error {
	if w.node.OnFrame == nil && len(w.wired.Inputs) > 0 && w.node.Produce == nil {
		return errors.New("the node has inputs, and no OnFrame to take their frames")
	}
	source := make(chan error, 1)
	if w.node.Produce == nil {
		source <- nil
	} else {
		produce, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(w.draining, func() { cancel(ErrDrained) })()
		go func() {
			err := guarded(func() error { return w.node.Produce(produce, w) })
			if errors.Is(err, ErrDrained) || (errors.Is(err, context.Canceled) && w.draining.Err() != nil) {
				err = nil
			}
			if err != nil {
				w.enter("source")
			}
			if err != nil || len(w.wired.Inputs) == 0 {
				w.Stop()
			}
			source <- err
		}()
	}
	err := w.takeAll(ctx)
	if err != nil {
		w.Stop()
	}
	// The source's own error comes first: it is why the frames ended.
	if failed := <-source; failed != nil {
		return failed
	}
	return err
}

func (w *Worker) takeAll(ctx context.Context) error {
	frames := make([]Frame, 1) // used again for each frame: nothing is allocated
	frame := &frames[0]
	for {
		_, err := w.TakeMany(ctx, frames)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if w.node.OnFrame == nil {
			frame.Release()
			continue
		}
		if err := w.handle(ctx, frame); err != nil {
			return err
		}
		if !w.node.KeepFrames {
			frame.Release()
		}
	}
}
