package chronetix

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// streams are stdout and stderr of a worker that outlives its daemon, which reads both.
//
// Who writes into a pipe that nobody reads gets SIGPIPE. So both are opened for reading too: whoever has one of them is
// also its reader, and the pipe stays. It is full after a while, and then writing sleeps; so while no daemon is there a
// goroutine takes the oldest of it away and counts that. The next daemon is shown the pipes and reads on.
type streams struct {
	mu      sync.Mutex
	held    map[int]int // by number: a reading end of our own
	lost    map[int]uint64
	own     bool // of a process that nobody started as a worker: they are left alone
	nowhere int
	stop    chan struct{}
	stopped chan struct{}
}

var streamNames = map[int]string{1: "stdout", 2: "stderr"}

const (
	roomPause = 5 * time.Millisecond
	roomLook  = 100 * time.Millisecond
)

func newStreams(own bool) (*streams, error) {
	nowhere, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := &streams{held: map[int]int{}, lost: map[int]uint64{}, nowhere: nowhere, own: own}
	if err := s.hold(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func isPipe(number int) bool {
	var status unix.Stat_t
	return unix.Fstat(number, &status) == nil && status.Mode&unix.S_IFMT == unix.S_IFIFO
}

// hold: a daemon reads them now, and may die from now on.
func (s *streams) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo()
	for number := range streamNames {
		if s.own || !isPipe(number) {
			continue
		}
		path := fmt.Sprintf("/proc/self/fd/%d", number)
		own, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Dup3(own, number, 0)
		unix.Close(own)
		if err != nil {
			return err
		}
		if s.held[number], err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			delete(s.held, number)
			return err
		}
	}
	return nil
}

func (s *streams) letGo() {
	for number, descriptor := range s.held {
		unix.Close(descriptor)
		delete(s.held, number)
	}
}

// shown are the reading ends for the next daemon, nil unless both are pipes.
func (s *streams) shown() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) != len(streamNames) {
		return nil
	}
	return []int{s.held[1], s.held[2]}
}

func (s *streams) takeLost() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := map[string]uint64{}
	for number, count := range s.lost {
		if count > 0 {
			lost[streamNames[number]] = count
		}
	}
	clear(s.lost)
	return lost
}

// begin: the daemon is gone, keep room in the pipes. Idempotent.
func (s *streams) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil || len(s.held) == 0 {
		return
	}
	s.stop, s.stopped = make(chan struct{}), make(chan struct{})
	go s.keepRoom(s.stop, s.stopped)
}

// end: a daemon reads again. Idempotent.
func (s *streams) end() {
	s.mu.Lock()
	stop, stopped := s.stop, s.stopped
	s.stop = nil
	s.mu.Unlock()
	if stop != nil {
		close(stop)
		<-stopped
	}
}

func (s *streams) keepRoom(stop, stopped chan struct{}) {
	defer close(stopped)
	for {
		pause := roomLook
		if s.makeRoom() {
			pause = roomPause
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}

// makeRoom takes the oldest away once a quarter of a pipe is full; true: it has.
func (s *streams) makeRoom() (taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number, descriptor := range s.held {
		size, err := unix.FcntlInt(uintptr(descriptor), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			continue
		}
		for {
			there, err := unix.IoctlGetInt(descriptor, unix.TIOCINQ)
			if err != nil || there <= size/4 {
				break
			}
			gone, err := unix.Splice(descriptor, nil, s.nowhere, nil, there-size/8, unix.SPLICE_F_NONBLOCK)
			if err != nil || gone <= 0 {
				break // a daemon that was shown the pipe has just emptied it
			}
			s.lost[number] += uint64(gone)
			taken = true
		}
	}
	return taken
}

// silence: this process ends and no daemon will read.
func (s *streams) silence() {
	for number := range streamNames {
		if !s.own && isPipe(number) {
			_ = unix.Dup3(s.nowhere, number, 0)
		}
	}
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo()
}

func (s *streams) close() {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo()
	if s.nowhere >= 0 {
		unix.Close(s.nowhere)
		s.nowhere = -1
	}
}
