//go:build linux && (amd64 || arm64)

package shm

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// A Receiver has the consuming ends of a process's routes, each a chain of stages, oldest first. Every method may be
// called from any goroutine.
//
// Whose turn it is: the highest class of service that has a frame goes first, but for at most 8, 4, 2 and 1 takes of a
// round from realtime to best-effort. Within a class inputs take turns; once one has shown a deadline, the earliest goes
// first, and every eighth take by turn whatever the deadlines are.
type Receiver struct {
	mu        sync.Mutex
	bell      *Bell
	sender    *Sender // of the same process, for the rule of naps; or nil
	emptied   func(route string, epoch uint64)
	chains    []*chain
	ranks     []*rank
	unranked  bool
	spin      spin
	sleepers  int
	abandoned bool
	closed    bool
	taken     uint64 // frames since it last waited
	total     uint64 // frames ever
	commits   uint64 // of the sender when it last waited
	rung      uint64
	failed    error
	// Other, if set, tells whether there is anything else to look at: then Take does not sleep.
	Other   func() bool
	pending []Stage // stages that are empty, to be told
}

// chain is one route.
type chain struct {
	route   string
	stages  []*Consumer // those that are not empty, oldest first
	present *Consumer   // whose frames are taken; nil once the route is over
	nothing *Consumer   // what follows the last stage of a route that was concluded
}

type rank struct {
	chains           []*chain
	next, fair       int
	quota, left      int
	deadlines, takes int
}

const (
	byTurn       = 8
	turnPatience = 256
)

// Classes are the classes of service, lowest first.
var Classes = []string{"best-effort", "normal", "high", "realtime"}

const classNormal = 1

// NewReceiver makes one without routes. emptied is told of each stage that its producer has finished once all its frames
// have come back and it is unmapped, without a lock.
func NewReceiver(bell *Bell, sender *Sender, emptied func(route string, epoch uint64)) *Receiver {
	return &Receiver{bell: bell, sender: sender, emptied: emptied, spin: spin{ns: spinCap}}
}

func (r *Receiver) unlock() {
	pending := r.pending
	r.pending = nil
	r.mu.Unlock()
	for _, each := range pending {
		r.emptied(each.Route, each.Epoch)
	}
}

// Input is what a port says of a stage.
type Input struct {
	Route, Peer, ContentType, Class string
	Header                          Header
	Resume                          uint64
}

