//go:build linux && (amd64 || arm64)

package shm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

// consume takes until the stream ends, and checks that every number comes once and in order.
func consume(t *testing.T, p *pair, batch int, each func(f *Frame)) <-chan uint64 {
	done := make(chan uint64, 1)
	go func() {
		frames := make([]Frame, batch)
		seen := map[string]uint64{}
		var total uint64
		for {
			count, err := p.receiver.Take(context.Background(), frames)
			if err == ErrRung {
				continue
			}
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				done <- total
				return
			}
			for i := range frames[:count] {
				route, _, _ := frames[i].Route()
				if n := binary.LittleEndian.Uint64(frames[i].Data); n != seen[route] {
					t.Errorf("%s: %d instead of %d", route, n, seen[route])
				}
				seen[route]++
				total++
				if each != nil {
					each(&frames[i])
				}
			}
			p.receiver.ReleaseAll(frames[:count])
		}
	}()
	return done
}

func numbered(n uint64, size int) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, n), make([]byte, size)...)
}

func TestAProducerAndAConsumerThatWaitForEachOtherLoseNothing(t *testing.T) {
	const count = 20_000
	for _, credits := range []uint32{1, 2, 64} {
		p := newPair(t, options{credits: credits, low: max(credits/2, 0), policies: []Policy{Block, Block}})
		done := consume(t, p, 7, nil)
		for n := range uint64(count) {
			if err := p.sender.Send(context.Background(), "", numbered(n, int(n%100)), Tags{}, true); err != nil {
				t.Fatal(err)
			}
		}
		p.sender.CloseRoutes()
		if total := <-done; total != 2*count {
			t.Errorf("%d of %d frames", total, 2*count)
		}
	}
}

