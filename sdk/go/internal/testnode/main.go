// Command testnode is the worker of the end-to-end tests in tests/sdk/go: its parameter `role` says which node it is.
// Frames are numbered patterns, so that every byte of every frame is checked.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	chronetix "chronetix.local/sdk/go"
)

type worker = chronetix.Worker

// block is 256 bytes that go on where the last one ended, for every start.
var block = func() (b [512]byte) {
	for i := range b {
		b[i] = byte(i)
	}
	return b
}()

// pattern writes frame n.
func pattern(n uint64, into []byte) {
	start := int(n % 256)
	for at := 0; at < len(into); at += 256 {
		copy(into[at:], block[start:start+256])
	}
}

func isPattern(n uint64, data []byte) bool {
	start := int(n % 256)
	for at := 0; at < len(data); at += 256 {
		end := min(at+256, len(data))
		if !bytes.Equal(data[at:end], block[start:start+end-at]) {
			return false
		}
	}
	return true
}

func number(w *worker, name string, missing uint64) uint64 {
	if value, isNumber := w.Config().Params[name].(uint64); isNumber {
		return value
	}
	return missing
}

func text(w *worker, name string) string {
	value, _ := w.Config().Params[name].(string)
	return value
}

func sizes(w *worker) []uint64 {
	var found []uint64
	list, _ := w.Config().Params["sizes"].([]any)
	for _, each := range list {
		found = append(found, each.(uint64))
	}
	if found == nil {
		found = []uint64{number(w, "size", 64)}
	}
	return found
}

// source sends `count` frames (0: without an end) whose sizes go round; in place, or as copies.
func source(ctx context.Context, w *worker) error {
	count, lengths := number(w, "count", 0), sizes(w)
	buffer := make([]byte, 0)
	for n := w.ResumeAfter(); count == 0 || n < count; n++ {
		if ctx.Err() != nil {
			return nil
		}
		size := int(lengths[n%uint64(len(lengths))])
		if n%2 == 0 {
			loan, err := w.Reserve(ctx, size, chronetix.Out{})
			if err != nil {
				return err
			}
			pattern(n, loan.Data)
			if err := loan.Commit(); err != nil {
				return err
			}
			continue
		}
		if cap(buffer) < size {
			buffer = make([]byte, size)
		}
		pattern(n, buffer[:size])
		if err := w.Send(ctx, buffer[:size]); err != nil {
			return err
		}
	}
	return nil
}

// numbered sends `count` frames that begin with their number, many in one step.
func numbered(ctx context.Context, w *worker) error {
	count := number(w, "count", 0)
	const size = 64
	run := make([]byte, 0, 100*size)
	for n := w.ResumeAfter(); count == 0 || n < count; {
		run = run[:0]
		for i := n; i < n+100 && (count == 0 || i < count); i++ {
			run = append(binary.LittleEndian.AppendUint64(run, i), make([]byte, size-8)...)
		}
		sent, err := w.SendMany(ctx, run, size, chronetix.Out{})
		if err != nil {
			return err
		}
		n += uint64(sent)
	}
	return nil
}

// check counts what is lost, repeated, out of order or changed, for each route.
type check struct {
	mu     sync.Mutex
	seen   map[string]uint64
	faults []string
	again  uint64
	gaps   uint64
}

func (c *check) take(w *worker, f *chronetix.Frame, isRight func(n uint64, data []byte) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	route, _, _ := f.Route()
	if f.Redelivered && f.Seq < c.seen[route] {
		c.again++
		return
	}
	if len(c.faults) < 10 && !isRight(c.seen[route], f.Data) {
		c.faults = append(c.faults, fmt.Sprintf("%s: frame %d of %d bytes", route, c.seen[route], len(f.Data)))
	}
	c.seen[route]++
}

func (c *check) result() map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	var total uint64
	for _, count := range c.seen {
		total += count
	}
	faults := []any{}
	for _, each := range c.faults {
		faults = append(faults, each)
	}
	return map[string]any{"seen": total, "faults": faults, "again": c.again}
}

