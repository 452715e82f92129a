//go:build linux && (amd64 || arm64)

package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// forge overwrites a word of a peer's memory, as a hostile peer may at any time.
func forge(m mapping, offset int, value uint64) {
	binary.LittleEndian.PutUint64(m.data[offset:], value)
}

// wantFault takes what is there until the producer is found out.
func wantFault(t *testing.T, p *pair, says string) {
	t.Helper()
	var frames [1]Frame
	for range 100 {
		count, err := p.receiver.Poll(frames[:])
		var fault *Fault
		if errors.As(err, &fault) {
			if !strings.Contains(fault.Why, says) {
				t.Fatalf("%q instead of %q", fault.Why, says)
			}
			if p.consumer(0).credit.own(atClosed) != 1 {
				t.Fatal("the route was not detached")
			}
			return
		}
		if count == 0 {
			break
		}
	}
	t.Fatalf("nobody noticed, it should say %q", says)
}

func TestAProducerThatBreaksARuleLosesItsRoute(t *testing.T) {
	desc := atDescriptors
	for says, lie := range map[string]func(m mapping){
		"unknown flags 0x8000":        func(m mapping) { forge(m, desc+24, 0x8000<<16) },
		"at offset 1 of segment 0":    func(m mapping) { forge(m, desc+8, 1) },
		"64 bytes at offset":          func(m mapping) { forge(m, desc+8, 1<<40) },
		"bytes at offset 0":           func(m mapping) { forge(m, desc+16, 1<<63) },
		"impossible stamps 3":         func(m mapping) { forge(m, desc, 3) },
		"impossible stamps 0 and 5":   func(m mapping) { forge(m, desc, 0); forge(m, desc+8*64*2, 5) },
		"the stream ends at position": func(m mapping) { forge(m, atClosed, 77) },
		"fewer than notes have":       func(m mapping) { forge(m, desc+24, 2<<16); forge(m, desc+16, 8) },
		"but notes among them":        func(m mapping) { forge(m, desc+24, 2<<16); forge(m, desc+16, 0) },
	} {
		t.Run(says, func(t *testing.T) {
			p := newPair(t, options{credits: 8})
			p.send(make([]byte, 64), Tags{})
			lie(p.producer(0).ring)
			wantFault(t, p, says)
			if _, err := p.receiver.Poll(make([]Frame, 1)); err == nil {
				t.Fatal("a fault is told once, then the route has ended")
			}
		})
	}
}

func TestNotesAreCheckedBeforeTheyAreBelieved(t *testing.T) {
	p := newPair(t, options{})
	noted := make([]byte, 40)
	binary.LittleEndian.PutUint32(noted[32:], 25) // 24 bytes are before the notes
	p.send(noted, Tags{Noted: true})
	wantFault(t, p, "notes of 25 bytes")
}

func TestASlotWhoseFrameIsHeldIsNotUsedAgain(t *testing.T) {
	p := newPair(t, options{credits: 1})
	for i := range 8 {
		if i > 0 {
			p.producer(0).credit.load(atReturned)
		}
		p.send([]byte("x"), Tags{})
		frame := p.poll()
		if i > 0 {
			frame.Release()
			continue
		}
		// The first is kept, but its producer is made to believe that it came back.
		c := p.consumer(0)
		c.credit.store(atStamps, 1)
		c.credit.store(atReturned, 1)
		c.returned = 1
	}
	p.send([]byte("x"), Tags{})
	wantFault(t, p, "still held")
}

func TestAConsumerThatBreaksARuleLosesItsRouteAndTheOthersGoOn(t *testing.T) {
	for says, lie := range map[string]func(m mapping){
		"the consumer claims 9 frames returned of 8 sent": func(m mapping) { forge(m, atReturned, 9) },
		"but the stamps show 0":                           func(m mapping) { forge(m, atReturned, 1) },
	} {
		t.Run(says, func(t *testing.T) {
			p := newPair(t, options{credits: 8, policies: []Policy{Block, Block}})
			for range 8 {
				p.send(make([]byte, 5000), Tags{})
			}
			var frames [16]Frame
			for range 2 {
				if count, err := p.receiver.Poll(frames[:8]); err != nil || frames[0].end == p.consumer(1) {
					p.receiver.ReleaseAll(frames[:count])
				}
			}
			lie(p.consumer(0).credit)
			err := p.sender.Send(context.Background(), "", nil, Tags{}, false)
			var fault *Fault
			if !errors.As(err, &fault) || !strings.Contains(fault.Why, says) {
				t.Fatalf("%v instead of %q", err, says)
			}
			p.send([]byte("for the others"), Tags{})
		})
	}
}

