package wire

import (
	"fmt"
	"reflect"
)

var mapType = reflect.TypeOf(map[string]any(nil))

// Refusal is an error of the catalogue, by its name. The package chronetix fills in its texts.
type Refusal struct {
	Name    string
	Details map[string]any
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s %v", r.Name, r.Details) }

func refuse(name string, pairs ...any) *Refusal {
	details := make(map[string]any, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		details[pairs[i].(string)] = pairs[i+1]
	}
	return &Refusal{Name: name, Details: details}
}

func malformed(kind, reason string) *Refusal {
	return refuse("malformed-message", "type", clip(kind), "reason", reason)
}

// clip cuts a peer's text.
func clip(text string) string {
	const limit = 64
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return text
}
