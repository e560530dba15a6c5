package registry

import (
	"errors"
	"fmt"
	"strings"
)

// ErrRefused is the kind of every error about a registry's content.
var ErrRefused = errors.New("registry refused")

// Place is where in a registry something is.
type Place struct {
	Kind string `json:"kind,omitempty"` // "member", "device", "service" or "contract"; empty: the whole registry
	Name string `json:"name,omitempty"` // of the object
	Path string `json:"path,omitempty"` // in the object, such as "zone[1].prefixes[0]", as in the files
}

// String writes for example `contract a-b, flow[0].sources[1]`.
func (p Place) String() string {
	if p.Kind == "" {
		return "registry"
	}
	s := p.Kind + " " + p.Name
	if p.Path != "" {
		s += ", " + p.Path
	}
	return s
}

// Fault is one thing that is wrong.
type Fault struct {
	Rule     string `json:"rule"` // stable code of the rule that is broken, such as "zone-overlap"
	Place    Place  `json:"place"`
	File     string `json:"file,omitempty"` // in the folder that was loaded; empty: it came from no file
	Line     int    `json:"line,omitempty"` // from 1; 0: unknown
	Expected string `json:"expected"`
	Came     string `json:"came"`
	Do       string `json:"do,omitempty"`
}

// Error names file and line (or the object), the rule, what was expected, what came, and what to do.
func (f *Fault) Error() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		if f.Place.Path != "" {
			b.WriteString(": " + f.Place.Path)
		}
	} else {
		b.WriteString(f.Place.String())
	}
	fmt.Fprintf(&b, ": [%s] expected %s, came %s", f.Rule, f.Expected, f.Came)
	if f.Do != "" {
		b.WriteString("; " + f.Do)
	}
	return b.String()
}

// maxFaults bounds what one refusal lists.
const maxFaults = 100

// Error lists the faults of a registry: at most 100 of them, and how many more there were.
type Error struct {
	Faults []*Fault
	More   int
}

// Error lists the faults, one a line.
func (e *Error) Error() string {
	var b strings.Builder
	if n := len(e.Faults) + e.More; n == 1 {
		fmt.Fprintf(&b, "%v: %v", ErrRefused, e.Faults[0])
	} else {
		fmt.Fprintf(&b, "%v: %d faults", ErrRefused, n)
		for _, f := range e.Faults {
			b.WriteString("\n  " + f.Error())
		}
		if e.More > 0 {
			fmt.Fprintf(&b, "\n  … and %d more", e.More)
		}
	}
	return b.String()
}

// Unwrap makes errors.Is see the kind and errors.As each fault.
func (e *Error) Unwrap() []error {
	out := []error{ErrRefused}
	for _, f := range e.Faults {
		out = append(out, f)
	}
	return out
}