func sink(numbers bool) chronetix.Node {
	c := &check{seen: map[string]uint64{}}
	return chronetix.Node{
		OnStart: func(_ context.Context, w *worker) error {
			if before, isMap := w.Handover().(map[string]any); isMap {
				seen, _ := before["seen"].(uint64)
				c.seen[w.Config().Inputs[0].Route] = seen
			}
			return nil
		},
		OnFrame: func(_ context.Context, w *worker, f *chronetix.Frame) error {
			c.take(w, f, func(n uint64, data []byte) bool {
				if numbers {
					return len(data) >= 8 && binary.LittleEndian.Uint64(data) == n
				}
				return isPattern(n, data)
			})
			time.Sleep(time.Duration(number(w, "pause_us", 0)) * time.Microsecond)
			return nil
		},
		OnStop: func(context.Context, *worker) (any, error) { return c.result(), nil },
	}
}

// last keeps the last number: frames of policy latest and drop_newest may be missing, and never out of order.
func last() chronetix.Node {
	var seen, before uint64
	faults := []any{}
	return chronetix.Node{
		OnFrame: func(_ context.Context, w *worker, f *chronetix.Frame) error {
			n := binary.LittleEndian.Uint64(f.Data)
			if seen > 0 && n <= before {
				faults = append(faults, fmt.Sprintf("%d after %d", n, before))
			}
			before = n
			seen++
			time.Sleep(time.Duration(number(w, "pause_us", 0)) * time.Microsecond)
			return nil
		},
		OnStop: func(_ context.Context, w *worker) (any, error) {
			return map[string]any{"seen": seen, "last": before, "lost": w.Lost(), "faults": faults}, nil
		},
	}
}

// batches takes many frames at a time with a loop of its own, and gives them back together.
func batches() error {
	w, err := chronetix.Inherited(chronetix.Node{})
	if err != nil {
		return err
	}
	defer w.Close()
	ctx := context.Background()
	if err := w.Start(ctx); err != nil {
		return err
	}
	frames := make([]chronetix.Frame, 64)
	var seen, most uint64
	for {
		count, err := w.TakeMany(ctx, frames)
		if count == 0 {
			break
		}
		if err != nil {
			return err
		}
		for i := range frames[:count] {
			if binary.LittleEndian.Uint64(frames[i].Data) != seen {
				return fmt.Errorf("frame %d is %d", seen, binary.LittleEndian.Uint64(frames[i].Data))
			}
			seen++
		}
		most = max(most, uint64(count))
		chronetix.Release(frames[:count])
	}
	return w.Finish(ctx, map[string]any{"seen": seen, "most": most})
}

func bus() chronetix.Node {
	var ticks uint64
	done := map[string]any{}
	return chronetix.Node{
		OnStart: func(ctx context.Context, w *worker) error {
			if text(w, "ask") == "" {
				return w.Subscribe("late")
			}
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			reply, err := w.Request(ctx, chronetix.Envelope{Topic: text(w, "ask"), ContentType: "text/plain"}, []byte("ping"))
			if err != nil {
				return err
			}
			done["reply"], done["type"] = string(reply.Payload), reply.ContentType
			_, err = w.Request(ctx, chronetix.Envelope{Topic: "nobody"}, nil)
			var failed *chronetix.RequestError
			if !errors.As(err, &failed) {
				return fmt.Errorf("a request to nobody: %v", err)
			}
			done["nobody"] = failed.Reason
			return w.Publish(chronetix.Envelope{Topic: "late", ContentType: "text/plain", Headers: map[string]string{"a": "b"}}, []byte("news"))
		},
		OnMessage: func(_ context.Context, w *worker, m *chronetix.Message) error {
			if m.CorrID != "" {
				return m.Reply(append([]byte("pong to "), m.Payload...), "text/plain")
			}
			w.Log().Info("heard", "topic", m.Topic, "payload", string(m.Payload), "header", m.Headers["a"], "from", m.Src)
			return nil
		},
		OnTick: func(_ context.Context, w *worker, t chronetix.Tick) error {
			if ticks += t.Missed + 1; ticks >= 3 {
				w.Log().Info("ticked", "timer", t.ID)
			}
			return nil
		},
		OnStop: func(context.Context, *worker) (any, error) { return done, nil },
	}
}