func TestMemoryIsRefusedThatIsNotSealedReservedOrWhole(t *testing.T) {
	memfd := func(size int64, reserve bool, seal int) int {
		fd, err := unix.MemfdCreate("forged", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if reserve {
			err = unix.Fallocate(fd, 0, 0, size)
		} else {
			err = unix.Ftruncate(fd, size)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seal); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for says, fd := range map[string]int{
		"not sealed against shrinking":     memfd(8192, true, seals&^unix.F_SEAL_SHRINK),
		"not sealed against other writers": memfd(8192, true, seals&^unix.F_SEAL_FUTURE_WRITE),
		"not sealed against further seals": memfd(8192, true, seals&^unix.F_SEAL_SEAL),
		"only 0 of 8192":                   memfd(8192, false, seals),
		"not whole pages":                  memfd(5000, true, seals),
		"memory of 0 bytes":                memfd(0, false, seals),
		"is no memfd":                      int(file.Fd()),
	} {
		_, err := openPeer(fd)
		var fault *Fault
		isSeal := says == "is no memfd" && errors.As(err, &fault) // a temporary folder in memory has seals of its own
		if err == nil || (!strings.Contains(err.Error(), says) && !isSeal) {
			t.Errorf("%v instead of %q", err, says)
		}
	}
}

func TestADescriptorThatIsNoLineIsRefused(t *testing.T) {
	bell, err := NewBell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		ends, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bell.adopt(ends[0], true); err == nil {
			t.Error("a socket of another type was taken for a line")
		}
		unix.Close(ends[0])
		unix.Close(ends[1])
	}
}

func TestALineOnWhichADescriptorComesIsNeverReadAndItsRouteIsLost(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	bell, err := NewBell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	if err := unix.Sendmsg(ends[1], []byte{0}, unix.UnixRights(ends[0]), nil, 0); err != nil {
		t.Skipf("this kernel lets no descriptor through: %v", err)
	}
	line, err := bell.adopt(ends[0], true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bell.Sleep(context.Background(), bell.Enter(), Now()+1e9); err != nil {
		t.Fatal(err)
	}
	if !line.spoilt() {
		t.Error("nobody noticed the descriptor")
	}
	bell.drop(line)
	unix.Close(ends[1])
}

func FuzzHeader(f *testing.F) {
	for _, kind := range []uint32{kindRing, kindCredit} {
		line := Header{Credits: 4, Watermark: 3, CreditLow: 2}.encode(kind)
		f.Add(line[:], kind, memorySize(kind, 3))
	}
	f.Fuzz(func(t *testing.T, data []byte, kind uint32, size uint64) {
		if len(data) < headerBytes || (kind != kindRing && kind != kindCredit) {
			return
		}
		header, err := decodeHeader([headerBytes]byte(data[:headerBytes]), kind, size)
		if err == nil && (header.Credits < 1 || header.Credits > MaxCredits || size != memorySize(kind, slotsLog2(header.Credits))) {
			t.Fatalf("%+v was believed", header)
		}
	})
}

// ops reads pairs of a place and a value: what a hostile peer stores between the steps of the honest end.
func ops(data []byte, act func(place uint16, value uint64)) {
	for ; len(data) >= 11; data = data[11:] {
		act(binary.LittleEndian.Uint16(data), binary.LittleEndian.Uint64(data[3:]))
	}
}

func FuzzRing(f *testing.F) {
	f.Add([]byte("\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00"), uint8(0))
	f.Add(binary.LittleEndian.AppendUint64([]byte{0x18, 2, 0}, 2<<16), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, policy uint8) {
		p := newPair(t, options{credits: 4, policies: []Policy{Policy(policy % 3)}})
		frames := make([]Frame, 4)
		var held []Frame
		ring := p.producer(0).ring
		ops(data, func(place uint16, value uint64) {
			forge(ring, int(place)%(len(ring.data)-8)&^7, value)
			_ = p.sender.Send(context.Background(), "", []byte("honest"), Tags{}, false)
			count, _ := p.receiver.Poll(frames)
			for i := range frames[:count] {
				for at := range frames[i].Data { // every byte can be read
					_ = frames[i].Data[at]
				}
				held = append(held, frames[i])
			}
			if len(held) > 2 {
				p.receiver.ReleaseAll(held[:1])
				held = held[1:]
			}
		})
		p.receiver.ReleaseAll(held)
		p.receiver.ReleaseAll(held)
	})
}

func FuzzCredit(f *testing.F) {
	f.Add([]byte("\xc0\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, policy uint8) {
		p := newPair(t, options{credits: 4, policies: []Policy{Policy(policy % 3), Block}, limit: 1 << 17})
		frames := make([]Frame, 4)
		credit := p.consumer(0).credit
		ops(data, func(place uint16, value uint64) {
			forge(credit, int(place)%(len(credit.data)-8)&^7, value)
			_ = p.sender.Send(context.Background(), "", make([]byte, place%9000), Tags{}, false)
			count, _ := p.receiver.Poll(frames)
			p.receiver.ReleaseAll(frames[:count])
			if loan, _, err := p.sender.Reserve(context.Background(), "", int(value%9000), false); err == nil {
				if value%2 == 0 {
					_ = loan.Commit(0, Tags{})
				}
				loan.Cancel()
			}
		})
		if used := p.sender.arena.used; used > p.sender.arena.size {
			t.Fatalf("%d of %d bytes are in use", used, p.sender.arena.size)
		}
	})
}
