package ike

import (
	"fmt"
	"slices"
	"strings"
)

// maxSelectors bounds the selectors of one payload that are looked at. The wire format allows
// 255 (RFC 7296, section 3.13).
const maxSelectors = 255

// narrow returns what policy and proposal have in common (RFC 7296, section 2.9): every
// intersection of two selectors, without those that another one covers, in the order of the
// proposal, so that the selector of the triggering packet stays first. Empty: nothing in common.
func narrow(proposed, policy []Selector) []Selector {
	var out []Selector
	for _, p := range proposed {
		for _, q := range policy {
			s, ok := intersect(p, q)
			if !ok || slices.ContainsFunc(out, func(o Selector) bool { return covers(o, s) }) {
				continue
			}
			out = slices.DeleteFunc(out, func(o Selector) bool { return covers(s, o) })
			out = append(out, s)
			if len(out) == maxSelectors {
				return out
			}
		}
	}
	return out
}

// within tells whether every selector of a lies inside of one of b: what a responder narrowed
// must not be wider than what we proposed.
func within(a, b []Selector) bool {
	for _, s := range a {
		if !slices.ContainsFunc(b, func(o Selector) bool { return covers(o, s) }) {
			return false
		}
	}
	return len(a) > 0
}

func intersect(a, b Selector) (Selector, bool) {
	s := a
	switch {
	case a.Proto == b.Proto:
	case a.Proto == 0:
		s.Proto = b.Proto
	case b.Proto == 0:
	default:
		return Selector{}, false
	}
	switch {
	case opaque(a) || opaque(b):
		// RFC 7296, section 3.13.1: OPAQUE is a value of its own; only it and "any" match.
		if !(opaque(a) || anyPort(a)) || !(opaque(b) || anyPort(b)) {
			return Selector{}, false
		}
		s.StartPort, s.EndPort = 65535, 0
	default:
		s.StartPort = max(a.StartPort, b.StartPort)
		s.EndPort = min(a.EndPort, b.EndPort)
		if s.StartPort > s.EndPort {
			return Selector{}, false
		}
	}
	if a.Start.Is4() != b.Start.Is4() {
		return Selector{}, false
	}
	if b.Start.Compare(s.Start) > 0 {
		s.Start = b.Start
	}
	if b.End.Compare(s.End) < 0 {
		s.End = b.End
	}
	return s, s.Start.Compare(s.End) <= 0
}

// covers tells whether all traffic of in is traffic of out.
func covers(out, in Selector) bool {
	if out.Proto != 0 && out.Proto != in.Proto || out.Start.Is4() != in.Start.Is4() {
		return false
	}
	switch {
	case anyPort(out):
	case opaque(out) || opaque(in):
		if opaque(out) != opaque(in) {
			return false
		}
	case in.StartPort < out.StartPort || in.EndPort > out.EndPort:
		return false
	}
	return out.Start.Compare(in.Start) <= 0 && in.End.Compare(out.End) <= 0
}

func opaque(s Selector) bool  { return s.StartPort == 65535 && s.EndPort == 0 }
func anyPort(s Selector) bool { return s.StartPort == 0 && s.EndPort == 65535 }

// check tells what is wrong with a selector of the configuration or of a peer.
func (s Selector) check() error {
	switch {
	case !s.Start.IsValid() || !s.End.IsValid():
		return fmt.Errorf("selector %v: an address is missing", s)
	case s.Start.Is4() != s.End.Is4() || s.Start.Is4In6() || s.End.Is4In6() || s.Start.Zone() != "" || s.End.Zone() != "":
		return fmt.Errorf("selector %v: start and end must be of one address family, without a zone", s)
	case s.Start.Compare(s.End) > 0:
		return fmt.Errorf("selector %v: the start address lies behind the end address", s)
	case s.StartPort > s.EndPort && !opaque(s):
		return fmt.Errorf("selector %v: the start port lies behind the end port", s)
	}
	return nil
}

func joinTS(ts []Selector) string {
	if len(ts) == 0 {
		return "(none)"
	}
	var out []string
	for i, s := range ts {
		if i == 8 {
			out = append(out, fmt.Sprintf("… %d more", len(ts)-i))
			break
		}
		out = append(out, s.String())
	}
	return strings.Join(out, ", ")
}
