//go:build linux && (amd64 || arm64)

package shm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrWouldBlock: no credit or no room now; nothing was written.
var ErrWouldBlock = errors.New("no credit or no room")

// ErrUnlinked: nothing can be sent before the routes are linked.
var ErrUnlinked = errors.New("the route is not linked to its consumer yet")

// A RouteError is about one route.
type RouteError struct {
	Route string
	Epoch uint64 // of the stage, where Err is a *Fault
	Err   error  // ErrClosed, a *Fault, ErrWouldBlock, ErrUnlinked
}

func (e *RouteError) Error() string { return fmt.Sprintf("route %s: %v", e.Route, e.Err) }
func (e *RouteError) Unwrap() error { return e.Err }

// ErrClosed: the other end has detached, or this one has closed.
var ErrClosed = errors.New("the route is closed")

// Notices are what the daemon has to be told; they are called without a lock, and must not wait for the Sender.
type Notices interface {
	// Grown: a new segment; the descriptor is closed afterwards.
	Grown(index uint32, descriptor int)
	// Dropped: a segment was given back.
	Dropped(index uint32)
	// GaveUp: a route was closed because its consumer kept a frame waiting for so long.
	GaveUp(route string, waitedNS uint64)
}

// A Sender has the arena of a process and the producing ends of its routes. Every method may be called from any
// goroutine.
type Sender struct {
	mu       sync.Mutex
	bell     *Bell
	notices  Notices
	arena    *arena
	outputs  []*Producer // the present stage of each route, in the order of the ports
	names    []Names
	taps     map[string]tap
	all      *Outlet
	outlets  map[string]*Outlet
	ends     []*Producer // every end that is on the arena, stages that were left included
	budgetNS uint64
	item     uint64 // number of a source's last item
	source   bool
	sleepers int
	loans    int
	closed   bool
	failed   error
	spare    *claim
	pending  []notice
	deferred func() // once the loans are committed
	commits  uint64 // frames or runs sent, for liveness and the rule of naps
	rung     uint64 // times that a peer was rung
}

type tap struct {
	of  string
	end *Producer
}

// Names are by what a route may be addressed.
type Names struct{ Route, Peer, Topic string }

func (n Names) are(to string) bool {
	return to == n.Route || to == n.Peer || (to != "" && to == n.Topic)
}

type notice struct {
	kind  uint8
	index uint32
	fd    int
	route string
	ns    uint64
}

const (
	noticeGrown = iota
	noticeDropped
	noticeGaveUp
)

// An Outlet sends one frame to several routes with one copy.
type Outlet struct {
	producers []*Producer
	spin      spin
	pace      pace
	shortAt   uint64 // not 0: what it was short of was room, and frees was one less then
}

// NewSender makes the arena.
func NewSender(bell *Bell, notices Notices, arenaLimit, first, budgetNS uint64, source bool) (*Sender, error) {
	a, err := newArena(arenaLimit, first)
	if err != nil {
		return nil, err
	}
	return &Sender{bell: bell, notices: notices, arena: a, taps: map[string]tap{}, outlets: map[string]*Outlet{},
		budgetNS: budgetNS, source: source}, nil
}

// unlock tells what there is to tell.
func (s *Sender) unlock() {
	if len(s.pending) == 0 && (s.deferred == nil || s.loans > 0) {
		s.mu.Unlock()
		return
	}
	pending, deferred := s.pending, s.deferred
	s.pending = nil
	if s.loans == 0 {
		s.deferred = nil
	} else {
		deferred = nil
	}
	s.mu.Unlock()
	for _, each := range pending {
		switch each.kind {
		case noticeGrown:
			s.notices.Grown(each.index, each.fd)
			unix.Close(each.fd)
		case noticeDropped:
			s.notices.Dropped(each.index)
		case noticeGaveUp:
			s.notices.GaveUp(each.route, each.ns)
		}
	}
	if deferred != nil {
		deferred()
	}
}

// Add makes the producing end of a further route.
func (s *Sender) Add(names Names, header Header, limitNS, resume uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.make(names.Route, header, limitNS, resume)
	if err != nil {
		return err
	}
	s.outputs, s.names = append(s.outputs, p), append(s.names, names)
	s.changed()
	return nil
}

