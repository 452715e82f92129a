package main

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	chronetix "chronetix.local/sdk/go"
)

const smallArenas = 1 << 20

// arenas is how many bytes of arenas this process maps.
func arenas() (total uint64) {
	text, _ := os.ReadFile("/proc/self/maps")
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.Contains(line, "memfd:chronetix-arena") {
			continue
		}
		from, rest, _ := strings.Cut(line, "-")
		to, _, _ := strings.Cut(rest, " ")
		low, _ := strconv.ParseUint(from, 16, 64)
		high, _ := strconv.ParseUint(to, 16, 64)
		total += high - low
	}
	return total
}

func untilSmall() bool {
	for arenas() >= smallArenas {
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// bursts sends some large frames, and waits until the memory went back.
func bursts() chronetix.Node {
	var sizes []any
	return chronetix.Node{
		Produce: func(ctx context.Context, w *worker) error {
			for range 6 {
				if err := w.Send(ctx, make([]byte, 4<<20)); err != nil {
					return err
				}
			}
			sizes = append(sizes, arenas() > 4<<20, untilSmall())
			return nil
		},
		OnStop: func(context.Context, *worker) (any, error) { return sizes, nil },
	}
}

// small counts the large frames, and waits until it maps no more of their memory.
func small() chronetix.Node {
	var frames uint64
	node := chronetix.Sink(func(_ context.Context, _ *worker, f *chronetix.Frame) error {
		if len(f.Data) == 4<<20 {
			frames++
		}
		return nil
	})
	node.OnStop = func(context.Context, *worker) (any, error) { return []any{frames, untilSmall()}, nil }
	return node
}

// keeps hands its frames to other goroutines, which release them in any order.
func keeps() chronetix.Node {
	var working sync.WaitGroup
	queue := make(chan chronetix.Frame, 8)
	var mu sync.Mutex
	var seen uint64
	return chronetix.Node{
		KeepFrames: true,
		OnStart: func(context.Context, *worker) error {
			for range 4 {
				working.Add(1)
				go func() {
					defer working.Done()
					for frame := range queue {
						mu.Lock()
						seen++
						mu.Unlock()
						frame.Release()
						frame.Release() // a second time is nothing
					}
				}()
			}
			return nil
		},
		OnFrame: func(_ context.Context, _ *worker, f *chronetix.Frame) error {
			queue <- *f
			return nil
		},
		OnStop: func(context.Context, *worker) (any, error) {
			close(queue)
			working.Wait()
			return seen, nil
		},
	}
}
