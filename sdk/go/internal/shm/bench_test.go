//go:build linux && (amd64 || arm64)

package shm

import (
	"context"
	"errors"
	"io"
	"testing"
)

func stream(b *testing.B, size, batch int) {
	p := newPair(b, options{credits: 256, first: 1 << 20, limit: 1 << 28})
	ctx := context.Background()
	done := make(chan int)
	go func() {
		frames := make([]Frame, batch)
		total := 0
		for {
			count, err := p.receiver.Take(ctx, frames)
			if errors.Is(err, io.EOF) {
				done <- total
				return
			}
			p.receiver.ReleaseAll(frames[:count])
			total += count
		}
	}()
	data := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := p.sender.Send(ctx, "", data, Tags{}, true); err != nil {
			b.Fatal(err)
		}
	}
	p.sender.CloseRoutes()
	if total := <-done; total != b.N {
		b.Fatalf("%d of %d frames", total, b.N)
	}
}

func BenchmarkStream64(b *testing.B)      { stream(b, 64, 1) }
func BenchmarkStream64Batch(b *testing.B) { stream(b, 64, 64) }
func BenchmarkStream1M(b *testing.B)      { stream(b, 1<<20, 1) }

func BenchmarkTurn64(b *testing.B) {
	p := newPair(b, options{credits: 64})
	ctx := context.Background()
	var frames [1]Frame
	data := make([]byte, 64)
	b.ReportAllocs()
	for range b.N {
		if err := p.sender.Send(ctx, "", data, Tags{}, true); err != nil {
			b.Fatal(err)
		}
		if count, err := p.receiver.Poll(frames[:]); count != 1 {
			b.Fatal(err)
		}
		p.receiver.ReleaseAll(frames[:])
	}
}

func BenchmarkNow(b *testing.B) {
	for range b.N {
		Now()
	}
}