// Add makes the CREDIT of a further route, or of the next stage of one, and returns a descriptor of it to be sent, which
// is the caller's: the stage may be over before it is sent.
func (r *Receiver) Add(in Input) (int, error) {
	r.mu.Lock()
	defer r.unlock()
	c, err := newConsumer(r.bell, in.Header)
	if err != nil {
		return -1, err
	}
	c.Route, c.Peer, c.ContentType, c.Resume, c.receiver = in.Route, in.Peer, in.ContentType, in.Resume, r
	c.class = max(slices.Index(Classes, in.Class), 0)
	own, err := unix.FcntlInt(uintptr(c.credit.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		c.release()
		return -1, err
	}
	ch := r.chain(in.Route)
	switch {
	case ch == nil:
		ch = &chain{route: in.Route, present: c}
		r.chains = append(r.chains, ch)
	case len(ch.stages) > 0:
		if err := ch.stages[len(ch.stages)-1].succeed(c); err != nil {
			unix.Close(own)
			c.release()
			return -1, err
		}
	}
	ch.stages = append(ch.stages, c)
	r.unranked = true
	r.bell.Ring()
	return own, nil
}

func (r *Receiver) chain(route string) *chain {
	for _, ch := range r.chains {
		if ch.route == route {
			return ch
		}
	}
	return nil
}

// stage finds one; nil: it is over.
func (r *Receiver) stage(route string, epoch uint64) (*Consumer, error) {
	ch := r.chain(route)
	if ch == nil {
		return nil, &RouteError{Route: route, Err: ErrUnknownRoute}
	}
	for _, c := range ch.stages {
		if c.Header.Epoch == epoch {
			return c, nil
		}
	}
	return nil, nil
}

// Link maps RING and segments, and perhaps the predecessor's CREDIT (else -1). The descriptors stay the caller's.
func (r *Receiver) Link(route string, epoch uint64, ringFD, lineFD int, indices []uint64, segments []int, predecessor int) error {
	r.mu.Lock()
	defer r.unlock()
	c, err := r.stage(route, epoch)
	if err != nil || c == nil || c.state == consumerEnded {
		return err
	}
	for i, index := range indices {
		if err := c.mapSegment(index, segments[i]); err != nil {
			return &RouteError{Route: route, Err: err}
		}
	}
	if c.state != consumerUnlinked {
		return &RouteError{Route: route, Err: errors.New("it is linked or closed already")}
	}
	err = c.link(ringFD, lineFD)
	if err == nil && predecessor >= 0 {
		err = c.inherit(predecessor)
		c.told = c.state == consumerFaulty
	}
	if err != nil {
		return &RouteError{Route: route, Err: err}
	}
	r.bell.Ring()
	return nil
}

// MapSegment follows a producer that grew. The descriptor stays the caller's.
func (r *Receiver) MapSegment(route string, epoch, index uint64, descriptor int) error {
	r.mu.Lock()
	defer r.unlock()
	c, err := r.stage(route, epoch)
	if c == nil {
		return err
	}
	if err := c.mapSegment(index, descriptor); err != nil {
		return &RouteError{Route: route, Err: err}
	}
	r.bell.Ring()
	return nil
}

// DropSegment follows a producer that gave a segment back; false if that is a lie, which has cost it the route.
func (r *Receiver) DropSegment(route string, epoch, index uint64) (bool, error) {
	r.mu.Lock()
	defer r.unlock()
	c, err := r.stage(route, epoch)
	if c == nil {
		return true, err
	}
	if fault := c.dropSegment(index); fault != nil {
		r.bell.Ring()
		return false, nil
	}
	return true, nil
}

// Conclude: the last stage of the route ends at the sequence number, and nothing follows.
func (r *Receiver) Conclude(route string, seq uint64) error {
	r.mu.Lock()
	defer r.unlock()
	ch := r.chain(route)
	if ch == nil || len(ch.stages) == 0 {
		return &RouteError{Route: route, Err: ErrUnknownRoute}
	}
	last := ch.stages[len(ch.stages)-1]
	ch.nothing = &Consumer{Route: route, Header: Header{Credits: 1, Epoch: last.Header.Epoch + 1, BaseSeq: seq},
		state: consumerEnded, class: last.class, bell: r.bell}
	r.bell.Ring()
	return last.succeed(ch.nothing)
}

// Stages are those that are not over, in the order in which they were asked for.
func (r *Receiver) Stages() []Stage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stages()
}

func (r *Receiver) stages() (found []Stage) {
	for _, ch := range r.chains {
		for _, c := range ch.stages {
			each := Stage{Route: c.Route, Epoch: c.Header.Epoch, Linked: c.linked(), Resume: c.Resume, Descriptor: c.credit.fd}
			for index := range c.segments {
				if c.segments[index].data != nil {
					each.Segments = append(each.Segments, uint64(index))
				}
			}
			found = append(found, each)
		}
	}
	return found
}

// Inventory is as Stages, which stay as they are while act runs.
func (r *Receiver) Inventory(act func(stages []Stage)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	act(r.stages())
}

// -- turns ---------------------------------------------------------------------------------------------------------

func (r *Receiver) rankAll() {
	r.ranks = r.ranks[:0]
	for class := len(Classes) - 1; class >= 0; class-- {
		quota := 1 << class
		made := &rank{quota: quota, left: quota}
		for _, ch := range r.chains {
			if ch.present.class == class {
				made.chains = append(made.chains, ch)
			}
		}
		if len(made.chains) > 0 {
			r.ranks = append(r.ranks, made)
		}
	}
	r.unranked = false
}

// result of a look at routes.
type result struct {
	status status
	count  int
	err    error
}

