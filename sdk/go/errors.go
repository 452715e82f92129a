package chronetix

import (
	"errors"
	"fmt"
	"strings"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

//go:generate go run ./internal/errgen ../../protocol/errors.json codes.go

// A Code is the number of an entry of the error catalogue, protocol/errors.json. It is an error itself, so that
// errors.Is(err, chronetix.CodeReattachRefused) tells which one err is.
type Code int

type entry struct{ name, message, hint string }

// Error returns the entry's name.
func (c Code) Error() string {
	if found, known := catalogue[c]; known {
		return found.name
	}
	return fmt.Sprintf("error %d", int(c))
}

// Error is an entry of the catalogue with its details: what the daemon has refused, or what it must not have sent.
// errors.As finds it, and errors.Is finds its Code.
type Error struct {
	Code    Code
	Name    string
	Message string
	Hint    string
	Details map[string]any
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ". " + e.Hint
}

// Unwrap returns the code.
func (e *Error) Unwrap() error { return e.Code }

// Errors of the data plane and of a worker's life. What is returned wraps them.
var (
	// ErrWouldBlock: there is no credit or no room now, and nothing was sent.
	ErrWouldBlock = shm.ErrWouldBlock
	// ErrRouteClosed: every consumer has detached, so nobody takes what this node sends. A node has nothing to do then;
	// Run ends it as one that has finished.
	ErrRouteClosed = shm.ErrClosed
	// ErrTooLarge: the frame can never fit the node's memory (resource_claims.arena_bytes).
	ErrTooLarge = shm.ErrTooLarge
	// ErrNoMemory: the machine cannot give that much shared memory.
	ErrNoMemory = shm.ErrNoMemory
	// ErrLoanOver: the loan was committed or cancelled already.
	ErrLoanOver = shm.ErrLoanOver
	// ErrDaemonGone: the daemon has ended, and this worker was not told to survive that.
	ErrDaemonGone = errors.New("the daemon is gone")
	// ErrNotAWorker: the process was not started by a daemon.
	ErrNotAWorker = errors.New("CHRONETIX_FD names no descriptor: this program is started by chronetixd, in a flow")
	// ErrDrained: the node was told to end before it had begun.
	ErrDrained = errors.New("the node was told to end before it had started")
)

// PeerFault is what errors.As finds where the other end of a route has broken a rule of the shared memory. Its route is
// lost, the others go on.
type PeerFault struct {
	Route  string
	Reason string
}

func (f *PeerFault) Error() string {
	return fmt.Sprintf("route %s: the peer broke the ABI: %s", f.Route, f.Reason)
}

// RequestError is how a request ended that got no reply: Reason is timeout, no-subscriber or peer-gone.
type RequestError struct{ Topic, Reason, Message string }

func (e *RequestError) Error() string {
	return fmt.Sprintf("request to %s: %s (%s)", e.Topic, e.Message, e.Reason)
}

// Timeout tells whether the time was up, as net.Error does.
func (e *RequestError) Timeout() bool { return e.Reason == "timeout" }

// of makes an error of what the inner packages return.
func of(err error) error {
	var refusal *wire.Refusal
	if errors.As(err, &refusal) {
		return fromCatalogue(refusal.Name, refusal.Details)
	}
	var route *shm.RouteError
	var fault *shm.Fault
	switch {
	case errors.As(err, &route) && errors.As(err, &fault):
		return &PeerFault{route.Route, fault.Why}
	case errors.Is(err, shm.ErrUnknownRoute) && errors.As(err, &route):
		return fromCatalogue(CodeRouteUnknown.Error(), map[string]any{"route": route.Route, "node": "this"})
	}
	return err
}

// fromCatalogue fills in an entry's texts: {name} is a detail, and a part in brackets is left out without its detail.
func fromCatalogue(name string, details map[string]any) error {
	for code, found := range catalogue {
		if found.name == name {
			return &Error{code, name, fill(found.message, details), fill(found.hint, details), details}
		}
	}
	return errors.New(name)
}

func fill(template string, details map[string]any) string {
	var out strings.Builder
	for {
		open := strings.IndexByte(template, '[')
		if open < 0 {
			break
		}
		end := strings.IndexByte(template[open:], ']')
		if end < 0 {
			break
		}
		out.WriteString(substitute(template[:open], details))
		optional := template[open+1 : open+end]
		if filled := substitute(optional, details); !strings.Contains(filled, "{") {
			out.WriteString(filled)
		}
		template = template[open+end+1:]
	}
	out.WriteString(substitute(template, details))
	return out.String()
}

func substitute(text string, details map[string]any) string {
	for key, value := range details {
		if value != nil {
			text = strings.ReplaceAll(text, "{"+key+"}", fmt.Sprint(value))
		}
	}
	return text
}

func fromFailure(f wire.Failure) error {
	return &Error{Code(f.Code), f.Name, f.Message, f.Hint, f.Details}
}
