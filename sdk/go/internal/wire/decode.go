package wire

import (
	"sort"
	"strings"
)

// readers decode what a daemon may send to a worker.
type readers map[string]func(*fields) Message

// toWorker are the defaults of protocol.cddl, where a field may be left out.
var toWorker = readers{
	"welcome": func(f *fields) Message {
		return Welcome{Protocol: f.count("protocol"), Daemon: f.text("daemon"), Features: f.texts("features"),
			MaxFrame: f.countOr("max_frame", MaxFrame)}
	},
	"error": func(f *fields) Message {
		if id, there := f.values["id"]; there && id != nil {
			f.number(id, "id")
		}
		return Failure{Code: f.count("code"), Name: f.text("name"), Message: f.text("message"),
			Hint: f.textOr("hint", ""), Details: f.table("details")}
	},
	"assign": func(f *fields) Message {
		return Assign{Name: f.text("name"), Env: f.textMap("env"), Cwd: f.textOr("cwd", "")}
	},
	"configure": readConfigure,
	"extend": func(f *fields) Message {
		return Extend{Inputs: each(f, "inputs", readPort), Outputs: each(f, "outputs", readPort), Leave: f.texts("leave")}
	},
	"link": func(f *fields) Message {
		return Link{Outputs: f.texts("outputs"), Inputs: each(f, "inputs", readInputLink), Epochs: f.counts("epochs", false)}
	},
	"drained":    func(f *fields) Message { return Drained{Route: f.text("route"), Epoch: f.count("epoch")} },
	"conclude":   func(f *fields) Message { return Conclude{Route: f.text("route"), Seq: f.count("seq")} },
	"reattached": func(*fields) Message { return Reattached{} },
	"segment": func(f *fields) Message {
		return Segment{Index: f.count("index"), Route: f.textOr("route", ""), Epoch: f.countOr("epoch", 0)}
	},
	"segment-mapped": func(f *fields) Message {
		return SegmentMapped{Index: f.count("index"), Route: f.textOr("route", ""), Epoch: f.countOr("epoch", 0)}
	},
	"segment-dropped": func(f *fields) Message {
		return SegmentDropped{Index: f.count("index"), Route: f.textOr("route", ""), Epoch: f.countOr("epoch", 0)}
	},
	"start":   func(f *fields) Message { return Start{Handover: f.any("handover")} },
	"detach":  func(f *fields) Message { return Detach{Route: f.text("route")} },
	"retract": func(f *fields) Message { return Retract{Route: f.text("route")} },
	"drain":   func(*fields) Message { return Drain{} },
	"leave":   func(*fields) Message { return Leave{} },
	"ping":    func(f *fields) Message { return Ping{ID: f.count("id")} },
	"deliver": func(f *fields) Message {
		return Deliver{Envelope: typed(f, "envelope", true, map[string]any{}, "a map"), Payload: f.bytes("payload")}
	},
	"reply": func(f *fields) Message {
		return Reply{CorrID: f.text("corr_id"), Payload: f.bytes("payload"),
			ContentType: f.textOr("content_type", "application/json")}
	},
	"request-failed": func(f *fields) Message {
		return RequestFailure{CorrID: f.text("corr_id"), Message: f.text("message"),
			Reason: f.oneOf("reason", "", "timeout", "no-subscriber", "peer-gone")}
	},
	"tick": func(f *fields) Message {
		return Tick{ID: f.text("id"), Sequence: f.count("sequence"), DueNS: f.count("due_ns"), Missed: f.countOr("missed", 0)}
	},
}

func readPort(f *fields) Port {
	return Port{
		Route:       f.text("route"),
		Peer:        f.text("peer"),
		Topic:       f.textOr("topic", ""),
		ContentType: f.textOr("content_type", "application/json"),
		SchemaVer:   f.textOr("schema_ver", "v1"),
		Credits:     f.countOr("credits", 64),
		Watermark:   f.countOr("watermark", 48),
		CreditLow:   f.countOr("credit_low", 32),
		Policy:      f.oneOf("policy", "block", "block", "drop_newest", "latest"),
		Epoch:       f.countOr("epoch", 0),
		BaseSeq:     f.countOr("base_seq", 0),
		LimitNS:     f.countOr("limit_ns", 0),
		Resume:      f.countOr("resume", 0),
		QoS:         f.oneOf("qos", "normal", "best-effort", "normal", "high", "realtime"),
		TapOf:       f.textOr("tap_of", ""),
	}
}

func readInputLink(f *fields) InputLink {
	return InputLink{Route: f.text("route"), Segments: f.counts("segments", true), Epoch: f.countOr("epoch", 0),
		Predecessor: f.flag("predecessor")}
}

func readConfigure(f *fields) Message {
	return Configure{
		Flow:          f.text("flow"),
		Node:          f.text("node"),
		PluginID:      f.text("plugin_id"),
		Version:       f.text("version"),
		ImplKind:      f.text("kind"),
		URI:           f.text("uri"),
		Inputs:        each(f, "inputs", readPort),
		Outputs:       each(f, "outputs", readPort),
		Timers:        each(f, "timers", func(f *fields) Timer { return Timer{ID: f.text("id"), IntervalNS: f.count("interval_ns")} }),
		Subscriptions: f.texts("subscriptions"),
		Publications:  f.texts("publications"),
		Params:        f.table("params"),
		QoS:           f.table("qos"),
		Features:      f.table("features"),
		Annotations:   f.table("annotations"),
		BatchHints:    f.table("batch_hints"),
		ArenaLimit:    f.countOr("arena_limit", 1<<30),
		HugePages:     f.flag("hugepages"),
		BaseDir:       f.textOr("base_dir", ""),
		Incarnation:   f.countOr("incarnation", 0),
		OnDaemonLoss:  f.oneOf("on_daemon_loss", "stop", "stop", "survive"),
		Socket:        f.textOr("socket", ""),
		Token:         f.textOr("token", ""),
		BudgetNS:      f.countOr("budget_ns", 0),
		MaxInflight:   f.countOr("max_inflight", 1),
		Standby:       f.flag("standby"),
		EndNS:         f.countOr("end_ns", 5e9),
		TerminateNS:   f.countOr("terminate_ns", 2e9),
	}
}

// decode returns the message in the content of one frame. Every error is a *Refusal.
func (r readers) decode(content []byte) (Message, error) {
	values, err := decodeMap(content)
	if err != nil {
		return nil, err
	}
	kind, isText := values["type"].(string)
	if !isText {
		return nil, malformed("unknown", "its key `type` is missing or is not text")
	}
	read := r[kind]
	if read == nil {
		known := make([]string, 0, len(r))
		for each := range r {
			known = append(known, each)
		}
		sort.Strings(known)
		return nil, malformed(kind, "this side takes only "+strings.Join(known, ", "))
	}
	f := &fields{values: values}
	message := read(f)
	if f.reason != "" {
		return nil, malformed(kind, f.reason)
	}
	return message, nil
}
