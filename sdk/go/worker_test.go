package chronetix

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

// played is a daemon for one worker without data routes, over a pair of sockets.
type played struct {
	t    *testing.T
	sock *os.File
}

type fields = map[string]any

// play returns the daemon's end, and the worker's descriptor.
func play(t *testing.T) (*played, int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &played{t, os.NewFile(uintptr(ends[0]), "daemon")}
	t.Cleanup(func() { p.sock.Close() })
	return p, ends[1]
}

func (p *played) say(kind string, message fields) {
	if message == nil {
		message = fields{}
	}
	message["type"] = kind
	body, err := cbor.Marshal(message)
	if err != nil {
		p.t.Error(err)
	}
	_, _ = p.sock.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
}

// hear reads until a message of that kind.
func (p *played) hear(kind string) fields {
	for {
		var head [4]byte
		if _, err := readFull(p.sock, head[:]); err != nil {
			p.t.Errorf("%s did not come: %v", kind, err)
			return nil
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := readFull(p.sock, body); err != nil {
			p.t.Error(err)
			return nil
		}
		var message fields
		if err := cbor.Unmarshal(body, &message); err != nil {
			p.t.Error(err)
		}
		if message["type"] == kind {
			return message
		}
	}
}

func readFull(file *os.File, into []byte) (int, error) {
	read := 0
	for read < len(into) {
		n, err := file.Read(into[read:])
		if err != nil {
			return read, err
		}
		read += n
	}
	return read, nil
}

// greet goes as far as the worker's ready.
func (p *played) greet(more fields) {
	p.hear("hello")
	p.say("welcome", fields{"protocol": 1, "daemon": "played"})
	configure := fields{"flow": "f", "node": "n", "plugin_id": "p", "version": "1", "kind": "Process", "uri": "file:///x"}
	for key, value := range more {
		configure[key] = value
	}
	p.say("configure", configure)
	p.hear("offer")
	p.say("link", nil)
	p.hear("ready")
}

func descriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// settled waits until as many goroutines and descriptors are left as before.
func settled(t *testing.T, goroutines, fds int) {
	t.Helper()
	until := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > goroutines || descriptors() > fds {
		if time.Now().After(until) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines and %d descriptors are left:\n%s", runtime.NumGoroutine()-goroutines,
				descriptors()-fds, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// ran is one run of a worker.
func ran(t *testing.T, node Node, daemon func(p *played)) error {
	t.Helper()
	p, fd := play(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		daemon(p)
	}()
	conn, err := wire.NewConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWorker(conn, node)
	if err == nil {
		err = w.Run(context.Background())
		w.Close()
		w.Close() // a second time is nothing
	}
	<-done
	p.sock.Close()
	return err
}

func TestAWorkerLeavesNoGoroutineAndNoDescriptorHoweverItEnds(t *testing.T) {
	_ = ran(t, Node{}, func(p *played) {
		p.greet(nil)
		p.say("start", nil)
		p.hear("started")
		p.say("drain", nil)
		p.hear("finished")
	})
	goroutines, fds := runtime.NumGoroutine(), descriptors()
	failing := Node{OnStart: func(context.Context, *Worker) error { return errors.New("no") }}
	for name, each := range map[string]struct {
		node   Node
		daemon func(p *played)
		want   func(error) bool
	}{
		"drained": {Node{}, func(p *played) {
			p.greet(nil)
			p.say("start", nil)
			p.hear("started")
			p.say("drain", nil)
			p.hear("finished")
		}, func(err error) bool { return err == nil }},
		"drained before its start": {Node{}, func(p *played) { p.greet(nil); p.say("drain", nil) },
			func(err error) bool { return errors.Is(err, ErrDrained) }},
		"its daemon gone": {Node{}, func(p *played) { p.greet(nil); p.say("start", nil); p.hear("started"); p.sock.Close() },
			func(err error) bool { return errors.Is(err, ErrDaemonGone) }},
		"its daemon gone at first": {Node{}, func(p *played) { p.hear("hello"); p.sock.Close() },
			func(err error) bool { return errors.Is(err, ErrDaemonGone) }},
		"refused": {Node{}, func(p *played) {
			p.hear("hello")
			p.say("error", fields{"code": 1009, "name": "version-unsupported", "message": "none of them"})
		}, func(err error) bool { return errors.Is(err, CodeVersionUnsupported) }},
		"failing": {failing, func(p *played) {
			p.greet(nil)
			p.say("start", nil)
			if fault := p.hear("fault"); fault["phase"] != "start" || fault["message"] != "no" {
				p.t.Errorf("%v", fault)
			}
		}, func(err error) bool { return err != nil && err.Error() == "no" }},
		"told rubbish": {Node{}, func(p *played) {
			p.greet(nil)
			p.say("start", nil)
			p.hear("started")
			p.say("item", fields{"id": 1})
			p.hear("fault")
		}, func(err error) bool { return errors.Is(err, CodeMalformedMessage) }},
	} {
		t.Run(name, func(t *testing.T) {
			if err := ran(t, each.node, each.daemon); !each.want(err) {
				t.Errorf("%v", err)
			}
		})
	}
	settled(t, goroutines, fds)
}

func TestPingsAreAnsweredWhileACallbackHangs(t *testing.T) {
	hangs, over := make(chan struct{}), make(chan struct{})
	node := Node{OnMessage: func(context.Context, *Worker, *Message) error {
		close(hangs)
		<-over
		return nil
	}}
	err := ran(t, node, func(p *played) {
		p.greet(nil)
		p.say("start", nil)
		p.hear("started")
		for p.say("ping", fields{"id": 1}); p.hear("pong")["busy_ns"] != nil; p.say("ping", fields{"id": 1}) {
		}
		p.say("deliver", fields{"envelope": fields{"topic": "t"}, "payload": []byte("x")})
		<-hangs
		p.say("ping", fields{"id": 2})
		if pong := p.hear("pong"); pong["busy_ns"] == nil || pong["doing"] != "message" {
			p.t.Errorf("%v", pong)
		}
		close(over)
		p.say("drain", nil)
		p.hear("finished")
	})
	if err != nil {
		t.Error(err)
	}
}

func TestARequestEndsWhenTheDaemonDoes(t *testing.T) {
	node := Node{OnStart: func(ctx context.Context, w *Worker) error {
		_, err := w.Request(ctx, Envelope{Topic: "q"}, nil)
		var failed *RequestError
		if !errors.As(err, &failed) || failed.Reason != "peer-gone" || failed.Timeout() {
			return errors.New("it ended otherwise")
		}
		return err
	}}
	err := ran(t, node, func(p *played) { p.greet(nil); p.say("start", nil); p.hear("request"); p.sock.Close() })
	if !errors.Is(err, ErrDaemonGone) {
		t.Error(err)
	}
}

func TestMessagesThatFindNoRoomAreCountedByTopicAndTicksAreMissed(t *testing.T) {
	var m mailbox
	big := wire.Deliver{Envelope: fields{"topic": "t"}, Payload: make([]byte, maxWaitingBytes/2)}
	if !m.deliver(big) || m.deliver(big) || m.deliver(big) {
		t.Fatal("the second one finds no room")
	}
	if told := m.report(false); told != nil {
		t.Errorf("%v is told while there is no room", told)
	}
	m.next()
	if told := m.report(false); told["t"] != 2 || m.report(true) != nil {
		t.Errorf("%v", told)
	}
	for range maxWaitingTicks {
		m.tick(wire.Tick{ID: "a"})
	}
	m.tick(wire.Tick{ID: "a", Missed: 1})
	for m.next() != nil {
	}
	m.tick(wire.Tick{ID: "a", Missed: 1})
	if tick := m.next().(wire.Tick); tick.Missed != 3 {
		t.Errorf("%d missed", tick.Missed)
	}
	if m.anything() {
		t.Error("there is nothing any more")
	}
}

// arena is one for arenaTrim: it shrinks to what is asked.
type arena struct {
	size, peak uint64
	kept       []uint64
}

func (a *arena) Size() (uint64, uint64) { return a.size, 100 }
func (a *arena) TakePeak() uint64       { return a.peak }
func (a *arena) Shrink(keep uint64) uint64 {
	a.kept = append(a.kept, keep)
	given := a.size - min(a.size, keep)
	a.size -= given
	return given
}

func TestAnArenaGivesBackWhatItHasBeyondTwiceItsPeakAfterAQuietTime(t *testing.T) {
	a := &arena{size: 100, peak: 10}
	trim := trimOf(a)
	now := time.Unix(1000, 0)
	if !trim.due(now).IsZero() {
		t.Error("it is not larger than at first: nobody looks")
	}
	a.size, a.peak = 1000, 400
	if at := trim.due(now); at.Sub(now) != trimSpan {
		t.Errorf("%v", at)
	}
	trim.look(now)
	a.peak = 60
	trim.look(now)
	trim.look(now)
	if !slices.Equal(a.kept, []uint64{800, 120}) {
		t.Errorf("%v", a.kept)
	}
	a.size = 1000 // so soon
	trim.look(now)
	if trim.patience != 2*trimPatience {
		t.Errorf("patience %d", trim.patience)
	}
}

func TestErrorsOfTheCatalogueHaveTheirTextsFilledIn(t *testing.T) {
	err := of(&wire.Refusal{Name: "frame-too-large", Details: fields{"size": 9, "limit": 8}})
	var known *Error
	if !errors.As(err, &known) || !errors.Is(err, CodeFrameTooLarge) || errors.Is(err, CodeInternal) {
		t.Fatal(err)
	}
	if known.Message != "the peer announced a frame of 9 bytes; at most 8 are accepted on this connection" {
		t.Error(known.Message)
	}
	if text := fill("a[ b {x}] c[ d {y}]", fields{"y": 1, "x": nil}); text != "a c d 1" {
		t.Error(text)
	}
	fault := of(&shm.RouteError{Route: "r", Err: &shm.Fault{Why: "lies"}})
	var peer *PeerFault
	if !errors.As(fault, &peer) || peer.Route != "r" || peer.Reason != "lies" {
		t.Error(fault)
	}
	if closed := of(&shm.RouteError{Route: "r", Err: shm.ErrClosed}); !errors.Is(closed, ErrRouteClosed) {
		t.Error(closed)
	}
}

func TestExitCodesTellTheDaemonHowItEnded(t *testing.T) {
	for err, code := range map[error]int{
		nil: 0, ErrDaemonGone: 70, ErrTerminated: 143, ErrDrained: 143, errors.New("other"): 1,
	} {
		if found := ExitCode(err); found != code {
			t.Errorf("%v is %d", err, found)
		}
	}
}
