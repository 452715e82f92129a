// Command map sends each frame on in capitals.
package main

import (
	"bytes"
	"context"

	chronetix "chronetix.local/sdk/go"
)

func main() {
	chronetix.Main(chronetix.Map(func(_ context.Context, _ *chronetix.Worker, f *chronetix.Frame) ([]byte, error) {
		return bytes.ToUpper(f.Data), nil
	}))
}
