package wire

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	prefix        = 4
	maxPerSendmsg = 253
	maxWaiting    = 4096
)

// Encode returns the message as one frame. The error is a *Refusal named frame-not-sendable.
func Encode(message Message, maxFrame uint64) ([]byte, error) {
	body, err := encoding.Marshal(message)
	if err != nil {
		return nil, refuse("frame-not-sendable", "type", message.Kind(), "reason", err.Error())
	}
	kind := message.Kind()
	// A message is a map of fewer than 23 fields, so its head is one byte, and `type` goes in front of the fields.
	frame := make([]byte, prefix, prefix+len(body)+7+len(kind))
	frame = append(frame, body[0]+1)
	frame = append(frame, "\x64type"...)
	frame = append(frame, 0x60+byte(len(kind)))
	frame = append(frame, kind...)
	frame = append(frame, body[1:]...)
	content := frame[prefix:]
	if err := checkItem(content); err != nil {
		return nil, refuse("frame-not-sendable", "type", kind, "reason", err.Error())
	}
	if uint64(len(content)) > maxFrame {
		return nil, refuse("frame-not-sendable", "type", kind,
			"reason", fmt.Sprintf("it has %d bytes, and at most %d may be sent", len(content), maxFrame))
	}
	binary.BigEndian.PutUint32(frame, uint32(len(content)))
	return frame, nil
}

// Piece is what one sendmsg sends.
type Piece struct {
	Data        []byte
	Descriptors []int
}

// Pieces cuts a message into what each sendmsg may carry: the descriptors go with the first bytes.
func Pieces(message Message, descriptors []int, maxFrame uint64) ([]Piece, error) {
	if len(descriptors) != message.Descriptors() {
		return nil, refuse("descriptors-mismatch", "type", message.Kind(), "expected", message.Descriptors(),
			"count", len(descriptors))
	}
	frame, err := Encode(message, maxFrame)
	if err != nil {
		return nil, err
	}
	var pieces []Piece
	for len(descriptors) > maxPerSendmsg {
		if len(frame) == 1 {
			return nil, refuse("frame-not-sendable", "type", message.Kind(), "reason", "it has too many descriptors")
		}
		pieces = append(pieces, Piece{frame[:1], descriptors[:maxPerSendmsg]})
		frame, descriptors = frame[1:], descriptors[maxPerSendmsg:]
	}
	return append(pieces, Piece{frame, descriptors}), nil
}

// Received is a message and its descriptors, which belong to whoever takes it.
type Received struct {
	Message     Message
	Descriptors []int
}

// Decoder turns bytes and descriptors into messages. Once it has refused something it stays broken, because it cannot
// find the beginning of the next frame.
type Decoder struct {
	readers  readers
	maxFrame uint64
	buffer   []byte
	waiting  []int
	broken   error
}

// NewDecoder decodes what a daemon sends to a worker.
func NewDecoder() *Decoder { return &Decoder{readers: toWorker, maxFrame: MaxFrame} }

// Feed takes what one recvmsg has received. The messages that it returns came before the error, if there is one; an
// error is a *Refusal, and all descriptors that waited are closed then.
func (d *Decoder) Feed(data []byte, descriptors []int) ([]Received, error) {
	d.waiting = append(d.waiting, descriptors...)
	if d.broken != nil {
		return nil, d.fail(d.broken)
	}
	if len(d.waiting) > maxWaiting {
		return nil, d.fail(refuse("too-many-descriptors", "limit", maxWaiting))
	}
	d.buffer = append(d.buffer, data...)
	var found []Received
	for {
		message, complete, err := d.next()
		if err != nil {
			return found, d.fail(err)
		}
		if !complete {
			break
		}
		count := message.Descriptors()
		if count > len(d.waiting) {
			return found, d.fail(refuse("missing-descriptors", "type", message.Kind(), "expected", count,
				"count", len(d.waiting)))
		}
		found = append(found, Received{message, d.waiting[:count:count]})
		d.waiting = d.waiting[count:]
	}
	if len(d.buffer) == 0 && len(d.waiting) > 0 {
		return found, d.fail(refuse("unexpected-descriptors", "count", len(d.waiting)))
	}
	return found, nil
}

// End is called when the peer has closed the connection.
func (d *Decoder) End() error {
	CloseAll(d.waiting)
	d.waiting = nil
	if d.broken == nil && len(d.buffer) > 0 {
		return d.fail(refuse("connection-cut", "count", len(d.buffer)))
	}
	return nil
}

func (d *Decoder) next() (Message, bool, error) {
	if len(d.buffer) < prefix {
		return nil, false, nil
	}
	size := uint64(binary.BigEndian.Uint32(d.buffer))
	if size > d.maxFrame {
		return nil, false, refuse("frame-too-large", "size", size, "limit", d.maxFrame)
	}
	if uint64(len(d.buffer)-prefix) < size {
		return nil, false, nil
	}
	end := prefix + int(size)
	message, err := d.readers.decode(d.buffer[prefix:end])
	if err != nil {
		return nil, false, err
	}
	d.buffer = d.buffer[end:]
	if len(d.buffer) == 0 {
		d.buffer = nil
	}
	return message, true, nil
}

func (d *Decoder) fail(reason error) error {
	d.broken = reason
	d.buffer = nil
	CloseAll(d.waiting)
	d.waiting = nil
	return reason
}

// CloseAll closes descriptors that nobody takes.
func CloseAll(descriptors []int) {
	for _, descriptor := range descriptors {
		_ = unix.Close(descriptor)
	}
}
