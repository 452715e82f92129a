package wire

// Message is anything that is sent over the control socket.
type Message interface {
	// Kind is the message's key `type`.
	Kind() string
	// Descriptors is how many descriptors go with the message.
	Descriptors() int
}

type none struct{}

func (none) Descriptors() int { return 0 }

// -- of the connection ---------------------------------------------------------------------------------------------

// ProtocolVersion is the only version that this package speaks.
const ProtocolVersion = 1

// Features that a worker may name in its hello.
const (
	FeatureHandover = "handover"
	FeatureReattach = "reattach"
	FeatureAccuse   = "accuse"
)

type Hello struct {
	none     `cbor:"-"`
	Protocol []uint64 `cbor:"protocol"`
	Role     string   `cbor:"role"`
	Software string   `cbor:"software,omitempty"`
	Features []string `cbor:"features,omitempty"`
	PID      uint64   `cbor:"pid,omitempty"`
	Attach   string   `cbor:"attach,omitempty"`
	Token    string   `cbor:"token,omitempty"`
}

type Welcome struct {
	none
	Protocol uint64
	Daemon   string
	Features []string
	MaxFrame uint64
}

type Failure struct {
	none
	Code    uint64
	Name    string
	Message string
	Hint    string
	Details map[string]any
}

// -- wiring --------------------------------------------------------------------------------------------------------

// Port is one end of one stage of a data route.
type Port struct {
	Route       string
	Peer        string
	Topic       string
	ContentType string
	SchemaVer   string
	Credits     uint64
	Watermark   uint64
	CreditLow   uint64
	Policy      string
	Epoch       uint64
	BaseSeq     uint64
	LimitNS     uint64
	Resume      uint64
	QoS         string
	TapOf       string
}

type Timer struct {
	ID         string
	IntervalNS uint64
}

type Assign struct {
	none
	Name string
	Env  map[string]string
	Cwd  string
}

type Configure struct {
	none
	Flow, Node, PluginID, Version, ImplKind, URI string
	Inputs, Outputs                              []Port
	Timers                                       []Timer
	Subscriptions, Publications                  []string
	Params, QoS, Features, Annotations           map[string]any
	BatchHints                                   map[string]any
	ArenaLimit                                   uint64
	HugePages                                    bool
	BaseDir                                      string
	Incarnation                                  uint64
	OnDaemonLoss                                 string
	Socket, Token                                string
	BudgetNS                                     uint64
	MaxInflight                                  uint64
	Standby                                      bool
	EndNS, TerminateNS                           uint64
}

type Extend struct {
	none
	Inputs, Outputs []Port
	Leave           []string
}

type Offer struct {
	Rings    []string `cbor:"rings,omitempty"`
	Credits  []string `cbor:"credits,omitempty"`
	Segments []uint64 `cbor:"segments,omitempty"`
}

func (o Offer) Descriptors() int { return len(o.Rings) + len(o.Credits) + len(o.Segments) }

type InputLink struct {
	Route       string
	Segments    []uint64
	Epoch       uint64
	Predecessor bool
}

func (l InputLink) descriptors() int {
	count := 2 + len(l.Segments)
	if l.Predecessor {
		count++
	}
	return count
}

type Link struct {
	Outputs []string
	Inputs  []InputLink
	Epochs  []uint64
}

func (l Link) Descriptors() int {
	count := 2 * len(l.Outputs)
	for _, input := range l.Inputs {
		count += input.descriptors()
	}
	return count
}

type Linked struct {
	none   `cbor:"-"`
	Routes []string `cbor:"routes,omitempty"`
}

type Drained struct {
	none  `cbor:"-"`
	Route string `cbor:"route"`
	Epoch uint64 `cbor:"epoch"`
}

type Conclude struct {
	none
	Route string
	Seq   uint64
}

type ReattachedStage struct {
	Route    string   `cbor:"route"`
	Epoch    uint64   `cbor:"epoch,omitempty"`
	Linked   *bool    `cbor:"linked,omitempty"`
	Segments []uint64 `cbor:"segments,omitempty"`
	Resume   uint64   `cbor:"resume,omitempty"`
}

