package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const chunk = 64 * 1024

// Conn is one connected control socket. One goroutine receives; Write is serialised by its caller.
type Conn struct {
	sock    *net.UnixConn
	decoder *Decoder
	ready   []Received
	failed  error // to be returned behind what is ready
	buffer  []byte
	control []byte
	// MaxFrame bounds what is sent; the welcome says it.
	MaxFrame atomic.Uint64
}

// NewConn takes over the descriptor of a connected stream socket.
func NewConn(descriptor int) (*Conn, error) {
	file := os.NewFile(uintptr(descriptor), "chronetix-control")
	if file == nil {
		return nil, fmt.Errorf("%d is no descriptor", descriptor)
	}
	defer file.Close()
	unix.CloseOnExec(descriptor)
	made, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	sock, isUnix := made.(*net.UnixConn)
	if !isUnix {
		made.Close()
		return nil, fmt.Errorf("descriptor %d is no Unix socket", descriptor)
	}
	return wrap(sock), nil
}

// Dial connects to a daemon's control socket.
func Dial(path string) (*Conn, error) {
	sock, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return wrap(sock), nil
}

func wrap(sock *net.UnixConn) *Conn {
	conn := &Conn{
		sock:    sock,
		decoder: NewDecoder(),
		buffer:  make([]byte, chunk),
		control: make([]byte, unix.CmsgSpace(4*maxPerSendmsg)),
	}
	conn.MaxFrame.Store(MaxFrame)
	return conn
}

// Receive returns the next message. io.EOF: the peer has closed between two frames; a *Refusal: it sent what it must
// not. After SetReadDeadline the error may be os.ErrDeadlineExceeded, and nothing is lost.
func (c *Conn) Receive() (Received, error) {
	for len(c.ready) == 0 {
		if c.failed != nil {
			return Received{}, c.failed
		}
		got, carried, err := c.read()
		if err != nil {
			CloseAll(carried)
			return Received{}, err
		}
		if got == 0 {
			if err := c.decoder.End(); err != nil {
				return Received{}, err
			}
			return Received{}, io.EOF
		}
		c.ready, c.failed = c.decoder.Feed(c.buffer[:got], carried)
	}
	first := c.ready[0]
	c.ready = c.ready[1:]
	return first, nil
}

func (c *Conn) read() (int, []int, error) {
	got, oob, flags, _, err := c.sock.ReadMsgUnix(c.buffer, c.control)
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	var carried []int
	messages, err := unix.ParseSocketControlMessage(c.control[:oob])
	if err != nil {
		return 0, nil, err
	}
	for i := range messages {
		if rights, err := unix.ParseUnixRights(&messages[i]); err == nil {
			carried = append(carried, rights...)
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return 0, carried, refuse("missing-descriptors", "type", "any", "expected", "more", "count", len(carried))
	}
	return got, carried, nil
}

// Write sends one message in pieces.
func (c *Conn) Write(pieces []Piece) error {
	for _, piece := range pieces {
		rest := piece.Data
		if len(piece.Descriptors) > 0 {
			sent, _, err := c.sock.WriteMsgUnix(rest, unix.UnixRights(piece.Descriptors...), nil)
			if err != nil {
				return err
			}
			rest = rest[sent:]
		}
		if len(rest) > 0 {
			if _, err := c.sock.Write(rest); err != nil {
				return err
			}
		}
	}
	return nil
}

// Send encodes and writes one message.
func (c *Conn) Send(message Message, descriptors ...int) error {
	pieces, err := Pieces(message, descriptors, c.MaxFrame.Load())
	if err != nil {
		return err
	}
	return c.Write(pieces)
}

// SetReadDeadline bounds Receive.
func (c *Conn) SetReadDeadline(at time.Time) error { return c.sock.SetReadDeadline(at) }

// SetDeadline bounds Receive and Write.
func (c *Conn) SetDeadline(at time.Time) error { return c.sock.SetDeadline(at) }

// PeerUser is the user at the other end when the socket was made, or listened on.
func (c *Conn) PeerUser() (uint32, error) {
	var user uint32
	err := c.withDescriptor(func(fd int) error {
		credentials, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			user = credentials.Uid
		}
		return err
	})
	return user, err
}

// Delivered tells whether the peer lives and has read all that was sent.
func (c *Conn) Delivered() (bool, error) {
	delivered := false
	err := c.withDescriptor(func(fd int) error {
		unread, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil || unread != 0 {
			return err
		}
		// In this order: a peer that dies throws away what it has not read.
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		hung, err := unix.Poll(poll, 0)
		delivered = err == nil && hung == 0
		return err
	})
	return delivered, err
}

func (c *Conn) withDescriptor(act func(fd int) error) error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = act(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Close ends Receive and Write, and closes descriptors that nobody took.
func (c *Conn) Close() error { return c.sock.Close() }

// Discard closes the descriptors of messages that came and were not taken. Receive must not run.
func (c *Conn) Discard() {
	for _, received := range c.ready {
		CloseAll(received.Descriptors)
	}
	c.ready = nil
	_ = c.decoder.End()
}
