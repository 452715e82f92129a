package wire

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

type vector struct {
	Name        string           `json:"name"`
	Union       string           `json:"union"`
	Hex         string           `json:"hex"`
	Messages    []map[string]any `json:"messages"`
	Descriptors []int            `json:"descriptors"`
	Error       string           `json:"error"`
}

type vectorFile struct {
	Good, Accepted, Refused []vector
}

func vectors(t testing.TB) vectorFile {
	t.Helper()
	text, err := os.ReadFile("../../../../protocol/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var file vectorFile
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

func (v vector) bytes(t testing.TB) []byte {
	t.Helper()
	data, err := hex.DecodeString(v.Hex)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// clientReaders take what the vectors of rules that hold for every frame are made of.
var clientReaders = readers{
	"cancel": func(f *fields) Message { return Ping{ID: f.count("id")} },
	"hello": func(f *fields) Message {
		f.counts("protocol", true)
		f.oneOf("role", "", "client", "worker")
		return Ping{}
	},
	"call": func(f *fields) Message {
		f.count("id")
		f.text("verb")
		f.table("args")
		f.countOr("descriptors", 0)
		return Ping{}
	},
}

func decodeAll(union string, pieces ...[]byte) (count int, name string) {
	decoder := &Decoder{readers: toWorker, maxFrame: MaxFrame}
	if union == "ClientMessage" {
		decoder.readers = clientReaders
	}
	for _, piece := range pieces {
		found, err := decoder.Feed(piece, nil)
		count += len(found)
		var refusal *Refusal
		if errors.As(err, &refusal) {
			return count, refusal.Name
		}
		if err != nil {
			return count, err.Error()
		}
	}
	return count, ""
}

func TestFramesThatBreakARuleAreRefusedAfterTheMessagesBeforeThem(t *testing.T) {
	for _, vector := range vectors(t).Refused {
		t.Run(vector.Name, func(t *testing.T) {
			data := vector.bytes(t)
			single := make([][]byte, len(data))
			for i := range data {
				single[i] = data[i : i+1]
			}
			for _, pieces := range [][][]byte{{data}, single} {
				count, name := decodeAll(vector.Union, pieces...)
				if count != len(vector.Messages) || name != vector.Error {
					t.Errorf("%d messages and %q instead of %d and %q", count, name, len(vector.Messages), vector.Error)
				}
			}
		})
	}
}

func TestWhatADaemonSendsIsDecodedFieldByField(t *testing.T) {
	file := vectors(t)
	for _, vector := range append(file.Good, file.Accepted...) {
		if vector.Union != "ToWorker" {
			continue
		}
		t.Run(vector.Name, func(t *testing.T) {
			decoder := NewDecoder()
			total := 0
			for _, count := range vector.Descriptors {
				total += count
			}
			descriptors := make([]int, total)
			for i := range descriptors {
				descriptors[i] = -1
			}
			found, err := decoder.Feed(vector.bytes(t), descriptors)
			if err != nil || len(found) != len(vector.Messages) {
				t.Fatalf("%d messages, %v", len(found), err)
			}
			for i, received := range found {
				if len(received.Descriptors) != vector.Descriptors[i] {
					t.Errorf("%d descriptors instead of %d", len(received.Descriptors), vector.Descriptors[i])
				}
				if received.Message.Kind() != vector.Messages[i]["type"] {
					t.Errorf("%s instead of %v", received.Message.Kind(), vector.Messages[i]["type"])
				}
				compare(t, "", vector.Messages[i], reflect.ValueOf(received.Message))
			}
		})
	}
}

// compare finds every field that the vector shows in the struct, by its name without underscores.
func compare(t *testing.T, path string, shown map[string]any, found reflect.Value) {
	t.Helper()
	for key, want := range shown {
		if key == "type" {
			continue
		}
		if path == "" && key == "kind" {
			key = "impl_kind"
		}
		name := strings.ReplaceAll(key, "_", "")
		field := found.FieldByNameFunc(func(each string) bool { return strings.EqualFold(each, name) })
		if !field.IsValid() {
			t.Errorf("%s%s has no field", path, key)
			continue
		}
		compareValue(t, path+key, want, field)
	}
}

func compareValue(t *testing.T, path string, want any, found reflect.Value) {
	t.Helper()
	if found.Kind() == reflect.Interface {
		found = found.Elem()
	}
	switch want := want.(type) {
	case map[string]any:
		if content, isBytes := want["$bytes"]; isBytes {
			if hex.EncodeToString(found.Bytes()) != content {
				t.Errorf("%s is %x", path, found.Bytes())
			}
			return
		}
		if found.Kind() == reflect.Struct {
			compare(t, path+".", want, found)
			return
		}
		for key, each := range want {
			compareValue(t, path+"."+key, each, found.MapIndex(reflect.ValueOf(key)))
		}
	case []any:
		if found.Len() != len(want) {
			t.Fatalf("%s has %d entries", path, found.Len())
		}
		for i, each := range want {
			compareValue(t, fmt.Sprintf("%s[%d]", path, i), each, found.Index(i))
		}
	case float64:
		if found.Uint() != uint64(want) {
			t.Errorf("%s is %d", path, found.Uint())
		}
	default:
		if !reflect.DeepEqual(found.Interface(), want) {
			t.Errorf("%s is %v", path, found.Interface())
		}
	}
}

var linkedNo = false

// sent are the messages of the vectors that a worker sends, as this package makes them.
var sent = map[string][]Message{
	"hello of a worker with features":     {Hello{Protocol: []uint64{2, 1}, Role: "worker", Features: []string{"trace"}}},
	"offer":                               {Offer{Rings: []string{"a", "b"}, Credits: []string{"c"}, Segments: []uint64{0}}},
	"offer of a node without data routes": {Offer{}},
	"linked, drained":                     {Linked{Routes: []string{"s", "r"}}, Drained{Route: "r", Epoch: 1}},
	"an arena grows":                      {Segment{Index: 1}},
	"segment-mapped":                      {SegmentMapped{Index: 1, Route: "a"}},
	"segment-mapped of a later stage":     {SegmentMapped{Index: 2, Route: "a", Epoch: 1}},
	"segment-dropped":                     {SegmentDropped{Index: 1}},
	"ready, started, finished":            {Ready{}, Started{}, Finished{Result: map[string]any{"rows": 336776}}},
	"accuse":                              {Accuse{Route: "a->b", Rule: "flags 0x100 are not known", Epoch: 2}},
	"gave-up":                             {GaveUp{Route: "a->b", WaitedNS: 2000000000}},
	"fault":                               {Fault{Phase: "frame", Error: "ValueError", Message: "no", Traceback: "Traceback …"}},
	"reattach": {Reattach{Flow: "f", Node: "n", Token: "00ff", State: "started", Incarnation: 1,
		Outputs: []ReattachedStage{{Route: "a/b", Epoch: 2}}, Inputs: []ReattachedStage{{Route: "x/y", Segments: []uint64{0, 1}}},
		Segments: []uint64{0, 1}, Unconfirmed: []uint64{1}}},
	"reattach with pipes":      {Reattach{Flow: "f", Node: "n", Token: "00ff", State: "started", Pipes: true}},
	"pong":                     {Pong{ID: 1, Progress: 12, BusyNS: 1500}},
	"pong of a plugin at work": {Pong{ID: 9, Progress: 12, BusyNS: 1500000000, Doing: "on_frame (route r, seq 7)"}},
	"frame-failed": {FrameFailed{Route: "r", Seq: 7, Attempts: 3, Error: "ValueError", Outcome: "dead-letter",
		Message: "no such row"}},
	"log":                    {Log{Level: "info", Message: "hi", UnixNS: 1700000000000000000, Fields: map[string]any{"n": 1}}},
	"subscribe, unsubscribe": {Subscribe{Topic: "a/b"}, Unsubscribe{Topic: "a/b"}},
	"messages-dropped":       {MessagesDropped{Topic: "a/b", Count: 3}},
	"request":                {Request{Envelope: Envelope{Topic: "q", CorrID: "1"}, Payload: []byte("x"), TimeoutNS: 1000000000}},
}

func TestWhatAWorkerSendsHasTheBytesOfTheVectors(t *testing.T) {
	for _, vector := range vectors(t).Good {
		if vector.Union != "WorkerMessage" {
			continue
		}
		t.Run(vector.Name, func(t *testing.T) {
			messages, known := sent[vector.Name]
			if !known {
				if strings.HasPrefix(vector.Name, "publish with a key") {
					t.Skip("this package sends no key that PROTOCOL.md does not know")
				}
				t.Fatal("no message of this package is compared with this vector")
			}
			var data []byte
			for i, message := range messages {
				frame, err := Encode(message, MaxFrame)
				if err != nil {
					t.Fatal(err)
				}
				data = append(data, frame...)
				if message.Descriptors() != vector.Descriptors[i] {
					t.Errorf("%d descriptors instead of %d", message.Descriptors(), vector.Descriptors[i])
				}
			}
			if hex.EncodeToString(data) != vector.Hex {
				t.Errorf("%x\ninstead of\n%s", data, vector.Hex)
			}
		})
	}
}

func TestAFrameThatNoPeerMayReadIsNotSent(t *testing.T) {
	deep := any(nil)
	for range maxDepth + 1 {
		deep = []any{deep}
	}
	for name, message := range map[string]Message{
		"nested too deep":      Finished{Result: deep},
		"text that is no text": Finished{Result: "\xff"},
		"larger than allowed":  Finished{Result: make([]byte, 100)},
		"no value at all":      Finished{Result: make(chan int)},
	} {
		var refusal *Refusal
		if _, err := Encode(message, 90); !errors.As(err, &refusal) || refusal.Name != "frame-not-sendable" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Encode(Reattach{Outputs: []ReattachedStage{{Route: "r", Linked: &linkedNo}}}, MaxFrame); err != nil {
		t.Error(err)
	}
}

func FuzzDecoder(f *testing.F) {
	file := vectors(f)
	for _, vector := range append(append(file.Good, file.Accepted...), file.Refused...) {
		f.Add(vector.bytes(f), 3)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		whole := NewDecoder()
		whole.maxFrame = 1 << 16
		got, err := whole.Feed(data, nil)
		parts := NewDecoder()
		parts.maxFrame = 1 << 16
		if cut < 0 || cut > len(data) {
			cut = len(data) / 2
		}
		first, firstErr := parts.Feed(data[:cut], nil)
		second, secondErr := parts.Feed(data[cut:], nil)
		if len(got) != len(first)+len(second) {
			t.Fatalf("%d messages in one piece, %d and %d in two", len(got), len(first), len(second))
		}
		if (err == nil) != (firstErr == nil && secondErr == nil) {
			t.Fatalf("%v in one piece, %v and %v in two", err, firstErr, secondErr)
		}
		var refusal *Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("%v is not of the catalogue", err)
		}
	})
}
