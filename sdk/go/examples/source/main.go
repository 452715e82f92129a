// Command source sends as many lines of text as its parameter `count` says.
package main

import (
	"context"
	"fmt"
	"iter"

	chronetix "chronetix.local/sdk/go"
)

func lines(_ context.Context, w *chronetix.Worker) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		count, _ := w.Config().Params["count"].(uint64)
		for i := w.ResumeAfter(); i < count; i++ {
			if !yield(fmt.Appendf(nil, "line %d", i+1), nil) {
				return
			}
		}
	}
}

func main() { chronetix.Main(chronetix.Source(lines)) }
