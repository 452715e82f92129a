//go:build linux && (amd64 || arm64)

package shm

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Bell is what goroutines of this process sleep on: one epoll with every line's end and an eventfd for rings from
// inside the process, all edges (SPEC.md, 7.1). One sleeper at a time, the leader, is in epoll_wait; it wakes the others.
//
// Enter first, then say what is waited for and look once more, then Sleep with what Enter has returned: a ring in
// between is not lost, because Sleep returns at once when anything has rung since Enter.
type Bell struct {
	epoll, self int

	mu      sync.Mutex
	rings   uint64 // wake-ups so far
	leading bool
	others  chan struct{} // closed at the next wake-up; nil while nobody waits for it
	lines   map[int32]*Line
	events  [bellEvents]unix.EpollEvent
	watched <-chan struct{} // of the context whose end rings
	unwatch func() bool
	closed  bool
}

const (
	bellEvents = 16
	lineBytes  = 256
	// soPassRights is of Linux 6.16.
	soPassRights = 83
	// Forever is no deadline.
	Forever = ^uint64(0)
)

// NewBell makes a bell.
func NewBell() (*Bell, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	self, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	b := &Bell{epoll: epoll, self: self, lines: map[int32]*Line{}}
	if err := b.watchDescriptor(self); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bell) watchDescriptor(fd int) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(b.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// Ring wakes whoever sleeps in this process. From any goroutine.
func (b *Bell) Ring() {
	b.mu.Lock()
	if !b.closed {
		one := [8]byte{1}
		_, _ = unix.Write(b.self, one[:]) // EAGAIN: it was rung so often that it rings anyhow
	}
	b.mu.Unlock()
}

// Enter begins to wait. From any goroutine.
func (b *Bell) Enter() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rings
}

// Sleep returns when something has rung since Enter gave ticket, or the deadline on CLOCK_MONOTONIC has passed (false),
// or with the context's error.
func (b *Bell) Sleep(ctx context.Context, ticket, deadline uint64) (rung bool, err error) {
	b.mu.Lock()
	if b.rings != ticket || b.closed {
		b.mu.Unlock()
		return true, ctx.Err()
	}
	if b.leading {
		return b.follow(ctx, deadline)
	}
	b.leading = true
	b.watch(ctx)
	b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		b.lead(0)
		return false, err
	}
	got := b.await(deadline)
	b.lead(got)
	return got > 0, ctx.Err()
}

// watch rings at the end of the context. Once for each context, not for each sleep.
func (b *Bell) watch(ctx context.Context) {
	done := ctx.Done()
	if done == nil || done == b.watched {
		return
	}
	if b.unwatch != nil {
		b.unwatch()
	}
	b.watched, b.unwatch = done, context.AfterFunc(ctx, b.Ring)
}

// follow waits for the leader. It is called with the lock and releases it.
func (b *Bell) follow(ctx context.Context, deadline uint64) (bool, error) {
	if b.others == nil {
		b.others = make(chan struct{})
	}
	woken := b.others
	b.mu.Unlock()
	var late <-chan time.Time
	if deadline != Forever {
		now := Now()
		timer := time.NewTimer(time.Duration(max(deadline, now) - now))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-woken:
		return true, nil
	case <-late:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// await is the one place where this package blocks. A negative number of events: a signal came.
func (b *Bell) await(deadline uint64) int {
	for {
		var limit *unix.Timespec
		if deadline != Forever {
			now := Now()
			left := unix.NsecToTimespec(int64(max(deadline, now) - now))
			limit = &left
		}
		got, _, err := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(b.epoll), uintptr(unsafe.Pointer(&b.events)),
			bellEvents, uintptr(unsafe.Pointer(limit)), 0, 0)
		switch err {
		case 0:
			return int(got)
		case unix.EINTR:
		case unix.ENOSYS, unix.EPERM:
			return b.awaitOlder(deadline)
		default:
			panic(fmt.Sprintf("chronetix: epoll_pwait2: %v", err))
		}
	}
}

// awaitOlder is for Linux before 5.11, or below a filter of system calls: whole milliseconds, rounded up.
func (b *Bell) awaitOlder(deadline uint64) int {
	for {
		left := -1
		if deadline != Forever {
			now := Now()
			left = int((max(deadline, now) - now + 999999) / 1000000)
		}
		got, err := unix.EpollWait(b.epoll, b.events[:], left)
		if err == nil {
			return got
		}
		if err != unix.EINTR {
			panic(fmt.Sprintf("chronetix: epoll_wait: %v", err))
		}
	}
}

// lead ends a leader's sleep: what rang is read, and the others are woken.
func (b *Bell) lead(got int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, event := range b.events[:max(got, 0)] {
		if line := b.lines[event.Fd]; line != nil {
			line.clear(b)
		}
	}
	b.leading = false
	if got > 0 {
		b.rings++
	}
	// Also when nothing rang: one of the others has to lead now.
	if b.others != nil {
		close(b.others)
		b.others = nil
	}
}

// Close is called when nobody sleeps on it any more.
func (b *Bell) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	if b.unwatch != nil {
		b.unwatch()
	}
	unix.Close(b.epoll)
	unix.Close(b.self)
}

