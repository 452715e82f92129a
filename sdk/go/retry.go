package chronetix

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"chronetix.local/sdk/go/internal/wire"
)

// maxLetter bounds a dead letter's payload; of a larger frame only the head is sent.
const maxLetter = 1 << 20

// handle gives one frame to OnFrame. With `qos.retry` a frame that fails is tried again, then set aside: it goes to the
// flow's dead-letter topic, or is dropped; either way the daemon is told, and the node goes on.
func (w *Worker) handle(ctx context.Context, f *Frame) error {
	retries, _ := w.wired.QoS["retry"].(uint64)
	if retries == 0 {
		return w.node.OnFrame(ctx, w, f)
	}
	attempt := func() error { return guarded(func() error { return w.node.OnFrame(ctx, w, f) }) }
	failed := attempt()
	if failed == nil || notTheFrames(failed) {
		return failed
	}
	for tried := uint64(1); tried <= retries; tried++ {
		if err := w.reason(ctx.Err()); err != nil {
			return err
		}
		err := attempt()
		if err != nil && notTheFrames(err) {
			return err
		}
		if err == nil {
			return w.frameFailed(f, tried+1, failed, "passed")
		}
		failed = err
	}
	outcome := "dropped"
	if topic, _ := w.wired.QoS["dead_letter"].(string); topic != "" {
		outcome = "dead-letter"
		if err := w.deadLetter(topic, f, retries+1, failed); err != nil {
			return err
		}
	}
	return w.frameFailed(f, retries+1, failed, outcome)
}

// notTheFrames: what another attempt would not change, or is not about the frame.
func notTheFrames(err error) bool {
	var fault *PeerFault
	return errors.Is(err, ErrRouteClosed) || errors.As(err, &fault) || errors.Is(err, ErrNoMemory) ||
		errors.Is(err, context.Canceled) || errors.Is(err, ErrDaemonGone) || errors.Is(err, ErrTerminated)
}

func (w *Worker) frameFailed(f *Frame, attempts uint64, reason error, outcome string) error {
	route, _, _ := f.Route()
	return w.link.send(wire.FrameFailed{Route: route, Seq: f.Seq, Attempts: attempts, Error: clip(errorName(reason), 256),
		Outcome: outcome, Message: clip(reason.Error(), 1024)})
}

func errorName(reason error) string {
	var known *Error
	if errors.As(reason, &known) {
		return known.Name
	}
	var panicked *panicError
	if errors.As(reason, &panicked) {
		return "panic"
	}
	return fmt.Sprintf("%T", reason)
}

func (w *Worker) deadLetter(topic string, f *Frame, attempts uint64, reason error) error {
	route, _, contentType := f.Route()
	headers := map[string]string{
		"node": w.wired.Node, "route": route, "seq": strconv.FormatUint(f.Seq, 10),
		"attempts": strconv.FormatUint(attempts, 10), "error": errorName(reason), "message": clip(reason.Error(), 1024),
		"bytes": strconv.Itoa(len(f.Data)),
	}
	payload := f.Data
	if len(payload) > maxLetter {
		headers["payload"], payload = "left out", nil
	}
	return w.Publish(Envelope{Topic: topic, ContentType: contentType, Headers: headers}, payload)
}