// from takes what this route has, and goes on to its next stage where one is empty.
func (r *Receiver) from(ch *chain, frames []Frame) result {
	for {
		c := ch.present
		count, found := 1, statusOK
		if c.latest {
			found = c.takeLatest(&frames[0])
		} else {
			count, found = c.take(frames)
		}
		if found == statusEnded && c.next != nil {
			r.advance(ch, c)
			continue
		}
		if found == statusFault {
			if c.told {
				return result{status: statusEnded}
			}
			c.told = true
			return result{status: statusFault, err: &RouteError{c.Route, c.Header.Epoch, c.fault}}
		}
		return result{status: found, count: count}
	}
}

// advance: the stage is empty.
func (r *Receiver) advance(ch *chain, old *Consumer) {
	ch.present = old.next
	if old.class != old.next.class {
		r.unranked = true
	}
	old.left = true
	r.drained(ch, old)
}

// drained unmaps a stage that was left once the last frame has come back, and has that told, oldest first.
func (r *Receiver) drained(ch *chain, c *Consumer) {
	if !c.left || c.empty || c.heldCount > 0 {
		return
	}
	c.empty = true
	c.release()
	for len(ch.stages) > 0 && ch.stages[0].empty {
		first := ch.stages[0]
		ch.stages = ch.stages[1:]
		r.pending = append(r.pending, Stage{Route: first.Route, Epoch: first.Header.Epoch})
	}
	if len(ch.stages) == 0 && ch.nothing != nil {
		r.chains = slices.DeleteFunc(r.chains, func(each *chain) bool { return each == ch })
		r.unranked = true
	}
}

func (k *rank) took(at int, f *Frame) {
	k.next = (at + 1) % len(k.chains)
	if f.DeadlineNS == 0 || len(k.chains) == 1 {
		return
	}
	if k.deadlines == 0 {
		k.takes = 0
	}
	k.deadlines = turnPatience
}

func (r *Receiver) byTurn(k *rank, frames []Frame) result {
	best := result{status: statusEnded}
	at := k.next
	for range k.chains {
		found := r.from(k.chains[at], frames)
		switch found.status {
		case statusOK:
			k.took(at, &frames[0])
			return found
		case statusFault, statusAgain:
			k.next = (at + 1) % len(k.chains)
			return found
		case statusEmpty:
			best = found
		}
		at = (at + 1) % len(k.chains)
	}
	return best
}

func (r *Receiver) byDeadline(k *rank, frames []Frame) result {
	best, earliest := -1, uint64(0)
	k.deadlines--
	at := k.next
	for range k.chains {
		var seen Frame
		c := k.chains[at].present
		found := c.look(&seen)
		if found == statusFault && !c.told {
			best = at
			break
		}
		if found == statusOK {
			due := seen.DeadlineNS
			if due == 0 {
				due = Forever
			} else {
				k.deadlines = turnPatience
			}
			if best < 0 || due < earliest {
				best, earliest = at, due
			}
		}
		at = (at + 1) % len(k.chains)
	}
	if best < 0 {
		return r.byTurn(k, frames) // tells ended ones from empty ones
	}
	found := r.from(k.chains[best], frames)
	if found.status == statusOK {
		k.took(best, &frames[0])
	}
	return found
}

func (r *Receiver) scanRank(k *rank, frames []Frame) result {
	if k.deadlines > 0 && len(k.chains) > 1 {
		if k.takes++; k.takes%byTurn == 0 {
			next := k.next
			k.next = k.fair
			found := r.byTurn(k, frames)
			k.fair, k.next = k.next, next
			return found
		}
		return r.byDeadline(k, frames)
	}
	return r.byTurn(k, frames)
}

// scan takes what is there, from the route whose turn it is.
func (r *Receiver) scan(frames []Frame) result {
	if len(r.chains) == 1 {
		return r.from(r.chains[0], frames)
	}
	if r.unranked {
		r.rankAll()
	}
	if len(r.ranks) == 1 {
		return r.scanRank(r.ranks[0], frames)
	}
	for {
		best, spent := result{status: statusEnded}, false
		for _, k := range r.ranks {
			if k.left == 0 {
				spent = true
				continue
			}
			found := r.scanRank(k, frames)
			switch found.status {
			case statusOK:
				k.left--
				return found
			case statusFault, statusAgain:
				return found
			case statusEmpty:
				best = found
			}
		}
		if !spent {
			return best
		}
		for _, k := range r.ranks {
			k.left = k.quota
		}
	}
}