func (s *Sender) make(route string, header Header, limitNS, resume uint64) (*Producer, error) {
	p, err := newProducer(s.arena, s.bell, header)
	if err != nil {
		return nil, fmt.Errorf("route %s: %w", route, err)
	}
	p.Route, p.LimitNS = route, limitNS
	if s.source {
		p.Resume = resume
	}
	s.ends = append(s.ends, p)
	return p, nil
}

// changed forgets the outlets: the next frame finds its routes anew.
func (s *Sender) changed() {
	clear(s.outlets)
	s.all = s.outletOf("")
}

func (s *Sender) outletOf(to string) *Outlet {
	o := &Outlet{spin: spin{ns: spinCap}}
	for i, p := range s.outputs {
		if to == "" || s.names[i].are(to) {
			o.producers = append(o.producers, p)
		}
	}
	for _, each := range s.taps {
		if each.end.Linked() && slices.ContainsFunc(o.producers, func(p *Producer) bool { return p.Route == each.of }) {
			o.producers = append(o.producers, each.end)
		}
	}
	return o
}

// outlet finds the routes that `to` names: a route, its peer or its topic; "" is all.
func (s *Sender) outlet(to string) (*Outlet, error) {
	if to == "" {
		if s.all == nil || len(s.all.producers) == 0 {
			return nil, errors.New("this node has no data outputs: give it a data route, or publish")
		}
		return s.all, nil
	}
	o := s.outlets[to]
	if o == nil {
		if o = s.outletOf(to); len(o.producers) == 0 {
			return nil, fmt.Errorf("no output is called %q: outputs are %v", to, s.routeNames())
		}
		s.outlets[to] = o
	}
	return o, nil
}

func (s *Sender) routeNames() (names []string) {
	for _, each := range s.names {
		names = append(names, each.Route)
	}
	return names
}

// -- claiming ------------------------------------------------------------------------------------------------------

// claim is a frame on its way out: a credit of every route that is to get it, and an extent.
type claim struct {
	to      string
	outlet  *Outlet
	chosen  []*Producer
	extent  extent
	length  uint64
	frames  uint32
	noRoom  bool
	dropped bool
}

type attempt uint8

const (
	claimed attempt = iota
	noCredit
	noRoom
)

// alive: how many routes still take frames. A fault is told once; that a route was closed only when none is left.
func (o *Outlet) alive() error {
	alive := 0
	for _, p := range o.producers {
		if p.check() || p.awaits() {
			if !p.Tap {
				alive++
			}
			continue
		}
		if !p.told && !p.Tap && (p.state == producerFaulty || p.state == producerUnlinked) {
			p.told = p.state == producerFaulty
			return p.why()
		}
	}
	if alive > 0 {
		return nil
	}
	return o.producers[0].why()
}

func (p *Producer) why() error {
	err := ErrClosed
	switch p.state {
	case producerFaulty:
		err = p.fault
	case producerUnlinked:
		err = ErrUnlinked
	case producerGivenUp:
		err = fmt.Errorf("%w: given up, its consumer returned no credit for %d ms", ErrClosed, p.ring.own(atGaveUpAfter)/1e6)
	case producerDetached:
		err = fmt.Errorf("%w: its consumer has detached", ErrClosed)
	}
	return &RouteError{p.Route, p.Header.Epoch, err}
}

// credits marks the routes that have a credit for this frame, and shortens a run to what each of them has.
func (s *Sender) credits(c *claim) (attempt, error) {
	result := claimed
	frames := c.frames
	c.chosen = c.chosen[:0]
	for _, p := range c.outlet.producers {
		if p.awaits() {
			result = noCredit
		}
		if p.state != producerOpen {
			continue
		}
		var fault *Fault
		if p.left() < c.frames {
			fault = p.reclaim(^uint64(0))
		} else if c.length*uint64(c.frames) >= pageSize {
			fault = p.reclaim(reuseLooks)
		}
		if fault != nil {
			if p.Tap {
				continue
			}
			p.told = true
			return claimed, p.why()
		}
		if left := p.left(); left > 0 {
			c.chosen = append(c.chosen, p)
			frames = min(frames, left)
			p.shortSince = 0
		} else if p.blocks() {
			now := uint64(0)
			if p.LimitNS != 0 {
				now = Now()
			}
			if !p.short(now) {
				result = noCredit
				continue
			}
			s.pending = append(s.pending, notice{kind: noticeGaveUp, route: p.Route, ns: p.giveUp(now)})
			if err := c.outlet.alive(); err != nil {
				return claimed, err
			}
		}
	}
	if result == claimed {
		c.frames = frames
	}
	return result, nil
}

