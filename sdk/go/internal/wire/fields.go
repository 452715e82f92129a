package wire

import (
	"fmt"
	"math"
	"slices"
)

// fields reads the typed fields of one message. The first one that is not as the schema says is kept as the error; keys
// that nobody asks for are ignored.
type fields struct {
	values map[string]any
	path   string
	reason string
}

func (f *fields) wrong(key, what string) {
	if f.reason == "" {
		f.reason = fmt.Sprintf("%s%s %s", f.path, key, what)
	}
}

// have returns the value of key; false if it may be left out and is.
func (f *fields) have(key string, required bool) (any, bool) {
	value, there := f.values[key]
	if !there && required {
		f.wrong(key, "is missing")
	}
	return value, there
}

func typed[T any](f *fields, key string, required bool, missing T, what string) T {
	value, there := f.have(key, required)
	if !there {
		return missing
	}
	found, isOne := value.(T)
	if !isOne {
		f.wrong(key, "is not "+what)
		return missing
	}
	return found
}

func (f *fields) text(key string) string            { return typed(f, key, true, "", "text") }
func (f *fields) textOr(key, missing string) string { return typed(f, key, false, missing, "text") }
func (f *fields) flag(key string) bool              { return typed(f, key, false, false, "true or false") }
func (f *fields) bytes(key string) []byte           { return typed(f, key, true, []byte(nil), "bytes") }
func (f *fields) table(key string) map[string]any {
	return typed(f, key, false, map[string]any{}, "a map")
}
func (f *fields) any(key string) any { value := f.values[key]; return value }
func (f *fields) list(key string, required bool) []any {
	return typed(f, key, required, []any(nil), "a list")
}

func (f *fields) number(value any, key string) uint64 {
	number, isNumber := value.(uint64)
	if !isNumber || number > math.MaxInt64 {
		f.wrong(key, "is not an integer from 0 to 2^63-1")
		return 0
	}
	return number
}

func (f *fields) count(key string) uint64 {
	value, there := f.have(key, true)
	if !there {
		return 0
	}
	return f.number(value, key)
}

func (f *fields) countOr(key string, missing uint64) uint64 {
	value, there := f.have(key, false)
	if !there {
		return missing
	}
	return f.number(value, key)
}

func (f *fields) oneOf(key, missing string, words ...string) string {
	word := typed(f, key, missing == "", missing, "text")
	if !slices.Contains(words, word) {
		f.wrong(key, fmt.Sprintf("is none of %v", words))
	}
	return word
}

func (f *fields) counts(key string, required bool) []uint64 {
	var found []uint64
	for _, each := range f.list(key, required) {
		found = append(found, f.number(each, key))
	}
	return found
}

func (f *fields) texts(key string) []string {
	var found []string
	for _, each := range f.list(key, false) {
		text, isText := each.(string)
		if !isText {
			f.wrong(key, "is not a list of texts")
		}
		found = append(found, text)
	}
	return found
}

func (f *fields) textMap(key string) map[string]string {
	found := map[string]string{}
	for name, each := range f.table(key) {
		text, isText := each.(string)
		if !isText {
			f.wrong(key, "is not a map of texts")
		}
		found[name] = text
	}
	return found
}

// each reads a list of maps.
func each[T any](f *fields, key string, read func(*fields) T) []T {
	var found []T
	for i, entry := range f.list(key, false) {
		values, isMap := entry.(map[string]any)
		if !isMap {
			f.wrong(key, "is not a list of maps")
			break
		}
		inner := &fields{values: values, path: fmt.Sprintf("%s%s[%d].", f.path, key, i)}
		found = append(found, read(inner))
		if f.reason == "" {
			f.reason = inner.reason
		}
	}
	return found
}