// -- taking --------------------------------------------------------------------------------------------------------

// ErrRung: nothing was taken, but something has rung: whoever has other things to look at looks at them.
var ErrRung = errors.New("rung")

// Poll takes up to len(frames) frames of one route that are there now, without waiting. No frame and no error: there is
// none. io.EOF: every route has ended. A *RouteError with a *Fault: a producer has broken a rule, which is told once.
func (r *Receiver) Poll(frames []Frame) (int, error) {
	r.mu.Lock()
	defer r.unlock()
	return r.poll(frames)
}

func (r *Receiver) poll(frames []Frame) (int, error) {
	if r.failed != nil {
		return 0, r.failed
	}
	found := r.scan(frames)
	switch found.status {
	case statusOK:
		r.taken += uint64(found.count)
		r.total += uint64(found.count)
		return found.count, nil
	case statusEnded:
		return 0, io.EOF
	case statusFault:
		return 0, found.err
	}
	return 0, nil
}

// Take is as Poll, and sleeps until there is something. ErrRung: the bell was rung for something else.
func (r *Receiver) Take(ctx context.Context, frames []Frame) (int, error) {
	r.mu.Lock()
	defer r.unlock()
	count, err := r.poll(frames)
	if count > 0 || err != nil {
		return count, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if count, err = r.spinFor(frames); count == 0 && err == nil {
		count, err = r.sleep(ctx, frames)
	}
	r.commits, r.rung = r.sender.Activity()
	r.taken = 0
	return count, err
}

func (r *Receiver) spinFor(frames []Frame) (int, error) {
	limit := spinLimit()
	if r.spin.ns == 0 || limit == 0 {
		return 0, nil
	}
	start := Now()
	until := start + uint64(r.spin.ns)
	for {
		for range 8 {
			count, err := r.poll(frames)
			if count > 0 || err != nil {
				r.spin.found(limit, Now()-start)
				return count, err
			}
			r.unlock()
			pause(16)
			r.mu.Lock()
		}
		if Now() >= until {
			r.spin.missed(limit)
			return 0, nil
		}
	}
}

// naps tells whether the next sleep may be a nap on every route.
func (r *Receiver) naps() bool {
	commits, _ := r.sender.Activity()
	if r.taken < napFrames*(commits-r.commits) {
		return false // it answers
	}
	for _, ch := range r.chains {
		if ch.present.class > classNormal || !ch.present.mayNap() {
			return false
		}
	}
	return true
}

// arm says which positions are waited for; how long a nap may last, 0: it is none.
func (r *Receiver) arm(naps bool) (shortest uint64) {
	for _, ch := range r.chains {
		if !naps {
			ch.present.arm()
			continue
		}
		if nap := ch.present.armNap(); nap != 0 && (shortest == 0 || nap < shortest) {
			shortest = nap
		}
	}
	return shortest
}

func (r *Receiver) sleep(ctx context.Context, frames []Frame) (int, error) {
	ticket := r.bell.Enter()
	r.sleepers++
	defer func() {
		if r.sleepers--; r.sleepers == 0 {
			for _, ch := range r.chains {
				ch.present.disarm()
			}
		}
	}()
	nap := r.arm(r.sleepers == 1 && r.naps())
	count, err := r.poll(frames)
	if count > 0 || err != nil {
		return count, err
	}
	if r.Other != nil && r.Other() {
		return 0, ErrRung
	}
	start := Now()
	until := uint64(Forever)
	if nap != 0 {
		until = start + nap
	}
	rung, err := r.doze(ctx, ticket, until)
	if err == nil {
		count, err = r.poll(frames)
	}
	if count == 0 && err == nil && !rung { // the stream has stopped: the next frame rings
		ticket = r.bell.Enter()
		r.arm(false)
		if count, err = r.poll(frames); count == 0 && err == nil {
			if rung, err = r.doze(ctx, ticket, Forever); err == nil {
				count, err = r.poll(frames)
			}
		}
	} else if count > 0 && frames[0].TimeNS >= start {
		r.learn(&frames[0], start, nap != 0)
	}
	if count == 0 && err == nil {
		err = ErrRung
	}
	return count, err
}

func (r *Receiver) doze(ctx context.Context, ticket, until uint64) (bool, error) {
	for _, ch := range r.chains {
		ch.present.nudge()
	}
	r.unlock()
	rung, err := r.bell.Sleep(ctx, ticket, until)
	r.mu.Lock()
	return rung, err
}

// learn adapts the spin to a sleep that began at start.
func (r *Receiver) learn(f *Frame, start uint64, nap bool) {
	if !nap {
		wakeTook(Now() - f.TimeNS)
	}
	_, rung := r.sender.Activity()
	r.spin.slept(spinLimit(), f.TimeNS-start, rung != r.rung)
}

// Waiting tells whether somebody sleeps in Take.
func (r *Receiver) Waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sleepers > 0
}