func (s *Sender) reclaimAll() {
	for _, p := range s.ends {
		if p.returns() {
			p.reclaim(^uint64(0))
		}
	}
}

// overwrite makes room by taking back the oldest frames of routes of policy latest.
func (s *Sender) overwrite(length uint64, e *extent) bool {
	for revoked := true; revoked; {
		revoked = false
		for _, p := range s.ends {
			if !p.latest() || p.head == none {
				continue
			}
			frees := s.arena.frees
			p.revoke()
			revoked = true
			if s.arena.frees != frees && s.arena.alloc(length, e) {
				return true
			}
		}
	}
	return false
}

func (s *Sender) mustDeliver(c *claim) bool {
	return slices.ContainsFunc(c.chosen, (*Producer).blocks)
}

// room finds an extent, after reclaiming, growing and overwriting if need be.
func (s *Sender) room(c *claim) (bool, error) {
	if c.frames > 1 && c.length > 0 {
		each := stride(c.length)
		if s.arena.alloc(each*uint64(c.frames), &c.extent) {
			return true, nil
		}
		s.reclaimAll()
		for ; c.frames > 1; c.frames /= 2 {
			if s.arena.alloc(each*uint64(c.frames), &c.extent) {
				return true, nil
			}
		}
	}
	if s.arena.alloc(c.length, &c.extent) {
		return true, nil
	}
	s.reclaimAll()
	for {
		if s.arena.alloc(c.length, &c.extent) {
			return true, nil
		}
		c.outlet.shortAt = s.arena.frees + 1
		grown, err := s.grow(c.length)
		if err != nil {
			return false, err
		}
		if !grown {
			return s.overwrite(c.length, &c.extent), nil
		}
	}
}

