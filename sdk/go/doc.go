// Package chronetix makes a Go program a worker of chronetixd, the supervisor of dataflows on one machine: one node of a
// flow, which takes frames from the nodes before it and sends frames to those behind it, over shared memory and without
// a copy that is not asked for.
//
//	func main() {
//		chronetix.Main(chronetix.Map(func(ctx context.Context, w *chronetix.Worker, f *chronetix.Frame) ([]byte, error) {
//			return bytes.ToUpper(f.Data), nil
//		}))
//	}
//
// Source, Map and Sink make a Node of one function. A Node with callbacks does more: ticks, messages of the event bus,
// several outputs, frames that are kept. A Worker is the way with a loop of one's own.
//
// The package is pure Go, for Linux 5.15 or later on amd64 and arm64. It speaks protocol version 1 (protocol/PROTOCOL.md)
// and ABI 1 (shm/SPEC.md) of the same release. Peers and their memory are hostile until checked: a peer that breaks a
// rule loses its route, and nothing else.
package chronetix