// -- lines ---------------------------------------------------------------------------------------------------------

type lineState uint8

const (
	lineClosed  lineState = iota
	lineShut              // nothing can come on it: nothing is read
	lineBare              // no descriptors can come
	lineGuarded           // looked at before it is read
	lineSpoilt            // the peer has sent a descriptor on it: never read, never closed
)

// A Line is this process's end of a line to the other end of a route. Ring may be called from any goroutine.
type Line struct {
	mu    sync.Mutex
	fd    int
	state lineState
	shut  bool        // for writing: it is rung by shutting it again
	spoil atomic.Bool // state is lineSpoilt
}

// adopt takes over a duplicate of an end of a line. A producer's end on which nothing can come wakes nobody.
func (b *Bell) adopt(fd int, consumer bool) (*Line, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || err2 != nil || domain != unix.AF_UNIX || kind != unix.SOCK_STREAM {
		return nil, faultf("descriptor %d is no end of a line: no Unix stream socket", fd)
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("the line cannot be kept: %w", err)
	}
	line := &Line{fd: copied, state: lineStateOf(copied), shut: isShut(copied)}
	if !consumer && line.state == lineShut {
		return line, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.watchDescriptor(copied); err != nil {
		unix.Close(copied)
		return nil, err
	}
	b.lines[int32(copied)] = line
	return line, nil
}

func lineStateOf(fd int) lineState {
	var one [1]byte
	if got, _, err := recvOnce(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == nil && got == 0 {
		return lineShut
	}
	passes, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soPassRights)
	if err != nil {
		return lineGuarded
	}
	if passes == 0 {
		return lineBare
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, soPassRights, 0)
	return lineGuarded
}

func recvOnce(fd int, into []byte, flags int) (got, found int, err error) {
	for {
		got, _, found, _, err = unix.Recvmsg(fd, into, nil, flags)
		if err != unix.EINTR {
			return got, found, err
		}
	}
}

// isShut finds out by sending nothing.
func isShut(fd int) bool {
	return unix.Sendto(fd, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil) == unix.EPIPE
}

// Ring wakes the other end. It never waits; that nobody is there any more, or that it was rung already, is no error.
func (l *Line) Ring() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return
	}
	if l.shut {
		_ = unix.Shutdown(l.fd, unix.SHUT_WR)
		return
	}
	for {
		_, err := unix.SendmsgN(l.fd, []byte{0}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != unix.EINTR && err != unix.ENOBUFS && err != unix.ENOMEM {
			return
		}
	}
}

// clear reads what has come on a line that rang; called with the bell's lock.
func (l *Line) clear(b *Bell) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 || (l.state != lineBare && l.state != lineGuarded) {
		return
	}
	if l.read() < 0 {
		l.state = lineSpoilt
		l.spoil.Store(true)
		_ = unix.EpollCtl(b.epoll, unix.EPOLL_CTL_DEL, l.fd, nil)
		delete(b.lines, int32(l.fd))
	}
}

// read takes up to 256 bytes; -1: a descriptor lies there, and nothing was read.
func (l *Line) read() int {
	var into [lineBytes]byte
	length := len(into)
	if l.state == lineGuarded {
		got, flags, err := recvOnce(l.fd, into[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != nil || got <= 0 {
			return 0
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return -1
		}
		length = got
	}
	got, _, err := recvOnce(l.fd, into[:length], unix.MSG_DONTWAIT)
	if err != nil {
		return 0
	}
	return got
}

func (l *Line) spoilt() bool { return l != nil && l.spoil.Load() }

// drop ends the route's line, which the peer notices. What was not read is looked at for descriptors first; a line with
// one in it stays open for as long as the process lives.
func (b *Bell) drop(l *Line) {
	if l == nil {
		return
	}
	b.mu.Lock()
	l.mu.Lock()
	defer b.mu.Unlock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return
	}
	_ = unix.Shutdown(l.fd, unix.SHUT_RDWR)
	if b.lines[int32(l.fd)] == l {
		delete(b.lines, int32(l.fd))
		if !b.closed {
			_ = unix.EpollCtl(b.epoll, unix.EPOLL_CTL_DEL, l.fd, nil)
		}
	}
	left := 0
	if l.state == lineGuarded {
		for left = l.read(); left > 0; {
			left = l.read()
		}
	}
	if left >= 0 && l.state != lineSpoilt {
		unix.Close(l.fd)
	}
	l.fd = -1
}