// Total is how many frames were taken.
func (r *Receiver) Total() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// Lost is how many frames of routes of policy latest were overwritten before they were read, of the stages that are
// there.
func (r *Receiver) Lost() (lost uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ch := range r.chains {
		for _, c := range ch.stages {
			if c.credit.data != nil {
				lost += c.credit.own(atLost)
			}
		}
	}
	return lost
}

// -- returning -----------------------------------------------------------------------------------------------------

// Route is where the frame came by.
func (f *Frame) Route() (route, peer, contentType string) {
	if f.end == nil {
		return "", "", ""
	}
	return f.end.Route, f.end.Peer, f.end.ContentType
}

// ReleaseAll gives frames back, with one step for all frames of a route that follow one another.
func (r *Receiver) ReleaseAll(frames []Frame) {
	var bells [4]*Line
	ring := bells[:0]
	r.mu.Lock()
	for at := 0; at < len(frames); {
		c := frames[at].end
		if frames[at].copied != nil {
			frames[at].copied.release(frames[at].turn)
			at++
			continue
		}
		count := uint64(0)
		for ; at < len(frames) && frames[at].end == c && frames[at].copied == nil; at++ {
			if c != nil && !r.abandoned && c.stampReturn(&frames[at]) {
				count++
			}
		}
		if count == 0 {
			continue
		}
		if c.countReturns(count) {
			ring = append(ring, c.line)
		}
		if c.left {
			r.drained(r.chain(c.Route), c)
		} else if r.closed && c.heldCount == 0 {
			c.release()
		}
	}
	r.unlock()
	for _, line := range ring {
		if line != nil {
			line.Ring()
		}
	}
}

// Fail has every later Take return err, and wakes those that sleep.
func (r *Receiver) Fail(err error) {
	r.mu.Lock()
	defer r.unlock()
	if r.failed == nil {
		r.failed = err
	}
	r.bell.Ring()
}

// ReleaseAll gives back frames that one Receiver has taken.
func ReleaseAll(frames []Frame) {
	for i := range frames {
		if frames[i].end != nil {
			frames[i].end.receiver.ReleaseAll(frames[i:])
			return
		}
	}
}

// Release gives the frame back. Once: a second time is nothing.
func (f *Frame) Release() {
	if f.end != nil {
		one := [1]Frame{*f}
		f.end.receiver.ReleaseAll(one[:])
	}
}

// -- end -----------------------------------------------------------------------------------------------------------

// Close detaches everywhere. Frames that are held stay readable.
func (r *Receiver) Close() { r.finish(true) }

// Abandon leaves everything as a death would: a successor may follow, and gets what was not returned.
func (r *Receiver) Abandon() { r.finish(false) }

func (r *Receiver) finish(detach bool) {
	r.mu.Lock()
	defer r.unlock()
	if r.closed {
		return
	}
	r.closed, r.abandoned = true, !detach
	if r.failed == nil {
		r.failed = ErrClosed
	}
	for _, ch := range r.chains {
		for _, c := range ch.stages {
			if detach {
				c.close()
			}
			if c.heldCount == 0 {
				c.release()
			}
		}
	}
}
