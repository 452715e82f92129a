package chronetix

import (
	"maps"
	"slices"

	"chronetix.local/sdk/go/internal/shm"
	"chronetix.local/sdk/go/internal/wire"
)

// Versions of what this package speaks. A daemon of the same major release speaks them, too.
const (
	// Version of this package; it is released with the daemon of the same version.
	Version = "0.1.0"
	// ProtocolVersion is that of protocol/PROTOCOL.md.
	ProtocolVersion = wire.ProtocolVersion
	// ABIVersion is that of shm/SPEC.md.
	ABIVersion = shm.ABI
)

// A Port is one end of a data route. See `port` in protocol/protocol.cddl.
type Port = wire.Port

// A TimerSpec is a timer whose ticks the daemon sends.
type TimerSpec = wire.Timer

// Config is the node that this worker runs, as the flow file describes it.
type Config struct {
	Flow, Node, PluginID, Version string
	Kind, URI                     string
	// Inputs and Outputs are the data routes, each once.
	Inputs, Outputs []Port
	Timers          []TimerSpec
	// Subscriptions are topics that the node gets, Publications those that it is expected to publish to.
	Subscriptions, Publications []string
	// Params are the node's own; numbers are uint64, int64 or float64.
	Params                     map[string]any
	QoS, Features, Annotations map[string]any
	// BaseDir is the folder to which relative paths belong.
	BaseDir string
	// Incarnation counts the restarts of the node.
	Incarnation uint64
	// MaxInflight is how many frames may be processed at once, where the node does that.
	MaxInflight uint64
	// Survives tells whether this worker outlives its daemon.
	Survives bool

	resumeAfter uint64 // of a source: the lowest number of an item that an output has got
}

func configOf(c wire.Configure) Config {
	resume := uint64(0)
	if len(c.Inputs) == 0 && len(c.Outputs) > 0 {
		resume = c.Outputs[0].Resume
		for _, port := range c.Outputs {
			resume = min(resume, port.Resume)
		}
	}
	return Config{
		Flow: c.Flow, Node: c.Node, PluginID: c.PluginID, Version: c.Version, Kind: c.ImplKind, URI: c.URI,
		Inputs: onePerRoute(c.Inputs), Outputs: slices.Clone(c.Outputs), Timers: c.Timers,
		Subscriptions: c.Subscriptions, Publications: c.Publications,
		Params: maps.Clone(c.Params), QoS: c.QoS, Features: c.Features, Annotations: c.Annotations,
		BaseDir: c.BaseDir, Incarnation: c.Incarnation, MaxInflight: c.MaxInflight,
		Survives: c.OnDaemonLoss == "survive", resumeAfter: resume,
	}
}

// onePerRoute leaves out later stages of the same route.
func onePerRoute(ports []Port) (found []Port) {
	for _, port := range ports {
		if !slices.ContainsFunc(found, func(each Port) bool { return each.Route == port.Route }) {
			found = append(found, port)
		}
	}
	return found
}

var policies = map[string]shm.Policy{"block": shm.Block, "drop_newest": shm.DropNewest, "latest": shm.Latest}

// headerOf is the ring that a port asks for.
func headerOf(port Port) shm.Header {
	clamp := func(value uint64) uint32 { return uint32(min(value, 1<<31)) }
	return shm.Header{Epoch: port.Epoch, BaseSeq: port.BaseSeq, Credits: clamp(port.Credits),
		Watermark: clamp(port.Watermark), CreditLow: clamp(port.CreditLow), Policy: policies[port.Policy]}
}

func namesOf(port Port) shm.Names {
	return shm.Names{Route: port.Route, Peer: port.Peer, Topic: port.Topic}
}

func inputOf(port Port) shm.Input {
	header := headerOf(port)
	header.Watermark, header.CreditLow, header.Policy = 0, 0, 0
	return shm.Input{Route: port.Route, Peer: port.Peer, ContentType: port.ContentType, Class: port.QoS,
		Header: header, Resume: port.Resume}
}
