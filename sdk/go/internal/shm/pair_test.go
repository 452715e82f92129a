//go:build linux && (amd64 || arm64)

package shm

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// pair is both ends of some routes in one process, joined as a daemon would join them.
type pair struct {
	t        testing.TB
	sender   *Sender
	receiver *Receiver
	bells    [2]*Bell
	mu       sync.Mutex
	emptied  []Stage
	gaveUp   []string
	grown    chan uint32 // if not nil, segments are confirmed by the test
	dropped  []uint32
}

type options struct {
	credits  uint32
	low      uint32
	policies []Policy
	limit    uint64
	first    uint64
	baseSeq  uint64
	classes  []string
	limitNS  uint64
	budgetNS uint64
	source   bool
	byHand   bool
}

func routeName(i int) string { return fmt.Sprintf("r%d", i) }

// makeLine is what a daemon makes for the two ends of a route: the producer's end is shut for writing.
func makeLine(t testing.TB) (producer, consumer int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range ends {
		_ = unix.SetsockoptInt(end, unix.SOL_SOCKET, soPassRights, 0)
		_ = unix.SetsockoptInt(end, unix.SOL_SOCKET, unix.SO_SNDBUF, 0)
	}
	if err := unix.Shutdown(ends[0], unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	return ends[0], ends[1]
}

func newPair(t testing.TB, o options) *pair {
	t.Helper()
	if o.credits == 0 {
		o.credits = 8
	}
	if o.policies == nil {
		o.policies = []Policy{Block}
	}
	if o.limit == 0 {
		o.limit = 1 << 22
	}
	if o.first == 0 {
		o.first = 1 << 16
	}
	p := &pair{t: t}
	if o.byHand {
		p.grown = make(chan uint32, 64)
	}
	for i := range p.bells {
		bell, err := NewBell()
		if err != nil {
			t.Fatal(err)
		}
		p.bells[i] = bell
	}
	var err error
	if p.sender, err = NewSender(p.bells[0], p, o.limit, o.first, o.budgetNS, o.source); err != nil {
		t.Fatal(err)
	}
	p.receiver = NewReceiver(p.bells[1], nil, func(route string, epoch uint64) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.emptied = append(p.emptied, Stage{Route: route, Epoch: epoch})
	})
	for i, policy := range o.policies {
		class := "normal"
		if o.classes != nil {
			class = o.classes[i]
		}
		low := o.credits / 2
		if o.low != 0 {
			low = o.low
		}
		header := Header{Credits: o.credits, Watermark: max(o.credits*3/4, 1), CreditLow: low, Policy: policy, BaseSeq: o.baseSeq}
		if err := p.sender.Add(Names{routeName(i), "peer", "topic"}, header, o.limitNS, 0); err != nil {
			t.Fatal(err)
		}
		p.join(routeName(i), class, header)
	}
	t.Cleanup(func() {
		p.receiver.Close()
		p.sender.Close()
		for _, bell := range p.bells {
			bell.Close()
		}
	})
	return p
}

// join makes the consuming end of a route that the sender has, and links both.
func (p *pair) join(route, class string, header Header) {
	p.t.Helper()
	header.Watermark, header.CreditLow, header.Policy = 0, 0, 0
	credit, err := p.receiver.Add(Input{Route: route, Peer: "peer", Class: class, Header: header})
	if err != nil {
		p.t.Fatal(err)
	}
	defer unix.Close(credit)
	producer, consumer := makeLine(p.t)
	defer unix.Close(producer)
	defer unix.Close(consumer)
	rings, indices, segments := p.sender.Offered()
	for _, ring := range rings {
		if ring.Route != route || ring.Epoch != header.Epoch {
			continue
		}
		if err := p.receiver.Link(route, ring.Epoch, ring.Descriptor, consumer, indices, segments, -1); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := p.sender.Link(route, header.Epoch, true, credit, producer); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) Grown(index uint32, descriptor int) {
	for _, stage := range p.receiver.Stages() {
		if err := p.receiver.MapSegment(stage.Route, stage.Epoch, uint64(index), descriptor); err != nil {
			p.t.Error(err)
		}
	}
	if p.grown != nil {
		p.grown <- index
		return
	}
	if err := p.sender.Confirm(uint64(index)); err != nil {
		p.t.Error(err)
	}
}

func (p *pair) Dropped(index uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = append(p.dropped, index)
}

func (p *pair) GaveUp(route string, _ uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gaveUp = append(p.gaveUp, route)
}

func (p *pair) send(data []byte, tags Tags) {
	p.t.Helper()
	if err := p.sender.Send(context.Background(), "", data, tags, false); err != nil {
		p.t.Fatal(err)
	}
}

// poll takes a frame that is there.
func (p *pair) poll() Frame {
	p.t.Helper()
	var frames [1]Frame
	count, err := p.receiver.Poll(frames[:])
	if err != nil || count != 1 {
		p.t.Fatalf("%d frames, %v", count, err)
	}
	return frames[0]
}

func (p *pair) consumer(i int) *Consumer { return p.receiver.chains[i].present }
func (p *pair) producer(i int) *Producer { return p.sender.outputs[i] }

// golden reads the lines of a file of tests/shm/golden: sixteen bytes by offset, of those that are not all zero.
func golden(t *testing.T, name string) map[int]string {
	t.Helper()
	file, err := os.Open("../../../../tests/shm/golden/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := map[int]string{}
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		line := scanner.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		var at int
		if _, err := fmt.Sscanf(line[:4], "%x", &at); err != nil {
			t.Fatal(err)
		}
		lines[at] = strings.ReplaceAll(line[6:], " ", "")
	}
	return lines
}

func dump(memory []byte) map[int]string {
	lines := map[int]string{}
	for at := 0; at+16 <= len(memory); at += 16 {
		if line := hex.EncodeToString(memory[at : at+16]); strings.Trim(line, "0") != "" {
			lines[at] = line
		}
	}
	return lines
}

func compareDump(t *testing.T, name string, memory []byte) {
	t.Helper()
	want, got := golden(t, name), dump(memory)
	for at, line := range want {
		if got[at] != line {
			t.Errorf("%s at %04x: %s instead of %s", name, at, got[at], line)
		}
	}
	for at, line := range got {
		if want[at] == "" {
			t.Errorf("%s at %04x: %s, and nothing was expected", name, at, line)
		}
	}
}

// withoutTimes copies a RING of so many slots.
func ringWithoutTimes(m mapping, slots int) []byte {
	memory := append([]byte(nil), m.data[:4096]...)
	for slot := range slots {
		clear(memory[512+64*slot+32 : 512+64*slot+40])
	}
	return memory
}

func creditWithoutTimes(m mapping) []byte {
	memory := append([]byte(nil), m.data[:8192]...)
	clear(memory[288:304])
	clear(memory[512:5376])
	return memory
}