// grow makes room by a further segment; true: try again now.
func (s *Sender) grow(length uint64) (bool, error) {
	if s.arena.stayAll() {
		return true, nil
	}
	index := s.arena.pending(length)
	if index == none {
		var err error
		index, err = s.arena.grow(length)
		s.tellDrops()
		if err == ErrTooLarge {
			return false, fmt.Errorf("%w: %d bytes, and its limit is %d; raise resource_claims.arena_bytes", ErrTooLarge,
				length, s.arena.limit)
		}
		if err != nil || index == none {
			return false, err
		}
	}
	made := &s.arena.segments[index]
	if !made.announced {
		fd, err := unix.FcntlInt(uintptr(made.fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return false, fmt.Errorf("a segment cannot be announced: %w", err)
		}
		made.announced = true
		s.pending = append(s.pending, notice{kind: noticeGrown, index: index, fd: fd})
		// A consumer that may lose frames need not have mapped it: until it has, what is in there is not there for it.
		if !slices.ContainsFunc(s.ends, (*Producer).blocks) {
			s.arena.confirm(index)
		}
	}
	return s.arena.segments[index].state == segmentUsed, nil
}

func (s *Sender) tellDrops() {
	for i := range s.arena.segments {
		if each := &s.arena.segments[i]; each.state == segmentDropped && !each.announced {
			each.announced = true
			s.pending = append(s.pending, notice{kind: noticeDropped, index: uint32(i)})
		}
	}
}

// try makes one attempt, and changes nothing until all of it is certain.
func (s *Sender) try(c *claim, frames uint32) (attempt, error) {
	if s.failed != nil {
		return claimed, s.failed
	}
	o, err := s.outlet(c.to)
	if err != nil {
		return claimed, err
	}
	c.outlet, c.frames, c.noRoom = o, frames, false
	if err := o.alive(); err != nil {
		return claimed, err
	}
	o.shortAt = 0
	result, err := s.credits(c)
	c.dropped = len(c.chosen) == 0
	if err != nil || result != claimed || c.dropped {
		return result, err
	}
	found, err := s.room(c)
	if err != nil {
		return claimed, err
	}
	if !found {
		if s.mustDeliver(c) {
			return noRoom, nil
		}
		c.chosen = c.chosen[:0] // all of them may drop it
		c.dropped, c.noRoom = true, true
		return claimed, nil
	}
	for _, p := range c.chosen {
		p.reserved += c.frames
	}
	return claimed, nil
}

// claim waits until there is a credit of every route and room, or the context ends. With wait false it is ErrWouldBlock
// at once. Called with the lock.
func (s *Sender) claim(ctx context.Context, c *claim, frames uint32, wait bool) error {
	result, err := s.try(c, frames)
	if err == nil && result == noRoom && len(s.pending) > 0 { // it has grown: that is told at once
		s.unlock()
		s.mu.Lock()
		result, err = s.try(c, frames)
	}
	if err != nil || result == claimed {
		return err
	}
	for _, p := range c.outlet.producers {
		if p.holdsUp(result) {
			p.ring.count(atWouldBlock, 1)
		}
	}
	if !wait {
		return s.wouldBlock(c, result)
	}
	for {
		o := c.outlet
		began := Now()
		for _, p := range o.producers {
			if p.holdsUp(result) && p.ring.own(atBlockedSince) == 0 {
				p.ring.note(atBlockedSince, began)
			}
		}
		until := uint64(Forever)
		if result != noRoom {
			until = o.patience()
		}
		err := s.wait(ctx, o, result == noRoom, until)
		o.unblocked(Now())
		o.pace.waited()
		if err != nil {
			return err
		}
		result, err = s.try(c, frames)
		if err != nil || result == claimed {
			return err
		}
	}
}

func (p *Producer) holdsUp(why attempt) bool {
	return p.state == producerOpen && p.blocks() && (why == noRoom || p.left() == 0)
}

func (o *Outlet) unblocked(now uint64) {
	for _, p := range o.producers {
		if p.ring.data == nil {
			continue
		}
		if since := p.ring.own(atBlockedSince); since != 0 {
			p.ring.count(atBlockedNS, now-since)
			p.ring.note(atBlockedSince, 0)
		}
	}
}

// patience is when the first route is to be given up.
func (o *Outlet) patience() uint64 {
	until := uint64(Forever)
	for _, p := range o.producers {
		if p.state == producerOpen && p.LimitNS != 0 && p.shortSince != 0 {
			until = min(until, p.shortSince+p.LimitNS)
		}
	}
	return until
}

func (s *Sender) wouldBlock(c *claim, why attempt) error {
	for _, p := range c.outlet.producers {
		if p.awaits() || p.holdsUp(why) {
			return &RouteError{Route: p.Route, Err: ErrWouldBlock}
		}
	}
	return ErrWouldBlock
}

// -- waiting -------------------------------------------------------------------------------------------------------

// waits tells whether there is nothing to try; with arm, it asks for the bell.
func (s *Sender) waits(o *Outlet, forRoom, arm bool) bool {
	if forRoom {
		return s.waitsForRoom(o, arm)
	}
	waits := false
	for _, p := range o.producers {
		if p.awaits() {
			waits = true // its link rings
		}
		if p.state != producerOpen || !p.blocks() {
			continue
		}
		goal := p.goal()
		low := p.left() > 0
		if goal != 0 {
			low = p.outstanding()+p.reserved <= p.Header.CreditLow
		}
		if low {
			continue
		}
		if !p.ready(goal) {
			waits = true
		}
		if arm {
			p.arm(goal)
		}
	}
	return waits
}

// waitsForRoom: every frame that is out, on any route of the arena, may make room when it comes back.
func (s *Sender) waitsForRoom(o *Outlet, arm bool) bool {
	if o.shortAt != 0 && s.arena.frees+1 != o.shortAt {
		return false
	}
	for _, p := range s.ends {
		if !p.returns() {
			continue
		}
		if p.latest() && p.outstanding() > 0 {
			return false // it need not come back
		}
		if due, fault := p.look(); fault != nil || due > 0 {
			return false
		}
		if arm && p.outstanding() > 0 {
			p.arm(p.reclaimed + 1)
		}
	}
	return true
}

// wait sleeps until something has changed, or until, or the context's end, which is the only error. It gives the lock
// away while it sleeps.
func (s *Sender) wait(ctx context.Context, o *Outlet, forRoom bool, until uint64) error {
	if !s.waits(o, forRoom, false) || s.spin(o, forRoom, until) {
		return nil
	}
	ticket := s.bell.Enter()
	s.sleepers++
	var err error
	if s.waits(o, forRoom, true) && s.waits(o, forRoom, false) {
		start := Now()
		for _, p := range o.producers {
			if p.holdsUp(noRoom) && (forRoom || p.left() == 0) {
				p.ring.count(atSleeps, 1)
			}
		}
		s.unlock()
		_, err = s.bell.Sleep(ctx, ticket, until)
		s.mu.Lock()
		// When the credits came back is not known, only when it was noticed: a wake-up is 1 to 3 limits of that.
		o.spin.slept(spinLimit(), (Now()-start)/4, false)
	}
	if s.sleepers--; s.sleepers == 0 {
		for _, p := range s.ends {
			if p.returns() {
				p.disarm()
			}
		}
	}
	return err
}

func (s *Sender) spin(o *Outlet, forRoom bool, until uint64) bool {
	limit := spinLimit()
	if o.spin.ns == 0 || limit == 0 {
		return false
	}
	start := Now()
	until = min(until, start+uint64(o.spin.ns))
	for {
		for range 8 {
			if !s.waits(o, forRoom, false) {
				o.spin.found(limit, Now()-start)
				return true
			}
			pause(16)
		}
		if Now() >= until {
			o.spin.missed(limit)
			return false
		}
	}
}

// -- sending -------------------------------------------------------------------------------------------------------

// commit publishes to every claimed route, then rings those that sleep. Called with the lock; the claim is used up.
func (s *Sender) commit(c *claim, length uint64, tags *Tags) error {
	o := c.outlet
	kept := c.chosen[:0]
	for _, p := range c.chosen {
		p.reserved -= c.frames
		if p.state == producerOpen {
			kept = append(kept, p)
		}
	}
	c.chosen = kept
	s.countLost(c)
	if len(kept) == 0 {
		if !c.dropped {
			s.arena.drop(c.extent.run, c.extent.object)
			return o.alive()
		}
		s.numbered(tags, c.frames)
		return nil
	}
	if readers := uint32(len(kept)) * c.frames; readers > 1 {
		s.arena.share(c.extent, readers-1)
	}
	now := Now()
	if s.budgetNS != 0 && (tags.DeadlineNS == 0 || tags.DeadlineNS > now+s.budgetNS) {
		tags.DeadlineNS = now + s.budgetNS
	}
	s.numbered(tags, c.frames)
	s.commits++
	asleep := 0
	for _, p := range kept {
		if p.commit(&c.extent, length, c.frames, tags, now) {
			kept[asleep] = p
			asleep++
		}
	}
	if o.pace.commit(now) {
		nap := o.pace.nap(len(o.producers))
		for _, p := range o.producers {
			if p.ring.data != nil {
				p.ring.note(atNap, nap)
			}
		}
	}
	if asleep > 0 {
		for _, p := range kept[:asleep] {
			p.line.Ring()
		}
		s.rung++
		o.pace.rang(now, Now())
	}
	return nil
}

// numbered gives a source's frames the numbers of their items.
func (s *Sender) numbered(tags *Tags, frames uint32) {
	if s.source && tags.InputSeq == 0 {
		tags.InputSeq, tags.Step = s.item+1, 1
		s.item += uint64(frames)
	}
}

func (s *Sender) countLost(c *claim) {
	if len(c.chosen) == len(c.outlet.producers) {
		return
	}
	for _, p := range c.outlet.producers {
		if slices.Contains(c.chosen, p) {
			continue
		}
		switch {
		case p.state == producerGivenUp:
			p.ring.count(atGivenUp, uint64(c.frames))
		case p.state != producerOpen:
		case c.noRoom:
			p.ring.count(atNoRoom, uint64(c.frames))
		default:
			p.ring.count(atDropped, uint64(c.frames))
		}
	}
}

// Send copies data into the arena and commits it to the routes that `to` names, all or none. Without wait the error is
// ErrWouldBlock where there is no credit or no room now.
func (s *Sender) Send(ctx context.Context, to string, data []byte, tags Tags, wait bool) error {
	s.mu.Lock()
	defer s.unlock()
	c := s.scratch()
	defer s.done(c)
	c.to, c.length = to, uint64(len(data))
	if err := s.claim(ctx, c, 1, wait); err != nil {
		return err
	}
	s.fill(c, func(into []byte) { copy(into, data) })
	return s.commit(c, c.length, &tags)
}

// fill writes into a claim's extent; long copies are made without the lock.
func (s *Sender) fill(c *claim, write func(into []byte)) {
	if c.extent.data == nil || c.dropped {
		return
	}
	if len(c.extent.data) <= longCopy {
		write(c.extent.data)
		return
	}
	s.loans++
	s.mu.Unlock()
	write(c.extent.data)
	s.mu.Lock()
	s.loans--
}

// longCopy is from where on a copy lets others use the Sender meanwhile.
const longCopy = 64 << 10

// runBytes bounds a run: one claim, one extent, one look at the clock, one ring.
const runBytes = 64 << 10

// SendMany sends each size bytes of data as a frame, many in one step, and returns how many were sent.
func (s *Sender) SendMany(ctx context.Context, to string, data []byte, size int, tags Tags, wait bool) (int, error) {
	if size < 1 || len(data)%size != 0 {
		return 0, fmt.Errorf("%d bytes are no whole number of frames of %d bytes", len(data), size)
	}
	s.mu.Lock()
	defer s.unlock()
	c := s.scratch()
	defer s.done(c)
	sent, each := 0, int(stride(uint64(size)))
	for len(data) > 0 {
		frames := min(max(runBytes/each, 1), len(data)/size, MaxCredits)
		c.to, c.length = to, uint64(size)
		if err := s.claim(ctx, c, uint32(frames), wait); err != nil {
			return sent, err
		}
		count := int(c.frames)
		s.fill(c, func(into []byte) {
			for i := range count {
				copy(into[i*each:], data[i*size:(i+1)*size])
			}
		})
		own := tags
		if err := s.commit(c, c.length, &own); err != nil {
			return sent, err
		}
		sent += count
		data = data[count*size:]
	}
	return sent, nil
}

// scratch is a claim for one call; several only where callers wait.
func (s *Sender) scratch() *claim {
	c := s.spare
	if s.spare = nil; c == nil {
		c = new(claim)
	}
	return c
}

func (s *Sender) done(c *claim) { s.spare = c }

// A Loan is room in shared memory that is filled in place. It holds a credit of each of its routes, so Commit never
// waits. The zero Loan is one that is over.
type Loan struct {
	sender *Sender
	open   *openLoan
	turn   uint64
}

type openLoan struct {
	claim
	turn uint64 // odd while it is open
}

var loans = sync.Pool{New: func() any { return new(openLoan) }}

// Reserve returns room for a frame of so many bytes.
func (s *Sender) Reserve(ctx context.Context, to string, length int, wait bool) (Loan, []byte, error) {
	s.mu.Lock()
	defer s.unlock()
	l := loans.Get().(*openLoan)
	l.to, l.length = to, uint64(length)
	if err := s.claim(ctx, &l.claim, 1, wait); err != nil {
		loans.Put(l)
		return Loan{}, nil, err
	}
	room := l.extent.data
	if l.dropped || room == nil {
		room = make([]byte, length) // every route drops it, or it is empty
	}
	s.loans++
	l.turn++
	return Loan{s, l, l.turn}, room, nil
}

// ErrLoanOver: the loan was committed or cancelled already.
var ErrLoanOver = errors.New("the loan is over")

// Commit publishes the first length bytes.
func (l Loan) Commit(length int, tags Tags) error {
	if l.sender == nil {
		return ErrLoanOver
	}
	s := l.sender
	s.mu.Lock()
	defer s.unlock()
	if l.open.turn != l.turn {
		return ErrLoanOver
	}
	if length < 0 || uint64(length) > l.open.length {
		return fmt.Errorf("the loan has %d bytes, not %d", l.open.length, length)
	}
	err := s.commit(&l.open.claim, uint64(length), &tags)
	l.over()
	return err
}

// Cancel gives the room back unsent. Idempotent.
func (l Loan) Cancel() {
	if l.sender == nil {
		return
	}
	s := l.sender
	s.mu.Lock()
	defer s.unlock()
	if l.open.turn != l.turn {
		return
	}
	for _, p := range l.open.chosen {
		p.reserved -= l.open.frames
	}
	if !l.open.dropped {
		s.arena.drop(l.open.extent.run, l.open.extent.object)
	}
	l.over()
	if s.sleepers > 0 {
		s.bell.Ring()
	}
}

func (l Loan) over() {
	l.sender.loans--
	l.open.turn++
	loans.Put(l.open)
}