func TestManyGoroutinesMaySendReserveAndRelease(t *testing.T) {
	p := newPair(t, options{credits: 16})
	var seen sync.Map
	work := make(chan Frame, 16)
	var workers, senders sync.WaitGroup
	for range 3 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for frame := range work {
				seen.Store(binary.LittleEndian.Uint64(frame.Data), true)
				frame.Release()
			}
		}()
	}
	go func() {
		defer close(work)
		var one [1]Frame
		for {
			count, err := p.receiver.Take(context.Background(), one[:])
			if count > 0 {
				work <- one[0]
			} else if err != ErrRung {
				return
			}
		}
	}()
	for i := range uint64(4) {
		senders.Add(1)
		go func() {
			defer senders.Done()
			for n := range uint64(1000) {
				data := numbered(i*1000+n, 0)
				if n%2 == 0 {
					if err := p.sender.Send(context.Background(), "", data, Tags{}, true); err != nil {
						t.Error(err)
					}
					continue
				}
				loan, room, err := p.sender.Reserve(context.Background(), "", 8, true)
				if err != nil {
					t.Error(err)
					return
				}
				if n%10 == 9 {
					loan.Cancel()
					if err := loan.Commit(8, Tags{}); err != ErrLoanOver {
						t.Error(err)
					}
					seen.Store(i*1000+n, true)
					continue
				}
				copy(room, data)
				if err := loan.Commit(8, Tags{}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	senders.Wait()
	p.sender.CloseRoutes()
	workers.Wait()
	total := 0
	seen.Range(func(any, any) bool { total++; return true })
	if total != 4000 {
		t.Errorf("%d of 4000 numbers", total)
	}
}

func TestTheEndOfAContextEndsWaitingAtBothEnds(t *testing.T) {
	p := newPair(t, options{credits: 1})
	ctx, cancel := context.WithCancel(context.Background())
	waiting := make(chan error, 4)
	for range 2 {
		go func() {
			err := ErrRung
			for err == ErrRung { // joining the ends has rung
				_, err = p.receiver.Take(ctx, make([]Frame, 1))
			}
			waiting <- err
		}()
	}
	p.eventually(func() bool { return p.receiver.sleepers == 2 }, &p.receiver.mu)
	cancel()
	for range 2 {
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	p.send([]byte("x"), Tags{})
	late, end := context.WithTimeout(context.Background(), time.Millisecond)
	defer end()
	if err := p.sender.Send(late, "", []byte("y"), Tags{}, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := p.sender.Send(context.Background(), "", []byte("y"), Tags{}, false); !errors.Is(err, ErrWouldBlock) {
		t.Error(err)
	}
	frame := p.poll()
	frame.Release()
	p.send([]byte("z"), Tags{})
}

// eventually waits for what another goroutine is about to do.
func (p *pair) eventually(holds func() bool, mu *sync.Mutex) {
	p.t.Helper()
	for {
		mu.Lock()
		now := holds()
		mu.Unlock()
		if now {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAConsumerThatDetachesWakesItsProducer(t *testing.T) {
	p := newPair(t, options{credits: 1})
	p.send([]byte("x"), Tags{})
	done := make(chan error, 1)
	go func() { done <- p.sender.Send(context.Background(), "", []byte("y"), Tags{}, true) }()
	p.eventually(func() bool { return p.sender.sleepers == 1 }, &p.sender.mu)
	p.receiver.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestASegmentIsNotUsedBeforeItsConsumersHaveMappedIt(t *testing.T) {
	p := newPair(t, options{byHand: true, limit: 1 << 22})
	done := make(chan error, 1)
	go func() { done <- p.sender.Send(context.Background(), "", make([]byte, 1<<20), Tags{}, true) }()
	index := <-p.grown
	select {
	case err := <-done:
		t.Fatalf("it was sent before: %v", err)
	default:
	}
	if err := p.sender.Confirm(uint64(index)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	frame := p.poll()
	if len(frame.Data) != 1<<20 {
		t.Errorf("%d bytes", len(frame.Data))
	}
	frame.Release()
	if err := p.sender.Send(context.Background(), "", make([]byte, 1<<23), Tags{}, true); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

func TestMemoryThatIsNotNeededGoesBackAndItsIndexIsUsedAgain(t *testing.T) {
	p := newPair(t, options{limit: 1 << 24})
	p.send(make([]byte, 1<<20), Tags{})
	frame := p.poll()
	if given := p.sender.Shrink(0); given == 0 || len(p.dropped) != 1 {
		t.Fatalf("%d bytes, %v: the small segment goes, the one in use stays", given, p.dropped)
	}
	frame.Release()
	size, _ := p.sender.Size()
	if p.sender.Shrink(0); len(p.dropped) != 2 {
		t.Fatalf("%v of %d bytes", p.dropped, size)
	}
	for _, index := range p.dropped {
		if there, err := p.receiver.DropSegment(routeName(0), 0, uint64(index)); !there || err != nil {
			t.Fatal(err)
		}
		if err := p.sender.Forget(uint64(index)); err != nil {
			t.Fatal(err)
		}
	}
	p.send(make([]byte, 1<<19), Tags{})
	again := p.poll()
	if again.segment != 1 {
		t.Errorf("segment %d", again.segment-1)
	}
}

func TestASegmentThatIsDroppedWhileAFrameOfItIsHeldCostsTheProducerItsRoute(t *testing.T) {
	p := newPair(t, options{})
	p.send([]byte("x"), Tags{})
	frame := p.poll()
	if there, err := p.receiver.DropSegment(routeName(0), 0, 0); there || err != nil {
		t.Fatal(there, err)
	}
	if string(frame.Data) != "x" {
		t.Error("the memory must stay under its reader")
	}
	wantFault(t, p, "while a frame of it is held")
}

func TestFramesOfPolicyLatestAreWholeOrLostAndCounted(t *testing.T) {
	p := newPair(t, options{credits: 4, policies: []Policy{Latest}, limit: 1 << 20, first: 1 << 20})
	const count = 3000
	done := make(chan uint64, 1)
	go func() {
		var one [1]Frame
		var seen, before uint64
		for {
			n, err := p.receiver.Take(context.Background(), one[:])
			if n == 0 {
				if err == nil || err == ErrRung {
					continue
				}
				done <- seen
				return
			}
			f := one[0]
			if bytes.Count(f.Data, f.Data[:1]) != 9000 {
				t.Error("a torn frame was handed out")
			}
			if f.Seq < before {
				t.Errorf("frame %d after %d", f.Seq, before)
			}
			before = f.Seq
			seen++
			f.Release()
		}
	}()
	for n := range count {
		if err := p.sender.Send(context.Background(), "", bytes.Repeat([]byte{byte(n)}, 9000), Tags{}, true); err != nil {
			t.Fatal(err)
		}
	}
	p.sender.CloseRoutes()
	seen := <-done
	if lost := p.receiver.Lost(); seen+lost != count {
		t.Errorf("%d seen and %d lost of %d", seen, lost, count)
	}
}

func TestAnInputOfAHigherClassGoesFirstAndTheLowestIsNotStarved(t *testing.T) {
	p := newPair(t, options{credits: 64, policies: []Policy{Block, Block}, classes: []string{"best-effort", "realtime"}})
	for range 40 {
		p.send([]byte("x"), Tags{})
	}
	var order []byte
	for range 18 {
		frame := p.poll()
		route, _, _ := frame.Route()
		order = append(order, route[1])
		frame.Release()
	}
	if string(order) != "111111110111111110" {
		t.Errorf("%s", order)
	}
}

func TestTheEarliestDeadlineGoesFirstWithinAClass(t *testing.T) {
	p := newPair(t, options{credits: 8, policies: []Policy{Block, Block}})
	ctx := context.Background()
	for i, due := range []uint64{300, 100, 200} {
		to := routeName(i % 2)
		if err := p.sender.Send(ctx, to, []byte{byte(due / 100)}, Tags{DeadlineNS: due}, false); err != nil {
			t.Fatal(err)
		}
	}
	first := p.poll() // shows that there are deadlines
	rest := []byte{first.Data[0], p.poll().Data[0], p.poll().Data[0]}
	if !bytes.Equal(rest, []byte{3, 1, 2}) {
		t.Errorf("%v", rest)
	}
}

func TestARouteThatKeepsAFrameWaitingForTooLongIsGivenUp(t *testing.T) {
	p := newPair(t, options{credits: 2, policies: []Policy{Block}, limitNS: uint64(5 * time.Millisecond)})
	var err error
	for err == nil {
		err = p.sender.Send(context.Background(), "", []byte("x"), Tags{}, true)
	}
	if !errors.Is(err, ErrClosed) || len(p.gaveUp) != 1 {
		t.Errorf("%v, %v", err, p.gaveUp)
	}
	if p.producer(0).ring.own(atGaveUpAfter) < uint64(5*time.Millisecond) {
		t.Error("it was given up too early")
	}
}
