// Package wire is the control protocol of a worker: strict CBOR, frames, messages and the descriptors that go with them.
//
// Bytes in, messages out: only Conn knows a socket. What PROTOCOL.md refuses is refused here with the name of the error
// in its catalogue, and nothing is allocated for a length that a peer only claims.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Limits of PROTOCOL.md, section Limits.
const (
	MaxFrame   = 16 << 20
	maxDepth   = 64
	maxItems   = 1 << 20
	maxNesting = maxDepth + 1
)

var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  maxNesting,
		MaxArrayElements: maxItems,
		MaxMapPairs:      maxItems,
		DefaultMapType:   mapType,
		UTF8:             cbor.UTF8RejectInvalid,
		IntDec:           cbor.IntDecConvertNone,
		BigIntDec:        cbor.BigIntDecodePointer,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

var encoding = func() cbor.EncMode {
	mode, err := cbor.EncOptions{
		Sort:          cbor.SortNone,
		ShortestFloat: cbor.ShortestFloatNone,
		TagsMd:        cbor.TagsForbidden,
		IndefLength:   cbor.IndefLengthForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
	}.EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// scanner walks over one item and checks what the decoder does not: that the lengths are there before anything is
// allocated for them, the number of items, text keys, and that no simple value but false, true and null occurs.
type scanner struct {
	data  []byte
	at    int
	items int
}

var (
	errTruncated = errors.New("the item is longer than the frame")
	errTrailing  = errors.New("bytes follow the item")
)

// checkItem tells whether data is exactly one strict item.
func checkItem(data []byte) error {
	s := scanner{data: data}
	if err := s.item(0); err != nil {
		return err
	}
	if s.at != len(data) {
		return errTrailing
	}
	return nil
}

// head reads the initial byte and the argument.
func (s *scanner) head() (major byte, argument uint64, err error) {
	if s.at >= len(s.data) {
		return 0, 0, errTruncated
	}
	first := s.data[s.at]
	s.at++
	major, info := first>>5, first&31
	switch {
	case info < 24:
		return major, uint64(info), nil
	case info > 27:
		return 0, 0, fmt.Errorf("initial byte 0x%02x is reserved, or begins an indefinite length", first)
	}
	size := 1 << (info - 24)
	if len(s.data)-s.at < size {
		return 0, 0, errTruncated
	}
	var wide [8]byte
	copy(wide[8-size:], s.data[s.at:])
	s.at += size
	argument = binary.BigEndian.Uint64(wide[:])
	if major == 7 && info == 24 {
		return 0, 0, fmt.Errorf("simple value %d", argument)
	}
	return major, argument, nil
}

func (s *scanner) item(depth int) error {
	if s.items++; s.items > maxItems {
		return fmt.Errorf("more than %d items", maxItems)
	}
	start := s.at
	major, argument, err := s.head()
	if err != nil {
		return err
	}
	switch major {
	case 2, 3:
		return s.text(argument, major == 3)
	case 4, 5:
		return s.container(argument, major == 5, depth+1)
	case 6:
		return fmt.Errorf("tag %d", argument)
	case 7:
		if info := s.data[start] & 31; info < 20 || info == 23 {
			return fmt.Errorf("simple value %d", info)
		}
	}
	return nil
}

func (s *scanner) text(length uint64, isText bool) error {
	if length > uint64(len(s.data)-s.at) {
		return errTruncated
	}
	content := s.data[s.at : s.at+int(length)]
	s.at += int(length)
	if isText && !utf8.Valid(content) {
		return errors.New("text is not UTF-8")
	}
	return nil
}

func (s *scanner) container(count uint64, isMap bool, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d lists and maps inside each other", maxDepth)
	}
	least := uint64(1)
	if isMap {
		least = 2
	}
	if count > uint64(len(s.data)-s.at)/least {
		return errTruncated
	}
	for ; count > 0; count-- {
		if isMap {
			if s.at < len(s.data) && s.data[s.at]>>5 != 3 {
				return errors.New("a map's key is not text")
			}
			if err := s.item(depth); err != nil {
				return err
			}
		}
		if err := s.item(depth); err != nil {
			return err
		}
	}
	return nil
}

// decodeMap decodes one strict item that has to be a map.
func decodeMap(data []byte) (map[string]any, error) {
	if err := checkItem(data); err != nil {
		return nil, &Refusal{Name: "malformed-cbor", Details: map[string]any{"reason": err.Error()}}
	}
	var value any
	if err := decoding.Unmarshal(data, &value); err != nil {
		return nil, &Refusal{Name: "malformed-cbor", Details: map[string]any{"reason": err.Error()}}
	}
	fields, isMap := value.(map[string]any)
	if !isMap {
		return nil, malformed("unknown", "it is not a map")
	}
	return fields, nil
}