type Reattach struct {
	Flow        string            `cbor:"flow"`
	Node        string            `cbor:"node"`
	Token       string            `cbor:"token"`
	State       string            `cbor:"state"`
	Incarnation uint64            `cbor:"incarnation,omitempty"`
	Outputs     []ReattachedStage `cbor:"outputs,omitempty"`
	Inputs      []ReattachedStage `cbor:"inputs,omitempty"`
	Segments    []uint64          `cbor:"segments,omitempty"`
	Unconfirmed []uint64          `cbor:"unconfirmed,omitempty"`
	Dropped     []uint64          `cbor:"dropped,omitempty"`
	Pipes       bool              `cbor:"pipes,omitempty"`
}

func (r Reattach) Descriptors() int {
	count := len(r.Outputs) + len(r.Inputs) + len(r.Segments)
	if r.Pipes {
		count += 2
	}
	return count
}

type Reattached struct{}

func (Reattached) Descriptors() int { return 2 }

// Segment, SegmentMapped and SegmentDropped go both ways.
type Segment struct {
	Index uint64 `cbor:"index"`
	Route string `cbor:"route,omitempty"`
	Epoch uint64 `cbor:"epoch,omitempty"`
}

func (Segment) Descriptors() int { return 1 }

type SegmentMapped struct {
	none  `cbor:"-"`
	Index uint64 `cbor:"index"`
	Route string `cbor:"route,omitempty"`
	Epoch uint64 `cbor:"epoch,omitempty"`
}

type SegmentDropped struct {
	none  `cbor:"-"`
	Index uint64 `cbor:"index"`
	Route string `cbor:"route,omitempty"`
	Epoch uint64 `cbor:"epoch,omitempty"`
}

// -- life ----------------------------------------------------------------------------------------------------------

type Ready struct {
	none `cbor:"-"`
}

type Start struct {
	none
	Handover any
}

type Started struct {
	none `cbor:"-"`
}

type Detach struct {
	none
	Route string
}

type GaveUp struct {
	none     `cbor:"-"`
	Route    string `cbor:"route"`
	WaitedNS uint64 `cbor:"waited_ns"`
}

// Accuse: the peer on this stage of the route broke a rule of shm/SPEC.md, section 8.
type Accuse struct {
	none  `cbor:"-"`
	Route string `cbor:"route"`
	Rule  string `cbor:"rule"`
	Epoch uint64 `cbor:"epoch,omitempty"`
}

type Retract struct {
	none
	Route string
}

type Drain struct{ none }

type Leave struct{ none }

type Finished struct {
	none   `cbor:"-"`
	Result any `cbor:"result,omitempty"`
}

type Fault struct {
	none      `cbor:"-"`
	Phase     string `cbor:"phase"`
	Error     string `cbor:"error"`
	Message   string `cbor:"message"`
	Traceback string `cbor:"traceback,omitempty"`
}

type FrameFailed struct {
	none     `cbor:"-"`
	Route    string `cbor:"route"`
	Seq      uint64 `cbor:"seq"`
	Attempts uint64 `cbor:"attempts"`
	Error    string `cbor:"error"`
	Outcome  string `cbor:"outcome"`
	Message  string `cbor:"message,omitempty"`
}

type Ping struct {
	none
	ID uint64
}

type Pong struct {
	none     `cbor:"-"`
	ID       uint64 `cbor:"id"`
	Progress uint64 `cbor:"progress"`
	BusyNS   uint64 `cbor:"busy_ns,omitempty"`
	Doing    string `cbor:"doing,omitempty"`
}

type Log struct {
	none    `cbor:"-"`
	Level   string         `cbor:"level"`
	Message string         `cbor:"message"`
	UnixNS  uint64         `cbor:"unix_ns,omitempty"`
	Fields  map[string]any `cbor:"fields,omitempty"`
}

// -- the event bus -------------------------------------------------------------------------------------------------

