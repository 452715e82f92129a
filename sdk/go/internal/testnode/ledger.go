package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	chronetix "chronetix.local/sdk/go"
)

// items sends the numbers from where a predecessor was: as eight bytes; with `pad`, in frames of up to a megabyte.
func items(pause time.Duration, pad bool) chronetix.Node {
	return chronetix.Node{Produce: func(ctx context.Context, w *worker) error {
		var frame [1 << 20]byte
		for n := w.ResumeAfter() + 1; ctx.Err() == nil; n++ {
			binary.LittleEndian.PutUint64(frame[:], n)
			size := uint64(8)
			if pad {
				size += n * 7919 % 1_000_000
			}
			if err := w.Send(ctx, frame[:size]); err != nil {
				return err
			}
			if pause > 0 {
				time.Sleep(pause)
			}
		}
		return nil
	}}
}

func openLedger(w *worker) (*os.File, error) {
	return os.OpenFile(text(w, "ledger"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// ledger writes a line for each frame before it is returned: incarnation, route, number, redelivered.
func ledger() chronetix.Node {
	var file *os.File
	return chronetix.Node{
		OnStart: func(_ context.Context, w *worker) (err error) {
			file, err = openLedger(w)
			return err
		},
		OnFrame: func(_ context.Context, w *worker, f *chronetix.Frame) error {
			route, _, _ := f.Route()
			_, err := fmt.Fprintf(file, "%d %s %d %d\n", w.Config().Incarnation, route, binary.LittleEndian.Uint64(f.Data), mark(f))
			return err
		},
		OnStop: func(context.Context, *worker) (any, error) { return nil, file.Close() },
	}
}

func mark(f *chronetix.Frame) int {
	if f.Redelivered {
		return 1
	}
	return 0
}

// versions, versionMap and versionLedger say which version of a node did what: its parameter `by`.
func versions(ctx context.Context, w *worker) error {
	for n := w.ResumeAfter() + 1; ctx.Err() == nil; n++ {
		if err := w.Send(ctx, fmt.Appendf(nil, "%d s%d", n, number(w, "by", 0))); err != nil {
			return err
		}
	}
	return nil
}

func versionMap() chronetix.Node {
	var count uint64
	return chronetix.Node{
		OnStart: func(_ context.Context, w *worker) error {
			count, _ = w.Handover().(uint64)
			return nil
		},
		OnFrame: func(ctx context.Context, w *worker, f *chronetix.Frame) error {
			count++
			return w.SendOut(ctx, fmt.Appendf(nil, "%s m%d", f.Data, number(w, "by", 0)), chronetix.Out{From: f})
		},
		OnStop: func(context.Context, *worker) (any, error) { return count, nil },
	}
}

func versionLedger() chronetix.Node {
	node := ledger()
	var file *os.File
	node.OnStart = func(_ context.Context, w *worker) (err error) {
		file, err = openLedger(w)
		return err
	}
	node.OnFrame = func(_ context.Context, w *worker, f *chronetix.Frame) error {
		route, _, _ := f.Route()
		_, err := fmt.Fprintf(file, "%s %s %d %d\n", route, f.Data, mark(f), number(w, "by", 0))
		return err
	}
	node.OnStop = func(context.Context, *worker) (any, error) { return nil, file.Close() }
	return node
}
