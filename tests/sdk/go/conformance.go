// Command tested is the worker that the conformance kit checks: it returns each frame on its outputs, if it has any, and
// sends the kit's sequence if it has no inputs.
package main

import (
	"bytes"
	"context"
	"encoding/binary"

	chronetix "chronetix.local/sdk/go"
)

func onFrame(ctx context.Context, w *chronetix.Worker, f *chronetix.Frame) error {
	if len(w.Config().Outputs) == 0 {
		return nil
	}
	return w.SendOut(ctx, f.Data, chronetix.Out{From: f})
}

func produce(ctx context.Context, w *chronetix.Worker) error {
	if len(w.Config().Inputs) > 0 {
		return nil
	}
	size, isNumber := w.Config().Params["size"].(uint64)
	if !isNumber {
		size = 8
	}
	for number := w.ResumeAfter() + 1; ctx.Err() == nil; number++ {
		item := binary.LittleEndian.AppendUint64(nil, number)
		data := bytes.Repeat(item, int(size/8)+1)[:size]
		if err := w.Send(context.WithoutCancel(ctx), data); err != nil {
			return err
		}
	}
	return nil
}

func main() { chronetix.Main(chronetix.Node{OnFrame: onFrame, Produce: produce}) }
