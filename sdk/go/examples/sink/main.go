// Command sink counts frames and bytes; its result is in `chronetixctl describe`.
package main

import (
	"context"

	chronetix "chronetix.local/sdk/go"
)

func main() {
	var frames, bytes uint64
	sink := chronetix.Sink(func(_ context.Context, _ *chronetix.Worker, f *chronetix.Frame) error {
		frames++
		bytes += uint64(len(f.Data))
		return nil
	})
	sink.OnStop = func(context.Context, *chronetix.Worker) (any, error) {
		return map[string]uint64{"frames": frames, "bytes": bytes}, nil
	}
	chronetix.Main(sink)
}