// Envelope is what is sent of a message's head. What is received is the map that came, with every unknown key.
type Envelope struct {
	Topic       string            `cbor:"topic"`
	Src         string            `cbor:"src,omitempty"`
	Dst         string            `cbor:"dst,omitempty"`
	CorrID      string            `cbor:"corr_id,omitempty"`
	DeadlineNS  uint64            `cbor:"deadline_ns,omitempty"`
	Priority    *uint64           `cbor:"priority,omitempty"`
	ContentType string            `cbor:"content_type,omitempty"`
	SchemaVer   string            `cbor:"schema_ver,omitempty"`
	Headers     map[string]string `cbor:"headers,omitempty"`
	Trace       string            `cbor:"trace,omitempty"`
	Ext         map[string]any    `cbor:"ext,omitempty"`
}

type Publish struct {
	none     `cbor:"-"`
	Envelope Envelope `cbor:"envelope"`
	Payload  []byte   `cbor:"payload"`
}

type Deliver struct {
	none
	Envelope map[string]any
	Payload  []byte
}

type Subscribe struct {
	none  `cbor:"-"`
	Topic string `cbor:"topic"`
}

type Unsubscribe struct {
	none  `cbor:"-"`
	Topic string `cbor:"topic"`
}

type MessagesDropped struct {
	none  `cbor:"-"`
	Topic string `cbor:"topic"`
	Count uint64 `cbor:"count"`
}

type Request struct {
	none      `cbor:"-"`
	Envelope  Envelope `cbor:"envelope"`
	Payload   []byte   `cbor:"payload"`
	TimeoutNS uint64   `cbor:"timeout_ns"`
}

type Reply struct {
	none        `cbor:"-"`
	CorrID      string `cbor:"corr_id"`
	Payload     []byte `cbor:"payload"`
	ContentType string `cbor:"content_type,omitempty"`
}

type RequestFailure struct {
	none
	CorrID, Reason, Message string
}

type Tick struct {
	none
	ID       string
	Sequence uint64
	DueNS    uint64
	Missed   uint64
}

func (Hello) Kind() string           { return "hello" }
func (Welcome) Kind() string         { return "welcome" }
func (Failure) Kind() string         { return "error" }
func (Assign) Kind() string          { return "assign" }
func (Configure) Kind() string       { return "configure" }
func (Extend) Kind() string          { return "extend" }
func (Offer) Kind() string           { return "offer" }
func (Link) Kind() string            { return "link" }
func (Linked) Kind() string          { return "linked" }
func (Drained) Kind() string         { return "drained" }
func (Conclude) Kind() string        { return "conclude" }
func (Reattach) Kind() string        { return "reattach" }
func (Reattached) Kind() string      { return "reattached" }
func (Segment) Kind() string         { return "segment" }
func (SegmentMapped) Kind() string   { return "segment-mapped" }
func (SegmentDropped) Kind() string  { return "segment-dropped" }
func (Ready) Kind() string           { return "ready" }
func (Start) Kind() string           { return "start" }
func (Started) Kind() string         { return "started" }
func (Detach) Kind() string          { return "detach" }
func (GaveUp) Kind() string          { return "gave-up" }
func (Accuse) Kind() string          { return "accuse" }
func (Retract) Kind() string         { return "retract" }
func (Drain) Kind() string           { return "drain" }
func (Leave) Kind() string           { return "leave" }
func (Finished) Kind() string        { return "finished" }
func (Fault) Kind() string           { return "fault" }
func (FrameFailed) Kind() string     { return "frame-failed" }
func (Ping) Kind() string            { return "ping" }
func (Pong) Kind() string            { return "pong" }
func (Log) Kind() string             { return "log" }
func (Publish) Kind() string         { return "publish" }
func (Deliver) Kind() string         { return "deliver" }
func (Subscribe) Kind() string       { return "subscribe" }
func (Unsubscribe) Kind() string     { return "unsubscribe" }
func (MessagesDropped) Kind() string { return "messages-dropped" }
func (Request) Kind() string         { return "request" }
func (Reply) Kind() string           { return "reply" }
func (RequestFailure) Kind() string  { return "request-failed" }
func (Tick) Kind() string            { return "tick" }
