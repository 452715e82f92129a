package chronetix

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"chronetix.local/sdk/go/internal/wire"
)

// An Envelope is the head of a message of the event bus.
type Envelope struct {
	// Topic belongs to the flow, unless it begins with a slash: all flows share such a topic.
	Topic string
	Src   string
	// CorrID is not empty in a request.
	CorrID string
	// Deadline is when the message is of no use any more; zero: never.
	Deadline    time.Time
	Priority    int // 0 to 7, 4 by default
	ContentType string
	Headers     map[string]string
	Trace       string
}

// A Message came over the event bus.
type Message struct {
	Envelope
	Payload []byte
	// Head is the envelope as it came, with every key that this package does not know.
	Head   map[string]any
	worker *Worker
}

// ErrNotARequest: only a request expects a reply.
var ErrNotARequest = errors.New("the message is no request")

// Reply answers a request.
func (m *Message) Reply(payload []byte, contentType string) error {
	if m.CorrID == "" {
		return ErrNotARequest
	}
	return m.worker.link.send(wire.Reply{CorrID: m.CorrID, Payload: payload, ContentType: contentType})
}

// A Tick of a timer: it was due at Due, and so many before it were not delivered.
type Tick struct {
	ID       string
	Sequence uint64
	DueNS    uint64 // on CLOCK_MONOTONIC
	Missed   uint64
}

func messageOf(w *Worker, d wire.Deliver) *Message {
	text := func(key, missing string) string {
		if value, isText := d.Envelope[key].(string); isText {
			return value
		}
		return missing
	}
	m := &Message{Payload: d.Payload, Head: d.Envelope, worker: w}
	m.Topic, m.Src, m.CorrID = text("topic", ""), text("src", ""), text("corr_id", "")
	m.ContentType, m.Trace = text("content_type", "application/json"), text("trace", "")
	m.Priority = 4
	if priority, isNumber := d.Envelope["priority"].(uint64); isNumber && priority <= 7 {
		m.Priority = int(priority)
	}
	if deadline, isNumber := d.Envelope["deadline_ns"].(uint64); isNumber && deadline > 0 {
		m.Deadline = time.Unix(0, int64(deadline))
	}
	m.Headers = map[string]string{}
	if headers, isMap := d.Envelope["headers"].(map[string]any); isMap {
		for key, value := range headers {
			if text, isText := value.(string); isText {
				m.Headers[key] = text
			}
		}
	}
	return m
}

func (w *Worker) envelope(e Envelope) wire.Envelope {
	head := wire.Envelope{Topic: e.Topic, Src: e.Src, CorrID: e.CorrID, ContentType: e.ContentType, Headers: e.Headers,
		Trace: e.Trace}
	if head.Src == "" {
		head.Src = w.wired.Node
	}
	if e.Priority != 0 {
		priority := uint64(e.Priority)
		head.Priority = &priority
	}
	if !e.Deadline.IsZero() {
		head.DeadlineNS = uint64(max(e.Deadline.UnixNano(), 1))
	}
	return head
}

// Publish sends a message to all subscribers of its topic.
func (w *Worker) Publish(e Envelope, payload []byte) error {
	return w.link.send(wire.Publish{Envelope: w.envelope(e), Payload: payload})
}

// Subscribe has OnMessage called for a further topic.
func (w *Worker) Subscribe(topic string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.topics[topic] = true
	return w.link.send(wire.Subscribe{Topic: topic})
}

// Unsubscribe ends that.
func (w *Worker) Unsubscribe(topic string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.topics[topic] = false
	return w.link.send(wire.Unsubscribe{Topic: topic})
}

// requestGrace is how much longer than asked is waited for the daemon's own word that the time is up.
const requestGrace = 2 * time.Second

