//go:build linux && (amd64 || arm64)

package shm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestTheHeadersOfARingAndACreditAreTheGoldenOnes(t *testing.T) {
	header := Header{Credits: 100, Watermark: 75, CreditLow: 50, Policy: DropNewest, Epoch: 3, BaseSeq: 1 << 40}
	for kind, name := range map[uint32]string{kindRing: "ring-header.hex", kindCredit: "credit-header.hex"} {
		m, err := makeWords(kind, header)
		if err != nil {
			t.Fatal(err)
		}
		compareDump(t, name, m.data[:4096])
		m.unmap()
	}
}

func TestARingAfterSomeTrafficIsTheGoldenOne(t *testing.T) {
	p := newPair(t, options{credits: 4})
	for i := range uint64(4) {
		p.send(bytes.Repeat([]byte("x"), int(i)*100), Tags{Schema: uint32(i), DeadlineNS: i << 40, Trace: i << 50, InputSeq: i << 60})
	}
	var frames []Frame
	for range 4 {
		frames = append(frames, p.poll())
	}
	for _, frame := range frames[1:] {
		frame.Release()
	}
	for i := range 6 {
		p.send([]byte(fmt.Sprint(i)), Tags{})
		frame := p.poll()
		frame.Release()
	}
	p.sender.CloseRoutes()
	compareDump(t, "ring-traffic.hex", ringWithoutTimes(p.producer(0).ring, 8))
	compareDump(t, "credit-traffic.hex", creditWithoutTimes(p.consumer(0).credit))
}

func TestARingOfPolicyLatestAfterSomeLossesIsTheGoldenOne(t *testing.T) {
	p := newPair(t, options{credits: 4, policies: []Policy{Latest}})
	for i := range 3 {
		p.send(bytes.Repeat([]byte("x"), i*100), Tags{})
	}
	p.poll()
	for i := range 10 {
		p.send([]byte(fmt.Sprint(i)), Tags{})
	}
	var frames [1]Frame
	for {
		if count, err := p.receiver.Poll(frames[:]); count == 0 {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	compareDump(t, "latest-ring.hex", ringWithoutTimes(p.producer(0).ring, 8))
	compareDump(t, "latest-credit.hex", creditWithoutTimes(p.consumer(0).credit))
}

func TestRunsAroundAHeldFrameASecondSegmentADropAndADetachedEndAreTheGoldenOnes(t *testing.T) {
	p := newPair(t, options{credits: 4, policies: []Policy{DropNewest}})
	ctx := context.Background()
	p.send([]byte("held"), Tags{Redelivered: true, Schema: 0xFFFFFFFF, Trace: 1<<64 - 1})
	held := p.poll()
	frames := make([]Frame, 3)
	for range 2 {
		if sent, err := p.sender.SendMany(ctx, "", make([]byte, 3*70), 70, Tags{InputSeq: 5}, false); sent != 3 || err != nil {
			t.Fatal(sent, err)
		}
		if count, err := p.receiver.Poll(frames); count != 3 || err != nil {
			t.Fatal(count, err)
		}
		p.receiver.ReleaseAll(frames)
	}
	if sent, err := p.sender.SendMany(ctx, "", bytes.Repeat([]byte("x"), 140), 70, Tags{DeadlineNS: 6}, false); sent != 2 {
		t.Fatal(sent, err)
	}
	count, err := p.receiver.Poll(frames)
	if err != nil || count != 2 || frames[0].Seq != 7 || frames[1].Seq != 9 {
		t.Fatalf("%d frames, %d and %d, %v: position 8 is passed over", count, frames[0].Seq, frames[1].Seq, err)
	}
	p.receiver.ReleaseAll(frames[:2])
	p.send(make([]byte, 100_000), Tags{})
	if _, err := p.sender.SendMany(ctx, "", make([]byte, 3), 1, Tags{}, false); err != nil {
		t.Fatal(err)
	}
	p.receiver.mu.Lock()
	p.consumer(0).close()
	p.receiver.mu.Unlock()
	if err := p.sender.Send(ctx, "", []byte("too late"), Tags{}, true); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if string(held.Data) != "held" {
		t.Fatalf("%q", held.Data)
	}
	compareDump(t, "detached-ring.hex", ringWithoutTimes(p.producer(0).ring, 8))
	compareDump(t, "detached-credit.hex", creditWithoutTimes(p.consumer(0).credit))
}