// values sends and checks what a content type carries.
func values() chronetix.Node {
	type row struct {
		N    int    `json:"n" cbor:"n"`
		Name string `json:"name" cbor:"name"`
	}
	var heard []any
	return chronetix.Node{
		Produce: func(ctx context.Context, w *worker) error {
			if len(w.Config().Outputs) == 0 {
				return nil
			}
			for n := range 3 {
				out := chronetix.Out{}
				if n == 2 {
					out.Meta, out.StampNS = map[string]any{"camera": 3}, 77
				}
				if err := w.SendValue(ctx, row{n, "né"}, out); err != nil {
					return err
				}
			}
			return nil
		},
		OnFrame: func(_ context.Context, _ *worker, f *chronetix.Frame) error {
			var found row
			if err := chronetix.Decode(f, &found); err != nil {
				return err
			}
			heard = append(heard, fmt.Sprintf("%d %s %d %x", found.N, found.Name, f.StampNS, f.Meta))
			return nil
		},
		OnStop: func(context.Context, *worker) (any, error) { return heard, nil },
	}
}

func node(role string) chronetix.Node {
	switch role {
	case "source":
		return chronetix.Node{Produce: source}
	case "numbered":
		return chronetix.Node{Produce: numbered}
	case "items":
		return items(0, false)
	case "paced":
		return items(200*time.Microsecond, false)
	case "growing":
		return items(0, true)
	case "ledger":
		return ledger()
	case "versions":
		return chronetix.Node{Produce: versions}
	case "versionmap":
		return versionMap()
	case "versionledger":
		return versionLedger()
	case "map", "forward":
		return chronetix.Map(func(_ context.Context, w *worker, f *chronetix.Frame) ([]byte, error) {
			return f.Data[:len(f.Data):len(f.Data)], nil
		})
	case "prints":
		return chronetix.Map(func(_ context.Context, w *worker, f *chronetix.Frame) ([]byte, error) {
			for line := range 2400 { // more than a pipe holds, by lines
				fmt.Printf("%0100d %025d\n", binary.LittleEndian.Uint64(f.Data), line)
			}
			return f.Data[:len(f.Data):len(f.Data)], nil
		})
	case "sink":
		return sink(false)
	case "counts":
		return sink(true)
	case "last":
		return last()
	case "bus":
		return bus()
	case "values":
		return values()
	case "fails":
		return chronetix.Sink(func(context.Context, *worker, *chronetix.Frame) error {
			return errors.New("no such thing as frame zero")
		})
	case "panics":
		return chronetix.Sink(func(context.Context, *worker, *chronetix.Frame) error { panic("frame zero") })
	case "odd":
		return chronetix.Sink(func(_ context.Context, _ *worker, f *chronetix.Frame) error {
			if f.Seq%2 == 1 {
				return errors.New("an odd frame")
			}
			return nil
		})
	case "bursts":
		return bursts()
	case "small":
		return small()
	case "keeps":
		return keeps()
	case "finishes":
		return chronetix.Sink(func(_ context.Context, w *worker, f *chronetix.Frame) error {
			if f.Seq == 9 {
				w.Stop()
			}
			return nil
		})
	}
	panic("no role is called " + role)
}

func main() {
	role := os.Args[0][bytes.LastIndexByte([]byte(os.Args[0]), '/')+1:]
	if role == "batches" {
		os.Exit(chronetix.ExitCode(batches()))
	}
	if len(os.Args) == 5 && os.Args[1] == "attach" {
		w, err := chronetix.Attach(context.Background(), os.Args[2], os.Args[3], os.Args[4], node(role))
		if err == nil {
			err = w.Run(context.Background())
			w.Close()
		}
		os.Exit(chronetix.ExitCode(err))
	}
	chronetix.Main(node(role))
}