// Request asks one subscriber of the topic and waits for its reply, for as long as the context lasts, or five seconds.
// A *RequestError tells how it ended otherwise. It must not be called by the callback that would have to answer.
func (w *Worker) Request(ctx context.Context, e Envelope, payload []byte) (*Message, error) {
	timeout := 5 * time.Second
	if deadline, bounded := ctx.Deadline(); bounded {
		timeout = max(time.Until(deadline), 0)
	}
	answer := make(chan wire.Message, 1)
	w.mu.Lock()
	w.lastRequest++
	id := w.wired.Node + "-" + strconv.FormatUint(w.wired.Incarnation, 10) + "-" + strconv.FormatUint(w.lastRequest, 10)
	w.requests[id] = answer
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.requests, id)
		w.mu.Unlock()
	}()
	e.CorrID = id
	if err := w.link.send(wire.Request{Envelope: w.envelope(e), Payload: payload, TimeoutNS: uint64(timeout)}); err != nil {
		return nil, err
	}
	late := time.NewTimer(timeout + requestGrace)
	defer late.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		return nil, &RequestError{e.Topic, "timeout", "no reply came in time"}
	case found := <-answer:
		switch found := found.(type) {
		case wire.Reply:
			return &Message{Envelope: Envelope{Topic: e.Topic, ContentType: found.ContentType}, Payload: found.Payload, worker: w}, nil
		case wire.RequestFailure:
			return nil, &RequestError{e.Topic, found.Reason, found.Message}
		}
		return nil, ErrDaemonGone
	}
}

func (w *Worker) resolve(id string, end wire.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if waiting := w.requests[id]; waiting != nil {
		delete(w.requests, id)
		waiting <- end
	}
}

// abandonRequests: the daemon is gone, no reply will come.
func (w *Worker) abandonRequests() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, waiting := range w.requests {
		delete(w.requests, id)
		waiting <- wire.RequestFailure{CorrID: id, Reason: "peer-gone", Message: "the daemon is gone"}
	}
}

// tellDropped reports messages that found no room.
func (w *Worker) tellDropped(atEnd bool) {
	for topic, count := range w.mail.report(atEnd) {
		w.tell(wire.MessagesDropped{Topic: topic, Count: count})
		w.Log().Warn("messages came faster than they were taken; some were dropped", "topic", topic, "dropped", count)
	}
}

// Log is the node's log. Records go to the daemon with their attributes; `chronetixctl logs` shows them.
func (w *Worker) Log() *slog.Logger { return slog.New(&w.logger) }

// workerLog is the handler behind Log.
type workerLog struct {
	worker *Worker
	prefix string
	fields []slog.Attr
}

func (*workerLog) Enabled(context.Context, slog.Level) bool { return true }

func (h *workerLog) Handle(_ context.Context, record slog.Record) error {
	fields := map[string]any{}
	for _, attr := range h.fields {
		addAttr(fields, "", attr)
	}
	record.Attrs(func(attr slog.Attr) bool {
		addAttr(fields, h.prefix, attr)
		return true
	})
	at := uint64(0)
	if !record.Time.IsZero() {
		at = uint64(record.Time.UnixNano())
	}
	return h.worker.link.send(wire.Log{Level: levelName(record.Level), Message: clip(record.Message, 16<<10), UnixNS: at,
		Fields: fields})
}

func levelName(level slog.Level) string {
	switch {
	case level < slog.LevelInfo:
		return "debug"
	case level < slog.LevelWarn:
		return "info"
	case level < slog.LevelError:
		return "warning"
	case level < slog.LevelError+4:
		return "error"
	}
	return "critical"
}

func addAttr(fields map[string]any, prefix string, attr slog.Attr) {
	value := attr.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		inner := prefix
		if attr.Key != "" {
			inner += attr.Key + "."
		}
		for _, each := range value.Group() {
			addAttr(fields, inner, each)
		}
		return
	}
	key := prefix + attr.Key
	switch value.Kind() {
	case slog.KindBool, slog.KindFloat64, slog.KindInt64, slog.KindUint64, slog.KindString:
		fields[key] = value.Any()
	default:
		fields[key] = value.String()
	}
}

func (h *workerLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	made := *h
	made.fields = append([]slog.Attr(nil), h.fields...)
	for _, attr := range attrs {
		made.fields = append(made.fields, slog.Attr{Key: h.prefix + attr.Key, Value: attr.Value})
	}
	return &made
}

func (h *workerLog) WithGroup(name string) slog.Handler {
	made := *h
	if name != "" {
		made.prefix += name + "."
	}
	return &made
}
